"""Measures of a product tile by tile: each of its pixels counts for the tile whose centre is nearest."""

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from tmtool.errors import InputError
from tmtool.grid import BoolArray, OutputSpec, Window
from tmtool.products.agreement import Agreement
from tmtool.provenance import Provenance
from tmtool.settings import Tiling
from tmtool.tasks import cell_px
from tmtool.tiles.plan import TilePlan

Cells = tuple[Mapping[int, range], Mapping[int, range]]
"""Rows of a product by tile row, and columns by tile column."""


class ByTile:
    """Gathers strips from the top; what was found of each tile is in `found`, in row-major order.

    `new` makes a measure of strips that are so many pixels wide. There are only measures of the tiles that strips have reached.
    """

    def __init__(self, cells: Cells, new: Callable[[int], Agreement]) -> None:
        self._rows, self._cols = cells
        self._new = new
        self._open: list[Agreement] = []
        self.found: list[dict[str, Any]] = []

    def add(self, row: int, values: NDArray[Any], reference: NDArray[Any], valid: BoolArray) -> None:
        """Take the next rows, from `row`: product and reference `(bands, h, W)`, and which pixels are valid in both, `(h, W)`."""
        for i, rows in self._rows.items():
            top, bottom = max(rows.start, row), min(rows.stop, row + len(valid))
            if top >= bottom:
                continue
            if top == rows.start:
                self._open = [self._new(len(cols)) for cols in self._cols.values()]
            for cols, measure in zip(self._cols.values(), self._open, strict=True):
                here = (slice(top - row, bottom - row), slice(cols.start, cols.stop))
                measure.add(values[:, *here], reference[:, *here], valid[here])
            if bottom == rows.stop:
                self.found += [self._said(i, j, m) for j, m in zip(self._cols, self._open, strict=True)]

    def _said(self, i: int, j: int, measure: Agreement) -> dict[str, Any]:
        rows, cols = self._rows[i], self._cols[j]
        window = [cols.start, rows.start, len(cols), len(rows)]  # as --window has it
        return {"tile_row": i, "tile_col": j, "window": window, **measure.result()}


def cells_of(product: str, made: Provenance | None, shape: tuple[int, int]) -> Cells:
    """Return which pixels of a product of `shape` are nearest to which of the tiles that it was made of.

    Raises `InputError` for what does not say how it was made, or has no pixels that are smaller than a tile.
    """
    if made is None or (tiling := _tiling(made)) is None:
        raise InputError(
            f"{product}: does not say which tiles it was made of; --tiles needs a product of tmtool, whose tag TMTOOL_PROVENANCE "
            "has crop, stride and delta. --zones measures any polygons."
        )
    cell = cell_px(made)
    if not cell:
        raise InputError(
            f"{product}: has no pixels of which a tile holds several, which --tiles would measure together."
        )
    read = made.read or {}
    col, row, width, height = read.get("part") or (0, 0, cell * shape[1], cell * shape[0])
    across, down = made.details.get("whole") or (col + width, row + height)
    part = Window(row, col, height, width)
    plan = TilePlan((down, across), tiling, part=part, pinned=read.get("anchor") == "grid")
    rows, cols = plan.nearest(OutputSpec("", 1, cell))
    found = tuple(max((span.stop for span in spans.values()), default=0) for spans in (rows, cols))
    if found != shape:
        raise InputError(
            f"{product}: has {shape[0]} x {shape[1]} px, but was made with {found[0]} x {found[1]}; --tiles needs it as it was made."
        )
    return rows, cols


def _tiling(made: Provenance) -> Tiling | None:
    """Return the tiles that a product says it was made of; None if it does not, or they cannot be."""
    try:
        tiling = Tiling(*(int(made.tiling[name]) for name in ("crop", "stride", "delta")))
    except (KeyError, TypeError, ValueError):
        return None
    possible = tiling.delta >= 0 and 1 <= tiling.stride <= tiling.crop - 2 * tiling.delta
    return tiling if possible else None
