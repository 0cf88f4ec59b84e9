"""Models with known answers. They need no torch, and register like any other model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from tmtool import models
from tmtool.grid import PATCH, TileBatch
from tmtool.models import ModelEntry, ModelSpec


def first(batch: TileBatch) -> np.ndarray:
    return next(iter(batch.pixels.values()))


class Identity:
    """Gives the first `channels` bands back, under every name asked for; `keep` remembers the batches."""

    def __init__(self, channels: Mapping[str, int], *, keep: bool = False) -> None:
        self.channels, self.keep = channels, keep
        self.batches: list[TileBatch] = []

    def __call__(self, batch: TileBatch) -> dict[str, np.ndarray]:
        if self.keep:
            self.batches.append(batch)
        pixels = first(batch)
        return {
            name: np.resize(pixels.swapaxes(0, 1), (c, *pixels[:, 0].shape)).swapaxes(0, 1)
            for name, c in self.channels.items()
        }


class Constant:
    """Gives one number everywhere."""

    def __init__(self, name: str, value: float, scale: int = 1) -> None:
        self.name, self.value, self.scale = name, value, scale

    def __call__(self, batch: TileBatch) -> dict[str, np.ndarray]:
        b, _, h, w = first(batch).shape
        return {self.name: np.full((b, 1, h // self.scale, w // self.scale), self.value, np.float32)}


class Coordinates:
    """Gives each pixel's absolute row and column."""

    def __call__(self, batch: TileBatch) -> dict[str, np.ndarray]:
        size = first(batch).shape[-1]
        rows = batch.rows[:, None, None] + np.arange(size)[None, :, None] + np.zeros((1, 1, size))
        cols = batch.cols[:, None, None] + np.arange(size)[None, None, :] + np.zeros((1, size, 1))
        return {"x": np.stack([rows, cols], axis=1).astype(np.float32)}


class BlockMean:
    """Gives the mean of each patch's first band; as `own`, the number of the tile that saw it too."""

    def __call__(self, batch: TileBatch) -> dict[str, np.ndarray]:
        b, _, h, w = first(batch).shape
        blocks = first(batch)[:, :1].reshape(b, 1, h // PATCH, PATCH, w // PATCH, PATCH)
        return {"x": blocks.mean(axis=(3, 5)).astype(np.float32)}


class Noisy:
    """A pure function of pixels and position that is nowhere flat, so that any disorder shows."""

    def __call__(self, batch: TileBatch) -> dict[str, np.ndarray]:
        size = first(batch).shape[-1]
        y = np.sin(np.arange(size) * 0.7)[None, :, None] + 0.01 * batch.rows[:, None, None]
        x = np.cos(np.arange(size) * 0.3)[None, None, :] + 0.01 * batch.cols[:, None, None]
        return {"x": (first(batch)[:, :1] * (1 + y * x)[:, None]).astype(np.float32)}


FAILURES: dict[str, Any] = {}
"""What `build`'s model does instead of working: `raise` an exception at call `at`, `nan`, `constant`."""


class _Failing:
    def __init__(self, inner: Identity) -> None:
        self.inner, self.calls = inner, 0

    def __call__(self, batch: TileBatch) -> dict[str, np.ndarray]:
        self.calls += 1
        if "raise" in FAILURES and self.calls >= FAILURES.get("at", 1):
            raise FAILURES["raise"]
        out = self.inner(batch)
        if "value" in FAILURES:
            return {name: np.full_like(v, FAILURES["value"]) for name, v in out.items()}
        return out


def build(spec: ModelSpec) -> _Failing:
    """Build the model that `registered` puts into the registry: the input's bands under every output's name."""
    from tmtool.modality import MODALITIES

    return _Failing(Identity({m: MODALITIES[m].channels for m in spec.outputs}))


@contextmanager
def registered(name: str = "identity") -> Iterator[str]:
    """Put the identity into the registry of models for a while."""
    models.MODELS[name] = ModelEntry("test", __name__, lambda spec: ())
    try:
        yield name
    finally:
        del models.MODELS[name]
        FAILURES.clear()
