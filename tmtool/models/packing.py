"""Convolutions in bfloat16 on a CPU whose weights are kept as oneDNN wants them.

Otherwise oneDNN rearranges the weights at every call, a twelfth of a U-Net's step. The bits are the same.
"""

import platform
from typing import Any

import torch
from torch import Tensor, nn

from tmtool.device import Compute


class PackedConv2d(nn.Conv2d):
    """A `nn.Conv2d` that keeps its weight packed for the shape of its last input, and no other copy of it.

    Its output is channels last. It is called by one thread at a time, as it packs anew for another shape.
    """

    _packed_for: tuple[int, ...] | None = None

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = input.to(weight.dtype)  # autocast does not know this function
        if x.shape != self._packed_for:
            weight = self._pack(weight, tuple(x.shape))
        return torch.ops.mkldnn._convolution_pointwise(  # type: ignore[no-any-return]
            x, weight, bias, self.padding, self.stride, self.dilation, self.groups, "none", [], ""
        )

    def _pack(self, weight: Tensor, shape: tuple[int, ...]) -> Tensor:
        plain = weight.to_dense() if weight.is_mkldnn else weight
        pack: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
        packed = pack(plain.to_mkldnn(), self.padding, self.stride, self.dilation, self.groups, shape)
        self.weight, self._packed_for = nn.Parameter(packed, requires_grad=False), shape
        return self.weight


def pack_convolutions(module: nn.Module, compute: Compute) -> None:
    """Have convolutions in bfloat16 pack their weights at their first call, where that is possible."""
    if compute.device != "cpu" or compute.compiled or not can_pack():
        return
    for part in module.modules():
        if type(part) is nn.Conv2d and part.weight.dtype == torch.bfloat16 and _is_plain(part):
            part.__class__ = PackedConv2d


def _is_plain(part: nn.Conv2d) -> bool:
    return part.groups == 1 and part.padding_mode == "zeros" and not isinstance(part.padding, str)


def can_pack() -> bool:
    """Whether torch gives convolutions in bfloat16 to oneDNN here, and has the functions that pack for them.

    On x86 only: elsewhere oneDNN has other kernels, whose gain and bits are not known.
    """
    return bool(
        platform.machine() in ("x86_64", "AMD64")
        and torch._C._get_mkldnn_enabled()
        and hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight")
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
