"""A sample of a raster's valid values: a few small windows of it, and its smallest overview if it has any."""

import contextlib
from collections.abc import Iterator

import numpy as np

from tmtool.errors import InputError, ReadError
from tmtool.grid import FloatArray, Window
from tmtool.source._opening import Source, opened
from tmtool.source._reader import Reader

_SIDE = 128
_ORDER = (12, 6, 18, 0, 24, 8, 16, *range(25))
"""Places of a 5 x 5 lattice over the raster: its middle and inner ones first, then corners, which are empty more often."""


def sampled(source: Source) -> FloatArray:
    """Return valid values `(C, n)` in the modality's unit, offset removed. Raises `InputError` for a damaged file.

    Of an array that is still to be computed, as of a file with overviews, three windows are read, else five.
    """
    found = [] if source.modality.classes else _of_overview(source)  # means of classes are none
    few = found or (source.array is not None and source.array.lazy)
    with Reader(source) as reader:
        try:
            found += _valid(reader, source.grid.shape, 3 if few else 5)
        except ReadError as error:
            raise InputError(str(error)) from error
    return np.concatenate(found, axis=1) if found else np.empty((len(source.bands), 0), np.float32)


def _of_overview(source: Source) -> list[FloatArray]:
    """Return valid values of the smallest overview; none without one, or if it is damaged, since runs do without it."""
    if source.array is not None:
        return []
    with opened(source.opens) as src:
        count = len(src.overviews(source.bands[0]))
    if not count:
        return []
    with contextlib.suppress(InputError, ReadError), Reader(source, count - 1) as reader:
        with opened(source.opens, count - 1) as src:
            shape = src.shape
        return list(_valid(reader, shape, 3))
    return []


def _valid(reader: Reader, shape: tuple[int, int], wanted: int) -> Iterator[FloatArray]:
    """Yield the valid values `(C, n)` of the first windows of the lattice that hold any, as many as are wanted."""
    for window in dict.fromkeys(_window(shape, reader.source.block, *divmod(k, 5)) for k in _ORDER):
        pixels, valid = reader.read(window)
        if valid.any():
            yield pixels[:, valid]
            wanted -= 1
        if not wanted:
            return


def valid_share(source: Source) -> float:
    """Return the share of valid pixels in small windows all over a raster. Raises `ReadError`."""
    windows = dict.fromkeys(_window(source.grid.shape, (1, 1), *divmod(k, 5)) for k in range(25))
    with Reader(source) as reader:
        return float(np.mean([reader.read(window)[1].mean() for window in windows]))


def _window(shape: tuple[int, int], block: tuple[int, int], row: int, col: int) -> Window:
    """Return the window at a place of the lattice, begun where a block does, so that few blocks are decoded."""
    height, width = (min(_SIDE, n) for n in shape)
    top, left = (
        _begun(round((n - size) * i / 4), step if step < n else 1)
        for n, size, i, step in zip(shape, (height, width), (row, col), block, strict=True)
    )
    return Window(top, left, height, width)


def _begun(start: int, step: int) -> int:
    return start - start % step
