"""Where rasters lie: pixel sizes, whether several share one grid, longitudes and latitudes."""

import math
import os
from collections.abc import Callable, Sequence

from rasterio.errors import RasterioError
from rasterio.warp import transform

from tmtool.errors import InputError
from tmtool.grid import Grid, Tile
from tmtool.source._opening import Source


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


def check_one_grid(sources: Sequence[Source]) -> None:
    """Raise `InputError` unless all sources lie on the first one's grid, to a thousandth of a pixel."""
    first = sources[0]
    for other in sources[1:]:
        same = other.grid.shape == first.grid.shape and other.grid.crs == first.grid.crs
        if not same or _apart(first.grid, other.grid) > 1e-3:
            raise InputError(
                f"{other.path}: lies on another grid than {first.path}: {_grid_text(other.grid)}, expected "
                f"{_grid_text(first.grid)}. Warp it first: gdalwarp {_warp_options(first.grid)} "
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
