"""Convolutions whose weights are packed: the very bits of torch's own, and memory for one copy."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import narrow
from tmtool.device import Compute
from tmtool.models import packing, parts
from tmtool.models.packing import PackedConv2d, pack_convolutions

BF16 = Compute("cpu", "bf16")
needs_packing = pytest.mark.skipif(
    not packing.can_pack(), reason="torch gives no convolutions in bfloat16 to oneDNN here, or cannot pack for them"
)


def conv(*args: Any, **kwargs: Any) -> nn.Conv2d:
    return nn.Conv2d(*args, **kwargs).to(torch.bfloat16).requires_grad_(False)


@torch.inference_mode()
def outputs_of(module: Any, *inputs: Any) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return module(*inputs)  # type: ignore[no-any-return]


@needs_packing
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("channels", "options"),
    [
        ((64, 96), {"kernel_size": 3, "padding": 1}),
        ((64, 96), {"kernel_size": 1}),
        ((64, 64), {"kernel_size": 3, "padding": 1, "stride": 2}),
        ((37, 5), {"kernel_size": 3, "padding": (0, 1), "dilation": 2}),
    ],
)
def test_same_bits_for_each_shape(channels: tuple[int, int], options: dict[str, Any], bias: bool) -> None:
    torch.manual_seed(0)
    plain = conv(*channels, bias=bias, **options)
    packed = deepcopy(plain)
    plain.to(memory_format=torch.channels_last)
    pack_convolutions(packed, BF16)
    for shape in [(1, 32, 32), (2, 32, 32), (1, 8, 20), (1, 32, 32)]:
        x = torch.randn(shape[0], channels[0], *shape[1:])  # float32, which autocast casts
        for given in (x, x.bfloat16().to(memory_format=torch.channels_last)):
            expected, found = outputs_of(plain, given), outputs_of(packed, given)
            assert found.dtype == torch.bfloat16
            assert found.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(found, expected)
    # the packed weight took the place of the plain one, and nothing of it was lost
    assert packed.weight.is_mkldnn
    assert torch.equal(packed.weight.to_dense(), plain.weight)


@needs_packing
def test_same_bits_of_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = []
    for possible in (True, False):
        monkeypatch.setattr(packing, "can_pack", lambda possible=possible: possible)
        network = narrow._unet(in_channels=2, out_channels=2, cond_channels=5)
        parts.randomise(network, "unet")
        parts.place(network, BF16)
        assert any(isinstance(part, PackedConv2d) for part in network.modules()) is possible
        for part in network.modules():  # of a 1 x 1 kernel too, or torch takes another function and other bits
            if type(part) is nn.Conv2d:
                assert part.weight.stride() == part.weight.to(memory_format=torch.channels_last).stride()
        networks.append(network)
    torch.manual_seed(0)
    for tiles, size in [(1, 64), (2, 64), (1, 96)]:
        x, condition = torch.randn(tiles, 2, size, size), torch.randn(tiles, 5, size // 16, size // 16)
        found, expected = (outputs_of(network, x, torch.full((1,), 500), condition) for network in networks)
        assert torch.equal(found, expected)
        assert expected.std() > 0


@pytest.mark.parametrize(
    ("part", "compute"),
    [
        (nn.Conv2d(4, 4, 3), Compute("cpu", "fp32")),
        (conv(4, 4, 3), Compute("cpu", "bf16", compiled=True)),
        (conv(4, 4, 3), Compute("cuda:0", "bf16")),
        (conv(4, 4, 3, groups=4), BF16),
        (conv(4, 4, 3, padding="same"), BF16),
        (conv(4, 4, 3, padding=1, padding_mode="reflect"), BF16),
        (nn.Conv1d(4, 4, 3).to(torch.bfloat16), BF16),
    ],
)
def test_all_else_stays_as_it_was(part: nn.Module, compute: Compute, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "can_pack", lambda: True)
    pack_convolutions(part, compute)
    assert not isinstance(part, PackedConv2d)


def test_without_onednn_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_get_mkldnn_enabled", lambda: False)
    part = conv(4, 4, 3)
    pack_convolutions(part, BF16)
    assert type(part) is nn.Conv2d
