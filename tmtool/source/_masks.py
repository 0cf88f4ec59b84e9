"""What is left out of the valid pixels: classes of a raster, or shapes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from rasterio.windows import Window as RasterioWindow

from tmtool.grid import BoolArray, Grid, Window

Open = Callable[[str], Any]
"""Opens what GDAL opens, once a thread."""


class Mask(Protocol):
    """Pixels of a grid that count as not valid."""

    def covers(self, window: Window, opens: Open) -> BoolArray:
        """Return which pixels of a window of the grid are masked, `(h, w)`."""
        ...


@dataclass(frozen=True)
class RasterMask:
    """Pixels where a band of a raster on the same grid holds one of `values`, or anything but 0 if there are none."""

    opens: str = field(repr=False)
    band: int = 1
    values: tuple[int, ...] = ()

    def covers(self, window: Window, opens: Open) -> BoolArray:
        """Return which pixels of a window of the grid are masked, `(h, w)`."""
        box = RasterioWindow(window.col, window.row, window.width, window.height)
        found = opens(self.opens).read(self.band, window=box)
        return np.isin(found, self.values) if self.values else np.asarray(np.nan_to_num(found) != 0)


@dataclass(frozen=True)
class ShapeMask:
    """Pixels whose centre lies within a shape, or with `outside` those whose centre lies within none.

    `shapes` are in well-known binary, in the grid's CRS.
    """

    shapes: tuple[bytes, ...] = field(repr=False)
    grid: Grid
    outside: bool = False

    @cached_property
    def _tree(self) -> Any:
        """The shapes by where they lie."""
        import shapely

        return shapely.STRtree(shapely.from_wkb(list(self.shapes)))

    def covers(self, window: Window, opens: Open | None = None) -> BoolArray:
        """Return which pixels of a window of the grid are masked, `(h, w)`; no file is opened."""
        import shapely
        from affine import Affine
        from rasterio.features import geometry_mask

        transform = self.grid.transform * Affine.translation(window.col, window.row)
        corners = [
            transform * at for at in ((0, 0), (window.width, 0), (window.width, window.height), (0, window.height))
        ]
        near = self._tree.geometries[self._tree.query(shapely.Polygon(corners), predicate="intersects")]
        if not len(near):
            return np.full((window.height, window.width), self.outside)
        return np.asarray(
            geometry_mask(near, (window.height, window.width), transform, invert=not self.outside), np.bool_
        )
