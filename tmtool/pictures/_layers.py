"""Layers of a page: a product, or an input, as a picture without its sheet, with its legend and its values."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from affine import Affine
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterioWindow

from tmtool.errors import InputError
from tmtool.grid import Grid, Window, at
from tmtool.names import base, shown
from tmtool.pictures._drawing import Components, Legend
from tmtool.pictures._packed import Pixels, bands_held, packed, sampled
from tmtool.pictures._sheet import Panel
from tmtool.pictures.product import Look, Space, drawn, of_modality, read_at, shape_of
from tmtool.provenance import Provenance
from tmtool.source import Reader, Source, on_grid, opened

if TYPE_CHECKING:
    from PIL.Image import Image

_THUMB = 96
_DUST = 1e-6
"""Pixels by which grids may lie apart and count as one lattice's."""


@dataclass(frozen=True)
class Layer:
    """What a page shows of one raster: `part` of its `grid` in pictures of `shape`, and values of true pixels.

    `picture` and `thumb` are PNGs. `values` are what `packed` gives, of the first `bands`, out of `count`. `names` are those of
    classes by their codes. `warped` says how it was brought to `grid`, if it is not the raster's own.
    """

    name: str
    grid: Grid
    part: Window
    shape: tuple[int, int]
    picture: str
    thumb: str
    legend: Legend
    values: tuple[str, str]
    bands: tuple[str, ...]
    count: int
    names: Mapping[int, str] = field(default_factory=dict)
    unit: str = ""
    warped: str = ""
    path: Path | None = None
    """The product's file; None for an input."""
    made: Provenance | None = None

    def across(self, reference: Grid) -> tuple[float, float, float, float] | None:
        """Return its left, top, right and bottom in px of another grid; None where that is no upright box of it."""
        relative = _upright(self.grid, reference)
        if relative is None:
            return None
        p = self.part
        xs, ys = at(relative, [p.col, p.col + p.width], [p.row, p.row + p.height])
        return float(xs[0]), float(ys[0]), float(xs[1]), float(ys[1])


def product_layer(path: Path, look: Look, together: dict[Space, Components]) -> Layer:
    """Return a product as a layer. Raises `InputError`."""
    try:
        return _product_layer(path, look, together)
    except RasterioError as error:
        raise InputError(f"{path}: is damaged or truncated ({error}).") from None


def _product_layer(path: Path, look: Look, together: dict[Space, Components]) -> Layer:
    read = read_at(path, look)
    shape = read.valid.shape
    with opened(str(path)) as src:
        if "complex" in src.dtypes[0]:
            raise InputError(f"{path}: values are complex ({src.dtypes[0]}); a page shows real ones.")
        held = list(range(1, bands_held(src.count, shape, src.dtypes[0]) + 1))
        unit = src.units[0] or ""

        def pixels(window: Window) -> Pixels:
            box = RasterioWindow(window.col, window.row, window.width, window.height)
            values = src.read(held, window=box)
            valid = src.read_masks(1, window=box) > 0
            return values, valid & np.isfinite(values).all(axis=0)

        values, valid = sampled(pixels, read.part, shape, src.block_shapes[0][0])
    colours, legend = drawn(read, path, together)
    return Layer(
        path.stem,
        read.whole,
        read.part,
        shape,
        *_pictures(Panel(colours, read.valid, legend)),
        legend,
        packed(values, valid),
        _names(read.bands, len(held)),
        len(read.bands),
        dict(enumerate(read.classes)),
        unit,
        path=path,
        made=read.made,
    )


def input_layer(source: Source, reference: Layer, look: Look) -> Layer:
    """Return an input as a layer that lies where a product does, in pixels of its own where that is possible.

    Otherwise it is warped, nearest, so that its values stay its own. Raises `InputError` where the two do not overlap.
    """
    source, part = _placed(source, reference, look.size)
    shape = shape_of(part, look.size)
    with Reader(source) as reader:
        values, valid = sampled(reader.read, part, shape, source.block[0])
    cells = source.grid.part(part).resized(shape)
    modality = source.modality
    colours, legend = of_modality(modality.name, values, valid, cells, modality.bands[0])
    held = bands_held(len(values), shape, source.dtype)
    return Layer(
        f"input {modality.name}: {base(source.path)}",
        source.grid,
        part,
        shape,
        *_pictures(Panel(colours, valid, legend)),
        legend,
        packed(values[:held], valid),
        modality.bands[:held],
        len(values),
        {i: name for i, (name, _) in enumerate(modality.classes)},
        "" if modality.unit == "1" else modality.unit,
        shown(source.brought),
    )


def _upright(own: Grid, other: Grid) -> Affine | None:
    """Return the affine from pixels of one grid to pixels of another; None where one is turned or mirrored to the other."""
    if own.crs != other.crs:
        return None
    relative = ~other.transform * own.transform
    turned = max(abs(relative.b) * own.shape[0], abs(relative.d) * own.shape[1]) > _DUST * max(own.shape)
    return None if turned or relative.a <= 0 or relative.e <= 0 else relative


def _placed(source: Source, reference: Layer, size: int) -> tuple[Source, Window]:
    """Return a source, and the part of it that lies where a layer does. Raises `InputError`."""
    part = reference.part
    relative = None if source.points else _upright(reference.grid, source.grid)
    if relative is None:
        finer = max(1, size // max(part.height, part.width))  # of tokens, an input has more to show
        cells = reference.grid.part(part).resized((part.height * finer, part.width * finer))
        return on_grid(source, cells, "nearest", 0.0, "the product"), Window(0, 0, *cells.shape)
    (left, right), (top, bottom) = at(relative, [part.col, part.col + part.width], [part.row, part.row + part.height])
    height, width = source.grid.shape
    left, top = max(0, int(np.floor(left + _DUST))), max(0, int(np.floor(top + _DUST)))
    right, bottom = min(width, int(np.ceil(right - _DUST))), min(height, int(np.ceil(bottom - _DUST)))
    if left >= right or top >= bottom:
        raise InputError(f"{source.path}: does not overlap {reference.name}.")
    return source, Window(top, left, bottom - top, right - left)


def _names(descriptions: Sequence[str | None], count: int) -> tuple[str, ...]:
    return tuple(name or f"band {i}" for i, name in enumerate(descriptions[:count], 1))


def _pictures(panel: Panel) -> tuple[str, str]:
    """Return a panel as PNG, and a small one, as data URLs."""
    whole = panel.image()
    small = whole.copy()
    small.thumbnail((_THUMB, _THUMB))
    return _url(whole), _url(small)


def _url(image: "Image") -> str:
    held = io.BytesIO()
    image.save(held, "PNG")
    return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"
