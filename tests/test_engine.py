"""Tiles in, rows out: models with known answers over awkward sizes."""

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from terratorch.tasks.tiled_inference import get_blend_mask

from tests.simple_models import BlockMean, Constant, Coordinates, Identity, Noisy
from tmtool.errors import UsageError
from tmtool.grid import OutputSpec, Tile, Window, reflect
from tmtool.tiles.batches import Feed, TileInput, collate, load, read_ahead
from tmtool.tiles.engine import Engine
from tmtool.tiles.plan import TilePlan, Tiling, blend_window
from tmtool.tiles.stitch import Stitcher

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = [
    (1, 1), (1, 600), (15, 16), (16, 17), (17, 15), (100, 208), (209, 100), (223, 257), (224, 224), (225, 240), (241, 223),
    (255, 256), (256, 255), (257, 1), (256, 256), (511, 237), (600, 100), (16, 1591), (600, 600),
]  # fmt: skip
TILINGS = [Tiling(256, s, 8) for s in (192, 224, 128, 100)]
X = OutputSpec("x", 1)


def scene(shape: tuple[int, int], bands: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 30, (bands, *shape)).astype(np.float32)


def feed_of(raster: np.ndarray, valid: np.ndarray | None = None) -> dict[str, Feed]:
    mask = np.ones(raster.shape[1:], bool) if valid is None else valid

    def read(w: Window) -> Any:
        at = (slice(w.row, w.row + w.height), slice(w.col, w.col + w.width))
        assert w.row >= 0
        assert w.col >= 0
        return raster[:, *at], mask[at]

    return {"any": Feed(read, (7.0,) * len(raster))}


def run(
    raster: np.ndarray,
    tiling: Tiling,
    model: Any,
    spec: OutputSpec = X,
    valid: np.ndarray | None = None,
    batch: int = 2,
    **kwargs: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Return values and validity of the whole product; every row must come exactly once and in order."""
    plan = TilePlan(raster.shape[1:], tiling)
    strips = [s for _, s in Engine(plan, [spec], feed_of(raster, valid), [model], batch).strips(**kwargs)]
    row = strips[0].row
    for strip in strips:
        assert strip.row == row
        row += strip.values.shape[1]
    return np.concatenate([s.values for s in strips], axis=1), np.concatenate([s.valid for s in strips])


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("tiling", TILINGS)
def test_identity_gives_every_pixel_back(shape: tuple[int, int], tiling: Tiling) -> None:
    raster = scene(shape)
    values, valid = run(raster, tiling, Identity({"x": 1}))
    np.testing.assert_allclose(values, raster, rtol=1e-6)
    assert valid.all()


@pytest.mark.parametrize(
    ("shape", "tiling"), [((1591, 2187), TILINGS[0]), ((2187, 300), TILINGS[3]), ((700, 700), Tiling(64, 32, 0))]
)
def test_identity_on_larger_rasters(shape: tuple[int, int], tiling: Tiling) -> None:
    raster = scene(shape)
    np.testing.assert_allclose(run(raster, tiling, Identity({"x": 1}), batch=8)[0], raster, rtol=1e-6)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("tiling", [TILINGS[0], TILINGS[3], Tiling(256, 240, 8), Tiling(256, 128, 0)])
def test_constant_is_that_constant_at_every_pixel(shape: tuple[int, int], tiling: Tiling) -> None:
    values, _ = run(scene(shape), tiling, Constant("x", 1234.5))
    np.testing.assert_allclose(values, 1234.5, rtol=1e-6)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("tiling", TILINGS[::2])
def test_coordinates_land_where_they_belong(shape: tuple[int, int], tiling: Tiling) -> None:
    values, _ = run(scene(shape), tiling, Coordinates(), OutputSpec("x", 2))
    expected = np.stack(np.mgrid[: shape[0], : shape[1]]).astype(np.float32)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(256, 400), (511, 237), (100, 100), (600, 611), (17, 1000)])
@pytest.mark.parametrize("tiling", [Tiling(256, 192, 16), Tiling(256, 128, 32), Tiling(224, 192, 16)])
@pytest.mark.parametrize("stitch", ["blend", "own"])
def test_block_means_lie_on_the_patch_grid(shape: tuple[int, int], tiling: Tiling, stitch: Any) -> None:
    raster = scene(shape)
    spec = OutputSpec("x", 1, scale=16, stitch=stitch)
    values, valid = run(raster, tiling, BlockMean(), spec)
    rows, cols = (-(-n // 16) for n in shape)
    assert values.shape == (1, rows, cols)
    padded = raster[0][np.ix_(reflect(0, rows * 16, shape[0]), reflect(0, cols * 16, shape[1]))]
    expected = padded.reshape(rows, 16, cols, 16).mean(axis=(1, 3))
    np.testing.assert_allclose(values[0], expected, rtol=1e-5)
    assert valid.all()


def test_owned_cells_come_from_the_nearest_tile() -> None:
    plan = TilePlan((700, 700), Tiling(256, 192, 16))
    spec = OutputSpec("x", 1, scale=16, stitch="own")
    owner = np.full((44, 44), -1)
    for tile in plan.tiles():
        place = plan.place(tile, spec)
        w = place.window
        mine = place.share > 0
        assert (owner[w.row : w.row + w.height, w.col : w.col + w.width][mine] == -1).all()
        owner[w.row : w.row + w.height, w.col : w.col + w.width][mine] = tile.index
    centres = np.array([(t.row + t.size / 2, t.col + t.size / 2) for t in plan.tiles()])
    for (r, c), index in np.ndenumerate(owner):
        away = np.abs(centres - [r * 16 + 8, c * 16 + 8]).max(axis=1)
        assert away[index] <= np.sort(away)[0] + 16  # a cell on the border may go either way
    assert (owner >= 0).all()


@pytest.mark.parametrize("tiling", [*TILINGS, Tiling(256, 240, 8), Tiling(64, 16, 0)])
def test_shares_add_up_to_one(tiling: Tiling) -> None:
    plan = TilePlan((611, 530), tiling)
    total = np.zeros(plan.shape)
    for tile in plan.tiles():
        place = plan.place(tile, X)
        w = place.window
        total[w.row : w.row + w.height, w.col : w.col + w.width] += place.share
    np.testing.assert_allclose(total, 1, rtol=3e-7)


@pytest.mark.parametrize(
    ("crop", "stride", "delta"), [(256, 192, 8), (256, 192, 16), (256, 224, 8), (256, 100, 8), (224, 200, 4)]
)
def test_blend_window_is_terratorchs(crop: int, stride: int, delta: int) -> None:
    theirs = get_blend_mask(crop, stride, crop, stride, delta).numpy()
    window = blend_window(crop, stride, delta)
    np.testing.assert_allclose(np.outer(window, window) + 1e-6, theirs, atol=1e-6)


@pytest.mark.parametrize("cuts", [(0, 700), (0, 1, 699, 700), (0, 192, 384, 700), (0, 100, 101, 333, 640, 700)])
def test_blocks_anywhere_give_the_same_bits(cuts: tuple[int, ...]) -> None:
    raster, valid = scene((700, 500)), np.ones((700, 500), bool)
    valid[100:500, 50:450] = False
    whole, mask = run(raster, TILINGS[0], Noisy(), valid=valid)
    parts = [
        run(raster, TILINGS[0], Noisy(), valid=valid, rows=range(a, b)) for a, b in zip(cuts, cuts[1:], strict=False)
    ]
    np.testing.assert_array_equal(np.concatenate([v for v, _ in parts], axis=1), whole)
    np.testing.assert_array_equal(np.concatenate([m for _, m in parts]), mask)


def test_blocks_on_the_patch_grid_give_the_same_bits() -> None:
    raster, spec = scene((500, 300)), OutputSpec("x", 1, scale=16)
    whole, _ = run(raster, Tiling(256, 192, 16), BlockMean(), spec)
    cuts = (0, 33, 160, 401, 500)
    parts = [
        run(raster, Tiling(256, 192, 16), BlockMean(), spec, rows=range(a, b))[0]
        for a, b in zip(cuts, cuts[1:], strict=False)
    ]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize("shuffle", ["reversed", "random"])
def test_tile_order_changes_nothing(shuffle: str) -> None:
    raster = scene((600, 611))
    plan = TilePlan((600, 611), TILINGS[3])
    model = Noisy()
    tiles = list(plan.tiles())
    if shuffle == "reversed":
        tiles = tiles[::-1]
    else:
        np.random.default_rng(0).shuffle(tiles)  # type: ignore[arg-type]
    stitcher = Stitcher(X, range(611), range(600))
    strips = []
    for tile in tiles:
        item = load(tile, feed_of(raster), plan.shape, plan.delta)
        strips += stitcher.add(tile.index, plan.place(tile, X), model(collate([item], 1))["x"][0], item.valid)
    strips += stitcher.finish()
    np.testing.assert_array_equal(
        np.concatenate([s.values for s in strips], axis=1), run(raster, TILINGS[3], Noisy())[0]
    )


def test_a_missing_tile_is_noticed() -> None:
    plan = TilePlan((600, 600), TILINGS[0])
    stitcher = Stitcher(X, range(600), range(600))
    tile = list(plan.tiles())[1]
    list(stitcher.add(tile.index, plan.place(tile, X), np.zeros((1, 256, 256), np.float32), np.ones((256, 256), bool)))
    with pytest.raises(ValueError, match="tile 0 of x never came"):
        list(stitcher.finish())


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_batches_have_one_shape_and_their_size_changes_nothing(batch: int) -> None:
    raster = scene((600, 700))
    model = Identity({"x": 1}, keep=True)
    values, _ = run(raster, TILINGS[0], model, batch=batch)
    assert {b.rows.shape for b in model.batches} == {(batch,)}
    assert {next(iter(b.pixels.values())).shape for b in model.batches} == {(batch, 1, 256, 256)}
    np.testing.assert_array_equal(values, run(raster, TILINGS[0], Identity({"x": 1}), batch=5)[0])


def test_empty_tiles_never_reach_the_model_and_holes_are_filled() -> None:
    raster, valid = scene((900, 900), bands=2), np.ones((900, 900), bool)
    valid[:, 300:] = False
    valid[40:60, 40:60] = False
    raster[:, ~valid] = np.nan
    model = Identity({"x": 1}, keep=True)
    plan = TilePlan((900, 900), TILINGS[0])
    engine = Engine(plan, [X], feed_of(raster, valid), [model], 1)
    strips = [s for _, s in engine.strips()]
    values, mask = np.concatenate([s.values for s in strips], axis=1), np.concatenate([s.valid for s in strips])
    np.testing.assert_array_equal(mask, valid)
    np.testing.assert_allclose(values[0][valid], raster[0][valid], rtol=1e-6)
    assert engine.empty_tiles + len(model.batches) == len(plan)
    assert {int(b.cols[0]) for b in model.batches} == {-8, 184}
    seen = next(iter(model.batches[0].pixels.values()))
    assert np.isfinite(seen).all()
    assert (seen[0, :, 48:68, 48:68] == 7).all()


def test_plan_of_a_small_raster_is_one_square_tile_of_whole_patches() -> None:
    plan = TilePlan((100, 60), Tiling())
    assert list(plan.tiles()) == [Tile(0, 0, 0, 0, 0, 112)]
    item = load(next(plan.tiles()), feed_of(scene((100, 60))), (100, 60), plan.delta)
    assert item.pixels["any"].shape == (1, 112, 112)
    assert item.valid.sum() == 6000


def test_reflection_repeats_where_the_raster_is_small() -> None:
    for size in (1, 2, 3, 5, 40):
        padded = np.pad(np.arange(size), 100, mode="reflect") if size > 1 else np.zeros(201, int)
        np.testing.assert_array_equal(reflect(-100, size + 100, size), padded)


@pytest.mark.parametrize(
    ("tiling", "message"),
    [
        (Tiling(250, 192, 8), "--crop 250 is not a multiple of 16"),
        (Tiling(256, 241, 8), "leaves gaps"),
        (Tiling(256, 192, -1), "--delta at least 0"),
        (Tiling(0, 1, 0), "--crop 0"),
    ],
)
def test_tilings_that_cannot_work_are_refused(tiling: Tiling, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiling.check(16)


def test_tilings_that_may_show_seams_are_noted() -> None:
    assert "seams" in Tiling(256, 100, 8).check(16)[0]
    assert Tiling().check(16) == []
    with pytest.raises(UsageError, match="--delta 8"):
        Tiling().check(16, on_patch_grid=True)


def test_read_ahead_is_bounded_ordered_and_passes_errors_on() -> None:
    started: list[int] = []

    def slow(tile: Tile) -> TileInput:
        started.append(tile.index)
        if tile.index == 7:
            raise OSError("disk gone")
        return TileInput(tile, {}, np.zeros((1, 1), bool))

    tiles = [Tile(i, 0, i, 0, 0, 16) for i in range(20)]
    items = read_ahead(slow, tiles, depth=3, threads=2)
    for expected in range(7):
        assert next(items).tile.index == expected
        assert len(started) <= expected + 5
    with pytest.raises(OSError, match="disk gone"):
        next(items)


def test_working_memory_does_not_grow_with_height() -> None:
    """Rows are handed out as soon as no tile can change them."""
    held: list[int] = []
    plan = TilePlan((5000, 64), TILINGS[0])
    stitcher = Stitcher(X, range(64), range(5000))
    emitted = 0
    blank: Callable[[], np.ndarray] = lambda: np.zeros((1, 256, 256), np.float32)  # noqa: E731
    for tile in plan.tiles():
        for strip in stitcher.add(tile.index, plan.place(tile, X), blank(), np.ones((256, 256), bool)):
            emitted += strip.values.shape[1]
        held.append(tile.row + 256 - 8 - emitted)
    assert max(held) <= 256


@pytest.mark.parametrize(
    "spec", [X, OutputSpec("x", 1, scale=16), OutputSpec("x", 1, 16, "own"), OutputSpec("x", 1, 16, pool="tile")]
)
@pytest.mark.parametrize("parts", [2, 3, 5])
def test_parts_side_by_side_make_up_the_whole_bit_for_bit(spec: OutputSpec, parts: int) -> None:
    raster = scene((500, 1111))
    valid = np.ones((500, 1111), bool)
    valid[100:400, 300:800] = False
    plan = TilePlan((500, 1111), Tiling(256, 192, 16))
    model = BlockMean() if spec.scale == 16 else Noisy()
    engine = Engine(plan, [spec], feed_of(raster, valid), [model], 2)
    whole = np.zeros((1, *plan.product_shape(spec)), np.float32)
    seen = np.zeros(whole.shape[1:], int)
    split, holes = whole.copy(), seen.copy()
    columns = plan.columns(parts)
    assert [*columns[0], *columns[-1]][-1] == 1110
    for into, counts, spans in ((whole, None, [None]), (split, seen, columns)):
        for cols in spans:
            for block in engine.blocks(None, cols):
                for _, s in block.strips:
                    at = (slice(s.row, s.row + len(s.valid)), slice(s.col, s.col + s.valid.shape[1]))
                    into[:, *at] = s.values
                    holes[at] = s.valid
                    if counts is not None:
                        counts[at] += 1
    assert (seen == 1).all()
    np.testing.assert_array_equal(split, whole)


def test_blocks_say_which_rows_are_final_though_empty_tiles_come_first() -> None:
    """Empty tiles do not wait for their batch, so a row's last tile may make several rows final at once."""
    raster = scene((1000, 500))
    valid = np.zeros((1000, 500), bool)
    valid[300:350] = True
    plan = TilePlan((1000, 500), TILINGS[0])
    specs = [X, OutputSpec("x", 1)]
    done = 0
    for block in Engine(plan, specs, feed_of(raster, valid), [Identity({"x": 1})], 8).blocks():
        for _, strip in block.strips:
            assert strip.row == done
            assert strip.row + len(strip.valid) == block.row
        done = block.row
    assert done == 1000


def test_a_batch_that_is_not_full_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of empty tiles after one that waits would pile up, and all their rows come at once."""
    monkeypatch.setattr("tmtool.tiles.engine._MOST_PASSED", 8)
    raster = scene((9000, 200))
    valid = np.zeros((9000, 200), bool)
    valid[100:150] = True
    feeds, lowest = feed_of(raster, valid), 0

    def read(window: Any) -> Any:
        nonlocal lowest
        lowest = max(lowest, window.row)
        return feeds["any"].read(window)

    plan = TilePlan((9000, 200), TILINGS[0])
    model = Identity({"x": 1}, keep=True)
    engine = Engine(plan, [X], {"any": replace(feeds["any"], read=read)}, [model], batch=64)
    with closing(engine.blocks()) as blocks:
        for block in blocks:
            assert lowest < block.row + 192 * (
                8 + 64 + 2 + 3
            )  # what may pass, what is read ahead, the tile's own height
    assert len(model.batches) == 1
    assert engine.empty_tiles == len(plan) - 1
