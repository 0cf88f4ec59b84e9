"""The models that tmtool can run: what each takes and gives, and where its code is. Nothing heavy is imported here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from tmtool.device import Compute
from tmtool.errors import UsageError
from tmtool.grid import TileBatch
from tmtool.limits import check_room_for_torch
from tmtool.modality import INPUTS, MODALITIES, OUTPUTS, Modality
from tmtool.models.weights import WeightFile, coords_file, core_file, packaged_file, tokenizer_files

RANDOM = "random"
"""Value of `--weights` that asks for seeded random weights."""

# What `host_bytes` reckons with, beside the models' own figures. Its estimates / measured peaks in 10**6 bytes, torch 2.15 on
# x86-64, tiles of 256 px, base with weights from files unless said otherwise:
#                                             1 tile       2 tiles      4 tiles
#   generate S1GRD,LULC of S2L2A, fp32     4430 / 3876  4727 / 4149  5321 / 4524
#   generate S1GRD,LULC of S2L2A, bf16     3179 / 2667  3476 / 2875  4070 / 3385
#   the same by large, random fp32         7106 / 5648  7402 / 5849
#   tokenize S2L2A, fp32                   1967 / 1618  2005 / 1644  2081 / 1703
#   reconstruct S2L2A tokens, fp32         2654 / 2131  2836 / 2304  3200 / 2537
#   embed S2L2A,S1GRD,DEM, random fp32     1990 / 1595  2088 / 1649  2284 / 1753
#   generate S1GRD,LULC of S2L2A, demo     1659 / 1417  1853 / 1605
# One tile of 512 px: 5321 / 4178 (base, random fp32), 2240 / 1864 (demo).
# All this with terratorch imported whole, 1163. Now estimates are 417 lower. Peaks found since, with pages of mapped files,
# which the system can drop: generate fp32 3495, bf16 2857 (4 tiles: 2892); tokenize 1295; embed S2L2A 1236; demo 1089.
_LIBRARIES_MB = 800  # torch, of terratorch what TerraMind needs, and rasterio, imported: 760
_ALLOCATOR_MB = 100  # freed, and kept for later
_WEIGHT_BYTES = {"fp32": 4.5, "bf16": 2.4, "fp16": 2.4}  # and what loading leaves; norms and tables stay float32
_ROOM = 1.15


class TileModel(Protocol):
    """Anything that turns a batch of tiles into arrays, a pure function of pixels and positions."""

    def __call__(self, batch: TileBatch) -> Mapping[str, NDArray[Any]]:
        """Return for each output `(B, channels, S/scale, S/scale)`, in the product's unit (class logits for classes)."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn and decoded; the names are the command line's.

    Temperature 0 takes the likeliest token. `clip_sigma` clamps the diffusion's estimate to so many standard
    deviations around the mean at each step; None does not.
    """

    top_p: float = 0.8
    top_k: int = 0
    temperature: float = 1.0
    decoding_steps: int = 1
    timesteps: int = 10
    clip_sigma: float | None = None

    def check(self) -> None:
        """Raise `UsageError` for a value that cannot work."""
        bounds = (
            ("--top-p", self.top_p, 0, 1),
            ("--top-k", self.top_k, 0, 15_360),
            ("--temperature", self.temperature, 0, 100),
            ("--decoding-steps", self.decoding_steps, 1, 4096),
            ("--timesteps", self.timesteps, 1, 1000),
        )
        for name, value, low, high in bounds:
            if not low <= value <= high:
                raise UsageError(f"{name} {value:g} is out of range: it goes from {low} to {high}.")
        if self.clip_sigma is not None and not self.clip_sigma > 0:
            raise UsageError(f"--clip-sigma {self.clip_sigma:g} must be above 0 (leave it out for no clipping).")


@dataclass(frozen=True)
class Embedding:
    """What is taken of the backbone; the names are the command line's. `layers` may count from the end."""

    layers: tuple[int, ...] = (-1,)
    merge: Literal["mean", "max", "concat", "dict"] = "mean"
    coords: bool = False


@dataclass(frozen=True)
class Embedded:
    """One embedding product: the vectors of `layer` (from 0), merged, or of one `modality`; `channels` long."""

    name: str
    layer: int
    modality: str | None
    channels: int


@dataclass(frozen=True)
class ModelSpec:
    """Everything that decides what a model computes, weights and device included.

    `outputs` are what it generates: products of `generate` and `reconstruct`, imagined modalities (TiM) of `embed`.
    `bands` names the bands of inputs that are not used whole.
    """

    name: str
    task: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    compute: Compute = field(default_factory=Compute)
    files: Mapping[WeightFile, Path] | None = None
    """Where the weights lie; None for random ones."""
    embedding: Embedding = field(default_factory=Embedding)
    bands: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    checkpoint: Path | None = None
    """A fine-tuned backbone, whose weights take the place of the model's."""

    def modality(self, name: str) -> Modality:
        """Return an input or output with the bands that are used of it."""
        modality = MODALITIES[name]
        return modality.subset(self.bands[name]) if name in self.bands else modality

    @property
    def tokenised(self) -> tuple[str, ...]:
        """Inputs that the model takes as tokens only."""
        return tuple(m for m in self.inputs if MODALITIES[m].raw_key is None)

    @property
    def embedded(self) -> tuple[Embedded, ...]:
        """What `embed` makes: one product a layer, and with `merge` dict one a modality of it."""
        entry, options = find(self.name), self.embedding
        parts: tuple[str | None, ...] = self.inputs if options.merge == "dict" else (None,)
        wide = len(self.inputs) + len(self.outputs) if options.merge == "concat" else 1
        products = []
        for layer in options.layers:
            for part in parts:
                words = ["embed", f"layer{layer % entry.depth}" if len(options.layers) > 1 else "", part or ""]
                name = "_".join(filter(None, words))
                products.append(Embedded(name, layer % entry.depth, part, entry.dim * wide))
        return tuple(products)


@dataclass(frozen=True)
class ModelEntry:
    """One model: `module` has `build(spec) -> TileModel`, `files(spec)` names the weights that a job uses.

    `dim` and `depth` are the width of the encoder's vectors and its layers; `coords` says whether it takes coordinates.
    """

    title: str
    module: str
    files: Callable[[ModelSpec], tuple[WeightFile, ...]]
    dim: int = 768
    depth: int = 12
    coords: bool = True
    parameters_m: float = 0
    """Parameters of a job with two outputs, without tokenizers, in millions."""
    step_tflop: float = 0.226
    """Arithmetic of one diffusion step of a 256 px tile, in 10**12 operations."""
    classes_tflop: float = 0.05
    """Arithmetic of decoding a 256 px tile of classes, in 10**12 operations."""
    tokenizer_m: tuple[float, float, float] = (0, 0, 0)
    """Parameters of a tokenizer's encoder, of one's decoder to pixels, and of one's to classes, in millions."""
    tile_mb: tuple[float, float, float] = (0, 0, 0)
    """Memory that a CPU needs for a 256 px tile: to encode one modality, to draw tokens, to decode them; in 10**6 bytes."""
    notice: str = ""
    """What a user has to be told on every run, and what provenance says."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """Why an output that other models make is not offered."""
    licence: str = "Apache-2.0"
    inputs: tuple[str, ...] = INPUTS
    outputs: tuple[str, ...] = OUTPUTS

    def tflop_per_tile(self, spec: ModelSpec, size: int) -> float:
        """Estimate the arithmetic of one tile of `size` px, in 10**12 operations.

        The decoders' figures were counted in terratorch 1.2.11; all else takes two operations a parameter and token.
        """
        drawn = self.parameters_m * len(spec.outputs) if spec.task in ("generate", "embed") else 0.0
        encoded = len(spec.tokenised) if spec.task in ("generate", "embed") else 1
        dense = drawn + self.tokenizer_m[0] * encoded
        if spec.task == "embed":
            dense += self.parameters_m / 2 * len(spec.inputs)
        decoded = spec.outputs if spec.task in ("generate", "reconstruct") else ()
        classes = sum(bool(MODALITIES[m].classes) for m in decoded)
        decoders = self.classes_tflop * classes + self.step_tflop * spec.sampling.timesteps * (len(decoded) - classes)
        return (2 * dense * 1e6 * 256 / 1e12 + decoders) * (size / 256) ** 2

    def parameters_of(self, spec: ModelSpec) -> float:
        """Return about how many parameters a job loads, in millions."""
        backbone = 12 * self.dim**2 * self.depth / 1e6
        core = 0.0 if _alone(spec) else self.parameters_m if spec.outputs else backbone
        if spec.checkpoint and spec.outputs:
            core += backbone  # a fine-tuned backbone shares nothing with what imagines modalities for it
        encoder, decoder, classes = self.tokenizer_m
        encoded = spec.inputs if spec.task == "tokenize" else () if _alone(spec) else spec.tokenised
        decoded = spec.outputs if spec.task != "embed" else ()
        return core + encoder * len(encoded) + sum(classes if MODALITIES[m].classes else decoder for m in decoded)

    def tile_mb_of(self, spec: ModelSpec) -> float:
        """Return about how much memory a CPU needs for a 256 px tile, in 10**6 bytes."""
        encode, draw, decode = self.tile_mb
        if spec.task == "generate":
            return draw + decode
        if spec.task == "reconstruct":
            return decode
        return encode * len(spec.inputs) + (draw if spec.outputs else 0)


def host_bytes(specs: Sequence[ModelSpec], size: int) -> tuple[int, int]:
    """Estimate the host's memory for models that are loaded together: without tiles, and for each tile of `size` px.

    The pixels of tiles that are read ahead are in it. On CUDA a tile takes nothing else; the weights pass through there.
    """
    entries = [(find(spec.name), spec) for spec in specs]
    weights = sum(
        entry.parameters_of(spec) * _WEIGHT_BYTES["fp32" if spec.files is None else spec.compute.precision]
        for entry, spec in entries
    )  # random weights are made in float32, and the holes that halving them leaves are not given back
    scale, cuda = size**2 / 256**2, specs[0].compute.device.startswith("cuda")
    copies = len(specs[0].compute.each)  # on CUDA the weights of one pass through at a time
    work = 0.0 if cuda else copies * scale * sum(entry.tile_mb_of(spec) for entry, spec in entries)
    channels = sum(specs[0].modality(m).channels for m in specs[0].inputs)
    pixels = (
        copies * 4 * 4 * channels * size**2
    )  # float32, batches: one called, the same collated, one waiting, one read ahead
    held = weights * (1 if cuda else copies)
    return int(_ROOM * 1e6 * (_LIBRARIES_MB + _ALLOCATOR_MB + held)), int(_ROOM * 1e6 * work + pixels)


def _terramind(size: str, dim: int, depth: int, parameters_m: float) -> ModelEntry:
    def files(spec: ModelSpec) -> tuple[WeightFile, ...]:
        core = () if _alone(spec) or spec.checkpoint else (core_file(size),)
        return (*core, *tokenizer_files(_tokenizers(spec)), *((coords_file(),) if spec.embedding.coords else ()))

    return ModelEntry(
        f"TerraMind 1.0 {size}",
        "tmtool.models.terramind",
        files,
        dim=dim,
        depth=depth,
        parameters_m=parameters_m,
        tokenizer_m=(92, 197, 92),
        tile_mb=(25, 100, 150),
    )


def _alone(spec: ModelSpec) -> bool:
    """Whether the task uses a tokenizer and nothing else."""
    return spec.task in ("tokenize", "reconstruct")


def _tokenizers(spec: ModelSpec) -> tuple[str, ...]:
    """Return the modalities whose tokenizers a job uses; modalities that `embed` imagines stay tokens."""
    if spec.task == "tokenize":
        return spec.inputs
    return tuple(dict.fromkeys([*spec.tokenised, *(spec.outputs if spec.task != "embed" else ())]))


def _demo_files(spec: ModelSpec) -> tuple[WeightFile, ...]:
    core = () if _alone(spec) else ("core",)
    parts = (*core, *(f"tokenizer_{m.lower()}" for m in _tokenizers(spec)))
    return tuple(packaged_file(f"{part}.safetensors") for part in parts)


_DEMO = ModelEntry(
    title="a small demonstration that comes with tmtool",
    module="tmtool.models.demo",
    files=_demo_files,
    dim=128,
    depth=3,
    coords=False,
    parameters_m=1.7,
    step_tflop=0.0012,
    classes_tflop=0.0004,
    tokenizer_m=(0.5, 0.5, 0.4),
    tile_mb=(15, 100, 60),
    inputs=("S2L2A", "S1GRD", "S1RTC", "DEM"),
    outputs=("S2L2A", "S1GRD", "S1RTC", "LULC", "NDVI"),
    absent={"DEM": "what it learned of elevation was not good enough to be offered"},
    notice="DEMONSTRATION MODEL: trained on synthetic scenes only, these are not TerraMind's weights and map nothing real.",
)

MODELS: dict[str, ModelEntry] = {
    "base": _terramind("base", 768, 12, 229.0),
    "large": _terramind("large", 1024, 24, 746.0),
    "small": _terramind("small", 384, 12, 51.0),
    "tiny": _terramind("tiny", 192, 12, 15.0),
    "demo": _DEMO,
}


def find(name: str) -> ModelEntry:
    """Return the model called `name`, or raise `UsageError` with the choices."""
    if name not in MODELS:
        raise UsageError(f"Unknown model {name!r}. Choose from {', '.join(MODELS)}.")
    return MODELS[name]


def build(spec: ModelSpec) -> TileModel:
    """Build the model and load its weights onto its device. The first call imports torch and terratorch."""
    check_room_for_torch()
    module: Any = import_module(find(spec.name).module)
    model: TileModel = module.build(spec)
    return model
