"""Drawing a sequence of tokens a tile, one token after another, each seen by those after it.

The loop is tmtool's own. Terratorch's draws from the global generator, recomputes all earlier tokens for each new one, and
continues until all tiles of a batch have ended, so that one tile's tokens may depend on another's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tmtool.models import Sampling
from tmtool.models import _noise as noise
from tmtool.models.terramind._sampling import draw_tokens
from tmtool.models.text import END, PAD, START, SequenceModality

Choose = Callable[[int, Tensor], Tensor]
"""Draws the token of a step: step and logits `(B, V)` float32 to `(B,)` int64."""


def draw_sequence(
    core: Any, modality: SequenceModality, context: Tensor, hidden: Tensor | None, choose: Choose
) -> Tensor:
    """Draw the tokens of `modality` for each tile, `(B, length)` int64: `[S_1]`, the tokens, `[S_2]`, padding.

    `core` is terratorch's encoder-decoder, `context` `(B, N, D)` what its decoder sees of the inputs, but for where
    `hidden` `(B, N)` is true. A sequence may be cut off before its `[S_2]`.
    """
    head = core.decoder_embeddings[modality.name]
    codes = head.pos_emb + head.mod_emb  # (1, length, D)
    layers = [_Layer(block, context, hidden) for block in core.decoder]
    ids = torch.full((len(context), modality.length), PAD, dtype=torch.int64, device=context.device)
    ids[:, 0] = START
    ended = torch.zeros(len(context), dtype=torch.bool, device=context.device)
    for step in range(modality.length - 1):
        y = head.token_emb(ids[:, step, None]) + codes[:, step, None]
        for layer in layers:
            y = layer(y)
        drawn = choose(step, head.forward_logits(core.decoder_norm(y))[:, 0].float())
        ids[:, step + 1] = drawn.masked_fill(ended, PAD)
        ended |= drawn == END
        if ended.all():
            break
    return ids


def chooser(sampling: Sampling, seed: int, name: str, rows: Tensor, cols: Tensor) -> Choose:
    """Return what draws the tokens of modality `name`, for tiles from rows and columns `(B, 1)` int64 in source px."""

    def choose(step: int, logits: Tensor) -> Tensor:
        key = noise.key_of(seed, name, "token", step)

        def gumbel(at: Tensor, codes: Tensor) -> Tensor:
            at = at.to(rows.device)
            return noise.gumbel(key, rows[at], cols[at], codes.to(rows.device), logits.shape[-1]).to(codes.device)

        return draw_tokens(logits, sampling, gumbel)

    return choose


def packed(bodies: Sequence[Sequence[int]], length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return sequences as `(B, length)` int64, padded, and which of their tokens are padding, `(B, length)` bool.

    Their length is fixed, lest the bits of one tile depend on the texts of others.
    """
    tokens = torch.tensor([[*body, *[PAD] * (length - len(body))] for body in bodies], dtype=torch.int64)
    hidden = torch.arange(length) >= torch.tensor([len(body) for body in bodies])[:, None]
    return tokens.to(device), hidden.to(device)


class _Layer:
    """A block of terratorch's decoder that takes one token a call, and keeps the keys and values of those before."""

    def __init__(self, block: Any, context: Tensor, hidden: Tensor | None) -> None:
        self._block = block
        self._before: list[Tensor] = []
        self._key, self._value = _heads(block.cross_attn.kv(block.context_norm(context)), 2, block.cross_attn.num_heads)
        self._visible = None if hidden is None else ~hidden[:, None, None, :]

    def __call__(self, y: Tensor) -> Tensor:
        """Return the block's output for the next token `(B, 1, D)`."""
        block = self._block
        query, *now = _heads(block.self_attn.qkv(block.norm1(y)), 3, block.self_attn.num_heads)
        if self._before:
            now = [torch.cat(parts, dim=2) for parts in zip(self._before, now, strict=True)]
        self._before = now
        y = y + block.self_attn.proj(_attended(query, *now))
        (query,) = _heads(block.cross_attn.q(block.query_norm(y)), 1, block.cross_attn.num_heads)
        y = y + block.cross_attn.proj(_attended(query, self._key, self._value, self._visible))
        return y + block.mlp(block.norm2(y))  # type: ignore[no-any-return]


def _heads(x: Tensor, parts: int, heads: int) -> list[Tensor]:
    """Split `(B, N, parts * D)` into so many tensors `(B, heads, N, D / heads)`."""
    batch, count, width = x.shape
    return list(x.view(batch, count, parts, heads, width // (parts * heads)).permute(2, 0, 3, 1, 4))


def _attended(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None) -> Tensor:
    """Return what attention finds, the heads joined, `(B, N, D)`."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=visible).transpose(1, 2).flatten(2)
