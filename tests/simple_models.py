"""Models with known answers. They need no torch, and register like any other model."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from tmtool import models
from tmtool.grid import TileBatch
from tmtool.modality import INPUTS, MODALITIES, OUTPUTS
from tmtool.models import Decoding, Embedding, Encoding, ModelEntry, ModelSpec
from tmtool.models.families.terramind import V1_STATISTICS

PATCH = 16


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


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


FAILURES: dict[str, Any] = {}
"""What `build`'s model does instead of working: `raise` an exception at call `at`, give one `value` or one `class`."""


class PatchCodes:
    """Tokenizer with known answers: a patch's code is the rounded mean of its first band, modulo the vocabulary."""

    def __init__(self, modality: str) -> None:
        self.modality, self.vocabulary = modality, MODALITIES[modality].vocabulary

    def __call__(self, batch: TileBatch) -> dict[str, np.ndarray]:
        means = BlockMean()(batch)["x"]
        return {self.modality: (np.rint(means) % self.vocabulary).astype(np.uint16)}


class PatchValues:
    """Decoder with known answers: a patch's pixels are its code, a band's number added; positions make a ripple."""

    def __init__(self, modality: str) -> None:
        self.modality, self.channels = modality, MODALITIES[modality].channels

    def __call__(self, batch: TileBatch) -> dict[str, np.ndarray]:
        codes = batch.pixels[self.modality]
        pixels = codes.repeat(PATCH, axis=2).repeat(PATCH, axis=3)
        bands = np.arange(self.channels)[None, :, None, None]
        rows = batch.rows[:, None, None, None] + np.arange(pixels.shape[2])[None, None, :, None]
        return {self.modality: (pixels + bands + rows % 7).astype(np.float32)}


class PatchVectors:
    """Embedder with known answers: dimension `i` is the patch's mean of all inputs' first bands, times `i + 1`.

    The last one is 1000; the layer's number is added to all.
    """

    def __init__(self, spec: ModelSpec) -> None:
        assert isinstance(spec.request, Embedding)
        self.products = models.find(spec.name).embeddings(spec.request, spec.inputs)

    def __call__(self, batch: TileBatch) -> dict[str, np.ndarray]:
        means = {m: BlockMean()(replace(batch, pixels={m: v}))["x"] for m, v in batch.pixels.items()}
        out = {}
        for p in self.products:
            x = means[p.modality] if p.modality else sum(means.values()) / len(means)
            vectors = x * np.arange(1, p.channels + 1)[None, :, None, None]
            vectors[:, -1] = 1000
            out[p.name] = (vectors + p.layer).astype(np.float32)
        return out


class _Failing:
    def __init__(self, inner: Any) -> None:
        self.inner, self.calls = inner, 0

    def __call__(self, batch: TileBatch) -> dict[str, np.ndarray]:
        self.calls += 1
        if "signal" in FAILURES and self.calls == FAILURES["at"]:
            os.kill(os.getpid(), FAILURES["signal"])
        if len(batch.rows) > FAILURES.get("room", len(batch.rows)):
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if "raise" in FAILURES and self.calls >= FAILURES.get("at", 1):
            raise FAILURES["raise"]
        out = self.inner(batch)
        if "class" in FAILURES:
            return {name: np.eye(v.shape[1])[FAILURES["class"]][None, :, None, None] + 0 * v for name, v in out.items()}
        if "value" in FAILURES:
            return {name: np.full_like(v, FAILURES["value"]) for name, v in out.items()}
        return out


def build(spec: ModelSpec) -> _Failing:
    """Build the model that `registered` puts into the registry: for `generate` the input's bands under every name."""
    if isinstance(spec.request, Encoding):
        return _Failing(PatchCodes(spec.inputs[0]))
    if isinstance(spec.request, Decoding):
        return _Failing(PatchValues(spec.outputs[0]))
    if isinstance(spec.request, Embedding):
        return _Failing(PatchVectors(spec))
    return _Failing(Identity({m: MODALITIES[m].channels for m in spec.outputs}))


class Simple(ModelEntry):
    """Takes and makes everything, with TerraMind's statistics."""

    statistics = V1_STATISTICS

    def tflop_per_tile(self, spec: ModelSpec, size: int) -> float:
        """Say a cost, so that a run has a rate."""
        return 0.001


@contextmanager
def registered(name: str = "identity") -> Iterator[str]:
    """Put the identity into the registry of models for a while."""
    models.register(name, Simple("test", __name__, INPUTS, OUTPUTS, dim=4, depth=6, coords=True))
    try:
        yield name
    finally:
        del models.MODELS[name]
        FAILURES.clear()
