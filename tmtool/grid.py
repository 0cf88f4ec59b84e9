"""The small frozen values that the stages exchange. Order is always (row, col) and (height, width)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from affine import Affine
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Grid:
    """Where pixels lie: CRS, affine from (col, row) to map coordinates, and (height, width) in px.

    `crs` is a `rasterio.crs.CRS`, or None for a raster without georeferencing (its `transform` is then the identity).
    """

    crs: Any
    transform: Affine
    shape: tuple[int, int]

    @classmethod
    def of(cls, dataset: Any) -> "Grid":
        """Return the grid of a dataset of rasterio's."""
        return cls(dataset.crs, dataset.transform, dataset.shape)

    def coarser(self, scale: int) -> "Grid":
        """Return the grid whose cells are `scale` x `scale` px of this one, from the same corner, the last ones cut."""
        height, width = self.shape
        return self.cells((scale, scale), (-(-height // scale), -(-width // scale)))

    def cells(self, size: tuple[int, int], shape: tuple[int, int]) -> "Grid":
        """Return the grid of `shape` whose cells are `size` (height, width) px of this one, from the same corner."""
        a, b, c, d, e, f = self.transform[:6]
        height, width = size
        return Grid(self.crs, Affine(a * width, b * height, c, d * width, e * height, f), shape)

    def part(self, window: "Window") -> "Grid":
        """Return the grid of a window of this one."""
        shape = (window.height, window.width)
        if not (window.row or window.col):
            return Grid(self.crs, self.transform, shape)
        return Grid(self.crs, self.transform * Affine.translation(window.col, window.row), shape)

    def finer(self, scale: int, shape: tuple[int, int]) -> "Grid":
        """Return the grid of `shape` that has this one as its `coarser(scale)`."""
        a, b, c, d, e, f = self.transform[:6]
        return Grid(self.crs, Affine(a / scale, b / scale, c, d / scale, e / scale, f), shape)

    def resized(self, shape: tuple[int, int]) -> "Grid":
        """Return the grid of `shape` with the same outline, as GDAL has it of an overview."""
        a, b, c, d, e, f = self.transform[:6]
        y, x = self.shape[0] / shape[0], self.shape[1] / shape[1]
        return Grid(self.crs, Affine(a * x, b * y, c, d * x, e * y, f), shape)

    @property
    def code(self) -> str | None:
        """The authority's code of the CRS, as EPSG:32719; None where it has none."""
        found = self.crs.to_authority(confidence_threshold=100) if self.crs else None
        return ":".join(found) if found else None


@dataclass(frozen=True)
class Cells:
    """What the cells of a product stand for, in px of its source: `size` and `stride` (height, width), the first from `corner` (row, col).

    A px of the source is `pixel_m` metres wide, if that is known.
    """

    size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    corner: tuple[int, int] = (0, 0)
    pixel_m: float | None = None


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels: first row and column (may be negative), height and width."""

    row: int
    col: int
    height: int
    width: int


@dataclass(frozen=True)
class Tile:
    """One model input: `size` x `size` source px from (`row`, `col`), which is negative beyond the raster's border.

    `index` is the place in the plan's order, row-major; `tile_row` and `tile_col` count tiles.
    """

    index: int
    tile_row: int
    tile_col: int
    row: int
    col: int
    size: int


@dataclass(frozen=True)
class OutputSpec:
    """How one model output is stitched: `blend` averages with weights, `own` takes the nearest tile's value.

    `scale` is source px per product px (16 on the patch grid), `channels` what the model gives for each of them.
    `pool` "tile" takes the mean of each tile's kept part instead of stitching, or with `own` the one value that the model gives
    for a tile; "scene" takes the mean of all stitched cells.
    """

    name: str
    channels: int
    scale: int = 1
    stitch: Literal["blend", "own"] = "blend"
    dtype: str = "float32"
    pool: Literal["none", "tile", "scene"] = "none"
    draws: int = 1
    """How many draws of the model's output it is made from."""
    of: str = ""
    """The model's output that it is made from, where that has another name."""
    seams: Literal["", "values", "classes"] = ""
    """What is compared where tiles overlap: values, or the likeliest classes."""


@dataclass(frozen=True)
class Placement:
    """Where a tile's kept part lies in the product: `window` in product px, and its `share` of each, `(h, w)` float32.

    The kept part starts `offset` product px into the tile's own output. `tile` is the tile's row and column.
    """

    window: Window
    offset: int
    share: FloatArray
    tile: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class TileBatch:
    """What a model is called with.

    `pixels[modality]` is `(B, C, S, S)` float32 in the modality's unit, holes filled with the pretraining mean;
    `rows` and `cols` are the tiles' origins in source px, `(B,)` int64. Entries past the last tile repeat it, so that
    every batch of a run has the same shape.
    """

    pixels: Mapping[str, FloatArray]
    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    lonlat: NDArray[np.float64] | None = None
    """Longitude and latitude of the tiles' centres, `(B, 2)` degrees, where the model asks for them."""
    dates: NDArray[np.datetime64] | None = None
    """When the images were taken, `(B, T)` in UTC, where the model asks for it and all are known."""
    draws: "Draws | None" = None
    """Which draw each output is, where several are made of each tile."""


@dataclass(frozen=True)
class Draws:
    """What the `(B,)` outputs of a batch are: draw `number` (int64, from 0) of the tile at `index` in the batch."""

    index: NDArray[np.int64]
    number: NDArray[np.int64]


@dataclass(frozen=True)
class Strip:
    """Finished rows of one output: `values` `(C, h, w)` in the spec's dtype, `valid` `(h, w)`, from product row `row`.

    They begin at product column `col`. `overlaps` is how far tiles differ there (`tmtool.tiles.overlaps`), where that is measured.
    """

    row: int
    values: NDArray[Any]
    valid: BoolArray
    col: int = 0
    overlaps: Any = None


def at(transform: Affine, xs: Any, ys: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where an affine takes points, each `(n,)` float64."""
    a, b, c, d, e, f = transform[:6]
    x, y = np.asarray(xs, np.float64), np.asarray(ys, np.float64)
    return a * x + b * y + c, d * x + e * y + f


def reflect(start: int, stop: int, size: int) -> NDArray[np.int64]:
    """Return for each position in `start..stop` the index in `0..size-1` that reflection at the borders gives.

    The border itself is not repeated (numpy's "reflect"), and reflection is repeated as often as needed.
    """
    index = np.arange(start, stop, dtype=np.int64)
    if size == 1:
        return np.zeros_like(index)
    period = 2 * (size - 1)
    index = np.abs(index) % period
    return np.minimum(index, period - index)
