"""Rasters as they come: what a file is, whether it can be used, and its pixels and validity window by window."""

import contextlib
import json
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.warp import transform
from rasterio.windows import Window as RasterioWindow

from tmtool.errors import InputError, ReadError
from tmtool.grid import PATCH, BoolArray, FloatArray, Grid, Tile, Window
from tmtool.modality import MODALITIES, S2_NAMES, TOKEN_NODATA, Modality
from tmtool.writer import PROVENANCE_TAG

_EXPECTED_PIXEL_M = (8.0, 12.0)


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

    def cache_bytes(self, tile_height: int) -> int:
        """GDAL block cache that lets tiles of this height pass over the raster decoding each block once."""
        block_rows = -(-tile_height // self.block[0]) + 1
        rows = min(block_rows * self.block[0], self.grid.shape[0])
        return rows * self.grid.shape[1] * len(self.bands) * np.dtype(self.dtype).itemsize


def inspect(path: str, modality: Modality | None = None, s2_offset: float | None = None) -> Source:
    """Look at the raster `path`, taking it for `modality` or finding out what it is.

    Reads metadata and a few small windows. Raises `InputError` for whatever would make a run fail or mean nothing.
    """
    with opened(path) as src:
        _refuse_unusable(src, path)
        if (task := _provenance(src).get("task")) in ("tokenize", "embed"):
            what, use = (
                ("tokens", "tmtool reconstruct takes it") if task == "tokenize" else ("embeddings", "it is no input")
            )
            raise InputError(f"{path}: holds {what} that tmtool {task} made; {use}.")
        modality, modality_why, bands = _identify(src, path, modality)
        offset, offset_why = _offset(src, modality, s2_offset)
        dtype = src.dtypes[bands[0] - 1]
        if np.dtype(dtype).kind == "c":
            raise InputError(
                f"{path}: values are complex ({dtype}); tmtool takes real values such as backscatter in dB."
            )
        nodata, nodata_why = _nodata(src, modality, bands)
        source = Source(
            path=path,
            modality=modality,
            modality_why=modality_why,
            grid=Grid(src.crs, src.transform, src.shape),
            bands=bands,
            dtype=dtype,
            nodata=nodata,
            nodata_why=nodata_why,
            mask_band=_has_mask_band(src, bands),
            block=src.block_shapes[bands[0] - 1],
            offset=offset,
            offset_why=offset_why,
            warnings=tuple(_pixel_size_warnings(src)),
        )
    _check_values(source)
    return source


@contextlib.contextmanager
def opened(path: str) -> Iterator[Any]:
    """Open `path` with GDAL, quietly; raise `InputError` if it does not exist or is no raster."""
    local = not path.startswith("/vsi") and "://" not in path
    if local and os.path.isdir(path):
        raise InputError(f"{path}: is a folder; give the raster inside it.")
    if local and ":" not in path and not os.path.exists(path):
        raise InputError(f"{path}: no such file.")
    with _open(path) as src:
        yield src


def _provenance(src: Any) -> dict[str, Any]:
    """Return what a raster says of how tmtool made it; nothing if it does not."""
    try:
        said = json.loads(src.tags().get(PROVENANCE_TAG, "{}"))
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def token_source(path: str) -> Source | None:
    """Return the token raster at `path`, or None if it is something else.

    Raises `InputError` for one that is damaged, or that lacks the file that tells its pixels without data.
    """
    with opened(path) as src:
        made = _provenance(src)
        if made.get("task") != "tokenize" or "codebook" not in made:
            return None
        grid = Grid(src.crs, src.transform, src.shape)
        whole = grid.finer(PATCH, (made["source"]["height"], made["source"]["width"]))
        if src.count != 1 or src.dtypes[0] != "uint16" or whole.coarser(PATCH) != grid:
            raise InputError(
                f"{path}: is no longer the token raster that tmtool wrote for {whole.shape[0]} x {whole.shape[1]} px; it "
                f"has {_bands(src.count)} of {src.dtypes[0]}, {src.height} x {src.width}. Tokenize the raster again."
            )
        source = Source(
            path,
            MODALITIES[made["modality"]],
            "its tmtool provenance",
            whole,
            (1,),
            "uint16",
            float(TOKEN_NODATA),
            "token raster",
            False,
            src.block_shapes[0],
            0.0,
            "tokens",
            scale=PATCH,
            made=made,
        )
    beside = made["validity"] and os.path.join(os.path.dirname(path), made["validity"])
    return replace(source, validity=_validity(source, beside)) if beside else source


def _validity(tokens: Source, path: str) -> Source:
    try:
        with opened(path) as src:
            grid, block = Grid(src.crs, src.transform, src.shape), src.block_shapes[0]
    except InputError as error:
        raise InputError(
            f"{tokens.path}: its raster had pixels without data, which are told by {os.path.basename(path)}; that has to "
            f"lie beside it. {error}"
        ) from error
    if grid != tokens.grid:
        raise InputError(f"{path}: does not belong to {tokens.path}: it lies at {grid}, expected {tokens.grid}.")
    return replace(tokens, path=path, dtype="uint8", nodata=0.0, block=block, scale=1)


def check_one_grid(sources: Sequence[Source]) -> None:
    """Raise `InputError` unless all sources lie on the first one's grid, to a thousandth of a pixel."""
    first = sources[0]
    for other in sources[1:]:
        same = other.grid.shape == first.grid.shape and other.grid.crs == first.grid.crs
        if not same or _apart(first.grid, other.grid) > 1e-3:
            raise InputError(
                f"{other.path}: lies on another grid than {first.path}: {_grid_text(other.grid)}, expected "
                f"{_grid_text(first.grid)}. Bring it there first: gdalwarp {_warp_options(first.grid)} "
                f"{os.path.basename(other.path)} aligned.tif"
            )


def _apart(grid: Grid, other: Grid) -> float:
    """Return how far the corners of two grids of one shape lie apart, in px of the first."""
    offsets = []
    for corner in ((0, 0), grid.shape[::-1]):
        col, row = ~grid.transform * (other.transform * corner)
        offsets += [abs(col - corner[0]), abs(row - corner[1])]
    return float(max(offsets))


def _grid_text(grid: Grid) -> str:
    t = grid.transform
    where = grid.crs.to_string() if grid.crs else "no CRS"
    return f"{where}, {grid.shape[0]} x {grid.shape[1]} px of {t.a:.10g} x {t.e:.10g} from {t.c:.10g}, {t.f:.10g}"


def _warp_options(grid: Grid) -> str:
    (left, top), (right, bottom) = grid.transform * (0, 0), grid.transform * grid.shape[::-1]
    extent = " ".join(f"{v:.10g}" for v in (left, min(top, bottom), right, max(top, bottom)))
    crs = f"-t_srs {grid.crs.to_string()} " if grid.crs else ""
    return f"{crs}-te {extent} -ts {grid.shape[1]} {grid.shape[0]}"


def centres(grid: Grid) -> Callable[[Tile], tuple[float, float]]:
    """Return the function that gives a tile's centre as longitude and latitude in degrees; the grid must have a CRS."""

    def centre(tile: Tile) -> tuple[float, float]:
        x, y = grid.transform * (tile.col + tile.size / 2, tile.row + tile.size / 2)
        (lon,), (lat,) = transform(grid.crs, "EPSG:4326", [x], [y])
        return lon, lat

    return centre


def _open(path: str) -> Any:
    with rasterio.Env(GDAL_NUM_THREADS="ALL_CPUS"), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            return rasterio.open(path)
        except RasterioError as error:
            raise InputError(f"{path}: GDAL cannot open it as a raster ({error}).") from error


def _refuse_unusable(src: Any, path: str) -> None:
    if src.count == 0:
        inside = "\n  ".join(src.subdatasets[:8])
        hint = f"Give one of its subdatasets:\n  {inside}" if inside else "It has no bands."
        raise InputError(f"{path}: holds no raster bands itself. {hint}")
    if src.gcps[0] and src.transform == Affine.identity():
        raise InputError(
            f"{path}: is georeferenced by ground control points only, not by a CRS and an affine. Warp it first: "
            f"gdalwarp -t_srs EPSG:326xx -tr 10 10 -r bilinear {os.path.basename(path)} warped.tif"
        )
    if src.rpcs and src.transform == Affine.identity():
        raise InputError(f"{path}: is georeferenced by RPCs only. Orthorectify it first: gdalwarp -rpc -tr 10 10 ...")


def _identify(src: Any, path: str, asked: Modality | None) -> tuple[Modality, str, tuple[int, ...]]:
    """Return the modality, why it is that, and the numbers of its bands in its own order."""
    data = [i for i, interp in zip(src.indexes, src.colorinterp, strict=True) if interp != ColorInterp.alpha]
    named = {_band_name(src.descriptions[i - 1]): i for i in data if src.descriptions[i - 1]}
    if asked is None:
        modality, why = _guess(src, path, len(data), set(named))
    else:
        modality, why = asked, "--in"
    whole = MODALITIES[modality.name]
    if len(modality.bands) < len(whole.bands) == len(data) and not named:  # a whole stack, of which some are used
        return modality, why, tuple(data[whole.bands.index(band)] for band in modality.bands)
    if set(modality.bands) <= set(named):
        if asked is None and "band names" not in why and "provenance" not in why:
            why += " and band names"
        return modality, why, tuple(named[band] for band in modality.bands)
    if len(data) != len(modality.bands):
        raise InputError(
            f"{path}: has {_bands(len(data))}, but {modality.name} needs {len(modality.bands)} "
            f"({' '.join(modality.bands)}). {_fitting(len(data))}"
        )
    known = set(S2_NAMES.values())
    if modality.is_optical and len(named) == len(data) and set(named) <= known:
        missing = [band for band in modality.bands if band not in named]
        raise InputError(
            f"{path}: its bands are named {' '.join(named)}, but {modality.name} needs {' '.join(modality.bands)}; "
            f"{', '.join(missing)} missing. Stack the right bands, or remove the names if they are wrong."
        )
    return modality, why, tuple(data)


def _band_name(description: str) -> str:
    name = description.strip().upper()
    name = S2_NAMES.get(name, name)
    return f"B0{name[1]}" if len(name) == 2 and name[0] == "B" and name[1].isdigit() else name


def _guess(src: Any, path: str, count: int, names: set[str]) -> tuple[Modality, str]:
    if (made := _provenance(src).get("modality")) in MODALITIES:
        return MODALITIES[made], "its tmtool provenance"
    for modality in (MODALITIES["S2L1C"], MODALITIES["S2L2A"]):  # L1C first: its bands include L2A's
        if set(modality.bands) <= names:
            return modality, "its band names"
    by_count = {12: "S2L2A", 13: "S2L1C"}
    if count in by_count:
        return MODALITIES[by_count[count]], f"its {count} bands"
    if count == 3:
        dtypes = set(src.dtypes[:3])
        if dtypes == {"uint8"}:
            return MODALITIES["RGB"], "its 3 bands of uint8"
        raise InputError(
            f"{path}: has 3 bands of {', '.join(sorted(dtypes))}; RGB takes values 0-255 as uint8. Say --in RGB if that is what they hold."
        )
    if count in (1, 2):
        raise InputError(f"{path}: has {_bands(count)}, which does not say what it is. {_fitting(count)}")
    raise InputError(
        f"{path}: has {_bands(count)}, which fits no modality (12: S2L2A, 13: S2L1C, 3: RGB, 2: S1GRD or S1RTC)."
    )


def _bands(count: int) -> str:
    return "1 band" if count == 1 else f"{count} bands"


def _fitting(count: int) -> str:
    fits = [m.name for m in MODALITIES.values() if len(m.bands) == count]
    if not fits:
        return f"{_bands(count).capitalize()} fit no modality."
    return f"{_bands(count).capitalize()} would fit {' or '.join(fits)}: say --in {fits[0]}{' (or another)' if fits[1:] else ''}."


def _offset(src: Any, modality: Modality, asked: float | None) -> tuple[float, str]:
    """Return what was added to the DN, and where that is known from."""
    if not modality.is_optical:
        return 0.0, "not Sentinel-2"
    if asked is not None:
        return float(asked), "--s2-offset"
    tags = {**src.tags()}
    for band in src.indexes:
        tags.update(src.tags(band))
    said = {float(v) for k, v in tags.items() if "ADD_OFFSET" in k.upper() and _is_number(v)}
    if len(said) == 1:
        return -said.pop() + 0.0, "the file's ADD_OFFSET metadata"
    scaled = {round(o / s) for s, o in zip(src.scales, src.offsets, strict=True) if s not in (0, 1) and o}
    if len(scaled) == 1:
        return -float(scaled.pop()), "the file's band scale and offset"
    return 0.0, "nothing in the file says otherwise"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _nodata(src: Any, modality: Modality, bands: Sequence[int]) -> tuple[float | None, str]:
    value = src.nodatavals[bands[0] - 1]
    if value is not None:
        return float(value), "declared in the file"
    if modality.is_optical:
        return None, "none declared; pixels that are 0 in every band are empty (Sentinel-2's own convention)"
    return None, "none declared"


def _has_mask_band(src: Any, bands: Sequence[int]) -> bool:
    flags = src.mask_flag_enums[bands[0] - 1]
    return MaskFlags.per_dataset in flags or MaskFlags.alpha in flags


def pixel_size_m(grid: Grid) -> float | None:
    """Side of a pixel in metres (of a geographic CRS: at the raster's middle), or None where that is unknown."""
    if grid.crs is None:
        return None
    t = grid.transform
    size = math.sqrt(abs(t.a * t.e - t.b * t.d))
    if grid.crs.is_geographic:
        lat = t.d * grid.shape[1] / 2 + t.e * grid.shape[0] / 2 + t.f
        return size * 111_320 * math.sqrt(max(math.cos(math.radians(lat)), 1e-6))
    try:
        return float(size * grid.crs.linear_units_factor[1])
    except RasterioError:
        return None


def _pixel_size_warnings(src: Any) -> Iterator[str]:
    size = pixel_size_m(Grid(src.crs, src.transform, src.shape))
    low, high = _EXPECTED_PIXEL_M
    if size is not None and not low <= size <= high:
        yield f"pixels are {size:.3g} m, TerraMind was trained at 10 m: resample first (gdalwarp -tr 10 10) for results that mean something"
    if src.crs is None:
        yield "has no georeferencing; neither will its products"


def _check_values(source: Source) -> None:
    """Look at a few windows spread over the raster and refuse units that the model was not trained on."""
    sample = _sample(source)
    if sample.size == 0:
        return
    low, high, modality = float(sample.min()), float(sample.max()), source.modality
    where = f"{source.path}: {modality.name} values from {low:.6g} to {high:.6g}"
    if modality.is_radar and low >= 0:
        raise InputError(f"{where} look like linear power; TerraMind takes dB. Convert with 10*log10(x).")
    if modality.is_optical and high + source.offset <= 2:
        raise InputError(
            f"{where} look like reflectance; TerraMind takes DN (reflectance x 10 000). Multiply by 10 000."
        )
    if modality.name == "RGB" and (low < 0 or high > 255):
        raise InputError(f"{where}, but RGB takes 0-255. Scale it first (gdal_translate -ot Byte -scale).")
    if modality.classes and (low < 0 or high >= len(modality.classes) or (sample % 1).any()):
        raise InputError(
            f"{where}, but LULC takes classes 0-{len(modality.classes) - 1} (1 water, 2 trees, 3 flooded vegetation, 4 crops, "
            "5 built area, 6 bare ground, 7 snow/ice, 8 clouds, 9 rangeland). Remap other codes (Esri's are 1 2 4 5 7 8 9 10 11)."
        )
    if modality.name == "NDVI" and (low < -1.5 or high > 1.5):
        raise InputError(f"{where}, but NDVI lies in -1..1. Divide by its scale first.")


def _sample(source: Source, wanted: int = 3, side: int = 128) -> FloatArray:
    """Valid values of the first few windows that hold any, from a 5 x 5 lattice over the raster."""
    height, width = source.grid.shape
    found: list[FloatArray] = []
    with Reader(source) as reader:
        for k in (12, 6, 18, 8, 16, *range(25)):  # the middle first
            row, col = (round((n - min(side, n)) * i / 4) for n, i in zip((height, width), divmod(k, 5), strict=True))
            window = Window(row, col, min(side, height), min(side, width))
            try:
                pixels, valid = reader.read(window)
            except ReadError as error:
                raise InputError(str(error)) from error
            if valid.any():
                found.append(pixels[:, valid].ravel())
            if len(found) == wanted:
                break
    return np.concatenate(found) if found else np.empty(0, np.float32)


class Reader:
    """Reads windows of a `Source`; safe to call from several threads, each of which gets a handle of its own."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._local = threading.local()
        self._lock = threading.Lock()
        self._handles: list[Any] = []

    def __enter__(self) -> "Reader":
        """Return itself; files are opened on first use."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close every thread's handle."""
        for src in self._handles:
            src.close()

    def read(self, window: Window) -> tuple[FloatArray, BoolArray]:
        """Return pixels `(C, h, w)` float32 in the modality's unit, offset removed, and validity `(h, w)`.

        `window` must lie inside the raster. A pixel is invalid if any of its bands is. Raises `ReadError`.
        """
        try:
            return self._read(RasterioWindow(window.col, window.row, window.width, window.height))
        except RasterioError as error:
            raise ReadError(
                f"{self.source.path}: damaged or truncated; reading rows {window.row}-{window.row + window.height - 1} failed ({error})."
            ) from error

    def _read(self, window: Any) -> tuple[FloatArray, BoolArray]:
        source, src = self.source, self._handle()
        raw = src.read(list(source.bands), window=window)
        valid = np.ones(raw.shape[1:], np.bool_)
        if source.nodata is not None and not math.isnan(source.nodata):
            valid &= (raw != self._nodata_in(raw.dtype)).all(axis=0)
        elif source.nodata is None and source.modality.is_optical:
            valid &= (raw != 0).any(axis=0)
        if raw.dtype.kind == "f":
            valid &= np.isfinite(raw).all(axis=0)
        if source.mask_band:
            valid &= src.read_masks(source.bands[0], window=window) > 0
        pixels = raw.astype(np.float32)
        if source.offset:
            pixels -= np.float32(source.offset)
        return pixels, valid

    def _nodata_in(self, dtype: np.dtype[Any]) -> Any:
        """Nodata as the pixels hold it: -3.4e38 in float32 is another number than in float64."""
        nodata = self.source.nodata
        if dtype.kind == "f":
            return np.float32(nodata) if dtype == np.float32 else nodata
        return nodata

    def _handle(self) -> Any:
        if not hasattr(self._local, "src"):
            self._local.src = _open(self.source.path)
            with self._lock:
                self._handles.append(self._local.src)
        return self._local.src


def set_block_cache(sources: Sequence[Source], tile_height: int) -> int:
    """Size GDAL's block cache for these sources and return it in bytes; by default it would grow with the machine's RAM."""
    from rasterio._env import set_gdal_config  # the one place where rasterio lets the cache be resized after first use

    size = max(64 << 20, sum(s.cache_bytes(tile_height) for s in sources))
    set_gdal_config("GDAL_CACHEMAX", min(size, (1 << 31) - 1))
    return size
