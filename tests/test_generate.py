"""`tmtool generate` from the command line, with a model that gives its input back: products, messages, exit statuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.warp import Resampling
from rio_cogeo.cogeo import cog_validate

from tests.conftest import TRANSFORM
from tests.simple_models import FAILURES
from tmtool import models
from tmtool.modality import LULC_CLASSES


def s2(height: int = 300, width: int = 410, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 3000, (12, height, width)).astype(np.int16)


def left_behind(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to build a model fails the test."""

    def build(spec: Any) -> Any:
        raise AssertionError("a model was built")

    monkeypatch.setattr(models, "build", build)


def test_products_are_complete_cogs(tmtool: Any, make_raster: Any, identity: str, out: Path) -> None:
    values = s2(1100, 700)
    values[0] = 1  # class 0 is nodata
    values[:, :, 600:] = 0
    path = make_raster(values, "Santiago.tif", nodata=0)
    result = tmtool("generate", path, "--out", "S1GRD,LULC,S2L2A,DEM", "--model", identity, "-o", out)
    assert result.exit_code == 0, result.stderr
    names = [f"Santiago_{m}.tif" for m in ("S1GRD", "LULC", "S2L2A", "DEM")]
    assert result.stdout.split() == [str(out / n) for n in names]
    assert left_behind(out) == sorted([*names, "Santiago_LULC.tif.aux.xml"])
    valid = np.zeros((1100, 700), bool)
    valid[:, :600] = True
    for name in names:
        assert cog_validate(out / name, strict=True, quiet=True) == (True, [], [])
        with rasterio.open(out / name) as src:
            assert src.crs.to_epsg() == 32719
            assert src.transform == TRANSFORM
            assert src.shape == (1100, 700)
            assert src.block_shapes[0] == (512, 512)
            assert src.overviews(1) == [2, 4]
            assert src.profile["compress"] == "zstd"
            np.testing.assert_array_equal(src.dataset_mask() > 0, valid)
            provenance = json.loads(src.tags()["TMTOOL_PROVENANCE"])
            assert provenance["inputs"] == {"S2L2A": "Santiago.tif"}
            assert provenance["seed"] == 0
            assert provenance["tiling"] == {"crop": 256, "stride": 192, "delta": 8}
            assert {"version", "libraries", "weights", "precision", "batch_size", "sampling"} <= set(provenance)


def test_radar_product(tmtool: Any, make_raster: Any, identity: str, out: Path) -> None:
    values = s2()
    values[:, 5, 5] = 0
    tmtool("generate", make_raster(values, nodata=0), "--out", "S1GRD", "--model", identity, "-o", out)
    with rasterio.open(out / "scene_S1GRD.tif") as src:
        assert (src.dtypes, src.descriptions, src.units) == (("float32",) * 2, ("VV", "VH"), ("dB", "dB"))
        assert np.isnan(src.nodata)
        expected = values[:2].astype(np.float32)
        expected[:, 5, 5] = np.nan
        np.testing.assert_allclose(src.read(), expected, rtol=1e-6)
        tags = src.tags(1)
        assert float(tags["STATISTICS_MEAN"]) == pytest.approx(np.nanmean(expected[0]), rel=1e-6)
        assert float(tags["STATISTICS_STDDEV"]) == pytest.approx(np.nanstd(expected[0]), rel=1e-6)
        assert float(tags["STATISTICS_MAXIMUM"]) == pytest.approx(np.nanmax(expected[0]), rel=1e-6)


def test_land_cover_product(tmtool: Any, make_raster: Any, identity: str, out: Path) -> None:
    values = s2()
    tmtool("generate", make_raster(values), "--out", "LULC", "--model", identity, "-o", out)
    path = out / "scene_LULC.tif"
    with rasterio.open(path) as src:
        assert (src.dtypes[0], src.nodata, src.descriptions[0]) == ("uint8", 0, "class")
        np.testing.assert_array_equal(src.read(1), values[:10].argmax(axis=0))
        colours = src.colormap(1)
        for i, (name, colour) in enumerate(LULC_CLASSES):
            assert "#{:02X}{:02X}{:02X}".format(*colours[i][:3]) == colour
            assert src.tags(1)[f"CLASS_{i}"] == name
    text = path.with_name("scene_LULC.tif.aux.xml").read_text()
    assert all(f"<Category>{name}</Category>" in text for name, _ in LULC_CLASSES)


def test_optical_product_is_rounded_and_kept_off_nodata(
    tmtool: Any, make_raster: Any, identity: str, out: Path
) -> None:
    values = s2()
    result = tmtool(
        "generate", make_raster(values), "--out", "S2L2A", "--model", identity, "-o", out, "--s2-offset", 1000
    )
    assert result.exit_code == 0
    with rasterio.open(out / "scene_S2L2A.tif") as src:
        assert (src.dtypes[0], src.nodata, src.scales[0]) == ("uint16", 0, 0.0001)
        assert src.descriptions[8] == "B8A"
        np.testing.assert_array_equal(src.read(), np.clip(values.astype(int) - 1000, 1, 65535))
        assert json.loads(src.tags()["TMTOOL_PROVENANCE"])["offsets"] == {"S2L2A": 1000.0}


def test_overviews_of_classes_are_modes(tmtool: Any, make_raster: Any, identity: str, out: Path) -> None:
    values = np.zeros((12, 1024, 1024), np.int16)
    values[:] = 2
    values[3] = 50
    values[5, 1::2, 1::2] = 100  # one pixel in four is another class
    tmtool("generate", make_raster(values), "--out", "LULC", "--model", identity, "-o", out)
    with rasterio.open(out / "scene_LULC.tif", overview_level=0) as src:
        small = src.read(1, resampling=Resampling.nearest)
    assert set(np.unique(small)) == {3}


@pytest.mark.parametrize(
    "profile",
    [
        {"transform": Affine(8.7, 3.1, 399_961.37, 3.1, -8.7, 6_300_040.91)},
        {"transform": Affine(10, 0, 717729.835205378243700, 0, -10, 5700093.330553154461086)},
        {"transform": Affine(10, 0, 100.5, 0, 10, 200.25)},
        {"crs": None, "transform": Affine.identity()},
        {"crs": "EPSG:4326", "transform": Affine(8.983e-05, 0, -70.1, 0, -8.983e-05, -33.4)},
        {"crs": "EPSG:3035"},
    ],
)
def test_georeferencing_is_carried_bit_for_bit(
    tmtool: Any, make_raster: Any, identity: str, out: Path, profile: Any
) -> None:
    path = make_raster(s2(60, 50), **profile)
    result = tmtool("generate", path, "--out", "DEM,LULC", "--model", identity, "-o", out)
    assert result.exit_code == 0, result.stderr
    with rasterio.open(path) as src, rasterio.open(out / "scene_DEM.tif") as dst:
        assert dst.crs == src.crs
        assert dst.transform == src.transform


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (17, 15), (223, 300), (700, 16)])
def test_awkward_sizes(tmtool: Any, make_raster: Any, identity: str, out: Path, shape: tuple[int, int]) -> None:
    values = s2(*shape)
    assert tmtool("generate", make_raster(values), "--out", "S1GRD", "--model", identity, "-o", out).exit_code == 0
    with rasterio.open(out / "scene_S1GRD.tif") as src:
        np.testing.assert_allclose(src.read(), values[:2], rtol=1e-6)


def test_all_nodata_gives_all_nodata_and_a_warning(
    tmtool: Any, make_raster: Any, no_model: None, identity: str, out: Path
) -> None:
    path = make_raster(np.zeros((12, 300, 300), np.int16), nodata=0)
    result = tmtool("generate", path, "--out", "S1GRD,LULC", "--model", identity, "-o", out)
    assert result.exit_code == 0
    assert "all nodata" in result.stderr
    with rasterio.open(out / "scene_S1GRD.tif") as src:
        assert np.isnan(src.read()).all()


# --- bad input: exit 2, one clear message, nothing loaded, nothing written -------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--out", "S1GDR"], "Did you mean S1GRD?"),
        (["--out", "S2L1C"], "input-only"),
        (["--out", "RGB"], "input-only"),
        (["--out", "LULC,LULC"], "twice"),
        (["--out", "LULC", "--in", "S2L2"], "Did you mean S2L2A?"),
        (["--out", "LULC", "--crop", "250"], "multiple of 16"),
        (["--out", "LULC", "--stride", "250"], "leaves gaps"),
        (["--out", "LULC", "--model", "huge"], "Unknown model"),
        (["--out", "LULC", "--batch-size", "many"], "--batch-size many"),
        (["--out", "LULC", "--top-p", "2"], "--top-p"),
        (["--out", "LULC", "--weights", "/nowhere"], "no such folder"),
        (["--out", "LULC", "--offline"], "hf download ibm-esa-geospatial/TerraMind-1.0-base"),
        (["--out", "LULC", "--device", "tpu", "--weights", "random"], "--device tpu"),
        (
            ["--out", "LULC", "--device", "cpu", "--precision", "fp16", "--weights", "random"],
            "fp16 needs a CUDA device",
        ),
        (["--out", "LULC", "--in", "S1GRD"], "has 12 bands, but S1GRD needs 2"),
    ],
)
def test_bad_options(
    tmtool: Any,
    make_raster: Any,
    no_model: None,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(out.parent / "hub"))
    result = tmtool("generate", make_raster(s2(40, 40)), *args, "-o", out)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert left_behind(out) == []


def test_no_network_and_no_weights_says_what_to_do(
    tmtool: Any, make_raster: Any, no_model: None, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(out.parent / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = tmtool("generate", make_raster(s2(40, 40)), "--out", "LULC", "-o", out)
    assert result.exit_code == 2
    for hint in (
        "cannot be reached",
        "TerraMind_v1_base.pt",
        "TerraMind_Tokenizer_LULC.pt",
        "--weights DIR",
        "--weights random",
    ):
        assert hint in result.stderr


def test_existing_output_is_kept(tmtool: Any, make_raster: Any, identity: str, out: Path) -> None:
    path = make_raster(s2(40, 40))
    first = tmtool("generate", path, "--out", "S1GRD", "--model", identity, "-o", out)
    assert first.exit_code == 0
    before = (out / "scene_S1GRD.tif").read_bytes()
    again = tmtool("generate", path, "--out", "S1GRD", "--model", identity, "-o", out, "--seed", 1)
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr
    assert (out / "scene_S1GRD.tif").read_bytes() == before
    assert tmtool("generate", path, "--out", "S1GRD", "--model", identity, "-o", out, "--overwrite").exit_code == 0


def test_output_folder_that_cannot_be_written(
    tmtool: Any, make_raster: Any, no_model: None, tmp_path: Path, identity: str
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    result = tmtool("generate", make_raster(s2(40, 40)), "--out", "S1GRD", "--model", identity, "-o", blocked / "sub")
    assert result.exit_code == 2
    assert "cannot be written to" in result.stderr


def test_too_little_disk(
    tmtool: Any, make_raster: Any, no_model: None, out: Path, identity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(out)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    result = tmtool("generate", make_raster(s2(40, 40)), "--out", "S1GRD", "--model", identity, "-o", out)
    assert result.exit_code == 2
    assert "not enough disk" in result.stderr
    assert left_behind(out) == []


def test_land_cover_from_land_cover_is_refused(tmtool: Any, make_raster: Any, no_model: None, out: Path) -> None:
    path = make_raster(np.ones((1, 40, 40), np.uint8))
    result = tmtool("generate", path, "--in", "LULC", "--out", "LULC", "-o", out)
    assert result.exit_code == 2
    assert "cannot take and make it" in result.stderr


# --- failures while running: nothing half-written is left ------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "message"),
    [({"value": np.nan}, "non-finite"), ({"value": 5.0}, "every valid pixel is 5")],
)
def test_wrong_products_are_not_written(
    tmtool: Any, make_raster: Any, identity: str, out: Path, failure: Any, message: str
) -> None:
    FAILURES.update(failure)
    result = tmtool("generate", make_raster(s2()), "--out", "S1GRD,DEM", "--model", identity, "-o", out)
    assert result.exit_code == 1
    assert message in result.stderr
    assert left_behind(out) == []


def test_constant_land_cover_only_warns(tmtool: Any, make_raster: Any, identity: str, out: Path) -> None:
    FAILURES["class"] = 3
    result = tmtool("generate", make_raster(s2()), "--out", "LULC", "--model", identity, "-o", out)
    assert result.exit_code == 0
    assert "every valid pixel is 3 though the input varies" in result.stderr


def test_a_model_that_fails_leaves_nothing(tmtool: Any, make_raster: Any, identity: str, out: Path) -> None:
    FAILURES.update({"raise": RuntimeError("boom"), "at": 3})
    with pytest.raises(RuntimeError, match="boom"):
        tmtool("generate", make_raster(s2(700, 700)), "--out", "S1GRD,LULC", "--model", identity, "-o", out)
    assert left_behind(out) == []


def test_a_raster_that_breaks_midway_leaves_nothing(tmtool: Any, make_raster: Any, identity: str, out: Path) -> None:
    path = make_raster(s2(700, 700), tiled=True, blockxsize=128, blockysize=128, compress="deflate", interleave="pixel")
    with rasterio.open(path) as src:
        offset = int(src.get_tag_item("BLOCK_OFFSET_1_0", "TIFF", bidx=1))
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 64)
    good = make_raster(s2(60, 60), "good.tif")
    result = tmtool("generate", path, good, "--out", "S1GRD", "--model", identity, "-o", out)
    assert result.exit_code == 1
    assert f"{path}: is damaged or truncated" in result.stderr
    assert left_behind(out) == ["good_S1GRD.tif"]


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_leaves_only_what_can_be_gone_on_with(
    make_raster: Any, out: Path, sent: signal.Signals, status: int
) -> None:
    path = make_raster(s2(900, 900))
    script = (
        "import sys, time; from tests import simple_models as s; from tmtool.cli import main\n"
        "class Slow(s.Identity):\n"
        "    def __call__(self, batch):\n"
        "        print('tile', file=sys.stderr, flush=True); time.sleep(0.3); return super().__call__(batch)\n"
        "s.build = lambda spec: Slow({'S1GRD': 2})\n"
        "with s.registered(): main()"
    )
    command = [
        sys.executable,
        "-c",
        script,
        "generate",
        str(path),
        "--out",
        "S1GRD",
        "--model",
        "identity",
        "-o",
        str(out),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as process:
        assert process.stderr is not None
        while process.stderr.readline() != "tile\n":
            assert process.poll() is None
        assert any(name.startswith(".tmtool-") for name in left_behind(out))
        process.send_signal(sent)
        started = time.monotonic()
        rest = process.stderr.read()
        assert process.wait(timeout=60) == status
    assert time.monotonic() - started < 60
    assert f"Stopped by {sent.name}. Run the same command again to resume." in rest
    assert "Traceback" not in rest
    assert left_behind(out) == [".tmtool-scene_S1GRD.tif.work.tif", ".tmtool-scene_generate.journal"]


# --- several inputs, standard output, dry runs -----------------------------------------------------------------------


def test_a_list_on_standard_input_and_json(tmtool: Any, make_raster: Any, identity: str, out: Path) -> None:
    good, bad = make_raster(s2(40, 40), "a.tif"), make_raster(s2(40, 40)[:5], "b.tif")
    result = tmtool(
        "generate", "-", "--out", "S1GRD", "--model", identity, "-o", out, "--json", stdin=f"{good}\n{bad}\n\n"
    )
    assert result.exit_code == 1
    by_status = {line["status"]: line for line in map(json.loads, result.stdout.splitlines())}
    assert by_status["done"]["products"] == {"S1GRD": str(out / "a_S1GRD.tif")}
    assert by_status["done"]["tiles"] == 1
    assert by_status["invalid"]["error"]["kind"] == "InputError"
    assert "5 bands" in by_status["invalid"]["error"]["message"]


def test_folders_and_globs(tmtool: Any, make_raster: Any, identity: str, tmp_path: Path, out: Path) -> None:
    for name in ("in/b.tif", "in/a.tif", "in/.tmtool-x.work.tif"):
        make_raster(s2(40, 40), name)
    result = tmtool("generate", tmp_path / "in", "--out", "S1GRD", "--model", identity, "-o", out)
    assert [Path(p).name for p in result.stdout.split()] == ["a_S1GRD.tif", "b_S1GRD.tif"]
    again = tmtool("generate", tmp_path / "in" / "?.tif", "--out", "DEM", "--model", identity, "-o", out)
    assert [Path(p).name for p in again.stdout.split()] == ["a_DEM.tif", "b_DEM.tif"]
    empty = tmtool("generate", out / "*.jp2", "--out", "DEM", "--model", identity)
    assert empty.exit_code == 2
    assert "matches no file" in empty.stderr


def test_two_inputs_with_one_target_are_refused(
    tmtool: Any, make_raster: Any, no_model: None, identity: str, out: Path
) -> None:
    paths = [make_raster(s2(40, 40), f"{folder}/a.tif") for folder in ("x", "y")]
    result = tmtool("generate", *paths, "--out", "S1GRD", "--model", identity, "-o", out)
    assert result.exit_code == 2
    assert "would both write" in result.stderr


def test_dry_run_loads_and_writes_nothing(
    tmtool: Any, make_raster: Any, no_model: None, identity: str, out: Path
) -> None:
    result = tmtool(
        "generate", make_raster(s2()), "--out", "S1GRD,LULC", "--model", identity, "-o", out / "new", "--dry-run"
    )
    assert result.exit_code == 0
    assert result.stdout.split() == [str(out / "new" / f"scene_{m}.tif") for m in ("S1GRD", "LULC")]
    assert left_behind(out) == []


def test_random_weights_are_announced_loudly(tmtool: Any, make_raster: Any, narrow_terramind: Path, out: Path) -> None:
    path = make_raster(s2(40, 40))
    result = tmtool("generate", path, "--out", "LULC", "--model", "tiny", "--weights", "random", "-o", out)
    assert result.exit_code == 0, result.stderr
    assert "RANDOM WEIGHTS" in result.stderr
    with rasterio.open(out / "scene_LULC.tif") as src:
        provenance = json.loads(src.tags()["TMTOOL_PROVENANCE"])
    assert provenance["weights"] == "random"
    assert "mean nothing" in provenance["warning"]


def test_two_runs_give_the_same_bits_and_another_seed_others(
    tmtool: Any, make_raster: Any, narrow_terramind: Path, out: Path
) -> None:
    path = make_raster(s2(300, 300), nodata=0)
    pixels = {}
    for run, seed in (("a", 0), ("b", 0), ("c", 1)):
        args = [
            "--model",
            "tiny",
            "--weights",
            narrow_terramind,
            "--seed",
            seed,
            "--timesteps",
            3,
            "--precision",
            "fp32",
        ]
        result = tmtool("generate", path, "--out", "S1GRD,LULC", *args, "-o", out / run)
        assert result.exit_code == 0, result.stderr
        for name in ("S1GRD", "LULC"):
            with rasterio.open(out / run / f"scene_{name}.tif") as src:
                pixels[run, name] = src.read()
    for name in ("S1GRD", "LULC"):
        np.testing.assert_array_equal(pixels["a", name], pixels["b", name])
        assert (pixels["a", name] != pixels["c", name]).mean() > 0.1


def test_batch_size_moves_rounding_only(tmtool: Any, make_raster: Any, narrow_terramind: Path, out: Path) -> None:
    path = make_raster(s2(450, 450))
    pixels = {}
    for size in (1, 3, 16):
        args = [
            "--model",
            "tiny",
            "--weights",
            narrow_terramind,
            "--temperature",
            0,
            "--timesteps",
            3,
            "--precision",
            "fp32",
        ]
        result = tmtool("generate", path, "--out", "S1GRD,LULC", *args, "--batch-size", size, "-o", out / str(size))
        assert result.exit_code == 0, result.stderr
        for name in ("S1GRD", "LULC"):
            with rasterio.open(out / str(size) / f"scene_{name}.tif") as src:
                pixels[size, name] = src.read()
    for size in (3, 16):
        assert (pixels[size, "LULC"] == pixels[1, "LULC"]).mean() >= 0.999
        away = np.abs(pixels[size, "S1GRD"] - pixels[1, "S1GRD"]) / np.array([5.195, 5.89])[:, None, None]
        assert (away <= 1e-2).mean() >= 0.999


def test_real_chip_with_the_real_architecture(examples: Path, out: Path) -> None:
    """TerraMind tiny at full size from a fresh process, with random weights: everything but the numbers is real."""
    chip = examples / "S2L2A" / "433D_629L_3_1.tif"
    command = [sys.executable, "-m", "tmtool", "generate", str(chip), "--out", "S1GRD,LULC,NDVI,DEM", "--model", "tiny"]
    command += ["--weights", "random", "--timesteps", "1", "-o", str(out), "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 0, done.stderr
    products = json.loads(done.stdout)["products"]
    assert list(products) == ["S1GRD", "LULC", "NDVI", "DEM"]
    with rasterio.open(chip) as src:
        grid = (src.crs, src.transform, src.shape)
    for path in products.values():
        assert cog_validate(path, strict=True, quiet=True) == (True, [], [])
        with rasterio.open(path) as src:
            assert (src.crs, src.transform, src.shape) == grid
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("shape", [(600, 512), (2100, 2048), (1300, 1024), (3000, 256), (1025, 1023)])
def test_no_width_is_taken_for_untiled(
    tmtool: Any, make_raster: Any, identity: str, out: Path, shape: tuple[int, int]
) -> None:
    path = make_raster(s2(*shape))
    result = tmtool("generate", path, "--out", "LULC,S1GRD", "--model", identity, "-o", out)
    assert result.exit_code == 0, result.stderr
    for line in result.stdout.split():
        assert cog_validate(line, strict=True, quiet=True) == (True, [], [])
