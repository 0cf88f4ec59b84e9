"""Drawing tokens and running the diffusion decoder: the few lines of mathematics that generation consists of."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tmtool.models import Sampling

_CHUNK = 128
"""Cells whose noise is made at once when no filter limits the codes."""


def linear_schedule(steps: int, cells: int) -> list[int]:
    """Return how many cells each decoding step decodes: all of them in equal parts, larger parts first.

    The same numbers as `linear_schedule` of terratorch's `terramind/model/generate.py`.
    """
    parts = np.diff(np.linspace(0, cells, steps + 1, dtype=int))
    return [int(n) for n in sorted(parts, reverse=True) if n > 0]


def draw_tokens(logits: Tensor, sampling: Sampling, gumbel: Callable[[slice, Tensor], Tensor]) -> Tensor:
    """Draw one code a cell from `logits` `(N, V)` float32; returns `(N,)` int64.

    Top-k, then top-p of what is left, both on untempered logits as terratorch does; then the largest of
    `logits / temperature + gumbel(cells, codes)`, which draws from their softmax. Noise is asked for surviving codes
    only: `gumbel` gets a slice of cells and their codes `(n, K)`.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    if not sampling.top_k and not sampling.top_p:
        values, codes = logits, torch.arange(logits.shape[1], device=logits.device).expand_as(logits)
    else:
        values, codes = torch.sort(logits, dim=-1, descending=True, stable=True)
        if sampling.top_k:
            least = values[:, min(sampling.top_k, values.shape[1]) - 1, None]
            values = values.masked_fill(values < least, -torch.inf)
        if sampling.top_p:
            before = torch.softmax(values, dim=-1).cumsum(dim=-1).roll(1, dims=-1)
            before[:, 0] = 0  # the likeliest code always survives
            values = values.masked_fill(before > sampling.top_p, -torch.inf)
        kept = int(values.isfinite().sum(dim=-1).max())
        values, codes = values[:, :kept], codes[:, :kept]
    drawn = []
    for start in range(0, len(values), _CHUNK):
        cells = slice(start, min(start + _CHUNK, len(values)))
        scores = values[cells].double() / sampling.temperature + gumbel(cells, codes[cells])
        drawn.append(codes[cells].gather(1, scores.argmax(dim=-1, keepdim=True))[:, 0])
    return torch.cat(drawn)


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
