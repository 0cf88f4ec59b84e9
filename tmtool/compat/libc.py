"""The C library: how it keeps freed memory."""

import ctypes
import ctypes.util
import functools
import logging
import os

_log = logging.getLogger("tmtool")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


@functools.cache
def keep_freed_memory() -> bool:
    """Let glibc keep freed memory, as it does by default; return whether that was set.

    - Why: Dask sets `MALLOC_TRIM_THRESHOLD_` for its workers, after which every tensor on a CPU is mapped and unmapped: a
      tile takes three times as long. These are the thresholds that glibc comes to by itself.
    - Uses: `mallopt`, through ctypes. Once a process, and only where that variable is set.
    - Without it, as with musl and on macOS: nothing changes; their allocators do not heed that variable.
    """
    if not os.environ.get("MALLOC_TRIM_THRESHOLD_"):
        return False
    libc = ctypes.util.find_library("c")
    mallopt = getattr(ctypes.CDLL(libc), "mallopt", None) if libc else None
    if mallopt is None:
        _log.debug("MALLOC_TRIM_THRESHOLD_ is left as it is: the C library has no mallopt")
        return False
    mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    mallopt(_M_TRIM_THRESHOLD, 64 << 20)
    return True
