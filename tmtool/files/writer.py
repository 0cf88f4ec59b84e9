"""Rows to files: a work file in the output folder, then a format's conversion of it, then the final name.

The work file is an uncompressed striped GeoTIFF, so rows are written once, in place and as they come; empty parts take no
space. A format converts it to the product. Nothing has its final name before `commit`, which is an atomic rename.
"""

import contextlib
import errno
import glob
import math
import os
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from tmtool.errors import DiskError, ProductError
from tmtool.files.facts import Facts
from tmtool.grid import BoolArray, Cells, Grid

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
    def coded(self) -> bool:
        """Whether float rows become int8, by a scale for each band."""
        return self.dtype == "int8" and bool(self.work_dtype)

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
        mean = values.mean(axis=1, dtype=np.float64)
        m2 = np.array([x @ x for x in (band - m for band, m in zip(values, mean, strict=True))])  # float64, as mean is
        step, total = mean - self.mean, self.count + n
        self.mean += step * n / total
        self._m2 += m2 + step**2 * self.count * n / total  # Chan, Golub and LeVeque's update
        self.count = total
        self.low, self.high = np.minimum(self.low, values.min(axis=1)), np.maximum(self.high, values.max(axis=1))

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
class About:
    """What a product says of itself beyond its tags, in formats that have a place for it.

    `name` is that of its array of values. `attributes` are JSON, in the words of conventions that they name under
    `zarr_conventions`.
    """

    name: str = "values"
    attributes: Mapping[str, Any] = field(default_factory=dict)
    cells: Cells = field(default_factory=Cells)


@dataclass(frozen=True)
class Work:
    """All rows of a product, in the work file at `path`, and what is known now that they are complete."""

    path: Path
    grid: Grid
    layout: Layout
    statistics: Statistics
    tags: Mapping[str, str]
    about: About = field(default_factory=About)

    @property
    def scales(self) -> NDArray[np.float64]:
        """What each band's values are multiplied with to be in the layout's unit, `(bands,)`."""
        layout, seen = self.layout, self.statistics
        if not layout.coded or not seen.count:
            return np.full(len(layout.bands), layout.scale)
        most = np.maximum(abs(seen.low), abs(seen.high))
        return np.where(most > 0, most, 1.0) / _INT8_MAX

    def overviews(self, enough: int = 512) -> tuple[Grid, ...]:
        """Make the overviews beside the work file and return their grids, each of half the size, until sides are `enough` px."""
        factors: list[int] = []
        while max(self.grid.shape) > enough * 2 ** len(factors):
            factors.append(2 ** (len(factors) + 1))
        if not factors:
            return ()
        self.path.with_name(f"{self.path.name}.ovr").unlink(missing_ok=True)  # of a run that was interrupted here
        beside = {"TIFF_USE_OVR": "YES", "BIGTIFF_OVERVIEW": "YES", "INTERLEAVE_OVERVIEW": "BAND"}
        with quiet(), rasterio.Env(**beside), rasterio.open(self.path, "r+") as dst:
            dst.build_overviews(factors, Resampling[self.layout.resampling])
        height, width = self.grid.shape
        return tuple(self.grid.resized((-(-height // factor), -(-width // factor))) for factor in factors)

    def rows(self, height: int = 64, overview: int | None = None) -> Iterator[tuple[int, NDArray[Any], BoolArray]]:
        """Yield (row, values `(bands, h, W)` in the layout's dtype with nodata filled in, validity `(h, W)`) from the top.

        They are the product's, or those of one of its `overviews`.
        """
        level = {} if overview is None else {"overview_level": overview}
        with quiet(), rasterio.open(self.path, **level) as src:
            for row in range(0, src.height, height):
                values = src.read(window=Window(0, row, src.width, min(height, src.height - row)))
                valid = valid_in(values, self.layout)
                yield row, self._encoded(values, valid), valid

    def _encoded(self, values: NDArray[Any], valid: BoolArray) -> NDArray[Any]:
        layout = self.layout
        if layout.coded:
            coded = np.where(valid, values, 0) / self.scales[:, None, None].astype(np.float32)
            np.clip(np.rint(coded, out=coded), -_INT8_MAX, _INT8_MAX, out=coded)
            return np.where(valid, coded.astype(np.int8), np.int8(layout.nodata))
        return values.astype(layout.dtype)


def valid_in(values: NDArray[Any], layout: Layout) -> BoolArray:
    """Return which pixels `(h, W)` of a work file's rows `(bands, h, W)` hold data, by their nodata value."""
    _, nodata = layout.work
    return np.asarray(~np.isnan(values).all(axis=0) if math.isnan(nodata) else (values != nodata).any(axis=0), np.bool_)


@dataclass(frozen=True)
class Format:
    """A file format: the ending of its names, and what turns a work file into a complete file (or folder) at a path.

    `convert` raises `ProductError`; what it writes beside, it writes to `sidecar(path)`. `tags` returns the tags of a
    product, or raises `ProductError` if it is not whole. `look` returns what catalogues list, reading no values, or raises it too.
    """

    ending: str
    convert: Callable[[Work, Path], None]
    tags: Callable[[Path], Mapping[str, str]]
    media_type: str = "application/octet-stream"
    look: Callable[[Path], Facts] | None = None


class ProductWriter:
    """Writes one product. Call `write` for all rows, then `build`, then `commit`; `discard` removes whatever is left.

    `checkpoint` syncs what was written; `resume` continues the work file of an interrupted run. `write`
    and `build` may be called from another thread than the one that made the writer, one at a time.
    """

    def __init__(self, path: Path, grid: Grid, layout: Layout, format: Format) -> None:
        self.path, self.grid, self.layout, self.format = path, grid, layout, format
        self.statistics = Statistics(len(layout.bands))
        self._token = f"{WORK_PREFIX}{path.name}"
        self._work = path.with_name(f"{self._token}.work.tif")
        self._built = path.with_name(f"{self._token}.built{format.ending}")
        self._dst: Any = None
        self._checksum = 0

    def create(self) -> None:
        """Begin an empty work file in place of leftovers; files renamed by `set_aside` stay."""
        for path in (self._work, self._built):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        dtype, nodata = self.layout.work
        height, width = self.grid.shape
        self._open(
            "w",
            driver="GTiff",
            count=len(self.layout.bands),
            dtype=dtype,
            height=height,
            width=width,
            crs=self.grid.crs,
            transform=self.grid.transform,
            nodata=nodata,
            interleave="band",
            blockysize=min(64, height),
            bigtiff="yes",
        )

    def resume(self) -> None:
        """Continue an existing work file. Raises `ProductError` if it is not one of this product."""
        if self._built.is_dir():
            shutil.rmtree(self._built)
        self._open("r+")
        found = (self._dst.shape, self._dst.count, self._dst.dtypes[0])
        if found != (self.grid.shape, len(self.layout.bands), self.layout.work[0]):
            raise ProductError(f"{self._work}: is not a work file of {self.path}.")

    def _open(self, mode: str, **profile: Any) -> None:
        try:
            with quiet():
                self._dst = rasterio.open(self._work, mode, sparse_ok="true", **profile)
        except (RasterioError, TypeError) as error:  # TypeError is what rasterio makes of an unknown format in "r+"
            if mode == "w" and self._refusal():
                raise self._disk_error(error) from error
            raise ProductError(f"{self.path}: cannot open its work file ({error}).") from error

    def write(self, row: int, values: NDArray[Any], valid: BoolArray, col: int = 0) -> None:
        """Write rows `row...` of all bands: `values` `(bands, h, w)` in the work file's dtype, nodata where not `valid`.

        They begin at column `col`.
        """
        filled = np.where(valid, values, np.asarray(self.layout.work[1], values.dtype))
        self.count(filled, valid_in(filled, self.layout))
        self._checksum = zlib.crc32(np.ascontiguousarray(filled).data, self._checksum)
        try:
            self._dst.write(filled, window=Window(col, row, values.shape[2], values.shape[1]))
        except RasterioError as error:
            raise self._disk_error(error) from error

    def reread(self, rows: range, cols: range) -> tuple[NDArray[Any], BoolArray, int]:
        """Return what was written before as `(values, valid, checksum)`."""
        try:
            values = self._dst.read(window=Window(cols.start, rows.start, len(cols), len(rows)))
        except RasterioError as error:
            raise self._disk_error(error) from error
        return values, valid_in(values, self.layout), zlib.crc32(np.ascontiguousarray(values).data)

    def count(self, values: NDArray[Any], valid: BoolArray) -> None:
        """Count rows in the statistics."""
        self.statistics.add(values.reshape(len(values), -1) if valid.all() else values[:, valid])

    def checkpoint(self) -> int:
        """Wait until all rows are on disk; return the checksum of those since the last checkpoint."""
        try:
            self._dst.close()  # which is how GDAL lets go of what it holds
            with self._work.open("rb") as file:
                os.fsync(file.fileno())
        except (RasterioError, OSError) as error:
            raise self._disk_error(error) from error
        self._open("r+")
        checksum, self._checksum = self._checksum, 0
        return checksum

    def keep(self) -> None:
        """Close the work file but keep it, for a later run to resume."""
        if self._dst is not None:
            self._dst.close()

    def build(self, tags: Mapping[str, str], about: About | None = None) -> None:
        """Turn the rows into the product with `tags`. Raises `ProductError`; nothing has its final name yet."""
        try:
            with quiet():
                self._dst.close()
                work = Work(self._work, self.grid, self.layout, self.statistics, tags, about or About())
                self.format.convert(work, self._built)
        except (RasterioError, OSError) as error:
            raise self._disk_error(error) from error

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

    def set_aside(self) -> None:
        """Rename the work file of a run that is not resumed. It is removed when this run is done."""
        if self._work.exists():
            self._work.replace(self._work.with_name(f"{self._token}.aside.tif"))

    def discard(self) -> None:
        """Remove everything that has no final name. May be called at any time, any number of times."""
        if self._dst is not None:
            with contextlib.suppress(RasterioError):
                self._dst.close()
        for path in self.work_files(self.path):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    @staticmethod
    def work_files(path: Path) -> list[Path]:
        """Return the existing work files, which have no final name yet, of the product at `path`."""
        return list(path.parent.glob(f"{glob.escape(f'{WORK_PREFIX}{path.name}')}.*"))

    def _disk_error(self, error: Exception) -> DiskError:
        free = shutil.disk_usage(self.path.parent).free
        refusal = error if isinstance(error, OSError) and error.strerror else self._refusal()
        if refusal and refusal.errno == errno.EFBIG:
            return DiskError(
                f"{self.path}: writing failed: {refusal.strerror}. Raise the limit on the size of files (ulimit -f), or "
                "write to a disk whose format has none."
            )
        return DiskError(
            f"{self.path}: writing failed with {free / 1e9:.2f} GB free on its disk "
            f"({refusal.strerror if refusal else error})."
        )

    def _refusal(self) -> OSError | None:
        """Return the system's error on writing a file of this size, which GDAL hides; None if it can be written now."""
        probe = self.path.with_name(f"{self._token}.probe")
        height, width = self.grid.shape
        size = len(self.layout.bands) * height * width * np.dtype(self.layout.work[0]).itemsize
        try:
            with probe.open("wb") as file:
                file.write(bytes(1 << 16))
                file.flush()
                os.fsync(file.fileno())
                file.truncate(int(1.4 * size))  # a COG that cannot be compressed, with its overviews
        except OSError as error:
            return error
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()
        return None


def sidecar(path: Path) -> Path:
    """Return where GDAL looks for the category names of the product at `path`."""
    return path.with_name(f"{path.name}.aux.xml")


def disk_bytes(grid: Grid, layouts: Sequence[Layout]) -> int:
    """Return an upper bound of the disk needed while products are made: work files, products and their overviews."""
    pixels = grid.shape[0] * grid.shape[1]
    total = sum(2.7 * layout.pixel_bytes + 4 * len(layout.bands) * bool(layout.work_dtype) for layout in layouts)
    return math.ceil(total * pixels) + (1 << 20)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence rasterio's warning about rasters without georeferencing, which are welcome here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
