"""`--level`: tiles that a model gives at random levels come back to one, and nothing else moves."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine

from tests import simple_models
from tests.conftest import TRANSFORM
from tests.simple_models import FAILURES
from tmtool.grid import TileBatch

SPREAD = 50.0
TILES = ("--crop", 64, "--stride", 48, "--delta", 4, "--batch-size", 4)


class Adrift:
    """Adds to all pixels of a tile a number of its own, of standard deviation `spread`."""

    def __init__(self, inner: Any, spread: float) -> None:
        self.inner, self.spread = inner, spread

    def __call__(self, batch: TileBatch) -> dict[str, np.ndarray]:
        drift = [
            self.spread * np.random.default_rng([abs(r) + 1, abs(c) + 1]).normal()
            for r, c in zip(batch.rows.tolist(), batch.cols.tolist(), strict=True)
        ]
        shift = np.array(drift, np.float32)[:, None, None, None]
        return {name: v + shift if name == "DEM" else v for name, v in self.inner(batch).items()}


@pytest.fixture
def adrift(identity: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a model that gives its input back with tiles adrift, by `FAILURES["spread"]`."""
    build = simple_models.build
    monkeypatch.setattr(simple_models, "build", lambda spec: Adrift(build(spec), FAILURES.get("spread", SPREAD)))
    return identity


@pytest.fixture
def scene(make_raster: Any) -> tuple[Path, np.ndarray]:
    """A relief as the first of twelve bands, with a hole, and a part that hangs together with nothing else."""
    y, x = np.mgrid[:330, :420]
    relief = (900 + 300 * np.sin(y / 60) * np.cos(x / 45) + np.random.default_rng(0).normal(0, 5, y.shape)).round()
    values = np.stack([relief + 10 * band for band in range(12)]).astype(np.int16)
    values[:, 100:180, 60:150] = 0
    values[:, :, 330:395] = 0
    path = make_raster(values, "relief.tif", nodata=0)
    return path, np.where(values[0] != 0, values[0], np.nan).astype(float)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as src:
        return np.where(src.dataset_mask() > 0, src.read(1), np.nan).astype(float)


def run(tmtool: Any, path: Path, out: Path, model: str, *args: Any) -> dict[str, Any]:
    result = tmtool("generate", path, "--in", "S2L2A", "--model", model, *TILES, "-o", out, "--json", *args)
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_random_levels_come_back(tmtool: Any, scene: Any, adrift: str, tmp_path: Path) -> None:
    path, truth = scene
    plain = run(tmtool, path, tmp_path / "plain", adrift, "--out", "DEM,LULC")
    found = run(tmtool, path, tmp_path / "level", adrift, "--out", "DEM,LULC", "--level", "DEM")
    off = read(Path(plain["products"]["DEM"])) - truth
    assert np.nanstd(off) > 0.3 * SPREAD
    left = read(Path(found["products"]["DEM"])) - truth
    assert np.array_equal(np.isnan(left), np.isnan(truth))
    for part in (left[:, :330], left[:, 395:]):  # they hang together with nothing, and keep a level of their own
        assert np.nanstd(part) < 0.05 * SPREAD
    assert abs(np.nanmean(left) - np.nanmean(off)) < 0.5 * SPREAD
    np.testing.assert_array_equal(read(Path(found["products"]["LULC"])), read(Path(plain["products"]["LULC"])))
    level = found["measured"]["DEM"]["level"]["elevation"]
    assert level["overlap_before"] == pytest.approx(plain["measured"]["DEM"]["seams"]["overlap"]["elevation"], rel=1e-3)
    assert level["overlap_after"] < 0.01 * level["overlap_before"]
    assert found["measured"]["DEM"]["seams"]["overlap"]["elevation"] == pytest.approx(level["overlap_after"], abs=0.01)
    assert 0.5 * SPREAD < level["offset_std"] < 2 * SPREAD
    with rasterio.open(found["products"]["DEM"]) as src:
        made = json.loads(src.tags()["TMTOOL_PROVENANCE"])
        assert made["level"] == {"outputs": ["DEM"]}
        assert float(src.tags(1)["STATISTICS_MAXIMUM"]) == np.nanmax(src.read(1, masked=True))
    again = tmtool(
        "generate", path, "--in", "S2L2A", "--model", adrift, *TILES, "-o", tmp_path / "level", "--out", "DEM,LULC"
    )
    assert again.exit_code == 2
    assert "level" in again.stderr, "products made otherwise are told"


def test_a_level_scene_is_left_as_it_is(tmtool: Any, scene: Any, adrift: str, tmp_path: Path) -> None:
    FAILURES["spread"] = 0.0
    path, truth = scene
    found = run(tmtool, path, tmp_path, adrift, "--out", "DEM", "--level", "DEM")
    np.testing.assert_allclose(read(Path(found["products"]["DEM"])), truth, atol=1e-3)


def test_a_single_row_of_tiles_and_a_single_tile(tmtool: Any, make_raster: Any, adrift: str, tmp_path: Path) -> None:
    """Such scenes have no journal."""
    for name, width in (("row", 240), ("tile", 60)):
        values = np.full((12, 60, width), 700, np.int16)
        values[:, :, 0] = 710
        path = make_raster(values, f"{name}.tif", nodata=0)
        found = run(tmtool, path, tmp_path, adrift, "--out", "DEM", "--level", "DEM")
        left = read(Path(found["products"]["DEM"])) - values[0]
        assert np.ptp(left) < 0.05 * SPREAD


def test_to_a_coarse_reference(tmtool: Any, scene: Any, adrift: str, tmp_path: Path, make_raster: Any) -> None:
    path, truth = scene
    blocks = np.nan_to_num(truth, nan=900).reshape(110, 3, 140, 3).mean(axis=(1, 3))
    coarse = make_raster(blocks[None].astype(np.float32), "dem_30m.tif", transform=TRANSFORM @ Affine.scale(3))
    found = run(tmtool, path, tmp_path, adrift, "--out", "DEM", "--level", "DEM", "--level-to", coarse)
    left = read(Path(found["products"]["DEM"])) - truth
    assert np.nanstd(left) < 0.05 * SPREAD
    assert abs(np.nanmean(left)) < 0.05 * SPREAD
    with rasterio.open(found["products"]["DEM"]) as src:
        assert json.loads(src.tags()["TMTOOL_PROVENANCE"])["level"] == {"outputs": ["DEM"], "to": "dem_30m.tif"}


def test_an_interrupted_run_is_levelled_as_a_whole(tmtool: Any, scene: Any, adrift: str, tmp_path: Path) -> None:
    path, _ = scene
    whole = run(tmtool, path, tmp_path / "whole", adrift, "--out", "DEM", "--level", "DEM")
    FAILURES.update(signal=signal.SIGTERM, at=9)
    args = ("--in", "S2L2A", "--model", adrift, *TILES, "--out", "DEM", "--level", "DEM", "-o", tmp_path / "cut")
    assert tmtool("generate", path, *args).exit_code == 143
    FAILURES.clear()
    resumed = run(tmtool, path, tmp_path / "cut", adrift, "--out", "DEM", "--level", "DEM")
    assert resumed["from_row"] > 0
    assert resumed["measured"] == whole["measured"]
    np.testing.assert_array_equal(read(Path(resumed["products"]["DEM"])), read(Path(whole["products"]["DEM"])))


@pytest.mark.parametrize(
    ("asked", "words"),
    [(("--out", "LULC", "--level", "DEM"), "--out does not ask for it"),
     (("--out", "LULC,DEM", "--level", "LULC,DEM"), "--level LULC: only DEM"),
     (("--out", "DEM,NDVI", "--level", "DEM,NDVI", "--level-to", "a.tif"), "is the level of one modality"),
     (("--out", "DEM", "--level-to", "a.tif"), "--level names none"),
     (("--out", "DEM", "--level", "DEM", "--level-to", "no.tif"), "no.tif")],
)  # fmt: skip
def test_what_cannot_be_levelled_is_refused(
    asked: Any, words: str, tmtool: Any, scene: Any, identity: str, tmp_path: Path
) -> None:
    result = tmtool("generate", scene[0], "--in", "S2L2A", "--model", identity, *asked, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert words in result.stderr
    assert not list((tmp_path / "out").glob("*.tif"))
