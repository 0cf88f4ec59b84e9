"""A raster that was looked at, and opening it with GDAL."""

import contextlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from tmtool.errors import InputError
from tmtool.grid import Grid
from tmtool.modality import Modality
from tmtool.writer import PROVENANCE_TAG


@dataclass(frozen=True)
class Source:
    """A raster that was looked at and can be used.

    `bands` are GDAL's 1-based band numbers in the modality's order. `offset` was added to the DN and is subtracted on
    reading. `block` is (height, width) of the file's blocks. The `*_why` fields say what a decision rests on.
    """

    path: str
    modality: Modality
    modality_why: str
    grid: Grid
    bands: tuple[int, ...]
    dtype: str
    nodata: float | None
    nodata_why: str
    mask_band: bool
    block: tuple[int, int]
    offset: float
    offset_why: str
    warnings: tuple[str, ...] = field(default=())
    scale: int = 1
    """Source px per px of the file: 16 for a token raster, whose `grid` is the one that it was made from."""
    made: Mapping[str, Any] = field(default_factory=dict)
    """Provenance of a token raster."""
    validity: "Source | None" = None
    """Where a token raster's pixels without data are told, if it has any."""

    def cache_bytes(self, tile_height: int, width: int | None = None) -> int:
        """GDAL block cache that lets tiles of this height pass over the raster, or `width` px of it, decoding each block once."""
        rows, cols = (
            min((-(-size // block) + 1) * block, most)
            for size, block, most in zip(
                (tile_height, width or self.grid.shape[1]), self.block, self.grid.shape, strict=True
            )
        )
        return rows * cols * len(self.bands) * np.dtype(self.dtype).itemsize


@contextlib.contextmanager
def opened(path: str) -> Iterator[Any]:
    """Open `path` with GDAL, quietly; raise `InputError` if it does not exist or is no raster."""
    local = not path.startswith("/vsi") and "://" not in path
    if local and os.path.isdir(path):
        raise InputError(f"{path}: is a folder; give the raster inside it.")
    if local and ":" not in path and not os.path.exists(path):
        raise InputError(f"{path}: no such file.")
    with open_raster(path) as src:
        yield src


def open_raster(path: str) -> Any:
    """Return a handle on `path`; raises `InputError` if GDAL cannot open it."""
    with rasterio.Env(GDAL_NUM_THREADS="ALL_CPUS"), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            return rasterio.open(path)
        except RasterioError as error:
            raise InputError(f"{path}: GDAL cannot open it as a raster ({error}).") from error


def provenance(src: Any) -> dict[str, Any]:
    """Return what a raster says of how tmtool made it; nothing if it does not."""
    try:
        said = json.loads(src.tags().get(PROVENANCE_TAG, "{}"))
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
