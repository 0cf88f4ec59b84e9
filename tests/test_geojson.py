"""Places and texts a tile: what geopandas reads is what was said, where the tiles lie."""

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from pyproj import Geod, Transformer
from rasterio.crs import CRS

from tests.conftest import TRANSFORM
from tests.test_formats import TAGS, write
from tmtool.errors import ProductError
from tmtool.files.geojson import PLACES, TEXTS, geometry
from tmtool.files.sayings import TEXT_BYTES, place_of, place_values, text_of, text_values
from tmtool.files.writer import Layout
from tmtool.grid import Grid

UTM = Grid(CRS.from_epsg(32719), TRANSFORM * Affine.scale(192), (4, 5))
ROTATED = Grid(CRS.from_epsg(32719), Affine(1900.7, 200.1, 400_000.1, 200.3, -1900.6, 6_000_000.3), (3, 2))
SOUTH_UP = Grid(CRS.from_epsg(32733), Affine(1920, 0, 500_000, 0, 1920, 7_000_000), (2, 2))
DEGREES = Grid(CRS.from_epsg(4326), Affine(0.02, 0, 11, 0, -0.02, 48), (2, 3))
DATE_LINE = Grid(CRS.from_epsg(32601), Affine(1920, 0, 166_021 - 2.4 * 1920, 0, -1920, 50_000), (2, 5))
NOWHERE = Grid(None, Affine.scale(192), (3, 2))
GRIDS = {"utm": UTM, "rotated": ROTATED, "south-up": SOUTH_UP, "degrees": DEGREES, "nowhere": NOWHERE}
PLACE = Layout(("said", "lon", "lat"), "float64", float("nan"), ids=True)
TEXT = Layout(tuple(map(str, range(1 + TEXT_BYTES))), "uint8", 0, ids=True)
WORDS = ["An aerial view.", "", 'Snow, "ice" \\ água 雪\n']


def places(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    values = np.stack([np.ones(grid.shape), rng.uniform(-180, 180, grid.shape), rng.uniform(-90, 90, grid.shape)])
    values[:, 0, 1] = 0  # the model said no place
    valid = np.ones(grid.shape, bool)
    valid[1, 0] = False
    return values, valid


def written(path: Path, grid: Grid, said: str, container: str) -> Path:
    format = (PLACES if said == "places" else TEXTS)[container]
    if said == "places":
        return write(path.with_suffix(format.ending), grid, PLACE, format, *places(grid))
    texts = [WORDS[i % len(WORDS)] for i in range(grid.shape[0] * grid.shape[1])]
    values = np.stack([text_values(text) for text in texts], axis=-1).reshape(-1, *grid.shape)
    return write(path.with_suffix(format.ending), grid, TEXT, format, values, np.ones(grid.shape, bool))


def cells(grid: Grid) -> list[Any]:
    """Return the tiles' outlines in the raster's CRS, row by row."""
    corners = [(0, 0), (0, 1), (1, 1), (1, 0)]
    return [shapely.Polygon([grid.transform * (c + x, r + y) for y, x in corners]) for r, c in np.ndindex(*grid.shape)]


@pytest.mark.parametrize("container", ["geojson", "geoparquet"])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_places_are_read_back(tmp_path: Path, grid: Grid, container: str) -> None:
    path = written(tmp_path / "p", grid, "places", container)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    found = geopandas.read_parquet(path) if container == "geoparquet" else geopandas.read_file(path)
    values, valid = places(grid)
    rows, cols = np.nonzero(valid)
    np.testing.assert_array_equal(found["row"], rows)
    np.testing.assert_array_equal(found["col"], cols)
    said, lon, lat = values[:, valid]
    np.testing.assert_array_equal(found["lon"], np.where(said > 0, lon, np.nan))
    np.testing.assert_array_equal(found["lat"], np.where(said > 0, lat, np.nan))
    outlines = [cells(grid)[r * grid.shape[1] + c] for r, c in zip(rows, cols, strict=True)]
    if grid.crs is None:
        assert found["distance_km"].isna().all()
        assert found.geometry.isna().all() if container == "geojson" else found.crs is None
        return
    assert found.crs == (4326 if container == "geojson" else grid.crs)
    to_degrees = Transformer.from_crs(grid.crs.to_wkt(), 4326, always_xy=True).transform
    for shape, outline, away, x, y, told in zip(
        found.geometry, outlines, found["distance_km"], lon, lat, said, strict=True
    ):
        centre = to_degrees(*outline.centroid.coords[0])
        metres = Geod(ellps="WGS84").inv(x, y, *centre)[2]
        assert away == pytest.approx(metres / 1000, abs=2e-3) if told else np.isnan(away)
        expected = shapely.transform(outline, to_degrees, interleaved=False) if container == "geojson" else outline
        assert shape.is_valid
        assert shape.exterior.is_ccw
        assert shape.symmetric_difference(expected).area < 1e-3 * expected.area
    together = shapely.union_all(found.geometry)
    assert together.area == pytest.approx(sum(s.area for s in found.geometry), rel=1e-6)  # they do not overlap


@pytest.mark.parametrize("container", ["geojson", "geoparquet"])
def test_texts_are_read_back(tmp_path: Path, container: str) -> None:
    path = written(tmp_path / "t", UTM, "texts", container)
    found = geopandas.read_parquet(path) if container == "geoparquet" else geopandas.read_file(path)
    assert list(found["text"]) == [WORDS[i % 3] for i in range(20)]
    assert set(found.columns) == {"row", "col", "text", "geometry"}


@pytest.mark.parametrize("container", ["geojson", "geoparquet"])
def test_tags_are_read_back_of_whole_files(tmp_path: Path, container: str) -> None:
    path = written(tmp_path / "t", UTM, "texts", container)
    format = TEXTS[container]
    assert format.tags(path).items() >= TAGS.items()
    whole = path.read_bytes()
    for cut in (0, 2, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ProductError, match=path.name):
            format.tags(path)


def test_geojson_of_others_is_no_product(tmp_path: Path) -> None:
    path = tmp_path / "other.geojson"
    path.write_text('{"type": "FeatureCollection", "features": [\n]}\n')
    with pytest.raises(ProductError, match=r"other.geojson"):
        TEXTS["geojson"].tags(path)


def test_a_scene_without_data_has_no_features(tmp_path: Path) -> None:
    values = np.zeros((3, *UTM.shape))
    path = write(tmp_path / "p.geojson", UTM, PLACE, PLACES["geojson"], values, np.zeros(UTM.shape, bool))
    assert json.loads(path.read_text())["features"] == []


def test_the_antimeridian_cuts(tmp_path: Path) -> None:
    """Tiles on either side, and those on it in two parts, that lie within +-180 degrees and touch it."""
    found = geopandas.read_file(written(tmp_path / "p", DATE_LINE, "places", "geojson"))
    cut = found[found.geometry.geom_type == "MultiPolygon"]
    assert 0 < len(cut) < len(found)
    bounds = found.total_bounds
    assert bounds[0] == -180
    assert bounds[2] == 180
    for shape in cut.geometry:
        assert shape.is_valid
        west, east = sorted(shape.geoms, key=lambda part: -part.centroid.x)
        assert west.bounds[2] == 180
        assert east.bounds[0] == -180
        assert shape.bounds[1] == pytest.approx(min(west.bounds[1], east.bounds[1]))
    usual = found.geometry[0].area
    np.testing.assert_allclose([shape.area for shape in found.geometry], usual, rtol=1e-2)


def test_a_pole_is_within() -> None:
    angles = np.deg2rad(np.arange(0, 361, 45))
    ring = np.stack([np.rad2deg(np.arctan2(np.sin(angles), np.cos(angles))), np.full(9, -80.0)], axis=-1)
    for outline in (ring, ring[::-1]):
        shape = shapely.geometry.shape(geometry(outline))
        assert shape.is_valid
        assert shape.area == pytest.approx(360 * 10)
        assert shape.bounds == (-180, -90, 180, -80)


def test_longitudes_beyond_180_come_back() -> None:
    ring = np.array([[190.0, 1], [192, 1], [192, 2], [190, 2], [190, 1]])
    assert shapely.geometry.shape(geometry(ring)).bounds == (-170, 1, -168, 2)
    assert geometry(np.full((5, 2), np.inf)) is None


def test_sayings_come_back() -> None:
    for place in ((-70.75, -33.5), (0.0, 0.0), None):
        assert place_of(place_values(place).tolist()) == place
    for text in (*WORDS, "雪" * (TEXT_BYTES // 3)):
        assert text_of(text_values(text).tolist()) == text
    with pytest.raises(ProductError, match="a text of 4096 bytes"):
        text_values("a" * 4096)
