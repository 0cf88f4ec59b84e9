"""Where tiles overlap: how far they disagree there, pair by pair, gathered while they are stitched."""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmtool.grid import BoolArray, OutputSpec, Placement, Window


@dataclass(frozen=True)
class Overlaps:
    """By how much tiles differ from those before them, of `n` pairs that overlap.

    `tiles` `(n, 4)` int64 are tile row and column of the earlier and of the later tile; `counts` `(n,)` int64 the px that are valid
    in both; `sums` and `squares` `(n, bands)` float64 add up later minus earlier over those px. For classes there is one band,
    1 where the likeliest classes differ.
    """

    tiles: NDArray[np.int64]
    counts: NDArray[np.int64]
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def none(cls, bands: int) -> "Overlaps":
        """Return those of no tiles."""
        nothing = np.zeros((0, bands))
        return cls(np.zeros((0, 4), np.int64), np.zeros(0, np.int64), nothing, nothing)

    @classmethod
    def total(cls, parts: Iterable["Overlaps"], bands: int) -> "Overlaps":
        """Return the sum of several, each pair once, in the order of its tiles."""
        every = [cls.none(bands), *parts]
        tiles = np.concatenate([part.tiles for part in every])
        pairs, at = np.unique(tiles, axis=0, return_inverse=True)
        at = at.reshape(-1)
        counts = np.zeros(len(pairs), np.int64)
        sums, squares = np.zeros((len(pairs), bands)), np.zeros((len(pairs), bands))
        np.add.at(counts, at, np.concatenate([part.counts for part in every]))
        np.add.at(sums, at, np.concatenate([part.sums for part in every]))
        np.add.at(squares, at, np.concatenate([part.squares for part in every]))
        return cls(pairs, counts, sums, squares)

    @property
    def rms(self) -> NDArray[np.float64]:
        """Root mean square of the differences over all px of all overlaps, `(bands,)`; NaN where there is none."""
        found: NDArray[np.float64] = np.sqrt(np.divide(self.squares.sum(axis=0), self.counts.sum() or np.nan))
        return found

    def text(self) -> str:
        """Return the same in letters and digits, for a journal."""
        parts = (
            self.tiles.astype("<i8"),
            self.counts.astype("<i8"),
            self.sums.astype("<f8"),
            self.squares.astype("<f8"),
        )
        return f"{self.sums.shape[1]}:" + base64.b64encode(b"".join(part.tobytes() for part in parts)).decode()

    @classmethod
    def parse(cls, text: str) -> "Overlaps":
        """Return what `text` made of it."""
        bands, _, rest = text.partition(":")
        data, width = base64.b64decode(rest), int(bands)
        n = len(data) // (8 * (5 + 2 * width))
        whole, values = np.frombuffer(data, "<i8", 5 * n), np.frombuffer(data, "<f8", offset=40 * n)
        sums, squares = values.reshape(2, n, width)
        return cls(whole[: 4 * n].reshape(n, 4).copy(), whole[4 * n :].copy(), sums.copy(), squares.copy())


@dataclass
class _Held:
    """A tile that later ones may overlap: its part in the product, `values` `(bands, h, w)` of it and their validity."""

    tile: tuple[int, int]
    window: Window
    values: NDArray[Any]
    valid: BoolArray

    def below(self, row: int) -> "_Held | None":
        """Return the part from a product row on, without a reference to the rest."""
        cut = row - self.window.row
        if cut <= 0:
            return self
        if cut >= self.window.height:
            return None
        w = self.window
        window = Window(row, w.col, w.height - cut, w.width)
        return _Held(self.tile, window, self.values[:, cut:].copy(), self.valid[cut:].copy())


class OverlapTally:
    """Compares each tile of one output with those that it overlaps, in tile order.

    `rows` and `cols` are the product rows and columns that count. Memory: the tiles of one row of tiles, of which only what the next
    row overlaps is kept.
    """

    def __init__(self, spec: OutputSpec, rows: range, cols: range) -> None:
        self.spec, self._rows, self._cols = spec, rows, cols
        self._bands = 1 if spec.seams == "classes" else spec.channels
        self._held: list[_Held] = []
        self._found: dict[tuple[int, int, int, int], tuple[int, NDArray[np.float64]]] = {}

    def add(self, place: Placement, values: NDArray[Any] | None, valid: BoolArray, below: int) -> None:
        """Take the kept part of a tile, `(channels, h, w)`, None for an empty one, and its validity `(h, w)`.

        No tile of a later row of tiles reaches above product row `below`.
        """
        if values is None or not valid.any():
            return
        own = values.argmax(axis=0)[None].astype(np.int16) if self.spec.seams == "classes" else values
        now = _Held(place.tile, place.window, own, valid)
        held = []
        for other in self._held:
            self._compare(other, now)
            passed = other.tile[0] == place.tile[0] and _stop(other.window) <= place.window.col
            if (rest := other.below(below if passed else place.window.row)) is not None:
                held.append(rest)
        self._held = [*held, now]

    def _compare(self, earlier: _Held, later: _Held) -> None:
        a, b = earlier.window, later.window
        top, bottom = max(a.row, b.row, self._rows.start), min(a.row + a.height, b.row + b.height, self._rows.stop)
        left, right = max(a.col, b.col, self._cols.start), min(_stop(a), _stop(b), self._cols.stop)
        if top >= bottom or left >= right:
            return
        here, there = ((slice(top - w.row, bottom - w.row), slice(left - w.col, right - w.col)) for w in (a, b))
        both = earlier.valid[here] & later.valid[there]
        if not both.any():
            return
        first, second = earlier.values[:, *here], later.values[:, *there]
        apart = (
            (first != second).astype(np.float64) if self.spec.seams == "classes" else second.astype(np.float64) - first
        )
        apart = np.where(both, apart, 0)
        sums, squares = apart.sum(axis=2).T, (apart * apart).sum(axis=2).T
        found = np.concatenate([both.sum(axis=1)[:, None].astype(np.float64), sums, squares], axis=1)
        self._found[*earlier.tile, *later.tile] = (top, found)

    def take(self, stop: int) -> Overlaps:
        """Return what was found in product rows above `stop`, once."""
        tiles, rows = [], []
        for pair, (top, found) in list(self._found.items()):
            final = max(0, stop - top)
            if final:
                tiles.append(pair)
                rows.append(found[:final].sum(axis=0))
                if final >= len(found):
                    del self._found[pair]
                else:
                    self._found[pair] = (stop, found[final:])
        if not tiles:
            return Overlaps.none(self._bands)
        total = np.array(rows)
        sums, squares = total[:, 1 : 1 + self._bands], total[:, 1 + self._bands :]
        return Overlaps(np.array(tiles, np.int64), total[:, 0].astype(np.int64), sums, squares)

    def final(self, stop: int) -> None:
        """Keep only what lies from product row `stop` on, above which no tile will come."""
        self._held = [rest for held in self._held if (rest := held.below(stop)) is not None]

    @property
    def arrays(self) -> list[NDArray[Any]]:
        """The arrays that it holds; who takes them away puts them back."""
        return [array for held in self._held for array in (held.values, held.valid[None])]

    @arrays.setter
    def arrays(self, arrays: list[NDArray[Any]]) -> None:
        for i, held in enumerate(self._held):
            held.values, held.valid = arrays[2 * i], arrays[2 * i + 1][0]


def _stop(window: Window) -> int:
    return window.col + window.width


def by_tile(overlaps: Overlaps, scales: NDArray[np.float64]) -> Mapping[tuple[int, int], float]:
    """Return how far each tile disagrees with those that it overlaps: the root mean square in `scales` `(bands,)`, over all bands."""
    whole = np.where(scales > 0, scales, np.nan)
    each = np.nan_to_num(overlaps.squares / whole**2).mean(axis=1)
    total: dict[tuple[int, int], list[float]] = {}
    for (r0, c0, r1, c1), count, square in zip(
        overlaps.tiles.tolist(), overlaps.counts.tolist(), each.tolist(), strict=True
    ):
        for tile in ((r0, c0), (r1, c1)):
            seen = total.setdefault(tile, [0.0, 0.0])
            seen[0] += square
            seen[1] += count
    return {tile: (square / count) ** 0.5 for tile, (square, count) in total.items() if count}
