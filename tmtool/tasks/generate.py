"""`generate`: modalities made from a raster, or from several of one scene."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from tmtool.errors import UsageError
from tmtool.modality import MODALITIES
from tmtool.models import Generation, ModelEntry, ModelSpec, Request, Sampling
from tmtool.products import Product, pixels_of
from tmtool.source import Source
from tmtool.tasks.base import Task, check_not_both, check_outputs


@dataclass(frozen=True)
class Generate(Task):
    """Make the modalities `outputs`, in order: each conditions the next."""

    name: ClassVar[str] = "generate"
    on_patch_grid: ClassVar[bool] = False

    outputs: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)

    @classmethod
    def for_files(cls, outputs: tuple[str, ...], coords: bool) -> "Task":
        """Return the task for these outputs, else for those of the README's example."""
        return cls(outputs or ("S1GRD", "LULC"))

    def check(self, model: str, entry: ModelEntry) -> None:
        """Raise `UsageError` for outputs that the model does not make, or sampling that cannot work."""
        check_outputs(self.outputs, "--out", model, entry)
        if not self.outputs:
            raise UsageError("--out names no modality.")
        self.sampling.check()

    def check_source(self, source: Source, model: str, entry: ModelEntry) -> None:
        """Raise `InputError` if the model does not take a raster, or would have to make the same."""
        super().check_source(source, model, entry)
        check_not_both(source, self.outputs, "--out")

    def request(self, inputs: Sequence[str]) -> Request:
        """Return what the model is asked for."""
        return Generation(self.outputs, self.sampling)

    def products(self, spec: ModelSpec, entry: ModelEntry) -> tuple[Product, ...]:
        """Return a raster a modality."""
        return tuple(pixels_of(MODALITIES[m]) for m in self.outputs)
