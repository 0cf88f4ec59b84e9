"""What a product is: from stitched values to the bands that are written, and the checks that a product must pass."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tmtool.errors import ProductError
from tmtool.files.cog import COG
from tmtool.files.writer import Format, Layout, Statistics
from tmtool.grid import BoolArray, Cells, OutputSpec, Strip
from tmtool.modality import Modality
from tmtool.provenance import Provenance
from tmtool.source import Source

Combine = Callable[[Sequence[Strip]], Mapping[str, NDArray[Any]]]
"""Makes the values `(channels, h, w)` of outputs, by their names, from the same rows of each draw."""

Describe = Callable[[Provenance, Layout, Cells], Mapping[str, Any]]
"""Returns the attributes that a convention asks for, by how a product was made, what it holds and what its cells stand for."""


class Measure(Protocol):
    """A measurement of a product, taken while its rows stream by from the top."""

    def add(self, row: int, values: NDArray[Any], valid: BoolArray) -> None:
        """Take the next rows: values `(bands, h, W)` in the product's dtype, validity `(h, W)`, from product row `row`."""
        ...

    def result(self) -> dict[str, Any]:
        """Return what was found, ready for JSON; all rows are there."""
        ...


@dataclass(frozen=True)
class Measuring:
    """How a product is measured: `begin` on a source and its columns gives the measure, None where there is nothing to measure by.

    What it opens, it enters into the stack. `text` says the result in lines for a log.
    """

    begin: Callable[[Source, range, ExitStack], Measure | None]
    text: Callable[[Mapping[str, Any], Modality], str]


@dataclass(frozen=True)
class Product:
    """One file, named `{stem}_{suffix}` and its format's ending.

    Stitched as `spec` says, turned into bands by `finish`, laid out as `layout`, written as `format`, and measured on the
    way by `measuring`. A product of `holes` is a mask for the one after it, and is only written if the input has pixels
    without data. `drop` is an ending of the scene's stem that its name leaves out.
    """

    suffix: str
    modality: str
    spec: OutputSpec
    layout: Layout
    finish: Callable[[Strip], NDArray[Any]]
    format: Format = COG
    measuring: Measuring | None = None
    holes: bool = False
    drop: str = ""
    about: tuple[tuple[str, Any], ...] = ()
    """What its provenance says of it alone."""
    level: bool = False
    """Whether its tiles are brought to one level when all are stitched."""
    combine: Combine | None = None
    """What makes this and the products beside it of several draws of the model's output."""
    variable: str = ""
    """What its values are called where formats name them; else by its suffix."""
    described: Describe | None = None
    """What it says of itself in the words of a convention."""


def pixels_of(modality: Modality) -> Product:
    """Return the product of a modality's pixels, as a model made them: values in its unit, or the likeliest class."""
    return Product(
        suffix=modality.name,
        modality=modality.name,
        spec=OutputSpec(modality.name, modality.channels, seams="classes" if modality.classes else "values"),
        layout=Layout(
            bands=modality.bands,
            dtype=modality.dtype,
            nodata=modality.nodata,
            unit="" if modality.classes or modality.unit == "1" else modality.unit,
            scale=modality.scale,
            classes=modality.classes,
            resampling="mode" if modality.classes else "average",
        ),
        finish=partial(_finish, modality),
    )


def _finish(modality: Modality, strip: Strip) -> NDArray[Any]:
    """Return `(bands, h, W)` in the product's dtype: classes by argmax, integers rounded, ranges kept."""
    values = strip.values
    check_finite(modality.name, strip)
    if modality.classes:
        classes: NDArray[Any] = values.argmax(axis=0)[None].astype(modality.dtype)
        return classes
    if modality.valid_range:
        values = np.clip(values, *modality.valid_range)
    if np.issubdtype(np.dtype(modality.dtype), np.integer):
        values = np.rint(np.nan_to_num(values))
    finished: NDArray[Any] = values.astype(modality.dtype)
    return finished


def check_finite(name: str, strip: Strip) -> None:
    """Raise `ProductError` if valid values are not finite."""
    broken = ~np.isfinite(strip.values).all(axis=0) & strip.valid
    if broken.any():
        rows = np.flatnonzero(broken.any(axis=1)) + strip.row
        raise ProductError(
            f"{name}: the model gave non-finite values, first in row {rows[0]}. Weights or input are damaged, or "
            "--precision fp16 overflowed (try bf16 or fp32)."
        )


def check_statistics(product: Product, statistics: Statistics, input_varies: bool) -> list[str]:
    """Raise `ProductError` for a continuous product that is constant though its input varies; return warnings."""
    if statistics.count == 0:
        return [f"{product.suffix}: the product is all nodata, as the input has no valid pixel"]
    if product.holes:
        return []
    rounding = 1e-5 * np.maximum(
        abs(statistics.low), abs(statistics.high)
    )  # blending does not give a constant back exactly
    if input_varies and statistics.count > 1 and (statistics.high - statistics.low <= rounding).all():
        what = f"{product.suffix}: every valid pixel is {statistics.low[0]:g} though the input varies"
        if not (product.layout.classes or product.layout.ids or product.spec.of):
            raise ProductError(f"{what}. The weights are most likely wrong.")
        return [what]
    return []
