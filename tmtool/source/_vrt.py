"""GDAL's virtual rasters as text: bands of several files as one raster, a raster on another grid. Nothing is resampled before it is read.

Text can be opened by any process, on any machine that sees the files.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

import rasterio.shutil
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.io import MemoryFile
from rasterio.vrt import WarpedVRT

from tmtool.grid import Grid
from tmtool.source._opening import open_raster

TOLERANCE = 0.01
"""Error of a warp's approximation, in px: as quick as GDAL's own eighth of a pixel."""

_TYPES = {
    **{"uint8": "Byte", "int8": "Int8", "uint16": "UInt16", "int16": "Int16", "uint32": "UInt32", "int32": "Int32"},
    **{"uint64": "UInt64", "int64": "Int64", "float32": "Float32", "float64": "Float64"},
    **{"complex64": "CFloat32", "complex128": "CFloat64", "complex_int16": "CInt16"},
}
_ALGORITHMS = {"nearest": "near", "bilinear": "bilinear", "cubic": "cubic", "average": "average"}


@dataclass(frozen=True)
class Piece:
    """A band of a file that becomes one of a virtual raster: `number` in `path`, or its mask; `grid` is the file's."""

    path: str
    number: int
    grid: Grid
    dtype: str
    name: str = ""
    nodata: float | None = None
    resampling: str = "nearest"
    alpha: bool = False
    """Whether it is 0 where pixels are empty."""
    mask: bool = False
    """Whether not the band itself is taken but its validity, as alpha."""


def stacked(pieces: Sequence[Piece], grid: Grid, tags: Mapping[str, str] | None = None) -> str:
    """Return a virtual raster of these bands on `grid`, whose CRS and axes all files share; what no file covers is 0 or nodata."""
    root = ET.Element("VRTDataset", rasterXSize=str(grid.shape[1]), rasterYSize=str(grid.shape[0]))
    if grid.crs is not None:
        # as rasterio has it: x, then y
        ET.SubElement(root, "SRS", dataAxisToSRSAxisMapping=_axes(grid.crs)).text = grid.crs.to_wkt()
    if grid.crs is not None or grid.transform != Affine.identity():
        ET.SubElement(root, "GeoTransform").text = ", ".join(map(repr, grid.transform.to_gdal()))
    if tags:
        metadata = ET.SubElement(root, "Metadata")
        for key, value in tags.items():
            ET.SubElement(metadata, "MDI", key=key).text = value
    for i, piece in enumerate(pieces, 1):
        _band(root, i, piece, grid)
    return ET.tostring(root, encoding="unicode")


def _axes(crs: CRS) -> str:
    return "2,1" if crs.is_geographic else "1,2"


def _band(root: ET.Element, number: int, piece: Piece, grid: Grid) -> None:
    band = ET.SubElement(root, "VRTRasterBand", dataType=_TYPES[piece.dtype], band=str(number))
    if piece.name:
        ET.SubElement(band, "Description").text = piece.name
    if piece.mask or piece.alpha:
        ET.SubElement(band, "ColorInterp").text = "Alpha"
    elif piece.nodata is not None:
        ET.SubElement(band, "NoDataValue").text = repr(piece.nodata)
    source = ET.SubElement(band, "SimpleSource", resampling=_ALGORITHMS[piece.resampling])
    ET.SubElement(source, "SourceFilename", relativeToVRT="0").text = absolute(piece.path)
    ET.SubElement(source, "SourceBand").text = f"mask,{piece.number}" if piece.mask else str(piece.number)
    (left, top), (right, bottom) = (
        ~grid.transform * (piece.grid.transform * corner) for corner in ((0, 0), piece.grid.shape[::-1])
    )
    height, width = piece.grid.shape
    _rectangle(source, "SrcRect", 0, 0, width, height)
    _rectangle(source, "DstRect", *(_whole(v) for v in (left, top, right - left, bottom - top)))


def _rectangle(source: ET.Element, name: str, left: float, top: float, width: float, height: float) -> None:
    sides = {"xOff": left, "yOff": top, "xSize": width, "ySize": height}
    ET.SubElement(source, name, {key: f"{value:.12g}" for key, value in sides.items()})


def _whole(value: float) -> float:
    """Return a number of pixels without the dust of its computation."""
    return round(value) if abs(value - round(value)) < 1e-3 else value


def absolute(path: str) -> str:
    """Return the name of a local file from any folder; other names that GDAL opens, such as a virtual raster's text, as they are."""
    return os.path.abspath(path) if not path.startswith("<") and os.path.exists(path) else path


@dataclass(frozen=True)
class Warp:
    """How a raster is warped: `nodata` is what it and the result have for pixels without data, None where alpha says it.

    With `unified` a pixel is without data only if all of its bands are.
    """

    resampling: str
    nodata: float | None
    unified: bool = False


def warped(path: str, grid: Grid, warp: Warp, points: str = "") -> str:
    """Return a virtual raster that warps the raster at `path` to `grid`; without nodata its last band is alpha.

    `points` says what georeferences it, if no affine does: "gcps" or "rpcs".
    """
    options: dict[str, Any] = {"crs": grid.crs, "resampling": Resampling[warp.resampling], "tolerance": TOLERANCE}
    if not points:
        options |= {"transform": grid.transform, "height": grid.shape[0], "width": grid.shape[1]}
    if points == "rpcs":
        options["src_crs"] = CRS.from_epsg(4326)
    if warp.nodata is not None:
        options |= {"src_nodata": warp.nodata, "nodata": warp.nodata}
    if warp.unified:
        options["UNIFIED_SRC_NODATA"] = "YES"
    with open_raster(path) as src:
        options["add_alpha"] = warp.nodata is None and not any(c.name == "alpha" for c in src.colorinterp)
        with WarpedVRT(src, **options) as made, MemoryFile(ext=".vrt") as memory:
            rasterio.shutil.copy(made, memory.name, driver="VRT")
            text = memory.read().decode()
    return _placed(text, grid) if points else text


def _placed(text: str, grid: Grid) -> str:
    """Return a warped raster's text with another grid of the same CRS: rasterio gives one only to rasters that have an affine."""
    root = ET.fromstring(re.sub(r"^\s*<\?xml.*?\?>", "", text))
    root.set("rasterXSize", str(grid.shape[1]))
    root.set("rasterYSize", str(grid.shape[0]))
    numbers = {"GeoTransform": grid.transform, "DstGeoTransform": grid.transform, "DstInvGeoTransform": ~grid.transform}
    for name, transform in numbers.items():
        for element in root.iter(name):
            element.text = ",".join(map(repr, transform.to_gdal()))
    for name, size in (("BlockXSize", 512), ("BlockYSize", 128)):
        for element in root.iter(name):
            element.text = str(size)
    return ET.tostring(root, encoding="unicode")
