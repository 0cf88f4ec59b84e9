"""Tasks that someone fine-tuned with TerraTorch: what each is, its config says."""

from dataclasses import dataclass
from pathlib import Path

from tmtool.modality import INPUTS
from tmtool.models._headers import check_header
from tmtool.models.entry import ModelEntry, ModelSpec
from tmtool.models.registry import register
from tmtool.models.requests import Prediction, Request
from tmtool.models.weights import WeightFile

FINETUNED = "finetuned"
"""The name of the entry that stands for all of them."""

_DENSE_M = 120.0
"""About the parameters of a base backbone with a decoder, in millions; configs do not say it."""


@dataclass(frozen=True)
class FineTuned(ModelEntry):
    """A network of TerraTorch's factories, filled from the user's own checkpoint."""

    requests: tuple[type[Request], ...] = (Prediction,)
    architecture: str = "unknown"

    def check_file(self, file: WeightFile, path: Path) -> None:
        """Look at the header of a checkpoint. Raises `WeightsError`."""
        check_header(path, "Save or copy it again.", checkpoint=True)

    def channels_of(self, spec: ModelSpec) -> int:
        """Return the channels of all inputs and dates together."""
        request = spec.request
        inputs = request.config.inputs if isinstance(request, Prediction) and request.config else ()
        return sum(len(entry.bands) for entry in inputs) * (request.dates if isinstance(request, Prediction) else 1)

    def tflop_per_tile(self, spec: ModelSpec, size: int) -> float:
        """Estimate the arithmetic of one tile of `size` px, in 10**12 operations, as of a base backbone."""
        return 2 * _DENSE_M * 1e6 * (size / self.patch) ** 2 * len(spec.inputs) / 1e12

    def parameters_of(self, spec: ModelSpec) -> float:
        """Return about how many parameters a job loads, in millions."""
        path = spec.request.checkpoint
        return path.stat().st_size / 4e6 if path and path.exists() else _DENSE_M

    def tile_mb_of(self, spec: ModelSpec) -> float:
        """Return about how much memory a CPU needs for a 256 px tile, in 10**6 bytes: decoders hold full-size features."""
        return 200.0 + 25.0 * len(spec.inputs)


register(
    FINETUNED,
    FineTuned("a task fine-tuned with TerraTorch (predict --config)", "tmtool.models.finetuned._predictor", INPUTS),
)
