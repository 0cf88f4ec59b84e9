"""What tiles say, a feature a tile: places or texts, as GeoJSON (RFC 7946) or GeoParquet 1.1.

A work file holds what a model says of each tile, in the numbers of `tmtool.files.sayings`, a pixel a tile. A feature's geometry is
the tile's footprint, which is that pixel. Its properties are `row` and `col`, which count tiles, and

- of a place `lon` and `lat` in degrees, and `distance_km`, how far from the footprint's centre that is, along the
  ellipsoid of WGS 84; all null where the model said no place, the distance also where the raster has no CRS;
- of a text `text`.

GeoJSON is in longitude and latitude, its polygons counter-clockwise and cut at the antimeridian; the geometry is null where the
raster has no CRS. The tags are in the member `tags`. GeoParquet is in the raster's CRS, the tags in the file's metadata.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.warp import transform

from tmtool.errors import ProductError
from tmtool.files.facts import Facts, one_cell
from tmtool.files.geoparquet import PARQUET, binary, geo, polygons, read_tags, rings
from tmtool.files.geoparquet import look as parquet_facts
from tmtool.files.sayings import Place, place_of, text_of
from tmtool.files.writer import Format, Work
from tmtool.grid import Grid

_SEGMENTS = 4
"""Straight lines that stand for each side of a footprint, whose sides may be curves on the globe."""
_DECIMALS = 7  # of a degree: a centimetre
_SIDES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class _Columns:
    """What is said of tiles: the Arrow type of each column, and its values by those of the tiles and their centres `(n, 2)`."""

    types: Mapping[str, str]
    read: Callable[[list[list[Any]], NDArray[np.float64]], Mapping[str, list[Any]]]


@dataclass(frozen=True)
class _Tiles:
    """Tiles of one strip: rows and columns `(n,)`, outlines in the raster's CRS and in degrees, and what is said."""

    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    xy: NDArray[np.float64]
    lonlat: NDArray[np.float64]
    said: Mapping[str, list[Any]]


def _places(values: list[list[Any]], centres: NDArray[np.float64]) -> dict[str, list[Any]]:
    found = [place_of(tile) for tile in values]
    away = [_distance_km(a, (x, y)) if a else None for a, (x, y) in zip(found, centres.tolist(), strict=True)]
    lon, lat = ([place[i] if place else None for place in found] for i in range(2))
    return {"lon": lon, "lat": lat, "distance_km": away}


def _texts(values: list[list[Any]], centres: NDArray[np.float64]) -> dict[str, list[Any]]:
    return {"text": [text_of(tile) for tile in values]}


def _distance_km(a: Place, b: Place) -> float | None:
    """Return the length of the shortest line on WGS 84's ellipsoid, to a metre; None if a place is unknown."""
    from pyproj import Geod

    if not np.isfinite([*a, *b]).all():
        return None
    _, _, metres = Geod(ellps="WGS84").inv(*a, *b)
    return round(float(metres) / 1000, 3)


def _strips(work: Work, columns: _Columns) -> Iterator[_Tiles]:
    """Yield the tiles that hold data, from the top."""
    for first, values, valid in work.rows():
        rows, cols = np.nonzero(valid)
        if not len(rows):
            continue
        said = values[:, rows, cols].T.tolist()
        rows = rows + first
        a, b, c, d, e, f = work.grid.transform[:6]
        x, y = a * (cols + 0.5) + b * (rows + 0.5) + c, d * (cols + 0.5) + e * (rows + 0.5) + f
        xy = rings(work.grid.transform, rows, cols)
        centres = degrees(work.grid, np.stack([x, y], axis=-1))
        yield _Tiles(rows, cols, xy, degrees(work.grid, _finer(xy)), columns.read(said, centres))


def _finer(xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return outlines `(n, 5, 2)` with `_SEGMENTS` lines a side; sides that tiles share are the same bit for bit."""
    share = (np.arange(_SEGMENTS) / _SEGMENTS)[:, None]
    sides = xy[:, :-1, None] * (1 - share) + xy[:, 1:, None] * share
    return np.concatenate([sides.reshape(len(xy), -1, 2), xy[:, :1]], axis=1)


def degrees(grid: Grid, xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return map coordinates `(..., 2)` as longitude and latitude in degrees; infinite where they have none."""
    if grid.crs is None:
        return np.full(xy.shape, np.inf)
    try:
        lon, lat = transform(grid.crs, "EPSG:4326", xy[..., 0].ravel(), xy[..., 1].ravel())
    except RasterioError as error:
        raise ProductError(f"{grid.crs}: cannot be transformed to longitude and latitude ({error}).") from error
    return np.stack([lon, lat], axis=-1).reshape(xy.shape)


# GeoJSON


def _geojson(columns: _Columns, work: Work, path: Path) -> None:
    """Write a feature a line. Raises `ProductError`."""
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(f'{{"type": "FeatureCollection", "tags": {json.dumps(dict(work.tags))}, "features": [')
        for tiles in _strips(work, columns):
            for feature in _features(tiles):
                line = json.dumps(feature, ensure_ascii=False, allow_nan=False)
                file.write(f"{',' if count else ''}\n{line}")
                count += 1
        file.write("\n]}\n")
    if count != work.statistics.count:
        raise ProductError(f"{path}: has {count} tiles, expected {work.statistics.count}. Please report this.")


def geojson_tags(path: Path) -> dict[str, str]:
    """Return the tags in a file's first line; raises `ProductError` if it is damaged or cut off."""
    try:
        with path.open("rb") as file:
            first = file.readline()
            file.seek(-4, 2)
            last = file.read()
        tags = json.loads(first + b"]}").get("tags")
    except (OSError, ValueError, AttributeError) as error:
        raise ProductError(f"{path}: is damaged or truncated ({error}).") from error
    if last != b"\n]}\n" or not isinstance(tags, dict):
        raise ProductError(f"{path}: is damaged, truncated, or not a product of tmtool.")
    return tags


def geojson_facts(path: Path) -> Facts:
    """Return what a file says, and the bounds of its features in degrees; raises `ProductError` if it is damaged."""
    tags = geojson_tags(path)
    try:
        features = json.loads(path.read_text(encoding="utf-8"))["features"]
        shapes = [feature["geometry"] for feature in features if feature["geometry"]]
        points = np.array([point for shape in shapes for point in _corners(shape)]).reshape(-1, 2)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProductError(f"{path}: is damaged ({error}).") from error
    if not len(points):
        return Facts(tags, rows=len(features))
    (left, bottom), (right, top) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return Facts(tags, one_cell(CRS.from_epsg(4326), (left, bottom, right, top)), rows=len(features))


def _corners(shape: Mapping[str, Any]) -> Iterator[Any]:
    parts = shape["coordinates"] if shape["type"] == "MultiPolygon" else [shape["coordinates"]]
    return (point for part in parts for ring in part for point in ring)


def footprint(grid: Grid) -> dict[str, Any] | None:
    """Return GeoJSON's geometry of what a grid covers; None where it has no CRS."""
    height, width = grid.shape
    one = np.zeros(1, np.int64)
    return geometry(degrees(grid, _finer(rings(grid.cells((height, width), (1, 1)).transform, one, one)))[0])


def bounds_of(shape: Mapping[str, Any]) -> list[float]:
    """Return west, south, east and north of a geometry that `geometry` made; east is less than west across the antimeridian."""
    parts = shape["coordinates"] if shape["type"] == "MultiPolygon" else [shape["coordinates"]]
    lon = [[point[0] for point in part[0]] for part in parts]
    lat = [point[1] for point in _corners(shape)]
    return [min(lon[0]), min(lat), max(lon[-1]), max(lat)]


def _features(tiles: _Tiles) -> Iterator[dict[str, Any]]:
    for i, (row, col) in enumerate(zip(tiles.rows.tolist(), tiles.cols.tolist(), strict=True)):
        said = {name: values[i] for name, values in tiles.said.items()}
        properties = {"row": row, "col": col, **said}
        yield {"type": "Feature", "geometry": geometry(tiles.lonlat[i]), "properties": properties}


def geometry(ring: NDArray[np.float64]) -> dict[str, Any] | None:
    """Return GeoJSON's geometry of a closed outline `(n, 2)` of longitude and latitude, either way round; None if unknown.

    Neighbouring points are less than 180 degrees apart. Where the outline crosses the antimeridian its parts on either side
    are polygons of their own; one that goes round a pole reaches up to it.
    """
    if not np.isfinite(ring).all():
        return None
    lon, lat = np.unwrap(ring[:, 0], period=360), ring[:, 1]
    if abs(lon[-1] - lon[0]) > 180:
        return _round_a_pole(lon, lat)
    lon = lon - 360 * np.floor((lon.min() + 180) / 360)
    points = list(zip(lon.tolist(), lat.tolist(), strict=True))
    if max(x for x, _ in points) <= 180:
        return {"type": "Polygon", "coordinates": [_ring(points, 0)]}
    parts = [_ring(_clipped(points, 1), 0), _ring(_clipped(points, -1), 360)]
    return {"type": "MultiPolygon", "coordinates": [[part] for part in parts]}


def _round_a_pole(lon: NDArray[np.float64], lat: NDArray[np.float64]) -> dict[str, Any]:
    """Return the polygon from antimeridian to antimeridian between an outline, whose longitudes go on, and the pole."""
    if lon[-1] < lon[0]:
        lon, lat = lon[::-1], lat[::-1]
    lon, lat = np.append(lon, lon[1:] + 360), np.append(lat, lat[1:])  # round it twice
    start = 180 + 360 * np.ceil((lon[0] - 180) / 360)
    inside = (lon > start) & (lon < start + 360)
    end, pole = float(np.interp(start, lon, lat)), float(np.copysign(90, lat.mean()))
    points = list(zip((lon[inside] - start - 180).tolist(), lat[inside].tolist(), strict=True))
    ends = [(180.0, end), (180.0, pole), (-180.0, pole), (-180.0, end)]
    return {"type": "Polygon", "coordinates": [_ring([(-180.0, end), *points, *ends], 0)]}


def _clipped(points: list[Place], side: int) -> list[Place]:
    """Return the part of a closed outline that lies west (1) or east (-1) of longitude 180, closed."""
    kept: list[Place] = []
    for (x0, y0), (x1, y1) in zip(points[:-1], points[1:], strict=True):
        before, after = side * (180 - x0), side * (180 - x1)
        if before >= 0:
            kept.append((x0, y0))
        if before * after < 0:
            kept.append((180.0, y0 + (y1 - y0) * before / (before - after)))
    return [*kept, kept[0]]


def _ring(points: list[Place], turned: float) -> list[list[float]]:
    """Return a closed outline, counter-clockwise, `turned` degrees further west."""
    area = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(points[:-1], points[1:], strict=True))
    ordered = points if area > 0 else points[::-1]
    return [[round(x - turned, _DECIMALS), round(y, _DECIMALS)] for x, y in ordered]


# GeoParquet


def _parquet(columns: _Columns, work: Work, path: Path) -> None:
    """Write a row a tile, and validate their number. Raises `ProductError`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    box = pa.struct([pa.field(side, pa.float64(), nullable=False) for side in _SIDES])
    fixed = [("geometry", pa.binary()), ("bbox", box), ("row", pa.int32()), ("col", pa.int32())]
    said = [pa.field(name, pa.type_for_alias(kind)) for name, kind in columns.types.items()]
    schema = pa.schema([*(pa.field(name, kind, nullable=False) for name, kind in fixed), *said])
    bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
    try:
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for tiles in _strips(work, columns):
                sides = np.concatenate([tiles.xy.min(axis=1), tiles.xy.max(axis=1)], axis=1)
                bounds[:2] = np.minimum(bounds[:2], sides[:, :2].min(axis=0))
                bounds[2:] = np.maximum(bounds[2:], sides[:, 2:].max(axis=0))
                boxes = pa.StructArray.from_arrays([pa.array(sides[:, i]) for i in range(4)], fields=list(box))
                places = [pa.array(v.astype(np.int32)) for v in (tiles.rows, tiles.cols)]
                values = [pa.array(tiles.said[field.name], field.type) for field in said]
                arrays = [binary(polygons(tiles.xy)), boxes, *places, *values]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            writer.add_key_value_metadata(dict(work.tags) | {"geo": json.dumps(geo(work.grid.crs, bounds))})
    except pa.ArrowException as error:
        raise ProductError(f"{path}: writing failed ({error}).") from error
    if (count := pq.read_metadata(path).num_rows) != work.statistics.count:
        raise ProductError(f"{path}: has {count} tiles, expected {work.statistics.count}. Please report this.")


_PLACES = _Columns({"lon": "float64", "lat": "float64", "distance_km": "float64"}, _places)
_TEXTS = _Columns({"text": "string"}, _texts)
_GEOJSON = "application/geo+json"
PLACES = {
    "geojson": Format(".geojson", partial(_geojson, _PLACES), geojson_tags, _GEOJSON, geojson_facts),
    "geoparquet": Format(".parquet", partial(_parquet, _PLACES), read_tags, PARQUET, parquet_facts),
}
"""The formats of products that hold a place a tile."""
TEXTS = {
    "geojson": Format(".geojson", partial(_geojson, _TEXTS), geojson_tags, _GEOJSON, geojson_facts),
    "geoparquet": Format(".parquet", partial(_parquet, _TEXTS), read_tags, PARQUET, parquet_facts),
}
"""The formats of products that hold a text a tile."""
