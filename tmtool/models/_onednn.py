"""Layers that are faster on an x86 CPU if oneDNN is called directly, or if weights are packed in its own layout.

In bfloat16 it would rearrange the weights at every call: a twelfth of a U-Net's step, a tenth of a linear layer's time. The
bits are the same, but for a linear layer's single row, which torch may multiply by a function of its own. In float32 torch
gives linear layers to MKL, which takes more than twice as long on the AMD EPYC this was measured on; the results differ by
float32's rounding.
"""

from collections import Counter

import torch
from torch import Tensor, nn

from tmtool.compat.torch import can_pack, convolution, has_linear, linear, pack_convolution, pack_linear
from tmtool.models.device import Compute

_ROWS = 256
"""Rows that linear weights are packed for: a tile's patches. Others work as well; without a number packing takes seven times longer."""


class PackedConv2d(nn.Conv2d):
    """A `nn.Conv2d` that keeps its weight packed for the shape of its last input, and no other copy of it.

    Its output is channels last. Only one thread at a time may call it, as an input of another shape makes it pack the weight again.
    """

    _packed_for: tuple[int, ...] | None = None

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = input.to(weight.dtype)  # autocast does not know this function
        if x.shape != self._packed_for:
            weight = self._pack(weight, tuple(x.shape))
        return convolution(x, weight, bias, self.padding, self.stride, self.dilation, self.groups)

    def _pack(self, weight: Tensor, shape: tuple[int, ...]) -> Tensor:
        plain = weight.to_dense() if weight.is_mkldnn else weight
        packed = pack_convolution(plain, self.padding, self.stride, self.dilation, self.groups, shape)
        self.weight, self._packed_for = nn.Parameter(packed, requires_grad=False), shape
        return self.weight


class OneDNNLinear(nn.Linear):
    """A `nn.Linear` that oneDNN computes, with a weight that may be packed."""

    def forward(self, input: Tensor) -> Tensor:
        """Return `(..., out)` of `(..., in)`, in the weight's dtype."""
        x = input.to(self.weight.dtype)  # autocast does not know this function
        return linear(x, self.weight, self.bias)


def use_onednn(module: nn.Module, compute: Compute) -> None:
    """Have oneDNN compute linear layers, and in bfloat16 pack weights: a convolution's at its first call, a linear's now.

    Nothing changes where that is not possible. A weight that several parts share is left as it is.
    """
    if compute.device != "cpu" or compute.compiled:
        return
    if compute.precision == "fp32" and has_linear():
        for part in module.modules():
            if type(part) is nn.Linear:
                part.__class__ = OneDNNLinear
    if compute.precision == "bf16" and can_pack():
        owners = Counter(id(p) for part in module.modules() for p in part.parameters(recurse=False))
        for part in module.modules():
            if type(part) is nn.Conv2d and part.weight.dtype == torch.bfloat16 and _is_plain(part):
                part.__class__ = PackedConv2d
            elif type(part) is nn.Linear and part.weight.dtype == torch.bfloat16:
                part.__class__ = OneDNNLinear
                if owners[id(part.weight)] == 1:
                    part.weight = nn.Parameter(pack_linear(part.weight.data, _ROWS), requires_grad=False)


def _is_plain(part: nn.Conv2d) -> bool:
    return part.groups == 1 and part.padding_mode == "zeros" and not isinstance(part.padding, str)
