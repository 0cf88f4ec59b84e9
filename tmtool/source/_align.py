"""One grid for all rasters of a scene: which it is, and each raster as a virtual one on it."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.warp import calculate_default_transform, transform

from tmtool.errors import InputError, UsageError
from tmtool.grid import Grid, at
from tmtool.modality import MODALITIES
from tmtool.settings import Reading
from tmtool.source._assembly import virtual
from tmtool.source._delivery import Delivery
from tmtool.source._grids import grid_text, pixel_size_m, size_warnings
from tmtool.source._masks import Mask, RasterMask, ShapeMask
from tmtool.source._opening import Source, opened
from tmtool.source._vectors import is_vector, shapes_of
from tmtool.source._vrt import Piece, Warp, stacked, warped

_NEAR = 1e-3
"""How far apart, in px, grids may lie and count as the same."""
_MUCH_LARGER = 2.0
"""How many times as large pixels of the grid are where many pixels of a raster make one of it: then they are averaged."""
_AT = re.compile(r"(?P<crs>.+)@(?P<size>\d+(?:\.\d*)?)(?P<unit>m?)", re.I)
_FORMS = "a modality, a raster, or a CRS and a pixel size such as EPSG:32633@10m or utm@10m"
_RING = 16
"""Points on each side of an outline that is transformed."""


def grid_of(sources: Mapping[str, Source], asked: str) -> Grid:
    """Return the grid of a scene: the first raster's, or what `--grid` asks for. Raises `UsageError` and `InputError`."""
    first = next(iter(sources.values()))
    if not asked:
        return first.grid
    by_name = {
        source.modality.name: source.grid for source in reversed([*sources.values()])
    }  # of several dates the first
    if asked.upper() in MODALITIES:
        if asked.upper() not in by_name:
            raise UsageError(
                f"--grid {asked}: no input is {asked.upper()}; inputs are {', '.join(dict.fromkeys(sources))}."
            )
        return by_name[asked.upper()]
    if found := _AT.fullmatch(asked):
        return _around(first, found, asked)
    try:
        with opened(asked) as src:
            return Grid.of(src)
    except InputError as error:
        raise UsageError(f"--grid {asked}: give {_FORMS}. ({error})") from error


def _around(source: Source, said: re.Match[str], asked: str) -> Grid:
    """Return the grid of whole pixels of a CRS that a raster lies in."""
    if source.grid.crs is None:
        raise InputError(
            f"{source.path}: has no CRS, so --grid {asked} cannot place it. Give it one: gdal_edit.py -a_srs."
        )
    crs_text, size = said["crs"], float(said["size"])
    if not size > 0:
        raise UsageError(f"--grid {asked}: the pixel size must be above 0.")
    try:
        crs = _utm(source) if crs_text.lower() == "utm" else CRS.from_user_input(crs_text)
    except CRSError as error:
        raise UsageError(f"--grid {asked}: {crs_text} is no CRS that PROJ knows; give {_FORMS}.") from error
    if said["unit"] and crs.is_geographic:
        raise UsageError(f"--grid {asked}: {crs_text} is in degrees; give the pixel size in them, as EPSG:4326@0.0001.")
    xs, ys = _outline(source, crs)
    left, top = math.floor(min(xs) / size + _NEAR), math.ceil(max(ys) / size - _NEAR)
    right, bottom = math.ceil(max(xs) / size - _NEAR), math.floor(min(ys) / size + _NEAR)
    return Grid(crs, Affine(size, 0, left * size, 0, -size, top * size), (top - bottom, right - left))


def _utm(source: Source) -> CRS:
    xs, ys = _outline(source, CRS.from_epsg(4326))
    lon, lat = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
    return CRS.from_epsg((32600 if lat >= 0 else 32700) + min(60, int((lon + 180) // 6) + 1))


def _outline(source: Source, crs: Any) -> tuple[Sequence[float], Sequence[float]]:
    """Return points on a raster's outline, in a CRS. Raises `InputError` where they have no place there."""
    grid, (height, width) = source.grid, source.grid.shape
    try:
        if source.points:
            with opened(source.opens) as src:
                by = {"gcps": src.gcps[0]} if source.points == "gcps" else {"rpcs": src.rpcs}
            found, wide, high = calculate_default_transform(grid.crs or "EPSG:4326", crs, width, height, **by)
            grid, height, width, own = Grid(crs, found, (high, wide)), high, wide, crs
        else:
            own = grid.crs
        step = np.linspace(0, 1, _RING, endpoint=False)
        cols = np.concatenate([step, np.ones(_RING), 1 - step, np.zeros(_RING)]) * width
        rows = np.concatenate([np.zeros(_RING), step, np.ones(_RING), 1 - step]) * height
        xs, ys = at(grid.transform, cols, rows)
        return (list(xs), list(ys)) if own == crs else transform(own, crs, xs, ys)
    except RasterioError as error:
        raise InputError(f"{source.path}: cannot be brought to {crs.to_string()} ({error}).") from error


def on_grid(source: Source, grid: Grid, resampling: str, min_overlap: float, reference: str) -> Source:
    """Return a raster as one on `grid`, that of `reference`: itself, shifted by whole pixels, or warped.

    Raises `InputError` for one that covers less than `min_overlap` of the grid, or cannot be brought to it.
    """
    if same_grid(source.grid, grid) and not source.points:
        return source
    _refuse_unplaceable(source, grid, reference)
    _check_overlap(source, grid, min_overlap, reference)
    if _whole_shift(source.grid, grid) and not source.points:
        return _moved(source, _shifted(source, grid), grid, "shifted by whole pixels", warped=False)
    how = _resampling(source, grid, resampling)
    size = pixel_size_m(source.grid)
    where = source.grid.crs.to_string() if source.grid.crs else "RPCs"
    text = f"{how} from {where}{'' if size is None or source.points else f', {size:.4g} m'}"
    return _moved(source, _warped(source, grid, how), grid, text, warped=True)


def _refuse_unplaceable(source: Source, grid: Grid, reference: str) -> None:
    if source.scale != 1:
        raise InputError(
            f"{source.path}: holds tokens, which stay on the grid they were made on: {grid_text(source.grid)}, expected "
            f"{grid_text(grid)}. Give rasters on that grid."
        )
    placeless = grid.crs is None or (source.grid.crs is None and source.points != "rpcs")
    if placeless or source.array is not None:
        cure = (
            "array.rio.reproject_match(other) brings an array to the grid of another"
            if source.array is not None
            else "Give both a CRS: gdal_edit.py -a_srs EPSG:..."
        )
        raise InputError(
            f"{source.path}: lies on another grid than {reference}: {grid_text(source.grid)}, expected {grid_text(grid)}. {cure}."
        )


def same_grid(own: Grid, grid: Grid) -> bool:
    """Whether two grids are one, to a thousandth of a pixel."""
    return own.shape == grid.shape and own.crs == grid.crs and _apart(grid, own) <= _NEAR


def _apart(grid: Grid, other: Grid) -> float:
    """Return how far the corners of two grids of one shape lie apart, in px of the first."""
    offsets = []
    for corner in ((0, 0), grid.shape[::-1]):
        col, row = ~grid.transform * (other.transform * corner)
        offsets += [abs(col - corner[0]), abs(row - corner[1])]
    return float(max(offsets))


def _whole_shift(own: Grid, grid: Grid) -> bool:
    """Whether two grids of one CRS are one lattice of pixels."""
    if own.crs != grid.crs:
        return False
    height, width = grid.shape
    moved = ~own.transform * grid.transform
    corners = [moved * corner for corner in ((0, 0), (width, 0), (0, height))]
    steps = [(corners[1][0] - corners[0][0], width), (corners[2][1] - corners[0][1], height)]
    turns = (corners[1][1] - corners[0][1], corners[2][0] - corners[0][0])
    whole = all(abs(v - round(v)) <= _NEAR for v in corners[0])
    return whole and all(abs(a - b) <= _NEAR for a, b in steps) and all(abs(v) <= _NEAR for v in turns)


def _check_overlap(source: Source, grid: Grid, least: float, reference: str) -> None:
    xs, ys = _outline(source, grid.crs)
    cols, rows = at(~grid.transform, xs, ys)
    finite = np.isfinite(cols) & np.isfinite(rows)
    height, width = grid.shape
    there = (
        shapely.Polygon(np.stack([cols[finite], rows[finite]], 1)).buffer(0) if finite.sum() > 2 else shapely.Polygon()
    )
    share = there.intersection(shapely.box(0, 0, width, height)).area / (height * width)
    if share <= 0 or share < least:
        raise InputError(
            f"{source.path}: {'does not overlap' if share <= 0 else f'covers {100 * share:.2g} % of'} the grid of {reference}"
            f"{'' if share <= 0 else f', expected at least {100 * least:g} % (--min-overlap)'}. It lies in "
            f"{_box_text(*_outline(source, CRS.from_epsg(4326)))}, the grid in {_box_text(*_corners(grid))}."
        )


def footprint(source: Source) -> tuple[float, float, float, float] | None:
    """Return where a raster's file lies, as west, south, east, north in degrees; None where it has no CRS."""
    if source.own is not None and source.own.transform != Affine.identity():
        source = replace(source, grid=source.own)
    if source.grid.crs is None and not source.points:
        return None
    xs, ys = _outline(source, CRS.from_epsg(4326))
    return float(min(xs)), float(min(ys)), float(max(xs)), float(max(ys))


def _corners(grid: Grid) -> tuple[Sequence[float], Sequence[float]]:
    height, width = grid.shape
    xs, ys = at(grid.transform, [0, width, width, 0], [0, 0, height, height])
    found: tuple[Sequence[float], Sequence[float]] = transform(grid.crs, "EPSG:4326", xs, ys)
    return found


def _box_text(xs: Sequence[float], ys: Sequence[float]) -> str:
    return f"{min(xs):.5g} to {max(xs):.5g} degrees east, {min(ys):.5g} to {max(ys):.5g} north"


def _resampling(source: Source, grid: Grid, asked: str) -> str:
    """Return how a raster is resampled, classes nearest; auto is bilinear, or the mean where the grid's pixels are much larger."""
    if source.modality.classes:
        return "nearest"
    if asked != "auto":
        return asked
    if source.points:
        return "bilinear"
    return "average" if _times_larger(source.grid, grid) >= _MUCH_LARGER else "bilinear"


def _times_larger(own: Grid, grid: Grid) -> float:
    """Return how many times as large the sides of the grid's pixels are as a raster's, in its middle."""
    height, width = own.shape
    cols, rows = np.array([0.0, 1, 0]) + width / 2, np.array([0.0, 0, 1]) + height / 2
    xs, ys = at(own.transform, cols, rows)
    if own.crs != grid.crs:
        xs, ys = transform(own.crs, grid.crs, xs, ys)
    there = np.stack(at(~grid.transform, xs, ys))
    (a, b), (c, d) = there[:, 1] - there[:, 0], there[:, 2] - there[:, 0]
    return 1 / math.sqrt(max(abs(a * d - b * c), 1e-12))


def _nodata(source: Source) -> float | None:
    """Return what a raster has for pixels without data, declared or by convention; None where alpha or a mask says it."""
    if source.mask_band or source.alpha is not None:
        return None
    if source.nodata is not None:
        return source.nodata
    if np.dtype(source.dtype).kind == "f":
        return float("nan")
    return 0.0 if source.modality.is_optical else None


def _pieces(source: Source, *, alpha: bool) -> list[Piece]:
    """Return a raster's bands in the modality's order, and as alpha its validity if that is asked for."""
    place = source.grid
    pieces = [
        Piece(source.opens, number, place, source.dtype, name, source.nodata)
        for number, name in zip(source.bands, source.modality.bands, strict=True)
    ]
    if alpha and source.alpha is not None:
        pieces.append(Piece(source.opens, source.alpha, place, source.dtype, "alpha", alpha=True))
    elif alpha:
        pieces.append(Piece(source.opens, source.bands[0], place, source.dtype, "alpha", mask=True))
    return pieces


def _shifted(source: Source, grid: Grid) -> str:
    return stacked(_pieces(source, alpha=True), grid)


def _warped(source: Source, grid: Grid, resampling: str) -> str:
    nodata = _nodata(source)
    unified = source.nodata is None and nodata == 0
    warp = Warp(resampling, nodata, unified)
    if source.points:
        return warped(source.opens, grid, warp, source.points)
    return warped(stacked(_pieces(source, alpha=nodata is None), source.grid), grid, warp)


def _moved(source: Source, vrt: str, grid: Grid, brought: str, *, warped: bool) -> Source:
    """Return the source that reads a virtual raster of its bands, in order, the last one alpha if there is one more."""
    with opened(vrt) as src:
        count = src.count
    stale = tuple(size_warnings(source.grid, source.pixel_m))
    own = tuple(range(1, len(source.bands) + 1)) if not source.points else source.bands
    nodata = _nodata(source) if warped else source.nodata
    times = _times_larger(source.grid, grid) if warped and not source.points else 1.0
    return replace(
        source,
        block=(math.ceil(source.block[0] / times), math.ceil(source.block[1] / times)),
        density=times**2 + warped,
        vrt=vrt,
        grid=grid,
        own=source.grid,
        bands=own,
        nodata=nodata,
        alpha=count if count > len(source.bands) else None,
        mask_band=False,
        points="",
        brought=brought,
        warnings=(*size_warnings(grid, source.pixel_m), *(w for w in source.warnings if w not in stale)),
    )


# --- Masks ---


def check_reading(sources: Sequence[Source], how: Reading, path: str) -> None:
    """Raise `InputError` for what is asked of inputs that a scene does not have: it would be done to nothing."""
    names = [source.modality.name for source in sources]
    for name, unit in how.unit.items():
        if name not in names:
            raise InputError(f"{path}: --unit {name}={unit}: no input is {name}; inputs are {', '.join(names)}.")
    if how.lulc_codes != Reading.lulc_codes and not any(source.modality.classes for source in sources):
        raise InputError(f"{path}: --lulc-codes {how.lulc_codes}: no input is LULC; inputs are {', '.join(names)}.")
    words = [word for word in how.mask if word in WORDS]
    if words and not any(source.modality.is_optical for source in sources):
        raise InputError(
            f"{path}: --mask {','.join(words)}: no input is a Sentinel-2 product; inputs are {', '.join(names)}."
        )


def masked(source: Source, grid: Grid, asked: Sequence[str]) -> Source:
    """Return a raster on `grid` without what `--mask` names: classes of its product's own mask, rasters, vector files."""
    words = [name for name in asked if name in WORDS]
    masks = [*_flags(source, grid, words), *(_of_file(name, grid) for name in asked if name not in words)]
    return replace(source, masks=tuple(masks)) if masks else source


WORDS = ("clouds", "shadow", "cirrus", "snow")
"""What a product's own mask may tell."""


def _flags(source: Source, grid: Grid, words: Sequence[str]) -> list[Mask]:
    delivery = source.delivery or Delivery(source.path, "a plain raster", ())
    known = delivery.flags
    if not words or not source.modality.is_optical:
        return []
    if missing := [word for word in words if word not in known]:
        told = f"its mask tells {', '.join(known)}" if known else "it comes without a mask"
        raise InputError(
            f"{source.path}: --mask {','.join(missing)}: it is {delivery.kind}, and {told}. Give a Sentinel-2 product, or a raster or "
            "vector file of what to leave out."
        )
    found: list[Mask] = []
    for flags in (flag for word in words for flag in known[word]):
        vrt, _ = virtual(delivery, [flags.layer], "nearest")
        with opened(vrt) as src:
            own, dtype = Grid.of(src), src.dtypes[0]
        found.append(RasterMask(_mask_on(vrt, own, dtype, grid), 1, flags.values))
    return found


def _mask_on(name: str, own: Grid, dtype: str, grid: Grid) -> str:
    """Return a mask as a virtual raster on another grid, nearest; 0 where it does not reach."""
    plain = stacked([Piece(name, 1, own, dtype)], own)
    return plain if same_grid(own, grid) else warped(plain, grid, Warp("nearest", 0.0))


def _of_file(name: str, grid: Grid) -> Mask:
    if is_vector(name):
        return ShapeMask(shapes_of(name, grid, "--mask"), grid)
    try:
        with opened(name) as src:
            own, dtype = Grid.of(src), src.dtypes[0]
    except InputError as error:
        raise UsageError(f"--mask {name}: give {', '.join(WORDS)}, a raster or a vector file. ({error})") from error
    if own.crs is None and not same_grid(own, grid):
        raise UsageError(f"--mask {name}: has no CRS and another grid than the inputs.")
    return RasterMask(_mask_on(name, own, dtype, grid))
