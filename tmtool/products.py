"""What a product is: from stitched values to the bands that are written, and the checks that a product must pass."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmtool.cog import COG
from tmtool.errors import ProductError
from tmtool.grid import OutputSpec, Strip
from tmtool.modality import Modality
from tmtool.writer import Format, Layout, Statistics


@dataclass(frozen=True)
class Product:
    """One file, named `{stem}_{suffix}` and its format's ending.

    Stitched as `spec` says, turned into bands by `finish`, laid out as `layout`, written as `format`.
    """

    suffix: str
    modality: str
    spec: OutputSpec
    layout: Layout
    finish: Callable[[Strip], NDArray[Any]]
    format: Format = COG


def generated(modality: Modality, suffix: str | None = None) -> Product:
    """Return the product of a generated (or reconstructed) modality: values in its unit, or the likeliest class."""
    return Product(
        suffix=suffix or modality.name,
        modality=modality.name,
        spec=OutputSpec(modality.name, modality.channels),
        layout=Layout(
            bands=modality.bands,
            dtype=modality.dtype,
            nodata=modality.nodata,
            unit="" if modality.classes or modality.unit == "1" else modality.unit,
            scale=modality.scale,
            classes=modality.classes,
            resampling="mode" if modality.classes else "average",
        ),
        finish=lambda strip: _finish(modality, strip),
    )


def _finish(modality: Modality, strip: Strip) -> NDArray[Any]:
    """Return `(bands, h, W)` in the product's dtype: classes by argmax, integers rounded, ranges kept."""
    values = strip.values
    if not np.isfinite(values[:, strip.valid]).all():
        rows = np.flatnonzero((~np.isfinite(values).all(axis=0) & strip.valid).any(axis=1)) + strip.row
        raise ProductError(
            f"{modality.name}: the model gave non-finite values, first in row {rows[0]}. Weights or input are damaged, or "
            "--precision fp16 overflowed (try bf16 or fp32)."
        )
    if modality.classes:
        classes: NDArray[Any] = values.argmax(axis=0)[None].astype(modality.dtype)
        return classes
    if modality.valid_range:
        values = np.clip(values, *modality.valid_range)
    if np.issubdtype(np.dtype(modality.dtype), np.integer):
        values = np.rint(np.nan_to_num(values))
    finished: NDArray[Any] = values.astype(modality.dtype)
    return finished


def check_statistics(product: Product, statistics: Statistics, input_varies: bool) -> list[str]:
    """Raise `ProductError` for a continuous product that is constant though its input varies; return warnings."""
    if statistics.count == 0:
        return [f"{product.suffix}: the input has no valid pixel, so the product is all nodata"]
    rounding = 1e-5 * np.maximum(
        abs(statistics.low), abs(statistics.high)
    )  # blending does not give a constant back exactly
    if input_varies and statistics.count > 1 and (statistics.high - statistics.low <= rounding).all():
        what = f"{product.suffix}: every valid pixel is {statistics.low[0]:g} though the input varies"
        if not product.layout.classes:
            raise ProductError(f"{what}. The weights are most likely wrong.")
        return [what]
    return []
