"""A raster that passed inspection, and opening rasters with GDAL."""

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from tmtool.errors import InputError
from tmtool.grid import Grid
from tmtool.modality import Modality
from tmtool.provenance import Provenance, parse
from tmtool.source._held import Held
from tmtool.source._values import BandValues


@dataclass(frozen=True)
class Source:
    """A raster that passed inspection and can be used.

    `bands` are GDAL's 1-based band numbers in the modality's order. `offset` was added to the DN and is subtracted on
    reading. `block` is (height, width) of the file's blocks. The `*_why` fields say what each decision is based on.
    """

    path: str = field(repr=False)  # which schedulers of tasks may tell
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
    made: Provenance | None = None
    """How a token raster was made."""
    validity: "Source | None" = None
    """The raster that marks a token raster's pixels without data, if it has any."""
    array: Held | None = field(default=None, compare=False, repr=False)
    """The values, where there is no file of them; `path` is then what messages call them."""
    alpha: int | None = None
    """Number of the band that is 0 where pixels are empty."""
    date: str | None = None
    """When it was taken, as `tmtool.dates` has it."""
    date_why: str = ""
    values: tuple[BandValues, ...] = field(default=(), compare=False)
    """What a sample of the valid values holds, an entry a band; none where there was no valid pixel in it."""

    def cache_bytes(self, tile_height: int, width: int | None = None) -> int:
        """GDAL block cache that lets tiles of this height pass over the raster, or `width` px of it, decoding each block once."""
        if self.array is not None:
            return 0
        rows, cols = (
            min((-(-size // block) + 1) * block, most)
            for size, block, most in zip(
                (tile_height, width or self.grid.shape[1]), self.block, self.grid.shape, strict=True
            )
        )
        bands = len(self.bands) + (self.alpha is not None)
        return rows * cols * bands * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Description:
    """Metadata of a raster, whether a file or an array: one entry per band, alpha bands included.

    `mask_bands` says which bands have their validity in a separate mask, not in an alpha band or a nodata value.
    `tags` are those of the raster and of its bands, `made` is how tmtool made it, if it did. `path` is what messages call it.
    """

    path: str
    grid: Grid
    names: tuple[str | None, ...]
    dtypes: tuple[str, ...]
    nodata: tuple[float | None, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    alpha: tuple[bool, ...]
    mask_bands: tuple[bool, ...]
    blocks: tuple[tuple[int, int], ...]
    tags: Mapping[str, str]
    made: Provenance | None
    array: Held | None = None


def described(path: str) -> Description:
    """Return the metadata of the raster at `path`. Raises `InputError` if it is not one, or has RPCs or GCPs only."""
    with opened(path) as src:
        _refuse_unusable(src, path)
        tags = {**src.tags(), **src.tags(ns="IMAGERY")}
        for band in src.indexes:
            tags.update(src.tags(band))
        return Description(
            path=path,
            grid=Grid(src.crs, src.transform, src.shape),
            names=src.descriptions,
            dtypes=src.dtypes,
            nodata=src.nodatavals,
            scales=src.scales,
            offsets=src.offsets,
            alpha=tuple(interp == ColorInterp.alpha for interp in src.colorinterp),
            mask_bands=tuple(MaskFlags.per_dataset in f and MaskFlags.alpha not in f for f in src.mask_flag_enums),
            blocks=tuple(src.block_shapes),
            tags=tags,
            made=parse(src.tags()),
        )


def _refuse_unusable(src: Any, path: str) -> None:
    if src.count == 0:
        inside = "\n  ".join(src.subdatasets[:8])
        hint = f"Give one of its subdatasets:\n  {inside}" if inside else "It has no bands."
        raise InputError(f"{path}: has no raster bands of its own. {hint}")
    refuse_points(path, bool(src.gcps[0]), src.transform)
    if src.rpcs and src.transform == Affine.identity():
        raise InputError(f"{path}: is georeferenced by RPCs only. Orthorectify it first: gdalwarp -rpc -tr 10 10 ...")


def refuse_points(path: str, points: bool, transform: Affine) -> None:
    """Raise `InputError` for a raster that is georeferenced by ground control points alone."""
    if points and transform == Affine.identity():
        raise InputError(
            f"{path}: is georeferenced by ground control points only, not by a CRS and an affine. Warp it first: "
            f"gdalwarp -t_srs EPSG:326xx -tr 10 10 -r bilinear {os.path.basename(path)} warped.tif"
        )


@contextlib.contextmanager
def opened(path: str, overview: int | None = None) -> Iterator[Any]:
    """Open `path`, or this of its overviews (from 0), with GDAL, quietly; raise `InputError` if it does not exist or is no raster."""
    local = not path.startswith("/vsi") and "://" not in path
    if local and os.path.isdir(path):
        raise InputError(f"{path}: is a folder; give the raster inside it.")
    if local and ":" not in path and not os.path.exists(path):
        raise InputError(f"{path}: no such file.")
    with open_raster(path, overview) as src:
        yield src


def open_raster(path: str, overview: int | None = None) -> Any:
    """Return a handle on `path`, or on this of its overviews (from 0); raises `InputError` if GDAL cannot open it."""
    options = {} if overview is None else {"overview_level": overview}
    with rasterio.Env(GDAL_NUM_THREADS="ALL_CPUS"), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            return rasterio.open(path, **options)
        except UnicodeError:
            raise InputError(
                f"{path!r}: GDAL takes names in UTF-8 only; rename it, or give a symbolic link to it."
            ) from None
        except RasterioError as error:
            raise InputError(f"{path}: GDAL cannot open it as a raster ({error}).") from None  # which may hold secrets
