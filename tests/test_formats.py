"""Zarr and GeoParquet: what a reader finds is what was written, where it was, and nothing else is left."""

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import rioxarray  # noqa: F401
import shapely
import xarray
from affine import Affine
from rasterio.crs import CRS
from zarr.codecs import GzipCodec

import tmtool.files.geoparquet
import tmtool.files.zarr
from tests.conftest import TRANSFORM
from tests.newer_gdal import asked
from tmtool.errors import DiskError, ProductError
from tmtool.files.cf import locate
from tmtool.files.geoparquet import GEOPARQUET
from tmtool.files.majortom import MAJORTOM, grid_cells
from tmtool.files.writer import About, Format, Layout, ProductWriter, Work
from tmtool.files.zarr import ZARR
from tmtool.grid import Cells, Grid, at
from tmtool.provenance import Provenance

UTM = Grid(CRS.from_epsg(32719), TRANSFORM, (37, 21))
DEGREES = Grid(CRS.from_epsg(4326), Affine(0.00143, 0, -70.7, 0, -0.00144, -33.4), (9, 70))
ROTATED = Grid(CRS.from_epsg(32719), Affine(9.7, 2.1, 400_000.1, 2.3, -9.6, 6_000_000.3), (5, 8))
SOUTH_UP = Grid(CRS.from_epsg(3031), Affine(160.1, 0, -300_000.7, 0, 160.1, 12_345.6), (4, 3))
NOWHERE = Grid(None, Affine.identity(), (6, 3))
ONE = Grid(CRS.from_epsg(32719), TRANSFORM, (1, 1))
GRIDS = [UTM, DEGREES, ROTATED, SOUTH_UP, NOWHERE, ONE]
NAMES = ["utm", "degrees", "rotated", "south-up", "nowhere", "one"]
BANDS = tuple(f"E{i:03}" for i in range(12))
FLOAT32 = Layout(BANDS, "float32", float("nan"), unit="1")
FLOAT16 = Layout(BANDS, "float16", float("nan"), work_dtype="float32")
INT8 = Layout(BANDS, "int8", -128, work_dtype="float32")
EMBEDDINGS = About("embedding")
TAGS = {"TMTOOL_PROVENANCE": json.dumps({"model": "narrow", "seed": 3})}


def embeddings(layout: Layout, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Random values `(bands, H, W)` float32, each band with a spread of its own, and validity with holes."""
    rng = np.random.default_rng(5)
    count = len(layout.bands)
    values = rng.normal(size=(count, *grid.shape)) * np.linspace(0.1, 30, count)[:, None, None]
    valid = rng.random(grid.shape) < 0.8
    valid[0, 0] = True
    return values.astype(np.float32), valid


def write(
    path: Path,
    grid: Grid,
    layout: Layout,
    format: Format,
    values: np.ndarray,
    valid: np.ndarray,
    tags: Mapping[str, str] = TAGS,
    about: About = EMBEDDINGS,
) -> Path:
    writer = ProductWriter(path, grid, layout, format)
    writer.create()
    try:
        for row in range(0, grid.shape[0], 7):
            writer.write(row, values[:, row : row + 7], valid[row : row + 7])
        writer.build(tags, about)
        return writer.commit()
    finally:
        writer.discard()


def spec(path: Path) -> Mapping[str, object]:
    """The file's `geo` metadata."""
    return json.loads(pq.read_metadata(path).metadata[b"geo"])


def stacked(column: pa.ChunkedArray, bands: int) -> np.ndarray:
    """A column of fixed-size lists as `(n, bands)`."""
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, bands)


# Zarr


@pytest.mark.parametrize("grid", GRIDS, ids=NAMES)
def test_a_store_lies_where_it_should(tmp_path: Path, grid: Grid) -> None:
    values, valid = embeddings(FLOAT32, grid)
    path = write(tmp_path / "e.zarr", grid, FLOAT32, ZARR, values, valid)
    assert [p.name for p in tmp_path.iterdir()] == ["e.zarr"]
    with xarray.open_zarr(path) as found:
        assert list(found.data_vars) == ["embedding"]
        assert found.rio.crs == grid.crs
        assert found.embedding.rio.crs == grid.crs
        assert found.embedding.rio.transform() == grid.transform
        assert found.embedding.rio.shape == grid.shape
        numbers = [float(v) for v in found.spatial_ref.attrs["GeoTransform"].split()]
        assert Affine.from_gdal(*numbers) == grid.transform
        assert found.embedding.dims == ("band", "y", "x")
        assert found.embedding.dtype == np.float32
        np.testing.assert_array_equal(found.embedding, np.where(valid, values, np.nan))


@pytest.mark.parametrize("grid", GRIDS, ids=NAMES)
def test_coordinates_are_centres_of_cells(tmp_path: Path, grid: Grid) -> None:
    path = write(tmp_path / "e.zarr", grid, FLOAT32, ZARR, *embeddings(FLOAT32, grid))
    with xarray.open_zarr(path) as found:
        assert tuple(found.band.values) == BANDS
        if grid is ROTATED:
            assert not {"x", "y"} & set(found.coords)
            return
        rows, cols = np.arange(grid.shape[0]), np.arange(grid.shape[1])
        np.testing.assert_allclose(found.x, grid.transform.c + grid.transform.a * (cols + 0.5), rtol=1e-14)
        np.testing.assert_allclose(found.y, grid.transform.f + grid.transform.e * (rows + 0.5), rtol=1e-14)


def test_a_store_keeps_the_conventions(tmp_path: Path) -> None:
    path = write(tmp_path / "e.zarr", UTM, FLOAT32, ZARR, *embeddings(FLOAT32, UTM))
    with xarray.open_zarr(path) as found:
        assert found.attrs.items() >= ({"Conventions": "CF-1.8"} | TAGS).items()
        assert found.embedding.attrs.items() >= {"units": "1", "grid_mapping": "spatial_ref"}.items()
        assert np.isnan(found.embedding.encoding["_FillValue"])
        assert found.spatial_ref.attrs["grid_mapping_name"] == "transverse_mercator"
        assert CRS.from_wkt(found.spatial_ref.attrs["crs_wkt"]) == UTM.crs
        assert found.x.attrs["standard_name"] == "projection_x_coordinate"
        assert found.y.attrs["units"] == "metre"
    about = json.loads((path / "zarr.json").read_text())
    assert about["zarr_format"] == 3
    assert set(about["consolidated_metadata"]["metadata"]) == {"band", "embedding", "spatial_ref", "x", "y"}


@pytest.mark.parametrize(
    ("grid", "layout"), [(UTM, FLOAT32), (DEGREES, FLOAT16), (SOUTH_UP, INT8)], ids=["float32", "float16", "int8"]
)
def test_gdal_reads_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grid: Grid, layout: Layout) -> None:
    """GDAL from 3.11 on; that of rasterio 1.4 is older."""
    monkeypatch.setattr(tmtool.files.zarr, "_compressor", GzipCodec)
    values, valid = embeddings(layout, grid)
    path = write(tmp_path / "e.zarr", grid, layout, ZARR, values, valid)
    said = asked(f'ZARR:"{path}":/embedding')
    assert CRS.from_wkt(said["wkt"]) == grid.crs
    assert Affine.from_gdal(*said["affine"]).almost_equals(grid.transform, 1e-9)
    np.testing.assert_array_equal(said["nodata"], layout.nodata)
    with xarray.open_zarr(path, mask_and_scale=False) as found:
        np.testing.assert_array_equal(said["values"], found["embedding"].values.astype(np.float64))


def test_a_store_of_float16(tmp_path: Path) -> None:
    values, valid = embeddings(FLOAT16, UTM)
    path = write(tmp_path / "e.zarr", UTM, FLOAT16, ZARR, values, valid)
    with xarray.open_zarr(path) as found:
        assert found.embedding.dtype == np.float16
        np.testing.assert_array_equal(found.embedding, np.where(valid, values, np.nan).astype(np.float16))


def test_a_store_of_int8_has_a_scale_for_each_band(tmp_path: Path) -> None:
    values, valid = embeddings(INT8, UTM)
    path = write(tmp_path / "e.zarr", UTM, INT8, ZARR, values, valid)
    scales = abs(values[:, valid]).max(axis=1) / 127
    with xarray.open_zarr(path) as found:
        assert "scale" in found.coords
        assert found.embedding.dtype == np.float32
        np.testing.assert_allclose(found.scale, scales, rtol=1e-6)
        assert found.scale.attrs["long_name"] == "value = stored * scale"
        decoded = (found.embedding * found.scale).transpose("band", "y", "x").values
    np.testing.assert_array_equal(np.isfinite(decoded), np.broadcast_to(valid, decoded.shape))
    assert (abs(decoded - values)[:, valid] <= 0.5001 * scales[:, None]).all()
    with xarray.open_zarr(path, mask_and_scale=False) as stored:
        assert stored.embedding.dtype == np.int8
        assert (stored.embedding.values[:, ~valid] == -128).all()
        assert abs(stored.embedding.values[:, valid].astype(int)).max() == 127


def test_a_store_replaces_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "e.zarr"
    old, _ = embeddings(INT8, UTM)
    write(path, UTM, INT8, ZARR, old, np.ones(UTM.shape, bool))
    (path / "notes.txt").write_text("of the older one")
    values, valid = embeddings(FLOAT32, ROTATED)
    write(path, ROTATED, FLOAT32, ZARR, values, valid)
    assert [p.name for p in tmp_path.iterdir()] == ["e.zarr"]
    assert {p.name for p in path.iterdir()} == {"zarr.json", "band", "embedding", "spatial_ref"}
    with xarray.open_zarr(path) as found:
        np.testing.assert_array_equal(found.embedding, np.where(valid, values, np.nan))


def test_a_store_of_many_chunks_equals_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tmtool.files.zarr, "_CHUNK_BYTES", 4096)
    monkeypatch.setattr(tmtool.files.zarr, "_STRIP_BYTES", 4096)
    values, valid = embeddings(FLOAT32, UTM)
    path = write(tmp_path / "e.zarr", UTM, FLOAT32, ZARR, values, valid)
    with xarray.open_zarr(path) as found:
        assert found.embedding.encoding["chunks"] == (12, 16, 5)
        np.testing.assert_array_equal(found.embedding, np.where(valid, values, np.nan))


@pytest.mark.parametrize(
    ("bands", "height", "width"), [(768, 690, 690), (1024, 7000, 7000), (64, 20_000, 8), (4096, 40, 9)]
)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_chunks_and_strips_are_of_sensible_size(bands: int, height: int, width: int, dtype: str) -> None:
    layout = Layout(("b",) * bands, dtype, 0, work_dtype="float32")
    rows, cols = tmtool.files.zarr._chunk(layout, (height, width))
    assert 1 << 20 <= rows * cols * layout.pixel_bytes <= 16 << 20
    assert rows * width * bands * 4 <= 96 << 20 or rows == 16


# GeoParquet


@pytest.mark.parametrize("grid", GRIDS, ids=NAMES)
def test_geopandas_reads_cells_where_they_lie(tmp_path: Path, grid: Grid) -> None:
    values, valid = embeddings(FLOAT32, grid)
    path = write(tmp_path / "e.parquet", grid, FLOAT32, GEOPARQUET, values, valid)
    assert [p.name for p in tmp_path.iterdir()] == ["e.parquet"]
    found = geopandas.read_parquet(path)
    rows, cols = found["row"], found["col"]
    assert sorted(zip(rows, cols, strict=True)) == [*zip(*map(list, np.nonzero(valid)), strict=True)]
    np.testing.assert_array_equal(np.stack(found["embedding"]), values[:, rows, cols].T)
    assert (found.crs is None) == (grid.crs is None)
    assert grid.crs is None or CRS.from_wkt(found.crs.to_wkt()) == grid.crs
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(shapely.area(found.geometry.array), abs(grid.transform.determinant), rtol=1e-6)
    assert all(ring.is_ccw for ring in found.geometry.exterior)
    a, b, c, d, e, f = grid.transform[:6]
    for shape, row, col in zip(found.geometry, rows, cols, strict=True):
        corners = [(a * x + b * y + c, d * x + e * y + f) for x in (col, col + 1) for y in (row, row + 1)]
        np.testing.assert_allclose(sorted(shape.exterior.coords[:4]), sorted(corners), rtol=1e-15)


@pytest.mark.parametrize("grid", [UTM, ROTATED, NOWHERE], ids=["utm", "rotated", "nowhere"])
def test_bbox_column_is_the_bounds(tmp_path: Path, grid: Grid) -> None:
    path = write(tmp_path / "e.parquet", grid, FLOAT32, GEOPARQUET, *embeddings(FLOAT32, grid))
    found = geopandas.read_parquet(path)
    box = pq.read_table(path, columns=["bbox"])["bbox"].combine_chunks().flatten()
    np.testing.assert_array_equal(np.stack([side.to_numpy() for side in box], axis=1), found.bounds)
    assert spec(path)["columns"]["geometry"]["bbox"] == found.total_bounds.tolist()
    few = geopandas.read_parquet(path, bbox=tuple(found.geometry[3].buffer(-0.1).bounds))
    assert 1 <= len(few) < len(found)
    assert found.geometry[3] in set(few.geometry)


def test_neighbours_share_their_corners() -> None:
    rows, cols = (a.ravel() for a in np.mgrid[0:5, 0:8])
    cells = tmtool.files.geoparquet.rings(ROTATED.transform, rows, cols)
    assert len(np.unique(cells.reshape(-1, 2), axis=0)) == 6 * 9


def test_geo_metadata_is_complete(tmp_path: Path) -> None:
    path = write(tmp_path / "e.parquet", UTM, FLOAT32, GEOPARQUET, *embeddings(FLOAT32, UTM))
    geo = spec(path)
    assert set(geo) == {"version", "primary_column", "columns"}
    assert geo["version"] == "1.1.0"
    assert geo["primary_column"] == "geometry"
    assert set(geo["columns"]) == {"geometry"}
    column = geo["columns"]["geometry"]
    assert set(column) == {"encoding", "geometry_types", "crs", "edges", "orientation", "bbox", "covering"}
    assert column["encoding"] == "WKB"
    assert column["geometry_types"] == ["Polygon"]
    assert column["crs"]["type"] == "ProjectedCRS"  # PROJJSON
    assert column["crs"]["id"] == {"authority": "EPSG", "code": 32719}
    assert (column["edges"], column["orientation"]) == ("planar", "counterclockwise")
    assert len(column["bbox"]) == 4
    assert all(isinstance(number, float) for number in column["bbox"])
    assert column["covering"] == {"bbox": {side: ["bbox", side] for side in ("xmin", "ymin", "xmax", "ymax")}}
    metadata = pq.read_metadata(path).metadata
    assert metadata[b"TMTOOL_PROVENANCE"].decode() == TAGS["TMTOOL_PROVENANCE"]
    assert json.loads(metadata[b"band_names"]) == list(BANDS)
    assert b"scales" not in metadata


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [(FLOAT32, pa.float32()), (FLOAT16, pa.float16()), (INT8, pa.int8())],
    ids=["float32", "float16", "int8"],
)
def test_schema_of_the_table(tmp_path: Path, layout: Layout, dtype: pa.DataType) -> None:
    path = write(tmp_path / "e.parquet", UTM, layout, GEOPARQUET, *embeddings(layout, UTM))
    schema = pq.read_schema(path)
    assert schema.names == ["geometry", "bbox", "row", "col", "embedding"]
    assert schema.field("embedding").type.value_type == dtype
    assert schema.field("embedding").type.list_size == len(BANDS)
    assert schema.field("geometry").type == pa.binary()
    assert schema.field("row").type == schema.field("col").type == pa.int32()
    assert [(f.name, f.type) for f in schema.field("bbox").type] == [
        (side, pa.float64()) for side in ("xmin", "ymin", "xmax", "ymax")
    ]
    group = pq.read_metadata(path).row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert {c.compression for c in columns.values()} == {"ZSTD"}
    assert columns["bbox.xmin"].is_stats_set  # by which readers skip row groups


def test_a_table_of_float16(tmp_path: Path) -> None:
    values, valid = embeddings(FLOAT16, UTM)
    path = write(tmp_path / "e.parquet", UTM, FLOAT16, GEOPARQUET, values, valid)
    frame, table = geopandas.read_parquet(path), pq.read_table(path)
    expected = values[:, frame["row"], frame["col"]].T.astype(np.float16)
    for found in (np.stack(frame["embedding"]), stacked(table["embedding"], 12)):
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, expected)


def test_a_table_of_int8_has_scales(tmp_path: Path) -> None:
    values, valid = embeddings(INT8, UTM)
    path = write(tmp_path / "e.parquet", UTM, INT8, GEOPARQUET, values, valid)
    scales = np.array(json.loads(pq.read_metadata(path).metadata[b"scales"]))
    frame, table = geopandas.read_parquet(path), pq.read_table(path)
    for found in (np.stack(frame["embedding"]), stacked(table["embedding"], 12)):
        assert found.dtype == np.int8
        assert (abs(found * scales - values[:, frame["row"], frame["col"]].T) <= 0.5001 * scales).all()


def test_a_table_without_cells(tmp_path: Path) -> None:
    values, valid = embeddings(FLOAT32, UTM)
    path = write(tmp_path / "e.parquet", UTM, FLOAT32, GEOPARQUET, values, np.zeros_like(valid))
    found = geopandas.read_parquet(path)
    assert len(found) == 0
    assert CRS.from_wkt(found.crs.to_wkt()) == UTM.crs
    assert "bbox" not in spec(path)["columns"]["geometry"]
    assert pq.read_schema(path).field("embedding").type.list_size == len(BANDS)


@pytest.mark.parametrize("side", [1, 2, 16, 64])
def test_a_hilbert_curve_goes_from_cell_to_cell(side: int) -> None:
    order = tmtool.files.geoparquet.hilbert(side)
    np.testing.assert_array_equal(np.sort(order, axis=None), np.arange(side * side))
    at = np.argwhere(np.ones((side, side)))[np.argsort(order, axis=None)]
    assert (abs(np.diff(at, axis=0)).sum(axis=1) == 1).all()


def test_a_small_box_touches_few_row_groups(tmp_path: Path) -> None:
    grid = Grid(UTM.crs, UTM.transform, (200, 330))
    layout = Layout(BANDS[:1], "float32", float("nan"))
    values, valid = embeddings(layout, grid)
    valid[64:128, 64:128] = False  # a square without cells has no group
    path = write(tmp_path / "e.parquet", grid, layout, GEOPARQUET, values, valid)
    groups = pq.read_metadata(path)
    assert groups.num_row_groups == 4 * 6 - 1
    assert max(groups.row_group(i).num_rows for i in range(groups.num_row_groups)) <= 64 * 64
    found = pq.read_table(path)
    np.testing.assert_array_equal(stacked(found["embedding"], 1), values[:, found["row"], found["col"]].T)
    (left, right), (top, bottom) = at(grid.transform, [140, 150], [70, 80])

    def touched(left: float, bottom: float, right: float, top: float) -> list[int]:
        sides = [f"bbox.{side}" for side in ("xmin", "ymin", "xmax", "ymax")]
        hit = []
        for i in range(groups.num_row_groups):
            parts = (groups.row_group(i).column(j) for j in range(groups.num_columns))
            known = {part.path_in_schema: part.statistics for part in parts if part.path_in_schema in sides}
            xmin, ymin, xmax, ymax = (known[side] for side in sides)
            if xmin.min <= right and xmax.max >= left and ymin.min <= top and ymax.max >= bottom:
                hit.append(i)
        return hit

    assert len(touched(left, bottom, right, top)) == 1
    assert len(touched(*rasterio.transform.array_bounds(*grid.shape, grid.transform))) == groups.num_row_groups
    few = geopandas.read_parquet(path, bbox=(left, bottom, right, top))
    assert {(70, 140), (79, 149)} <= {*zip(few["row"], few["col"], strict=True)} | {
        *zip(*np.nonzero(~valid), strict=True)
    }
    assert len(few) <= 12 * 12


def test_duckdb_reads_a_table(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    values, valid = embeddings(FLOAT32, UTM)
    path = write(tmp_path / "e.parquet", UTM, FLOAT32, GEOPARQUET, values, valid)
    row, col = (int(index[-1]) for index in np.nonzero(valid))
    x, y = map(float, at(UTM.transform, col + 0.5, row + 0.5))
    asked = "select row, col, embedding from read_parquet(?) where bbox.xmin < ? and bbox.xmax > ? and bbox.ymin < ? and bbox.ymax > ?"
    ((there, across, vector),) = duckdb.execute(asked, [str(path), x, x, y, y]).fetchall()
    assert (there, across) == (row, col)
    np.testing.assert_array_equal(np.float32(vector), values[:, row, col])


# GeoParquet with Major TOM's columns


def test_major_toms_columns(tmp_path: Path) -> None:
    """Names and types of `MajorTOM_Embedder` in ESA-PhiLab/Major-TOM."""
    values, valid = embeddings(FLOAT32, UTM)
    made = Provenance(
        "embed", "demo", inputs={"S2L2A": "S2B_19HCC.tif"}, details={"acquired": {"S2L2A": "2024-06-01T14:37:31"}}
    )
    about = replace(EMBEDDINGS, cells=Cells((16, 16), (16, 16), (32, 48)))
    path = write(tmp_path / "e.parquet", UTM, FLOAT32, MAJORTOM, values, valid, made.tags(), about)
    found = geopandas.read_parquet(path)
    assert list(found) == [
        *("unique_id", "embedding", "timestamp", "product_id", "grid_cell", "grid_row_u", "grid_col_r", "geometry"),
        *("centre_lat", "centre_lon", "utm_footprint", "utm_crs", "pixel_bbox"),
    ]
    assert pq.read_schema(path).names == [*found, "bbox"]
    kinds = {"grid_row_u": "int16", "grid_col_r": "int16", "centre_lat": "float32", "centre_lon": "float32"}
    assert {name: str(found[name].dtype) for name in kinds} == kinds
    assert len(found) == valid.sum() == found["unique_id"].nunique()
    assert (set(found["timestamp"]), set(found["product_id"])) == ({"2024-06-01T14:37:31"}, {"S2B_19HCC"})
    assert set(found["utm_crs"]) == {"EPSG:32719"}
    assert found.crs == "OGC:CRS84"
    there = geopandas.GeoSeries.from_wkt(found["utm_footprint"], crs=UTM.crs)
    pixels = np.stack(found["pixel_bbox"])
    cols, rows = (pixels[:, 0] - 48) // 16, (pixels[:, 1] - 32) // 16
    np.testing.assert_array_equal(pixels[:, 2:] - pixels[:, :2], 16)
    np.testing.assert_array_equal(np.stack(found["embedding"]), values[:, rows, cols].T)
    centres = geopandas.points_from_xy(*at(UTM.transform, cols + 0.5, rows + 0.5), crs=UTM.crs)
    assert there.contains(geopandas.GeoSeries(centres)).all()
    assert there.to_crs("OGC:CRS84").geom_equals_exact(found.geometry, 1e-7).all()
    np.testing.assert_allclose(found["centre_lon"], shapely.get_x(shapely.centroid(found.geometry.array)), rtol=1e-6)
    assert spec(path)["columns"]["geometry"]["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]
    look = MAJORTOM.look
    assert look is not None
    assert look(path).rows == valid.sum()


@pytest.mark.parametrize(
    ("lon", "lat", "expected"),
    [
        (0.0, 0.0, (0, 0)),
        (-1e-6, -1e-6, (-1, -1)),
        (-70.65, -33.45, (-373, -656)),
        (13.4, 52.52, (584, 90)),
        (179.999, 0.01, (0, 2003)),
        (-180.0, 0.01, (0, -2004)),
    ],
)
def test_cells_of_major_toms_grid(lon: float, lat: float, expected: tuple[int, int]) -> None:
    row, col = grid_cells(np.array([lon]), np.array([lat]))
    assert (row[0], col[0]) == expected


# Both


@pytest.mark.parametrize("format", [ZARR, GEOPARQUET], ids=["zarr", "geoparquet"])
@pytest.mark.parametrize("error", [OSError("disk full"), ProductError("no")], ids=["disk", "product"])
def test_what_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Format, error: Exception
) -> None:
    def rows(self: Work, *_: object) -> object:
        yield 0, np.zeros((12, 5, 21), np.float32), np.ones((5, 21), bool)
        raise error

    monkeypatch.setattr(Work, "rows", rows)
    with pytest.raises((ProductError, DiskError)):
        write(tmp_path / f"e{format.ending}", UTM, FLOAT32, format, *embeddings(FLOAT32, UTM))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", [ZARR, GEOPARQUET], ids=["zarr", "geoparquet"])
def test_a_product_that_lies_elsewhere_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Format
) -> None:
    monkeypatch.setattr(
        tmtool.files.zarr, "locate", lambda array, grid, nodata: locate(array, replace(grid, crs=None), nodata)
    )
    monkeypatch.setattr(
        tmtool.files.geoparquet,
        "_metadata",
        lambda *_: {"geo": json.dumps({"columns": {"geometry": {"crs": None}}})},
    )
    with pytest.raises(ProductError, match="None"):
        write(tmp_path / f"e{format.ending}", UTM, FLOAT32, format, *embeddings(FLOAT32, UTM))
    assert list(tmp_path.iterdir()) == []


def test_a_lost_cell_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tmtool.files.geoparquet, "_squares", lambda *args: iter(()))
    with pytest.raises(ProductError, match="cells, expected"):
        write(tmp_path / "e.parquet", UTM, FLOAT32, GEOPARQUET, *embeddings(FLOAT32, UTM))


@pytest.mark.parametrize("format", [ZARR, GEOPARQUET], ids=["zarr", "geoparquet"])
def test_memory_does_not_grow_with_height(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Format) -> None:
    """8000 rows of 16 MB pass through under 8 MB, in numpy's and Arrow's memory, where a chunk is of 1 MB."""
    for module, name in ((tmtool.files.zarr, "_CHUNK_BYTES"), (tmtool.files.geoparquet, "_STRIP_BYTES")):
        monkeypatch.setattr(module, name, 1 << 20)
    grid = Grid(UTM.crs, UTM.transform, (8000, 8))
    layout = Layout(tuple(map(str, range(64))), "float32", float("nan"))
    writer = ProductWriter(tmp_path / f"e{format.ending}", grid, layout, format)
    writer.create()
    strip = np.random.default_rng(1).normal(size=(64, 500, 8)).astype(np.float32)
    for row in range(0, 8000, 500):
        writer.write(row, strip, np.ones((500, 8), bool))
    before, pool = pa.default_memory_pool(), pa.system_memory_pool()  # a pool whose peak is of this test alone
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        writer.build({}, EMBEDDINGS)
        peak = tracemalloc.get_traced_memory()[1] + pool.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)
        writer.discard()
    assert peak < 8e6


def test_importing_the_formats_imports_no_library_of_theirs() -> None:
    heavy = {"zarr", "xarray", "rioxarray", "pyarrow", "pyproj", "pandas"}
    code = f"import sys, tmtool.files.zarr, tmtool.files.geoparquet; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
