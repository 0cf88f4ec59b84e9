"""Drawing tokens and the diffusion loop, against terratorch's own functions."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from terratorch.models.backbones.terramind.model import generate
from terratorch.models.backbones.terramind.tokenizer.scheduling import DDIMScheduler

from tmtool.errors import UsageError
from tmtool.models import Sampling
from tmtool.models import _noise as noise
from tmtool.models.terramind._sampling import _descending, ddim, dpm, draw_tokens, linear_schedule, quadratic


def no_noise(cells: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    return torch.zeros(codes.shape, dtype=torch.float64)


@pytest.mark.parametrize(("steps", "cells"), [(1, 256), (2, 256), (3, 196), (7, 256), (300, 256)])
def test_schedule_is_terratorchs(steps: int, cells: int) -> None:
    assert linear_schedule(steps, cells) == generate.linear_schedule(steps, cells).tolist()
    assert sum(linear_schedule(steps, cells)) == cells


@pytest.mark.parametrize(("top_p", "top_k"), [(0.8, 0), (0.0, 5), (0.5, 20), (0.0, 0), (1.0, 0), (0.01, 0)])
def test_surviving_codes_are_terratorchs(top_p: float, top_k: int) -> None:
    logits = torch.randn(50, 200, generator=torch.Generator().manual_seed(1)) * 3
    theirs = generate.GenerationSampler.top_k_top_p_filtering(None, logits.clone(), top_k, top_p).isfinite()
    seen = torch.zeros_like(theirs)
    generator = torch.Generator().manual_seed(2)

    def lively(cells: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return torch.rand(codes.shape, generator=generator, dtype=torch.float64) * 1e6

    for _ in range(2500):
        drawn = draw_tokens(logits, Sampling(top_p=top_p, top_k=top_k), lively)
        seen[torch.arange(50), drawn] = True
    assert not (seen & ~theirs).any()
    assert (seen == theirs).float().mean() > 0.999


def test_temperature_zero_takes_the_likeliest() -> None:
    logits = torch.randn(50, 200)
    expected = logits.argmax(dim=1)
    assert torch.equal(draw_tokens(logits, Sampling(temperature=0), no_noise), expected)
    assert torch.equal(draw_tokens(logits, Sampling(temperature=1), no_noise), expected)


def test_noise_is_asked_for_surviving_codes_only() -> None:
    asked: list[torch.Tensor] = []
    logits = torch.zeros(4, 1000)
    logits[:, 7] = 20

    def note(cells: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        asked.append(codes)
        return torch.zeros(codes.shape, dtype=torch.float64)

    assert draw_tokens(logits, Sampling(), note).tolist() == [7] * 4
    assert asked[0].shape == (4, 1)


def lively_logits(cells: int, vocabulary: int) -> torch.Tensor:
    """Logits with ties, of which some cells' are nearly flat and some cells' have one peak."""
    logits = torch.randn(cells, vocabulary, generator=torch.Generator().manual_seed(4))
    return (logits * torch.linspace(0.1, 9, cells)[:, None]).bfloat16().float()


def test_noise_is_made_for_few_codes_that_do_not_survive() -> None:
    logits = lively_logits(100, 3000)
    asked = []

    def note(cells: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        asked.append(codes.numel())
        return torch.zeros(codes.shape, dtype=torch.float64)

    draw_tokens(logits, Sampling(), note)
    likeliest = torch.softmax(logits, dim=-1).sort(descending=True).values
    surviving = int((likeliest.cumsum(dim=-1).roll(1, dims=-1)[:, 1:] <= 0.8).sum()) + len(logits)
    assert surviving <= sum(asked) <= 2 * surviving + len(logits)


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(top_k=50), Sampling(top_p=0), Sampling(top_p=0.95, temperature=0.5)]
)
def test_a_cell_draws_the_same_alone_and_among_others(sampling: Sampling) -> None:
    logits = lively_logits(70, 3000)
    rows = torch.arange(70)[:, None]

    def draw(which: torch.Tensor) -> torch.Tensor:
        def gumbel(cells: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
            return noise.gumbel((1, 2), rows[which][cells], rows[which][cells], codes, 3000)

        return draw_tokens(logits[which], sampling, gumbel)

    together = draw(torch.arange(70))
    assert torch.equal(together, torch.cat([draw(torch.tensor([i])) for i in range(70)]))
    assert torch.equal(together.flip(0), draw(torch.arange(70).flip(0)))


def test_sorting_is_torchs_stable_one() -> None:
    logits = lively_logits(20, 1000)
    logits[:, ::7], logits[:, 3::11], logits[:, 5::13] = 0.0, -0.0, -torch.inf
    values, codes = _descending(logits)
    expected = torch.sort(logits, dim=-1, descending=True, stable=True)
    assert torch.equal(values, expected.values)
    assert torch.equal(codes, expected.indices)


@pytest.mark.parametrize("timesteps", [1, 4, 10, 300])
@pytest.mark.parametrize("clip", [None, 1.0, 2.5])
def test_ddim_is_terratorchs_scheduler(timesteps: int, clip: float | None) -> None:
    scheduler = DDIMScheduler(
        beta_schedule="linear",
        prediction_type="sample",
        thresholding=False,
        clip_sample=clip is not None,
        clip_sample_range=clip or 1.0,
    )
    scheduler.set_timesteps(timesteps, mode="trailing")
    start = torch.randn(2, 3, 8, 8)

    def predict(x: torch.Tensor, t: int) -> torch.Tensor:
        return torch.tanh(x) * 2 + t / 1000

    x = start
    for t in scheduler.timesteps:
        x = scheduler.step(predict(x, int(t)), t, x).prev_sample
    mine = ddim(predict, start, scheduler.alphas_cumprod, timesteps, clip)
    torch.testing.assert_close(mine, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("timesteps", [1, 2, 4, 10, 40])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("terminal", [False, True])
def test_dpm_is_diffusers_solver(timesteps: int, clip: float | None, terminal: bool) -> None:
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="linear",
        prediction_type="sample",
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
        rescale_betas_zero_snr=terminal,
    )
    asked = quadratic(1000, timesteps)
    scheduler.set_timesteps(timesteps=asked)
    start = torch.randn(2, 3, 8, 8)

    def predict(x: torch.Tensor, t: int) -> torch.Tensor:
        return torch.tanh(x) * 2 + t / 1000

    def clipped(x0: torch.Tensor) -> torch.Tensor:
        return x0 if clip is None else x0.clamp(-clip, clip)

    x = start
    for t in scheduler.timesteps:
        x = scheduler.step(clipped(predict(x, int(t))), t, x).prev_sample
    mine = dpm(predict, start, scheduler.alphas_cumprod, timesteps, clip)
    torch.testing.assert_close(mine, x, rtol=1e-4, atol=1e-4)


def test_pure_noise_is_no_signal() -> None:
    """diffusers gives it a share of 2**-24; here the first estimate alone decides."""
    alphas = torch.cat([torch.linspace(0.999, 0.01, 999), torch.zeros(1)])
    found = dpm(lambda x, t: torch.full_like(x, t / 1000), torch.randn(1, 1, 4, 4), alphas, 4, None)
    assert torch.equal(found, torch.full((1, 1, 4, 4), quadratic(1000, 4)[-1] / 1000))
    seen = []
    dpm(lambda x, t: seen.append(x) or x * 0, torch.ones(1, 1, 1, 1), alphas, 3, None)
    assert all(torch.isfinite(x).all() for x in seen)


def test_quadratic_timesteps() -> None:
    assert quadratic(1000, 4) == [999, 446, 115, 4]
    assert quadratic(1000, 1) == [999]
    assert quadratic(1000, 500)[-3:] == [6, 5, 4] or len(quadratic(1000, 500)) < 500


@pytest.mark.parametrize(
    "bad",
    [{"top_p": 1.5}, {"top_k": -1}, {"temperature": -1}, {"decoding_steps": 0}, {"timesteps": 0}, {"clip_sigma": 0}],
)
def test_values_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"--{next(iter(bad)).replace('_', '-')}"):
        Sampling(**bad).check()  # type: ignore[arg-type]
