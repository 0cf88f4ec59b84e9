"""`--samples`: several draws in one pass are those of consecutive seeds, combined as one would by hand."""

import json
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from scipy.special import softmax
from scipy.stats import entropy

from tests.test_engine import feed_of
from tmtool.grid import OutputSpec, TileBatch
from tmtool.modality import MODALITIES
from tmtool.models import memory
from tmtool.products.draws import of_draws
from tmtool.products.product import pixels_of
from tmtool.settings import Tiling
from tmtool.tiles import draws as combining
from tmtool.tiles.draws import Combining, calls
from tmtool.tiles.engine import Engine
from tmtool.tiles.plan import TilePlan

SAMPLE = Path(__file__).parent.parent / "samples" / "demo_scene.tif"
SMALL = ("--model", "demo", "--crop", 64, "--stride", 48, "--delta", 4, "--batch-size", 5, "--device", "cpu")
N = 3


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corner of the sample with a hole, of 9 tiles of 64 px: their number is no multiple of the batch."""
    path = tmp_path_factory.mktemp("samples") / "corner.tif"
    with rasterio.open(SAMPLE) as src:
        values = src.read(window=((0, 140), (0, 150)))
        values[:, 20:50, 60:90] = 0
        profile = {**src.profile, "height": 140, "width": 150, "nodata": 0, "blockxsize": 64, "blockysize": 64}
        with rasterio.open(path, "w", **profile) as dst:
            dst.write(values)
            dst.descriptions = src.descriptions
    return path


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as src:
        return np.where(src.dataset_mask() > 0, src.read(), np.nan)


def test_draws_equal_runs_with_consecutive_seeds_bit_for_bit(tmtool: Any, scene: Path, tmp_path: Path) -> None:
    outputs = ("--out", "S1GRD,LULC")
    together = tmtool("generate", scene, *outputs, *SMALL, "--seed", 7, "--samples", N, "-o", tmp_path, "--json")
    assert together.exit_code == 0, together.stderr
    products = json.loads(together.stdout)["products"]
    assert list(products) == ["S1GRD", "S1GRD_std", "LULC", "LULC_prob", "LULC_entropy"]
    draws = []
    for n in range(N):
        own = tmp_path / str(n)
        assert tmtool("generate", scene, *outputs, *SMALL, "--seed", 7 + n, "-o", own).exit_code == 0
        draws.append(read(own / "corner_S1GRD.tif").astype(np.float64))
    assert not np.array_equal(draws[0], draws[1], equal_nan=True)
    np.testing.assert_array_equal(read(Path(products["S1GRD"])), np.mean(draws, axis=0).astype(np.float32))
    np.testing.assert_array_equal(read(Path(products["S1GRD_std"])), np.std(draws, axis=0, ddof=1).astype(np.float32))
    probability, classes = read(Path(products["LULC_prob"])), read(Path(products["LULC"]))
    valid = ~np.isnan(probability[0])
    assert 0 < valid.sum() < valid.size
    np.testing.assert_allclose(probability[:, valid].sum(axis=0), 1, rtol=1e-6)
    np.testing.assert_array_equal(probability[:, valid].argmax(axis=0), classes[0][valid])
    np.testing.assert_allclose(
        read(Path(products["LULC_entropy"]))[0][valid], entropy(probability[:, valid]), rtol=1e-5, atol=1e-6
    )
    with rasterio.open(products["S1GRD_std"]) as src:
        made = json.loads(src.tags()["TMTOOL_PROVENANCE"])
        assert (made["samples"], made["measure"], made["seed"], made["sampling"]["samples"]) == (N, "std", 7, N)
        assert src.units[0] == "dB"


def test_reconstruct_draws_too(tmtool: Any, scene: Path, tmp_path: Path) -> None:
    small = ("--model", "demo", "--crop", 64, "--stride", 32, "--delta", 16, "--batch-size", 4)
    assert tmtool("reconstruct", scene, *small, "--samples", 2, "-o", tmp_path).exit_code == 0
    draws = []
    for n in range(2):
        assert tmtool("reconstruct", scene, *small, "--seed", n, "-o", tmp_path / str(n)).exit_code == 0
        draws.append(read(tmp_path / str(n) / "corner_S2L2A_rec.tif"))
    mean = read(tmp_path / "corner_S2L2A_rec.tif")
    np.testing.assert_array_equal(mean, np.rint(np.mean(draws, axis=0)))
    spread = read(tmp_path / "corner_S2L2A_rec_std.tif")
    np.testing.assert_array_equal(spread, np.std(draws, axis=0, ddof=1).astype(np.float32))


class Shifted:
    """Gives its input back, plus a number that depends on the draw; counts the lengths of the batches."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, batch: TileBatch) -> Mapping[str, np.ndarray]:
        assert batch.draws is not None
        self.lengths.append(len(batch.draws.index))
        values = batch.pixels["any"][batch.draws.index]
        return {"x": values + (batch.draws.number.astype(np.float32) ** 2)[:, None, None, None]}


def shifted(raster: np.ndarray, draws: int, batch: int, tmp_path: Path) -> tuple[Any, Shifted, Engine]:
    whole = OutputSpec("x", 1, draws=draws)
    spread = OutputSpec("x_std", 1, draws=draws, of="x")

    def combine(strips: Any) -> Mapping[str, np.ndarray]:
        values = np.stack([strip.values for strip in strips])
        return {"x": values.mean(axis=0), "x_std": values.std(axis=0)}

    model, plan = Shifted(), TilePlan(raster.shape, Tiling(64, 48, 4))
    feeds = feed_of(raster[None])
    engine = Engine(plan, [whole, spread], feeds, [model], batch, combining=Combining({"x": combine}, tmp_path))
    return plan, model, engine


@pytest.mark.parametrize("rows", [range(0, 150), range(37, 101)])
def test_batches_are_filled_across_draws(tmp_path: Path, rows: range) -> None:
    raster = np.random.default_rng(0).normal(size=(150, 130)).astype(np.float32)
    draws = 5
    plan, model, engine = shifted(raster, draws, 4, tmp_path)
    found = {"x": np.zeros((len(rows), 130)), "x_std": np.zeros((len(rows), 130))}
    for spec, strip in engine.strips(rows):
        found[spec.name][strip.row - rows.start : strip.row - rows.start + len(strip.valid)] = strip.values[0]
    np.testing.assert_allclose(
        found["x"], raster[rows.start : rows.stop] + np.mean(np.arange(5) ** 2), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(found["x_std"], np.std(np.arange(5.0) ** 2), rtol=1e-4)
    tiles = len(plan.tile_rows(rows, engine.specs[0])) * plan.counts[1]
    assert set(model.lengths) == {4}
    full, rest = divmod(tiles, 4)
    assert len(model.lengths) == full * draws + -(-rest * draws // 4)
    assert not list(tmp_path.iterdir()), "the draws that waited on disk are gone"


def test_memory_does_not_grow_with_the_number_of_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combining, "_AT_ONCE", 1 << 19)  # beside rows of 0.6 MB a draw
    raster = np.zeros((110, 3000), np.float32)
    peaks = []
    for draws in (2, 12):
        _, _, engine = shifted(raster, draws, 2, tmp_path)
        tracemalloc.start()
        for _ in engine.strips():
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.15 * peaks[0]


def test_exhausted_devices_halve_batches_of_draws_too() -> None:
    pixels = np.arange(3, dtype=np.float32)[:, None, None, None]
    batch = TileBatch({"any": pixels}, np.arange(3), np.arange(3))
    for draws in calls(3, 3, 4):
        call = replace(batch, draws=draws)
        whole = Shifted()(call)["x"]

        def small(part: TileBatch) -> Any:
            assert len(part.rows) == len(part.pixels["any"])
            if len(part.rows) > 1:
                raise RuntimeError("CUDA error: out of memory")
            return Shifted()(part)

        np.testing.assert_array_equal(memory.BackOff(small)(call)["x"], whole)


def test_classes_by_the_mean_of_the_draws_probabilities() -> None:
    from tmtool.grid import Strip

    modality = MODALITIES["LULC"]
    logits = np.random.default_rng(1).normal(0, 3, (4, modality.channels, 6, 5)).astype(np.float32)
    product = of_draws(pixels_of(modality), modality, 4)[0]
    assert product.combine is not None
    made = product.combine([Strip(0, one, np.ones((6, 5), bool)) for one in logits])
    np.testing.assert_allclose(made["LULC_prob"], softmax(logits.astype(float), axis=1).mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(made["LULC_entropy"][0], entropy(made["LULC_prob"]), rtol=1e-9)


@pytest.mark.parametrize(
    ("asked", "words"),
    [(("--samples", 0, "--out", "S1GRD"), "--samples 0 is out of range"),
     (("--samples", 2, "--out", "coords,S1GRD"), "coords has no mean")],
)  # fmt: skip
def test_what_cannot_be_sampled_is_refused(tmtool: Any, scene: Path, asked: Any, words: str, tmp_path: Path) -> None:
    result = tmtool("generate", scene, "--weights", "random", "--model", "tiny", *asked, "-o", tmp_path)
    assert result.exit_code == 2
    assert words in result.stderr
