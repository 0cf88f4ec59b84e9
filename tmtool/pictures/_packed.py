"""Values for a page: of true pixels, at the size of a picture, packed without loss."""

import base64
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmtool.grid import BoolArray, Window

_BANDS = 16
"""Bands whose values a page holds at most, and how many bytes they may have before they are packed."""
_BYTES = 32 << 20
_ROWS = 128
"""Rows that are read at once; GDAL's cache holds the blocks that they are of."""

Pixels = tuple[NDArray[Any], BoolArray]


def picked(count: int, start: int, length: int) -> NDArray[np.int64]:
    """Return the pixels in the middles of `count` cells that share `length` pixels from `start` on, `(count,)`."""
    return start + (2 * np.arange(count, dtype=np.int64) + 1) * length // (2 * count)


def sampled(read: Callable[[Window], Pixels], part: Window, shape: tuple[int, int], block_rows: int) -> Pixels:
    """Return the pixels in the middles of a picture's cells, `(C, h, w)` and validity `(h, w)`: never of overviews.

    `read` gives the pixels of a window; it is asked for rows of a block, or of a part of a high one, at a time.
    """
    rows, cols = picked(shape[0], part.row, part.height), picked(shape[1], 0, part.width)
    strips = rows // min(block_rows, _ROWS)
    parts = []
    for strip in np.unique(strips):
        own = rows[strips == strip]
        values, valid = read(Window(int(own[0]), part.col, int(own[-1] - own[0]) + 1, part.width))
        at = own[:, None] - own[0], cols[None]
        parts.append((values[:, at[0], at[1]], valid[at]))
    return np.concatenate([values for values, _ in parts], axis=1), np.concatenate([valid for _, valid in parts])


def bands_held(count: int, shape: tuple[int, int], dtype: Any) -> int:
    """Return of how many bands, the first ones, a page holds the values."""
    size: int = shape[0] * shape[1] * np.dtype(dtype).itemsize
    return max(1, min(count, _BANDS, _BYTES // size))


def packed(values: NDArray[Any], valid: BoolArray) -> tuple[str, str]:
    """Return the name of the numbers' type, and base64 of what `unpacked` of page.js gives back: values and validity.

    Deflated are the differences to the pixel on the left, byte by byte of all numbers, and after them a byte a pixel that is
    0 where there is no data.
    """
    plain = _plain(np.where(valid, values, values.dtype.type(0)))
    words = np.ascontiguousarray(plain).view(f"u{plain.dtype.itemsize}")
    words[..., 1:] -= words[..., :-1].copy()
    planes = words.reshape(-1).view(np.uint8).reshape(-1, plain.dtype.itemsize).T
    return plain.dtype.name, base64.b64encode(zlib.compress(planes.tobytes() + valid.tobytes(), 6)).decode()


def _plain(values: NDArray[Any]) -> NDArray[Any]:
    """Return the same numbers in the smallest type that a page knows and that holds them."""
    if values.dtype.kind != "f":
        return values
    for kind in ("uint8", "int16", "uint16", "int32", "float32"):
        with np.errstate(invalid="ignore", over="ignore"):
            other = values.astype(kind)
        if (other == values).all() and (kind == "float32" or not (np.signbit(values) & (values == 0)).any()):
            return other
    return values
