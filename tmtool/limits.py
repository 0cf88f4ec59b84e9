"""Limits of the system on this process that have to be checked before they are hit."""

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec

from tmtool.errors import DeviceError


def address_limit() -> int | None:
    """Return the bytes of address space that this process may have (`ulimit -v`), None without such a limit."""
    if sys.platform == "win32":
        return None
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit


def check_room_to_start() -> None:
    """Raise `DeviceError` where numpy and GDAL cannot be imported for want of address space; a thread a core takes some."""
    limit, needed = address_limit(), 300_000_000 + 10_000_000 * (os.cpu_count() or 1)
    if limit is not None and limit < needed:
        raise DeviceError(
            f"ulimit -v allows {limit / 1e9:.2f} GB of address space; looking at rasters takes {needed / 1e9:.2f} GB, and "
            "what torch runs several times as much."
        )


def check_room_for_torch() -> None:
    """Raise `DeviceError` where torch cannot be imported for want of address space, of which its libraries take much.

    If the last of them does not fit, the system ends the process, and no exception can be caught.
    """
    limit = address_limit()
    if limit is None or "torch" in sys.modules:
        return
    needed = sum(_library_sizes())
    if limit < needed:
        raise DeviceError(
            f"ulimit -v allows {limit / 1e9:.1f} GB, and torch's libraries alone take {needed / 1e9:.1f} GB of address "
            "space. Raise it or leave it out; --max-memory limits what is really used."
        )


def _library_sizes() -> Iterator[int]:
    """Yield the bytes of each library of torch and of what comes with it for CUDA."""
    for package in ("torch", "nvidia"):
        spec = find_spec(package)
        for root in (spec and spec.submodule_search_locations) or ():
            for folder, _, names in os.walk(root):
                yield from (os.lstat(os.path.join(folder, name)).st_size for name in names if ".so" in name)
