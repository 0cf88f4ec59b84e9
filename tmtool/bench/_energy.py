"""Energy, where the machine tells it: of an NVIDIA GPU by NVML, of processors by RAPL."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
"""Where Linux has the counters of processors, which often only root may read."""


@dataclass(frozen=True)
class Meter:
    """Counts from when it is made. `source` says who does, `joules()` how many until now."""

    source: str
    joules: Callable[[], float]


def meter_of(device: str, root: Path = POWERCAP) -> Meter | None:
    """Return what counts the energy of a device, `cpu` or a CUDA device by torch's name; None where nothing tells it."""
    if device.startswith("cuda"):
        return _nvml(device)
    return _rapl(root) if device == "cpu" else None


def _nvml(device: str) -> Meter | None:
    """Return the counter of a GPU, if the package nvidia-ml-py is here and the GPU has one (from Volta on)."""
    if find_spec("pynvml") is None:
        return None
    from tmtool.models.measures import device_uuid

    pynvml: Any = import_module("pynvml")
    try:
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByUUID(device_uuid(device))
        start = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    except pynvml.NVMLError:
        return None
    return Meter("NVML", lambda: (pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) - start) / 1e3)


def _rapl(root: Path) -> Meter | None:
    """Return the counters of all processors together, if they may be read."""
    try:
        zones = [zone for zone in root.glob("intel-rapl:*") if (zone / "name").read_text().startswith("package")]
        begun = {zone: _number(zone / "energy_uj") for zone in zones}
        wraps = {zone: _number(zone / "max_energy_range_uj") + 1 for zone in zones}
    except (OSError, ValueError):
        return None

    def joules() -> float:
        return sum((_number(zone / "energy_uj") - start) % wraps[zone] for zone, start in begun.items()) / 1e6

    return Meter("RAPL", joules) if zones else None


def _number(path: Path) -> int:
    return int(path.read_text())
