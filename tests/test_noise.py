"""Noise is a function of place, and of nothing else."""

import numpy as np
import torch

from tmtool.models import _noise as noise

KEY = noise.key_of(0, "S1GRD", "diffusion")


def windows(*origins: tuple[int, int], channels: int = 2, size: int = 64) -> torch.Tensor:
    rows, cols = (torch.tensor(v) for v in zip(*origins, strict=True))
    return noise.normal(KEY, rows, cols, channels, size, size)


def test_philox_gives_the_published_vectors() -> None:
    """Known answers of Random123's kat_vectors for philox4x32 with 10 rounds."""
    word = 0xFFFFFFFF
    cases = [
        ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((word, word), (word,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    for key, counter, expected in cases:
        words = noise.philox(key, tuple(torch.tensor([c]) for c in counter))  # type: ignore[arg-type]
        assert tuple(int(w) for w in words) == expected


def test_overlapping_windows_see_the_same_noise() -> None:
    a, b = windows((-8, -8)), windows((24, 8))
    torch.testing.assert_close(a[0, :, 32:, 16:], b[0, :, :32, :48], rtol=0, atol=0)
    together = windows((24, 8), (-8, -8))
    assert torch.equal(together[0], b[0])
    assert torch.equal(together[1], a[0])


def test_channels_do_not_depend_on_how_many_there_are() -> None:
    assert torch.equal(windows((0, 0), channels=12)[:, :5], windows((0, 0), channels=5))


def test_normal_noise_is_standard_normal_and_uncorrelated() -> None:
    x = windows((0, 0), channels=12, size=256)[0].double().numpy()
    assert abs(x.mean()) < 0.005
    assert abs(x.std() - 1) < 0.005
    assert np.abs(np.corrcoef(x.reshape(12, -1)) - np.eye(12)).max() < 0.02
    assert abs((x[:, 1:] * x[:, :-1]).mean()) < 0.005
    assert abs((np.abs(x) > 1.96).mean() - 0.05) < 0.002


def test_streams_differ_by_every_part_of_the_key() -> None:
    keys = {
        noise.key_of(*k)
        for k in [
            (0, "A", "x", 0),
            (1, "A", "x", 0),
            (-1, "A", "x", 0),
            (0, "B", "x", 0),
            (0, "A", "y", 0),
            (0, "A", "x", 1),
        ]
    }
    assert len(keys) == 6


def test_gumbel_maximum_draws_from_the_softmax() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    cells = torch.arange(40_000)[:, None]
    g = noise.gumbel(KEY, cells, torch.zeros_like(cells), torch.arange(4).expand(40_000, 4), 4)
    drawn = torch.bincount((logits + g).argmax(dim=1), minlength=4) / 40_000
    np.testing.assert_allclose(drawn.numpy(), [0.5, 0.3, 0.15, 0.05], atol=0.01)


def test_order_is_a_number_a_cell() -> None:
    rows, cols = torch.meshgrid(torch.arange(-2, 60), torch.arange(50), indexing="ij")
    numbers = noise.order(KEY, rows, cols)
    assert numbers.unique().numel() == numbers.numel()
    assert torch.equal(noise.order(KEY, rows[5:], cols[5:]), numbers[5:])


def test_gumbel_of_a_code_does_not_depend_on_which_others_are_asked_for() -> None:
    cells = torch.arange(30)[:, None]
    codes = torch.stack([torch.randperm(1000, generator=torch.Generator().manual_seed(i)) for i in range(30)])
    dense = noise.gumbel(KEY, cells, cells + 5, codes, 1000)
    sparse = noise.gumbel(KEY, cells, cells + 5, codes[:, :40], 1000)
    assert torch.equal(dense[:, :40], sparse)
    assert dense.unique().numel() == dense.numel()
