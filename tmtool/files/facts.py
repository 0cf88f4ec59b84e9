"""What a finished product says of itself, whatever its format: for catalogues."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from affine import Affine

from tmtool.grid import Grid


@dataclass(frozen=True)
class BandFacts:
    """One band: a value in its `unit` is `stored * scale + offset`. `statistics` has minimum, maximum, mean, stddev of what is stored."""

    name: str
    unit: str = ""
    scale: float = 1.0
    offset: float = 0.0
    statistics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """What the file, or folder, of a product says.

    Of a raster `grid`, `dtype`, `nodata`, `bands` and `classes`, (name, colour `#RRGGBB`) of the values 0, 1, ...; of a table
    `columns` and their types, and `rows`. `extent` is a grid that covers what either does: the raster's, or one cell.
    """

    tags: Mapping[str, str]
    extent: Grid | None = None
    grid: Grid | None = None
    dtype: str = ""
    nodata: float | None = None
    bands: tuple[BandFacts, ...] = ()
    classes: tuple[tuple[str, str], ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    rows: int = 0


def one_cell(crs: object, bounds: tuple[float, float, float, float]) -> Grid:
    """Return the grid of one cell with these bounds: xmin, ymin, xmax, ymax."""
    left, bottom, right, top = bounds
    return Grid(crs, Affine(right - left, 0, left, 0, bottom - top, top), (1, 1))
