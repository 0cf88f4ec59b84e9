"""The facts of a model, and what exactly a run asks of it for its scenes. Nothing heavy is imported here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol

from numpy.typing import NDArray

from tmtool.grid import TileBatch
from tmtool.modality import MODALITIES, TOKEN_PX, Modality
from tmtool.models.device import Compute
from tmtool.models.requests import Embedding, Request, input_name
from tmtool.models.weights import WeightFile, check_file

Moments = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each band, in the modality's unit."""


class TileModel(Protocol):
    """Anything that turns a batch of tiles into arrays, a pure function of pixels and positions."""

    def __call__(self, batch: TileBatch) -> Mapping[str, NDArray[Any]]:
        """Return for each output `(B, channels, S/scale, S/scale)`, in the product's unit (class logits for classes)."""
        ...


@dataclass(frozen=True)
class ModelSpec:
    """Everything that decides what a model computes, weights and device included.

    `name` is the model's in the registry. `bands` names the bands of inputs that are not used whole.
    """

    name: str
    request: Request
    inputs: tuple[str, ...]
    seed: int = 0
    compute: Compute = field(default_factory=Compute)
    files: Mapping[WeightFile, Path] | None = None
    """Where the weights lie; None for random ones."""
    bands: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def modalities(self) -> Mapping[str, Modality]:
        """What the model takes its modalities for."""
        from tmtool.models.registry import find  # which imports this module

        return find(self.name).modalities

    def modality(self, name: str) -> Modality:
        """Return an input or output with the bands that are used of it."""
        plain = input_name(name)
        modality = self.modalities[plain]
        return modality.subset(self.bands[plain]) if plain in self.bands else modality

    @property
    def outputs(self) -> tuple[str, ...]:
        """Modalities that are made, or imagined for `embed`."""
        return self.request.outputs

    @property
    def tokenised(self) -> tuple[str, ...]:
        """Inputs that the model takes as tokens only."""
        return tuple(m for m in self.inputs if self.modalities[input_name(m)].raw_key is None)

    @property
    def encoded(self) -> tuple[str, ...]:
        """Inputs that a tokenizer's encoder turns into tokens."""
        return self.request.encoded(self.inputs, self.tokenised)


@dataclass(frozen=True)
class EmbeddingOutput:
    """One output of an embedding model: the vectors of `layer` (from 0), merged or of one `modality`; `channels` long."""

    name: str
    layer: int
    modality: str | None
    channels: int


@dataclass(frozen=True)
class ModelEntry:
    """One model of the registry: facts that are known without loading anything. A family is a subclass.

    `module` has `build(spec) -> TileModel` and is imported when a model is built. `patch` is the side of the ViT's patch in
    px, `dim` and `depth` the width of the encoder's vectors and its layers.
    """

    title: str
    module: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    requests: tuple[type[Request], ...] = (Request,)
    """Kinds of work that it can do."""
    patch: int = TOKEN_PX
    dim: int = 768
    depth: int = 12
    tiling: tuple[int, int, int] | None = None
    """Default crop, stride and delta in px, where they are not those of TerraMind."""
    bands: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Bands that it takes of a modality, where that is not all of them."""
    dates: int = 1
    """The most dates of one modality that it takes at once."""
    coords: bool = False
    """Whether it takes coordinates."""
    time: bool = False
    """Whether it takes when its inputs were taken."""
    pixel_m: float = 10.0
    """Side of a pixel in the data that it was trained on, in metres."""
    tunable: bool = True
    """Whether a fine-tuned checkpoint's weights can take the place of its own."""
    notice: str = ""
    """A warning that every run shows and that provenance records."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """Why an output that other models make is not offered."""
    licence: str = "Apache-2.0"
    sequences: tuple[str, ...] = ()
    """Outputs of one sequence of tokens a tile."""
    architecture: str = "Vision Transformer"
    """What it is called in the literature."""

    statistics: ClassVar[Mapping[str, Mapping[str, tuple[float, float]]]] = {}
    """Mean and standard deviation of what it was trained on, by modality and band."""
    modalities: ClassVar[Mapping[str, Modality]] = MODALITIES
    """What it takes its modalities for: their keys and classes."""

    @property
    def parameters(self) -> int | None:
        """About how many parameters it has, tokenizers not counted; None where that is not known."""
        return None

    def moments(self, modality: Modality) -> Moments:
        """Return the mean and standard deviation of each band of a modality; 0 and 1 of what is not standardised."""
        known = self.statistics.get(modality.name, {})
        pairs = [known.get(band, (0.0, 1.0)) for band in modality.bands]
        return tuple(mean for mean, _ in pairs), tuple(std for _, std in pairs)

    def files(self, spec: ModelSpec) -> tuple[WeightFile, ...]:
        """Return the weight files that a job uses."""
        return ()

    def check_file(self, file: WeightFile, path: Path) -> None:
        """Look at the header of what lies at `path` for `file`, reading no tensor. Raises `WeightsError`."""
        check_file(file, path, self.dim)

    def channels_of(self, spec: ModelSpec) -> int:
        """Return the channels of all inputs together."""
        return sum(spec.modality(m).channels for m in spec.inputs)

    def build(self, spec: ModelSpec) -> TileModel:
        """Build the model and load its weights onto its device. The first call imports torch."""
        module: Any = import_module(self.module)
        model: TileModel = module.build(spec)
        return model

    def embeddings(self, request: Embedding, inputs: Sequence[str]) -> tuple[EmbeddingOutput, ...]:
        """Return what a request for embeddings makes: one output a layer, with `merge` dict one a modality of it."""
        parts: Sequence[str | None] = inputs if request.merge == "dict" else (None,)
        wide = len(inputs) + len(request.outputs) if request.merge == "concat" else 1
        outputs = []
        for layer in (n % self.depth for n in request.layers):
            for part in parts:
                words = ["embed", f"layer{layer}" if len(request.layers) > 1 else "", part or ""]
                outputs.append(EmbeddingOutput("_".join(filter(None, words)), layer, part, self.dim * wide))
        return tuple(outputs)

    def tflop_per_tile(self, spec: ModelSpec, size: int) -> float:
        """Estimate the arithmetic of one tile of `size` px, in 10**12 operations."""
        return 0.0

    def parameters_of(self, spec: ModelSpec) -> float:
        """Return about how many parameters a job loads, in millions."""
        return 0.0

    def tile_mb_of(self, spec: ModelSpec) -> float:
        """Return about how much memory a CPU needs for a 256 px tile, in 10**6 bytes."""
        return 0.0
