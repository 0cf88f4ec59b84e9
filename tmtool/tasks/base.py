"""The interface of a task. No other module in tmtool checks which task it is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tmtool.errors import InputError, UsageError
from tmtool.files.cog import COG
from tmtool.files.writer import Format
from tmtool.files.zarr import ZARR
from tmtool.grid import Grid
from tmtool.modality import Modality
from tmtool.models import ModelEntry, ModelSpec, Request
from tmtool.models.card import Given, Taken
from tmtool.products.product import Product
from tmtool.provenance import Provenance
from tmtool.settings import Reading
from tmtool.source import Source, inspect

RASTERS: Mapping[str, Format] = {"cog": COG, "zarr": ZARR}
"""The formats of rasters of pixels."""


@dataclass(frozen=True)
class Task(ABC):
    """What is made of every scene of a run. Its fields are what a user can ask of it.

    `on_patch_grid` says that tiles must lie on the patch grid, `one_input` that it takes one raster a scene.
    """

    name: ClassVar[str]
    on_patch_grid: ClassVar[bool] = True
    one_input: ClassVar[bool] = False
    asks: ClassVar[type[Request]]
    """The kind of its requests."""
    holds: ClassVar[str] = "pixels"
    """What its products hold: pixels of a modality, tokens, vectors or answers."""
    makes_inputs: ClassVar[bool] = False
    """Whether another task takes its products."""

    @classmethod
    @abstractmethod
    def suffixes(cls) -> str:
        """Return a regular expression of its products' suffixes: a folder's products are not taken for inputs."""

    @classmethod
    def cell_px(cls, made: Provenance) -> int:
        """Return the side of the cells of a product in source px, by how it was made; 0 where a cell stands for a tile or more."""
        return 1

    @classmethod
    def formats(cls) -> tuple[Format, ...]:
        """Return the file formats that its products may have."""
        return (COG,)

    @classmethod
    def listed_as(cls, suffix: str) -> str:
        """Return what catalogues call the product with a suffix."""
        return suffix

    @classmethod
    def takes(cls, entry: ModelEntry, made: Provenance) -> tuple[Taken, ...]:
        """Return what a model takes for this kind of work, of which `made` is an example."""
        known = [entry.modalities[name] for name in entry.inputs if name in entry.modalities]
        used = [m.subset(entry.bands[m.name]) if m.name in entry.bands else m for m in known]
        return tuple(Taken(m.name, m.bands, *(entry.moments(m) if m.name in entry.statistics else ())) for m in used)

    @classmethod
    def gives(cls, entry: ModelEntry, made: Provenance) -> tuple[Given, ...]:
        """Return what a model gives by this kind of work, of which `made` is an example."""
        return ()

    @classmethod
    def for_files(cls, outputs: tuple[str, ...], coords: bool) -> "Task":
        """Return a task that uses the weight files of these outputs, for the `models` commands."""
        return cls()

    @classmethod
    def can_be_done_by(cls, entry: ModelEntry) -> bool:
        """Return whether a model does this kind of work."""
        return issubclass(cls.asks, entry.requests)

    @property
    def wants_places(self) -> bool:
        """Whether the model takes the tiles' coordinates."""
        return False

    @property
    def bands(self) -> Mapping[str, tuple[str, ...]]:
        """Bands of modalities that are not used whole."""
        return {}

    def bands_of(self, entry: ModelEntry) -> dict[str, tuple[str, ...]]:
        """Return the bands of modalities that are not used whole with a model: the task's, else those that it takes."""
        return {**entry.bands, **self.bands}

    @property
    def checkpoint(self) -> Path | None:
        """A file of the user's own whose weights take the place of the model's."""
        return None

    def anywhere(self) -> "Task":
        """Return the task with its files named from any folder."""
        return self

    @property
    def before(self) -> "Task | None":
        """The task whose products this one works on, which it makes on the way where they are not given."""
        return None

    def precision(self, asked: str) -> str:
        """Return the precision of the model where the user asked for this one."""
        return asked

    def check(self, model: str, entry: ModelEntry) -> None:  # noqa: B027  (most have nothing to check)
        """Raise `UsageError` for options that cannot work together, or not with this model."""

    def offered(self, entry: ModelEntry) -> tuple[str, ...]:
        """Return the modalities that it takes with a model."""
        return entry.inputs

    def look_at(self, raster: Any, modality: Modality | None, how: Reading, entry: ModelEntry) -> Source:
        """Look at one input: a path, or what xarray has of it. Raises `InputError`."""
        named = self.bands_of(entry).items()
        used = {name: entry.modalities[name].subset(bands) for name, bands in named if name in entry.modalities}
        if modality is not None and modality.name in entry.bands:
            modality = used[modality.name]
        trained_on = entry.moments if entry.statistics else None
        return inspect(raster, modality, how, trained_on, used, entry.pixel_m)

    def by_input(self, found: Sequence[Source], model: str, entry: ModelEntry) -> dict[str, Source]:
        """Return a scene's sources by the names that the model has for its inputs. Raises `InputError`."""
        sources: dict[str, Source] = {}
        for source in found:
            name = source.modality.name
            if name in sources:
                raise InputError(
                    f"{source.path}: is {name}, as {sources[name].path} is already; {self.name} takes one raster of each "
                    "modality, of one date."
                )
            sources[name] = source
        return sources

    def taken(self, sources: Mapping[str, Source], entry: ModelEntry) -> tuple[str, ...]:
        """Return when the dates of a scene were taken, as `tmtool.dates` has it; nothing where the model is not told."""
        return ()

    def fill(self, source: Source, entry: ModelEntry) -> tuple[float, ...]:
        """Return what stands in for pixels without data, one value a band: the mean that the model was trained on."""
        modality = source.modality
        return entry.moments(modality)[0] if source.scale == 1 else (float(modality.middle_token),)

    def check_source(self, source: Source, model: str, entry: ModelEntry) -> None:
        """Raise `InputError` if it cannot be done with what a raster is."""
        if source.modality.name not in self.offered(entry):
            raise InputError(
                f"{source.path}: is {source.modality.name}, which --model {model} does not take "
                f"({', '.join(self.offered(entry))})."
            )

    def check_grid(self, path: str, grid: Grid) -> None:  # noqa: B027
        """Raise `InputError` if it cannot be done on a grid."""

    @abstractmethod
    def request(self, inputs: Sequence[str]) -> Request:
        """Return what the model is asked for, for scenes with these inputs."""

    @abstractmethod
    def products(self, spec: ModelSpec, entry: ModelEntry) -> tuple[Product, ...]:
        """Return what is written of a scene."""

    @property
    def reference(self) -> tuple[Modality, str] | None:
        """The raster, and what it is taken for, that a product is brought to the level of; None for none."""
        return None

    def encoding(self, source: Source) -> "Task | None":
        """Return the task that turns a source into what the model takes, or None if it is that already."""
        return None

    def validity(self, source: Source) -> Source | None:
        """Return the source, if any, that is read only for its mask of the pixels that hold data."""
        return None

    def details(self, spec: ModelSpec, grid: Grid) -> Mapping[str, Any]:
        """Return the task's own part of the provenance."""
        return {}

    def check_made(self, sources: Mapping[str, Source], provenance: Provenance) -> None:  # noqa: B027
        """Raise `InputError` if inputs that tmtool made do not fit the model that would use them."""


def decoded(entry: ModelEntry) -> tuple[Given, ...]:
    """Return the modalities that a model decodes to pixels, as what it gives."""
    made = (entry.modalities[name] for name in entry.outputs)
    return tuple(Given(m.name, ("generative",), len(m.bands), dtype=m.dtype, classes=m.classes) for m in made)


def check_outputs(outputs: Sequence[str], option: str, model: str, entry: ModelEntry) -> None:
    """Raise `UsageError` if a model cannot make these modalities, or one is named twice."""
    for output in outputs:
        if output not in entry.outputs:
            why = f" ({entry.absent[output]})" if output in entry.absent else ""
            raise UsageError(
                f"{option}: --model {model} cannot make {output}{why}; it makes "
                f"{', '.join(entry.outputs) or 'nothing but embeddings'}."
            )
    if len(set(outputs)) < len(outputs):
        raise UsageError(f"{option} names the same modality twice: {','.join(outputs)}.")


def check_not_both(source: Source, outputs: Sequence[str], option: str, entry: ModelEntry) -> None:
    """Raise `InputError` for an input that is also an output, where it enters the model as tokens."""
    name = source.modality.name
    if name in outputs and name in entry.modalities and entry.modalities[name].raw_key is None:
        raise InputError(
            f"{source.path}: is {name}, and {option} asks for {name} too; TerraMind cannot take and make it at once."
        )


def check_tokenizer(task: Task, source: Source, model: str, entry: ModelEntry, known: Sequence[str]) -> None:
    """Raise `InputError` if a model has no tokenizer of what a raster is; `known` are those that other models have."""
    name = source.modality.name
    if name not in entry.outputs:
        why = f" in --model {model}" if name in known else ""
        raise InputError(
            f"{source.path}: is {name}, which has no tokenizer{why}; {task.name} takes {', '.join(entry.outputs)}."
        )
