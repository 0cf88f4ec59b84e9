"""A product's work file to GeoParquet 1.1: a row for each valid cell, with its footprint and its embedding.

Columns: `geometry`, the cell's polygon as WKB in the raster's CRS, x before y, counter-clockwise; `bbox`, its bounds, by
which readers skip rows; `row` and `col`, the cell's place in the raster; `embedding`, a list of as many values as the
product has bands, in the layout's dtype. Cells without data have no row. The last cells of a row or column are whole cells,
though the source may end within them. `tmtool.files.majortom` has other columns.

Rows come in squares of 64 x 64 cells (32 or 16 where a row of squares would take too much memory), from the top left, and
within each along a Hilbert curve. A square is a row group, so that a small box touches few of them, whatever the product's size.

The file's metadata hold `geo`, the product's tags, `band_names` (JSON) and, where values are stored in steps, `scales` (JSON):
`embedding * scales` are the values. pyarrow and geopandas give float16 lists as float16 arrays; a reader whose Parquet has
no float16 sees two bytes a value.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from tmtool.errors import ProductError
from tmtool.files.facts import Facts, one_cell
from tmtool.files.writer import Format, Work
from tmtool.grid import Grid

_STRIP_BYTES = 96 << 20
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_VALUES = "embedding.list.element"
_POLYGON = np.dtype(
    [("order", "u1"), ("type", "<u4"), ("rings", "<u4"), ("points", "<u4"), ("xy", "<f8", (5, 2))]
)  # packed: a polygon of one ring in WKB


@dataclass(frozen=True)
class Cellwise:
    """Valid cells `(n,)`: rows and columns, their values `(n, bands)`, and their outlines `(n, 5, 2)` in the geometry's CRS."""

    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    values: NDArray[Any]
    xy: NDArray[np.float64]


def _as_it_is(grid: Grid, xy: NDArray[np.float64]) -> NDArray[np.float64]:
    return xy


@dataclass(frozen=True)
class Table:
    """The columns of a table of cells, as Arrow's fields and arrays; values of those that are `repeated` come again and again.

    The geometry is in `crs`, to which `placed` brings outlines; None is the raster's.
    """

    fields: Callable[[Work], list[Any]]
    arrays: Callable[[Work, Cellwise], list[Any]]
    repeated: tuple[str, ...]
    crs: Any = None
    placed: Callable[[Grid, NDArray[np.float64]], NDArray[np.float64]] = _as_it_is


def write(table: Table, work: Work, path: Path) -> None:
    """Write the table of valid cells at `path`, and validate it. Raises `ProductError`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    layout = work.layout
    integers = np.issubdtype(np.dtype(layout.dtype), np.integer)
    bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
    schema, crs = pa.schema(table.fields(work)), table.crs or work.grid.crs
    try:
        with pq.ParquetWriter(
            path,
            schema,
            compression="zstd",
            use_dictionary=[*table.repeated, *([_VALUES] if integers else [])],
            use_byte_stream_split=[_VALUES] if layout.dtype == "float32" else False,
            write_statistics=[*table.repeated, *(f"bbox.{side}" for side in _SIDES)],
        ) as writer:
            for cells in _squares(work, table):
                group = pa.Table.from_arrays(table.arrays(work, cells), schema=schema)
                writer.write_table(group, row_group_size=group.num_rows)
                bounds[:2] = np.minimum(bounds[:2], cells.xy.min(axis=(0, 1)))
                bounds[2:] = np.maximum(bounds[2:], cells.xy.max(axis=(0, 1)))
            writer.add_key_value_metadata(_metadata(work, crs, bounds))
    except pa.ArrowException as error:
        raise ProductError(f"{path}: writing failed ({error}).") from error
    _validate(path, work, crs)


def read_tags(path: Path) -> dict[str, str]:
    """Return the tags in a file's metadata; raises `ProductError` if it is damaged or cut off."""
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    try:
        metadata = pq.read_metadata(path).metadata or {}
    except (OSError, ArrowException) as error:
        raise ProductError(f"{path}: is damaged or truncated ({error}).") from error
    return {key.decode(): value.decode() for key, value in metadata.items() if key != b"ARROW:schema"}


def look(path: Path) -> Facts:
    """Return what a file's metadata say; raises `ProductError` if it is damaged."""
    import pyarrow.parquet as pq
    import pyproj
    from pyarrow import ArrowException

    tags = read_tags(path)
    try:
        found, schema = pq.read_metadata(path), pq.read_schema(path)
        column = json.loads(tags["geo"])["columns"]["geometry"]
    except (OSError, ArrowException, ValueError, KeyError) as error:
        raise ProductError(f"{path}: is damaged or no GeoParquet ({error}).") from error
    crs, box = column["crs"], column.get("bbox")
    known = None if crs is None else CRS.from_wkt(pyproj.CRS.from_json_dict(crs).to_wkt())
    return Facts(
        tags=tags,
        extent=one_cell(known, tuple(box)) if box else None,
        columns={field.name: str(field.type) for field in schema},
        rows=found.num_rows,
    )


def _squares(work: Work, table: Table) -> Iterator[Cellwise]:
    """Yield the valid cells of each square that has any, along a Hilbert curve."""
    layout, width = work.layout, work.grid.shape[1]
    row_bytes = len(layout.bands) * np.dtype(layout.work[0]).itemsize * width
    side = next((side for side in (64, 32) if side * row_bytes <= _STRIP_BYTES), 16)
    order = hilbert(side)
    for top, strip, there in work.rows(side):
        for left in range(0, width, side):
            valid = there[:, left : left + side]
            rows, cols = np.nonzero(valid)
            if not len(rows):
                continue
            along = np.argsort(order[rows, cols])
            rows, cols = rows[along], cols[along]
            values = np.ascontiguousarray(strip[:, rows, cols + left].T)
            xy = rings(work.grid.transform, rows + top, cols + left)
            yield Cellwise(rows + top, cols + left, values, table.placed(work.grid, xy))


def hilbert(side: int) -> NDArray[np.int64]:
    """Return the place of each cell of a square along a Hilbert curve, `(side, side)`; `side` is a power of two."""
    curve = np.zeros((1, 1), np.int64)
    while len(curve) < side:
        n = curve.size
        curve = np.block([[curve.T, curve[::-1, ::-1].T + 3 * n], [curve + n, curve + 2 * n]])
    return curve


def _fields(work: Work) -> list[Any]:
    import pyarrow as pa

    return [
        pa.field("geometry", pa.binary(), nullable=False),
        box_field(),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("col", pa.int32(), nullable=False),
        values_field(work),
    ]


def _arrays(work: Work, cells: Cellwise) -> list[Any]:
    import pyarrow as pa

    return [
        binary(polygons(cells.xy)),
        boxes(cells.xy),
        pa.array(cells.rows.astype(np.int32)),
        pa.array(cells.cols.astype(np.int32)),
        lists(work, cells.values),
    ]


def box_field() -> Any:
    """Return the field of the bounds."""
    import pyarrow as pa

    box = pa.struct([pa.field(side, pa.float64(), nullable=False) for side in _SIDES])
    return pa.field("bbox", box, nullable=False)


def boxes(xy: NDArray[np.float64]) -> Any:
    """Return the bounds of outlines `(n, 5, 2)`."""
    import pyarrow as pa

    box = np.concatenate([xy.min(axis=1), xy.max(axis=1)], axis=1)
    return pa.StructArray.from_arrays([pa.array(box[:, i]) for i in range(4)], fields=list(box_field().type))


def values_field(work: Work) -> Any:
    """Return the field of the values."""
    import pyarrow as pa

    layout = work.layout
    about = {"unit": layout.unit} if layout.unit else {}
    if work.layout.coded:
        about["scales"] = "value = stored * scales, which the file's metadata hold"
    values = pa.field("element", pa.from_numpy_dtype(np.dtype(layout.dtype)), nullable=False)
    return pa.field("embedding", pa.list_(values, len(layout.bands)), nullable=False, metadata=about or None)


def lists(work: Work, values: NDArray[Any]) -> Any:
    """Return the values `(n, bands)`."""
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=values_field(work).type)


def rings(transform: Affine, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the closed outlines of cells in map coordinates, counter-clockwise, `(n, 5, 2)` of (x, y).

    Neighbours share their corners bit for bit.
    """
    a, b, c, d, e, f = transform[:6]
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)])  # (row, col); this way round where y points up
    if a * e - b * d > 0:
        corners = corners[::-1]
    row, col = rows[:, None] + corners[:, 0], cols[:, None] + corners[:, 1]
    return np.stack([col * a + row * b + c, col * d + row * e + f], axis=-1)


def polygons(xy: NDArray[np.float64]) -> NDArray[Any]:
    """Return closed outlines `(n, 5, 2)` as polygons in WKB."""
    polygons = np.empty(len(xy), _POLYGON)
    polygons["order"], polygons["type"], polygons["rings"], polygons["points"] = 1, 3, 1, 5
    polygons["xy"] = xy
    return polygons


def binary(records: NDArray[Any]) -> Any:
    """Return records of one size as an Arrow array of bytes, without a copy."""
    import pyarrow as pa

    ends = np.arange(len(records) + 1, dtype=np.int32) * np.int32(records.itemsize)
    return pa.Array.from_buffers(pa.binary(), len(records), [None, pa.py_buffer(ends), pa.py_buffer(records)])


def _metadata(work: Work, crs: Any, bounds: NDArray[np.float64]) -> dict[str, str]:
    scales = {"scales": json.dumps(work.scales.tolist())} if work.layout.coded else {}
    names = {"band_names": json.dumps(work.layout.bands)}
    return dict(work.tags) | names | scales | {"geo": json.dumps(geo(crs, bounds))}


def geo(crs: Any, bounds: NDArray[np.float64]) -> dict[str, Any]:
    """Return what a file's `geo` metadata say of the columns `geometry` and `bbox`; `bounds` is (xmin, ymin, xmax, ymax)."""
    import pyproj

    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "crs": None if crs is None else pyproj.CRS.from_wkt(crs.to_wkt(version="WKT2_2019")).to_json_dict(),
        "edges": "planar",
        "orientation": "counterclockwise",
        "covering": {"bbox": {side: ["bbox", side] for side in _SIDES}},
    }
    if np.isfinite(bounds).all():
        column["bbox"] = bounds.tolist()
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def _validate(path: Path, work: Work, expected: Any) -> None:
    """Reopen the file's metadata and compare the number of cells and where they lie; no value is read."""
    import pyarrow.parquet as pq
    import pyproj

    found = pq.read_metadata(path)
    if b"geo" not in (found.metadata or {}):
        raise ProductError(f"{path}: the written file has no `geo` metadata. Please report this.")
    if found.num_rows != work.statistics.count:
        raise ProductError(
            f"{path}: the written file has {found.num_rows} cells, expected {work.statistics.count}. Please report this."
        )
    crs = json.loads(found.metadata[b"geo"])["columns"]["geometry"]["crs"]
    if crs is not None:
        crs = CRS.from_wkt(pyproj.CRS.from_json_dict(crs).to_wkt())
    if crs != expected:
        raise ProductError(f"{path}: the written file lies in {crs}, expected {expected}. Please report this.")


PARQUET = "application/vnd.apache.parquet"
GEOPARQUET = Format(".parquet", partial(write, Table(_fields, _arrays, ("row", "col"))), read_tags, PARQUET, look)
