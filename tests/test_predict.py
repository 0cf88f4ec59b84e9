"""`tmtool predict`: a fine-tuned TerraTorch task from the command line gives what TerraTorch's `tiled_inference` gives."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml

from tests import finetuned
from tests.conftest import ROOT, TRANSFORM
from tests.hub import serving
from tests.test_task_config import BURN_SCARS, FLOOD
from tmtool import open as tmtool_open
from tmtool import predict
from tmtool.errors import UsageError
from tmtool.models.finetuned.config import read_config

SHAPE = (144, 208)  # where TerraTorch's tiles of 96/64/8 px and tmtool's coincide
TILES = {"crop": 96, "stride": 64, "delta": 8, "batch_size": 4}
TILING = ("--crop", 96, "--stride", 64, "--delta", 8, "--precision", "fp32")
BANDS = ["BLUE", "GREEN", "RED", "NIR_NARROW", "SWIR_1", "SWIR_2"]


def task(folder: Path, text: str, **statistics: str) -> tuple[Any, Any, Path]:
    """Write a config and a seeded random checkpoint of it; return it read, TerraTorch's task, and the checkpoint."""
    path = folder / "task.yaml"
    path.write_text(text)
    config = read_config(path, **statistics)
    theirs = finetuned.terratorch_task(config, yaml.safe_load(text)["model"]["init_args"])
    return config, theirs, finetuned.save_checkpoint(theirs, folder / "best.ckpt")


@pytest.fixture(scope="module")
def burned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    return task(tmp_path_factory.mktemp("burned"), BURN_SCARS)


def raster(path: Path, values: np.ndarray, names: list[str] | None = None, nodata: float | None = None) -> Path:
    count, height, width = values.shape
    profile = {"crs": "EPSG:32719", "transform": TRANSFORM, "dtype": values.dtype, "nodata": nodata}
    with rasterio.open(path, "w", driver="GTiff", count=count, height=height, width=width, **profile) as dst:
        dst.write(values)
        for i, name in enumerate(names or [], 1):
            dst.set_band_description(i, name)
    return path


def predicted(tmtool: Any, out: Path, checkpoint: Path, *args: Any) -> dict[str, Any]:
    config = checkpoint.with_name("task.yaml")
    result = tmtool("predict", *args, "--config", config, "--checkpoint", checkpoint, *TILING, "-o", out, "--json")
    assert result.exit_code == 0, result.stderr
    facts: dict[str, Any] = json.loads(result.stdout)
    return facts


def read(path: str | Path) -> np.ndarray:
    with rasterio.open(path) as src:
        values: np.ndarray = src.read()
    return values


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=0))
    return np.asarray(powers / powers.sum(axis=0))


def agree(classes: np.ndarray, logits: np.ndarray) -> None:
    """Classes are those of the largest logit, except where two are within a ten-thousandth of the logits' spread."""
    best = np.sort(logits, axis=0)
    clear = best[-1] - best[-2] > 1e-4 * logits.std()
    np.testing.assert_array_equal(classes[clear], logits.argmax(axis=0)[clear])
    assert clear.mean() > 0.99


def test_one_date_is_what_terratorch_gives(tmtool: Any, burned: Any, tmp_path: Path) -> None:
    config, theirs, checkpoint = burned
    scene = finetuned.scene_of(config, *SHAPE)
    (pixels,) = (values[:, 0] for values in scene.values())
    path = raster(tmp_path / "scene.tif", pixels)
    facts = predicted(tmtool, tmp_path / "out", checkpoint, path, "--probabilities")
    logits = finetuned.terratorch_logits(theirs, config, scene, TILES)
    with rasterio.open(facts["products"]["pred"]) as src:
        assert (src.crs, src.transform, src.dtypes, src.nodata) == ("EPSG:32719", TRANSFORM, ("uint8",), 255)
        assert src.tags(1)["CLASS_1"] == "Burned" or "Burned" in str(src.tags(1))
        agree(src.read(1), logits)
        made = json.loads(src.tags()["TMTOOL_PROVENANCE"])
    assert made["task"] == "predict"
    assert len(made["config"]) == 64
    assert list(made["weights"]) == ["best.ckpt"]
    np.testing.assert_allclose(read(facts["products"]["prob"]), softmax(logits), atol=1e-4)


def test_bands_are_known_by_name_whatever_their_order(tmtool: Any, burned: Any, tmp_path: Path) -> None:
    config, _, checkpoint = burned
    (pixels,) = (values[:, 0] for values in finetuned.scene_of(config, 90, 90).values())
    order = [3, 0, 5, 1, 4, 2]
    found = [
        predicted(
            tmtool, tmp_path / stem, checkpoint, raster(tmp_path / f"{stem}.tif", values, names), "--probabilities"
        )
        for stem, values, names in (
            ("in_order", pixels, None),
            ("named", pixels[order], [BANDS[i] for i in order]),
            ("more", np.concatenate([pixels[order], pixels[:1]]), [*(BANDS[i] for i in order), "quality"]),
        )
    ]
    first, *others = (read(facts["products"]["prob"]) for facts in found)
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_nodata_stays_nodata_and_a_stopped_run_resumes(tmtool: Any, burned: Any, tmp_path: Path) -> None:
    config, _, checkpoint = burned
    (pixels,) = (values[:, 0].copy() for values in finetuned.scene_of(config, *SHAPE).values())
    pixels[:, 30:60, 40:90] = -9999
    path = raster(tmp_path / "holed.tif", pixels, nodata=-9999)
    facts = predicted(tmtool, tmp_path / "out", checkpoint, path, "--probabilities", "--dtype", "uint8")
    classes, scores = read(facts["products"]["pred"])[0], read(facts["products"]["prob"])
    hole = np.zeros(SHAPE, bool)
    hole[30:60, 40:90] = True
    np.testing.assert_array_equal(classes == 255, hole)
    np.testing.assert_array_equal((scores == 255).all(axis=0), hole)
    assert abs(scores[:, ~hole].astype(int).sum(axis=0) - 250).max() <= 1
    again = predicted(tmtool, tmp_path / "out", checkpoint, path, "--probabilities", "--dtype", "uint8")
    assert again["status"] == "skipped"


def test_several_dates_and_modalities(tmtool: Any, tmp_path: Path) -> None:
    config, theirs, checkpoint = task(tmp_path, FLOOD, means="pretraining", stds="pretraining")
    scene = finetuned.scene_of(config, *SHAPE, 4)
    scene["DEM"][:] = scene["DEM"][:, :1]
    inputs: list[Any] = []
    for name, values in scene.items():
        for date in range(1 if name == "DEM" else 4):
            inputs += ["--in", f"{name}={raster(tmp_path / f'{name}{date}.tif', values[:, date])}"]
    facts = predicted(tmtool, tmp_path / "out", checkpoint, *inputs, "--means", "pretraining", "--stds", "pretraining")
    agree(read(facts["products"]["pred"])[0], finetuned.terratorch_logits(theirs, config, scene, TILES))
    short = tmtool("predict", *inputs[2:], "--config", tmp_path / "task.yaml", "--checkpoint", checkpoint,
                   "--means", "pretraining", "--stds", "pretraining", "-o", tmp_path / "no")  # fmt: skip
    assert short.exit_code == 2
    assert "same number" in short.stderr


@pytest.mark.parametrize(
    ("changes", "args", "message"),
    [
        ((("terratorch.tasks.SemanticSegmentationTask", "my.tasks.Odd"),), (), "my.tasks.Odd"),
        ((("    means: [0.0333, 0.0570, 0.0588, 0.2323, 0.1972, 0.1194]\n", ""),), (), "--means"),
        ((), ("--checkpoint", "none.ckpt"), "none.ckpt: no such file"),
        ((), ("--in", "DEM=scene.tif"), "task.yaml takes"),
        (
            (("num_classes: 2\n    loss", "num_classes: 3\n    loss"), ("[Others, Burned]", "[A, B, C]")),
            (),
            "best.ckpt",
        ),
    ],
)
def test_what_cannot_work_is_refused(
    tmtool: Any, burned: Any, tmp_path: Path, changes: Any, args: tuple[str, ...], message: str
) -> None:
    config, _, checkpoint = burned
    text = BURN_SCARS
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "task.yaml").write_text(text)
    (pixels,) = (values[:, 0] for values in finetuned.scene_of(config, 40, 40).values())
    path = raster(tmp_path / "scene.tif", pixels)
    inputs = [] if "--in" in args else [path]
    known = ("--config", tmp_path / "task.yaml", "--checkpoint", checkpoint)
    result = tmtool("predict", *inputs, *known, *args, "-o", tmp_path / "out")
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert not list((tmp_path / "out").glob("*.tif")) if (tmp_path / "out").exists() else True


def test_a_raster_of_other_bands_is_refused(tmtool: Any, burned: Any, tmp_path: Path) -> None:
    _, _, checkpoint = burned
    path = raster(tmp_path / "four.tif", np.full((4, 40, 40), 0.1, np.float32))
    config = checkpoint.with_name("task.yaml")
    result = tmtool("predict", path, "--config", config, "--checkpoint", checkpoint, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "needs 6" in result.stderr


def test_from_python_as_from_the_command_line(tmtool: Any, burned: Any, tmp_path: Path) -> None:
    config, _, checkpoint = burned
    (pixels,) = (values[:, 0] for values in finetuned.scene_of(config, *SHAPE).values())
    path = raster(tmp_path / "scene.tif", pixels, BANDS)
    facts = predicted(tmtool, tmp_path / "out", checkpoint, path, "--probabilities", "--dtype", "uint8")
    tiles: Any = {"crop": 96, "stride": 64, "delta": 8, "precision": "fp32"}
    found = predict(path, checkpoint, checkpoint.with_name("task.yaml"), probabilities=True, dtype="uint8", **tiles)
    for name in ("pred", "prob"):
        with rasterio.open(facts["products"][name]) as src:
            np.testing.assert_array_equal(src.read().squeeze(), found[name].values)
            assert found[name].rio.transform() == src.transform
    assert found["pred"].attrs["flag_meanings"] == "Others Burned"
    with pytest.raises(UsageError, match="no_such.ckpt: no such file"):
        predict(path, "no_such.ckpt", checkpoint.with_name("task.yaml"))
    with pytest.raises(UsageError, match="^checkpoint: give the fine-tuned weights"):
        predict(path, config=checkpoint.with_name("task.yaml"))


def test_dates_from_python(tmtool: Any, tmp_path: Path) -> None:
    config, _, checkpoint = task(tmp_path, FLOOD, means="pretraining", stds="pretraining")
    scene = finetuned.scene_of(config, 96, 96, 4)
    rasters = {
        name: [raster(tmp_path / f"{name}{date}.tif", values[:, date]) for date in range(1 if name == "DEM" else 4)]
        for name, values in scene.items()
    }
    inputs = [word for name, paths in rasters.items() for path in paths for word in ("--in", f"{name}={path}")]
    given = ("--means", "pretraining", "--stds", "pretraining")
    facts = predicted(tmtool, tmp_path / "out", checkpoint, *inputs, *given)
    tiles: Any = {"crop": 96, "stride": 64, "delta": 8, "precision": "fp32"}
    task_file = checkpoint.with_name("task.yaml")
    found = predict(rasters, checkpoint, task_file, means="pretraining", stds="pretraining", **tiles)
    np.testing.assert_array_equal(found["pred"].values, read(facts["products"]["pred"])[0])


def test_radar_on_another_grid(tmtool: Any, tmp_path: Path) -> None:
    """Linear power at 20 m of the next zone, with an empty wedge, beside four dates of optical ones: as if it had been warped before."""
    config, _, checkpoint = task(tmp_path, FLOOD, means="pretraining", stds="pretraining")
    scene = finetuned.scene_of(config, 96, 96, 4)
    (x,), (y,) = rasterio.warp.transform("EPSG:32719", "EPSG:32718", [TRANSFORM.c], [TRANSFORM.f])
    there = {
        "crs": "EPSG:32718",
        "transform": rasterio.Affine(20, 0, round(x) - 200, 0, -20, round(y) + 200),
        "nodata": 0,
    }
    rows, cols = np.indices((90, 90))
    inputs, warped = [], []
    for name, values in scene.items():
        for date in range(1 if name == "DEM" else 4):
            path = raster(tmp_path / f"{name}{date}.tif", values[:, date])
            own = path
            if name == "S1RTC":
                power = np.random.default_rng(date).uniform(0.01, 0.4, (2, 90, 90)).astype(np.float32)
                power[:, rows > 1.3 * cols] = 0
                own = tmp_path / f"power{date}.tif"
                with rasterio.open(
                    own, "w", driver="GTiff", count=2, height=90, width=90, dtype="float32", **there
                ) as dst:
                    dst.write(power)
                seen = tmtool_open(own, "S1RTC", unit={"S1RTC": "linear"}, grid=str(tmp_path / "S2L2A0.tif"))
                raster(path, seen.values, nodata=float("nan"))
            inputs += ["--in", f"{name}={own}"]
            warped += ["--in", f"{name}={path}"]
    known = ("--means", "pretraining", "--stds", "pretraining", "--probabilities")
    found = predicted(tmtool, tmp_path / "out", checkpoint, *inputs, *known, "--unit", "S1RTC=linear")
    before = predicted(tmtool, tmp_path / "before", checkpoint, *warped, *known)
    np.testing.assert_array_equal(read(found["products"]["pred"]), read(before["products"]["pred"]))
    np.testing.assert_array_equal(read(found["products"]["prob"]), read(before["products"]["prob"]))
    assert 0.2 < (read(found["products"]["pred"]) == 255).mean() < 0.8  # the wedge


def test_on_workers_as_alone(tmtool: Any, burned: Any, tmp_path: Path) -> None:
    config, _, checkpoint = burned
    (pixels,) = (values[:, 0] for values in finetuned.scene_of(config, *SHAPE).values())
    path = raster(tmp_path / "scene.tif", pixels, BANDS)
    alone = predicted(tmtool, tmp_path / "alone", checkpoint, path, "--batch-size", 2)
    shared = predicted(tmtool, tmp_path / "shared", checkpoint, path, "--batch-size", 2, "--cluster", "local:1")
    np.testing.assert_array_equal(read(alone["products"]["pred"]), read(shared["products"]["pred"]))


def test_info_says_what_a_task_wants(tmtool: Any, burned: Any, tmp_path: Path) -> None:
    config, _, checkpoint = burned
    known = ("--config", checkpoint.with_name("task.yaml"))
    said = tmtool("info", *known)
    assert said.exit_code == 0, said.stderr
    assert "segmentation, 2 channels: Others, Burned" in said.stdout
    assert "by position B02 B03 B04 B8A B11 B12" in said.stdout
    facts = json.loads(tmtool("info", *known, "--json").stdout)
    assert facts["inputs"][0]["means"][5] == [0.1194]
    assert facts["tiles"] == {"crop": 224, "stride": 192, "delta": 8}
    (pixels,) = (values[:, 0] for values in finetuned.scene_of(config, 40, 40).values())
    odd = raster(tmp_path / "odd.tif", pixels, ["b", "g", "r", "n", "s1", "s2"])
    said = tmtool("info", odd, *known)
    assert said.exit_code == 0, said.stderr
    assert "taken by position for B02 B03 B04 B8A B11 B12" in said.stdout
    assert "To predict with finetuned" in said.stdout
    few = raster(tmp_path / "few.tif", pixels[:4])
    assert "needs 6" in tmtool("info", few, *known).stderr


def test_a_task_on_the_hub(burned: Any, tmp_path: Path) -> None:
    _, _, checkpoint = burned
    config = checkpoint.with_name("task.yaml")
    files = {"acme/burned/burned.yaml": config, "acme/burned/weights/best.ckpt": checkpoint}
    files |= {
        f"acme/two/{name}": path for name, path in (("a.yaml", config), ("1.pt", checkpoint), ("2.pt", checkpoint))
    }
    with serving(files) as hub:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TMTOOL_"))}
        env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}

        def info(*args: str) -> subprocess.CompletedProcess[str]:
            words = [sys.executable, "-m", "tmtool", "info", *args]
            return subprocess.run(words, capture_output=True, text=True, check=False, env=env, cwd=ROOT)

        told = info("--model-hub", "acme/burned", "--offline")
        assert told.returncode == 2
        assert "hf download acme/burned" in told.stderr
        done = info("--model-hub", "acme/burned")
        assert done.returncode == 0, done.stderr
        assert "segmentation, 2 channels: Others, Burned" in done.stdout
        (stored,) = (tmp_path / "hf").rglob("best.ckpt")
        assert stored.read_bytes() == checkpoint.read_bytes()
        seen = len(hub.requests)
        assert info("--model-hub", "acme/burned", "--offline").returncode == 0
        assert info("--model-hub", "acme/burned").returncode == 0
        assert len(hub.requests) == seen
        told = info("--model-hub", "acme/two")
        assert told.returncode == 2
        assert "holds 1.pt, 2.pt. Say which: --checkpoint 1.pt" in told.stderr
        assert info("--model-hub", "acme/two", "--checkpoint", "2.pt").returncode == 0
        assert "there is no such repository" in info("--model-hub", "acme/none").stderr
        assert "give a repository" in info("--model-hub", "acme").stderr
