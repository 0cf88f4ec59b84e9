"""What a backbone other than TerraMind is: its weights' file, bands, statistics, sizes and cost. Nothing heavy is imported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tmtool.errors import UsageError
from tmtool.models._headers import check_header
from tmtool.models.entry import ModelEntry, ModelSpec
from tmtool.models.requests import Embedding, Request
from tmtool.models.weights import WeightFile


@dataclass(frozen=True)
class Facts:
    """One pretrained vision transformer, which makes a vector of every patch of optical pixels.

    It takes `bands` of S2L2A, in this order, as digital numbers (reflectance x 10 000); `mean` and `std` are theirs in the
    pretraining data. `patch` and `image` are sides in px: of a patch, and of the images of the pretraining; `tiling` is
    crop, stride and delta that suit them. `dates` is how many images of a place it takes at once. `time` and `place` say
    whether it takes their dates, and its longitude and latitude: without them it does as where pretraining held them back.
    """

    name: str
    title: str
    registry: str
    """The name in terratorch: of the registry, or of the module where it is not registered."""
    file: WeightFile
    dim: int
    depth: int
    heads: int
    patch: int
    image: int
    tiling: tuple[int, int, int]
    bands: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    parameters_m: float
    """Parameters of the encoder, in millions."""
    dates: int = 1
    time: bool = False
    place: bool = False
    wavelengths: tuple[float, ...] = ()
    """Central wavelengths of the bands in micrometres, for a model that makes its patch embedding of them."""
    gsd: float = 0.0
    """Side of a pixel in metres, for a model that takes it as input."""
    pixel_m: float = 10.0
    """Side of a pixel in the pretraining data, in metres."""
    licence: str = "Apache-2.0"

    def check(self, size: int, bands: Sequence[str], dates: int = 1) -> None:
        """Raise `UsageError` for tiles of `size` px, bands or a number of dates that the model does not take."""
        if size % self.patch or size < self.patch:
            near = sorted({max(self.patch, size // self.patch * self.patch), (size // self.patch + 1) * self.patch})
            choices = " or ".join(map(str, near))
            raise UsageError(
                f"--crop {size}: {self.name} takes patches of {self.patch} px, so a multiple of that: {choices}."
            )
        if tuple(bands) != self.bands:
            raise UsageError(f"{self.name} takes the bands {' '.join(self.bands)}, found {' '.join(bands) or 'none'}.")
        if not 1 <= dates <= self.dates:
            most = "one date" if self.dates == 1 else f"1 to {self.dates} dates"
            raise UsageError(f"{self.name} takes {most} of a place, found {dates}. Give fewer --in.")

    def tflop_per_tile(self, size: int, dates: int = 1) -> float:
        """Return the arithmetic of a tile of `size` px, in 10**12 operations: of products of matrices."""
        tokens = dates * (size // self.patch) ** 2 + 1
        pixels = len(self.bands) * self.patch**2
        a_token = (24 * self.dim**2 + 4 * tokens * self.dim) * self.depth + 2 * pixels * self.dim
        return tokens * a_token / 1e12


@dataclass(frozen=True)
class VitEntry(ModelEntry):
    """A vision transformer in the registry of models: it embeds the bands of S2L2A that its facts name."""

    facts: Facts | None = None
    requests: tuple[type[Request], ...] = (Embedding,)

    @classmethod
    def of(cls, facts: Facts, module: str) -> "VitEntry":
        """Return the entry of a model with these facts, whose `build` is in `module`."""
        return cls(
            title=facts.title,
            module=module,
            inputs=("S2L2A",),
            patch=facts.patch,
            dim=facts.dim,
            depth=facts.depth,
            dates=facts.dates,
            coords=facts.place,
            time=facts.time,
            pixel_m=facts.pixel_m,
            tunable=False,
            tiling=facts.tiling,
            bands={"S2L2A": facts.bands},
            licence=facts.licence,
            facts=facts,
        )

    @property
    def statistics(self) -> Mapping[str, Mapping[str, tuple[float, float]]]:  # type: ignore[override]
        """Mean and standard deviation of its bands in the pretraining data."""
        facts = self.known
        return {"S2L2A": dict(zip(facts.bands, zip(facts.mean, facts.std, strict=True), strict=True))}

    @property
    def known(self) -> Facts:
        """The facts."""
        if self.facts is None:
            raise UsageError(f"{self.title}: an entry without facts.")
        return self.facts

    @property
    def parameters(self) -> int | None:
        """How many parameters the encoder has."""
        return round(self.known.parameters_m * 1e6)

    def check_file(self, file: WeightFile, path: Path) -> None:
        """Look at the header of the model's file. Raises `WeightsError`."""
        fetched = f"Fetch it again: hf download {file.repo} {file.filename} --force-download (or copy it again)."
        check_header(path, fetched, checkpoint=path.suffix == ".ckpt")

    def files(self, spec: ModelSpec) -> tuple[WeightFile, ...]:
        """Return the one file of the model."""
        return (self.known.file,)

    def tflop_per_tile(self, spec: ModelSpec, size: int) -> float:
        """Estimate the arithmetic of one tile of `size` px, in 10**12 operations."""
        return self.known.tflop_per_tile(size, len(spec.inputs))

    def parameters_of(self, spec: ModelSpec) -> float:
        """Return how many parameters the encoder has, in millions."""
        return self.known.parameters_m

    def tile_mb_of(self, spec: ModelSpec) -> float:
        """Return about how much memory a CPU needs for a 256 px tile: of a block, activations and attention of each head."""
        tokens = len(spec.inputs) * (256 // self.patch) ** 2 + 1
        return tokens * (16 * self.dim + 3 * tokens * self.known.heads) * 4 / 1e6
