"""Seams: what tiles differ by where they overlap, and the steps at their borders; measured while stitching."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from tests.test_engine import feed_of
from tmtool.files.journal import Journal, Record, read
from tmtool.grid import OutputSpec, TileBatch
from tmtool.settings import Tiling
from tmtool.tiles.engine import Engine
from tmtool.tiles.overlaps import Overlaps, by_tile
from tmtool.tiles.plan import TilePlan
from tmtool.tiles.seams import STEP_LIMIT, parse_tile_map, tile_map

X = OutputSpec("x", 2, seams="values")


class Offset:
    """Gives its input back in two bands, plus a number for each tile that depends on its place; nothing else."""

    def __init__(self, plan: TilePlan, size: float = 1.0) -> None:
        self.of = {
            (tile.row, tile.col): size * np.random.default_rng([tile.tile_row, tile.tile_col]).normal(size=2)
            for tile in plan.tiles(range(plan.counts[0]), range(plan.counts[1]))
        }

    def __call__(self, batch: TileBatch) -> dict[str, np.ndarray]:
        offsets = np.array(
            [self.of[at] for at in zip(batch.rows.tolist(), batch.cols.tolist(), strict=True)], np.float32
        )
        return {"x": batch.pixels["any"] + offsets[:, :, None, None]}


def by_hand(
    plan: TilePlan, model: Offset, valid: np.ndarray
) -> dict[tuple[int, int, int, int], tuple[int, np.ndarray, np.ndarray]]:
    """Count, sum and sum of squares of each pair's differences, from whole tiles laid on the raster one by one."""
    laid = []
    for tile in plan.tiles(range(plan.counts[0]), range(plan.counts[1])):
        w = plan.place(tile, X).window
        part = np.full((2, *plan.shape), np.nan)
        at = (slice(w.row, w.row + w.height), slice(w.col, w.col + w.width))
        part[:, *at] = np.where(valid[at], model.of[tile.row, tile.col][:, None, None], np.nan)
        laid.append(((tile.tile_row, tile.tile_col), part))
    found = {}
    for i, (first, a) in enumerate(laid):
        for second, b in laid[i + 1 :]:
            apart = b - a
            if (count := int((~np.isnan(apart[0])).sum())) > 0:
                found[*first, *second] = (count, np.nansum(apart, axis=(1, 2)), np.nansum(apart**2, axis=(1, 2)))
    return found


@pytest.mark.parametrize("tiling", [Tiling(64, 48, 4), Tiling(64, 16, 0), Tiling(48, 33, 7), Tiling(64, 56, 4)])
def test_overlaps_equal_whole_tiles_laid_over_each_other(tiling: Tiling) -> None:
    raster = np.random.default_rng(1).normal(size=(1, 150, 135)).astype(np.float32)
    valid = np.ones((150, 135), bool)
    valid[30:75, 40:110] = False
    valid[:, :9] = False
    plan = TilePlan((150, 135), tiling)
    model = Offset(plan)
    engine = Engine(plan, [X], feed_of(raster, valid), [model], 4)
    found = Overlaps.total((strip.overlaps for _, strip in engine.strips()), 2)
    expected = by_hand(plan, model, valid)
    assert [tuple(pair) for pair in found.tiles.tolist()] == sorted(expected)
    for pair, count, total, squares in zip(found.tiles.tolist(), found.counts, found.sums, found.squares, strict=True):
        assert count == expected[tuple(pair)][0]
        np.testing.assert_allclose(total, expected[tuple(pair)][1], rtol=1e-4, atol=1e-2)
        np.testing.assert_allclose(squares, expected[tuple(pair)][2], rtol=1e-4, atol=1e-3)
    if tiling.stride < tiling.crop - 2 * tiling.delta:
        n = sum(count for count, _, _ in expected.values())
        np.testing.assert_allclose(found.rms, np.sqrt(sum(s for _, _, s in expected.values()) / n), rtol=1e-4)
    else:
        assert np.isnan(found.rms).all()
    parts = []
    for rows in (range(0, 61), range(61, 103), range(103, 150)):
        for cols in (range(0, 80), range(80, 135)):
            parts += [strip.overlaps for _, strip in engine.strips(rows, cols)]
    apart = Overlaps.total(parts, 2)
    np.testing.assert_array_equal(apart.tiles, found.tiles)
    np.testing.assert_array_equal(apart.counts, found.counts)
    np.testing.assert_allclose(apart.squares, found.squares, rtol=1e-9)
    again = Overlaps.parse(found.text())
    for name in ("tiles", "counts", "sums", "squares"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))


def test_classes_differ_or_do_not() -> None:
    raster = np.random.default_rng(1).normal(size=(1, 150, 135)).astype(np.float32)
    plan, spec = TilePlan((150, 135), Tiling(64, 48, 4)), replace(X, seams="classes")
    model = Offset(plan, 0.2)
    engine = Engine(plan, [spec], feed_of(raster), [model], 4)
    found = Overlaps.total((strip.overlaps for _, strip in engine.strips()), 1)
    for (r0, c0, r1, c1), count, total in zip(found.tiles.tolist(), found.counts, found.sums[:, 0], strict=True):
        one, other = (model.of[-4 + 48 * r, -4 + 48 * c].argmax() for r, c in ((r0, c0), (r1, c1)))
        assert total == (count if one != other else 0)
    assert 0 < found.rms[0] < 1


def test_tiles_that_differ_are_told() -> None:
    pairs = np.array([[0, 0, 0, 1], [0, 0, 1, 0]])
    found = by_tile(Overlaps(pairs, np.array([10, 30]), np.zeros((2, 1)), np.array([[40.0], [0.0]])), np.array([2.0]))
    assert found == pytest.approx({(0, 0): 0.5, (0, 1): 1.0, (1, 0): 0.0})


SAMPLE = Path(__file__).parent.parent / "samples" / "demo_scene.tif"


@pytest.mark.parametrize(("tiles", "seen"), [((64, 48, 4), False), ((64, 64, 0), True)])
def test_a_broken_blend_is_told_and_the_usual_one_is_not(
    tiles: tuple[int, int, int], seen: bool, tmtool: Any, tmp_path: Path
) -> None:
    """Tiles side by side, without a margin, show; the default's proportions do not."""
    tiling = [word for name, px in zip(("crop", "stride", "delta"), tiles, strict=True) for word in (f"--{name}", px)]
    asked = ("--model", "demo", "--out", "S1GRD,LULC", "--solver", "dpm", "--window", "0,0,300,300", "--json")
    result = tmtool("generate", SAMPLE, *asked, *tiling, "-o", tmp_path)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    for product, bands in (("S1GRD", ["VV", "VH"]), ("LULC", ["class"])):
        seams = found["measured"][product]["seams"]
        assert list(seams["steps"]) == bands
        assert all((step > STEP_LIMIT) == seen for step in seams["steps"].values())
        assert all((value is None) == seen for value in seams["overlap"].values())
        assert any(product in warning for warning in found["warnings"]) == seen
        with rasterio.open(found["products"][product]) as src:
            tags = src.tags()
            assert json.loads(tags["TMTOOL_PROVENANCE"])["seams"] == seams
            tiled = parse_tile_map(tags)
            values = src.read(1)
        assert (tiled is None) == seen
        if tiled is not None:
            assert (tiled.top, tiled.left, tiled.step) == (4, 4, 48)
            assert tiled.values.shape == (7, 7)
            assert (tiled.values > 0).all()
            assert tiled.unit == ("of px" if product == "LULC" else "std")
    if seen:  # the last product's, held against plain numpy
        apart = (values[:, 1:] != values[:, :-1]).mean(axis=0), (values[1:] != values[:-1]).mean(axis=1)
        places = np.arange(1, 300)
        border = places % 64 == 0
        like = (places % 16 == 0) & ~border
        ratio = sum(a[border].sum() for a in apart) / border.sum() / (sum(a[like].sum() for a in apart) / like.sum())
        assert seams["steps"]["class"] == pytest.approx(ratio, rel=1e-3)


def test_what_an_interrupted_run_measured_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    found = Overlaps(np.array([[0, 0, 0, 1]]), np.array([10]), np.array([[1.5]]), np.array([[40.0]]))
    journal = Journal(path, {"making": {}})
    journal.begin()
    journal.add(Record(64, {}, True, 0, {"x": found.text()}))
    again = read(path)
    assert again is not None
    (record,) = again.records
    np.testing.assert_array_equal(Overlaps.parse(record.overlaps["x"]).squares, found.squares)


def test_maps_of_many_tiles_are_averaged() -> None:
    plan = TilePlan((9000, 9000), Tiling(64, 48, 4))
    rows, cols = np.divmod(np.arange(180 * 180), 180)
    pairs = np.stack([rows, cols, rows, cols + 1], axis=1)
    squares = np.where(rows < 90, 4.0, 16.0)[:, None]
    tags = tile_map(plan, X, Overlaps(pairs, np.ones(len(pairs), np.int64), squares, squares), np.ones(1))
    found = parse_tile_map(tags)
    assert found is not None
    assert found.values.size <= 4096
    assert (found.step, found.values[0, 0], found.values[-1, -1]) == (48 * 3, 2, 4)
    assert parse_tile_map({"TMTOOL_SEAMS": "{broken"}) is None
