"""Pixels and validity of a source, window by window."""

import math
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterioWindow

from tmtool.compat.rasterio import resize_block_cache
from tmtool.errors import ReadError
from tmtool.grid import BoolArray, FloatArray, Window
from tmtool.source._opening import Source, is_remote, open_raster, reaching

_ATTEMPTS = 5
"""How often a window of a remote raster is read: GDAL itself does not ask again where an answer breaks off, and a second time
gives what it kept of the first."""
_DELAY_S = 1.0


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
        self._remote = is_remote(source.opens)

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
        box = RasterioWindow(window.col, window.row, window.width, window.height)
        try:
            return self._read_remote(box) if self._remote else self._read(box)
        except RasterioError as error:
            raise ReadError(
                f"{self.source.path}: is damaged or truncated; reading rows {window.row}-{window.row + window.height - 1} failed ({error})."
            ) from None  # GDAL's text, quoted here, may hold secrets

    def _read_remote(self, window: Any) -> tuple[FloatArray, BoolArray]:
        """Read a window of what GDAL fetches, again where an answer breaks off."""
        for attempt in range(_ATTEMPTS - 1):
            try:
                with reaching(self.source.opens, afresh=attempt > 0):
                    return self._read(window)
            except RasterioError:
                self._reopen()
        with reaching(self.source.opens, afresh=True):
            return self._read(window)

    def _read(self, window: Any) -> tuple[FloatArray, BoolArray]:
        raw, valid = self._stored(window)
        for mask in self.source.masks:
            valid &= ~mask.covers(Window(window.row_off, window.col_off, window.height, window.width), self._open)
        return in_unit(raw, valid, self.source)

    def _stored(self, window: Any) -> tuple[NDArray[Any], BoolArray]:
        """Return the values as they are stored, and which of them are valid by what the raster itself says."""
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
        return raw, valid

    def _nodata_in(self, dtype: np.dtype[Any]) -> Any:
        """Nodata as the pixels hold it: -3.4e38 in float32 is another number than in float64."""
        nodata = self.source.nodata
        if dtype.kind == "f":
            return np.float32(nodata) if dtype == np.float32 else nodata
        return nodata

    def _handle(self) -> Any:
        return self.source.array or self._open(self.source.opens)

    def _reopen(self) -> None:
        """Forget this thread's handles, since what they fetched may be incomplete; wait a moment."""
        for src in self._local.__dict__.values():
            src.close()
        self._local.__dict__.clear()
        time.sleep(float(os.environ.get("GDAL_HTTP_RETRY_DELAY", _DELAY_S)))

    def _open(self, name: str) -> Any:
        """Return this thread's handle on what GDAL opens."""
        handles = self._local.__dict__
        if name not in handles:
            handles[name] = open_raster(name, self._overview)
            with self._lock:
                self._handles.append(handles[name])
        return handles[name]


def set_block_cache(sources: Sequence[Source], tile_height: int, width: int | None = None) -> int:
    """Size GDAL's block cache for these sources and return it in bytes; by default it would grow with the machine's RAM."""
    size = max(64 << 20, sum(s.cache_bytes(tile_height, width) for s in sources))
    resize_block_cache(min(size, (1 << 31) - 1))
    return size


def in_unit(raw: NDArray[Any], valid: BoolArray, source: Source) -> tuple[FloatArray, BoolArray]:
    """Return stored values in the modality's unit, float32, and which are valid: codes without a class and power <= 0 are not."""
    pixels = raw.astype(np.float32)
    if source.gain != 1:
        pixels *= np.float32(source.gain)
    if source.offset:
        pixels -= np.float32(source.offset)
    if source.codes:
        pixels = np.take(np.asarray(source.codes, np.float32), raw, mode="clip")
        valid &= (pixels >= 0).all(axis=0)
    if source.power:
        positive = pixels > 0
        valid &= positive.all(axis=0)
        pixels = np.float32(10) * np.log10(np.where(positive, pixels, np.float32(1)))
    return pixels, valid
