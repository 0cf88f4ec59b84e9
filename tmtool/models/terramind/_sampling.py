"""Drawing tokens and running the diffusion decoder: the few lines of mathematics that generation consists of."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from tmtool.models import Sampling

_CODES = 1 << 20
"""Codes whose noise is made at once."""


def linear_schedule(steps: int, cells: int) -> list[int]:
    """Return how many cells each decoding step decodes: all of them in equal parts, larger parts first.

    The same numbers as `linear_schedule` of terratorch's `terramind/model/generate.py`.
    """
    parts = np.diff(np.linspace(0, cells, steps + 1, dtype=int))
    return [int(n) for n in sorted(parts, reverse=True) if n > 0]


def draw_tokens(logits: Tensor, sampling: Sampling, gumbel: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Draw one code a cell from `logits` `(N, V)` float32; returns `(N,)` int64.

    Top-k, then top-p of what is left, both on untempered logits as terratorch does; then the largest of
    `logits / temperature + gumbel(cells, codes)`, which draws from their softmax. Noise is asked for surviving codes
    only, and for few others: `gumbel` gets numbers of cells `(n,)`, which keep about as many, and their codes `(n, K)`.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    values, codes = _surviving(logits, sampling)
    counts, order = values.isfinite().sum(dim=-1).sort(descending=True)
    drawn = torch.empty_like(order)
    for group, kept in _groups(counts.tolist()):  # the only wait for the device
        cells = order[group]
        found = codes[:, :kept][cells]
        scores = values[:, :kept][cells].double() / sampling.temperature + gumbel(cells, found)
        drawn[cells] = found.gather(1, scores.argmax(dim=-1, keepdim=True))[:, 0]
    return drawn


def _surviving(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Return logits, -inf after those that pass the filters, and their codes; both `(N, V)`."""
    if not sampling.top_k and not sampling.top_p:
        return logits, torch.arange(logits.shape[1], device=logits.device).expand_as(logits)
    values, codes = _descending(logits)
    if sampling.top_k:
        least = values[:, min(sampling.top_k, values.shape[1]) - 1, None]
        values = values.masked_fill(values < least, -torch.inf)
    if sampling.top_p:
        before = torch.softmax(values, dim=-1).cumsum(dim=-1).roll(1, dims=-1)
        before[:, 0].zero_()  # the likeliest code always survives
        values = values.masked_fill(before > sampling.top_p, -torch.inf)
    return values, codes


def _descending(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a stable descending `torch.sort` of the last of two axes does: values and indices.

    On a CPU numpy's sort of plain integers takes a fraction of its time: each holds a value's bits and its index.
    """
    if logits.device.type != "cpu":
        return torch.sort(logits, dim=-1, descending=True, stable=True)
    bits = (logits + 0.0).view(torch.int32)  # -0 and 0 are equal
    rank = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # floats below 0 are ordered against their bits
    keys = (~rank).long()
    keys <<= 32
    keys |= torch.arange(logits.shape[1])
    keys.numpy().sort(axis=-1)
    keys &= 0xFFFFFFFF
    return logits.gather(1, keys), keys


def _groups(counts: Sequence[int]) -> Iterator[tuple[slice, int]]:
    """Yield runs of cells that keep about as many codes, and how many that is at most; `counts` descend."""
    start = 0
    while start < len(counts):
        kept = max(counts[start], 1)
        most = start + max(_CODES // kept, 1)
        stop = next((i for i in range(start, min(most, len(counts))) if 2 * counts[i] < kept), min(most, len(counts)))
        yield slice(start, stop), kept
        start = stop


def ddim(
    predict: Callable[[Tensor, int], Tensor], start: Tensor, alphas_cumprod: Tensor, timesteps: int, clip: float | None
) -> Tensor:
    """Run deterministic DDIM (Song et al. 2021, eta 0) from noise `start` `(B, C, H, W)` float32 to an estimate of x0.

    `predict(x, t)` estimates x0. Timesteps are "trailing", as terratorch's pipeline takes them. `clip` clamps each
    estimate to +-clip; the direction to the next step still follows the unclamped one, as in terratorch's scheduler.
    """
    train_steps = len(alphas_cumprod)
    stride = train_steps // timesteps
    x = start
    for t in range(train_steps - 1, -1, -stride):
        alpha = alphas_cumprod[t]
        alpha_next = alphas_cumprod[t - stride] if t >= stride else torch.ones_like(alpha)
        x0 = predict(x, t).float()
        noise = (x - alpha.sqrt() * x0) / (1 - alpha).sqrt()
        if clip is not None:
            x0 = x0.clamp(-clip, clip)
        x = alpha_next.sqrt() * x0 + (1 - alpha_next).sqrt() * noise
    return x


_LAST = 0.004
"""Share of the training's timesteps at which DPM-Solver ends: there the image is nearly free of noise."""


def quadratic(train_steps: int, timesteps: int) -> list[int]:
    """Return timesteps from the noisiest to nearly none, ever closer together; fewer where neighbours would be the same."""
    last = round(_LAST * train_steps)
    share = np.linspace(1, 0, timesteps) if timesteps > 1 else np.ones(1)
    spaced = last + (train_steps - 1 - last) * share**2
    return sorted({int(t) for t in spaced.round()}, reverse=True)


def dpm(
    predict: Callable[[Tensor, int], Tensor], start: Tensor, alphas_cumprod: Tensor, timesteps: int, clip: float | None
) -> Tensor:
    """Run DPM-Solver++ (2M, Lu et al. 2022, data prediction) from noise `start` `(B, C, H, W)` float32 to an estimate of x0.

    `predict(x, t)` estimates x0, at quadratic timesteps; `clip` clamps each estimate to +-clip. The steps are those of diffusers'
    `DPMSolverMultistepScheduler` (order 2, midpoint, lower order at the end, end at no noise), except where the first timestep
    is pure noise: there diffusers puts 2**-24 for its share of signal, here the share is 0 and its limit is taken.
    """
    x, before = start, None
    steps = quadratic(len(alphas_cumprod), timesteps)
    alpha, sigma = alphas_cumprod.double().sqrt(), (1 - alphas_cumprod.double()).sqrt()
    snr = alpha.log() - sigma.log()  # half the logarithm of the signal-to-noise ratio
    for i, t in enumerate(steps):
        x0 = predict(x, t).float()
        if clip is not None:
            x0 = x0.clamp(-clip, clip)
        if i == len(steps) - 1:
            return x0
        to = steps[i + 1]
        step = snr[to] - snr[t]
        estimate = x0
        if before is not None:
            # the step over twice the step before: nothing where that came from pure noise
            slope = step / (2 * (snr[t] - snr[steps[i - 1]]))
            estimate = x0 + slope.float() * (x0 - before)
        x = (sigma[to] / sigma[t]).float() * x - (alpha[to] * torch.expm1(-step)).float() * estimate
        before = x0
    return x


SOLVERS = {"ddim": ddim, "dpm": dpm}
"""The solvers by their names."""
