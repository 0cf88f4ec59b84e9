"""What a product is: from stitched values to the bands that are written, and the checks that a product must pass."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tmtool.cog import COG
from tmtool.errors import ProductError
from tmtool.geoparquet import GEOPARQUET
from tmtool.grid import PATCH, OutputSpec, Strip
from tmtool.modality import TOKEN_NODATA, Modality
from tmtool.writer import Format, Layout, Statistics
from tmtool.zarr import ZARR

FORMATS: dict[str, Format] = {"cog": COG, "zarr": ZARR, "geoparquet": GEOPARQUET}


@dataclass(frozen=True)
class Vectors:
    """How embeddings are written; the names are the command line's."""

    normalize: Literal["none", "l2"] = "none"
    dtype: Literal["float32", "float16", "int8"] = "float32"
    format: str = "cog"
    pool: Literal["patch", "tile", "scene"] = "patch"


@dataclass(frozen=True)
class Product:
    """One file, named `{stem}_{suffix}` and its format's ending.

    Stitched as `spec` says, turned into bands by `finish`, laid out as `layout`, written as `format`. `measure` says what
    is found out about it on the way: the use of its codes, or its agreement with the input. A product of `holes` belongs
    to the one after it, and is only written where the input has pixels without data.
    """

    suffix: str
    modality: str
    spec: OutputSpec
    layout: Layout
    finish: Callable[[Strip], NDArray[Any]]
    format: Format = COG
    measure: Literal["", "codes", "agreement"] = ""
    holes: bool = False
    about: tuple[tuple[str, Any], ...] = ()
    """What its provenance says of it alone."""


def generated(modality: Modality, suffix: str | None = None, *, compared: bool = False) -> Product:
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
        finish=partial(_finish, modality),
        measure="agreement" if compared else "",
    )


def tokenised(modality: Modality) -> Product:
    """Return the product of tokens: one code a patch, taken from the nearest tile."""
    return Product(
        suffix=f"{modality.name}_tokens",
        modality=modality.name,
        spec=OutputSpec(modality.name, 1, PATCH, "own", "uint16"),
        layout=Layout(("token",), "uint16", TOKEN_NODATA, resampling="nearest", ids=True),
        finish=lambda strip: strip.values,
        measure="codes",
    )


def validity(modality: str) -> Product:
    """Return the product that says which pixels of a tokenised raster hold data: 1, else 0."""
    return Product(
        suffix=f"{modality}_valid",
        modality=modality,
        spec=OutputSpec("validity", 0, dtype="uint8"),
        layout=Layout(("valid",), "uint8", 0, resampling="mode", ids=True),
        finish=lambda strip: np.ones((1, *strip.valid.shape), np.uint8),
        holes=True,
    )


def embedded(name: str, modality: str, channels: int, layer: int, options: Vectors) -> Product:
    """Return a product of embeddings: one band a dimension, one vector a patch, a tile or the scene."""
    by_scale = options.dtype == "int8" and options.normalize == "none"  # known only when all rows are
    wide = options.dtype == "float16" or by_scale
    return Product(
        suffix=name,
        modality=modality,
        spec=OutputSpec(name, channels, PATCH, pool="none" if options.pool == "patch" else options.pool),
        layout=Layout(
            bands=tuple(f"{i:04d}" for i in range(channels)),
            dtype=options.dtype,
            nodata=-128 if options.dtype == "int8" else float("nan"),
            work_dtype="float32" if wide else "",
        ),
        finish=partial(_finish_vectors, name, options),
        format=FORMATS[options.format],
        about=(("layer", layer),),
    )


def _finish_vectors(name: str, options: Vectors, strip: Strip) -> NDArray[Any]:
    """Return `(D, h, W)`: normalised if asked for, in the work file's dtype."""
    values = strip.values
    _check_finite(name, strip)
    if options.normalize == "l2":
        values = values / np.maximum(np.linalg.norm(values, axis=0), 1e-12)
    if options.dtype == "int8" and options.normalize == "l2":
        return signed_root_code(values)
    return values.astype(np.float16).astype(np.float32) if options.dtype == "float16" else values


def signed_root_code(values: NDArray[Any]) -> NDArray[np.int8]:
    """Return AlphaEarth's code of unit vectors: `q = clip(round(127.5 sign(v) sqrt|v|), -127, 127)`, int8.

    `v = sign(q) (q / 127.5)^2` gives the values back.
    """
    coded: NDArray[np.int8] = np.clip(np.rint(127.5 * np.sign(values) * np.sqrt(np.abs(values))), -127, 127).astype(
        np.int8
    )
    return coded


def _finish(modality: Modality, strip: Strip) -> NDArray[Any]:
    """Return `(bands, h, W)` in the product's dtype: classes by argmax, integers rounded, ranges kept."""
    values = strip.values
    _check_finite(modality.name, strip)
    if modality.classes:
        classes: NDArray[Any] = values.argmax(axis=0)[None].astype(modality.dtype)
        return classes
    if modality.valid_range:
        values = np.clip(values, *modality.valid_range)
    if np.issubdtype(np.dtype(modality.dtype), np.integer):
        values = np.rint(np.nan_to_num(values))
    finished: NDArray[Any] = values.astype(modality.dtype)
    return finished


def _check_finite(name: str, strip: Strip) -> None:
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
        if not (product.layout.classes or product.layout.ids):
            raise ProductError(f"{what}. The weights are most likely wrong.")
        return [what]
    return []
