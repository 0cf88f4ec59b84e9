"""`tokenize`: one code of the modality's codebook for each patch, and a mask of the pixels without data."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tmtool.files.writer import Layout
from tmtool.grid import BoolArray, Grid, OutputSpec, Strip
from tmtool.modality import MODALITIES, OUTPUTS, TOKEN_NODATA, TOKEN_PX, Modality
from tmtool.models import Encoding, ModelEntry, ModelSpec, Request
from tmtool.models.card import Given
from tmtool.products.metrics import CodeUse, code_use_text
from tmtool.products.product import Measuring, Product
from tmtool.provenance import Provenance
from tmtool.source import Source
from tmtool.tasks.base import Task, check_tokenizer


@dataclass(frozen=True)
class Tokenize(Task):
    """Turn a raster into tokens."""

    name: ClassVar[str] = "tokenize"
    holds: ClassVar[str] = "tokens"
    asks: ClassVar[type[Request]] = Encoding
    one_input: ClassVar[bool] = True
    makes_inputs: ClassVar[bool] = True

    @classmethod
    def suffixes(cls) -> str:
        """Return a regular expression of its products' suffixes."""
        return f"({'|'.join(MODALITIES)})_(tokens|valid)"

    @classmethod
    def cell_px(cls, made: Provenance) -> int:
        """Return the side of a token in px."""
        return TOKEN_PX

    @classmethod
    def gives(cls, entry: ModelEntry, made: Provenance) -> tuple[Given, ...]:
        """Return the tokens of the modalities that a model has a tokenizer of."""
        return tuple(Given(f"{name}_tokens", (), 1, TOKEN_PX, "uint16") for name in entry.outputs)

    def precision(self, asked: str) -> str:
        """Return float32 unless another is asked for: tokens are discrete, and rounding flips some of them."""
        return "fp32" if asked == "auto" else asked

    def offered(self, entry: ModelEntry) -> tuple[str, ...]:
        """Return the modalities that have a tokenizer."""
        return entry.outputs

    def check_source(self, source: Source, model: str, entry: ModelEntry) -> None:
        """Raise `InputError` if the model has no tokenizer for a raster."""
        check_tokenizer(self, source, model, entry, OUTPUTS)

    def request(self, inputs: Sequence[str]) -> Request:
        """Return what the model is asked for."""
        return Encoding()

    def products(self, spec: ModelSpec, entry: ModelEntry) -> tuple[Product, ...]:
        """Return the tokens, and before them the mask of holes."""
        return validity(spec.inputs[0]), tokens(MODALITIES[spec.inputs[0]])

    def details(self, spec: ModelSpec, grid: Grid) -> Mapping[str, Any]:
        """Return what decoding the tokens needs: the source's shape and the codebook."""
        height, width = grid.shape
        return {"source": {"height": height, "width": width}, "codebook": MODALITIES[spec.inputs[0]].codebook}


def tokens(modality: Modality) -> Product:
    """Return the product of tokens: one code a patch, taken from the nearest tile."""
    return Product(
        suffix=f"{modality.name}_tokens",
        modality=modality.name,
        spec=OutputSpec(modality.name, 1, TOKEN_PX, "own", "uint16"),
        layout=Layout(("token",), "uint16", TOKEN_NODATA, resampling="nearest", ids=True),
        finish=_as_they_are,
        measuring=Measuring(_Codes, lambda facts, _: code_use_text(facts)),
    )


def validity(modality: str) -> Product:
    """Return the product that says which pixels of a tokenised raster hold data: 1, else 0."""
    return Product(
        suffix=f"{modality}_valid",
        modality=modality,
        spec=OutputSpec("validity", 0, dtype="uint8"),
        layout=Layout(("valid",), "uint8", 0, resampling="mode", ids=True),
        finish=_ones,
        holes=True,
    )


def _as_they_are(strip: Strip) -> NDArray[Any]:
    return strip.values


def _ones(strip: Strip) -> NDArray[Any]:
    return np.ones((1, *strip.valid.shape), np.uint8)


class _Codes:
    """The use of a codebook by a token raster."""

    def __init__(self, source: Source, cols: range, stack: ExitStack) -> None:
        self._use = CodeUse(source.modality.codebook, len(source.bands), 8 * np.dtype(source.dtype).itemsize)

    def add(self, row: int, values: NDArray[Any], valid: BoolArray) -> None:
        self._use.add(values, valid)

    def result(self) -> dict[str, Any]:
        return self._use.result()
