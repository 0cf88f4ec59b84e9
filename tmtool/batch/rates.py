"""How fast this machine is: measured by the last run of the same kind, or estimated from its processor. Imports no torch."""

import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from tmtool.models.device import Compute, cores, cpu_flags
from tmtool.scene.job import DEVICE_CLASSES, Job, Prepared, estimate_seconds

_log = logging.getLogger("tmtool")

_CPUS = (
    ("amx_bf16", "AMX", "bf16", 0.4),
    ("avx512_bf16", "AVX512-BF16", "bf16", 0.31),
    ("avx512f", "AVX512", "fp32", 0.165),
    ("avx2", "AVX2", "fp32", 0.067),
)
"""A flag of the processor, what it is called, the precision of `auto`, and sustained 10**12 operations a second and core.

That of AVX512-BF16, and of AVX512 in fp32, are measurements of docs/BENCHMARKS.md; that of AVX2 is one of a tile on an AMD
EPYC 7003. Cores of other kinds count as those with AVX2.
"""

_GPUS = (
    (("H100", "H200", "H800", "B100", "B200"), "bf16", 250.0),
    (("A100", "A800", "L40", "RTX 4090", "RTX 5090", "RTX 6000"), "bf16", 100.0),
    (("T4", "V100", "P100", "P40", "RTX 20", "GTX", "TITAN"), "fp32", 5.0),
    (("",), "bf16", 15.0),
)
"""Words in the name of a GPU, the precision of `auto`, and what it may sustain: none of it is a measurement."""

GPUS_FOLDER = Path("/proc/driver/nvidia/gpus")
"""Where NVIDIA's driver for Linux says which GPUs there are."""


@dataclass(frozen=True)
class Rate:
    """What a run sustained: 10**12 operations a second, over so many tiles; when, and where its products are."""

    tflops: float
    tiles: int
    when: str
    folder: str


def times(job: Job, prepared: Prepared, share: float = 1.0) -> dict[str, float]:
    """Return a scene's run time in seconds if `share` of its tiles have data: on this machine first, then on others."""
    rates = dict(_of_this_machine(job)) | DEVICE_CLASSES
    return {name: estimate_seconds(job, prepared, rate, share) for name, rate in rates.items()}


def _of_this_machine(job: Job) -> Iterator[tuple[str, float]]:
    name, rate = this_machine(job)
    if last := _known().get(_key(job, name)):
        yield f"this machine, as measured by {last.tiles} tiles into {last.folder} on {last.when}", last.tflops
    yield f"this machine, estimated: {name}", rate


def this_machine(job: Job) -> tuple[str, float]:
    """Return what `job` would run on by itself, in words, and the 10**12 operations a second that it may sustain."""
    device, asked, _ = job.compute_asked
    gpu = _gpu() if device.partition(":")[0] in ("auto", "cuda") else ""
    if gpu:
        precision, rate = next((p, r) for words, p, r in _GPUS if any(word in gpu for word in words))
        return f"{gpu}, {precision if asked == 'auto' else asked}", rate
    flags, count = cpu_flags(), _threads()
    kinds = [kind for kind in _CPUS if kind[0] in flags and (asked != "fp32" or kind[2] == "fp32")]
    _, kind, precision, rate = kinds[0] if kinds else ("", "", "fp32", _CPUS[-1][-1])
    return f"{count} core{'s' * (count > 1)}{f' with {kind}' if kind else ''}, {precision}", count * rate


def _threads() -> int:
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(asked), cores()) if asked.isdigit() and asked != "0" else cores()


def _gpu() -> str:
    """Return the name of the first GPU that torch may find, without asking torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1") or "+cpu" in version("torch"):
        return ""
    for path in sorted(GPUS_FOLDER.glob("*/information")):
        for line in path.read_text().splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    return ""


class Meter:
    """Adds up what the scenes of a run took."""

    def __init__(self, job: Job) -> None:
        self._job, self._tiles, self._seconds, self._tflop, self._folder = job, 0, 0.0, 0.0, ""

    def add(self, prepared: Prepared, compute: Compute, tiles: int, seconds: float) -> None:
        """Count a scene of which the model saw `tiles`, all of them in this run and on one device."""
        self._job = replace(self._job, device=compute.device, precision=compute.precision)
        self._tiles, self._seconds = self._tiles + tiles, self._seconds + seconds
        self._tflop += estimate_seconds(self._job, prepared, 1.0, tiles / len(prepared.plan))
        self._folder = self._folder or str(prepared.scene.folder.absolute())

    def remember(self) -> None:
        """Save the rate of the run for estimates of later runs of its kind; a failure to save is only logged."""
        if not self._tflop or not self._seconds:
            return
        when = time.strftime("%Y-%m-%d %H:%M")
        rate = Rate(self._tflop / self._seconds, self._tiles, when, self._folder)
        known = _known() | {_key(self._job, this_machine(self._job)[0]): rate}
        part = _store().with_name(f"{_store().name}.{os.getpid()}")
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps({key: asdict(rate) for key, rate in known.items()}, indent=1))
            part.replace(_store())
        except OSError as error:
            _log.debug("the rate measured by this run could not be saved: %s", error)


def _key(job: Job, machine: str) -> str:
    return f"{job.task.name} by {job.model} on {machine}"


def _store() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tmtool" / "rates.json"


def _known() -> dict[str, Rate]:
    try:
        return {key: Rate(**rate) for key, rate in json.loads(_store().read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):  # none yet, or not what this version writes
        return {}
