"""What numbers are measured on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tmtool import __version__
from tmtool.models.device import Compute, cores, cpu_flags, kind_of

_PACKAGES = ("terratorch", "torch", "diffusers", "numpy", "rasterio")


def machine(compute: Compute) -> str:
    """Say what device, processor and versions numbers are measured on, and how busy the machine is. Imports torch."""
    import torch

    gpu = ""
    if compute.device.startswith("cuda"):
        gpu = f"{kind_of(compute)}, CUDA {torch.version.cuda}; "
    versions = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    load = f"; load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{gpu}{_processor()}, {cores()} cores, {torch.get_num_threads()} torch threads; "
        f"Python {platform.python_version()}, tmtool {__version__}, {versions}{load}"
    )


def _processor() -> str:
    """Name the processor, and what it has for half precision."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    flags = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in cpu_flags()]
    return f"{fields.get('model name', platform.machine())} ({', '.join(flags) or 'no bf16'})"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a machine that has only what is used of it
        return "absent"
