"""The demo model: what it says of itself, what it makes of the sample, and its scores on held-out synthetic scenes."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from tests.conftest import ROOT
from tests.specs import spec_of
from tmtool.modality import LULC_CLASSES, MODALITIES
from tmtool.models import MODELS

SCENE = ROOT / "samples" / "demo_scene.tif"
OUTPUTS = ("LULC", "NDVI", "S1GRD")


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sample's products, made as `make demo` makes them."""
    from typer.testing import CliRunner

    from tmtool.cli import app

    out = tmp_path_factory.mktemp("demo")
    args = ["generate", str(SCENE), "--out", ",".join(OUTPUTS), "--model", "demo", "--temperature", "0", "-o", str(out)]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("DEMONSTRATION MODEL") == 1
    assert result.stdout.split() == [str(out / f"demo_scene_{m}.tif") for m in OUTPUTS]
    return {m: out / f"demo_scene_{m}.tif" for m in OUTPUTS}


def test_products_say_that_they_are_a_demonstration(products: dict[str, Path]) -> None:
    for path in products.values():
        with rasterio.open(path) as src:
            provenance = json.loads(src.tags()["TMTOOL_PROVENANCE"])
        assert "not TerraMind's weights" in provenance["warning"]
        assert provenance["model"] == "demo"
        assert "tmtool/core.safetensors" in provenance["weights"]


def test_products_cover_the_valid_part_of_the_sample(products: dict[str, Path]) -> None:
    with rasterio.open(SCENE) as src:
        valid = (src.read() != 0).all(axis=0)
        grid = (src.crs, src.transform)
    for name, path in products.items():
        with rasterio.open(path) as src:
            assert (src.crs, src.transform) == grid
            mask = src.dataset_mask() > 0
        assert not mask[~valid].any()
        assert mask[valid].mean() > (0.999 if name == "LULC" else 1 - 1e-9)
    with rasterio.open(products["LULC"]) as src:
        found = np.unique(src.read(1))
    assert {1, 2, 4, 5, 8, 9} <= set(found.tolist())


@pytest.mark.parametrize("name", OUTPUTS)
def test_no_tile_grid_is_visible(products: dict[str, Path], name: str) -> None:
    """The mean absolute step where a tile begins or ends is at most 1.15 times the step elsewhere."""
    with rasterio.open(products[name]) as src:
        values = src.read(1).astype(float)
    if name == "LULC":
        values[values == 0] = np.nan
    at_borders, elsewhere = [], []
    for axis in (0, 1):
        step = np.abs(np.diff(values, axis=axis))
        step = np.minimum(step, 1) if name == "LULC" else step
        lines = np.moveaxis(step, axis, 0)
        borders = {192 * i + edge for i in range(5) for edge in (0, 240)}
        at = np.array([i + 1 in borders for i in range(len(lines))])
        assert at.sum() >= 4
        at_borders.append(lines[at].ravel())
        elsewhere.append(lines[~at].ravel())
    ratio = np.nanmean(np.concatenate(at_borders)) / np.nanmean(np.concatenate(elsewhere))
    assert ratio <= 1.15


def test_what_it_did_not_learn_is_not_offered(tmtool: Any, tmp_path: Path) -> None:
    result = tmtool("generate", SCENE, "--out", "DEM", "--model", "demo", "-o", tmp_path)
    assert result.exit_code == 2
    assert "cannot make DEM (what it learned of elevation was not good enough" in result.stderr


def test_the_package_stays_small_and_the_registry_is_true() -> None:
    from tmtool.models import demo

    entry = MODELS["demo"]
    assert set(entry.outputs) == set(demo.DEMO_OUTPUTS)
    files = entry.files(spec_of("demo", "generate", ("S2L2A",), demo.DEMO_OUTPUTS))
    paths = {file.packaged for file in files if file.packaged}
    assert paths == set((Path(demo.__file__).parent / "demo_weights").glob("*.safetensors"))
    assert sum(path.stat().st_size for path in paths) <= 12e6
    made = {name.split(".")[1] for name in demo.core_state() if name.startswith("encoder_embeddings.")}
    assert {MODALITIES[m].raw_key for m in entry.inputs} <= made


@pytest.mark.parametrize("source", ["S2L2A", "S1RTC", "DEM"])
def test_real_chips_run_from_every_kind_of_input(tmtool: Any, examples: Path, tmp_path: Path, source: str) -> None:
    chip = examples / source / "282D_485L_3_3.tif"
    args = ["--out", "LULC,NDVI,S1GRD", "--model", "demo", "--in", source, "-o", tmp_path]
    result = tmtool("generate", chip, *args)
    assert result.exit_code == 0, result.stderr
    assert "DEMONSTRATION" in result.stderr
    with rasterio.open(tmp_path / "282D_485L_3_3_LULC.tif") as src:
        assert src.read(1).max() < len(LULC_CLASSES)


def test_scores_on_held_out_scenes() -> None:
    """A small fixed set, with a margin; samples/DEMO_MODEL.md has the scores of the full one, and of every band."""
    sys.path.insert(0, str(ROOT))
    from samples.score_demo import score

    scores = score(scenes=2)
    assert scores["LULC accuracy"] >= 0.82
    assert scores["LULC mIoU"] >= 0.62
    assert scores["NDVI r"] >= 0.91
    assert scores["S1GRD VV r"] >= 0.75
    assert scores["S1GRD VV RMSE"] <= 3.0
    assert scores["S2L2A tokenizer r, worst band"] >= 0.8


def test_another_solver_makes_another_product(tmtool: Any, tmp_path: Path) -> None:
    args = (
        "generate",
        ROOT / "samples" / "demo_scene.tif",
        "--out",
        "NDVI",
        "--model",
        "demo",
        "--window",
        "0,0,96,96",
        "-o",
        tmp_path,
        "--json",
    )
    first = json.loads(tmtool(*args).stdout)
    with rasterio.open(first["products"]["NDVI"]) as src:
        said, ddim = json.loads(src.tags()["TMTOOL_PROVENANCE"])["sampling"], src.read()
    assert said["timesteps"] == 10
    assert "solver" not in said
    result = tmtool(*args, "--solver", "dpm")
    assert result.exit_code == 2
    assert "sampling.solver: was null, is dpm; sampling.timesteps: was 10, is 4" in result.stderr
    again = json.loads(tmtool(*args, "--solver", "dpm", "--stale", "redo").stdout)
    with rasterio.open(again["products"]["NDVI"]) as src:
        said, dpm = json.loads(src.tags()["TMTOOL_PROVENANCE"])["sampling"], src.read()
    assert (said["solver"], said["timesteps"]) == ("dpm", 4)
    assert 0 < np.nanmean(np.abs(ddim - dpm)) < 0.05
    assert json.loads(tmtool(*args, "--solver", "dpm").stdout)["status"] == "skipped"
