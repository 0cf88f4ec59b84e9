"""Levelling: an offset for each tile that brings overlapping tiles to one level, found by least squares over all overlaps.

A model knows a tile's relief better than its level. Offsets are blended as tiles are, so the field that they make is added to what
was stitched, without running the model again. Memory: by the number of tiles.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmtool.grid import BoolArray, OutputSpec, Strip
from tmtool.tiles.overlaps import Overlaps
from tmtool.tiles.plan import TilePlan
from tmtool.tiles.stitch import Stitcher

_TRUST = 0.1
"""What a pixel of a reference counts, in pixels of overlaps: these say more about the steps between tiles."""


@dataclass(frozen=True)
class Offsets:
    """What is added to each tile: `values` `(n, bands)` float64 for tile rows and columns `tiles` `(n, 2)`."""

    tiles: NDArray[np.int64]
    values: NDArray[np.float64]

    def applied(self, overlaps: Overlaps) -> Overlaps:
        """Return what is left of the overlaps' differences."""
        number = {tuple(tile): i for i, tile in enumerate(self.tiles.tolist())}
        first, second = (
            np.array([number[tuple(tile)] for tile in pair.tolist()], np.int64).reshape(-1)
            for pair in (overlaps.tiles[:, :2], overlaps.tiles[:, 2:])
        )
        change, counts = self.values[second] - self.values[first], overlaps.counts[:, None]
        squares = overlaps.squares + 2 * change * overlaps.sums + counts * change**2
        return replace(overlaps, sums=overlaps.sums + counts * change, squares=np.maximum(squares, 0))


class Anchor:
    """Adds up how far a reference lies above a product, tile by tile: each pixel counts for the tile whose centre is nearest.

    `counts` `(tile rows, tile columns)` are the pixels that are valid in both, `sums` `(bands, tile rows, tile columns)`.
    """

    def __init__(self, plan: TilePlan, spec: OutputSpec, bands: int) -> None:
        self._plan, self._spec = plan, spec
        self.counts, self.sums = np.zeros(plan.counts, np.int64), np.zeros((bands, *plan.counts))

    def add(self, row: int, col: int, above: NDArray[np.floating], valid: BoolArray) -> None:
        """Take the reference minus the product, `(bands, h, w)` from product row `row` and column `col`, and where both are valid."""
        rows, cols = (
            self._nearest(first, n, axis) for axis, (first, n) in enumerate(zip((row, col), valid.shape, strict=True))
        )
        at = np.broadcast_arrays(rows[:, None], cols[None])
        tile = (at[0][valid], at[1][valid])
        np.add.at(self.counts, tile, 1)
        for sums, band in zip(self.sums, above, strict=True):
            np.add.at(sums, tile, band[valid])

    def _nearest(self, first: int, length: int, axis: int) -> NDArray[np.int64]:
        plan = self._plan
        centre = plan.origin(0) + plan.size / 2
        at = (np.arange(first, first + length) + 0.5) * self._spec.scale
        return np.clip(np.rint((at - centre) / plan.tiling.stride), 0, plan.counts[axis] - 1).astype(np.int64)


def offsets(overlaps: Overlaps, anchor: Anchor | None = None) -> Offsets:
    """Return the offsets that make overlapping tiles agree best, in the sense of least squares over all px of all overlaps.

    With an `anchor` they bring tiles near its reference too. Without one the mean offset of tiles that hang together is 0.
    """
    from scipy.sparse import coo_array, diags_array
    from scipy.sparse.csgraph import connected_components
    from scipy.sparse.linalg import splu

    bands = overlaps.sums.shape[1]
    ends = [overlaps.tiles[:, :2], overlaps.tiles[:, 2:]]
    anchored = np.argwhere(anchor.counts > 0) if anchor else np.zeros((0, 2), np.int64)
    tiles, number = np.unique(np.concatenate([*ends, anchored]), axis=0, return_inverse=True)
    n, pairs = len(tiles), len(overlaps.counts)
    if not n:
        return Offsets(tiles, np.zeros((0, bands)))
    first, second, held = np.split(number.reshape(-1), [pairs, 2 * pairs])
    weight = overlaps.counts.astype(np.float64)
    links = coo_array((weight, (first, second)), shape=(n, n)).tocsr()
    links = links + links.T
    diagonal = np.asarray(links.sum(axis=1)).reshape(-1)
    right = np.zeros((n, bands))
    np.add.at(right, first, overlaps.sums)
    np.add.at(right, second, -overlaps.sums)
    if anchor is not None:
        at = tuple(anchored.T)
        trusted = np.zeros(n)
        trusted[held] = _TRUST * anchor.counts[at]
        diagonal = diagonal + trusted
        right[held] += _TRUST * np.stack([sums[at] for sums in anchor.sums], axis=1)
    slightly = 1e-9 * max(float(diagonal.max()), 1.0)  # tiles that hang together have no level of their own
    system = diags_array(diagonal + slightly) - links
    values = splu(system.tocsc()).solve(right)
    if anchor is None:
        _, part = connected_components(links, directed=False)
        count = np.bincount(part)
        for band in values.T:
            band -= (np.bincount(part, band) / count)[part]
    return Offsets(tiles, values)


def level_facts(bands: Sequence[str], found: Offsets, before: Overlaps, after: Overlaps) -> dict[str, Any]:
    """Return what was removed, ready for JSON: the spread of the offsets, and how far tiles differed before and differ after."""
    facts: dict[str, Any] = {}
    for i, band in enumerate(bands):
        values = found.values[:, i] if len(found.values) else np.zeros(1)
        figures = {
            "tiles": len(found.values),
            "offset_std": values.std(),
            "offset_min": values.min(),
            "offset_max": values.max(),
            "overlap_before": before.rms[i],
            "overlap_after": after.rms[i],
        }
        facts[band] = {name: None if np.isnan(v) else float(f"{v:.6g}") for name, v in figures.items()}
    return facts


def field(plan: TilePlan, spec: OutputSpec, found: Offsets) -> Iterator[Strip]:
    """Yield what is added to the rows of the plan's part, from the top, in the product's rows and columns."""
    rows, cols = plan.product_rows(plan.rows, spec), plan.product_cols(plan.cols, spec)
    of = {tuple(tile): value for tile, value in zip(found.tiles.tolist(), found.values.astype(np.float32), strict=True)}
    stitcher = Stitcher(replace(spec, draws=1, seams="", dtype="float32"), cols, rows)
    whole = np.ones((plan.size, plan.size), np.bool_)
    for number, tile in enumerate(plan.tiles(plan.tile_rows(rows, spec), plan.tile_cols(cols, spec))):
        value = of.get((tile.tile_row, tile.tile_col), np.zeros(spec.channels, np.float32))
        values = np.broadcast_to(
            value[:, None, None], (spec.channels, plan.size // spec.scale, plan.size // spec.scale)
        )
        yield from stitcher.add(number, plan.place(tile, spec), values, whole)
    yield from stitcher.finish()
