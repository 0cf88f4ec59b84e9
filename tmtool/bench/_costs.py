"""What calls and processes take: seconds, and the host's memory. Imports nothing heavy."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def synchronise() -> None:
    """Wait until a GPU has done all that it was given: calls return before that."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Cost:
    """What something took: seconds on the clock, and seconds of this machine's cores by all threads together."""

    wall_s: float
    cpu_s: float


def cost_of(call: Callable[[], Any]) -> Cost:
    """Return what a call takes, the GPU's part included."""
    synchronise()
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    synchronise()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def peak_rss() -> int:
    """Return the most memory that this process has held at once, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent held when it started this process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) << 10
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10
