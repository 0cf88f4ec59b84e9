"""Where rasters lie: pixel sizes, grids in words, longitudes and latitudes."""

import math
from collections.abc import Callable

from rasterio.errors import RasterioError
from rasterio.warp import transform

from tmtool.grid import Grid, Tile


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


def grid_text(grid: Grid) -> str:
    """Return a grid in words, for messages."""
    t = grid.transform
    where = grid.crs.to_string() if grid.crs else "no CRS"
    return f"{where}, {grid.shape[0]} x {grid.shape[1]} px of {t.a:.10g} x {t.e:.10g} from {t.c:.10g}, {t.f:.10g}"


def centres(grid: Grid) -> Callable[[Tile], tuple[float, float]]:
    """Return the function that gives a tile's centre as longitude and latitude in degrees; the grid must have a CRS."""

    def centre(tile: Tile) -> tuple[float, float]:
        x, y = grid.transform * (tile.col + tile.size / 2, tile.row + tile.size / 2)
        (lon,), (lat,) = transform(grid.crs, "EPSG:4326", [x], [y])
        return lon, lat

    return centre
