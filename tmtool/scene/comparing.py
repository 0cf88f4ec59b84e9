"""A product held against a reference, strip by strip."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window as RasterioWindow

from tmtool import models
from tmtool.errors import InputError
from tmtool.files.cog import COG, class_names
from tmtool.files.writer import Layout, ProductWriter
from tmtool.grid import BoolArray, Grid, Window
from tmtool.modality import MODALITIES, Modality, find
from tmtool.products.agreement import Agreement, Classes, Codes, Joint, Quantities, Vectors
from tmtool.provenance import Provenance, parse
from tmtool.scene._by_tile import ByTile, cells_of
from tmtool.settings import Reading
from tmtool.source import Reader, ShapeMask, inspect, on_grid, opened, same_grid, shapes_of
from tmtool.tasks import content

_ROWS = 256
"""Rows of a strip."""

_Strips = Iterator[tuple[int, NDArray[Any], NDArray[Any], BoolArray]]
"""First row of a strip, the product's values, the reference's, and which are valid in both."""


@dataclass(frozen=True)
class _Pair:
    """What is compared: what the measure is, the grid, the bands' names and unit, and the strips."""

    measure: Agreement
    grid: Grid
    bands: tuple[str, ...]
    unit: str
    strips: _Strips
    new: Callable[[int], Agreement]
    """Makes another measure of the same kind, of strips that are so many pixels wide."""
    ids: bool = False
    joint: Joint | None = None


@dataclass(frozen=True)
class Compared:
    """What was found, and the unit of bands."""

    product: str
    reference: str
    kind: str
    unit: str
    found: dict[str, Any]
    zones: tuple[dict[str, Any], ...] = ()
    """The same for each zone, in the order of the file."""
    tiles: tuple[dict[str, Any], ...] = ()
    """The same for each tile, in row-major order, with `tile_row`, `tile_col` and `window` (column, row, width, height)."""
    joint: Joint | None = None


@dataclass(frozen=True)
class Also:
    """What is wanted beside the figures of the whole.

    `error_map` is written: the difference of each band, or of ids 1 where they differ. `zones` is a vector file whose polygons
    are measured one by one too, with `tiles` each tile that the product was made of. With `joint` the values of both are counted
    together, for a plot.
    """

    error_map: Path | None = None
    zones: str = ""
    tiles: bool = False
    joint: bool = False


def compare(
    product: str,
    reference: str,
    how: Reading,
    *,
    modality: str = "",
    warp: bool = False,
    also: Also | None = None,
) -> Compared:
    """Hold a product against a reference, on the pixels that are valid in both. Raises `InputError` and `ReadError`.

    `modality` says what a product is that does not say it itself; with `warp` the reference is brought to the product's grid.
    """
    also = also or Also()
    with ExitStack() as stack:
        kind, made, pair = _pair(product, reference, how, modality, warp, stack)
        grid, width = pair.grid, pair.grid.shape[1]
        shapes = shapes_of(also.zones, grid, "--zones") if also.zones else ()
        zones = [(ShapeMask((shape,), grid), pair.new(width)) for shape in shapes]
        tiles = ByTile(cells_of(product, made, grid.shape) if also.tiles else ({}, {}), pair.new)
        writer = _writer(also.error_map, pair) if also.error_map else None
        try:
            for row, values, other, valid in pair.strips:
                pair.measure.add(values, other, valid)
                tiles.add(row, values, other, valid)
                for zone, measure in zones:
                    measure.add(values, other, valid & zone.covers(Window(row, 0, *valid.shape)))
                if also.joint and pair.joint is not None:
                    pair.joint.add(values, other, valid)
                if writer is not None:
                    writer.write(row, *_errors(pair, values, other, valid), 0)
            if writer is not None:
                writer.build({})
                writer.commit()
        finally:
            if writer is not None:
                writer.discard()
    apart = tuple(measure.result() for _, measure in zones)
    return Compared(product, reference, kind, pair.unit, pair.measure.result(), apart, tuple(tiles.found), pair.joint)


def _pair(
    product: str, reference: str, how: Reading, asked: str, warp: bool, stack: ExitStack
) -> tuple[str, Provenance | None, _Pair]:
    """Return what is compared, by what the product says of itself: its kind, how it was made, and the comparison."""
    with opened(product) as src:
        made, names, tags = parse(src.tags()), src.descriptions, src.tags(1)
    held = content(made)
    if held == "tokens":
        return "tokens", made, _as_stored(product, reference, Codes, warp, stack)
    if held == "vectors":
        return "embeddings", made, _as_stored(product, reference, Vectors, warp, stack)
    classes = class_names(tags)
    if held == "answers" and classes:
        return "classes", made, _as_stored(product, reference, partial(Classes, product, classes), warp, stack)
    name = asked or (made.modality if made else "")
    if not name:
        bands = ", ".join(filter(None, names)) or "no band names"
        raise InputError(f"{product}: does not say which modality it is ({bands}); say --in MOD.")
    modality = find(name)
    return modality.name, made, _of_modality(product, reference, modality, how, warp, stack)


def _of_modality(product: str, reference: str, modality: Modality, how: Reading, warp: bool, stack: ExitStack) -> _Pair:
    """Return the comparison of pixels in the modality's unit."""
    mine, other = inspect(product, modality), inspect(reference, modality, how)
    if warp:
        other = on_grid(other, mine.grid, how.resampling, 0.0, product)
    _check_grids(product, reference, mine.grid, other.grid)
    readers = [stack.enter_context(Reader(source)) for source in (mine, other)]
    width = mine.grid.shape[1]
    joint = None
    if modality.classes:
        names = [name for name, _ in modality.classes]

        def new(width: int) -> Agreement:
            return Classes(modality.name, names, 1)
    else:
        moments = models.find("base").moments(MODALITIES[modality.name])
        joint = Joint(modality, moments)

        def new(width: int) -> Agreement:
            return Quantities(modality, width, moments[1])

    def strips() -> _Strips:
        for row, height in _rows(mine.grid):
            (x, ok), (y, known) = (reader.read(Window(row, 0, height, width)) for reader in readers)
            yield row, x, y, ok & known

    return _Pair(new(width), mine.grid, modality.bands, modality.unit, strips(), new, bool(modality.classes), joint)


def _as_stored(product: str, reference: str, new: Callable[[], Agreement], warp: bool, stack: ExitStack) -> _Pair:
    """Return the comparison of values as they are stored: codes, vectors, classes of a task."""
    if warp:
        raise InputError(
            f"{reference}: --warp is for pixels of a modality; codes, vectors and classes have to lie on one grid."
        )
    mine, other = (stack.enter_context(opened(path)) for path in (product, reference))
    grids = [Grid.of(src) for src in (mine, other)]
    _check_grids(product, reference, grids[0], grids[1])
    if mine.count != other.count:
        raise InputError(f"{reference}: has {other.count} bands, expected {mine.count} as {product} has.")

    def strips() -> _Strips:
        for row, height in _rows(grids[0]):
            window = RasterioWindow(0, row, grids[0].shape[1], height)
            valid = np.logical_and.reduce([src.read_masks(1, window=window) > 0 for src in (mine, other)])
            yield row, mine.read(window=window), other.read(window=window), valid

    names = tuple(name or f"band {i}" for i, name in enumerate(mine.descriptions, 1))
    return _Pair(new(), grids[0], names, "", strips(), lambda _: new(), np.dtype(mine.dtypes[0]).kind != "f")


def _rows(grid: Grid) -> Iterator[tuple[int, int]]:
    height = grid.shape[0]
    return ((row, min(_ROWS, height - row)) for row in range(0, height, _ROWS))


def _check_grids(product: str, reference: str, mine: Grid, other: Grid) -> None:
    if not same_grid(mine, other):
        raise InputError(
            f"{reference}: lies on another grid than {product} ({other.shape[0]} x {other.shape[1]} px, {other.crs}; expected "
            f"{mine.shape[0]} x {mine.shape[1]} px, {mine.crs}). --warp brings it there."
        )


def _writer(path: Path, pair: _Pair) -> ProductWriter:
    layout = (
        Layout(("differs",), "uint8", 255, resampling="nearest", ids=True)
        if pair.ids
        else Layout(pair.bands, "float32", float("nan"), unit=pair.unit)
    )
    writer = ProductWriter(path, pair.grid, layout, COG)
    writer.create()
    return writer


def _errors(pair: _Pair, values: NDArray[Any], other: NDArray[Any], valid: BoolArray) -> tuple[NDArray[Any], BoolArray]:
    """Return a strip of the error map."""
    if pair.ids:
        return (values != other).any(axis=0, keepdims=True).astype(np.uint8), valid
    return (values.astype(np.float64) - other).astype(np.float32), valid


def paired(product: Path, reference: Path) -> list[tuple[Path, Path]]:
    """Return products and references by name: of two folders those of one name, or `{stem}_{MODALITY}` with `{stem}`.

    Raises `InputError` where nothing fits.
    """
    for path in (product, reference):
        if path.suffix == ".zarr":
            raise InputError(f"{path}: compare reads GeoTIFF, not Zarr; make it with --format cog.")
    if not product.is_dir():
        return [(product, reference / product.name if reference.is_dir() else reference)]
    if not reference.is_dir():
        raise InputError(f"{reference}: is a file, but {product} is a folder; give two of a kind.")
    known = {path.name: path for path in reference.iterdir()}
    pairs = []
    for path in sorted(product.glob("*.tif")):
        stem = path.stem.rpartition("_")[0]
        other = known.get(path.name) or next(
            (known[f"{stem}{e}"] for e in (".tif", ".tiff", ".vrt") if f"{stem}{e}" in known), None
        )
        if other is not None:
            pairs.append((path, other))
    if not pairs:
        raise InputError(f"{reference}: holds no raster that is named as one of {product}'s, or as its scene.")
    return pairs
