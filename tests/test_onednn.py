"""What oneDNN is asked for by name: in bfloat16 the very bits of torch's own, and memory for one copy of a weight."""

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import narrow
from tmtool.compat import torch as compat
from tmtool.models import _onednn as onednn
from tmtool.models import _parts as parts
from tmtool.models._onednn import OneDNNLinear, PackedConv2d, use_onednn
from tmtool.models.device import Compute, cpu_flags

BF16 = Compute("cpu", "bf16")
needs_packing = pytest.mark.skipif(
    not onednn.can_pack(), reason="torch gives no products in bfloat16 to oneDNN here, or cannot pack for them"
)
needs_linear = pytest.mark.skipif(not onednn.has_linear(), reason="torch has no linear layers of oneDNN here")


def assert_same(found: Tensor, expected: Tensor, bits: bool = True, roundings: int = 1) -> None:
    """The same bits; with AMX, where nobody has looked, and where torch may use a function of its own, some roundings apart."""
    assert found.dtype == expected.dtype
    if bits and "amx_bf16" not in cpu_flags():
        assert torch.equal(found, expected)
    else:
        error = roundings * 2**-7
        torch.testing.assert_close(found, expected, rtol=error, atol=error * float(expected.abs().max()))


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
    use_onednn(packed, BF16)
    for shape in [(1, 32, 32), (2, 32, 32), (1, 8, 20), (1, 32, 32)]:
        x = torch.randn(shape[0], channels[0], *shape[1:])  # float32, which autocast casts
        for given in (x, x.bfloat16().to(memory_format=torch.channels_last)):
            expected, found = outputs_of(plain, given), outputs_of(packed, given)
            assert found.dtype == torch.bfloat16
            assert found.is_contiguous(memory_format=torch.channels_last)
            assert_same(found, expected)
    # the packed weight took the place of the plain one, and nothing of it was lost
    assert packed.weight.is_mkldnn
    assert torch.equal(packed.weight.to_dense(), plain.weight)


def inputs(width: int) -> list[Tensor]:
    """Float32, which autocast casts: of other numbers of rows, two dimensions, parts of a larger tensor."""
    torch.manual_seed(1)
    whole = torch.randn(2, 60, 3 * width)
    return [torch.randn(1, width), torch.randn(256, width), whole[:, ::2, width : 2 * width], whole.chunk(3, -1)[2]]


@needs_packing
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("width", "out"), [(64, 96), (37, 5), (768, 3072)])
def test_same_bits_of_linear_layers(width: int, out: int, bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(width, out, bias=bias).to(torch.bfloat16).requires_grad_(False)
    packed = deepcopy(plain)
    use_onednn(packed, BF16)
    assert isinstance(packed, OneDNNLinear)
    for x in inputs(width):
        for given in (x, x.bfloat16()):
            expected, found = outputs_of(plain, given), outputs_of(packed, given)
            assert found.dtype == torch.bfloat16
            assert_same(found, expected, bits=len(x) > 1)
    assert packed.weight.is_mkldnn
    assert torch.equal(packed.weight.to_dense(), plain.weight)


@needs_linear
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_in_float32_are_float32(bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(768, 1000, bias=bias).requires_grad_(False)
    own = deepcopy(plain)
    where = own.weight.data_ptr()
    use_onednn(own, Compute("cpu", "fp32"))
    assert isinstance(own, OneDNNLinear)
    assert own.weight.data_ptr() == where  # in the mapped file, that is
    exact = deepcopy(plain).double()
    with torch.inference_mode():
        for x in inputs(768):
            expected = exact(x.double())
            assert float((own(x) - expected).abs().max()) < 2e-6 * float(expected.abs().max())


@needs_linear
def test_torchs_own_functions_take_what_they_are_given() -> None:
    """Packed too, in float32: on CPUs where bfloat16 is not packed nothing else would tell another torch by it."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 8, 20, 20), torch.randn(6, 8, 3, 3), torch.randn(6)
    options: Any = ((0, 1), (1, 2), (2, 1), 1)
    packed = compat.pack_convolution(weight, *options, tuple(x.shape))
    padding, stride, dilation, groups = options
    expected = nn.functional.conv2d(x, weight, bias, stride, padding, dilation, groups)
    torch.testing.assert_close(compat.convolution(x, packed, bias, *options), expected, rtol=1e-5, atol=1e-4)
    rows, matrix = torch.randn(5, 7, 64), torch.randn(6, 64)
    expected = nn.functional.linear(rows, matrix, bias)
    torch.testing.assert_close(compat.linear(rows, matrix, bias), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(
        compat.linear(rows, compat.pack_linear(matrix, 35), bias), expected, rtol=1e-5, atol=1e-4
    )


@needs_packing
def test_a_shared_weight_is_not_doubled() -> None:
    module = nn.Sequential(nn.Embedding(9, 16), nn.Linear(16, 9)).to(torch.bfloat16).requires_grad_(False)
    module[1].weight = module[0].weight
    expected = outputs_of(module, torch.arange(9))
    use_onednn(module, BF16)
    assert isinstance(module[1], OneDNNLinear)
    assert module[1].weight is module[0].weight
    assert_same(outputs_of(module, torch.arange(9)), expected)


@needs_packing
def test_what_stays_float32_beside_bfloat16_is_left_to_autocast() -> None:
    part = nn.Linear(8, 8)
    use_onednn(part, BF16)
    assert type(part) is nn.Linear


@needs_packing
def test_same_bits_of_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = []
    for possible in (True, False):
        monkeypatch.setattr(onednn, "can_pack", lambda possible=possible: possible)
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
        assert_same(found, expected, roundings=8)
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
        (nn.Linear(4, 4), Compute("cuda:0", "fp32")),
        (nn.Linear(4, 4), Compute("cpu", "fp32", compiled=True)),
        (nn.Linear(4, 4).to(torch.bfloat16), Compute("cpu", "bf16", compiled=True)),
    ],
)
def test_all_else_stays_as_it_was(part: nn.Module, compute: Compute, monkeypatch: pytest.MonkeyPatch) -> None:
    for possible in ("can_pack", "has_linear"):
        monkeypatch.setattr(onednn, possible, lambda: True)
    use_onednn(part, compute)
    assert not isinstance(part, PackedConv2d | OneDNNLinear)


@pytest.mark.parametrize(
    ("part", "compute"),
    [(conv(4, 4, 3), BF16), (nn.Linear(4, 4).to(torch.bfloat16), BF16), (nn.Linear(4, 4), Compute("cpu", "fp32"))],
)
def test_without_onednn_nothing_changes(part: nn.Module, compute: Compute, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    kind = type(part)
    use_onednn(part, compute)
    assert type(part) is kind


OPS = {"_linear_pointwise", "_reorder_linear_weight", "_convolution_pointwise", "_is_mkldnn_bf16_supported"}
PACKS_CONVOLUTIONS = "mkldnn_reorder_conv2d_weight"


def take_from_torch(monkeypatch: pytest.MonkeyPatch, name: str, **instead: Any) -> None:
    """Leave torch as it would be without one of the functions that are its own."""
    if name == PACKS_CONVOLUTIONS:
        monkeypatch.delattr(torch._C._nn, name)
    left = {op: getattr(torch.ops.mkldnn, op) for op in OPS} | instead
    left.pop(name, None)
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(**left))


@needs_linear
@pytest.mark.parametrize("name", ["nothing", PACKS_CONVOLUTIONS, *sorted(OPS)])
def test_it_packs_with_all_of_torchs_own_functions_or_not_at_all(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    supported = {"_is_mkldnn_bf16_supported": lambda: True}  # whatever this CPU can do
    take_from_torch(monkeypatch, name, **supported)
    assert compat.can_pack() is (name == "nothing")
    assert compat.has_linear() is (name != "_linear_pointwise")


@pytest.mark.parametrize(
    ("precision", "name"),
    [
        pytest.param("fp32", "_linear_pointwise", marks=needs_linear),
        pytest.param("bf16", "_linear_pointwise", marks=needs_packing),
        pytest.param("bf16", "_reorder_linear_weight", marks=needs_packing),
        pytest.param("bf16", "_convolution_pointwise", marks=needs_packing),
        pytest.param("bf16", "_is_mkldnn_bf16_supported", marks=needs_packing),
        pytest.param("bf16", "mkldnn_reorder_conv2d_weight", marks=needs_packing),
    ],
)
def test_without_one_of_torchs_own_functions_its_layers_compute_the_same(
    monkeypatch: pytest.MonkeyPatch, precision: str, name: str
) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(2), nn.Linear(64, 32))
    packed, x, compute = deepcopy(plain), torch.randn(2, 8, 8, 8), Compute("cpu", precision)
    parts.place(packed, compute)
    assert isinstance(packed[3], OneDNNLinear)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        expected = packed(x)
        take_from_torch(monkeypatch, name)
        parts.place(plain, compute)
        found = plain(x)
    assert [type(part) for part in plain] == [nn.Conv2d, nn.ReLU, nn.Flatten, nn.Linear]
    if precision == "bf16":
        assert_same(found, expected, bits=False)  # for so few channels some CPUs have several kernels
    else:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0
