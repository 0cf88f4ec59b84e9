"""A product's work file to GeoParquet with the columns of Major TOM's embeddings, so that tables of both can be joined.

https://huggingface.co/Major-TOM. Rows, row groups and metadata are those of `tmtool.files.geoparquet`. Of each cell

- `unique_id`, SHA-256 of its footprint, `timestamp`, `product_id` and vector; `embedding`, the vector;
- `timestamp`, when the input was taken, and `product_id`, the first input's name; empty where they are not known;
- `grid_cell`, `grid_row_u`, `grid_col_r`, the cell of Major TOM's grid of 10 km in which the centre lies: `451U_946L`, 451, -946;
- `geometry` in longitude and latitude; its centre's degrees, `centre_lat` and `centre_lon`;
- `utm_footprint`, WKT in the raster's CRS, and `utm_crs`; `pixel_bbox`, its place in the input: left, top, right, bottom in px;
- `bbox`, which Major TOM has not: the bounds, by which readers skip rows.
"""

import hashlib
from functools import partial
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS

from tmtool.files.geojson import degrees
from tmtool.files.geoparquet import (
    PARQUET,
    Cellwise,
    Table,
    binary,
    box_field,
    boxes,
    lists,
    look,
    polygons,
    read_tags,
    rings,
    values_field,
    write,
)
from tmtool.files.writer import Format, Work
from tmtool.provenance import parse

_RADIUS_KM, _SPACING_KM = 6378.137, 10.0


def grid_cells(lon: NDArray[np.float64], lat: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows and columns of Major TOM's grid of 10 km, north and east of the null point from 0, else negative.

    Rows are as high as divides the meridian into whole ones of at most 10 km, columns the circle of latitude below each.
    """
    rows = np.ceil(np.pi * _RADIUS_KM / _SPACING_KM)
    row = np.floor(lat * rows / 180)
    circle = 2 * np.pi * _RADIUS_KM * np.cos(np.radians(row * 180 / rows))
    columns = np.maximum(np.ceil(circle / _SPACING_KM), 1)
    half = columns // 2
    col = (np.floor(lon * columns / 360) + half) % columns - half
    return row.astype(np.int64), col.astype(np.int64)


def _named(row: int, col: int) -> str:
    return f"{abs(row)}{'U' if row >= 0 else 'D'}_{abs(col)}{'R' if col >= 0 else 'L'}"


def _fields(work: Work) -> list[Any]:
    import pyarrow as pa

    kinds = {
        **{"timestamp": pa.string(), "product_id": pa.string(), "grid_cell": pa.string()},
        **{"grid_row_u": pa.int16(), "grid_col_r": pa.int16(), "geometry": pa.binary()},
        **{"centre_lat": pa.float32(), "centre_lon": pa.float32()},
        **{"utm_footprint": pa.string(), "utm_crs": pa.string(), "pixel_bbox": pa.list_(pa.int64(), 4)},
    }
    named = [pa.field(name, kind, nullable=False) for name, kind in kinds.items()]
    return [pa.field("unique_id", pa.string(), nullable=False), values_field(work), *named, box_field()]


def _arrays(work: Work, cells: Cellwise) -> list[Any]:
    import pyarrow as pa
    import shapely

    taken, name = _input(work)
    shapes = polygons(cells.xy)
    lon, lat = shapely.get_coordinates(shapely.centroid(shapely.polygons(cells.xy))).T
    row, col = grid_cells(lon, lat)
    there = shapely.polygons(rings(work.grid.transform, cells.rows, cells.cols))
    said = f"{taken}_{name}".encode()
    ids = [
        hashlib.sha256(b"".join((shape, said, v))).hexdigest() for shape, v in zip(shapes, cells.values, strict=True)
    ]
    same = partial(pa.repeat, size=len(row))
    return [
        pa.array(ids),
        lists(work, cells.values),
        same(taken),
        same(name),
        pa.array([_named(*at) for at in zip(row.tolist(), col.tolist(), strict=True)]),
        pa.array(row.astype(np.int16)),
        pa.array(col.astype(np.int16)),
        binary(shapes),
        pa.array(lat.astype(np.float32)),
        pa.array(lon.astype(np.float32)),
        pa.array(shapely.to_wkt(there, rounding_precision=3)),
        same(work.grid.code or work.grid.crs.to_wkt()),
        pa.FixedSizeListArray.from_arrays(pa.array(_pixels(work, cells).reshape(-1)), 4),
        boxes(cells.xy),
    ]


def _input(work: Work) -> tuple[str, str]:
    """Return when the input was taken, and its name without its ending."""
    made = parse(work.tags)
    if made is None:
        return "", ""
    taken = next(iter(made.details.get("acquired", {}).values()), "")
    return str(taken), PurePath(next(iter(made.inputs.values()), "")).stem


def _pixels(work: Work, cells: Cellwise) -> NDArray[np.int64]:
    """Return left, top, right, bottom of each cell in px of the source, `(n, 4)`."""
    told = work.about.cells
    (top, left), (height, width) = told.corner, told.stride
    first = np.stack([cells.cols * width + left, cells.rows * height + top], axis=1)
    return np.concatenate([first, first + [told.size[1], told.size[0]]], axis=1)


_TABLE = Table(
    _fields,
    _arrays,
    ("timestamp", "product_id", "grid_cell", "grid_row_u", "grid_col_r", "utm_crs"),
    CRS.from_user_input("OGC:CRS84"),
    degrees,
)
MAJORTOM = Format(".parquet", partial(write, _TABLE), read_tags, PARQUET, look)
