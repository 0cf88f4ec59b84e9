"""A product's work file to GeoParquet 1.1: a row for each valid cell, with its footprint and its embedding.

Columns: `geometry`, the cell's polygon as WKB in the raster's CRS, x before y, counter-clockwise; `bbox`, its bounds, by
which readers skip rows; `row` and `col`, the cell's place in the raster; `embedding`, a list of as many values as the
product has bands, in the layout's dtype. Cells without data have no row. The last cells of a row or column are whole cells,
though the source may end within them.

The file's metadata hold `geo`, the product's tags, `band_names` (JSON) and, where values are stored in steps, `scales` (JSON):
`embedding * scales` are the values. pyarrow and geopandas give float16 lists as float16 arrays; a reader whose Parquet has
no float16 sees two bytes a value.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from tmtool.errors import ProductError
from tmtool.files.facts import Facts, one_cell
from tmtool.files.writer import Format, Layout, Work
from tmtool.grid import BoolArray, Grid

_GROUP_BYTES = 64 << 20
_GROUP_CELLS = 1 << 17
_STRIP_BYTES = 96 << 20
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_VALUES = "embedding.list.element"
_POLYGON = np.dtype(
    [("order", "u1"), ("type", "<u4"), ("rings", "<u4"), ("points", "<u4"), ("xy", "<f8", (5, 2))]
)  # packed: a polygon of one ring in WKB


def convert(work: Work, path: Path) -> None:
    """Write the table of valid cells at `path`, and validate it. Raises `ProductError`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    layout = work.layout
    integers = np.issubdtype(np.dtype(layout.dtype), np.integer)
    bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
    try:
        with pq.ParquetWriter(
            path,
            _schema(work),
            compression="zstd",
            use_dictionary=["row", "col", *([_VALUES] if integers else [])],
            use_byte_stream_split=[_VALUES] if layout.dtype == "float32" else False,
            write_statistics=["row", "col", *(f"bbox.{side}" for side in _SIDES)],
        ) as writer:
            for table in _groups(work, bounds):
                writer.write_table(table, row_group_size=table.num_rows)
            writer.add_key_value_metadata(_metadata(work, bounds))
    except pa.ArrowException as error:
        raise ProductError(f"{path}: writing failed ({error}).") from error
    _validate(path, work)


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


PARQUET = "application/vnd.apache.parquet"
GEOPARQUET = Format(".parquet", convert, read_tags, PARQUET, look)


def _schema(work: Work) -> Any:
    import pyarrow as pa

    layout = work.layout
    about = {"unit": layout.unit} if layout.unit else {}
    if _scaled(work):
        about["scales"] = "value = stored * scales, which the file's metadata hold"
    values = pa.field("element", pa.from_numpy_dtype(np.dtype(layout.dtype)), nullable=False)
    box = pa.struct([pa.field(side, pa.float64(), nullable=False) for side in _SIDES])
    return pa.schema(
        [
            pa.field("geometry", pa.binary(), nullable=False),
            pa.field("bbox", box, nullable=False),
            pa.field("row", pa.int32(), nullable=False),
            pa.field("col", pa.int32(), nullable=False),
            pa.field("embedding", pa.list_(values, len(layout.bands)), nullable=False, metadata=about or None),
        ]
    )


def _groups(work: Work, bounds: NDArray[np.float64]) -> Iterator[Any]:
    """Yield the table in parts of a row group's size, and widen `bounds` (xmin, ymin, xmax, ymax) to what they cover."""
    import pyarrow as pa

    layout, schema = work.layout, _schema(work)
    enough = min(_GROUP_CELLS, max(1, _GROUP_BYTES // layout.pixel_bytes))
    parts: list[Any] = []
    for row, values, valid in work.rows(_strip_rows(layout, work.grid.shape[1])):
        if valid.any():
            part, box = _cells(schema, work.grid, row, values, valid)
            parts.append(part)
            bounds[:2], bounds[2:] = np.minimum(bounds[:2], box[:2]), np.maximum(bounds[2:], box[2:])
        if sum(part.num_rows for part in parts) >= enough:
            yield pa.concat_tables(parts)
            parts = []
    if parts:
        yield pa.concat_tables(parts)


def _strip_rows(layout: Layout, width: int) -> int:
    row_bytes = len(layout.bands) * np.dtype(layout.work[0]).itemsize * width
    return next((rows for rows in (64, 32) if rows * row_bytes <= _STRIP_BYTES), 16)


def _cells(
    schema: Any, grid: Grid, row: int, values: NDArray[Any], valid: BoolArray
) -> tuple[Any, NDArray[np.float64]]:
    """Return the table of a strip's valid cells, and their bounds `(4,)`; `values` is `(bands, h, W)`, from `row`."""
    import pyarrow as pa

    rows, cols = np.nonzero(valid)
    rows += row
    xy = rings(grid.transform, rows, cols)
    box = np.concatenate([xy.min(axis=1), xy.max(axis=1)], axis=1)
    flat = np.ascontiguousarray(values[:, valid].T).reshape(-1)
    bbox = schema.field("bbox").type
    embedding = schema.field("embedding").type
    columns = [
        binary(polygons(xy)),
        pa.StructArray.from_arrays([pa.array(box[:, i]) for i in range(4)], fields=list(bbox)),
        pa.array(rows.astype(np.int32)),
        pa.array(cols.astype(np.int32)),
        pa.FixedSizeListArray.from_arrays(pa.array(flat), type=embedding),
    ]
    bounds = np.concatenate([box[:, :2].min(axis=0), box[:, 2:].max(axis=0)])
    return pa.Table.from_arrays(columns, schema=schema), bounds


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


def _metadata(work: Work, bounds: NDArray[np.float64]) -> dict[str, str]:
    scales = {"scales": json.dumps(work.scales.tolist())} if _scaled(work) else {}
    names = {"band_names": json.dumps(work.layout.bands)}
    return dict(work.tags) | names | scales | {"geo": json.dumps(geo(work.grid.crs, bounds))}


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


def _scaled(work: Work) -> bool:
    return bool((work.scales != 1).any())


def _validate(path: Path, work: Work) -> None:
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
    if crs != work.grid.crs:
        raise ProductError(f"{path}: the written file lies in {crs}, expected {work.grid.crs}. Please report this.")
