"""Shapes of vector files: areas of interest, masks."""

import os

import numpy as np
from rasterio.warp import transform

from tmtool.errors import UsageError
from tmtool.grid import Grid

_ENDINGS = (".gpkg", ".geojson", ".json", ".shp", ".fgb", ".kml", ".gml", ".parquet", ".geoparquet")


def is_vector(path: str) -> bool:
    """Whether a path names a vector file, by its ending."""
    return path.lower().endswith((*_ENDINGS, ".zip"))


def shapes_of(path: str, grid: Grid, option: str) -> tuple[bytes, ...]:
    """Return the polygons of a file's first layer, in well-known binary and the grid's CRS. Raises `UsageError`."""
    import pyogrio
    import shapely

    if grid.crs is None:
        raise UsageError(f"{option} {path}: the inputs have no CRS, so its shapes have no place in them.")
    if "://" not in path and not path.startswith("/vsi") and not os.path.exists(path):
        raise UsageError(f"{option} {path}: no such file.")
    try:
        meta, _, found, _ = pyogrio.raw.read(path, columns=[])
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
        raise UsageError(f"{option} {path}: cannot be read as a vector file ({error}).") from None
    shapes = shapely.from_wkb(found) if found is not None else np.empty(0, object)
    shapes = shapes[~(shapely.is_missing(shapes) | shapely.is_empty(shapes))]
    if not len(shapes) or not (shapely.get_dimensions(shapes) == 2).all():
        raise UsageError(f"{option} {path}: expected polygons, found {_kinds(shapes)}.")
    if meta["crs"] is None:
        raise UsageError(f"{option} {path}: has no CRS. Give it one: ogr2ogr -a_srs EPSG:4326 with_crs.gpkg {path}.")
    placed = shapely.transform(shapely.force_2d(shapes), lambda at: _moved(at, meta["crs"], grid))
    return tuple(shapely.to_wkb(shapely.make_valid(placed)))


def _kinds(shapes: "np.ndarray") -> str:
    return ", ".join(sorted({shape.geom_type for shape in shapes})) or "nothing"


def _moved(at: "np.ndarray", crs: str, grid: Grid) -> "np.ndarray":
    xs, ys = transform(crs, grid.crs, at[:, 0], at[:, 1])
    return np.stack([xs, ys], axis=1)
