"""Rasters on other grids, in other units, with other codes: brought to one grid and the modality's unit as they are read."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.rpc import RPC
from rasterio.warp import reproject, transform
from scipy.ndimage import gaussian_filter

from tests.conftest import TRANSFORM
from tmtool.errors import InputError, UsageError
from tmtool.grid import Grid, Window
from tmtool.modality import MODALITIES
from tmtool.settings import Reading
from tmtool.source import Reader, Source, grid_of, inspect, masked, on_grid, units_of

GRID = Grid(CRS.from_epsg(32719), TRANSFORM, (300, 320))
NEXT_ZONE = CRS.from_epsg(32718)


def smooth(bands: int, height: int, width: int, low: float, high: float, seed: int = 0) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(bands, height, width)), (0, 3, 3))
    noise = (noise - noise.min()) / np.ptp(noise)
    values: np.ndarray = (low + (high - low) * noise).astype(np.float32)
    return values


def whole(source: Source) -> tuple[np.ndarray, np.ndarray]:
    with Reader(source) as reader:
        return reader.read(Window(0, 0, *source.grid.shape))


def brought(path: Path, modality: str, grid: Grid = GRID, **how: Any) -> Source:
    reading = Reading(**how)
    source = inspect(str(path), MODALITIES[modality], reading)
    return on_grid(source, grid, reading.resampling, reading.min_overlap, "first.tif")


def around(grid: Grid, crs: CRS, size: float, margin: float = 0) -> Grid:
    """Return a grid of another CRS or pixel size that covers one."""
    height, width = grid.shape
    corners = [grid.transform * at for at in ((0, 0), (width, 0), (width, height), (0, height))]
    xs, ys = transform(grid.crs, crs, *zip(*corners, strict=True))
    left, top = min(xs) - margin, max(ys) + margin
    shape = (round((top - min(ys) + margin) / size) + 1, round((max(xs) + margin - left) / size) + 1)
    return Grid(crs, Affine(size, 0, left, 0, -size, top), shape)


def radar(make_raster: Any, own: Grid, wedge: bool = True, **profile: Any) -> tuple[Path, np.ndarray]:
    """Write linear power of two bands with an empty wedge of zeros, as swaths have; return its path and values."""
    power = smooth(2, *own.shape, 0.01, 0.4)
    if wedge:
        rows, cols = np.indices(own.shape)
        power[:, rows > 2 * cols] = 0
    path = make_raster(power, "s1.tif", crs=own.crs, transform=own.transform, **profile)
    return path, power


# --- Warps ---


@pytest.mark.parametrize("nodata", [0.0, float("nan")])
@pytest.mark.parametrize(("size", "how"), [(20.0, "bilinear"), (4.0, "average")])
def test_a_warp_is_gdals(make_raster: Any, nodata: float, size: float, how: str) -> None:
    own = around(GRID, NEXT_ZONE, size, 200)
    path, power = radar(make_raster, own)
    power = np.where(power == 0, np.float32(nodata), power)
    with rasterio.open(path, "r+") as dst:
        dst.nodata = nodata
        dst.write(power)
    source = brought(path, "S1RTC", unit={"S1RTC": "linear"})
    assert source.grid == GRID
    assert source.brought == f"{how} from EPSG:32718, {size:g} m"
    pixels, valid = whole(source)
    expected = np.full((2, *GRID.shape), np.nan, np.float32)
    reproject(
        power, expected, src_crs=own.crs, src_transform=own.transform, src_nodata=nodata, dst_crs=GRID.crs,
        dst_transform=GRID.transform, dst_nodata=np.nan, resampling=Resampling[how], tolerance=0.01,
    )  # fmt: skip
    assert 0.3 < valid.mean() < 0.9
    assert (valid != np.isfinite(expected).all(0)).mean() < 2e-3  # blocks are approximated by themselves
    both = valid & np.isfinite(expected).all(0)
    np.testing.assert_allclose(pixels[:, both], 10 * np.log10(expected[:, both]), atol=0.05)
    assert np.abs(pixels[:, both] - 10 * np.log10(expected[:, both])).mean() < 2e-3
    assert pixels[:, valid].min() > 10 * np.log10(0.009)  # empty pixels did not bleed into full ones


def test_windows_of_a_warp_are_parts_of_the_whole(make_raster: Any) -> None:
    path, _ = radar(make_raster, around(GRID, NEXT_ZONE, 20, 200), nodata=0)
    source = brought(path, "S1RTC", unit={"S1RTC": "linear"})
    pixels, valid = whole(source)
    with Reader(source) as reader:
        for window in (Window(0, 0, 64, 64), Window(100, 77, 130, 111), Window(250, 300, 50, 20)):
            found, ok = reader.read(window)
            at = (slice(window.row, window.row + window.height), slice(window.col, window.col + window.width))
            np.testing.assert_array_equal(found, pixels[:, *at])
            np.testing.assert_array_equal(ok, valid[at])


@pytest.mark.parametrize("kind", ["nodata", "mask", "alpha", "none"])
def test_a_shift_by_whole_pixels_keeps_values(make_raster: Any, kind: str) -> None:
    values = smooth(1, 300, 320, 100, 900)
    empty = np.zeros((300, 320), bool)
    empty[50:90, 60:140] = kind != "none"
    if kind == "alpha":
        values = np.concatenate([values, np.where(empty, 0, 255)[None].astype(np.float32)])
    if kind == "nodata":
        values[:, empty] = -5
    path = make_raster(
        values, "dem.tif", transform=TRANSFORM * Affine.translation(-3, 7), nodata=-5 if kind == "nodata" else None
    )
    with rasterio.open(path, "r+") as dst:
        if kind == "mask":
            dst.write_mask(~empty)
        if kind == "alpha":
            dst.colorinterp = [*dst.colorinterp[:-1], rasterio.enums.ColorInterp.alpha]
    source = brought(path, "DEM")
    assert source.brought == "shifted by whole pixels"
    pixels, valid = whole(source)
    np.testing.assert_array_equal(valid[7:, :317], ~empty[:-7, 3:])
    assert not valid[:7].any()
    assert not valid[:, 317:].any()
    np.testing.assert_array_equal(pixels[:, 7:, :317][:, ~empty[:-7, 3:]], values[:1, :-7, 3:][:, ~empty[:-7, 3:]])


@pytest.mark.parametrize("kind", ["mask", "alpha", "none"])
def test_validity_is_warped_and_does_not_bleed(make_raster: Any, kind: str) -> None:
    own = around(GRID, NEXT_ZONE, 12, -400)
    values = np.full((1, *own.shape), 500, np.int16)
    empty = np.zeros(own.shape, bool)
    empty[:60] = kind != "none"
    values[:, empty] = 9000 if kind != "none" else 500
    if kind == "alpha":
        values = np.concatenate([values, np.where(empty, 0, 255)[None].astype(np.int16)])
    path = make_raster(values, "dem.tif", crs=own.crs, transform=own.transform)
    with rasterio.open(path, "r+") as dst:
        if kind == "mask":
            dst.write_mask(~empty)
        if kind == "alpha":
            dst.colorinterp = [*dst.colorinterp[:-1], rasterio.enums.ColorInterp.alpha]
    pixels, valid = whole(brought(path, "DEM"))
    assert 0.1 < valid.mean() < 0.9
    assert set(np.unique(pixels[:, valid])) == {500}


def test_classes_are_never_mixed(make_raster: Any) -> None:
    own = around(GRID, NEXT_ZONE, 10, 100)
    values = np.random.default_rng(0).choice([2, 9], (1, *own.shape)).astype(np.uint8)
    path = make_raster(values, "lulc.tif", crs=own.crs, transform=own.transform)
    source = brought(path, "LULC", resampling="cubic")
    assert source.brought.startswith("nearest")
    pixels, valid = whole(source)
    assert set(np.unique(pixels[:, valid])) == {2, 9}


def test_points_of_a_swath_place_it(make_raster: Any) -> None:
    own = Grid(CRS.from_epsg(32719), TRANSFORM * Affine.translation(-50, -50), (400, 420))
    values = smooth(1, *own.shape, 100, 900)
    path = make_raster(values, "dem.tif", transform=Affine.identity(), crs=None)
    corners = [(0, 0), (0, 420), (400, 0), (400, 420)]
    with rasterio.open(path, "r+") as dst:
        points = [GroundControlPoint(row, col, *(own.transform * (col, row))) for row, col in corners]
        dst.gcps = (points, own.crs)
    with pytest.raises(InputError, match="ground control points only.*--grid utm@10m"):
        inspect(str(path), MODALITIES["DEM"])
    pixels, valid = whole(_with_grid(path))
    assert valid.all()
    np.testing.assert_allclose(pixels, values[:, 50:350, 50:370], atol=1)


def _with_grid(path: Path) -> Source:
    source = inspect(str(path), MODALITIES["DEM"], Reading(grid="utm@10m"))
    return on_grid(source, GRID, "auto", 0.05, "--grid")


def test_rational_polynomials_place_it(tmp_path: Path) -> None:
    lon, lat = transform(GRID.crs, "EPSG:4326", *([v] for v in GRID.transform * (160, 150)))
    values = smooth(1, 600, 640, 100, 900)
    path = tmp_path / "dem.tif"
    one, x, y = ([1.0, *[0.0] * 19], [0.0, 1.0, *[0.0] * 18], [0.0, 0.0, -1.0, *[0.0] * 17])
    degrees = {"lat_off": lat[0], "lat_scale": 0.0270, "long_off": lon[0], "long_scale": 0.0345}
    with rasterio.open(path, "w", driver="GTiff", count=1, height=600, width=640, dtype="float32") as dst:
        dst.write(values)
        dst.rpcs = RPC(
            height_off=0, height_scale=500, line_den_coeff=one, line_num_coeff=y, line_off=300, line_scale=300,
            samp_den_coeff=one, samp_num_coeff=x, samp_off=320, samp_scale=320, err_bias=None, err_rand=None, **degrees,
        )  # fmt: skip
    with pytest.raises(InputError, match="RPCs only.*--grid utm@10m"):
        inspect(str(path), MODALITIES["DEM"])
    pixels, valid = whole(_with_grid(path))
    assert valid.all()
    assert abs(pixels[0, 150, 160] - values[0, 300, 320]) < 60  # half a pixel apart


# --- Which grid ---


def test_the_grid_that_is_asked_for(make_raster: Any, tmp_path: Path) -> None:
    s2 = make_raster(smooth(12, 60, 70, 500, 3000).astype(np.uint16), "s2.tif", nodata=0)
    dem = make_raster(
        smooth(1, 90, 100, 100, 900), "dem.tif", crs="EPSG:4326", transform=Affine(1e-4, 0, -70.07, 0, -1e-4, -33.43)
    )
    sources = {"S2L2A": inspect(str(s2)), "DEM": inspect(str(dem), MODALITIES["DEM"])}
    assert grid_of(sources, "") == grid_of(sources, "s2l2a") == grid_of(sources, str(s2)) == sources["S2L2A"].grid
    assert grid_of(sources, "DEM") == sources["DEM"].grid
    found = grid_of({"DEM": sources["DEM"]}, "utm@10m")
    assert found.crs == CRS.from_epsg(32719)
    assert (found.transform.a, found.transform.e, found.transform.c % 10, found.transform.f % 10) == (10, -10, 0, 0)
    assert found.shape == (101, 95) or abs(found.shape[0] - 101) <= 2
    assert grid_of({"DEM": sources["DEM"]}, "EPSG:3857@20m").crs == CRS.from_epsg(3857)
    same = grid_of({"S2L2A": sources["S2L2A"]}, "EPSG:32719@10m")
    assert (same.transform, same.shape) == (sources["S2L2A"].grid.transform, (60, 70))
    for asked, text in (
        ("LULC", "no input is LULC; inputs are S2L2A, DEM"),
        ("EPSG:0@10m", "EPSG:0 is no CRS"),
        ("utm@0m", "the pixel size must be above 0"),
        ("nowhere.tif", "give a modality, a raster, or a CRS and a pixel size"),
    ):
        with pytest.raises(UsageError, match=text):
            grid_of(sources, asked)
    assert tmp_path.exists()


def test_sources_have_to_overlap(make_raster: Any) -> None:
    far = make_raster(smooth(1, 50, 50, 1, 900), "far.tif", transform=TRANSFORM * Affine.translation(1000, 0))
    with pytest.raises(
        InputError, match=r"far.tif: does not overlap the grid of first.tif. It lies in .* east, .* north, the grid"
    ):
        brought(far, "DEM")
    near = make_raster(smooth(1, 50, 50, 1, 900), "near.tif", transform=TRANSFORM * Affine.translation(300, 290))
    with pytest.raises(
        InputError, match=r"covers 0.21 % of the grid of first.tif, expected at least 5 % \(--min-overlap\)"
    ):
        brought(near, "DEM")
    assert brought(near, "DEM", min_overlap=0.001).brought == "shifted by whole pixels"


def test_what_has_no_place_cannot_be_brought(make_raster: Any) -> None:
    nowhere = make_raster(smooth(1, 50, 50, 1, 900), "nowhere.tif", crs=None)
    with pytest.raises(InputError, match=r"lies on another grid than first.tif: no CRS.*gdal_edit.py -a_srs"):
        brought(nowhere, "DEM")


def test_other_grids_from_the_command_line(tmtool: Any, make_raster: Any, identity: str, tmp_path: Path) -> None:
    s2 = make_raster(smooth(12, 96, 128, 500, 3000).astype(np.uint16), "s2.tif", nodata=0)
    own = around(replace(GRID, shape=(96, 128)), NEXT_ZONE, 20, 100)
    s1, _ = radar(make_raster, own, wedge=False, nodata=0)
    inputs = ("--in", f"S2L2A={s2}", "--in", f"S1RTC={s1}", "--model", identity, "-o", tmp_path / "out", "--json")
    result = tmtool("embed", *inputs)
    assert result.exit_code == 2
    assert "look like linear power; TerraMind takes dB. Say --unit S1RTC=linear" in result.stderr
    result = tmtool("embed", *inputs, "--unit", "S1RTC=linear")
    assert result.exit_code == 0, result.stderr
    assert "s1.tif: read bilinear from EPSG:32718, 20 m" in result.stderr
    with rasterio.open(json.loads(result.stdout)["products"]["embed"]) as src:
        assert (src.crs, src.transform) == (GRID.crs, TRANSFORM * Affine.scale(16))
        made = json.loads(src.tags()["TMTOOL_PROVENANCE"])
    assert made["read"] == {"S1RTC": {"warped": "bilinear from EPSG:32718, 20 m", "unit": "linear, by --unit"}}
    result = tmtool("embed", *inputs, "--unit", "S1RTC=linear", "--grid", "S1RTC", "--stale", "redo")
    assert result.exit_code == 0, result.stderr
    with rasterio.open(json.loads(result.stdout)["products"]["embed"]) as src:
        assert (src.crs, src.transform.a) == (NEXT_ZONE, 320)


def test_generate_from_both(tmtool: Any, make_raster: Any, tmp_path: Path) -> None:
    s2 = make_raster(smooth(12, 96, 128, 500, 3000).astype(np.uint16), "s2.tif", nodata=0)
    s1, _ = radar(make_raster, around(replace(GRID, shape=(96, 128)), NEXT_ZONE, 20, 100), nodata=0)
    args = ("--in", f"S2L2A={s2}", "--in", f"S1RTC={s1}", "--unit", "S1RTC=linear", "--model", "demo", "--timesteps", 2)
    result = tmtool("generate", *args, "--out", "LULC,NDVI", "-o", tmp_path / "out", "--crop", 64, "--stride", 32)
    assert result.exit_code == 0, result.stderr
    for path in result.stdout.split():
        with rasterio.open(path) as src:
            assert (src.crs, src.transform) == (GRID.crs, TRANSFORM)
            assert 0.2 < (src.read_masks(1) > 0).mean() < 0.95  # what radar does not cover


def test_a_scene_in_degrees_is_brought_to_metres(tmtool: Any, make_raster: Any, identity: str, tmp_path: Path) -> None:
    dem = make_raster(
        smooth(1, 90, 100, 100, 900), "dem.tif", crs="EPSG:4326", transform=Affine(1e-4, 0, -70.07, 0, -1e-4, -33.43)
    )
    args = ("embed", dem, "--in", "DEM", "--model", identity, "-o", tmp_path / "out")
    assert "--grid utm@10m brings them to that" not in tmtool(*args, "--dry-run").stderr  # they are near 10 m
    result = tmtool(*args, "--grid", "utm@10m")
    assert result.exit_code == 0, result.stderr
    with rasterio.open(result.stdout.strip()) as src:
        assert (src.crs, src.transform.a) == (CRS.from_epsg(32719), 160)
        assert src.transform.c % 10 == 0


# --- Units, codes, masks ---


def test_units_are_converted_as_they_are_read(make_raster: Any) -> None:
    reflectance = smooth(12, 40, 50, 0.02, 0.4)
    pixels, _ = whole(inspect(str(make_raster(reflectance)), None, Reading(unit={"S2L2A": "reflectance"})))
    np.testing.assert_allclose(pixels, reflectance * 10_000, rtol=1e-6)
    feet = smooth(1, 40, 50, 300, 3000)
    pixels, _ = whole(inspect(str(make_raster(feet, "dem.tif")), MODALITIES["DEM"], Reading(unit={"DEM": "feet"})))
    np.testing.assert_allclose(pixels, feet * 0.3048, rtol=1e-6)
    with rasterio.open(make_raster(feet, "said.tif"), "r+") as dst:
        dst.units = ("ft",)
    said = inspect(str(dst.name), MODALITIES["DEM"])
    assert said.unit_why == "feet, as its bands say"
    assert inspect(str(dst.name), MODALITIES["DEM"], Reading(unit={"DEM": "m"})).gain == 1


def test_power_of_zero_or_less_is_no_data(make_raster: Any) -> None:
    power = smooth(2, 40, 50, 0.01, 0.4)
    power[1, 3, 4], power[0, 5, 6] = 0, -0.1
    pixels, valid = whole(inspect(str(make_raster(power)), MODALITIES["S1GRD"], Reading(unit={"S1GRD": "linear"})))
    assert sorted(zip(*np.nonzero(~valid), strict=True)) == [(3, 4), (5, 6)]
    np.testing.assert_allclose(pixels[:, valid], 10 * np.log10(power[:, valid]), atol=1e-5)


def test_units_that_a_modality_has_not() -> None:
    assert units_of(["s1grd=Linear", "DEM=feet"]) == {"S1GRD": "linear", "DEM": "feet"}
    for text, error in (
        ("S1GRD=watts", "a raster of it may be in db or linear"),
        ("S1GRD", "say --unit S1GRD=UNIT"),
        ("NDVI=x", "nothing but 1"),
        ("X=1", "Unknown modality"),
    ):
        with pytest.raises(UsageError, match=error):
            units_of([text])


@pytest.mark.parametrize(
    ("legend", "codes", "classes"),
    [
        ("esri", [1, 2, 4, 5, 7, 8, 9, 10, 11, 0], [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]),
        ("worldcover", [10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100], [2, 9, 9, 4, 5, 6, 7, 1, 3, 3, 9]),
        ("dynamicworld", [0, 1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 9, 3, 4, 9, 5, 6, 7]),
    ],
)
def test_codes_of_other_legends(make_raster: Any, legend: Any, codes: list[int], classes: list[int]) -> None:
    values = np.resize(np.array(codes, np.uint8), (1, 40, 50))
    values[0, 0, 0] = 77
    pixels, valid = whole(inspect(str(make_raster(values)), MODALITIES["LULC"], Reading(lulc_codes=legend)))
    assert not valid[0, 0]
    assert valid.sum() == 1999
    np.testing.assert_array_equal(pixels[:, valid], np.resize(classes, (1, 40, 50))[:, valid])


def test_masks_leave_pixels_out(make_raster: Any, tmp_path: Path) -> None:
    path = make_raster(smooth(1, 300, 320, 1, 900), "dem.tif")
    cloud = np.zeros((1, 75, 80), np.uint8)
    cloud[0, 10:20, 30:50] = 1
    clouds = make_raster(cloud, "clouds.tif", transform=TRANSFORM * Affine.scale(4))
    west, north = TRANSFORM * (10, 200)
    ring = [[west, north], [west + 300, north], [west + 300, north - 500], [west, north - 500], [west, north]]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32719"}}
    shapes = tmp_path / "lake.geojson"
    shapes.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": [feature]}))
    source = inspect(str(path), MODALITIES["DEM"])
    _, valid = whole(masked(source, source.grid, [str(clouds), str(shapes)]))
    expected = np.ones((300, 320), bool)
    expected[40:80, 120:200] = False
    expected[200:250, 10:40] = False
    np.testing.assert_array_equal(valid, expected)
    s2 = inspect(str(make_raster(smooth(12, 30, 30, 500, 3000).astype(np.uint16), "s2.tif")))
    with pytest.raises(InputError, match="--mask clouds: it is a plain raster, and it comes without a mask"):
        masked(s2, s2.grid, ["clouds"])
    with pytest.raises(UsageError, match=r"--mask fog: give clouds, shadow, cirrus, snow, a raster or a vector file"):
        masked(s2, s2.grid, ["fog"])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--mask", "clouds,snow"), "--mask clouds,snow: no input is a Sentinel-2 product; inputs are DEM"),
        (("--unit", "S1GRD=linear"), "--unit S1GRD=linear: no input is S1GRD; inputs are DEM"),
        (("--lulc-codes", "esri"), "--lulc-codes esri: no input is LULC"),
        (("--unit", "DEM=miles"), "a raster of it may be in m or feet"),
        (("--grid", "utm@1.2.3m"), "--grid utm@1.2.3m: give a modality, a raster, or a CRS and a pixel size"),
        (("--grid", "EPSG:4326@10m"), "EPSG:4326 is in degrees; give the pixel size in them"),
        (("--grid", "utm@x"), "--grid utm@x: give a modality, a raster, or a CRS and a pixel size"),
        (("--grid", "S2L2A"), "no input is S2L2A; inputs are DEM"),
        (("--min-overlap", "2"), "--min-overlap"),
        (("--resampling", "lanczos"), "--resampling"),
    ],
)
def test_what_is_asked_of_nothing(
    tmtool: Any, make_raster: Any, identity: str, tmp_path: Path, options: tuple[str, str], text: str
) -> None:
    path = make_raster(smooth(1, 40, 50, 100, 900), "dem.tif")
    result = tmtool("embed", path, "--in", "DEM", "--model", identity, "-o", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert text in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()
