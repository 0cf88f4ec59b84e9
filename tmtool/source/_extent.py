"""Which part of a scene is made, and where its tiles begin."""

from dataclasses import dataclass

import numpy as np
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.warp import transform_bounds

from tmtool.errors import InputError, UsageError
from tmtool.grid import Grid, Window, at
from tmtool.settings import Extent, Tiling
from tmtool.source._masks import ShapeMask
from tmtool.source._vectors import shapes_of

_DUST = 1e-6


@dataclass(frozen=True)
class Place:
    """The grid that tiles are counted on, the part of it that is made, and the noise's position of its corner.

    `area` masks what lies outside the area of interest, if there is one. Tiles of a `pinned` scene lie on a lattice of the
    projected grid, wherever the scene begins.
    """

    grid: Grid
    part: Window
    position: tuple[int, int] = (0, 0)
    area: ShapeMask | None = None
    pinned: bool = False


def placed(grid: Grid, extent: Extent, tiling: Tiling, path: str) -> Place:
    """Return the place of a scene on `grid`. Raises `UsageError` for options that cannot work, `InputError` for no part."""
    if sum(map(bool, (extent.bbox, extent.window, extent.aoi))) > 1:
        raise UsageError("--bbox, --window and --aoi each say which part is made: give one of them.")
    area = ShapeMask(shapes_of(extent.aoi, grid, "--aoi"), grid, outside=True) if extent.aoi else None
    part = _part(grid, extent, area, path)
    if extent.anchor == "raster":
        return Place(grid, part, area=area)
    return _pinned(grid, part, area, tiling, path)


def _part(grid: Grid, extent: Extent, area: ShapeMask | None, path: str) -> Window:
    height, width = grid.shape
    if extent.window:
        asked, option = _window(extent.window), f"--window {extent.window}"
    elif extent.bbox:
        asked, option = _of_bounds(grid, *_bounds(extent.bbox, grid)), f"--bbox {extent.bbox}"
    elif area is not None:
        asked, option = (
            _of_bounds(grid, *shapely.total_bounds(shapely.from_wkb(list(area.shapes)))),
            f"--aoi {extent.aoi}",
        )
    else:
        return Window(0, 0, height, width)
    top, left = max(asked.row, 0), max(asked.col, 0)
    bottom, right = min(asked.row + asked.height, height), min(asked.col + asked.width, width)
    if top >= bottom or left >= right:
        raise InputError(
            f"{path}: {option} lies outside of it: columns {asked.col} to {asked.col + asked.width} and rows {asked.row} to "
            f"{asked.row + asked.height} of {width} x {height} px."
        )
    return Window(top, left, bottom - top, right - left)


def _window(text: str) -> Window:
    try:
        col, row, width, height = (int(word) for word in text.split(","))
    except ValueError:
        raise UsageError(
            f"--window {text}: give COL,ROW,WIDTH,HEIGHT in pixels, as gdal_translate -srcwin takes them."
        ) from None
    if width < 1 or height < 1:
        raise UsageError(f"--window {text}: width and height must be at least 1.")
    return Window(row, col, height, width)


def _bounds(text: str, grid: Grid) -> tuple[float, float, float, float]:
    """Return the bounds of `--bbox` in the grid's CRS."""
    numbers, _, name = text.partition("@")
    try:
        west, south, east, north = (float(word) for word in numbers.split(","))
        crs = CRS.from_user_input(name) if name else CRS.from_epsg(4326)
    except (ValueError, CRSError):
        raise UsageError(
            f"--bbox {text}: give WEST,SOUTH,EAST,NORTH in degrees, or in a CRS as 300000,6200000,310000,6210000@EPSG:32719."
        ) from None
    if west >= east or south >= north:
        raise UsageError(f"--bbox {text}: west must be less than east, and south less than north.")
    if grid.crs is None:
        raise UsageError(f"--bbox {text}: the inputs have no CRS; give --window in pixels.")
    if crs == grid.crs:
        return west, south, east, north
    bounds: tuple[float, float, float, float] = transform_bounds(crs, grid.crs, west, south, east, north)
    return bounds


def _of_bounds(grid: Grid, west: float, south: float, east: float, north: float) -> Window:
    """Return the whole pixels that hold a box of the grid's CRS."""
    cols, rows = at(~grid.transform, [west, east, east, west], [south, south, north, north])
    left, top = int(np.floor(cols.min() + _DUST)), int(np.floor(rows.min() + _DUST))
    right, bottom = int(np.ceil(cols.max() - _DUST)), int(np.ceil(rows.max() - _DUST))
    return Window(top, left, bottom - top, right - left)


def _pinned(grid: Grid, part: Window, area: ShapeMask | None, tiling: Tiling, path: str) -> Place:
    """Return the place on a grid that begins where a tile of the lattice does, before the raster."""
    t = grid.transform
    if grid.crs is None or not grid.crs.is_projected or t.b or t.d:
        raise InputError(
            f"{path}: --anchor grid pins tiles to a projected grid, and this raster has "
            f"{'no CRS' if grid.crs is None else 'a rotated grid' if t.b or t.d else grid.crs.to_string()}. Bring it to one: "
            "--grid utm@10m."
        )
    row, col = (int(np.floor(value + _DUST)) for value in (t.f / t.e, t.c / t.a))
    above, before = row % tiling.stride, col % tiling.stride
    height, width = grid.shape
    whole = Grid(grid.crs, t * Affine.translation(-before, -above), (height + above, width + before))
    moved = Window(part.row + above, part.col + before, part.height, part.width)
    area = ShapeMask(area.shapes, whole, outside=True) if area else None
    return Place(whole, moved, (row - above, col - before), area, pinned=True)
