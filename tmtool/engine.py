"""Tiles through reading, the model and stitching: what turns feeds into finished rows."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from tmtool.batches import Feed, RollingRows, TileInput, collate, load, read_ahead
from tmtool.grid import PATCH, BoolArray, FloatArray, OutputSpec, Strip, Tile, TileBatch
from tmtool.models import TileModel
from tmtool.plan import TilePlan
from tmtool.stitch import Stitcher

_READ_THREADS = (
    1  # each thread has a GDAL handle and block cache of its own: two would decode every block twice or more
)


@dataclass(frozen=True)
class Block:
    """Finished rows of all outputs; with them all product rows that begin above source row `row` are final."""

    row: int
    strips: Sequence[tuple[OutputSpec, Strip]]


class Engine:
    """Takes tiles through reading, the model and stitching.

    `feeds` say how to read each input, `advance` is told of tiles done, `lonlat` gives a tile's centre to models that
    want it. Afterwards `empty_tiles`, `model_seconds` and `read_seconds` (waiting for input) say what was spared and spent.
    """

    def __init__(
        self,
        plan: TilePlan,
        specs: Sequence[OutputSpec],
        feeds: Mapping[str, Feed],
        model: TileModel,
        batch: int = 1,
        advance: Callable[[int], None] = lambda _: None,
        lonlat: Callable[[Tile], tuple[float, float]] | None = None,
    ) -> None:
        self.plan, self.specs, self.feeds, self.model, self.batch = plan, specs, feeds, model, batch
        self.advance, self.lonlat = advance, lonlat
        self.empty_tiles, self.model_seconds, self.read_seconds = 0, 0.0, 0.0

    def strips(self, rows: range | None = None) -> Generator[tuple[OutputSpec, Strip], None, None]:
        """Yield the finished rows of every output, each output's from the top; see `blocks`."""
        with closing(self.blocks(rows)) as blocks:
            for block in blocks:
                yield from block.strips

    def blocks(self, rows: range | None = None, cols: range | None = None) -> Generator["Block", None, None]:
        """Yield the finished rows of all outputs, a tile row at a time.

        `rows` and `cols` limit them to some source rows and columns; parts that share none make up the whole scene, bit
        for bit. Whoever leaves early must close the generator before the feeds: it reads ahead until then.
        """
        plan = self.plan
        rows = rows if rows is not None else range(plan.shape[0])
        cols = cols if cols is not None else range(plan.shape[1])
        asked = [(s, plan.product_rows(rows, s), plan.product_cols(cols, s)) for s in self.specs]
        tile_rows = _hull([plan.tile_rows(r, s) for s, r, c in asked if r and c])
        tile_cols = _hull([plan.tile_cols(c, s) for s, r, c in asked if r and c])
        if not tile_rows:
            return
        tiles = list(plan.tiles(tile_rows, tile_cols))
        stitchers = [Stitcher(s, c, r, plan.delta) for s, r, c in asked]
        with closing(self._model_outputs(tiles)) as made:
            yield from self._stitched(made, stitchers, tile_rows, tile_cols)
        yield Block(rows.stop, [(s.spec, strip) for s in stitchers for strip in s.finish()])

    def _stitched(
        self,
        made: Iterable[tuple[TileInput, Mapping[str, Any] | None]],
        stitchers: Sequence[Stitcher],
        tile_rows: range,
        tile_cols: range,
    ) -> Iterator["Block"]:
        """Yield the blocks that tiles make final, but for the last rows."""
        for done, outputs in made:
            number = (done.tile.tile_row - tile_rows.start) * len(tile_cols) + done.tile.tile_col - tile_cols.start
            finished = []
            for stitcher in stitchers:
                spec = stitcher.spec
                values = None if outputs is None or not spec.channels else outputs[spec.name]
                finished.append(list(stitcher.add(number, self.plan.place(done.tile, spec), values, done.valid)))
            yield from self._as_blocks(finished)

    def _as_blocks(self, finished: Sequence[Sequence[Strip]]) -> Iterator["Block"]:
        """Yield a block for each row of tiles that is final now: all outputs have a strip of it."""
        for strips in zip(*finished, strict=True):
            ends = [
                (strip.row + len(strip.valid)) * self.plan.side(s) for s, strip in zip(self.specs, strips, strict=True)
            ]
            yield Block(min(ends), list(zip(self.specs, strips, strict=True)))

    def _model_outputs(
        self, tiles: Sequence[Tile]
    ) -> Generator[tuple[TileInput, Mapping[str, Any] | None], None, None]:
        """Yield every tile with the model's outputs for it, or None for an empty one."""
        load_tile = partial(load, feeds=self.feeds, shape=self.plan.shape, delta=self.plan.delta)
        threads = 0 if any(feed.computed for feed in self.feeds.values()) else _READ_THREADS
        waiting: list[TileInput] = []
        with closing(read_ahead(load_tile, tiles, depth=2 * self.batch + 2, threads=threads)) as items:
            while (item := self._next(items, threads)) is not None:
                if not item.pixels:
                    self.empty_tiles += 1
                    self.advance(1)
                    yield item, None
                    continue
                waiting.append(item)
                if len(waiting) == self.batch:
                    yield from self._call(waiting)
                    waiting = []
        if waiting:
            yield from self._call(waiting)

    def _next(self, items: Iterator[TileInput], threads: int) -> TileInput | None:
        """Return the next tile, or None after the last; time spent on waiting for readers counts as reading."""
        start = time.monotonic()
        item = next(items, None)
        self.read_seconds += time.monotonic() - start if threads else 0.0
        return item

    def _call(self, items: Sequence[TileInput]) -> Iterator[tuple[TileInput, Mapping[str, Any]]]:
        batch = collate(items, self.batch, self.lonlat)
        start = time.monotonic()
        outputs = self.model(batch)
        self.model_seconds += time.monotonic() - start
        self.advance(len(items))
        for i, item in enumerate(items):
            yield item, {name: values[i] for name, values in outputs.items()}


def _hull(spans: Sequence[range]) -> range:
    """Return the range that holds all of these."""
    return range(min(s.start for s in spans), max(s.stop for s in spans)) if spans else range(0)


@contextmanager
def patch_feed(engine: Engine, fill: tuple[float, ...]) -> Iterator[Feed]:
    """Give a feed of the one product on the patch grid that `engine` makes, computed row by row as it is asked for."""

    def start(row: int) -> Generator[Strip, None, None]:
        with closing(engine.strips(range(row * PATCH, engine.plan.shape[0]))) as strips:
            for _, strip in strips:
                yield strip

    with closing(RollingRows(start, engine.plan.size // PATCH)) as rows:
        yield Feed(rows.read, fill, PATCH, computed=True)


class Lazy:
    """A model that is built when the first tile comes: a scene without valid pixels needs none."""

    def __init__(self, build: Callable[[], TileModel]) -> None:
        self._build = build
        self._model: TileModel | None = None
        self.build_seconds = 0.0

    def __call__(self, batch: TileBatch) -> Mapping[str, Any]:
        """Build the model if this is the first batch, and call it."""
        if self._model is None:
            start = time.monotonic()
            self._model = self._build()
            self.build_seconds = time.monotonic() - start
        return self._model(batch)


class Watch:
    """Remembers whether the input's valid pixels vary, which a constant product is judged by."""

    def __init__(self) -> None:
        self._first: float | None = None
        self.varies = False

    def see(self, pixels: FloatArray, valid: BoolArray) -> None:
        """Take what was read; may be called from several threads."""
        if self.varies or not len(pixels) or not valid.any():
            return
        values = pixels[0][valid]
        first = values[0] if self._first is None else self._first
        self._first = first
        self.varies = bool((values != first).any())
