"""The functions over xarray: the commands' values bit for bit, in memory and lazily; where they lie; what they refuse."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import rasterio
import rioxarray
import xarray as xr
from affine import Affine

import tmtool as package
from tests.conftest import ROOT, TRANSFORM
from tests.simple_models import FAILURES
from tmtool import api, cli
from tmtool.errors import InputError, ProductError, UsageError
from tmtool.modality import LULC_CLASSES, S2_BANDS
from tmtool.scene import datasets
from tmtool.tiles.plan import TilePlan, Tiling

TILES = {"crop": 64, "stride": 32, "delta": 16}
ARGS = ("--crop", 64, "--stride", 32, "--delta", 16)
SKEWED = Affine(10, 1.5, 399_963.3, -1.5, -10, 6_300_041.7)
TASKS: dict[str, tuple[Any, ...]] = {
    "generate": ({"out": ["S1GRD", "LULC"]}, "--out", "S1GRD,LULC"),
    "tokenize": ({},),
    "reconstruct": ({},),
    "embed": ({"layer": [1, -1]}, "--layer", "1,-1"),
}


def dn(height: int = 210, width: int = 173, bands: int = 12) -> np.ndarray:
    """Sentinel-2 as it comes, with holes: a whole tile and a corner, and single pixels of single bands."""
    rng = np.random.default_rng(height * width)
    values = rng.integers(1, 3000, (bands, height, width)).astype(np.int16)
    values[:, 60:140, 40:130] = 0
    values[:, :9, :30] = 0
    values[bands // 3, rng.random((height, width)) < 0.01] = 0
    return values


def products(folder: Path) -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
    """What the command wrote: values and profile by the product's suffix."""
    found = {}
    for path in folder.glob("*.tif"):
        with rasterio.open(path) as src:
            found[path.stem.removeprefix("scene_")] = (src.read(), src.profile | {"names": src.descriptions})
    return found


def values_of(variable: xr.DataArray) -> np.ndarray:
    values = variable.to_numpy()
    return values[None] if values.ndim == 2 else values


def check_equal(found: xr.Dataset, expected: dict[str, tuple[np.ndarray, dict[str, Any]]]) -> None:
    """Raise unless the Dataset holds the command's products: bits, dtype, grid, nodata, names of bands."""
    assert set(found.data_vars) == set(expected)
    for name, (values, profile) in expected.items():
        variable = found[name]
        np.testing.assert_array_equal(values_of(variable), values)
        assert variable.dtype == profile["dtype"]
        assert variable.rio.crs == profile["crs"]
        assert variable.rio.transform() == profile["transform"]
        np.testing.assert_equal(variable.rio.nodata, profile["nodata"])
        names = variable.attrs["long_name"]
        assert ((names,) if isinstance(names, str) else names) == profile["names"]


def opened(path: Path, kind: str) -> Any:
    if kind == "path":
        return path
    if kind == "dask":
        return rioxarray.open_rasterio(path, chunks={"band": 5, "y": 50, "x": 70})
    return rioxarray.open_rasterio(path, masked=kind == "masked")


@pytest.mark.parametrize("kind", ["path", "memory", "masked", "dask"])
@pytest.mark.parametrize("task", TASKS)
def test_the_commands_products_bit_for_bit(
    tmtool: Any, make_raster: Any, identity: str, tmp_path: Path, task: str, kind: str
) -> None:
    path = make_raster(dn(), nodata=0)
    options, *args = TASKS[task]
    result = tmtool(task, path, *args, *ARGS, "--model", identity, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    found = getattr(package, task)(opened(path, kind), **options, **TILES, model=identity, blocks=3)
    assert all(bool(v.chunks) == (kind in ("path", "dask")) for v in found.data_vars.values())
    if kind == "path":
        assert [len(v.chunks[-2]) for v in found.data_vars.values()] == [3] * len(found)
    check_equal(found, products(tmp_path / "out"))


@pytest.mark.parametrize("shape", [(1, 1), (5, 150), (150, 5), (64, 64), (65, 64), (40, 50), (97, 130)])
@pytest.mark.parametrize("task", ["generate", "reconstruct"])
def test_sizes(tmtool: Any, make_raster: Any, identity: str, tmp_path: Path, task: str, shape: tuple[int, int]) -> None:
    path = make_raster(np.random.default_rng(1).integers(1, 3000, (12, *shape)).astype(np.int16))
    options, *args = TASKS[task]
    assert tmtool(task, path, *args, *ARGS, "--model", identity, "-o", tmp_path / "out").exit_code == 0
    for kind in ("path", "memory", "dask"):
        found = getattr(package, task)(opened(path, kind), **options, **TILES, model=identity, blocks=9)
        check_equal(found, products(tmp_path / "out"))


@pytest.mark.parametrize(
    "profile", [{"transform": SKEWED}, {"crs": None}, {"crs": None, "transform": Affine.identity()}]
)
@pytest.mark.parametrize("kind", ["path", "memory"])
def test_odd_grids(
    tmtool: Any, make_raster: Any, identity: str, tmp_path: Path, kind: str, profile: dict[str, Any]
) -> None:
    path = make_raster(dn(), **profile)
    assert tmtool("embed", path, *ARGS, "--model", identity, "-o", tmp_path / "out").exit_code == 0
    found = package.embed(opened(path, kind), **TILES, model=identity)
    check_equal(found, products(tmp_path / "out"))
    assert ("x" in found.coords) == (profile.get("transform") != SKEWED)


def test_a_raster_that_is_flipped_or_cut_out_keeps_its_place(make_raster: Any, identity: str) -> None:
    array = rioxarray.open_rasterio(make_raster(dn()))
    whole = package.generate(array, "S1GRD", model=identity)
    part = array.isel(y=slice(10, 90), x=slice(7, 100))
    found = package.generate(part, "S1GRD", model=identity)
    assert found.rio.transform() == TRANSFORM * Affine.translation(7, 10)
    xr.testing.assert_identical(
        found.S1GRD.drop_attrs(), whole.S1GRD.isel(y=slice(10, 90), x=slice(7, 100)).drop_attrs()
    )
    flipped = package.generate(array.isel(y=slice(None, None, -1)), "S1GRD", model=identity)
    assert flipped.rio.transform().e == 10
    np.testing.assert_array_equal(flipped.y, array.y[::-1])


@pytest.mark.parametrize("kinds", [("path", "path"), ("memory", "memory"), ("dask", "memory"), ("memory", "path")])
def test_several_modalities(
    tmtool: Any, make_raster: Any, identity: str, tmp_path: Path, kinds: tuple[str, str]
) -> None:
    s2, dem = make_raster(dn(), "scene.tif", nodata=0), make_raster(dn(bands=1), "dem.tif", nodata=0)
    args = ("--in", f"S2L2A={s2}", "--in", f"DEM={dem}", *ARGS, "--merge", "dict", "--model", identity)
    assert tmtool("embed", *args, "-o", tmp_path / "out").exit_code == 0
    inputs = {name: opened(path, kind) for name, path, kind in zip(("S2L2A", "dem"), (s2, dem), kinds, strict=True)}
    found = package.embed(inputs, **TILES, merge="dict", model=identity, blocks=2)
    assert bool(found.embed_DEM.chunks) == (kinds != ("memory", "memory"))
    check_equal(found, products(tmp_path / "out"))


@pytest.mark.parametrize("pool", ["patch", "tile", "scene"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", ["path", "memory"])
def test_vectors(
    tmtool: Any, make_raster: Any, identity: str, tmp_path: Path, kind: str, dtype: str, pool: str
) -> None:
    path = make_raster(dn(), nodata=0)
    args = ("--pool", pool, "--dtype", dtype, "--normalize", "l2", "--bands", "S2L2A=BLUE,RED")
    assert tmtool("embed", path, *args, *ARGS, "--model", identity, "-o", tmp_path / "out").exit_code == 0
    options = {"pool": pool, "dtype": dtype, "normalize": "l2", "bands": {"S2L2A": ["BLUE", "RED"]}}
    found = package.embed(opened(path, kind), **options, **TILES, model=identity, blocks=3)
    assert found.embed.dtype == dtype
    check_equal(found.astype("float32"), products(tmp_path / "out"))  # which is what GDAL makes of float16


def test_a_window_computes_the_blocks_that_it_touches(
    make_raster: Any, identity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []
    inner = datasets.compute_block
    monkeypatch.setattr(datasets, "compute_block", lambda task: computed.append(task.rows) or inner(task))
    path = make_raster(dn(400, 70), nodata=0)
    found = package.generate(path, ["S1GRD", "LULC"], **TILES, model=identity, blocks=6)
    assert computed == []
    heights = found.chunks["y"]
    assert len(heights) >= 6
    assert sum(heights) == 400
    window = found.isel(y=slice(heights[0] + 1, heights[0] + heights[1] + 1), x=slice(3, 20)).compute()
    assert sorted(r.start for r in computed) == [heights[0], heights[0] + heights[1]]
    computed.clear()
    whole = found.compute()
    assert len(computed) == len(heights)  # one for both products
    xr.testing.assert_identical(
        window, whole.isel(y=slice(heights[0] + 1, heights[0] + heights[1] + 1), x=slice(3, 20))
    )


def test_the_fewest_blocks_repeat_few_tiles(make_raster: Any, identity: str) -> None:
    path = make_raster(np.full((12, 96 * 40, 8), 7, np.int16), nodata=0)
    assert len(package.generate(path, "LULC", crop=128, stride=96, model=identity).chunks["y"]) == 3


@pytest.mark.parametrize("height", [1, 100, 2049, 10_980])
@pytest.mark.parametrize("least", [1, 2, 7, 1000])
def test_even_blocks(height: int, least: int) -> None:
    plan = TilePlan((height, 300), Tiling())
    blocks = plan.even_blocks(least)
    assert [row for block in blocks for row in block] == list(range(height))
    assert {len(block) for block in blocks[:-1]} <= {len(blocks[0])}
    assert all(block.start % plan.step == 0 for block in blocks)
    assert len(blocks) >= min(least, plan.counts[0])
    assert len(blocks) <= max(1 + 0.07 * plan.counts[0], 2 * least)


def test_what_is_lazy_chains(make_raster: Any, identity: str) -> None:
    """Products are computed block by block as the next function's blocks need them, each once."""
    path = make_raster(dn(), nodata=0)
    options: dict[str, Any] = {"model": identity, **TILES}
    asked = options | {"modality": "S1GRD"}
    radar = package.generate(path, "S1GRD", blocks=3, **options)["S1GRD"] / -100
    lazy = package.reconstruct(package.tokenize(radar, blocks=2, **asked), blocks=3, **options)
    assert lazy.S1GRD_rec.chunks is not None
    whole = package.reconstruct(package.tokenize(radar.compute(), **asked), **options)
    with dask.config.set(scheduler="threads", num_workers=4):
        xr.testing.assert_equal(lazy.compute(), whole)


def test_dask_holds_no_more_of_an_array_than_a_block_sees(
    make_raster: Any, identity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []
    inner = datasets.compute_block

    def seen(task: Any) -> Any:
        held.append(len(task.prepared.sources["S2L2A"].array.values[0]))
        return inner(task)

    monkeypatch.setattr(datasets, "compute_block", seen)
    array = opened(make_raster(dn(1000, 30), nodata=0), "dask")
    package.generate(array, "LULC", **TILES, model=identity, blocks=10).compute()
    assert len(held) >= 10
    assert max(held) < 100 + 3 * 64


def test_other_processes_compute_it_too(make_raster: Any, identity: str) -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    path = make_raster(dn(), nodata=0)
    for raster in (path, opened(path, "dask")):
        found = package.tokenize(raster, **TILES, model=identity, blocks=2)
        xr.testing.assert_identical(cloudpickle.loads(cloudpickle.dumps(found)).compute(), found.compute())


def test_a_distributed_client_computes_it(make_raster: Any, identity: str) -> None:
    distributed = pytest.importorskip("distributed")
    path = make_raster(dn(), nodata=0)
    options: dict[str, Any] = {"model": identity, **TILES}
    expected = package.reconstruct(path, **options).compute(scheduler="synchronous")
    with distributed.Client(processes=False, n_workers=1, dashboard_address=None):
        held = opened(path, "dask").persist()
        for raster in (path, held, package.tokenize(held, **options)):
            xr.testing.assert_equal(package.reconstruct(raster, blocks=3, **options).compute(), expected)


def test_in_memory_dask_is_not_needed(make_raster: Any) -> None:
    script = (
        "import sys; sys.modules['dask'] = None\n"
        "import rioxarray, tmtool\n"
        "from tests.simple_models import registered\n"
        "array = rioxarray.open_rasterio(sys.argv[1])\n"
        "with registered() as name:\n"
        "    for task in (tmtool.tokenize, tmtool.embed, tmtool.reconstruct):\n"
        "        task(array, model=name)\n"
        "    print(tmtool.generate(array, 'LULC', model=name).LULC.shape)"
    )
    command = [sys.executable, "-c", script, str(make_raster(dn()))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "(210, 173)"


def test_importing_tmtool_imports_nothing_heavy() -> None:
    script = "import sys, tmtool; print(*sorted(sys.modules)); tmtool.generate; print('xarray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    before, after = done.stdout.splitlines()
    assert not {"xarray", "numpy", "rasterio", "torch", "dask", "typer"} & set(before.split())
    assert after == "True"
    assert not hasattr(package, "nothing")


FILES_ONLY = {
    *("inputs", "recursive", "pattern", "files_from", "null", "shard", "output_dir", "overwrite", "stale", "resume"),
    *("max_memory", "dry_run", "json_", "report", "fail_fast", "retries", "quiet", "verbose", "log_file", "log_format"),
    *("format_", "cluster", "in_", "preview", "stac", "level", "level_to", "scratch"),
}


@pytest.mark.parametrize("task", TASKS)
def test_keywords_are_the_commands_options(task: str) -> None:
    from importlib import import_module

    command = inspect.signature(getattr(import_module(f"tmtool.cli.{task}"), task)).parameters
    function = inspect.signature(getattr(api, task)).parameters
    options = {name.rstrip("_"): p.default for name, p in command.items() if name not in FILES_ONLY}
    written = {"batch_size": "auto", "layer": "-1", "tim": ""}  # how a command line says None, -1 and nothing
    own = {"raster", "modality", "blocks"}
    assert set(options) == set(function) - own
    for name, default in options.items():
        assert default == written.get(name, function[name].default), name
    assert cli.app is not None


def test_classes_and_nodata_are_told(make_raster: Any, identity: str) -> None:
    found = package.generate(opened(make_raster(dn(), nodata=0), "memory"), ["LULC", "DEM", "S1GRD"], model=identity)
    lulc = found.LULC
    assert lulc.dims == ("y", "x")
    assert lulc.rio.nodata == 0
    np.testing.assert_array_equal(lulc.flag_values, np.arange(10, dtype=np.uint8))
    assert lulc.flag_meanings.split()[:4] == ["no_data", "water", "trees", "flooded_vegetation"]
    assert len(lulc.flag_meanings.split()) == len(lulc.flag_colors.split()) == len(LULC_CLASSES)
    assert lulc.isel(y=slice(60, 140), x=slice(40, 130)).max() == 0
    assert found.S1GRD.dims == ("band", "y", "x")
    assert found.S1GRD.attrs["units"] == "dB"
    assert found.sel(band="VH").S1GRD.isnull().any()
    made = json.loads(lulc.attrs["TMTOOL_PROVENANCE"])
    assert (made["task"], made["modality"], made["outputs"], made["seed"]) == (
        *("generate", "LULC", ["LULC", "DEM", "S1GRD"]),
        0,
    )
    assert made["inputs"] == {"S2L2A": "DataArray"}


def test_provenance_is_the_commands(tmtool: Any, make_raster: Any, identity: str, tmp_path: Path) -> None:
    path = make_raster(dn())
    assert tmtool("generate", path, "--out", "DEM", "--model", identity, "-o", tmp_path / "out").exit_code == 0
    with rasterio.open(tmp_path / "out" / "scene_DEM.tif") as src:
        expected = json.loads(src.tags()["TMTOOL_PROVENANCE"])
    del expected["seams"]  # known when all rows are
    assert json.loads(package.generate(path, "DEM", model=identity).DEM.attrs["TMTOOL_PROVENANCE"]) == expected


def test_products_with_other_bands_have_dimensions_of_their_own(make_raster: Any, identity: str) -> None:
    array = opened(make_raster(dn()), "memory")
    found = package.generate(array, "S1RTC,S2L2A,DEM", model=identity)
    assert found.S1RTC.dims == ("band_S1RTC", "y", "x")
    assert tuple(found.band_S2L2A.to_numpy()) == S2_BANDS
    assert found.S2L2A.attrs["scale_factor"] == 0.0001
    assert found.DEM.dims == ("y", "x")
    both = package.generate(array, "S1RTC,DEM", model=identity)
    assert tuple(both.S1RTC.band.to_numpy()) == ("VV", "VH")


def test_to_raster_and_back_into_the_command(tmtool: Any, make_raster: Any, identity: str, tmp_path: Path) -> None:
    path = make_raster(dn(), nodata=0)
    options: dict[str, Any] = {"model": identity, **TILES}
    found = package.tokenize(path, blocks=3, **options)
    found.S2L2A_tokens.rio.to_raster(tmp_path / "scene_S2L2A_tokens.tif", lock=True)
    found.S2L2A_valid.rio.to_raster(tmp_path / "S2L2A_valid.tif", lock=True)
    args = ("reconstruct", tmp_path / "scene_S2L2A_tokens.tif", *ARGS, "--model", identity, "-o", tmp_path / "out")
    result = tmtool(*args)
    assert result.exit_code == 0, result.stderr
    check_equal(package.reconstruct(found, blocks=2, **options), products(tmp_path / "out"))
    check_equal(package.reconstruct(found.compute(), **options), products(tmp_path / "out"))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_to_zarr(make_raster: Any, identity: str, tmp_path: Path, zarr_format: int) -> None:
    path = make_raster(dn(), nodata=0)
    found = package.generate(path, ["S1GRD", "LULC"], **TILES, model=identity, blocks=3)
    assert len(set(found.chunks["y"][:-1])) == 1
    found.to_zarr(tmp_path / "scene.zarr", zarr_format=zarr_format)
    back = xr.open_zarr(tmp_path / "scene.zarr", mask_and_scale=False, decode_coords="all")
    xr.testing.assert_equal(back, found.compute())
    assert back.S1GRD.rio.transform() == TRANSFORM
    assert back.LULC.rio.crs == found.LULC.rio.crs
    assert back.LULC.attrs["flag_meanings"] == found.LULC.attrs["flag_meanings"]


def test_the_offset_is_found_in_what_rioxarray_keeps(make_raster: Any, identity: str) -> None:
    values = dn() + np.int16(1000)
    array = opened(make_raster(values), "memory")
    expected = package.generate(array, "S2L2A", s2_offset=1000, model=identity)
    for attributes in ({"BOA_ADD_OFFSET": -1000}, {"scale_factor": 1e-4, "add_offset": -0.1}):
        found = package.generate(array.assign_attrs(attributes), "S2L2A", model=identity)
        np.testing.assert_array_equal(found.S2L2A, expected.S2L2A)


def test_names_put_bands_in_order(make_raster: Any, identity: str) -> None:
    values = dn()
    array = opened(make_raster(values), "memory")
    expected = package.generate(array, "S1GRD", model=identity).S1GRD
    shuffled = array[::-1]
    by_coordinate = shuffled.assign_coords(band=list(S2_BANDS[::-1]))
    by_name = shuffled.assign_attrs(long_name=S2_BANDS[::-1])
    for other in (by_coordinate, by_name):
        np.testing.assert_array_equal(package.generate(other, "S1GRD", model=identity).S1GRD, expected)


def plain(bands: int = 12, dtype: str = "int16", height: int = 40, width: int = 50) -> xr.DataArray:
    values = np.random.default_rng(0).integers(1, 200, (bands, height, width)).astype(dtype)
    return xr.DataArray(values, dims=("band", "y", "x"), name="mine")


@pytest.mark.parametrize(
    ("raster", "options", "message"),
    [
        (plain(5), {}, "DataArray 'mine': has 5 bands, which fits no modality"),
        (plain(1)[0], {}, "has 1 band, which does not say what it is"),
        (plain(3, "float32"), {}, "3 bands of float32; RGB takes values 0-255"),
        (plain().astype("float32") / 200, {}, "look like reflectance"),
        (plain(2, "float32"), {"modality": "S1GRD"}, "look like linear power"),
        (plain().astype(complex), {}, "complex"),
        (plain().astype(str), {}, "holds <U"),
        (plain().transpose("y", "x", "band"), {}, r"its dimensions are y, x, band; expected band, y, x"),
        (plain().rename(x="col", y="row"), {}, "its dimensions are band, row, col"),
        (plain().expand_dims("time"), {}, "its dimensions are time, band, y, x"),
        (plain()[:, :0], {}, "is empty"),
        (plain().assign_coords(x=np.arange(50.0) ** 2, y=np.arange(40.0)), {}, "not form a regular grid"),
        (plain().assign_attrs(_FillValue=-9_999_999), {}, "nodata value does not fit its dtype"),
        (plain().to_dataset(name="a"), {}, "Dataset: is not a raster"),
        (np.zeros((12, 4, 4)), {}, "ndarray: is not a raster"),
        ("nowhere.tif", {}, "nowhere.tif: no such file"),
        ({"S2L2A": plain(), "DEM": plain(1)[:, :39]}, {}, "lies on another grid"),
    ],
)
def test_rasters_that_are_refused(identity: str, raster: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        package.generate(raster, "LULC", model=identity, **options)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("generate", {"out": "S1GRB"}, "Unknown modality 'S1GRB'"),
        ("generate", {"out": []}, "^out names no modality"),
        ("generate", {"out": "RGB"}, "input-only"),
        ("generate", {"out": "LULC", "model": "huge"}, "Unknown model 'huge'"),
        ("generate", {"out": "LULC", "stride": 250}, "leaves gaps"),
        ("generate", {"out": "LULC", "timesteps": 0}, "^timesteps 0 is out of range"),
        ("generate", {"out": "LULC", "batch_size": 0}, "^batch_size 0"),
        ("generate", {"out": "LULC", "blocks": 0}, "blocks 0"),
        ("generate", {"out": "LULC", "modality": "S3"}, "Unknown modality 'S3'"),
        ("tokenize", {"delta": 8}, "multiples of 16"),
        ("embed", {"layer": 77}, "^layer 77"),
        ("embed", {"merge": "sum"}, "^merge sum: choose from mean, max, concat, dict"),
        ("embed", {"dtype": "int8"}, "^dtype int8: choose from"),
        ("embed", {"bands": {"S2L2A": ["PINK"]}}, "has no band PINK"),
    ],
)
def test_options_that_are_refused(identity: str, task: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        getattr(package, task)(plain(), **{"model": identity} | options)
    assert " --" not in str(raised.value)  # which are the command's names


def test_dicts_name_modalities_themselves(identity: str) -> None:
    for options in ({"raster": {"S2L2A": plain()}, "modality": "S2L2A"}, {"raster": {}}):
        with pytest.raises(UsageError, match="names the modality of each"):
            package.embed(model=identity, **options)
    with pytest.raises(UsageError, match="one raster at a time"):
        package.tokenize({"S2L2A": plain(), "DEM": plain(1)}, model=identity)


def test_tokens_need_their_validity_and_their_tokenizer(make_raster: Any, identity: str) -> None:
    found = package.tokenize(opened(make_raster(dn(), nodata=0), "memory"), model=identity)
    with pytest.raises(InputError, match="comes without S2L2A_valid"):
        package.reconstruct(found.S2L2A_tokens, model=identity)
    with pytest.raises(InputError, match="is no longer the token raster"):
        package.reconstruct(found.isel(y=slice(3)), model=identity)
    with pytest.raises(InputError, match="made by another tokenizer"):
        package.reconstruct(found, model="demo")
    with pytest.raises(InputError, match="holds tokens that tmtool tokenize made"):
        package.generate(found.S2L2A_tokens, "LULC", model=identity)


def test_a_constant_product_is_an_error(make_raster: Any, identity: str) -> None:
    path = make_raster(dn())
    FAILURES["value"] = 3.0
    with pytest.raises(ProductError, match="every valid pixel is 3 though the input varies"):
        package.generate(opened(path, "memory"), "DEM", model=identity)
    FAILURES["value"] = np.nan
    with pytest.raises(ProductError, match="non-finite"):
        package.generate(path, "DEM", model=identity).compute()


def test_paths_mean_the_same_in_another_folder(
    make_raster: Any, identity: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = make_raster(dn(), "here/scene.tif", nodata=0)
    monkeypatch.chdir(path.parent)
    found = package.generate("scene.tif", "LULC", model=identity)
    monkeypatch.chdir(tmp_path)
    assert found.LULC.compute().any()


@pytest.mark.parametrize("task", TASKS)
def test_a_real_model(tmtool: Any, tmp_path: Path, task: str) -> None:
    sample = rioxarray.open_rasterio(ROOT / "samples" / "demo_scene.tif")
    sample.isel(y=slice(300, 590), x=slice(427, 707)).rio.to_raster(tmp_path / "scene.tif")  # with a corner of nodata
    options, *args = TASKS[task]
    if task in ("generate", "reconstruct"):
        options, args = options | {"timesteps": 2}, [*args, "--timesteps", 2]
    result = tmtool(task, tmp_path / "scene.tif", *args, "--model", "demo", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    found = getattr(package, task)(tmp_path / "scene.tif", **options, model="demo", blocks=2)
    check_equal(found, products(tmp_path / "out"))


LIMITED = """
import resource, sys
import dask
import tmtool
from tests.simple_models import registered

def stored(path, out):
    found = tmtool.generate(path, ["S1GRD", "LULC"], model=name, blocks=16)
    found.to_zarr(out + ".zarr")
    found.S1GRD.rio.to_raster(out + ".tif", lock=True)

def used():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmData"))

with registered() as name, dask.config.set(num_workers=2):
    stored(sys.argv[1], sys.argv[1])  # what libraries take, once
    resource.setrlimit(resource.RLIMIT_DATA, (used() + int(sys.argv[3]), resource.RLIM_INFINITY))
    stored(sys.argv[2], sys.argv[2])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory so")
def test_a_raster_larger_than_the_memory_that_is_left(tmp_path: Path) -> None:
    """Its bands are 472 MB, its products 177 MB, and the process may take 350 MB more than for a small one.

    It was seen to take 150 to 220, with four threads 295 to 317.
    """
    from tests.test_memory import write_tall

    small = write_tall(tmp_path / "small.tif", 768, 1600)
    tall = write_tall(tmp_path / "tall.tif", 12_288, 1600)
    command = [sys.executable, "-c", LIMITED, str(small), str(tall), str(350 << 20)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = xr.open_zarr(f"{tall}.zarr").S1GRD
    with rasterio.open(f"{tall}.tif") as src:
        assert found.shape == (2, 12_288, 1600) == (src.count, *src.shape)
        last = rasterio.windows.Window(0, 12_000, 1600, 288)
        np.testing.assert_array_equal(src.read(window=last), found[:, 12_000:])
