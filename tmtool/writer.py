"""Rows to files: a work file in the output folder, then a format's conversion of it, then the final name.

The work file is an uncompressed striped GeoTIFF, so rows are written once, in place and as they come; empty parts take no
space. A format turns it into the product. Until `commit` nothing carries a final name.
"""

import contextlib
import glob
import json
import math
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from tmtool.errors import ProductError
from tmtool.grid import BoolArray, Grid

PROVENANCE_TAG = "TMTOOL_PROVENANCE"
"""The GeoTIFF tag that says, in JSON, how a product was made."""

WORK_PREFIX = ".tmtool-"
"""How the names of work files begin; no input is ever taken from them."""

_INT8_MAX = 127


@dataclass(frozen=True)
class Layout:
    """What a product holds: one entry of `bands` a band, values of `dtype` in `unit` after multiplication with `scale`.

    `classes` are (name, colour `#RRGGBB`) of the values 0, 1, ...; `resampling` makes the overviews. `ids` says that
    values are names, not quantities: they have no statistics. `work_dtype` is what rows are written in, if that is not
    `dtype`: float32 rows become int8 by a scale for each band, which is known when all rows are.
    """

    bands: tuple[str, ...]
    dtype: str
    nodata: float
    unit: str = ""
    scale: float = 1.0
    classes: tuple[tuple[str, str], ...] = ()
    resampling: str = "average"
    ids: bool = False
    work_dtype: str = ""

    @property
    def pixel_bytes(self) -> int:
        """Uncompressed bytes a pixel."""
        return len(self.bands) * np.dtype(self.dtype).itemsize

    @property
    def work(self) -> tuple[str, float]:
        """Dtype and nodata value of the work file."""
        return (self.work_dtype, float("nan")) if self.work_dtype else (self.dtype, self.nodata)


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


@dataclass(frozen=True)
class Work:
    """All rows of a product, in the work file at `path`, and what is known now that they are complete."""

    path: Path
    grid: Grid
    layout: Layout
    statistics: Statistics
    tags: Mapping[str, str]

    @property
    def scales(self) -> NDArray[np.float64]:
        """What each band's values are multiplied with to be in the layout's unit, `(bands,)`."""
        layout, seen = self.layout, self.statistics
        if layout.dtype != "int8" or not layout.work_dtype or not seen.count:
            return np.full(len(layout.bands), layout.scale)
        most = np.maximum(abs(seen.low), abs(seen.high))
        return np.where(most > 0, most, 1.0) / _INT8_MAX

    def rows(self, height: int = 64) -> Iterator[tuple[int, NDArray[Any], BoolArray]]:
        """Yield (row, values `(bands, h, W)` in the layout's dtype with nodata filled in, validity `(h, W)`) from the top."""
        layout = self.layout
        _, nodata = layout.work
        with quiet(), rasterio.open(self.path) as src:
            for row in range(0, src.height, height):
                values = src.read(window=Window(0, row, src.width, min(height, src.height - row)))
                valid = ~np.isnan(values[0]) if math.isnan(nodata) else values[0] != nodata
                yield row, self._encoded(values, valid), valid

    def _encoded(self, values: NDArray[Any], valid: BoolArray) -> NDArray[Any]:
        layout = self.layout
        if layout.dtype == "int8" and layout.work_dtype:
            coded = np.where(valid, values, 0) / self.scales[:, None, None].astype(np.float32)
            np.clip(np.rint(coded, out=coded), -_INT8_MAX, _INT8_MAX, out=coded)
            return np.where(valid, coded.astype(np.int8), np.int8(layout.nodata))
        return values.astype(layout.dtype)


@dataclass(frozen=True)
class Format:
    """A file format: the ending of its names, and what turns a work file into a complete file (or folder) at a path.

    `convert` raises `ProductError`; what it writes beside, it writes to `sidecar(path)`.
    """

    ending: str
    convert: Callable[[Work, Path], None]


class Writer:
    """Writes one product. Call `write` for all rows, then `build`, then `commit`; `discard` removes whatever is left.

    `write` and `build` may be called from another thread than the one that made the writer, one at a time.
    """

    def __init__(self, path: Path, grid: Grid, layout: Layout, format: Format) -> None:
        self.path, self.grid, self.layout, self.format = path, grid, layout, format
        self.statistics = Statistics(len(layout.bands))
        self._token = f"{WORK_PREFIX}{path.stem}-{os.getpid()}-{secrets.token_hex(3)}"
        self._work = path.with_name(f"{self._token}.work.tif")
        self._built = path.with_name(f"{self._token}.built{format.ending}")
        height, width = grid.shape
        dtype, nodata = layout.work
        try:
            with quiet():
                self._dst: Any = rasterio.open(
                    self._work,
                    "w",
                    driver="GTiff",
                    count=len(layout.bands),
                    dtype=dtype,
                    height=height,
                    width=width,
                    crs=grid.crs,
                    transform=grid.transform,
                    nodata=nodata,
                    interleave="band",
                    blockysize=min(64, height),
                    bigtiff="yes",
                    sparse_ok="true",
                )
        except RasterioError as error:
            self.discard()
            raise ProductError(f"{path}: cannot create its work file ({error}).") from error

    def write(self, row: int, values: NDArray[Any], valid: BoolArray) -> None:
        """Write rows `row...` of all bands: `values` `(bands, h, width)` in the work file's dtype, nodata where not `valid`."""
        filled = np.where(valid, values, np.asarray(self.layout.work[1], values.dtype))
        self.statistics.add(values[:, valid])
        try:
            self._dst.write(filled, window=Window(0, row, values.shape[2], values.shape[1]))
        except RasterioError as error:
            raise self._disk_error(error) from error

    def build(self, tags: Mapping[str, str]) -> None:
        """Turn the rows into the product with `tags`. Raises `ProductError`; nothing has its final name yet."""
        try:
            with quiet():
                self._dst.close()
                self.format.convert(Work(self._work, self.grid, self.layout, self.statistics, tags), self._built)
        except (RasterioError, OSError) as error:
            raise self._disk_error(error) from error
        self._work.unlink()

    def commit(self) -> Path:
        """Give the finished product its name: the sidecar first, then the product. Returns the path."""
        beside = sidecar(self._built)
        if beside.exists():
            beside.replace(sidecar(self.path))
        else:
            sidecar(self.path).unlink(missing_ok=True)  # of an older product
        if self._built.is_dir():
            self._replace_folder()
        else:
            with self._built.open("rb") as file:
                os.fsync(file.fileno())
            self._built.replace(self.path)
        return self.path

    def _replace_folder(self) -> None:
        old = self.path.with_name(f"{self._token}.old")
        if self.path.exists():
            self.path.rename(old)  # a folder cannot be replaced in one step
        self._built.rename(self.path)
        shutil.rmtree(old, ignore_errors=True)

    def discard(self) -> None:
        """Remove everything that has no final name. May be called at any time, any number of times."""
        if hasattr(self, "_dst"):
            with contextlib.suppress(RasterioError):
                self._dst.close()
        for path in self.path.parent.glob(f"{glob.escape(self._token)}.*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _disk_error(self, error: Exception) -> ProductError:
        free = shutil.disk_usage(self.path.parent).free
        return ProductError(f"{self.path}: writing failed with {free / 1e9:.2f} GB free on its disk ({error}).")


def sidecar(path: Path) -> Path:
    """Return where GDAL looks for the category names of the product at `path`."""
    return path.with_name(f"{path.name}.aux.xml")


def disk_bytes(grid: Grid, layouts: Sequence[Layout]) -> int:
    """Return an upper bound of the disk needed while products are made: work files, products and their overviews."""
    pixels = grid.shape[0] * grid.shape[1]
    total = sum(2.4 * layout.pixel_bytes + 4 * len(layout.bands) * bool(layout.work_dtype) for layout in layouts)
    return math.ceil(total * pixels) + (1 << 20)


def provenance_tags(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags that say how a product was made."""
    return {PROVENANCE_TAG: json.dumps(provenance, sort_keys=True)}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence rasterio's warning about rasters without georeferencing, which are welcome here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
