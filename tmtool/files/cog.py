"""A product's work file to a Cloud-Optimized GeoTIFF, by GDAL's COG driver, and its validation."""

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rasterio
import rasterio.shutil
from rasterio.errors import RasterioError
from rasterio.windows import Window

from tmtool.errors import ProductError
from tmtool.files.facts import BandFacts, Facts
from tmtool.files.writer import Format, Layout, Work, quiet, sidecar
from tmtool.grid import Grid

_BLOCK = 512
_CLASS = "CLASS_"
"""Tags of a band that name its classes begin so; the class follows."""


def convert(work: Work, path: Path) -> None:
    """Write the COG with overviews, tags, colours and statistics at `path`, and validate it. Raises `ProductError`."""
    source = work.path
    if work.layout.coded:
        source = _coded(work)
    with rasterio.open(source, "r+") as dst:
        _describe(dst, work)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="YES"):
        rasterio.shutil.copy(source, path, driver="COG", **_creation_options(work.layout, work.grid.shape))
    if source != work.path:
        source.unlink()
    _validate(path, work.grid)
    if work.layout.classes:
        _write_categories(sidecar(path), [name for name, _ in work.layout.classes])


def read_tags(path: Path) -> dict[str, str]:
    """Return the tags of a COG; raises `ProductError` if it is invalid or truncated."""
    try:
        with quiet(), rasterio.open(path) as src:
            last = Window(src.width - 1, src.height - 1, 1, 1)  # it lies at the end of the file
            src.read(window=last)
            tags: dict[str, str] = src.tags()
        _check_layout(path)
    except RasterioError as error:
        raise ProductError(f"{path}: is damaged or truncated ({error}).") from error
    return tags


def look(path: Path) -> Facts:
    """Return what a GeoTIFF says of itself; raises `ProductError` if it is none."""
    try:
        # Without this GDAL lists the whole folder at each opening. Absolute, as a name such as http:a would be a URI where it
        # begins the path.
        alone = rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR")
        with quiet(), alone, rasterio.open(path.absolute()) as src:
            grid, band_tags = Grid.of(src), [src.tags(i) for i in src.indexes]
            names = class_names(band_tags[0])
            colours = src.colormap(1) if names else {}
            bands = tuple(
                BandFacts(name or str(i + 1), unit or "", scale, offset, {} if names else _statistics(band_tags[i]))
                for i, (name, unit, scale, offset) in enumerate(
                    zip(src.descriptions, src.units, src.scales, src.offsets, strict=True)
                )
            )
            return Facts(
                tags=src.tags(),
                extent=grid,
                grid=grid,
                dtype=src.dtypes[0],
                nodata=src.nodata,
                bands=bands,
                classes=tuple((name, "#{:02X}{:02X}{:02X}".format(*colours[i])) for i, name in enumerate(names)),
            )
    except (RasterioError, ValueError) as error:
        raise ProductError(f"{path}: is damaged, truncated or no GeoTIFF ({error}).") from error


def _statistics(tags: Mapping[str, str]) -> dict[str, float]:
    """Return the statistics in a band's tags."""
    named = {"minimum": "MINIMUM", "maximum": "MAXIMUM", "mean": "MEAN", "stddev": "STDDEV"}
    return {name: float(tags[f"STATISTICS_{key}"]) for name, key in named.items() if f"STATISTICS_{key}" in tags}


COG = Format(".tif", convert, read_tags, "image/tiff; application=geotiff; profile=cloud-optimized", look)


def _coded(work: Work) -> Path:
    """Write a second work file, whose values have the layout's dtype."""
    path = work.path.with_name(work.path.name.replace(".work.", ".coded."))
    with rasterio.open(work.path) as src:
        profile = src.profile | {"dtype": work.layout.dtype, "nodata": work.layout.nodata}
    with rasterio.open(path, "w", **profile) as dst:
        for row, values, _ in work.rows():
            dst.write(values, window=Window(0, row, values.shape[2], values.shape[1]))
    return path


def _describe(dst: Any, work: Work) -> None:
    layout = work.layout
    dst.update_tags(**work.tags)
    for i, name in enumerate(layout.bands):
        dst.set_band_description(i + 1, name)
        if not (layout.ids or layout.coded):
            dst.update_tags(i + 1, **work.statistics.tags(i))
    dst.units = [layout.unit] * dst.count
    if (work.scales != 1).any():
        dst.scales = work.scales.tolist()
    if layout.classes:
        dst.write_colormap(1, {i: _rgba(colour) for i, (_, colour) in enumerate(layout.classes)})
        dst.update_tags(1, **{f"{_CLASS}{i}": name for i, (name, _) in enumerate(layout.classes)})


def _block_side(layout: Layout, shape: tuple[int, int]) -> int:
    """Return the side of the file's blocks: 512 px, or what stays under 16 MB.

    A few px less where the raster or an overview would be just one block wide: rio-cogeo takes it for untiled then.
    """
    side = _BLOCK
    while side > 64 and side * side * layout.pixel_bytes > 16 << 20:
        side //= 2
    height, width = shape
    while max(height, width) > 512:
        if width == side:
            return side - 16
        height, width = -(-height // 2), -(-width // 2)
    return side


def _creation_options(layout: Layout, shape: tuple[int, int]) -> dict[str, str]:
    options = {
        "BLOCKSIZE": str(_block_side(layout, shape)),
        "COMPRESS": "ZSTD",
        "PREDICTOR": "NO" if layout.classes or layout.ids else "YES",
        "BIGTIFF": "IF_SAFER",
        "OVERVIEW_RESAMPLING": layout.resampling.upper(),
        "NUM_THREADS": "ALL_CPUS",
        "STATISTICS": "AUTO",
    }
    if layout.dtype == "float16":
        options["NBITS"] = "16"  # GDAL has no such type; readers see float32
    return options


def _validate(path: Path, grid: Grid) -> None:
    with quiet(), rasterio.open(path) as src:
        same = src.transform == grid.transform and src.shape == grid.shape and src.crs == grid.crs
        found = Grid(src.crs, src.transform, src.shape)
    if not same:
        raise ProductError(f"{path}: the written file lies at {found}, expected {grid}. Please report this.")
    _check_layout(path)


def _check_layout(path: Path) -> None:
    from rio_cogeo.cogeo import cog_validate

    with quiet():
        valid, errors, notes = cog_validate(path, strict=True, quiet=True)
    if not valid:
        raise ProductError(f"{path}: is not a valid COG: {'; '.join([*errors, *notes])}.")


def _write_categories(path: Path, names: Sequence[str]) -> None:
    root = ET.Element("PAMDataset")
    categories = ET.SubElement(ET.SubElement(root, "PAMRasterBand", band="1"), "CategoryNames")
    for name in names:
        ET.SubElement(categories, "Category").text = name
    ET.indent(root)
    path.write_bytes(ET.tostring(root) + b"\n")


def _rgba(colour: str) -> tuple[int, int, int, int]:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return red, green, blue, 255


def class_names(tags: Mapping[str, str]) -> list[str]:
    """Return the names of the classes 0, 1, ... that the tags of a product's band tell; nothing where it has no classes."""
    named = {
        int(key[len(_CLASS) :]): name for key, name in tags.items() if key.startswith(_CLASS) and key[6:].isdigit()
    }
    return [named.get(i, f"class {i}") for i in range(max(named, default=-1) + 1)]
