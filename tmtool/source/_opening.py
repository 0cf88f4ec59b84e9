"""A raster that passed inspection, and opening rasters with GDAL."""

import contextlib
import glob
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
from tmtool.source._delivery import Delivery
from tmtool.source._held import Held
from tmtool.source._masks import Mask
from tmtool.source._values import BandValues


@dataclass(frozen=True)
class Source:
    """A raster that passed inspection and can be used.

    `bands` are GDAL's 1-based band numbers in the modality's order. A value in its unit is `raw * gain - offset`, and of linear
    `power` 10 log10 of that. `block` is (height, width) of the file's blocks. The `*_why` fields say what each decision is
    based on.
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
    vrt: str = field(default="", repr=False)
    """A virtual raster's text, which is opened in place of `path`, if the pixels are not in one file, or not on its grid."""
    points: str = ""
    """What georeferences the file if no affine does: "gcps" or "rpcs"."""
    delivery: Delivery | None = field(default=None, compare=False, repr=False)
    """The files that it consists of, if it is not one raster."""
    gain: float = 1.0
    power: bool = False
    unit_why: str = ""
    codes: tuple[int, ...] = ()
    """The class that each code of the file stands for, -1 for none; empty where they are classes already."""
    masks: tuple[Mask, ...] = ()
    """What is left out of the valid pixels."""
    own: Grid | None = None
    """The file's grid, if it was brought to another one."""
    density: float = 1.0
    """Pixels of the file, and of what is kept of the warp, for each of the grid's."""
    pixel_m: float = 10.0
    """Size of the pixels that the model was trained on."""
    brought: str = ""
    """How it was brought to `grid`, in words."""
    baseline: str | None = None
    """Processing baseline of a Sentinel-2 product."""
    platform: str | None = None
    """The satellite that took it, as STAC writes it: sentinel-2b."""

    @property
    def opens(self) -> str:
        """What GDAL opens: a path, or a virtual raster's text."""
        return self.vrt or self.path

    @property
    def files(self) -> tuple[str, ...]:
        """The files that hold the pixels."""
        return tuple(dict.fromkeys(layer.path for layer in self.delivery.layers)) if self.delivery else (self.path,)

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
        return int(rows * cols * bands * np.dtype(self.dtype).itemsize * self.density)


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
    units: tuple[str | None, ...] = ()
    vrt: str = ""
    points: str = ""
    delivery: Delivery | None = None

    @property
    def power(self) -> bool:
        """Whether values are known to be linear power."""
        return self.delivery is not None and self.delivery.power


def described(path: str, vrt: str = "", *, points: bool = False) -> Description:
    """Return the metadata of the raster at `path`, or of a virtual one. Raises `InputError` if it is not one.

    One that has RPCs or GCPs only is not one either, unless `points` are allowed; its grid is then that of its pixels.
    """
    with open_raster(vrt) if vrt else opened(path) as src:
        by = _points(src)
        if not points:
            _refuse_unusable(src, path, by)
        tags = {**src.tags(), **src.tags(ns="IMAGERY")}
        for band in src.indexes:
            tags.update(src.tags(band))
        return Description(
            path=path,
            grid=Grid(src.gcps[1] if by == "gcps" else src.crs, src.transform, src.shape),
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
            units=src.units,
            vrt=vrt,
            points=by,
        )


def _points(src: Any) -> str:
    """Return what georeferences a raster that has no affine: "gcps", "rpcs" or nothing."""
    if src.transform != Affine.identity():
        return ""
    return "gcps" if src.gcps[0] else "rpcs" if src.rpcs else ""


def _refuse_unusable(src: Any, path: str, points: str) -> None:
    if src.count == 0:
        inside = "\n  ".join(src.subdatasets[:8])
        hint = f"Give one of its subdatasets:\n  {inside}" if inside else "It has no bands."
        raise InputError(f"{path}: has no raster bands of its own. {hint}")
    refuse_points(path, points == "gcps", src.transform)
    if points == "rpcs":
        raise InputError(
            f"{path}: is georeferenced by RPCs only. Have it warped: --grid utm@10m (without a terrain model); with one: "
            "gdalwarp -rpc -to RPC_DEM=dem.tif -tr 10 10 ..."
        )


def refuse_points(path: str, points: bool, transform: Affine) -> None:
    """Raise `InputError` for a raster that is georeferenced by ground control points alone."""
    if points and transform == Affine.identity():
        raise InputError(
            f"{path}: is georeferenced by ground control points only, not by a CRS and an affine. Have it warped: "
            "--grid utm@10m, or --grid FILE for the grid of another raster."
        )


@contextlib.contextmanager
def opened(path: str, overview: int | None = None) -> Iterator[Any]:
    """Open `path`, or this of its overviews (from 0), with GDAL, quietly; raise `InputError` if it does not exist or is no raster."""
    local = not path.startswith(("/vsi", "<")) and "://" not in path
    if local and os.path.isdir(path):
        raise InputError(f"{path}: is a folder; give the raster inside it.")
    if local and ":" not in path and not os.path.exists(path):
        raise InputError(f"{path}: {'matches no file' if glob.has_magic(path) else 'no such file'}.")
    with open_raster(path, overview) as src:
        yield src


_STORES = (
    "/vsicurl",
    "/vsis3",
    "/vsigs",
    "/vsiaz",
    "/vsiadls",
    "/vsioss",
    "/vsiswift",
    "/vsihdfs",
    "/vsiwebhdfs",
    "://",
)
_REACHING = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # else every opening lists a folder, or tries names
    "GDAL_HTTP_MAX_RETRY": "3",
    "GDAL_HTTP_RETRY_DELAY": "1",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
}
"""What suits rasters that are not on this machine; the environment takes precedence."""


@contextlib.contextmanager
def reaching(name: str, *, afresh: bool = False) -> Iterator[None]:
    """Set what suits GDAL for opening and reading a path, or a virtual raster's text, if it is not on this machine.

    What is read `afresh` is forgotten when its handle is closed, as GDAL keeps incomplete answers too.
    """
    if not is_remote(name):
        yield
        return
    asked = {key: value for key, value in _REACHING.items() if key not in os.environ}
    asked |= {"CPL_VSIL_CURL_NON_CACHED": ":".join(f"{store}/" for store in _STORES[:-1])} if afresh else {}
    with rasterio.Env(
        **asked, GDAL_NUM_THREADS="1"
    ):  # where an answer breaks off, GDAL 3.10's threads give zeros and no error
        yield


def is_remote(name: str) -> bool:
    """Whether GDAL fetches what a path, or a virtual raster's text, names."""
    return any(store in name for store in _STORES)


def open_raster(path: str, overview: int | None = None) -> Any:
    """Return a handle on `path`, or on this of its overviews (from 0); raises `InputError` if GDAL cannot open it."""
    options = {} if overview is None else {"overview_level": overview}
    threads = "1" if is_remote(path) else "ALL_CPUS"
    with reaching(path), rasterio.Env(GDAL_NUM_THREADS=threads), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            return rasterio.open(path, **options)
        except UnicodeError:
            raise InputError(
                f"{path!r}: GDAL takes names in UTF-8 only; rename it, or give a symbolic link to it."
            ) from None
        except RasterioError as error:
            raise InputError(f"{path}: GDAL cannot open it as a raster ({error}).") from None  # which may hold secrets
