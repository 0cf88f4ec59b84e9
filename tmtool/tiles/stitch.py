"""From tiles to finished rows: a rolling accumulator that is as high as one tile, however high the raster is."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmtool.grid import BoolArray, OutputSpec, Placement, Strip
from tmtool.tiles.overlaps import OverlapTally


class Stitcher:
    """Adds tiles of one output, in tile order whatever the order they come in, and hands out rows that are final.

    `cols` and `rows` are the product columns and rows to hand out (tiles may reach beyond them; what they hold there is
    dropped). Tiles are numbered from 0 without a gap.
    `delta` is the margin of tiles in source px, for tiles that are pooled; `step` product px lie between tiles where their
    overlaps are compared.
    """

    def __init__(self, spec: OutputSpec, cols: range, rows: range, delta: int = 0, step: int = 1) -> None:
        self.spec, self.cols, self.rows, self._next, self._delta, self._step = spec, cols, rows, 0, delta, step
        self._overlaps = OverlapTally(spec, rows, cols) if spec.seams else None
        self._width = width = len(cols)
        self._waiting: dict[int, tuple[Placement, NDArray[Any] | None, BoolArray]] = {}
        self._top = -1  # product row of the first row held; -1 before the first tile
        self._emitted = rows.start
        self._values = np.zeros((spec.channels, 0, width), spec.dtype)
        self._valid = np.zeros((0, width), np.bool_)

    def add(self, index: int, place: Placement, values: NDArray[Any] | None, valid: BoolArray) -> Iterator[Strip]:
        """Take the tile numbered `index` and yield the rows that are final now.

        `values` is the model's output for the whole tile, `(channels, S/scale, S/scale)`, or None for an empty tile;
        `valid` says which of its source px hold data, `(S, S)`.
        """
        cells = self._cells(valid)
        if self.spec.pool == "tile":
            values, held = self._tile_mean(values, cells)
        else:
            o, win = place.offset, place.window
            held = cells[o : o + win.height, o : o + win.width]
            held = held.copy() if held.any() else np.broadcast_to(np.False_, held.shape)  # thousands may be waiting
        self._waiting[index] = (place, values, held)
        while self._next in self._waiting:
            place, values, held = self._waiting.pop(self._next)
            self._next += 1
            top, height = place.window.row, place.window.height
            if top > self._top or top + height > self._top + self._values.shape[1]:
                yield from self._emit(top)
                self._grow(top, height)
            self._accumulate(place, values, held)

    def finish(self) -> Iterator[Strip]:
        """Yield the rows still held, after the last tile."""
        if self._waiting:
            raise ValueError(f"tile {self._next} of {self.spec.name} never came; waiting: {sorted(self._waiting)[:5]}")
        yield from self._emit(self.rows.stop)

    def final(self, stop: int) -> Iterator[Strip]:
        """Yield the rows up to product row `stop`, to which no tile will be added, and hold only those below."""
        yield from self._emit(stop)
        if self._top >= 0 and stop > self._top:
            drop = min(stop - self._top, self._values.shape[1])
            self._values, self._valid = self._values[:, drop:].copy(), self._valid[drop:].copy()
            self._top = stop
        if self._overlaps:
            self._overlaps.final(stop)

    @property
    def held(self) -> list[NDArray[Any]]:
        """What is held, arrays `(channels, h, w)`; who takes them away puts them back."""
        return [self._values, self._valid[None], *(self._overlaps.arrays if self._overlaps else [])]

    @held.setter
    def held(self, arrays: list[NDArray[Any]]) -> None:
        self._values, self._valid = arrays[0], arrays[1][0]
        if self._overlaps:
            self._overlaps.arrays = arrays[2:]

    def _cells(self, valid: BoolArray) -> BoolArray:
        """Validity of a tile in product px: a cell is valid if any of its pixels is."""
        s, (h, w) = self.spec.scale, valid.shape
        return np.asarray(valid.reshape(h // s, s, w // s, s).any(axis=(1, 3)), np.bool_)

    def _tile_mean(self, values: NDArray[Any] | None, cells: BoolArray) -> tuple[NDArray[Any] | None, BoolArray]:
        """Return the mean of a tile's valid cells within its margin, `(C, 1, 1)`, and whether it has any, `(1, 1)`.

        What is "own" is of that shape already.
        """
        edge = self._delta // self.spec.scale
        kept = (slice(edge, cells.shape[0] - edge), slice(edge, cells.shape[1] - edge))
        some = cells[kept].any().reshape(1, 1)
        if values is None or not some:
            return None, some
        if self.spec.stitch == "own":
            return values, some
        return values[:, *kept][:, cells[kept]].mean(axis=1, dtype=np.float64)[:, None, None], some

    def _accumulate(self, place: Placement, values: NDArray[Any] | None, valid: BoolArray) -> None:
        win, o = place.window, place.offset
        if self._overlaps and values is not None:
            whole = values[:, o : o + win.height, o : o + win.width]
            self._overlaps.add(place, whole, valid, win.row + self._step)
        left, right = max(win.col, self.cols.start), min(win.col + win.width, self.cols.stop)
        if left >= right:
            return
        mine = slice(left - win.col, right - win.col)
        rows = slice(win.row - self._top, win.row - self._top + win.height)
        at = (rows, slice(left - self.cols.start, right - self.cols.start))
        self._valid[at] |= valid[:, mine]
        if values is None:
            return
        kept = values[:, o : o + win.height, o : o + win.width][:, :, mine]
        if self.spec.stitch == "own":
            np.copyto(self._values[:, *at], kept, where=place.share[:, mine] > 0)
        else:
            self._values[:, *at] += place.share[:, mine] * kept

    def _grow(self, top: int, height: int) -> None:
        """Hold rows `top..top+height`, keeping what is held of them."""
        held = self._values.shape[1]
        drop = top - self._top if self._top >= 0 else 0
        keep = max(0, held - drop)
        values = np.zeros((self.spec.channels, max(height, keep), self._width), self.spec.dtype)
        valid = np.zeros((max(height, keep), self._width), np.bool_)
        values[:, :keep], valid[:keep] = self._values[:, drop:], self._valid[drop:]
        self._values, self._valid, self._top = values, valid, top

    def _emit(self, stop: int) -> Iterator[Strip]:
        """Yield the rows held up to product row `stop` that are asked for and were not handed out."""
        start, stop = max(self._emitted, self._top), min(stop, self.rows.stop)
        if self._top < 0 or stop <= start:
            return
        at = slice(start - self._top, stop - self._top)
        self._emitted = stop
        overlaps = self._overlaps.take(stop) if self._overlaps else None
        yield Strip(start, self._values[:, at].copy(), self._valid[at].copy(), self.cols.start, overlaps)


class SceneMean:
    """The mean of all valid cells of a scene, whose strips it takes one by one."""

    def __init__(self, spec: OutputSpec) -> None:
        self.spec = spec
        self._total = np.zeros(spec.channels)
        self._count = 0

    def add(self, strip: Strip) -> None:
        """Take a strip of cells."""
        self._total += strip.values[:, strip.valid].sum(axis=1, dtype=np.float64)
        self._count += int(strip.valid.sum())

    def strip(self) -> Strip:
        """Return the one row of one cell that holds the mean; it is valid if any cell was."""
        mean = (self._total / max(self._count, 1)).astype(self.spec.dtype)
        return Strip(0, mean[:, None, None], np.array([[self._count > 0]]))
