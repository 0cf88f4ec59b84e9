"""Randomness as a pure function of (seed, modality, purpose, step, absolute position), never of the order of calls.

Counter-based: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), written in int64
tensor arithmetic, so that the bits are the same on every device. Two tiles that see the same place see the same noise.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

Key = tuple[int, int] | tuple[Tensor, Tensor]
"""The key of a stream, or `(B,)` int64 of the stream of each tile."""


def key_of(seed: int, modality: str, purpose: str, step: int = 0) -> tuple[int, int]:
    """Return the 64-bit Philox key of a stream, as two 32-bit words. `seed` may be any integer."""
    digest = hashlib.blake2b(f"{seed}/{modality}/{purpose}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def keys_of(seeds: Sequence[int], modality: str, purpose: str, step: int, device: torch.device) -> Key:
    """Return the keys of the streams of several seeds, one a tile."""
    if len(set(seeds)) == 1:
        return key_of(seeds[0], modality, purpose, step)
    words = torch.tensor([key_of(seed, modality, purpose, step) for seed in seeds], dtype=torch.int64, device=device)
    return words[:, 0], words[:, 1]


def shaped(key: Key, *shape: int) -> Key:
    """Return the keys of tiles in a shape that broadcasts with what is counted."""
    first, second = key
    if isinstance(first, int) or isinstance(second, int):
        return key
    return first.reshape(shape), second.reshape(shape)


def philox(key: Key, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return four words of 32 random bits for each counter.

    A key of tensors broadcasts with the counter. Its four words are int64 tensors that broadcast; their low 32 bits count
    (negative positions wrap). The result is int64 in 0..2**32-1, of the broadcast shape.
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*(word & _MASK for word in counter))  # type: ignore[no-untyped-call]
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap modulo 2**64: their low and high halves are right all the same
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _uniform(word: Tensor) -> Tensor:
    """Map 32 random bits into the open interval (0, 1), float64."""
    return (word.double() + 0.5) / 2**32


def normal(key: Key, rows: Tensor, cols: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Return standard normal noise `(B, channels, height, width)` float32 for windows of the pixel grid.

    `rows` and `cols`, `(B,)` int64, are the windows' absolute first row and column (may be negative).
    """
    device = rows.device
    row = (rows[:, None] + torch.arange(height, device=device))[:, None, :, None]
    col = (cols[:, None] + torch.arange(width, device=device))[:, None, None, :]
    group = torch.arange(-(-channels // 4), device=device)[None, :, None, None]
    words = [_uniform(w) for w in philox(shaped(key, -1, 1, 1, 1), (row, col, group, torch.zeros_like(group)))]
    pairs = []
    for u, v in (words[:2], words[2:]):  # Box-Muller: two uniforms give two normals
        radius, angle = torch.sqrt(-2 * torch.log(u)), 2 * math.pi * v
        pairs += [radius * torch.cos(angle), radius * torch.sin(angle)]
    noise = torch.stack(pairs, dim=2)  # (B, groups, 4, H, W)
    return noise.flatten(1, 2)[:, :channels].float()


def gumbel(key: Key, rows: Tensor, cols: Tensor, codes: Tensor, vocabulary: int) -> Tensor:
    """Return standard Gumbel noise `(n, K)` float64 for the codes `(n, K)` of cells `rows`, `cols` `(n, 1)`.

    A key of tensors is that of each cell, `(n,)`. A counter serves four codes in a row; where many of the `vocabulary` are asked
    for, all are made and picked from.
    """
    key = shaped(key, -1, 1)
    if 4 * codes.shape[1] >= vocabulary:
        group = torch.arange(-(-vocabulary // 4), device=codes.device)[None]
        table = torch.stack(philox(key, (rows, cols, group, torch.ones_like(rows))), dim=-1).flatten(1)
        word = table.gather(1, codes)
    else:
        words = torch.stack(philox(key, (rows, cols, codes >> 2, torch.ones_like(rows))), dim=-1)
        word = words.gather(2, (codes & 3)[..., None])[..., 0]
    return -torch.log(-torch.log(_uniform(word)))


def order(key: Key, rows: Tensor, cols: Tensor) -> Tensor:
    """Return one random number a cell, int64 in 0..2**32-1: their argsort is the order in which cells are decoded."""
    return philox(shaped(key, -1, 1), (rows, cols, torch.full_like(rows, 2), torch.full_like(rows, 2)))[0]
