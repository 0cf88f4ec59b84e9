"""Pixels and validity of a source, window by window."""

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterioWindow

from tmtool.compat.rasterio import resize_block_cache
from tmtool.errors import ReadError
from tmtool.grid import BoolArray, FloatArray, Window
from tmtool.source._opening import Source, open_raster


class Reader:
    """Reads windows of a `Source`; safe to call from several threads, each of which gets a handle of its own.

    With `overview` it reads this overview of the file (from 0), whose pixels windows then count.
    """

    def __init__(self, source: Source, overview: int | None = None) -> None:
        self.source = source
        self._overview = overview
        self._local = threading.local()
        self._lock = threading.Lock()
        self._handles: list[Any] = []

    def __enter__(self) -> "Reader":
        """Return itself; files are opened on first use."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close every thread's handle."""
        for src in self._handles:
            src.close()

    def read(self, window: Window) -> tuple[FloatArray, BoolArray]:
        """Return pixels `(C, h, w)` float32 in the modality's unit, offset removed, and validity `(h, w)`.

        `window` must lie inside the raster. A pixel is invalid if any of its bands is. Raises `ReadError`.
        """
        try:
            return self._read(RasterioWindow(window.col, window.row, window.width, window.height))
        except RasterioError as error:
            raise ReadError(
                f"{self.source.path}: is damaged or truncated; reading rows {window.row}-{window.row + window.height - 1} failed ({error})."
            ) from None  # GDAL's text, quoted here, may hold secrets

    def _read(self, window: Any) -> tuple[FloatArray, BoolArray]:
        source, src = self.source, self._handle()
        raw = src.read(list(source.bands), window=window)
        valid = np.ones(raw.shape[1:], np.bool_)
        if source.nodata is not None and not math.isnan(source.nodata):
            valid &= (raw != self._nodata_in(raw.dtype)).all(axis=0)
        elif source.nodata is None and source.modality.is_optical:
            valid &= (raw != 0).any(axis=0)
        if raw.dtype.kind == "f":
            valid &= np.isfinite(raw).all(axis=0)
        if source.mask_band:
            valid &= src.read_masks(source.bands[0], window=window) > 0
        if source.alpha is not None:  # GDAL takes alpha for a mask of one or three bands of some types only
            valid &= src.read([source.alpha], window=window)[0] > 0
        pixels = raw.astype(np.float32)
        if source.offset:
            pixels -= np.float32(source.offset)
        return pixels, valid

    def _nodata_in(self, dtype: np.dtype[Any]) -> Any:
        """Nodata as the pixels hold it: -3.4e38 in float32 is another number than in float64."""
        nodata = self.source.nodata
        if dtype.kind == "f":
            return np.float32(nodata) if dtype == np.float32 else nodata
        return nodata

    def _handle(self) -> Any:
        if not hasattr(self._local, "src"):
            self._local.src = self.source.array or open_raster(self.source.path, self._overview)
            with self._lock:
                self._handles.append(self._local.src)
        return self._local.src


def set_block_cache(sources: Sequence[Source], tile_height: int, width: int | None = None) -> int:
    """Size GDAL's block cache for these sources and return it in bytes; by default it would grow with the machine's RAM."""
    size = max(64 << 20, sum(s.cache_bytes(tile_height, width) for s in sources))
    resize_block_cache(min(size, (1 << 31) - 1))
    return size
