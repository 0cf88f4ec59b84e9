"""`generate`: modalities made from a raster, or from several of one scene."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from tmtool.errors import InputError, UsageError
from tmtool.files.cog import COG
from tmtool.files.geojson import PLACES, TEXTS
from tmtool.files.writer import Format, Layout
from tmtool.grid import Grid, OutputSpec
from tmtool.modality import MODALITIES, Modality, find
from tmtool.models import Generation, ModelEntry, ModelSpec, Request, Sampling
from tmtool.models.card import Given
from tmtool.models.text import SEQUENCES, check
from tmtool.products.draws import BESIDE_A_MEAN, of_draws
from tmtool.products.product import Product, pixels_of
from tmtool.provenance import Provenance
from tmtool.source import Source
from tmtool.tasks.base import Task, check_not_both, check_outputs, decoded

RASTERS: dict[str, Format] = {"cog": COG}
"""The formats of rasters."""


@dataclass(frozen=True)
class Generate(Task):
    """Make the modalities `outputs`, in order: each conditions the next.

    With `coords` the model is told where tiles lie. A product has the file `format` if there is one of this name for its
    kind, else the first of its kind.
    """

    name: ClassVar[str] = "generate"
    asks: ClassVar[type[Request]] = Generation
    on_patch_grid: ClassVar[bool] = False

    @classmethod
    def suffixes(cls) -> str:
        """Return a regular expression of its products' suffixes."""
        made = [name for name, m in MODALITIES.items() if m.token_key or not m.raw_key]  # not what is input only
        return f"({'|'.join((*made, *SEQUENCES))})(_({'|'.join(BESIDE_A_MEAN)}))?"

    @classmethod
    def formats(cls) -> tuple[Format, ...]:
        """Return the file formats that its products may have."""
        return (*RASTERS.values(), *PLACES.values(), *TEXTS.values())

    @classmethod
    def gives(cls, entry: ModelEntry, made: Provenance) -> tuple[Given, ...]:
        """Return the modalities that a model makes."""
        return decoded(entry)

    outputs: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    coords: bool = False
    format: str = ""

    @property
    def wants_places(self) -> bool:
        """Whether the model takes the tiles' coordinates."""
        return self.coords

    @classmethod
    def for_files(cls, outputs: tuple[str, ...], coords: bool) -> "Task":
        """Return the task for these outputs, else for those of the README's example."""
        return cls(outputs or ("S1GRD", "LULC"), coords=coords)

    def check(self, model: str, entry: ModelEntry) -> None:
        """Raise `UsageError` for outputs that the model does not make, or sampling that cannot work."""
        check(self.outputs, self.coords, entry.sequences, model)
        if self.coords and not entry.coords:
            raise UsageError(f"--in coords: --model {model} takes no coordinates.")
        check_outputs([m for m in self.outputs if m not in SEQUENCES], "--out", model, entry)
        if self.format and not any(self.format in _formats(m) for m in self.outputs):
            choices = ", ".join(dict.fromkeys(name for m in self.outputs for name in _formats(m)))
            raise UsageError(f"--format {self.format}: {', '.join(self.outputs)} can be written as {choices}.")
        if not self.outputs:
            raise UsageError("--out names no modality.")
        self.sampling.check()
        if self.sampling.samples > 1 and (said := [m for m in self.outputs if m in SEQUENCES]):
            raise UsageError(
                f"--samples {self.sampling.samples}: {', '.join(said)} has no mean; leave it out of --out."
            )

    def check_source(self, source: Source, model: str, entry: ModelEntry) -> None:
        """Raise `InputError` if the model does not take a raster, or would have to make the same."""
        super().check_source(source, model, entry)
        check_not_both(source, self.outputs, "--out", entry)

    def check_grid(self, path: str, grid: Grid) -> None:
        """Raise `InputError` if coordinates are an input where none are known."""
        if self.coords and grid.crs is None:
            raise InputError(f"{path}: has no CRS, so its coordinates are not known; leave out --in coords.")

    def request(self, inputs: Sequence[str]) -> Request:
        """Return what the model is asked for."""
        return Generation(self.outputs, self.sampling, coords=self.coords)

    def products(self, spec: ModelSpec, entry: ModelEntry) -> tuple[Product, ...]:
        """Return a raster a modality, and a table a sequence."""
        made = (
            product
            for m in self.outputs
            for product in ((_said(m),) if m in SEQUENCES else self._pixels(entry.modalities[m]))
        )
        return tuple(replace(product, format=_format_of(product.modality, self.format)) for product in made)

    def _pixels(self, modality: Modality) -> tuple[Product, ...]:
        return of_draws(pixels_of(modality), modality, self.sampling.samples)


def output_named(name: str) -> str:
    """Return the name of an output, a modality or a sequence, in any case. Raises `UsageError`."""
    key = name.strip().lower()
    return key if key in SEQUENCES else find(name, output=True).name


def _formats(output: str) -> Mapping[str, Format]:
    """Return the file formats of an output; the first is the default."""
    return {"coords": PLACES, "caption": TEXTS}.get(output, RASTERS)


def _format_of(output: str, asked: str) -> Format:
    known = _formats(output)
    return known.get(asked, next(iter(known.values())))


def _said(name: str) -> Product:
    """Return the product of what a model says of each tile."""
    sequence = SEQUENCES[name]
    nodata = float("nan") if sequence.dtype == "float64" else 0
    return Product(
        suffix=name,
        modality=name,
        spec=OutputSpec(name, sequence.channels, stitch="own", dtype=sequence.dtype, pool="tile"),
        layout=Layout(tuple(map(str, range(sequence.channels))), sequence.dtype, nodata, ids=True),
        finish=lambda strip: strip.values,
    )
