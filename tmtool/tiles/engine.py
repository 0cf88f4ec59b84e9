"""Tiles through reading, the model and stitching: what turns feeds into finished rows."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from tmtool.grid import BoolArray, FloatArray, OutputSpec, Placement, Strip, Tile, TileBatch
from tmtool.models import TileModel
from tmtool.products.product import Product
from tmtool.tiles._lanes import Lanes
from tmtool.tiles._spool import Spool
from tmtool.tiles.batches import Feed, RollingRows, TileInput, Told, collate, load, read_ahead
from tmtool.tiles.draws import Combining, DrawsStitcher, TileGrid, drawn
from tmtool.tiles.plan import TilePlan, hull
from tmtool.tiles.stitch import Stitcher

_READ_THREADS = (
    1  # each thread has a GDAL handle and block cache of its own: two would decode every block twice or more
)


_MOST_PASSED = 4096
"""Empty tiles that may overtake those that wait for a full batch or its results, before results are waited for."""

_Made = tuple[Tile, BoolArray, Mapping[str, Any] | None]
"""A tile, its validity, and the model's outputs for it (of several draws `Drawn`), or None for an empty one."""

_Called = tuple[list[tuple[Tile, BoolArray]], Sequence[Mapping[str, Any]], float]
"""The tiles of a batch, the outputs of each, and the seconds that the model took."""

_Strips = tuple[tuple[OutputSpec, Strip], ...]
"""The same rows of all outputs that are stitched together."""


@dataclass(frozen=True)
class Block:
    """Rows of all outputs; with them all product rows that begin above source row `row` are final.

    They are stitched, and once they are `finished` in their products' bands.
    """

    row: int
    strips: Sequence[tuple[OutputSpec, Strip]]
    finished: bool = False


def finished(block: Block, products: Mapping[str, Product]) -> Block:
    """Turn a block's rows into bands of the products (by their outputs' names); what becomes a mean waits for it."""
    strips = [
        (spec, strip if spec.pool == "scene" else replace(strip, values=products[spec.name].finish(strip)))
        for spec, strip in block.strips
    ]
    return Block(block.row, strips, finished=True)


class Engine:
    """Takes tiles through reading, the model and stitching.

    `models` are copies of one model, each of which takes batches on its own thread while results are stitched on this
    one. `feeds` say how to read each input, `advance` is called with the number of tiles done. Models are `told` what they
    want to know of tiles. `combining` says how outputs are made of several draws. Afterwards `empty_tiles` says what was spared,
    `model_seconds` what the models took, all together, `read_seconds` and `wait_seconds` for how long stitching waited for input
    and for the models.
    """

    def __init__(
        self,
        plan: TilePlan,
        specs: Sequence[OutputSpec],
        feeds: Mapping[str, Feed],
        models: Sequence[TileModel],
        batch: int = 1,
        advance: Callable[[int], None] = lambda _: None,
        told: Told | None = None,
        combining: Combining | None = None,
    ) -> None:
        self.combining, self.draws = combining or Combining(), max(spec.draws for spec in specs)
        self.plan, self.specs, self.feeds, self.models, self.batch = plan, specs, feeds, models, batch
        self.advance, self.told = advance, told
        self.empty_tiles, self.model_seconds, self.read_seconds, self.wait_seconds = 0, 0.0, 0.0, 0.0

    def strips(
        self, rows: range | None = None, cols: range | None = None
    ) -> Generator[tuple[OutputSpec, Strip], None, None]:
        """Yield the finished rows of every output, each output's from the top; see `blocks`."""
        with closing(self.blocks(rows, cols)) as blocks:
            for block in blocks:
                yield from block.strips

    def blocks(self, rows: range | None = None, cols: range | None = None) -> Generator["Block", None, None]:
        """Yield the finished rows of all outputs, a tile row at a time.

        `rows` and `cols` limit them to some source rows and columns; parts that share none make up the whole scene, bit
        for bit. Whoever leaves early must close the generator before the feeds: it reads ahead until then.
        """
        plan = self.plan
        rows = rows if rows is not None else plan.rows
        cols = cols if cols is not None else plan.cols
        asked = [(s, plan.product_rows(rows, s), plan.product_cols(cols, s)) for s in self.specs]
        tile_rows = hull([plan.tile_rows(r, s) for s, r, c in asked if r and c])
        tile_cols = hull([plan.tile_cols(c, s) for s, r, c in asked if r and c])
        if not tile_rows:
            return
        tiles = list(plan.tiles(tile_rows, tile_cols))
        with ExitStack() as stack:
            spool = stack.enter_context(Spool(self.combining.folder)) if self.draws > 1 else None
            stitching = [self._stitching(s, (c, r), (tile_rows, tile_cols), spool) for s, r, c in asked if not s.of]
            made = stack.enter_context(closing(self._model_outputs(tiles, spool)))
            yield from self._stitched(made, stitching, tile_rows, tile_cols)
            yield Block(rows.stop, [pair for one in stitching for strips in one.finish() for pair in strips])

    def _stitching(
        self, spec: OutputSpec, spans: tuple[range, range], tiles: tuple[range, range], spool: Spool | None
    ) -> "Stitching":
        """Return what stitches an output, and what else is made of the model's output of that name."""
        if spool is None:
            return _OneByOne(Stitcher(spec, *spans, self.plan.delta, self.plan.tiling.stride // spec.scale))
        rows, cols = tiles
        length = self.plan.shape[0]
        tops = [self.plan.kept(i, length, spec)[0] for i in rows]
        specs = [spec, *(s for s in self.specs if s.of == spec.name)]
        grid = TileGrid(tops, len(cols), self.plan.tiling.stride)
        return DrawsStitcher(specs, self.combining.combine[spec.name], spans, grid, spool)

    def _stitched(
        self, made: Iterable[_Made], stitching: Sequence["Stitching"], tile_rows: range, tile_cols: range
    ) -> Iterator["Block"]:
        """Yield the blocks that tiles make final, but for the last rows."""
        for tile, valid, outputs in made:
            number = (tile.tile_row - tile_rows.start) * len(tile_cols) + tile.tile_col - tile_cols.start
            final = []
            for one in stitching:
                spec = one.specs[0]
                values = None if outputs is None or not spec.channels else outputs[spec.name]
                final.append(one.add(number, self.plan.place(tile, spec), values, valid))
            yield from self._as_blocks(final)

    def _as_blocks(self, final: Sequence[Iterator[_Strips]]) -> Iterator["Block"]:
        """Yield a block for each row of tiles that is final now: all outputs have a strip of it.

        One after the other: after many empty tiles there are more than memory would hold.
        """
        for rows in zip(*final, strict=True):
            strips = [pair for together in rows for pair in together]
            yield Block(min((strip.row + len(strip.valid)) * self.plan.side(s) for s, strip in strips), strips)

    def _model_outputs(self, tiles: Sequence[Tile], spool: Spool | None) -> Generator[_Made, None, None]:
        """Yield every tile with the model's outputs for it, or None for an empty one."""
        load_tile = partial(load, feeds=self.feeds, shape=self.plan.shape, delta=self.plan.delta)
        threads = 0 if any(feed.computed for feed in self.feeds.values()) else _READ_THREADS
        waiting: list[TileInput] = []
        passed = self.empty_tiles
        # what the lanes have in hand is read ahead already
        reading = read_ahead(load_tile, tiles, depth=len(self.models) * self.batch + 2, threads=threads)
        with closing(reading) as items, self._lanes(spool) as lanes:
            while (item := self._next(items, threads)) is not None:
                if item.pixels:
                    waiting.append(item)
                else:
                    self.empty_tiles += 1
                    self.advance(1)
                    yield item.tile, item.valid, None
                late = self.empty_tiles - passed >= _MOST_PASSED
                if len(waiting) == self.batch or (waiting and late):
                    lanes.put(waiting)
                    waiting = []
                while lanes.full or (late and len(lanes)):
                    yield from self._take(lanes)
                if late:
                    passed = self.empty_tiles
            if waiting:
                lanes.put(waiting)
            while len(lanes):
                yield from self._take(lanes)

    def _lanes(self, spool: Spool | None) -> "Lanes[Sequence[TileInput], _Called]":
        return Lanes([partial(self._call, model, spool) for model in self.models])

    def _next(self, items: Iterator[TileInput], threads: int) -> TileInput | None:
        """Return the next tile, or None after the last; time spent on waiting for readers counts as reading."""
        start = time.monotonic()
        item = next(items, None)
        self.read_seconds += time.monotonic() - start if threads else 0.0
        return item

    def _call(self, model: TileModel, spool: Spool | None, items: Sequence[TileInput]) -> _Called:
        """Put tiles through a model, on its lane."""
        batch = collate(items, self.batch, self.told, self.plan.position)
        start = time.monotonic()
        each: Sequence[Mapping[str, Any]]
        if spool is None:
            outputs = model(batch)
            each = [{name: values[i] for name, values in outputs.items()} for i in range(len(items))]
        else:
            each = drawn(model, batch, len(items), self.draws, spool)
        return [(item.tile, item.valid) for item in items], each, time.monotonic() - start

    def _take(self, lanes: "Lanes[Sequence[TileInput], _Called]") -> Iterator[_Made]:
        """Wait for the oldest batch, and yield its tiles."""
        start = time.monotonic()
        tiles, each, seconds = lanes.take()
        self.wait_seconds += time.monotonic() - start
        self.model_seconds += seconds
        self.advance(len(tiles))
        for (tile, valid), outputs in zip(tiles, each, strict=True):
            yield tile, valid, outputs


class Stitching(Protocol):
    """What stitches the outputs `specs`, the first of which the model makes."""

    specs: Sequence[OutputSpec]

    def add(self, index: int, place: Placement, values: Any, valid: BoolArray) -> Iterator[_Strips]:
        """Take a tile, and yield the rows of all outputs that are final now."""
        ...

    def finish(self) -> Iterator[_Strips]:
        """Yield the rows still held."""
        ...


class _OneByOne:
    """Stitches one output."""

    def __init__(self, stitcher: Stitcher) -> None:
        self.specs: Sequence[OutputSpec] = (stitcher.spec,)
        self._stitcher = stitcher

    def add(self, index: int, place: Placement, values: Any, valid: BoolArray) -> Iterator[_Strips]:
        return (((self._stitcher.spec, strip),) for strip in self._stitcher.add(index, place, values, valid))

    def finish(self) -> Iterator[_Strips]:
        return (((self._stitcher.spec, strip),) for strip in self._stitcher.finish())


@contextmanager
def patch_feed(
    engine: Engine, fill: tuple[float, ...], stop: Callable[[], int], cols: range | None = None
) -> Iterator[Feed]:
    """Give a feed of the one product on the patch grid that `engine` makes, computed row by row as it is asked for.

    Rows of patches from `stop()` on will not be asked for: what is read ahead ends there. `cols` are the source columns that
    will be; by default all.
    """

    scale = engine.specs[0].scale

    def start(row: int) -> Generator[Strip, None, None]:
        rows = range(row * scale, min(stop() * scale, engine.plan.shape[0]))
        with closing(engine.strips(rows, cols if cols is not None else range(engine.plan.shape[1]))) as strips:
            for _, strip in strips:
                yield strip

    with closing(RollingRows(start, engine.plan.size // scale)) as rows:
        yield Feed(rows.read, fill, scale, computed=True)


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
    """Remembers whether the input's valid pixels vary; if they do, a constant product is an error."""

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
