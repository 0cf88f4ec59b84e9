"""`reconstruct`: a raster, or the tokens of one, decoded to pixels, and how well they agree with the raster."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

from numpy.typing import NDArray

from tmtool.errors import InputError
from tmtool.files.writer import Format
from tmtool.grid import BoolArray, Window
from tmtool.modality import MODALITIES, OUTPUTS, Modality
from tmtool.models import Decoding, ModelEntry, ModelSpec, Moments, Request, Sampling
from tmtool.models.card import Given
from tmtool.products.draws import BESIDE_A_MEAN, of_draws
from tmtool.products.metrics import Comparison, comparison_text
from tmtool.products.product import Measuring, Product, pixels_of
from tmtool.provenance import Provenance, weights_text
from tmtool.settings import RasterFormat, Reading
from tmtool.source import Reader, Source, token_source
from tmtool.tasks.base import RASTERS, Task, check_tokenizer, decoded
from tmtool.tasks.tokenize import Tokenize


@dataclass(frozen=True)
class Reconstruct(Task):
    """Decode tokens, which are made on the way where the input is a raster of pixels."""

    name: ClassVar[str] = "reconstruct"
    asks: ClassVar[type[Request]] = Decoding
    one_input: ClassVar[bool] = True

    @classmethod
    def suffixes(cls) -> str:
        """Return a regular expression of its products' suffixes."""
        return f"({'|'.join(MODALITIES)})_rec(_({'|'.join(BESIDE_A_MEAN)}))?"

    @classmethod
    def gives(cls, entry: ModelEntry, made: Provenance) -> tuple[Given, ...]:
        """Return the modalities that a model has a tokenizer of."""
        return decoded(entry)

    @classmethod
    def formats(cls) -> tuple[Format, ...]:
        """Return the file formats that its products may have."""
        return tuple(RASTERS.values())

    sampling: Sampling = field(default_factory=Sampling)
    format: RasterFormat = "cog"

    @property
    def before(self) -> Task:
        """The tokens' task."""
        return Tokenize()

    def check(self, model: str, entry: ModelEntry) -> None:
        """Raise `UsageError` for sampling that cannot work."""
        self.sampling.check()

    def offered(self, entry: ModelEntry) -> tuple[str, ...]:
        """Return the modalities that have a tokenizer."""
        return entry.outputs

    def look_at(self, raster: Any, modality: Modality | None, how: Reading, entry: ModelEntry) -> Source:
        """Look at a token raster, or at one of pixels."""
        return token_source(raster) or super().look_at(raster, modality, how, entry)

    def check_source(self, source: Source, model: str, entry: ModelEntry) -> None:
        """Raise `InputError` if the model has no tokenizer for a raster."""
        check_tokenizer(self, source, model, entry, OUTPUTS)

    def request(self, inputs: Sequence[str]) -> Request:
        """Return what the model is asked for."""
        return Decoding(tuple(inputs), self.sampling)

    def products(self, spec: ModelSpec, entry: ModelEntry) -> tuple[Product, ...]:
        """Return the pixels, compared with the input."""
        (modality,) = (entry.modalities[m] for m in spec.outputs)
        product = replace(_reconstruction(modality, entry.moments(modality)), format=RASTERS[self.format])
        return of_draws(product, modality, self.sampling.samples)

    def encoding(self, source: Source) -> Task | None:
        """Return what makes the tokens of a raster of pixels."""
        return self.before if source.scale == 1 else None

    def validity(self, source: Source) -> Source | None:
        """Return the source that marks pixels without data: the raster itself, or the mask beside its tokens."""
        return source if source.scale == 1 else source.validity

    def check_made(self, sources: Mapping[str, Source], provenance: Provenance) -> None:
        """Raise `InputError` for tokens made by a different tokenizer than the one in use."""
        for source in sources.values():
            made = source.made
            if made and provenance.weights is not None and made.weights != provenance.weights:
                raise InputError(
                    f"{source.path}: its tokens were made by another tokenizer ({made.model}, "
                    f"{weights_text(made.weights)}) than the one in use ({provenance.model}, "
                    f"{weights_text(provenance.weights)}). Use the --model and --weights that they were made with."
                )


def _reconstruction(modality: Modality, moments: Moments) -> Product:
    product = pixels_of(modality)
    return replace(
        product,
        suffix=f"{modality.name}_rec",
        measuring=Measuring(partial(_agreement, moments), comparison_text),
        drop=f"_{modality.name}_tokens",
    )


def _agreement(moments: Moments, source: Source, cols: range, stack: ExitStack) -> "_Agreement | None":
    """Return the measure of agreement with a raster; there is none where only tokens are left of it."""
    return _Agreement(source, cols, moments[1], stack) if source.scale == 1 else None


class _Agreement:
    """The agreement of a reconstruction with the raster that it was made from, which is read again."""

    def __init__(self, source: Source, cols: range, stds: Sequence[float], stack: ExitStack) -> None:
        self._reader, self._left = stack.enter_context(Reader(source)), cols.start
        self._comparison = Comparison(source.modality, len(cols), stds)

    def add(self, row: int, values: NDArray[Any], valid: BoolArray) -> None:
        reference, _ = self._reader.read(Window(row, self._left, *valid.shape))
        self._comparison.add(reference, values, valid)

    def result(self) -> dict[str, Any]:
        self._comparison.finish()
        return self._comparison.result()
