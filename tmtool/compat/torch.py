"""torch: what oneDNN computes if it is asked by name, and how torch's compiler fails."""

import platform
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor


def has_linear() -> bool:
    """Whether `linear` works here.

    - Why: torch gives linear layers in float32 to MKL, which takes more than twice as long on an AMD EPYC.
    - Uses: `torch.ops.mkldnn._linear_pointwise`. On x86 only: elsewhere oneDNN has other kernels, whose gain and bits are
      not known.
    - Without it: `torch.nn.Linear`. In bfloat16 the bits are the same but for a single row; in float32 results differ by
      its rounding.
    """
    return bool(
        platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def can_pack() -> bool:
    """Whether torch gives products in bfloat16 to oneDNN here, and the functions below work, which pack for it.

    - Why: oneDNN would rearrange weights at every call: a twelfth of a U-Net's step, a tenth of a linear layer's time.
    - Uses: `_linear_pointwise`, `_reorder_linear_weight`, `_convolution_pointwise` and `_is_mkldnn_bf16_supported` of
      `torch.ops.mkldnn`, and `torch._C._nn.mkldnn_reorder_conv2d_weight`. It takes all of them or none.
    - Without it: `torch.nn.Conv2d` and `torch.nn.Linear`, with the same bits but for a linear layer's single row.
    """
    return bool(
        has_linear()
        and hasattr(_nn(), "mkldnn_reorder_conv2d_weight")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `(..., out)` of `x` `(..., in)`, by oneDNN; `weight` may be packed. See `has_linear`."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


def pack_linear(weight: Tensor, rows: int) -> Tensor:
    """Return a linear layer's weight packed for inputs of so many rows. See `can_pack`."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, rows)  # type: ignore[no-any-return]


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: Any, stride: Any, dilation: Any, groups: int
) -> Tensor:
    """Return the convolution of `x` `(B, C, H, W)` with a packed weight, channels last. See `can_pack`."""
    return torch.ops.mkldnn._convolution_pointwise(  # type: ignore[no-any-return]
        x, weight, bias, padding, stride, dilation, groups, "none", [], ""
    )


def pack_convolution(
    weight: Tensor, padding: Any, stride: Any, dilation: Any, groups: int, shape: Sequence[int]
) -> Tensor:
    """Return a convolution's plain weight packed for inputs of a shape `(B, C, H, W)`. See `can_pack`."""
    pack: Any = _nn().mkldnn_reorder_conv2d_weight
    return pack(weight.to_mkldnn(), padding, stride, dilation, groups, shape)  # type: ignore[no-any-return]


def counted_operations() -> dict[Any, Callable[..., int]]:
    """Return the operations of what oneDNN is asked for by name, for `custom_mapping` of torch's `FlopCounterMode`.

    - Why: the counter does not know these functions, and would count a model's linear layers and convolutions as nothing.
    - Uses: `_linear_pointwise` and `_convolution_pointwise` of `torch.ops.mkldnn`, as above.
    - Without them: nothing calls them, and nothing is to be counted.
    """
    from torch.utils.flop_counter import conv_flop_count

    def convolution(x: Any, w: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        return int(conv_flop_count(x, w, out_shape))

    def linear(x: Any, w: Any, *_: Any, **__: Any) -> int:
        return 2 * int(prod(x)) * int(w[0])

    formulas = {"_convolution_pointwise": convolution, "_linear_pointwise": linear}
    own: Any = torch.ops.mkldnn
    return {getattr(own, name): formula for name, formula in formulas.items() if hasattr(own, name)}


def _nn() -> Any:
    return getattr(getattr(torch, "_C", None), "_nn", None)


def compiler_errors() -> tuple[type[Exception], ...]:
    """Return what `torch.compile` raises when it cannot compile a function, for `except`.

    - Why: the cause is the machine, such as a missing C++ compiler, and a one-line message can name the cure.
    - Uses: `TorchDynamoException` of `torch._dynamo.exc`, which all of them derive from.
    - Without it: nothing is caught, and the error keeps its traceback. Not its base, `RuntimeError`: that is also how
      a device says that its memory is exhausted.
    """
    try:
        from torch._dynamo.exc import TorchDynamoException
    except ImportError:
        return ()
    return (TorchDynamoException,)
