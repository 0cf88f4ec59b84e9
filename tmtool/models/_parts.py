"""Parts of TerraMind: built without initialisation, filled strictly or with seeded noise, put in place."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tmtool.compat.torch import compiler_errors
from tmtool.errors import DeviceError
from tmtool.models import ModelSpec
from tmtool.models import _noise as noise
from tmtool.models._onednn import PackedConv2d, use_onednn
from tmtool.models.device import Compute
from tmtool.models.weights import load_strictly

CORE = "core"
SPARE_CORE = ("encoder_embeddings.", "decoder_embeddings.")
SPARE_TOKENIZER = ("encoder.", "quant_proj.", "decoder.", "post_quant_proj.")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

States = Callable[[str], tuple[Mapping[str, Tensor], Path]]
"""Gives the tensors and the file of `core` or of a modality's tokenizer."""


class Filler:
    """Fills modules with the weights that `spec` names, and makes them ready on its device."""

    def __init__(self, spec: ModelSpec, state_of: States) -> None:
        self.spec, self.state_of = spec, state_of

    def core(self, module: nn.Module, spare: tuple[str, ...] = SPARE_CORE) -> None:
        """Fill an encoder-decoder, or the part of one."""
        self._fill(module, CORE, spare)

    def tokenizer(self, module: nn.Module, modality: str, *, encoder: bool = False, decoder: bool = False) -> None:
        """Fill the halves of a tokenizer that the job uses; the rest of it is removed first."""
        unused = [] if encoder else ["encoder", "quant_proj"]
        unused += [] if decoder else ["decoder", "post_quant_proj"]
        for name in (*unused, "pipeline"):  # the pipeline is diffusers' wrapper around the decoder
            if hasattr(module, name):
                delattr(module, name)
        self._fill(module, modality, SPARE_TOKENIZER)

    def _fill(self, module: nn.Module, part: str, spare: tuple[str, ...]) -> None:
        if self.spec.files is None:
            randomise(module, part)
        else:
            load_strictly(module, *self.state_of(part), spare=spare)
        place(module, self.spec.compute)
        if self.spec.compute.compiled:
            compile_networks(module)


class _NoInitialisation(TorchFunctionMode):
    """Skips random initialisation, which takes longer than loading the weights does."""

    _RANDOM = frozenset(
        {"uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "xavier_uniform_", "kaiming_normal_"}
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self._RANDOM:
            return args[0] if args else (kwargs or {}).get("tensor")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_initialisation() -> Iterator[None]:
    """Build modules without spending time on random weights."""
    with _NoInitialisation():
        yield


def place(module: nn.Module, compute: Compute) -> None:
    """Make a filled part ready: inference mode, precision, device."""
    module.eval().requires_grad_(False)
    dtype = DTYPES[compute.precision]
    if dtype != torch.float32:
        _cast(module, dtype)
    if compute.precision == "bf16" and compute.device == "cpu" and not compute.compiled:
        _copy_no_norms(module)
    use_onednn(module, compute)
    if dtype != torch.float32:
        _channels_last(module)
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.dtype == torch.float32:
                tensor.data = tensor.data.clone()  # the last of the mapped file, which can be let go then
    module.to(compute.device)


def compile_networks(module: nn.Module) -> None:
    """Compile the encoder and the decoder of a part: a tokenizer's as a whole, the transformer's a block at a time.

    Blocks are alike and compiled once for all. Shapes are fixed, as batches are padded to one size.
    """
    for name in ("encoder", "decoder"):
        network = getattr(module, name, None)
        for part in network if isinstance(network, nn.ModuleList) else [network] if network is not None else []:
            part.forward = _compiled(part.forward)


def _compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return `forward` compiled at its first call, which raises `DeviceError` where that does not work."""
    fast = torch.compile(forward, dynamic=False)

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return fast(*args, **kwargs)
        except compiler_errors() as error:
            why = str(error).strip().splitlines()[0][:200]
            raise DeviceError(
                f"--compile on: torch cannot compile this model here ({why}). Use --compile off."
            ) from error

    return call


def randomise(module: nn.Module, part: str) -> None:
    """Fill with seeded noise of a scale that keeps activations finite, the same whatever else is built."""
    norms = {id(p) for m in module.modules() if "Norm" in type(m).__name__ for p in m.parameters(recurse=False)}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("pos_emb"):
                continue
            if parameter.ndim < 2:
                parameter.fill_(1.0 if id(parameter) in norms and name.endswith("weight") else 0.0)
                continue
            generator = torch.Generator().manual_seed(noise.key_of(0, part, name)[0])
            std = 0.02 if "emb" in name or "mask_token" in name else (parameter[0].numel()) ** -0.5
            parameter.normal_(0.0, std, generator=generator)


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast what multiplies matrices; norms, position codes and what surrounds the quantiser stay float32."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d) and not ("post_mlp" in name or "quant_proj" in name):
            part.to(dtype)


class BF16GroupNorm(nn.GroupNorm):
    """A `nn.GroupNorm` that takes bfloat16 and gives it; weights are float32, and so is all that it computes.

    `GroupNorm32` of terratorch, whose place it takes, copies its input to float32 first and its output back.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return `(B, C, ...)` of its like. Not by `group_norm`, to which autocast would give float32."""
        batch, channels, *shape = input.shape
        normed: Tensor = torch.native_group_norm(
            input, self.weight, self.bias, batch, channels, math.prod(shape), self.num_groups, self.eps
        )[0]
        return normed


def _copy_no_norms(module: nn.Module) -> None:
    """Have group norms take bfloat16 as it comes, which torch's kernels for CPUs can beside float32 weights."""
    for part in module.modules():
        if type(part).__name__ == "GroupNorm32":  # named, as other models need no terratorch
            part.__class__ = BF16GroupNorm


def _channels_last(module: nn.Module) -> None:
    """Lay weights out as half-precision kernels want them, but for those that will be packed, which takes longer then."""
    for part in module.modules():
        if not isinstance(part, PackedConv2d):
            for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
                if tensor.ndim == 4:
                    tensor.data = tensor.data.to(memory_format=torch.channels_last)
