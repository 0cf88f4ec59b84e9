"""`tmtool embed` from the command line: grids, layers, merging, several inputs, dtypes, formats, pooling, messages."""

import json
import re
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import xarray
from affine import Affine
from rasterio.warp import transform
from rio_cogeo.cogeo import cog_validate

from tests.conftest import TRANSFORM
from tests.test_tokens import SKEWED, cells, dem
from tmtool.grid import Tile
from tmtool.modality import MODALITIES
from tmtool.source import centres, inspect


def read(path: Path) -> tuple[np.ndarray, Any]:
    with rasterio.open(path) as src:
        return src.read(), src.profile | {"bounds": src.bounds, "tags": src.tags(), "scales": src.scales}


@pytest.fixture
def embed(tmtool: Any, identity: str, tmp_path: Path) -> Any:
    """Run `tmtool embed` with the model of known answers; returns the result, which must be good."""

    def run(*args: object, out: str = "out") -> Any:
        result = tmtool("embed", *args, "--model", identity, "-o", tmp_path / out)
        assert result.exit_code == 0, result.stderr
        return result

    return run


@pytest.mark.parametrize("shape", [(511, 237), (100, 100), (256, 400), (1, 50), (300, 700)])
@pytest.mark.parametrize("transform", [TRANSFORM, SKEWED])
def test_embeddings_lie_on_the_patch_grid(
    embed: Any, make_raster: Any, tmp_path: Path, shape: tuple[int, int], transform: Affine
) -> None:
    values = dem(*shape)
    result = embed(make_raster(values, transform=transform), "--in", "DEM")
    path = tmp_path / "out" / "scene_embed.tif"
    assert result.stdout.split() == [str(path)]
    vectors, profile = read(path)
    expected = cells(values[0])[None] * np.arange(1, 5)[:, None, None] + 5
    expected[-1] = 1005
    np.testing.assert_allclose(vectors, expected, rtol=1e-5)
    assert profile["dtype"] == "float32"
    assert np.isnan(profile["nodata"])
    a, b, c, d, e, f = transform[:6]
    assert profile["transform"] == Affine(a * 16, b * 16, c, d * 16, e * 16, f)
    assert cog_validate(path, strict=True, quiet=True)[0]


def test_one_product_a_layer_and_modality(embed: Any, make_raster: Any, tmp_path: Path) -> None:
    elevation, radar = dem(300, 300), np.random.default_rng(1).normal(-12, 3, (2, 300, 300)).astype(np.float32)
    inputs = ("--in", f"DEM={make_raster(elevation, 'dem.tif')}", "--in", f"S1GRD={make_raster(radar, 's1.tif')}")
    result = embed(*inputs, "--layer", "2,-1", "--merge", "dict")
    names = [f"dem_embed_layer{n}_{m}.tif" for n in (2, 5) for m in ("DEM", "S1GRD")]
    assert [Path(line).name for line in result.stdout.split()] == names
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(names)
    vectors, _ = read(tmp_path / "out" / names[1])
    np.testing.assert_allclose(vectors[0], cells(radar[0]) + 2, rtol=1e-4)
    embed(*inputs, out="mean")
    vectors, profile = read(tmp_path / "mean" / "dem_embed.tif")
    np.testing.assert_allclose(vectors[0], (cells(radar[0]) + cells(elevation[0])) / 2 + 5, rtol=1e-4)
    made = json.loads(profile["tags"]["TMTOOL_PROVENANCE"])
    assert made["inputs"] == {"DEM": "dem.tif", "S1GRD": "s1.tif"}
    embed(*inputs, "--merge", "concat", out="concat")
    assert read(tmp_path / "concat" / "dem_embed.tif")[1]["count"] == 8


def test_a_pixel_needs_all_its_inputs(embed: Any, make_raster: Any, tmp_path: Path) -> None:
    elevation, radar = dem(64, 64), np.full((2, 64, 64), -12, np.float32) + np.arange(64, dtype=np.float32) / 10
    elevation[0, :16, :16] = -9999
    radar[1, 16:32, 16:32] = np.nan
    paths = make_raster(elevation, "dem.tif", nodata=-9999), make_raster(radar, "s1.tif")
    embed("--in", f"DEM={paths[0]}", "--in", f"S1GRD={paths[1]}")
    gone = np.isnan(read(tmp_path / "out" / "dem_embed.tif")[0][0])
    expected = np.zeros((4, 4), bool)
    expected[0, 0] = expected[1, 1] = True
    np.testing.assert_array_equal(gone, expected)


def test_subsets_of_bands_are_taken_by_name_or_place(embed: Any, make_raster: Any, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(1, 3000, (13, 64, 64)).astype(np.int16)
    whole = make_raster(values, "whole.tif")
    three = make_raster(values[[3, 2, 1]], "three.tif")
    named = make_raster(values[[1, 2, 3]], "named.tif", names=["BLUE", "B03", "RED"])
    for path in (whole, three, named):
        embed(path, "--bands", "S2L1C=RED,GREEN,BLUE")
        vectors, profile = read(tmp_path / "out" / f"{path.stem}_embed.tif")
        np.testing.assert_allclose(vectors[0], cells(values[3]) + 5, rtol=1e-5)
        assert json.loads(profile["tags"]["TMTOOL_PROVENANCE"])["bands"] == {"S2L1C": ["B04", "B03", "B02"]}


def test_unit_length(embed: Any, make_raster: Any, tmp_path: Path) -> None:
    values = dem(300, 300)
    values[0, :64, :64] = -9999
    path = make_raster(values, nodata=-9999)
    embed(path, "--in", "DEM", "--normalize", "l2")
    unit, _ = read(tmp_path / "out" / "scene_embed.tif")
    valid = ~np.isnan(unit[0])
    np.testing.assert_allclose(np.linalg.norm(unit[:, valid], axis=0), 1, rtol=1e-6)
    embed(path, "--in", "DEM", "--normalize", "l2", "--dtype", "int8", out="int8")
    codes, profile = read(tmp_path / "int8" / "scene_embed.tif")
    assert profile["dtype"] == "int8"
    assert profile["nodata"] == -128
    np.testing.assert_array_equal(codes[0] == -128, ~valid)
    decoded = np.sign(codes) * (codes.astype(float) / 127.5) ** 2
    np.testing.assert_allclose(decoded[:, valid], unit[:, valid], atol=0.008)


def test_int8_with_a_scale_a_band(embed: Any, make_raster: Any, tmp_path: Path) -> None:
    values = dem(300, 300)
    values[0, :64, :64] = -9999
    path = make_raster(values, nodata=-9999)
    embed(path, "--in", "DEM")
    plain, _ = read(tmp_path / "out" / "scene_embed.tif")
    embed(path, "--in", "DEM", "--dtype", "int8", out="int8")
    codes, profile = read(tmp_path / "int8" / "scene_embed.tif")
    valid, scales = ~np.isnan(plain[0]), np.array(profile["scales"])
    np.testing.assert_allclose(scales, np.nanmax(abs(plain), axis=(1, 2)) / 127, rtol=1e-6)
    np.testing.assert_array_equal(codes[0] == -128, ~valid)
    error = (codes * scales[:, None, None] - plain)[:, valid]
    assert (abs(error) <= 0.501 * scales[:, None]).all()
    with rasterio.open(tmp_path / "int8" / "scene_embed.tif") as src:
        assert src.overviews(1) == []
        assert src.descriptions[3] == "0003"


def test_float16(embed: Any, make_raster: Any, tmp_path: Path) -> None:
    path = make_raster(dem(300, 300))
    embed(path, "--in", "DEM")
    embed(path, "--in", "DEM", "--dtype", "float16", out="half")
    plain, half = (read(tmp_path / out / "scene_embed.tif")[0] for out in ("out", "half"))
    np.testing.assert_array_equal(half, plain.astype(np.float16).astype(np.float32))
    with rasterio.open(tmp_path / "half" / "scene_embed.tif") as src:
        assert src.tags(1, ns="IMAGE_STRUCTURE")["NBITS"] == "16"


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_zarr_and_geoparquet_hold_the_same(embed: Any, make_raster: Any, tmp_path: Path, dtype: str) -> None:
    values = dem(300, 300)
    values[0, :64, :64] = -9999
    path = make_raster(values, nodata=-9999)
    for name in ("cog", "zarr", "geoparquet"):
        embed(path, "--in", "DEM", "--normalize", "l2", "--dtype", dtype, "--format", name)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "scene_embed.parquet", "scene_embed.tif", "scene_embed.zarr"
    ]  # fmt: skip
    vectors, profile = read(tmp_path / "out" / "scene_embed.tif")
    store = xarray.open_zarr(tmp_path / "out" / "scene_embed.zarr", mask_and_scale=False)
    assert store.rio.crs == profile["crs"]
    assert store.rio.transform() == profile["transform"]
    np.testing.assert_array_equal(store["embedding"].values.astype(vectors.dtype), vectors)
    assert json.loads(store.attrs["TMTOOL_PROVENANCE"])["task"] == "embed"
    table = geopandas.read_parquet(tmp_path / "out" / "scene_embed.parquet")
    assert table.crs == profile["crs"]
    assert len(table) == 19 * 19 - 16
    row = table[(table.row == 7) & (table.col == 9)].iloc[0]
    np.testing.assert_array_equal(np.asarray(row.embedding, vectors.dtype), vectors[:, 7, 9])
    left, top = profile["transform"] * (9, 7)
    assert row.geometry.bounds == (left, top - 160, left + 160, top)


def test_one_vector_a_scene(embed: Any, make_raster: Any, tmp_path: Path) -> None:
    values = dem(500, 300)
    values[0, :64, :64] = -9999
    path = make_raster(values, nodata=-9999)
    embed(path, "--in", "DEM")
    embed(path, "--in", "DEM", "--pool", "scene", out="scene")
    patches, _ = read(tmp_path / "out" / "scene_embed.tif")
    vector, profile = read(tmp_path / "scene" / "scene_embed.tif")
    assert vector.shape == (4, 1, 1)
    np.testing.assert_allclose(vector[:, 0, 0], np.nanmean(patches, axis=(1, 2)), rtol=1e-5)
    with rasterio.open(path) as src:
        assert profile["bounds"] == src.bounds


@pytest.mark.parametrize(("shape", "counts"), [((500, 300), (3, 2)), ((224, 200), (1, 1)), ((256, 257), (2, 2))])
def test_one_vector_a_tile(
    embed: Any, make_raster: Any, tmp_path: Path, shape: tuple[int, int], counts: tuple[int, int]
) -> None:
    values = dem(*shape)
    values[0, :64, :64] = -9999
    embed(make_raster(values, nodata=-9999), "--in", "DEM", "--pool", "tile")
    vectors, profile = read(tmp_path / "out" / "scene_embed.tif")
    single = counts == (1, 1)
    side = 224 if single else 192
    assert vectors.shape == (4, *counts)
    assert profile["transform"] == TRANSFORM * Affine.scale(side)
    filled = np.where(values[0] == -9999, 670.665, values[0]).astype(np.float32)
    kept = cells(filled)[: 14 if single else 224 // 16, : 14 if single else 224 // 16]
    seen = cells((values[0] != -9999).astype(np.float32))[: kept.shape[0], : kept.shape[1]] > 0
    np.testing.assert_allclose(vectors[0, 0, 0], kept[seen].mean() + 5, rtol=1e-5)


def test_all_nodata(embed: Any, make_raster: Any, tmp_path: Path) -> None:
    path = make_raster(np.full((1, 300, 300), -9999, np.int16), nodata=-9999)
    for pool in ("patch", "tile", "scene"):
        assert "all nodata" in embed(path, "--in", "DEM", "--pool", pool, out=pool).stderr
        assert np.isnan(read(tmp_path / pool / "scene_embed.tif")[0]).all()
    embed(path, "--in", "DEM", "--format", "geoparquet", out="table")
    assert len(geopandas.read_parquet(tmp_path / "table" / "scene_embed.parquet")) == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--layer", "9"), "has layers 0 to 5"),
        (("--layer", "5,-1"), "names the same layer twice"),
        (("--layer", "top"), "give numbers"),
        (("--delta", 8), "multiples of 16"),
        (("--tim", "LULC", "--merge", "dict"), "would not appear"),
        (("--tim", "LULC", "--bands", "DEM=DEM"), "leave out --bands"),
        (("--tim", "RGB"), "input-only"),
        (("--bands", "S2L1C=BLUE,PINK"), "S2L1C has no band PINK"),
        (("--bands", "LULC=class"), "is taken as tokens"),
        (("--bands", "BLUE"), "say of which modality"),
        (("--checkpoint", "none.ckpt"), "none.ckpt: no such file"),
        (("--merge", "sum"), "Invalid value|is not one of"),
        (("--in", "DEM=x.tif"), "names the rasters of one scene"),
    ],
)
def test_what_cannot_work_is_refused(
    tmtool: Any, make_raster: Any, identity: str, tmp_path: Path, args: tuple[Any, ...], message: str
) -> None:
    path = make_raster(dem(64, 64))
    result = tmtool(
        "embed", path, *(() if "--in" in args else ("--in", "DEM")), "--model", identity, "-o", tmp_path, *args
    )
    assert result.exit_code == 2
    assert re.search(message, re.sub(r"\s+", " ", result.stderr)), result.stderr


@pytest.mark.parametrize("change", ["shift", "size", "crs"])
@pytest.mark.parametrize("command", [("embed",), ("generate", "--out", "LULC")])
def test_inputs_on_different_grids_are_brought_to_the_first(
    tmtool: Any, make_raster: Any, identity: str, tmp_path: Path, change: str, command: tuple[str, ...]
) -> None:
    first = make_raster(dem(64, 64), "dem.tif")
    kwargs: dict[str, Any] = {
        "shift": {"transform": TRANSFORM * Affine.translation(0.5, 0)},
        "crs": {"crs": "EPSG:32718"},
    }
    size = 65 if change == "size" else 64
    radar = np.random.default_rng(1).normal(-12, 3, (2, size, 64)).astype(np.float32)
    second = make_raster(radar, "s1.tif", **kwargs.get(change, {}))
    result = tmtool(
        *command, "--in", f"DEM={first}", "--in", f"S1GRD={second}", "--model", identity, "-o", tmp_path / "out"
    )
    if change == "crs":  # a zone away
        assert result.exit_code == 2
        assert f"{second}: does not overlap the grid of {first}" in result.stderr
        return
    assert result.exit_code == 0, result.stderr
    how = {"shift": "bilinear from EPSG:32719, 10 m", "size": "shifted by whole pixels"}
    assert f"{second}: read {how[change]}" in result.stderr
    with rasterio.open(result.stdout.split()[0]) as src:
        assert src.transform * (0, 0) == TRANSFORM * (0, 0)


def test_coordinates_need_a_crs(tmtool: Any, make_raster: Any, identity: str, tmp_path: Path) -> None:
    path = make_raster(dem(64, 64), crs=None)
    result = tmtool("embed", path, "--in", "DEM", "--coords", "--model", identity, "-o", tmp_path)
    assert result.exit_code == 2
    assert "has no CRS" in result.stderr
    result = tmtool("embed", path, "--in", "DEM", "--coords", "--model", "demo", "-o", tmp_path)
    assert "takes no coordinates" in result.stderr


def test_a_tiles_centre_is_told_to_the_model(make_raster: Any) -> None:
    grid = inspect(str(make_raster(dem(300, 300))), MODALITIES["DEM"]).grid
    lon, lat = centres(grid)(Tile(0, 0, 0, -16, -16, 256))
    x, y = 399_960 + 10 * 112, 6_300_040 - 10 * 112
    (a,), (b,) = transform("EPSG:32719", "EPSG:4326", [x], [y])
    assert (lon, lat) == pytest.approx((a, b))
    assert -71 < lon < -69
    assert -34 < lat < -33


def test_real_chips_of_three_modalities(tmtool: Any, examples: Path, narrow_terramind: Path, tmp_path: Path) -> None:
    chip = "38D_378R_2_3.tif"
    inputs = [a for m in ("S2L2A", "S1RTC", "DEM") for a in ("--in", f"{m}={examples / m / chip}")]
    run = ("--model", "tiny", "--weights", narrow_terramind, "-o", tmp_path)
    result = tmtool("embed", *inputs, "--coords", "--tim", "LULC", *run)
    assert result.exit_code == 0, result.stderr
    vectors, profile = read(tmp_path / "38D_378R_2_3_embed.tif")
    assert vectors.shape == (64, 14, 14)
    assert np.isfinite(vectors).all()
    with rasterio.open(examples / "S2L2A" / chip) as src:
        assert profile["bounds"] == src.bounds
    result = tmtool("generate", *inputs, "--out", "LULC", *run)
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "38D_378R_2_3_LULC.tif").exists()
