"""Tiles through reading, the model and stitching: what turns feeds into finished rows."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    want it. Afterwards `empty_tiles` and `model_seconds` say what was spared and spent.
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
        self.empty_tiles, self.model_seconds = 0, 0.0

    def strips(self, rows: range | None = None) -> Iterator[tuple[OutputSpec, Strip]]:
        """Yield the finished rows of every output, each output's from the top; see `blocks`."""
        for block in self.blocks(rows):
            yield from block.strips

    def blocks(self, rows: range | None = None) -> Iterator["Block"]:
        """Yield the finished rows of all outputs, a tile row at a time.

        `rows` limits them to some source rows; parts that share no row make up the whole scene, bit for bit.
        """
        plan = self.plan
        rows = rows if rows is not None else range(plan.shape[0])
        asked = [plan.product_rows(rows, s) for s in self.specs]
        touched = [plan.tile_rows(r, s) for r, s in zip(asked, self.specs, strict=True) if len(r)]
        if not touched:
            return
        tile_rows = range(min(t.start for t in touched), max(t.stop for t in touched))
        tiles = list(plan.tiles(tile_rows))
        stitchers = [
            Stitcher(s, plan.product_shape(s)[1], r, tiles[0].index, plan.delta)
            for r, s in zip(asked, self.specs, strict=True)
        ]
        for done, outputs in self._model_outputs(tiles):
            strips = []
            for spec, stitcher in zip(self.specs, stitchers, strict=True):
                values = None if outputs is None or not spec.channels else outputs[spec.name]
                place = plan.place(done.tile, spec)
                strips += [(spec, strip) for strip in stitcher.add(done.tile.index, place, values, done.valid)]
            if strips:  # the first tile of a row makes final what lies above it, of all outputs
                yield Block(plan.first_row(done.tile.tile_row), strips)
        strips = [(spec, strip) for spec, s in zip(self.specs, stitchers, strict=True) for strip in s.finish()]
        yield Block(rows.stop, strips)

    def _model_outputs(self, tiles: Sequence[Tile]) -> Iterator[tuple[TileInput, Mapping[str, Any] | None]]:
        """Yield every tile with the model's outputs for it, or None for an empty one."""
        load_tile = partial(load, feeds=self.feeds, shape=self.plan.shape, delta=self.plan.delta)
        threads = 0 if any(feed.computed for feed in self.feeds.values()) else _READ_THREADS
        waiting: list[TileInput] = []
        for item in read_ahead(load_tile, tiles, depth=2 * self.batch + 2, threads=threads):
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

    def _call(self, items: Sequence[TileInput]) -> Iterator[tuple[TileInput, Mapping[str, Any]]]:
        batch = collate(items, self.batch, self.lonlat)
        start = time.monotonic()
        outputs = self.model(batch)
        self.model_seconds += time.monotonic() - start
        self.advance(len(items))
        for i, item in enumerate(items):
            yield item, {name: values[i] for name, values in outputs.items()}


def patch_feed(engine: Engine, fill: tuple[float, ...]) -> Feed:
    """Return a feed of the one product on the patch grid that `engine` makes, computed row by row as it is asked for."""

    def start(row: int) -> Iterator[Strip]:
        return (strip for _, strip in engine.strips(range(row * PATCH, engine.plan.shape[0])))

    return Feed(RollingRows(start, engine.plan.size // PATCH).read, fill, PATCH, computed=True)


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
