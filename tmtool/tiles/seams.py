"""Seams: how far overlapping tiles disagree, and the steps of a product at the borders of tiles against those elsewhere."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmtool.grid import BoolArray, FloatArray, OutputSpec
from tmtool.tiles.overlaps import Overlaps, by_tile
from tmtool.tiles.plan import TilePlan, hull

SEAMS_TAG = "TMTOOL_SEAMS"
"""The tag of a product that says, in JSON, how far each of its tiles disagrees with those around it."""

STEP_LIMIT = 1.5
"""Steps at the borders of tiles, in those elsewhere, from which on a seam is told; docs/METRICS.md has what scenes give."""

_Pixels = tuple[NDArray[Any], BoolArray]
"""Values `(bands, h, w)` and their validity `(h, w)`."""

_SHARE = "of px"

_LIKE, _BORDER, _OTHER = range(3)

_MOST_CELLS = 4096
"""Cells of the tag's map: more tiles are averaged."""


class BorderSteps:
    """Adds up the steps from pixel to pixel of a product whose rows stream by: those across borders of tiles, and others.

    A border is where the part of a tile that is kept begins or ends. Borders are held against the other steps at the same place
    within a patch: decoders make patches, and steps at their edges are larger. For classes a step is 1 where the class changes.
    """

    def __init__(self, plan: TilePlan, spec: OutputSpec, bands: int) -> None:
        self._classes, self.bands = spec.seams == "classes", bands
        rows, cols = plan.product_rows(plan.rows, spec), plan.product_cols(plan.cols, spec)
        self._rows, kinds = (
            _kinds(plan, _borders(plan, spec, axis, span), span) for axis, span in ((0, rows), (1, cols))
        )
        self._at = {kind: np.flatnonzero(kinds == kind) for kind in (_LIKE, _BORDER)}
        self._first = rows.start
        self._sums, self._counts = np.zeros((2, bands)), np.zeros(2)
        self._last: tuple[NDArray[Any], BoolArray] | None = None

    def add(self, row: int, values: NDArray[Any], valid: BoolArray) -> None:
        """Take the next rows, `(bands, h, W)` from product row `row`, and their validity `(h, W)`."""
        rows = self._rows[row - self._first : row - self._first + len(valid)]
        for kind, at in self._at.items():
            self._count(kind, (values[:, :, at], valid[:, at]), (values[:, :, at - 1], valid[:, at - 1]))
            at = np.flatnonzero(rows[1:] == kind) + 1
            self._count(kind, (values[:, at], valid[at]), (values[:, at - 1], valid[at - 1]))
            if self._last is not None and rows[0] == kind:
                self._count(kind, (values[:, :1], valid[:1]), self._last)
        self._last = (values[:, -1:].copy(), valid[-1:].copy())

    def _count(self, kind: int, first: _Pixels, second: _Pixels) -> None:
        (one, seen), (other, there) = first, second
        both = seen & there
        apart = one != other if self._classes else np.abs(one.astype(np.float32) - other.astype(np.float32))
        self._sums[kind] += np.where(both, apart, 0).sum(axis=(1, 2), dtype=np.float64)
        self._counts[kind] += both.sum()

    @property
    def ratios(self) -> NDArray[np.float64]:
        """Mean step at borders in mean steps elsewhere, `(bands,)`; NaN where there are no borders or no steps elsewhere."""
        if not self._counts.all():
            return np.full(self._sums.shape[1], np.nan)
        elsewhere, borders = self._sums / self._counts[:, None]
        found: NDArray[np.float64] = np.divide(
            borders, elsewhere, out=np.full_like(borders, np.nan), where=elsewhere > 0
        )
        return found


def _kinds(plan: TilePlan, borders: Sequence[int], span: range) -> NDArray[np.int8]:
    """Return for each place of a span whether a border is there, or it lies within its patch as some border does, or neither."""
    at = np.arange(span.start, span.stop)
    like = np.isin(at % plan.patch, [border % plan.patch for border in borders]) & (at > span.start)
    return np.where(np.isin(at, borders), _BORDER, np.where(like, _LIKE, _OTHER)).astype(np.int8)


def _borders(plan: TilePlan, spec: OutputSpec, axis: int, span: range) -> list[int]:
    """Return the product rows or columns of a span, but for its first, at which a tile's kept part begins or ends."""
    kept = [plan.kept(i, plan.shape[axis], spec) for i in range(plan.counts[axis])]
    return sorted({edge for ends in kept for edge in ends if span.start < edge < span.stop})


@dataclass(frozen=True)
class Seams:
    """What was found of one product's seams, `(bands,)` each: NaN where there is nothing to compare.

    `overlap` is the root mean square by which overlapping tiles differ, in the product's unit; of classes the share of px in
    which they do. `steps` are the steps at borders of tiles in those elsewhere.
    """

    bands: tuple[str, ...]
    unit: str
    overlap: NDArray[np.float64]
    steps: NDArray[np.float64]

    def facts(self) -> dict[str, Any]:
        """Return both figures by band, ready for JSON: None where there is none."""
        return {
            name: {band: None if np.isnan(v) else float(f"{v:.4g}") for band, v in zip(self.bands, values, strict=True)}
            for name, values in (("overlap", self.overlap), ("steps", self.steps))
        }

    def text(self) -> str:
        """Return both in words, or nothing where there is a single tile."""
        said = []
        if not np.isnan(self.overlap).all():
            each = ", ".join(f"{band} {v:.3g}" for band, v in zip(self.bands, self.overlap, strict=True))
            said.append(f"where tiles overlap they differ by {each}{f' {self.unit}' if self.unit else ''}")
        if not np.isnan(self.steps).all():
            each = ", ".join(f"{band} {v:.2f}" for band, v in zip(self.bands, self.steps, strict=True))
            said.append(f"steps at their borders are {each} times those elsewhere")
        return "; ".join(said)

    def warning(self, suffix: str) -> list[str]:
        """Return a warning if tiles can be seen."""
        if np.isnan(self.steps).all() or not np.nanmax(self.steps) > STEP_LIMIT:
            return []
        worst = int(np.nanargmax(self.steps))
        return [
            f"{suffix}: tiles may be seen: steps at their borders are {self.steps[worst]:.1f} times those elsewhere "
            f"({self.bands[worst]}). Let tiles overlap more: a smaller --stride, a larger --delta."
        ]


def seams_of(
    bands: Sequence[str], unit: str, spec: OutputSpec, overlaps: Overlaps, steps: NDArray[np.float64]
) -> Seams:
    """Return the seams of a product with these bands."""
    overlap = overlaps.rms
    if spec.seams == "classes":
        return Seams(tuple(bands), _SHARE, overlap**2, steps)
    return Seams(tuple(bands), unit, overlap, steps)


def tile_map(plan: TilePlan, spec: OutputSpec, overlaps: Overlaps, stds: NDArray[np.float64]) -> dict[str, str]:
    """Return the tag with each tile's disagreement, in standard deviations `(bands,)` of the product; none for a single tile.

    Of classes it is the share of px that differ.
    """
    classes = spec.seams == "classes"
    found = by_tile(overlaps, np.ones(1) if classes else stds)
    if not found:
        return {}
    rows, cols = (hull([range(at, at + 1) for at in {tile[axis] for tile in found}]) for axis in (0, 1))
    cells = np.full((len(rows), len(cols)), np.nan)
    for (row, col), value in found.items():
        cells[row - rows.start, col - cols.start] = value**2 if classes else value
    pool = max(1, int(np.ceil(np.sqrt(cells.size / _MOST_CELLS))))
    first = tuple((plan.size - plan.tiling.stride) // 2 + plan.origin(span.start) for span in (rows, cols))
    said = {
        "rows": -(-len(rows) // pool),
        "cols": -(-len(cols) // pool),
        "top": first[0] - plan.rows.start,
        "left": first[1] - plan.cols.start,
        "step": pool * plan.tiling.stride,
        "unit": _SHARE if classes else "std",
        "values": base64.b64encode(_pooled(cells, pool).astype("<f2").tobytes()).decode(),
    }
    return {SEAMS_TAG: json.dumps(said, sort_keys=True)}


@dataclass(frozen=True)
class TileMap:
    """Disagreement of tiles, `(rows, cols)` float32, NaN where a tile overlaps none; each stands for a cell of the product.

    The first cell begins at product row `top` and column `left`, which may be negative; cells have `step` px a side.
    """

    values: FloatArray
    top: int
    left: int
    step: int
    unit: str


def parse_tile_map(tags: Mapping[str, str]) -> TileMap | None:
    """Return the map in a product's tags; None if there is none."""
    try:
        said = json.loads(tags.get(SEAMS_TAG, "null"))
        shape = (int(said["rows"]), int(said["cols"]))
        values = np.frombuffer(base64.b64decode(said["values"]), "<f2").astype(np.float32).reshape(shape)
        return TileMap(values, int(said["top"]), int(said["left"]), int(said["step"]), str(said["unit"]))
    except (ValueError, TypeError, KeyError):
        return None


def _pooled(cells: NDArray[np.float64], pool: int) -> NDArray[np.float64]:
    """Return the means of blocks of cells, of those that are not NaN."""
    if pool == 1:
        return cells
    height, width = (-(-n // pool) for n in cells.shape)
    whole = np.full((height * pool, width * pool), np.nan)
    whole[: cells.shape[0], : cells.shape[1]] = cells
    blocks = whole.reshape(height, pool, width, pool)
    counts = (~np.isnan(blocks)).sum(axis=(1, 3))
    total = np.nansum(blocks, axis=(1, 3))
    return np.where(counts > 0, total / np.maximum(counts, 1), np.nan)
