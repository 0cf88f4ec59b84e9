"""What a model and its device come to: arithmetic counted, ceilings measured, weights and the device's memory. Imports torch."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tmtool.compat.torch import counted_operations
from tmtool.models._inputs import Base
from tmtool.models._parts import DTYPES
from tmtool.models.device import Compute


@dataclass(frozen=True)
class Arithmetic:
    """Operations in 10**12: those of matrix products, and those of convolutions."""

    products: float = 0.0
    convolutions: float = 0.0

    @property
    def tflop(self) -> float:
        """All of them."""
        return self.products + self.convolutions


@dataclass(frozen=True)
class Ceiling:
    """10**12 operations a second that a device reaches in one precision: in products, and in convolutions."""

    products: float
    convolutions: float

    def seconds(self, work: Arithmetic) -> float:
        """Return the least time that some arithmetic takes."""
        return work.products / self.products + work.convolutions / self.convolutions


def ceiling_of(compute: Compute, least_s: float = 1.0) -> Ceiling | None:
    """Measure a device's ceiling, the best of several tries for `least_s` each; None for a precision that is no dtype.

    It is that of a large matrix product, and of the convolution that the U-Net mostly consists of: 3 x 3, 512 channels,
    channels-last. Both are smaller where the device is so slow that a single one would take long.
    """
    if compute.precision not in DTYPES:
        return None
    cpu = compute.device == "cpu"
    kind: Any = {"dtype": DTYPES[compute.precision], "device": compute.device}
    images = 2 if cpu else 64

    def product(side: int) -> tuple[Callable[[], Any], float]:
        a, b = torch.randn(side, side, **kind), torch.randn(side, side, **kind)
        return lambda: a @ b, 2 * side**3 / 1e12

    def convolution(side: int) -> tuple[Callable[[], Any], float]:
        x = torch.randn(images, 512, side, side, **kind).to(memory_format=torch.channels_last)
        layer = nn.Conv2d(512, 512, 3, padding=1, **kind).to(memory_format=torch.channels_last)
        return lambda: layer(x), 2 * images * side**2 * 512**2 * 9 / 1e12

    with torch.inference_mode():
        products = _best_rate(product, (256, 512, 1024, 2048) if cpu else (2048, 16384), compute.device, least_s)
        return Ceiling(products, _best_rate(convolution, (4, 8, 16, 32), compute.device, least_s))


def _best_rate(
    make: Callable[[int], tuple[Callable[[], Any], float]], sides: Sequence[int], device: str, least_s: float
) -> float:
    """Return the most 10**12 operations a second of calls: of the largest side, or of the first that takes long."""
    for side in sides:
        call, tflop = make(side)
        call()
        took = [_seconds(call, device)]
        if took[0] > least_s / 5:
            break
    began = time.perf_counter()
    while time.perf_counter() - began < least_s:
        took.append(_seconds(call, device))
    return tflop / min(took)


def _seconds(call: Callable[[], Any], device: str) -> float:
    synchronise(device)
    start = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: str) -> None:
    """Wait until a device has done all that it was given: calls return before that."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()


def counter() -> FlopCounterMode:
    """Return what counts operations while it is entered, those too that oneDNN is asked for by name; see `counted_by`."""
    return FlopCounterMode(display=False, custom_mapping=counted_operations())


def counted_by(counter: FlopCounterMode) -> Arithmetic:
    """Return what was counted since this was asked last."""
    counts: Any = counter.flop_counts["Global"]
    found = {True: 0.0, False: 0.0}
    for operation, flop in counts.items():
        found["conv" in str(operation)] += flop / 1e12
    counts.clear()
    return Arithmetic(found[False], found[True])


def counted(call: Callable[[], Any]) -> Arithmetic:
    """Count the operations of a call."""
    with (counting := counter()):
        call()
    return counted_by(counting)


def weights_of(model: Any) -> tuple[int, int]:
    """Return the parameters that a model holds, and their bytes; those that several parts share count once."""
    held = {id(p): p for part in _networks(model) for p in part.parameters()}
    return sum(p.numel() for p in held.values()), sum(p.numel() * p.dtype.itemsize for p in held.values())


def _networks(model: Any) -> Iterator[nn.Module]:
    """Yield the networks of a model, and of the models in it."""
    for value in vars(model).values():
        for one in value.values() if isinstance(value, Mapping) else [value]:
            if isinstance(one, nn.Module):
                yield one
            elif isinstance(one, Base):
                yield from _networks(one)


def device_peak_bytes(device: str) -> int | None:
    """Return the most memory of a CUDA device that this process held at once; None elsewhere, where nobody counts it."""
    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else None


def device_uuid(device: str) -> str:
    """Return what NVIDIA's driver calls a CUDA device."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"
