"""Where an array lies in the words of Zarr's conventions: `proj`, `spatial` and `multiscales`, all of version 0.1.

https://github.com/zarr-conventions/proj, .../spatial and .../multiscales. They stand beside CF's coordinates and grid mapping,
and say the affine exactly, rotated or not.
"""

from collections.abc import Sequence
from typing import Any

from tmtool.grid import Grid, at

_PROJ = {
    "schema_url": "https://raw.githubusercontent.com/zarr-conventions/proj/refs/tags/v0.1/schema.json",
    "spec_url": "https://github.com/zarr-conventions/proj/blob/v0.1/README.md",
    "uuid": "f17cb550-5864-4468-aeb7-f3180cfb622f",
    "name": "proj",
    "description": "Coordinate reference system information for geospatial data",
}
_SPATIAL = {
    "schema_url": "https://raw.githubusercontent.com/zarr-conventions/spatial/refs/tags/v0.1/schema.json",
    "spec_url": "https://github.com/zarr-conventions/spatial/blob/v0.1/README.md",
    "uuid": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
    "name": "spatial",
    "description": "Spatial coordinate information",
}
_MULTISCALES = {
    "schema_url": "https://raw.githubusercontent.com/zarr-conventions/multiscales/refs/tags/v0.1/schema.json",
    "spec_url": "https://github.com/zarr-conventions/multiscales/blob/v0.1/README.md",
    "uuid": "d35379db-88df-4056-af3a-620245f8e347",
    "name": "multiscales",
    "description": "Multiscale layout of zarr datasets",
}


def of_array(grid: Grid) -> dict[str, Any]:
    """Return the attributes of an array (..., y, x) on a grid."""
    return _in_crs(grid) | {"spatial:dimensions": ["y", "x"]} | _cells(grid)


def of_group(grid: Grid, name: str, overviews: Sequence[tuple[str, Grid]], resampling: str) -> dict[str, Any]:
    """Return the attributes of a group whose array `name`, (band, y, x), is on a grid.

    `overviews` are arrays in groups below, each made of the one before.
    """
    about = _in_crs(grid) | {"spatial:dimensions": ["y", "x"], "spatial:bbox": _bounds(grid)}
    if not overviews:
        return about | _cells(grid)
    layout: list[dict[str, Any]] = [{"asset": name, "transform": {"scale": [1.0, 1.0, 1.0]}} | _cells(grid)]
    levels = [(name, grid), *overviews]
    for (before, finer), (asset, there) in zip(levels, overviews, strict=False):
        y, x = (many / few for many, few in zip(finer.shape, there.shape, strict=True))
        transform = {"scale": [1.0, y, x], "translation": [0.0, 0.0, 0.0]}
        layout.append({"asset": asset, "derived_from": before, "transform": transform} | _cells(there))
    about["zarr_conventions"].append(_MULTISCALES)
    return about | {"multiscales": {"layout": layout, "resampling_method": resampling}}


def _in_crs(grid: Grid) -> dict[str, Any]:
    if grid.crs is None:
        return {"zarr_conventions": [_SPATIAL]}
    said = {"proj:code": grid.code} if grid.code else {"proj:wkt2": grid.crs.to_wkt(version="WKT2_2019")}
    return {"zarr_conventions": [_PROJ, _SPATIAL]} | said


def _cells(grid: Grid) -> dict[str, Any]:
    return {"spatial:transform": [*map(float, grid.transform[:6])], "spatial:shape": [*grid.shape]}


def _bounds(grid: Grid) -> list[float]:
    """Return xmin, ymin, xmax, ymax."""
    height, width = grid.shape
    xs, ys = at(grid.transform, [0, width, 0, width], [0, 0, height, height])
    return [float(bound) for bound in (xs.min(), ys.min(), xs.max(), ys.max())]
