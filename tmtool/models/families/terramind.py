"""TerraMind 1.0 in four sizes, and the small demonstration of it that comes with the package."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tmtool.modality import MODALITIES, OUTPUTS
from tmtool.models.entry import ModelEntry, ModelSpec
from tmtool.models.registry import find, register
from tmtool.models.requests import Decoding, Embedding, Encoding, Generation, Request
from tmtool.models.text import SEQUENCES, Vocabulary
from tmtool.models.weights import WeightFile, coords_file, core_file, packaged_file, tokenizer_files

_S2L2A = (
    *(("B01", 1390.458, 2106.761), ("B02", 1503.317, 2141.107), ("B03", 1718.197, 2038.973)),
    *(("B04", 1853.91, 2134.138), ("B05", 2199.1, 2085.321), ("B06", 2779.975, 1889.926)),
    *(("B07", 2987.011, 1820.257), ("B08", 3083.234, 1871.918), ("B8A", 3132.22, 1753.829)),
    *(("B09", 3162.988, 1797.379), ("B11", 2424.884, 1434.261), ("B12", 1857.648, 1334.311)),
)
_S2L1C = (
    *(("B01", 2357.089, 1624.683), ("B02", 2137.385, 1675.806), ("B03", 2018.788, 1557.708)),
    *(("B04", 2082.986, 1833.702), ("B05", 2295.651, 1823.738), ("B06", 2854.537, 1733.977)),
    *(("B07", 3122.849, 1732.131), ("B08", 3040.56, 1679.732), ("B8A", 3306.481, 1727.26)),
    *(("B09", 1473.847, 1024.687), ("B10", 506.07, 442.165), ("B11", 2472.825, 1331.411)),
    ("B12", 1838.929, 1160.419),
)

V1_STATISTICS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "S2L2A": {band: (mean, std) for band, mean, std in _S2L2A},
    "S2L1C": {band: (mean, std) for band, mean, std in _S2L1C},
    "RGB": {"R": (87.271, 58.767), "G": (80.931, 47.663), "B": (66.667, 42.631)},
    "S1GRD": {"VV": (-12.599, 5.195), "VH": (-20.293, 5.890)},
    "S1RTC": {"VV": (-10.93, 4.391), "VH": (-17.329, 4.459)},
    "DEM": {"elevation": (670.665, 951.272)},
    "NDVI": {"NDVI": (0.327, 0.322)},
}
"""TerraMind v1's pretraining means and standard deviations: `v1_pretraining_mean` and `v1_pretraining_std` of terratorch."""


@dataclass(frozen=True)
class TerraMind(ModelEntry):
    """A TerraMind of some size. The decoders' arithmetic was counted in terratorch 1.2.11."""

    requests: tuple[type[Request], ...] = (Generation, Encoding, Decoding, Embedding)
    coords: bool = True
    architecture: str = "TerraMind"
    size: str = ""
    parameters_m: float = 0
    """Parameters of a job with two outputs, without tokenizers, in millions."""
    step_tflop: float = 0.226
    """Arithmetic of one diffusion step of a 256 px tile, in 10**12 operations."""
    classes_tflop: float = 0.05
    """Arithmetic of decoding a 256 px tile of classes, in 10**12 operations."""
    tokenizer_m: tuple[float, float, float] = (92, 197, 92)
    """Parameters of a tokenizer's encoder, of one's decoder to pixels, and of one's to classes, in millions."""
    tile_mb: tuple[float, float, float] = (25, 100, 150)
    """Memory that a CPU needs for a 256 px tile: to encode one modality, to draw tokens, to decode them; in 10**6 bytes."""

    version: ClassVar[str] = "v1"
    statistics: ClassVar[Mapping[str, Mapping[str, tuple[float, float]]]] = V1_STATISTICS

    @property
    def parameters(self) -> int | None:
        """About how many parameters its encoder and decoder have."""
        return round(self.parameters_m * 1e6)

    def vocabulary_file(self, sequence: str) -> WeightFile:
        """Return the file of the words of a sequence."""
        return coords_file()

    def files(self, spec: ModelSpec) -> tuple[WeightFile, ...]:
        """Return the core's file, those of the tokenizers in use, and that of the coordinates."""
        request = spec.request
        core = (core_file(self.size),) if request.by_core and not request.checkpoint else ()
        words = (self.vocabulary_file(m) for m in sequences_of(spec))
        return (*core, *tokenizer_files(tokenizers_of(spec)), *words)

    def tflop_per_tile(self, spec: ModelSpec, size: int) -> float:
        """Estimate the arithmetic of one tile of `size` px: decoders as counted, all else two operations a parameter and token."""
        request = spec.request
        encoded = len(spec.tokenised) if request.by_core else 1
        draws = request.sampling.samples
        dense = self.parameters_m * len(request.drawn) * draws + self.tokenizer_m[0] * encoded
        if isinstance(request, Embedding):
            dense += self.parameters_m / 2 * len(spec.inputs)
        classes = sum(bool(self.modalities[m].classes) for m in request.decoded)
        steps = request.sampling.steps * (len(request.decoded) - classes)
        decoded = (self.classes_tflop * classes + self.step_tflop * steps) * draws
        return (2 * dense * 1e6 * 256 / 1e12 + decoded) * (size / 256) ** 2

    def parameters_of(self, spec: ModelSpec) -> float:
        """Return about how many parameters a job loads, in millions."""
        request = spec.request
        backbone = 12 * self.dim**2 * self.depth / 1e6
        core = (self.parameters_m if spec.outputs else backbone) if request.by_core else 0.0
        if request.checkpoint and spec.outputs:
            core += backbone  # a fine-tuned backbone shares nothing with what imagines modalities for it
        encoder, decoder, classes = self.tokenizer_m
        decoders = sum(classes if self.modalities[m].classes else decoder for m in request.decoded)
        return core + encoder * len(spec.encoded) + decoders

    def tile_mb_of(self, spec: ModelSpec) -> float:
        """Return about how much memory a CPU needs for a 256 px tile, in 10**6 bytes."""
        request = spec.request
        encode, draw, decode = self.tile_mb
        if request.decoded:
            return decode + (draw if request.drawn else 0)
        return encode * len(spec.inputs) + (draw if request.drawn else 0)


@dataclass(frozen=True)
class Demo(TerraMind):
    """TerraMind's architecture at a small width, with weights in the package."""

    def files(self, spec: ModelSpec) -> tuple[WeightFile, ...]:
        """Return the files of the package that a job uses."""
        core = ("core",) if spec.request.by_core else ()
        parts = (*core, *(f"tokenizer_{m.lower()}" for m in tokenizers_of(spec)))
        return tuple(packaged_file(f"{part}.safetensors") for part in parts)


def tokenizers_of(spec: ModelSpec) -> tuple[str, ...]:
    """Return the modalities whose tokenizers a job uses; modalities that are imagined stay tokens."""
    return tuple(dict.fromkeys([*spec.encoded, *spec.request.decoded]))


def sequences_of(spec: ModelSpec) -> tuple[str, ...]:
    """Return the sequences that a job takes or makes, whose vocabularies it needs."""
    request = spec.request
    taken = ["coords"] if isinstance(request, Generation | Embedding) and request.coords else []
    return tuple(dict.fromkeys([*taken, *(m for m in request.drawn if m in SEQUENCES)]))


def vocabularies(spec: ModelSpec) -> dict[str, Vocabulary]:
    """Return the words of the outputs that are sequences; blank ones where weights are random. May raise `WeightsError`."""
    entry = find(spec.name)
    wanted = [m for m in spec.request.drawn if m in SEQUENCES]
    if spec.files is None or not isinstance(entry, TerraMind):
        return {m: Vocabulary.blank() for m in wanted}
    return {m: Vocabulary.read(spec.files[entry.vocabulary_file(m)]) for m in wanted}


def _sized(size: str, dim: int, depth: int, parameters_m: float) -> TerraMind:
    return TerraMind(
        title=f"TerraMind 1.0 {size}",
        module="tmtool.models.terramind.build",
        inputs=tuple(m.name for m in MODALITIES.values() if m.raw_key or m.token_key),
        outputs=OUTPUTS,
        sequences=("coords",),
        dim=dim,
        depth=depth,
        size=size,
        parameters_m=parameters_m,
    )


register("base", _sized("base", 768, 12, 229.0))
register("large", _sized("large", 1024, 24, 746.0))
register("small", _sized("small", 384, 12, 51.0))
register("tiny", _sized("tiny", 192, 12, 15.0))
register(
    "demo",
    Demo(
        title="a small demonstration that comes with tmtool",
        module="tmtool.models.demo",
        inputs=("S2L2A", "S1GRD", "S1RTC", "DEM"),
        outputs=("S2L2A", "S1GRD", "S1RTC", "LULC", "NDVI"),
        dim=128,
        depth=3,
        coords=False,
        parameters_m=1.7,
        step_tflop=0.0012,
        classes_tflop=0.0004,
        tokenizer_m=(0.5, 0.5, 0.4),
        tile_mb=(15, 100, 60),
        absent={"DEM": "what it learned of elevation was not good enough to be offered"},
        notice="DEMONSTRATION MODEL: trained on synthetic scenes only, these are not TerraMind's weights and map nothing real.",
    ),
)
