"""Arrays that wait on disk: what several draws of a scene need would not fit into memory."""

import tempfile
import threading
from bisect import insort
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmtool.errors import DiskError


@dataclass(frozen=True)
class Spooled:
    """An array in the spool: where it begins, in bytes, and what it is."""

    start: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


class Spool:
    """A file without a name, in `folder`, that holds arrays until they are taken; what a process leaves vanishes with it.

    Threads may use it at once. Raises `DiskError` where the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: Any = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115  (closed by `__exit__`)
        self._free: list[tuple[int, int]] = []  # start and size, in order, never adjacent
        self._end = 0
        self._lock = threading.Lock()

    def __enter__(self) -> "Spool":
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the disk space back."""
        self._file.close()

    def put(self, values: NDArray[Any]) -> Spooled:
        """Write an array."""
        data = np.ascontiguousarray(values)
        view = memoryview(data.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        try:
            with self._lock:
                start = self._room(data.nbytes)
                self._file.seek(start)
                while view:
                    view = view[self._file.write(view) :]
        except OSError as error:
            raise DiskError(
                f"{self._folder}: draws cannot be kept there until they are combined ({error.strerror})."
            ) from error
        return Spooled(start, values.shape, values.dtype)

    def read(self, spooled: Spooled, rows: slice | None = None) -> NDArray[Any]:
        """Return an array `(channels, h, w)`, or some of its rows."""
        if rows is None:
            return self._read(spooled.start, spooled.shape, spooled.dtype)
        channels, height, width = spooled.shape
        first, last, _ = rows.indices(height)
        line, plane = width * spooled.dtype.itemsize, height * width * spooled.dtype.itemsize
        parts = [
            self._read(spooled.start + c * plane + first * line, (last - first, width), spooled.dtype)
            for c in range(channels)
        ]
        return np.stack(parts)

    def take(self, spooled: Spooled) -> NDArray[Any]:
        """Return an array, and free its place."""
        values = self.read(spooled)
        self.drop(spooled)
        return values

    def drop(self, spooled: Spooled) -> None:
        """Free the place of an array."""
        with self._lock:
            insort(self._free, (spooled.start, spooled.size))
            merged: list[tuple[int, int]] = []
            for start, size in self._free:
                if merged and sum(merged[-1]) == start:
                    merged[-1] = (merged[-1][0], merged[-1][1] + size)
                else:
                    merged.append((start, size))
            self._free = merged

    def _room(self, size: int) -> int:
        """Return where there is room for so many bytes: the first free place, or the end."""
        for i, (start, free) in enumerate(self._free):
            if free >= size:
                self._free[i : i + 1] = [(start + size, free - size)] if free > size else []
                return start
        start = self._end
        self._end += size
        return start

    def _read(self, start: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        values = np.empty(shape, dtype)
        view = memoryview(values.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        with self._lock:
            self._file.seek(start)
            while view:
                got = self._file.readinto(view)
                if not got:
                    raise DiskError(f"{self._folder}: draws that were kept there cannot be read back.")
                view = view[got:]
        return values
