"""`generate`: modalities made from a raster, or from several of one scene."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from tmtool.errors import InputError, UsageError
from tmtool.files.geojson import PLACES, TEXTS
from tmtool.files.writer import Format, Layout
from tmtool.grid import Grid, OutputSpec
from tmtool.modality import MODALITIES, Modality, find
from tmtool.models import Generation, ModelEntry, ModelSpec, Request, Sampling
from tmtool.models.card import Given
from tmtool.models.text import SEQUENCES, check
from tmtool.names import base
from tmtool.products.draws import BESIDE_A_MEAN, of_draws
from tmtool.products.product import Product, pixels_of
from tmtool.provenance import Provenance
from tmtool.source import Source
from tmtool.tasks.base import RASTERS, Task, check_not_both, check_outputs, decoded


@dataclass(frozen=True)
class Generate(Task):
    """Make the modalities `outputs`, in order: each conditions the next.

    With `coords` the model is told where tiles lie. Tiles of the outputs `level` are brought to one level, that of the raster
    `level_to` if there is one. A product has the file `format` if there is one of this name for its
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
    level: tuple[str, ...] = ()
    level_to: str = ""

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
        self._check_level(entry)
        if self.sampling.samples > 1 and (said := [m for m in self.outputs if m in SEQUENCES]):
            raise UsageError(
                f"--samples {self.sampling.samples}: {', '.join(said)} has no mean; leave it out of --out."
            )

    def _check_level(self, entry: ModelEntry) -> None:
        absent = [m for m in self.level if m not in self.outputs]
        if absent:
            raise UsageError(
                f"--level {','.join(absent)}: --out does not ask for it; it has {', '.join(self.outputs)}."
            )
        unfit = [m for m in self.level if m in SEQUENCES or not _has_level(entry.modalities[m])]
        if unfit:
            raise UsageError(
                f"--level {','.join(unfit)}: only DEM, S1GRD, S1RTC and NDVI have a level that tiles can differ by."
            )
        if self.level_to and len(self.level) != 1:
            raise UsageError(
                f"--level-to {self.level_to}: is the level of one modality; --level names {', '.join(self.level) or 'none'}."
            )

    @property
    def reference(self) -> tuple[Modality, str] | None:
        """The raster that gives the level."""
        return (find(self.level[0]), self.level_to) if self.level_to else None

    def details(self, spec: ModelSpec, grid: Grid) -> Mapping[str, Any]:
        """Return what is levelled."""
        if not self.level:
            return {}
        return {"level": {"outputs": list(self.level)} | ({"to": base(self.level_to)} if self.level_to else {})}

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
        pixels = replace(pixels_of(modality), level=modality.name in self.level)
        return of_draws(pixels, modality, self.sampling.samples)


def _has_level(modality: Modality) -> bool:
    """Return whether a modality is one quantity, of which a tile's mean may be wrong and its relief right."""
    return not (modality.classes or modality.is_optical or modality.name == "RGB")


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
