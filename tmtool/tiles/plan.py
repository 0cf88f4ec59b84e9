"""Pure arithmetic: which tiles cover a raster, the part of each that is kept, and the weights for blending them.

Tiles start at `-delta + i*stride`; `delta` px of each side are discarded. A raster that fits into one crop is one tile
without delta, its longer side rounded up to a patch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tmtool.grid import Cells, Grid, OutputSpec, Placement, Tile, Window, reflect
from tmtool.modality import TOKEN_PX
from tmtool.settings import Tiling

REPEATED = 0.07
"""Share of a scene's tiles that may be computed twice so that its blocks can be computed apart."""
REPEATED_BY_IDLE = 0.25
"""The same where workers would otherwise be idle."""


@dataclass(frozen=True)
class TilePlan:
    """The tiles of a raster of `shape` (height, width) under `tiling`, in row-major order, for a model of `patch` px.

    `part` is what products are made of, the whole raster if it is None: its tiles are those that the whole raster has there.
    A raster that is `pinned` to a lattice is never one tile of its own. Noise is counted from `position`, that of the corner.
    """

    shape: tuple[int, int]
    tiling: Tiling
    patch: int = TOKEN_PX
    part: Window | None = None
    pinned: bool = False
    position: tuple[int, int] = (0, 0)

    @property
    def single(self) -> bool:
        """Whether the whole raster is one tile."""
        return max(self.shape) <= self.tiling.crop and not self.pinned

    @property
    def rows(self) -> range:
        """The source rows that products are made of."""
        return range(self.part.row, self.part.row + self.part.height) if self.part else range(self.shape[0])

    @property
    def cols(self) -> range:
        """The source columns that products are made of."""
        return range(self.part.col, self.part.col + self.part.width) if self.part else range(self.shape[1])

    def snapped(self, specs: Sequence[OutputSpec]) -> "TilePlan":
        """Return the plan whose part holds whole cells of all these outputs."""
        side = max(self.side(spec) for spec in specs)
        if side == 1 or self.part is None:
            return self
        (top, bottom), (left, right) = (
            (span.start // side * side, min(-(-span.stop // side) * side, n))
            for span, n in zip((self.rows, self.cols), self.shape, strict=True)
        )
        return replace(self, part=Window(top, left, bottom - top, right - left))

    def touching(self, specs: Sequence[OutputSpec]) -> tuple[range, range]:
        """Return the tile rows and tile columns that the part's outputs are made from."""
        return (
            hull([self.tile_rows(self.product_rows(self.rows, spec), spec) for spec in specs]),
            hull([self.tile_cols(self.product_cols(self.cols, spec), spec) for spec in specs]),
        )

    @property
    def size(self) -> int:
        """Side of every tile in px."""
        return -(-max(self.shape) // self.patch) * self.patch if self.single else self.tiling.crop

    @property
    def delta(self) -> int:
        """Margin discarded on each side of every tile in px."""
        return 0 if self.single else self.tiling.delta

    @property
    def counts(self) -> tuple[int, int]:
        """Tile rows and tile columns: the fewest whose kept parts reach the far border."""
        if self.single:
            return (1, 1)
        reach = self.size - 2 * self.delta
        height, width = (max(1, -(-(side - reach) // self.tiling.stride) + 1) for side in self.shape)
        return (height, width)

    def __len__(self) -> int:
        """Count all tiles."""
        rows, cols = self.counts
        return rows * cols

    def origin(self, i: int) -> int:
        """First source px of the i-th tile along either axis."""
        return -self.delta + i * self.tiling.stride

    def tiles(self, tile_rows: range | None = None, tile_cols: range | None = None) -> Iterator[Tile]:
        """Yield the tiles of these tile rows and columns (default: all) in order."""
        rows, cols = self.counts
        for r in tile_rows if tile_rows is not None else range(rows):
            for c in tile_cols if tile_cols is not None else range(cols):
                yield Tile(r * cols + c, r, c, self.origin(r), self.origin(c), self.size)

    @property
    def step(self) -> int:
        """Distance between tiles, or the side of the only one, in px."""
        return self.size if self.single else self.tiling.stride

    def product_shape(self, spec: OutputSpec) -> tuple[int, int]:
        """Height and width of a stitched output: px, cells of the patch grid, or tiles."""
        if spec.pool == "tile":
            return self.counts
        height, width = (-(-n // spec.scale) for n in self.shape)
        return (height, width)

    def product_grid(self, grid: Grid, spec: OutputSpec) -> Grid:
        """Return the grid of the part's product, of a raster on `grid`.

        A cell that stands for a tile begins where the tile's kept part does and is as large as the distance between
        tiles; the cell of a whole scene is as large as the scene.
        """
        if self.part is not None:
            grid = grid.part(self.part)
        if spec.pool == "scene":
            return grid.cells((len(self.rows), len(self.cols)), (1, 1))
        side, rows, cols = self.side(spec), self.product_rows(self.rows, spec), self.product_cols(self.cols, spec)
        return grid.cells((side, side), (len(rows), len(cols)))

    def side(self, spec: OutputSpec) -> int:
        """Source px per product row or column."""
        return self.step if spec.pool == "tile" else spec.scale

    def cells(self, spec: OutputSpec, pixel_m: float | None) -> Cells:
        """Return what the cells of the part's product stand for; of a tile it is what is kept of it."""
        corner = (self.rows.start, self.cols.start)
        if spec.pool == "scene":
            whole = (len(self.rows), len(self.cols))
            return Cells(whole, whole, corner, pixel_m)
        side = self.side(spec)
        kept = self.size - 2 * self.delta if spec.pool == "tile" else side
        return Cells((kept, kept), (side, side), corner, pixel_m)

    def product_rows(self, rows: range, spec: OutputSpec) -> range:
        """Return the product rows that begin in these source rows."""
        return self._beginning(rows, spec, 0)

    def product_cols(self, cols: range, spec: OutputSpec) -> range:
        """Return the product columns that begin in these source columns."""
        return self._beginning(cols, spec, 1)

    def _beginning(self, span: range, spec: OutputSpec, axis: int) -> range:
        side, most = self.side(spec), self.product_shape(spec)[axis]
        return range(min(-(-span.start // side), most), min(-(-span.stop // side), most))

    def columns(self, parts: int) -> list[range]:
        """Cut the scene into about as many parts of source columns, on the borders of tiles."""
        return self._cut(1, parts)

    def row_blocks(self, workers: int = 1) -> list[range]:
        """Cut the scene into blocks of source rows, on the borders of tiles, for so many workers.

        Neighbouring blocks both compute the row of tiles that they share. There are as many blocks as possible while at
        most `REPEATED` of all tiles are computed twice. Where there are more workers, each gets a block, up to
        `REPEATED_BY_IDLE`, as long as this makes the longest block shorter.
        """
        count = self._steps(0)
        usual, most = 1 + int(REPEATED * count), 1 + int(REPEATED_BY_IDLE * count)
        numbers = range(usual, max(usual, min(workers, most)) + 1)
        return self._cut(0, min(numbers, key=lambda n: -(-count // n) + (n > 1)))

    def even_blocks(self, least: int = 1) -> list[range]:
        """Cut the scene into blocks of source rows as `row_blocks` does, all of one height but for a lower last one.

        The chunks of a Zarr store must have one height. There are at least `least` blocks if there are enough tile rows.
        """
        height, count = len(self.rows), self._steps(0)
        usual = 1 + int(REPEATED * count)
        sides = [k * self.step for k in range(1, count + 1)]
        if least <= usual:
            side = next((n for n in sides if -(-height // n) <= usual), height)
        else:
            side = next((n for n in reversed(sides) if -(-height // n) >= least), self.step)
        first = self.rows.start
        return [range(first + row, first + min(row + side, height)) for row in range(0, height, side)]

    def _steps(self, axis: int) -> int:
        """Count the tiles along an axis whose step begins in the part, or holds its first pixel."""
        if self.part is None:
            return self.counts[axis]
        span = (self.rows, self.cols)[axis]
        return min(-(-span.stop // self.step), self.counts[axis]) - min(span.start // self.step, self.counts[axis] - 1)

    def _cut(self, axis: int, parts: int) -> list[range]:
        span, count = (self.rows, self.cols)[axis], self._steps(axis)
        parts, first = min(parts, count), span.start // self.step
        cuts = [max(span.start, (first + k * count // parts) * self.step) for k in range(parts)]
        return [range(a, b) for a, b in zip(cuts, [*cuts[1:], span.stop], strict=True)]

    def kept(self, i: int, length: int, spec: OutputSpec) -> tuple[int, int]:
        """First and past-the-last product px that the i-th tile contributes to along an axis of `length` source px."""
        if spec.pool == "tile":
            return i, i + 1
        start = (self.origin(i) + self.delta) // spec.scale
        stop = (self.origin(i) + self.size - self.delta) // spec.scale
        return start, min(stop, -(-length // spec.scale))

    def tile_rows(self, rows: range, spec: OutputSpec) -> range:
        """Return the tile rows that contribute to these product rows."""
        return self._touching(rows, spec, 0)

    def tile_cols(self, cols: range, spec: OutputSpec) -> range:
        """Return the tile columns that contribute to these product columns."""
        return self._touching(cols, spec, 1)

    def seen(self, rows: range, specs: Sequence[OutputSpec], scale: int = 1) -> range:
        """Return the rows of an input, in px of `scale` source px, that the tiles of these source rows see.

        What is reflected beyond the raster's border is in it.
        """
        return self._read(hull([self.tile_rows(self.product_rows(rows, spec), spec) for spec in specs]), 0, scale)

    def seen_cols(self, cols: range, specs: Sequence[OutputSpec], scale: int = 1) -> range:
        """Return the columns that the tiles of these source columns see, as `seen` does."""
        return self._read(hull([self.tile_cols(self.product_cols(cols, spec), spec) for spec in specs]), 1, scale)

    def _read(self, tiles: range, axis: int, scale: int) -> range:
        if not tiles:
            return range(0)
        start, stop = self.origin(tiles.start) // scale, (self.origin(tiles.stop - 1) + self.size) // scale
        index = reflect(start, stop, -(-self.shape[axis] // scale))
        return range(int(index.min()), int(index.max()) + 1)

    def _touching(self, span: range, spec: OutputSpec, axis: int) -> range:
        length, count = self.shape[axis], self.counts[axis]
        hit = [i for i in range(count) if (k := self.kept(i, length, spec))[0] < span.stop and k[1] > span.start]
        return range(hit[0], hit[-1] + 1) if hit else range(0)

    def place(self, tile: Tile, spec: OutputSpec) -> Placement:
        """Return where the kept part of `tile` lies in the product, and its share of each px there.

        The shares of all tiles add up to one at every px; for `own` they are zero and one.
        """
        axes = tuple(zip((tile.tile_row, tile.tile_col), self.shape, self.counts, strict=True))
        (r0, r1), (c0, c1) = (self.kept(i, length, spec) for i, length, _ in axes)
        if spec.pool == "tile":
            return Placement(Window(r0, c0, 1, 1), 0, np.ones((1, 1), np.float32))
        if spec.stitch == "own":
            y, x = (self._owned(i, count, *self.kept(i, length, spec), spec.scale) for i, length, count in axes)
            share = np.outer(y, x).astype(np.float32)
        else:
            edges = [self._edge(i, count) for i, _, count in axes]
            share = _blend_share(self.size, self.tiling.stride, self.delta, spec.scale, *edges)[: r1 - r0, : c1 - c0]
        window = Window(r0, c0, r1 - r0, c1 - c0)
        return Placement(window, self.delta // spec.scale, share, (tile.tile_row, tile.tile_col))

    def _edge(self, i: int, count: int) -> tuple[int, int]:
        """Tiles before and after the i-th that it can overlap with: all that its weights depend on."""
        around = -(-self.size // self.tiling.stride)
        return min(i, around), min(count - 1 - i, around)

    def nearest(self, spec: OutputSpec) -> tuple[dict[int, range], dict[int, range]]:
        """Return the rows of the part's product that are nearest to the centre of each tile row, and its columns likewise.

        Those that own none are left out. Rows and columns are counted from the product's corner.
        """
        spans = self.product_rows(self.rows, spec), self.product_cols(self.cols, spec)
        return self._nearest(spans[0], spec, 0), self._nearest(spans[1], spec, 1)

    def _nearest(self, span: range, spec: OutputSpec, axis: int) -> dict[int, range]:
        found = {}
        for i in self._touching(span, spec, axis):
            own = np.flatnonzero(self._owned(i, self.counts[axis], span.start, span.stop, spec.scale))
            if own.size:
                found[i] = range(int(own[0]), int(own[-1]) + 1)
        return found

    def _owned(self, i: int, count: int, start: int, stop: int, scale: int) -> NDArray[np.bool_]:
        """Return which of the product px `start..stop` along an axis are nearest to the centre of the i-th tile."""
        centre = 2 * np.arange(start, stop) * scale + scale  # all doubled, to stay in integers
        border = 2 * self.origin(i) + self.size + self.tiling.stride  # half-way to the next tile's centre
        nearest_before = (centre <= border) | (i == count - 1)  # on a tie the earlier tile owns the px
        nearest_after = (centre > border - 2 * self.tiling.stride) | (i == 0)
        return nearest_before & nearest_after


def hull(spans: Sequence[range]) -> range:
    """Return the range that holds all of these that are not empty."""
    some = [span for span in spans if span]
    return range(min(s.start for s in some), max(s.stop for s in some)) if some else range(0)


def blend_window(crop: int, stride: int, delta: int) -> NDArray[np.float64]:
    """Return terratorch's one-dimensional blend window, `(crop - 2*delta,)`: raised-cosine ramps around a plateau of one."""
    ramp = min(crop // 2, crop - stride) - delta
    window = np.ones(crop - 2 * delta)
    if ramp > 0:
        falling = np.cos(np.pi * np.arange(1, ramp + 1) / (ramp + 1)) / 2 + 0.5
        window[:ramp] = falling[::-1]
        window[-ramp:] = falling
    return window


@lru_cache(maxsize=256)
def _blend_share(
    size: int, stride: int, delta: int, scale: int, row_edge: tuple[int, int], col_edge: tuple[int, int]
) -> NDArray[np.float32]:
    """Weights of a tile with so many neighbours on each side, divided by the sum of all tiles' weights there."""
    floor = 1e-6  # terratorch's, so that every pixel that a tile keeps has a weight
    window = blend_window(size // scale, stride // scale, delta // scale)
    (sum_y, n_y), (sum_x, n_x) = (_overlaps(window, stride // scale, *edge) for edge in (row_edge, col_edge))
    total = np.outer(sum_y, sum_x) + floor * np.outer(n_y, n_x)
    share = ((np.outer(window, window) + floor) / total).astype(np.float32)
    share.flags.writeable = False  # it is cached
    return share


def _overlaps(
    window: NDArray[np.float64], step: int, before: int, after: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sum of the window and of its neighbours' windows over it, and how many windows that is."""
    total, count = window.copy(), np.ones_like(window)
    for k in (*range(-before, 0), *range(1, after + 1)):
        shift = abs(k) * step
        if shift >= len(window):
            continue
        here = slice(shift, None) if k > 0 else slice(None, -shift)
        there = slice(None, -shift) if k > 0 else slice(shift, None)
        total[here] += window[there]
        count[here] += 1
    return total, count
