"""Rows to Cloud-Optimized GeoTIFF: a work file in the output folder, then the COG, validated, then renamed into place.

The work file is an uncompressed striped GeoTIFF, so rows are written once, in place and as they come; empty parts take no
space. GDAL's COG driver turns it into the product with overviews. Until `commit` nothing carries a final name.
"""

import contextlib
import json
import math
import os
import secrets
import shutil
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from tmtool.errors import ProductError
from tmtool.grid import BoolArray, Grid

PROVENANCE_TAG = "TMTOOL_PROVENANCE"
"""The GeoTIFF tag that says, in JSON, how a product was made."""

WORK_PREFIX = ".tmtool-"
"""How the names of work files begin; no input is ever taken from them."""

_BLOCK = 512


@dataclass(frozen=True)
class Layout:
    """What a GeoTIFF holds: one entry of `bands` a band, values of `dtype` in `unit` after multiplication with `scale`.

    `classes` are (name, colour `#RRGGBB`) of the values 0, 1, ...; `resampling` makes the overviews.
    """

    bands: tuple[str, ...]
    dtype: str
    nodata: float
    unit: str = ""
    scale: float = 1.0
    classes: tuple[tuple[str, str], ...] = ()
    resampling: str = "average"

    @property
    def pixel_bytes(self) -> int:
        """Uncompressed bytes a pixel."""
        return len(self.bands) * np.dtype(self.dtype).itemsize


class Statistics:
    """Count, extremes, mean and standard deviation of each band's valid pixels, gathered strip by strip in float64."""

    def __init__(self, bands: int) -> None:
        self.count = 0
        self.low, self.high = np.full(bands, np.inf), np.full(bands, -np.inf)
        self.mean, self._m2 = np.zeros(bands), np.zeros(bands)

    def add(self, values: NDArray[Any]) -> None:
        """Take the valid values of a strip, `(bands, n)`."""
        n = values.shape[1]
        if n == 0:
            return
        x = values.astype(np.float64)
        mean = x.mean(axis=1)
        m2 = ((x - mean[:, None]) ** 2).sum(axis=1)
        step, total = mean - self.mean, self.count + n
        self.mean += step * n / total
        self._m2 += m2 + step**2 * self.count * n / total  # Chan, Golub and LeVeque's update
        self.count = total
        self.low, self.high = np.minimum(self.low, x.min(axis=1)), np.maximum(self.high, x.max(axis=1))

    @property
    def std(self) -> NDArray[np.float64]:
        """Population standard deviation of each band."""
        return np.sqrt(self._m2 / max(self.count, 1))

    def tags(self, band: int) -> dict[str, str]:
        """GDAL's statistics tags of a band (0-based), or none where no pixel is valid."""
        if self.count == 0:
            return {}
        values = (self.low[band], self.high[band], self.mean[band], self.std[band])
        names = ("MINIMUM", "MAXIMUM", "MEAN", "STDDEV")
        return {f"STATISTICS_{n}": repr(float(v)) for n, v in zip(names, values, strict=True)}


class CogWriter:
    """Writes one product. Call `write` for all rows, then `build`, then `commit`; `discard` removes whatever is left.

    `write` and `build` may be called from another thread than the one that made the writer, one at a time.
    """

    def __init__(self, path: Path, grid: Grid, layout: Layout) -> None:
        self.path, self.grid, self.layout = path, grid, layout
        self.statistics = Statistics(len(layout.bands))
        token = f"{WORK_PREFIX}{path.stem}-{os.getpid()}-{secrets.token_hex(3)}"
        self._work, self._cog = path.with_name(f"{token}.work.tif"), path.with_name(f"{token}.cog.tif")
        self._aux = path.with_name(f"{token}.aux.xml")
        height, width = grid.shape
        try:
            with _quiet():
                self._dst: Any = rasterio.open(
                    self._work,
                    "w",
                    driver="GTiff",
                    count=len(layout.bands),
                    dtype=layout.dtype,
                    height=height,
                    width=width,
                    crs=grid.crs,
                    transform=grid.transform,
                    nodata=layout.nodata,
                    interleave="band",
                    blockysize=min(64, height),
                    bigtiff="yes",
                    sparse_ok="true",
                )
        except RasterioError as error:
            self.discard()
            raise ProductError(f"{path}: cannot create its work file ({error}).") from error

    def write(self, row: int, values: NDArray[Any], valid: BoolArray) -> None:
        """Write rows `row...` of all bands: `values` `(bands, h, width)` in the layout's dtype, nodata where not `valid`."""
        filled = np.where(valid, values, np.asarray(self.layout.nodata, values.dtype))
        self.statistics.add(values[:, valid])
        try:
            self._dst.write(filled, window=Window(0, row, values.shape[2], values.shape[1]))
        except RasterioError as error:
            raise self._disk_error(error) from error

    def build(self, tags: Mapping[str, str]) -> None:
        """Turn the rows into a COG with `tags`, and validate it. Raises `ProductError`; nothing has its final name yet."""
        try:
            with _quiet(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK="YES"):
                self._describe(tags)
                self._dst.close()
                rasterio.shutil.copy(self._work, self._cog, driver="COG", **self._creation_options())
        except RasterioError as error:
            raise self._disk_error(error) from error
        self._work.unlink()
        self._validate()
        if self.layout.classes:
            _write_categories(self._aux, [name for name, _ in self.layout.classes])

    def commit(self) -> Path:
        """Give the finished product its name: the sidecar first, then the TIFF. Returns the path."""
        with self._cog.open("rb") as file:
            os.fsync(file.fileno())
        if self._aux.exists():
            self._aux.replace(sidecar(self.path))
        else:
            sidecar(self.path).unlink(missing_ok=True)  # of an older product
        self._cog.replace(self.path)
        return self.path

    def discard(self) -> None:
        """Remove everything that has no final name. May be called at any time, any number of times."""
        if hasattr(self, "_dst"):
            with contextlib.suppress(RasterioError):
                self._dst.close()
        for path in self.path.parent.glob(f"{self._work.name.removesuffix('.work.tif')}.*"):
            path.unlink(missing_ok=True)

    def _describe(self, tags: Mapping[str, str]) -> None:
        dst, layout = self._dst, self.layout
        dst.update_tags(**tags)
        for i, name in enumerate(layout.bands):
            dst.set_band_description(i + 1, name)
            dst.update_tags(i + 1, **self.statistics.tags(i))
        dst.units = [layout.unit] * dst.count
        if layout.scale != 1:
            dst.scales = [layout.scale] * dst.count
        if layout.classes:
            dst.write_colormap(1, {i: _rgba(colour) for i, (_, colour) in enumerate(layout.classes)})
            dst.update_tags(1, **{f"CLASS_{i}": name for i, (name, _) in enumerate(layout.classes)})

    def _creation_options(self) -> dict[str, str]:
        side = _BLOCK
        while side > 64 and side * side * self.layout.pixel_bytes > 16 << 20:
            side //= 2
        return {
            "BLOCKSIZE": str(side),
            "COMPRESS": "ZSTD",
            "PREDICTOR": "NO" if self.layout.classes else "YES",
            "BIGTIFF": "IF_SAFER",
            "OVERVIEW_RESAMPLING": self.layout.resampling.upper(),
            "NUM_THREADS": "ALL_CPUS",
            "STATISTICS": "AUTO",
        }

    def _validate(self) -> None:
        from rio_cogeo.cogeo import cog_validate

        with _quiet(), rasterio.open(self._cog) as src:
            same = src.transform == self.grid.transform and src.shape == self.grid.shape and src.crs == self.grid.crs
            found = Grid(src.crs, src.transform, src.shape)
        if not same:
            raise ProductError(
                f"{self.path}: the written file lies at {found}, expected {self.grid}. Please report this."
            )
        with _quiet():
            valid, errors, notes = cog_validate(self._cog, strict=True, quiet=True)
        if not valid:
            raise ProductError(f"{self.path}: GDAL wrote no valid COG: {'; '.join([*errors, *notes])}.")

    def _disk_error(self, error: Exception) -> ProductError:
        free = shutil.disk_usage(self.path.parent).free
        return ProductError(f"{self.path}: writing failed with {free / 1e9:.2f} GB free on its disk ({error}).")


def sidecar(path: Path) -> Path:
    """Return where GDAL looks for the category names of the product at `path`."""
    return path.with_name(f"{path.name}.aux.xml")


def disk_bytes(grid: Grid, layouts: Sequence[Layout]) -> int:
    """Return an upper bound of the disk needed while products are made: work files, COGs and their overviews."""
    return math.ceil(sum(2.4 * layout.pixel_bytes * grid.shape[0] * grid.shape[1] for layout in layouts)) + (1 << 20)


def provenance_tags(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return the GeoTIFF tags that say how a product was made."""
    return {PROVENANCE_TAG: json.dumps(provenance, sort_keys=True)}


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


@contextlib.contextmanager
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
