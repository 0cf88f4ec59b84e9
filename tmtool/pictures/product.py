"""A product, or any raster that tmtool takes, as a picture: read from overviews, drawn by its kind."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.windows import Window as RasterioWindow

from tmtool.errors import InputError, UsageError
from tmtool.files.cog import class_names
from tmtool.grid import BoolArray, Grid, Window
from tmtool.modality import MODALITIES
from tmtool.names import base
from tmtool.pictures import _drawing as drawing
from tmtool.pictures._drawing import Colours, Components, Legend
from tmtool.pictures._sheet import Panel, Sheet
from tmtool.products.draws import ENTROPY, SPREAD
from tmtool.provenance import Provenance, parse
from tmtool.settings import Extent, Tiling
from tmtool.source import Reader, Source, on_grid, opened, pixel_size_m, placed
from tmtool.tasks import content
from tmtool.tiles.seams import TileMap, parse_tile_map

_SAMPLE = 256
"""Side of what principal components are fitted to, in cells."""


@dataclass(frozen=True)
class Look:
    """How products are shown: the longest side in px, the part (as `--bbox`), and the raster beside them."""

    size: int = 1024
    bbox: str = ""
    beside: Source | None = None
    tiles: bool = False
    """Whether tiles are drawn, coloured by how far they disagree with those that they overlap."""

    def check(self) -> None:
        """Raise `UsageError` for a size that cannot work."""
        if not 16 <= self.size <= 8192:
            raise UsageError(f"--size {self.size} is out of range: it goes from 16 to 8192.")


@dataclass(frozen=True)
class Read:
    """What was read of a product: values `(C, h, w)`, validity, its grid at this size, and what it says of itself.

    It is `part` of the `whole` grid of the file.
    """

    values: NDArray[Any]
    valid: BoolArray
    grid: Grid
    made: Provenance | None
    bands: tuple[str | None, ...]
    colormap: dict[int, Any] | None
    classes: list[str]
    whole: Grid
    part: Window
    seams: TileMap | None = None
    """How far tiles of the product disagree, if it says so."""


def shape_of(part: Window, size: int) -> tuple[int, int]:
    """Return height and width of the picture of a part whose longest side is `size` px, or the part's own if that is less."""
    share = min(1.0, size / max(part.height, part.width))
    return max(1, round(part.height * share)), max(1, round(part.width * share))


def read_at(path: Path, look: Look) -> Read:
    """Read a product at the size of a picture, from its overviews. Raises `InputError`."""
    with opened(str(path)) as src:
        whole = Grid.of(src)
        part = placed(whole, Extent(bbox=look.bbox), Tiling(), str(path)).part
        shape = shape_of(part, look.size)
        window = RasterioWindow(part.col, part.row, part.width, part.height)
        kind = np.dtype(src.dtypes[0]).kind
        how = Resampling.average if kind == "f" and shape != (part.height, part.width) else Resampling.nearest
        values = src.read(window=window, out_shape=(src.count, *shape), resampling=how)
        valid = src.read_masks(1, window=window, out_shape=shape) > 0
        if kind == "f":
            valid &= np.isfinite(values).all(axis=0)
        try:
            colormap = src.colormap(1)
        except ValueError:
            colormap = None
        if any(scale != 1 for scale in src.scales):
            values = values * np.asarray(src.scales, np.float32)[:, None, None]
        return Read(
            values,
            valid,
            whole.part(part).resized(shape),
            parse(src.tags()),
            src.descriptions,
            colormap,
            class_names(src.tags(1)),
            whole,
            part,
            parse_tile_map(src.tags()),
        )


Space = tuple[int, Any]
"""Length of the vectors, and the layer that they are of: what can be compared."""


def fitted(paths: Sequence[Path]) -> dict[Space, Components]:
    """Return the principal components of all embeddings of one space among products."""
    sampled: dict[Space, list[NDArray[Any]]] = {}
    for path in paths:
        read = read_at(path, Look(_SAMPLE))
        if space := _space(read):
            sampled.setdefault(space, []).append(read.values[:, read.valid])
    return {space: drawing.components_of(np.concatenate(some, axis=1)) for space, some in sampled.items()}


def preview(path: Path, look: Look, together: dict[Space, Components] | None = None) -> Path:
    """Draw a product; returns the PNG beside it. Raises `InputError` and `OutputError`."""
    read = read_at(path, look)
    colours, legend = drawn(read, path, together or {})
    if look.tiles:
        colours, legend = _by_tile(read, path, colours)
    panels = [Panel(*_enlarged(colours, read.valid, look), legend, path.stem if look.beside else "")]
    if look.beside:
        panels.insert(0, _beside(look.beside, read, panels[0].valid.shape))
    rotated = bool(read.grid.transform.b or read.grid.transform.d)
    size = pixel_size_m(read.grid)
    scale = len(panels[-1].valid) / len(read.valid)
    sheet = Sheet(
        _title(path, read.made),
        tuple(panels),
        size / scale if size else None,
        read.grid.crs is not None and not rotated and read.grid.transform.e < 0,
    )
    target = path.with_suffix(".png")
    sheet.save(target)
    return target


def _by_tile(read: Read, path: Path, colours: Colours) -> tuple[Colours, Legend]:
    """Return a picture under its tiles, in the colours of their disagreement. Raises `InputError` where none was measured."""
    if read.seams is None:
        raise InputError(
            f"{path}: does not say how far its tiles disagree: it was made of one tile, of tiles side by side or by an older version, "
            "or holds no pixels. Show it without --tiles, or make it again with --overwrite."
        )
    part, (height, width) = read.part, read.grid.shape
    rows = part.row + (np.arange(height) + 0.5) * part.height / height
    cols = part.col + (np.arange(width) + 0.5) * part.width / width
    seams = read.seams
    places = ((rows - seams.top) / seams.step, (cols - seams.left) / seams.step)
    return drawing.tiles(colours, seams.values, places, seams.unit)


def _title(path: Path, made: Provenance | None) -> str:
    return f"{path.stem}   {made.task}, {made.model}" if made else path.stem


def _enlarged(colours: Colours, valid: BoolArray, look: Look) -> tuple[Colours, BoolArray]:
    """Return a picture with its cells drawn several times, if it is much smaller than asked."""
    times = max(1, look.size // max(valid.shape))
    return colours.repeat(times, axis=0).repeat(times, axis=1), valid.repeat(times, axis=0).repeat(times, axis=1)


def _space(read: Read) -> Space | None:
    """Return the space that an embedding's vectors are of; None for other products."""
    if read.made is None or content(read.made) != "vectors":
        return None
    return len(read.values), read.made.details.get("layer")


def drawn(read: Read, path: Path, together: dict[Space, Components]) -> tuple[Colours, Legend]:
    """Return the colours of a product and what they mean, by what it says of itself."""
    values, valid, made = read.values, read.valid, read.made
    if space := _space(read):
        return drawing.components(values, valid, together.get(space) or drawing.components_of(values[:, valid]))
    if made is not None and content(made) == "tokens":
        levels = [int(level) for level in str(made.details["codebook"]).split("-")]
        return drawing.codes(values, valid, levels)
    if read.colormap:
        names = read.classes or [f"class {i}" for i in range(max(read.colormap) + 1)]
        return drawing.classes(values, valid, names, _hex(read.colormap, len(names)))
    modality = made.modality if made else ""
    if path.stem.endswith("_prob"):
        names = [name or f"class {i}" for i, name in enumerate(read.bands)]
        known = [colour for _, colour in MODALITIES[modality].classes] if modality in MODALITIES else []
        return drawing.probabilities(values, valid, names, known or _colours_beside(path, len(names)))
    if made is not None and (measure := made.details.get("measure")):
        unit = MODALITIES[modality].unit if modality in MODALITIES else ""
        words, unit = {SPREAD: ("standard deviation", unit), ENTROPY: ("entropy", "nat")}[measure]
        return drawing.spread(values, valid, words, unit)
    return of_modality(modality, values, valid, read.grid, read.bands[0] or path.stem)


def _colours_beside(path: Path, count: int) -> Sequence[str]:
    """Return the colours of the classes whose probabilities a product has: those of the classes beside it, if they are there."""
    classes = path.with_name(f"{path.stem.removesuffix('_prob')}_pred{path.suffix}")
    if classes.exists():
        with opened(str(classes)) as src, contextlib.suppress(ValueError):
            return _hex(src.colormap(1), count)
    return drawing.PALETTE * (1 + count // len(drawing.PALETTE))


def _hex(colormap: Mapping[int, Any], count: int) -> list[str]:
    """Return the first colours of a table as `#RRGGBB`."""
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b, *_ in (colormap[i] for i in range(count))]


def of_modality(name: str, values: NDArray[Any], valid: BoolArray, grid: Grid, band: str) -> tuple[Colours, Legend]:
    """Return the colours of a modality's pixels; of an unknown one those of its first band."""
    modality = MODALITIES.get(name)
    if modality is not None and len(values) == len(modality.bands):
        if modality.is_optical or name == "RGB":
            bands = [modality.bands.index(b) for b in (("R", "G", "B") if name == "RGB" else ("B04", "B03", "B02"))]
            return drawing.true_colour(values[bands], valid)
        if modality.is_radar:
            return drawing.radar(values, valid)
        if name == "DEM":
            return drawing.terrain(values, valid, pixel_size_m(grid) or 1.0)
        if name == "NDVI":
            return drawing.index(values, valid)
        if modality.classes:
            names, colours = zip(*modality.classes, strict=True)
            return drawing.classes(values, valid, names, colours)
    return drawing.quantity(values, valid, band)


def _beside(source: Source, read: Read, shape: tuple[int, int]) -> Panel:
    """Return the raster that is shown beside a product, on its grid. Raises `InputError`."""
    grid = Grid(read.grid.crs, read.grid.transform * Affine.scale(read.grid.shape[1] / shape[1]), shape)
    values, valid = _pixels(on_grid(source, grid, "auto", 0.0, "the product"))
    colours, legend = of_modality(source.modality.name, values, valid, grid, source.modality.bands[0])
    return Panel(colours, valid, legend, base(source.path))


def _pixels(source: Source) -> tuple[NDArray[Any], BoolArray]:
    with Reader(source) as reader:
        return reader.read(Window(0, 0, *source.grid.shape))


def check_picturable(path: Path) -> None:
    """Raise `InputError` for a product that is no raster in GeoTIFF."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise InputError(f"{path}: preview shows rasters in GeoTIFF, not {path.suffix or 'files without ending'}.")
