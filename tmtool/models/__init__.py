"""The models that tmtool can run: what each takes and gives, and where its code is. Nothing heavy is imported here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tmtool.device import Compute
from tmtool.errors import UsageError
from tmtool.grid import TileBatch
from tmtool.modality import INPUTS, MODALITIES, OUTPUTS
from tmtool.models.weights import WeightFile, core_file, packaged_file, tokenizer_files

RANDOM = "random"
"""Value of `--weights` that asks for seeded random weights."""

PARAMETERS_M = {"base": 229.0, "large": 746.0, "small": 51.0, "tiny": 15.0}
"""TerraMind's sizes, in millions of parameters of a job with two outputs, without tokenizers."""


class TileModel(Protocol):
    """Anything that turns a batch of tiles into arrays, a pure function of pixels and positions."""

    def __call__(self, batch: TileBatch) -> Mapping[str, NDArray[np.float32]]:
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
class ModelSpec:
    """Everything that decides what a model computes, weights and device included."""

    name: str
    task: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    compute: Compute = field(default_factory=Compute)
    files: Mapping[WeightFile, Path] | None = None
    """Where the weights lie; None for random ones."""


@dataclass(frozen=True)
class ModelEntry:
    """One model: `module` has `build(spec) -> TileModel`, `files(inputs, outputs)` names the weights that a job uses."""

    title: str
    module: str
    files: Callable[[tuple[str, ...], tuple[str, ...]], tuple[WeightFile, ...]]
    parameters_m: float = 0
    """Parameters of a job with two outputs, without tokenizers, in millions."""
    step_tflop: float = 0.226
    """Arithmetic of one diffusion step of a 256 px tile, in 10**12 operations."""
    classes_tflop: float = 0.05
    """Arithmetic of decoding a 256 px tile of classes, in 10**12 operations."""
    notice: str = ""
    """What a user has to be told on every run, and what provenance says."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """Why an output that other models make is not offered."""
    licence: str = "Apache-2.0"
    inputs: tuple[str, ...] = INPUTS
    outputs: tuple[str, ...] = OUTPUTS

    def tflop_per_tile(self, outputs: tuple[str, ...], timesteps: int, size: int) -> float:
        """Estimate the arithmetic of one tile of `size` px, in 10**12 operations.

        The decoders' figures were counted in terratorch 1.2.11; the encoder-decoder takes two operations a parameter
        and token for each output.
        """
        classes = sum(bool(MODALITIES[m].classes) for m in outputs)
        core = 2 * self.parameters_m * 1e6 * 256 * len(outputs) / 1e12
        decoders = self.classes_tflop * classes + self.step_tflop * timesteps * (len(outputs) - classes)
        return (core + decoders) * (size / 256) ** 2


def _terramind(size: str, parameters_m: float) -> ModelEntry:
    return ModelEntry(
        title=f"TerraMind 1.0 {size}",
        module="tmtool.models.terramind",
        files=lambda inputs, outputs: (core_file(size), *tokenizer_files(inputs, outputs)),
        parameters_m=parameters_m,
    )


def _demo_files(inputs: tuple[str, ...], outputs: tuple[str, ...]) -> tuple[WeightFile, ...]:
    return tuple(
        packaged_file(f"{part}.safetensors") for part in ("core", *(f"tokenizer_{m.lower()}" for m in outputs))
    )


_DEMO = ModelEntry(
    title="a small demonstration that comes with tmtool",
    module="tmtool.models.demo",
    files=_demo_files,
    parameters_m=1.7,
    step_tflop=0.0012,
    classes_tflop=0.0004,
    inputs=("S2L2A", "S1GRD", "S1RTC", "DEM"),
    outputs=("S2L2A", "S1GRD", "S1RTC", "LULC", "NDVI"),
    absent={"DEM": "what it learned of elevation was not good enough to be offered"},
    notice="DEMONSTRATION MODEL: trained on synthetic scenes only, these are not TerraMind's weights and map nothing real.",
)

MODELS: dict[str, ModelEntry] = {name: _terramind(name, m) for name, m in PARAMETERS_M.items()} | {"demo": _DEMO}


def find(name: str) -> ModelEntry:
    """Return the model called `name`, or raise `UsageError` with the choices."""
    if name not in MODELS:
        raise UsageError(f"Unknown model {name!r}. Choose from {', '.join(MODELS)}.")
    return MODELS[name]


def build(spec: ModelSpec) -> TileModel:
    """Build the model and load its weights onto its device. The first call imports torch and terratorch."""
    module: Any = import_module(find(spec.name).module)
    model: TileModel = module.build(spec)
    return model
