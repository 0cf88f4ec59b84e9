"""What an array holds and where it lies, in CF's terms: units, classes, centres of cells; and as rioxarray writes a CRS and an affine."""

from typing import TYPE_CHECKING, Any

import numpy as np

from tmtool.files.writer import Layout
from tmtool.grid import Grid

if TYPE_CHECKING:
    import xarray as xr


def centres(grid: Grid, y: str = "y", x: str = "x") -> dict[str, Any]:
    """Return the coordinates of the cells' centres by the names of their dimensions, if each is a function of one axis."""
    a, b, c, d, e, f = grid.transform[:6]
    if b or d:
        return {}
    axes = ((y, f, e, grid.shape[0]), (x, c, a, grid.shape[1]))
    return {n: (n, start + step * (np.arange(size) + 0.5), {"axis": n[0].upper()}) for n, start, step, size in axes}


def attributes(layout: Layout) -> dict[str, Any]:
    """Return what values are: their unit, the factor that they are stored with, their classes. `flag_colors` is what many write beside."""
    found: dict[str, Any] = {"units": layout.unit} if layout.unit else {}
    if layout.scale != 1:
        found["scale_factor"] = layout.scale
    if layout.classes:
        names, colours = zip(*layout.classes, strict=True)
        found["flag_values"] = np.arange(len(names), dtype=layout.dtype)
        found["flag_meanings"] = " ".join(name.replace(" ", "_").replace("/", "_") for name in names)
        found["flag_colors"] = " ".join(colours)
    return found


def locate(array: "xr.DataArray", grid: Grid, nodata: float | None, reference: str = "spatial_ref") -> "xr.DataArray":
    """Return an array (..., y, x) with its grid and nodata, `reference` being the coordinate that holds the CRS and affine."""
    import rioxarray  # noqa: F401  (adds `.rio`)

    if grid.crs is not None:
        array = array.rio.write_crs(grid.crs, reference)
    array = array.rio.write_transform(grid.transform, reference)
    located: xr.DataArray = array.rio.write_nodata(nodata)
    return located
