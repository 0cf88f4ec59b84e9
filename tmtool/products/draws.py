"""What is made of several draws: their mean and spread; of classes the mean probability, the likeliest class and the entropy."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmtool.files.writer import Layout
from tmtool.grid import OutputSpec, Strip
from tmtool.modality import Modality
from tmtool.products.product import Product, check_finite, pixels_of

SPREAD, PROBABILITY, ENTROPY = "std", "prob", "entropy"
BESIDE_A_MEAN = (SPREAD, PROBABILITY, ENTROPY)
"""Endings of the products beside a mean."""


def of_draws(product: Product, modality: Modality, draws: int) -> tuple[Product, ...]:
    """Return the product of a modality's pixels as the mean of so many draws, and those that say how draws differ."""
    if draws == 1:
        return (product,)
    name = modality.name
    whole = replace(product.spec, draws=draws)
    if modality.classes:
        names = tuple(label for label, _ in modality.classes)
        beside = {
            PROBABILITY: Layout(names, "float32", float("nan"), unit="probability"),
            ENTROPY: Layout(("entropy",), "float32", float("nan"), unit="nat"),
        }
        combine = partial(_classes, name)
    else:
        pixels = product.layout
        beside = {SPREAD: Layout(pixels.bands, "float32", float("nan"), unit=pixels.unit, scale=pixels.scale)}
        combine = partial(_quantities, pixels_of(modality))
    extra = (_beside(product, whole, ending, layout) for ending, layout in beside.items())
    about = (*product.about, ("samples", draws))
    return (
        replace(product, spec=whole, combine=combine, about=about),
        *(replace(p, about=(*p.about, *about)) for p in extra),
    )


def _beside(product: Product, whole: OutputSpec, ending: str, layout: Layout) -> Product:
    spec = replace(whole, name=f"{whole.name}_{ending}", channels=len(layout.bands), of=whole.name, seams="")
    return Product(
        suffix=f"{product.suffix}_{ending}",
        modality=product.modality,
        spec=spec,
        layout=layout,
        finish=lambda strip: strip.values,
        format=product.format,
        drop=product.drop,
        about=(("measure", ending),),
    )


def _quantities(product: Product, strips: Sequence[Strip]) -> Mapping[str, NDArray[Any]]:
    """Return mean and sample standard deviation, `(bands, h, W)` float32, of draws as the product would hold each."""
    draws = np.stack([product.finish(strip) for strip in strips]).astype(np.float64)
    name = product.spec.name
    return {name: draws.mean(axis=0), f"{name}_{SPREAD}": draws.std(axis=0, ddof=1)}


def _classes(name: str, strips: Sequence[Strip]) -> Mapping[str, NDArray[Any]]:
    """Return the mean probability of each class, twice: for the likeliest class too; and its entropy in nats."""
    total = np.zeros(strips[0].values.shape)
    for strip in strips:
        check_finite(name, strip)
        total += _softmax(strip.values)
    mean = total / len(strips)
    entropy = -np.where(mean > 0, mean * np.log(np.maximum(mean, np.finfo(np.float64).tiny)), 0).sum(axis=0)
    return {name: mean, f"{name}_{PROBABILITY}": mean, f"{name}_{ENTROPY}": entropy[None]}


def _softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=0))
    found: NDArray[np.float64] = powers / powers.sum(axis=0)
    return found
