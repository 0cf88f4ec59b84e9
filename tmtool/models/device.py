"""Which device, precision and batch size a run uses. One machine always gives one answer: nothing is tried out."""

import functools
import os
import platform
import shutil
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from tmtool.errors import DeviceError
from tmtool.limits import check_room_for_torch

PRECISIONS = ("auto", "fp32", "bf16", "fp16")

_CUDA_BATCH = ((8, 4), (16, 16), (24, 16), (48, 32))  # (GB of device memory below which, tiles of 256 px a batch)
_CUDA_BATCH_MOST = 64
_CUDA_OWN_BYTES = 1_000_000_000
"""What CUDA itself may take of a device for this process, and a desktop besides: an idle device counts as a whole one."""
_CUDA_DECODER_BATCH = ((8, 2), (16, 8))  # likewise, of a device's whole memory, tiles that decoders take at once
_CPU_BATCH = ((8, 1), (32, 2))  # (cores up to which, tiles a batch)
_CPU_BATCH_MOST = 4


@dataclass(frozen=True)
class Compute:
    """Where and how the model runs. `device` is torch's name, `precision` that of matrix products and convolutions.

    `beside` are further devices of the same kind, which take batches of the same scene. `threads` are those of an
    operation on a CPU, whose number decides how it rounds; 0 leaves them to torch. `compiled` says whether networks go
    through `torch.compile`, whose kernels round otherwise.
    """

    device: str = "cpu"
    precision: str = "fp32"
    beside: tuple[str, ...] = ()
    threads: int = 0
    compiled: bool = False

    @property
    def each(self) -> tuple["Compute", ...]:
        """The devices one by one."""
        return tuple(replace(self, device=device, beside=()) for device in (self.device, *self.beside))

    def as_threaded_here(self) -> "Compute":
        """Return the same with the threads that a run of this process would use on a CPU."""
        return replace(self, threads=_threads()) if self.device == "cpu" else self

    def prepare(self) -> None:
        """Set the threads: for this thread, and for those of the process that have not used any yet."""
        if self.threads:
            import torch

            torch.set_num_threads(self.threads)


def resolve(device: str = "auto", precision: str = "auto", compile: str = "auto") -> Compute:
    """Resolve the options to a device, precision and compiling; a `DeviceError` says what this machine has.

    `device` may name several of one kind, with commas. `compile` auto is off: on a CPU it gains 3 % for the U-Net and 5 %
    for the encoder (base in bf16), and takes a minute and a half to begin; on CUDA its gain has not been measured.
    """
    check_room_for_torch()
    names = [_device(name) for name in device.lower().split(",")]
    if len({name.partition(":")[0] for name in names}) > 1:
        raise DeviceError(
            f"--device {device}: devices of one kind only, as pixels would otherwise depend on the device."
        )
    if len(set(names)) < len(names) and names[0] != "cpu":
        raise DeviceError(f"--device {device}: names a device twice.")
    precisions = {_precision(precision.lower(), name) for name in names}
    if len(precisions) > 1:
        raise DeviceError(f"--device {device}: not all of them have bfloat16. Choose a --precision for all.")
    if compile == "on":
        _check_compiler(names[0])
    compute = Compute(names[0], precisions.pop(), tuple(names[1:]), compiled=compile == "on")
    return compute.as_threaded_here()


def _check_compiler(device: str) -> None:
    """Raise `DeviceError` where `torch.compile` has nothing to compile with."""
    compiler = os.environ.get("CXX") or ("clang++" if platform.system() == "Darwin" else "g++")
    if device == "cpu" and not shutil.which(compiler):
        raise DeviceError(
            f"--compile on: needs a C++ compiler, and {compiler} is not here. Set CXX, or use --compile off."
        )
    if device.startswith("cuda") and not find_spec("triton"):
        raise DeviceError("--compile on: needs Triton, which is not installed. Use --compile off.")


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def cuda_devices() -> int:
    """Count the CUDA devices that torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _device(asked: str) -> str:
    import torch

    cuda = cuda_devices()
    mps = torch.backends.mps.is_available()
    if asked == "auto":
        return "cuda:0" if cuda else "mps" if mps else "cpu"
    if asked == "cpu":
        return asked
    if asked == "mps" and mps:
        return asked
    kind, _, number = asked.partition(":")
    if kind == "cuda" and (not number or number.isdigit()):
        if int(number or 0) < cuda:
            return f"cuda:{number or 0}"
        raise DeviceError(f"--device {asked}: this machine has {cuda} CUDA device(s) that torch can use.")
    have = ["auto", "cpu", *(f"cuda:{i}" for i in range(cuda)), *(["mps"] if mps else [])]
    raise DeviceError(f"--device {asked}: not available here. Choose from {', '.join(have)}.")


def _precision(asked: str, device: str) -> str:
    if asked not in PRECISIONS:
        raise DeviceError(f"--precision {asked}: choose from {', '.join(PRECISIONS)}.")
    if asked == "auto":
        return "bf16" if _has_bf16(device) else "fp32"
    if asked == "fp16" and not device.startswith("cuda"):
        raise DeviceError(f"--precision fp16 needs a CUDA device, not {device}. Use bf16 or fp32.")
    if asked == "bf16" and device == "mps":
        raise DeviceError("--precision bf16 is not supported on mps. Use fp32.")
    return asked


def _has_bf16(device: str) -> bool:
    """Whether the hardware computes in bfloat16, rather than emulating it."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device == "cpu" and bool({"amx_bf16", "avx512_bf16"} & cpu_flags())


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Return the CPU flags of an x86 processor, as Linux names them; empty elsewhere."""
    info = Path("/proc/cpuinfo")
    if platform.machine() not in ("x86_64", "AMD64") or not info.exists():
        return frozenset()
    for line in info.read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def kind_of(compute: Compute) -> str:
    """Return what kind of device a run uses: devices of one kind give the same bits."""
    import torch

    if compute.device.startswith("cuda"):
        return torch.cuda.get_device_name(compute.device)
    if compute.device == "cpu":
        return f"CPU with {torch.backends.cpu.get_cpu_capability()}"
    return compute.device


def batch_size(compute: Compute) -> int:
    """Return the tiles a batch that suit all devices of a run."""
    return min(_batch_size(each.device) for each in compute.each)


@functools.cache
def _batch_size(device: str) -> int:
    """Return the tiles a batch that suit a device: from a table of its memory, or of the CPU's cores.

    What other processes hold of a CUDA device when this one first asks does not count as its memory.
    """
    if device.startswith("cuda"):
        import torch

        free, total = torch.cuda.mem_get_info(device)
        gigabytes = min(total, free + torch.cuda.memory_reserved(device) + _CUDA_OWN_BYTES) / 1e9
        return next((n for limit, n in _CUDA_BATCH if gigabytes < limit), _CUDA_BATCH_MOST)
    if device == "mps":
        return 4
    return next((n for limit, n in _CPU_BATCH if cores() <= limit), _CPU_BATCH_MOST)


def cores() -> int:
    """Return the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decoder_batch(device: str) -> int:
    """Return the most tiles that decoders to pixels should take at once, by what the device is and not by what is free.

    On small CUDA devices that is less than a batch: decoders need more memory than the transformer, which gains more
    from long batches. On a CPU neither gains (base in bf16: the U-Net nothing from 1 to 4 tiles, the transformer a tenth).
    """
    if device.startswith("cuda"):
        import torch

        gigabytes = torch.cuda.get_device_properties(device).total_memory / 1e9
        return next((n for limit, n in _CUDA_DECODER_BATCH if gigabytes < limit), _CUDA_BATCH_MOST)
    return _CUDA_BATCH_MOST
