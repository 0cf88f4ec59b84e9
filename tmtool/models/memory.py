"""Memory: batches that shrink when the device runs out of it, and batches that fit into the host's.

A device reports that its memory is exhausted, and the run continues with smaller batches. The host does not: its kernel
kills the process. So the host memory that a run needs is estimated, and compared with what it may use, before it begins.
"""

import gc
import logging
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmtool.errors import OutOfMemory, UsageError
from tmtool.grid import Draws, TileBatch

_log = logging.getLogger("tmtool")

Outputs = Mapping[str, NDArray[Any]]

_EXHAUSTED = ("cuda error: out of memory", "cuda out of memory", "hip out of memory", "mps backend out of memory",
              "cublas_status_alloc_failed", "cudnn_status_alloc_failed")  # fmt: skip
"""Texts in errors of an exhausted device whose class does not show it."""


class BackOff:
    """A model that continues with smaller batches when its device is out of memory.

    `size` is the most tiles of one call; it only ever shrinks, to half of what failed. A longer batch is run in parts of
    `size`, the last one padded, so that shapes stay the same; a shorter one as it is. Raises `OutOfMemory` where one tile
    is too many.
    """

    def __init__(self, model: Callable[[TileBatch], Outputs], size: int = sys.maxsize) -> None:
        self._model, self.size = model, size

    def __call__(self, batch: TileBatch) -> Outputs:
        """Return the model's outputs for every tile of the batch, in its order."""
        total = len(batch.rows)
        done: list[Outputs] = []
        start = 0
        while start < total:
            size = min(self.size, total)
            stop = min(start + size, total)
            try:
                outputs = self._model(part(batch, start, stop, size))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                why = _first_line(error)
            else:
                done.append({name: values[: stop - start] for name, values in outputs.items()})
                start = stop
                continue
            self._shrink(size, why)  # here, where the error no longer holds the failed call's tensors
        if len(done) == 1:
            return done[0]
        return {name: np.concatenate([outputs[name] for outputs in done]) for name in done[0]}

    def _shrink(self, failed: int, why: str) -> None:
        _release()
        if failed == 1:
            raise OutOfMemory(_no_room("one tile", why))
        self.size = failed // 2
        _log.warning(
            "The device is out of memory with %d tiles per batch (%s). Continuing with %d for the rest of the run; results "
            "change by rounding only.",
            failed,
            why,
            self.size,
        )


def part(batch: TileBatch, start: int, stop: int, size: int) -> TileBatch:
    """Return the tiles `start` to `stop` of a batch as one of exactly `size`, the last tile repeated."""
    if (start, stop, size) == (0, len(batch.rows), len(batch.rows)):
        return batch
    index = np.minimum(np.arange(start, start + size), stop - 1)
    draws = batch.draws
    if draws is not None:
        draws, index = Draws(np.arange(size), draws.number[index]), draws.index[index]
    return replace(
        batch,
        pixels={m: values[index] for m, values in batch.pixels.items()},
        rows=batch.rows[index],
        cols=batch.cols[index],
        lonlat=None if batch.lonlat is None else batch.lonlat[index],
        dates=None if batch.dates is None else batch.dates[index],
        draws=draws,
    )


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Raise `OutOfMemory` if the device has no room for the model that is built meanwhile."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        why = _first_line(error)
    else:
        return
    _release()
    raise OutOfMemory(_no_room(f"--model {name}", why))


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that a device's memory is exhausted; not the host's (`MemoryError`)."""
    if any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):  # torch's, without importing it
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _EXHAUSTED)


def _no_room(what: str, why: str) -> str:
    return (
        f"The device's memory has no room for {what} ({why}). Use a smaller --crop, a smaller --model, "
        "--precision bf16, or another --device such as cpu."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0][:120]


def _release() -> None:
    """Free the device memory that torch caches and no longer uses."""
    gc.collect()
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(text: str, option: str) -> int:
    """Return the bytes of a size such as 8G, 800MB (powers of 1000) or 1.5GiB (of 1024); raises `UsageError`."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(?:([KMGT])(I?)B?|B)", text.strip().upper())
    size = 0
    if found:
        number, unit, binary = found.groups(default="")
        size = int(float(number) * (1024 if binary else 1000) ** _UNITS[unit])
    if size < 1:
        raise UsageError(f"{option} {text}: give a size with its unit, such as 8G, 800MB or 1.5GiB.")
    return size


def limit_bytes(asked: int | None = None, root: Path = Path("/")) -> tuple[int, str]:
    """Return how much of the host's memory this process may use, and what sets that limit.

    It is the least of what was asked for, what any control group that the process is in allows, the process's own
    limits, and what is available by psutil. `root` is where `/proc` and `/sys` are.
    """
    held = _held(root)
    found = [
        *([(asked, "--max-memory")] if asked else []),
        *_group_limits(root),
        *_process_limits(held),
        _available(held),
    ]
    return min(found)


def _held(root: Path) -> dict[str, int]:
    """Return what this process holds by the names of `/proc/self/status`, in bytes; nothing where there is none."""
    lines = (line.split() for line in _text(root / "proc/self/status").splitlines())
    return {words[0].rstrip(":"): int(words[1]) << 10 for words in lines if words[2:] == ["kB"]}


def _group_limits(root: Path) -> Iterator[tuple[int, str]]:
    """Yield the limits of this process's control groups and their parents, of both versions of cgroups.

    In a container the process's path may be the host's, of which only the container's own part can be seen: that is the
    top of the tree there, which every path ends in.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        names: tuple[str, ...]
        top, names = Path("sys/fs/cgroup"), ("memory.max", "memory.high")
        if controllers:
            top, names = top / "memory", ("memory.limit_in_bytes",) if "memory" in controllers.split(",") else ()
        group = PurePosixPath(path.lstrip("/"))
        for file in (top / folder / name for folder in (group, *group.parents) for name in names):
            limit = _text(root / file).strip()
            if limit.isdigit():  # not "max"; no limit is a number beyond any machine's memory in version 1
                yield int(limit), f"the limit in /{file}"


def _process_limits(held: Mapping[str, int]) -> Iterator[tuple[int, str]]:
    """Yield what resource limits leave. They count address space, of which much is reserved and never filled."""
    if sys.platform == "win32":
        return
    import resource

    for limit, reserved, filled, name in (
        (resource.RLIMIT_AS, "VmSize", "VmRSS", "ulimit -v"),
        (resource.RLIMIT_DATA, "VmData", "RssAnon", "ulimit -d"),
    ):
        size, _ = resource.getrlimit(limit)
        if size != resource.RLIM_INFINITY:
            yield max(0, size - held.get(reserved, 0) + held.get(filled, 0)), f"{name} of {_gigabytes(size)}"


def _available(held: Mapping[str, int]) -> tuple[int, str]:
    """Return what the machine can still give, and what this process holds of it already."""
    import psutil

    return psutil.virtual_memory().available + held.get("RssAnon", 0), "the memory that is free"


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # another system, or another version of cgroups
        return ""


def fit(limit: tuple[int, str], streaming_bytes: int, model_bytes: int, tile_bytes: int, batch: int) -> int:
    """Return the tiles a batch, at most `batch`, that fit into a limit as `limit_bytes` returns it.

    Raises `OutOfMemory` with what it would take if a single tile does not fit.
    """
    allowed, why = limit
    fits = (allowed - streaming_bytes - model_bytes) // max(tile_bytes, 1)
    if fits >= 1:
        return min(batch, fits)
    needed = streaming_bytes + model_bytes + tile_bytes
    raise OutOfMemory(
        f"Not enough memory: about {_gigabytes(needed)} are needed with one tile per batch ({_gigabytes(model_bytes)} for "
        f"the model and its libraries, {_gigabytes(tile_bytes)} for the tile, {_gigabytes(streaming_bytes)} for streaming "
        f"the scene), and {allowed / 1e9:.1f} GB may be used ({why}). Use a smaller --model or --crop, or allow more."
    )


def _gigabytes(size: int) -> str:
    """Return a size in words, rounded up, so that asking for what is said to be needed is enough."""
    return f"{math.ceil(size / 1e8) / 10:.1f} GB"
