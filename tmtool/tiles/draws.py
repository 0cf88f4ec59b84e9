"""Several draws of a scene: each stitched as if it were alone, then combined row by row; what waits lies on disk."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmtool.grid import BoolArray, Draws, OutputSpec, Placement, Strip, TileBatch
from tmtool.products.product import Combine
from tmtool.tiles._spool import Spool, Spooled
from tmtool.tiles.overlaps import Overlaps
from tmtool.tiles.stitch import Stitcher

_Strips = tuple[tuple[OutputSpec, Strip], ...]

_AT_ONCE = 16 << 20
"""Bytes of rows, of all draws together, that are combined at a time."""

MEMORY_BYTES = 8 * _AT_ONCE
"""About what combining takes: the rows in double precision, and what is made on the way."""


@dataclass(frozen=True)
class Combining:
    """How outputs are made of several draws, by the name of the model's output; draws wait in `scratch`."""

    combine: Mapping[str, Combine] = field(default_factory=dict)
    scratch: Path | None = None

    @property
    def folder(self) -> Path:
        """Where draws wait: the folder of temporary files, if this machine does not have `scratch`."""
        return self.scratch if self.scratch and self.scratch.is_dir() else Path(tempfile.gettempdir())


@dataclass(frozen=True)
class Drawn:
    """The draws of one output of a tile, which wait in the spool."""

    spool: Spool
    each: Sequence[Spooled]


def calls(size: int, tiles: int, draws: int) -> Iterator[Draws]:
    """Yield what calls of `size` outputs make so many draws of the first `tiles` of a batch; the last call is padded."""
    index, number = np.divmod(np.arange(tiles * draws), draws)
    for start in range(0, len(index), size):
        at = np.minimum(np.arange(start, start + size), len(index) - 1)
        yield Draws(index[at], number[at])


def drawn(
    model: Callable[[TileBatch], Mapping[str, NDArray[Any]]], batch: TileBatch, tiles: int, draws: int, spool: Spool
) -> list[dict[str, Drawn]]:
    """Return the draws of each of the first `tiles` of a batch, by output."""
    found: list[dict[str, list[Spooled]]] = [{} for _ in range(tiles)]
    left = tiles * draws
    for call in calls(len(batch.rows), tiles, draws):
        outputs = model(replace(batch, draws=call))
        for i, tile in enumerate(call.index[:left].tolist()):
            for name, values in outputs.items():
                found[tile].setdefault(name, []).append(spool.put(values[i]))
        left -= len(call.index)
    return [{name: Drawn(spool, each) for name, each in tile.items()} for tile in found]


@dataclass(frozen=True)
class TileGrid:
    """First product rows of the rows of tiles, the tiles in each, and the product px between tiles."""

    tops: Sequence[int]
    across: int
    step: int


class DrawsStitcher:
    """Stitches each draw of one output, and hands out the rows that are final of what is made from all of them.

    `specs` are what is made of the output, `combine` makes their values.
    """

    def __init__(
        self,
        specs: Sequence[OutputSpec],
        combine: Combine,
        spans: tuple[range, range],
        grid: TileGrid,
        spool: Spool,
    ) -> None:
        (cols, rows), spec = spans, specs[0]
        self.specs, self._combine, self._spool = specs, combine, spool
        self._tops, self._across = grid.tops, grid.across
        self._stitchers = [Stitcher(spec, cols, rows, step=grid.step) for _ in range(spec.draws)]
        self._parked: list[list[Spooled]] = [[] for _ in self._stitchers]
        self._waiting: dict[int, tuple[Placement, Drawn | None, BoolArray]] = {}
        self._row = 0

    def add(self, index: int, place: Placement, values: Drawn | None, valid: BoolArray) -> Iterator[_Strips]:
        """Take the tile numbered `index`, and yield the rows of all outputs that are final now."""
        some = valid.copy() if valid.any() else np.broadcast_to(np.False_, valid.shape)  # thousands may be waiting
        self._waiting[index] = (place, values, some)
        while self._row < len(self._tops) and all(i in self._waiting for i in self._numbers):
            yield from self._add_row()

    def finish(self) -> Iterator[_Strips]:
        """Yield the rows still held, after the last tile."""
        if self._waiting:
            raise ValueError(f"tiles {sorted(self._waiting)[:5]} of {self.specs[0].name} wait for others of their row")
        yield from self._combined(lambda _, stitcher: stitcher.finish())

    @property
    def _numbers(self) -> range:
        """Numbers of the tiles of the next row of tiles."""
        return range(self._row * self._across, (self._row + 1) * self._across)

    def _add_row(self) -> Iterator[_Strips]:
        numbers = self._numbers
        tiles = [(i, self._waiting.pop(i)) for i in numbers]
        self._row += 1
        below = self._tops[self._row] if self._row < len(self._tops) else self._tops[-1]

        def stitched(n: int, stitcher: Stitcher) -> Iterator[Strip]:
            for i, (place, values, valid) in tiles:
                own = None if values is None else values.spool.take(values.each[n])
                yield from stitcher.add(i, place, own, valid)
            yield from stitcher.final(below)

        yield from self._combined(stitched)

    def _combined(self, stitched: Callable[[int, Stitcher], Iterator[Strip]]) -> Iterator[_Strips]:
        """Let each draw's stitcher yield its strips; yield what is made from them."""
        strips: list[list[tuple[Strip, Spooled]]] = []
        for n, stitcher in enumerate(self._stitchers):
            if self._parked[n]:
                stitcher.held = [self._spool.take(array) for array in self._parked[n]]
            own = [(replace(s, values=s.values[:0].copy()), self._spool.put(s.values)) for s in stitched(n, stitcher)]
            strips.append(own)
            held = stitcher.held
            self._parked[n] = [self._spool.put(array) for array in held]
            stitcher.held = [array[:, :0].copy() for array in held]  # no views: they would hold it all
        for each in zip(*strips, strict=True):
            first = each[0][0]
            if first.overlaps is not None:
                bands = first.overlaps.sums.shape[1]
                first = replace(first, overlaps=Overlaps.total([strip.overlaps for strip, _ in each], bands))
            yield self._combine_rows(first, [spooled for _, spooled in each])

    def _combine_rows(self, first: Strip, each: Sequence[Spooled]) -> _Strips:
        """Combine the same rows of all draws, few at a time."""
        height, width = first.valid.shape
        made = {s.name: np.empty((s.channels, height, width), s.dtype) for s in self.specs}
        step = max(1, _AT_ONCE * height // max(1, sum(s.size for s in each)))
        for start in range(0, height, step):
            rows = slice(start, min(start + step, height))
            part = [Strip(first.row + start, self._spool.read(s, rows), first.valid[rows], first.col) for s in each]
            for name, values in self._combine(part).items():
                made[name][:, rows] = values
        for spooled in each:
            self._spool.drop(spooled)
        return tuple(
            (s, replace(first, values=made[s.name], overlaps=None if s.of else first.overlaps)) for s in self.specs
        )
