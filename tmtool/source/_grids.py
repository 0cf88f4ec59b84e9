"""Where rasters lie: pixel sizes, grids in words, longitudes and latitudes."""

import math
from collections.abc import Callable, Iterator

from rasterio.errors import RasterioError
from rasterio.warp import transform

from tmtool.grid import Grid, Tile

_NEAR_PIXEL = (0.8, 1.2)
"""Sizes of pixels that are near enough, as shares of the one that a model was trained on."""


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


def size_warnings(grid: Grid, trained: float) -> Iterator[str]:
    """Yield a warning for pixels far from the size that a model was trained on, in m, and one for a grid without CRS."""
    size = pixel_size_m(grid)
    low, high = _NEAR_PIXEL
    if size is not None and not low * trained <= size <= high * trained:
        how = f"--grid utm@{trained:g}m brings them to that, for meaningful results"
        yield f"pixels are {size:.3g} m, the model was trained at {trained:g} m: {how}"
    if grid.crs is None:
        yield "has no georeferencing, so its products will have none"


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
