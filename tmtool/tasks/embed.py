"""`embed`: one vector for each patch, tile or scene."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tmtool.dates import parsed
from tmtool.errors import InputError, UsageError
from tmtool.files.cog import COG
from tmtool.files.geoparquet import GEOPARQUET
from tmtool.files.majortom import MAJORTOM
from tmtool.files.writer import Format, Layout
from tmtool.files.zarr import ZARR
from tmtool.grid import Grid, OutputSpec, Strip
from tmtool.models import Embedding, EmbeddingOutput, ModelEntry, ModelSpec, Request, Sampling, find
from tmtool.models.card import Given
from tmtool.models.requests import input_key
from tmtool.products.product import Product, check_finite
from tmtool.provenance import Provenance
from tmtool.settings import Merge, Vectors
from tmtool.source import Source
from tmtool.tasks import geoemb
from tmtool.tasks.base import Task, check_not_both, check_outputs

_FORMATS: dict[str, Format] = {"cog": COG, "zarr": ZARR, "geoparquet": GEOPARQUET, "majortom": MAJORTOM}


@dataclass(frozen=True)
class Embed(Task):
    """Embed rasters: the vectors of `layers`, merged over modalities. `imagined` are modalities of TiM.

    `used` names the bands of inputs that are not used whole, `tuned` is a fine-tuned backbone's checkpoint. `dates` say when
    the inputs of a scene were taken, in their order, in place of their tags.
    """

    name: ClassVar[str] = "embed"
    holds: ClassVar[str] = "vectors"
    asks: ClassVar[type[Request]] = Embedding

    @classmethod
    def suffixes(cls) -> str:
        """Return a regular expression of its products' suffixes."""
        return "embed.*"

    @classmethod
    def cell_px(cls, made: Provenance) -> int:
        """Return the side of the model's patch in px, or 0 for vectors of tiles and scenes."""
        return find(made.model).patch if made.details.get("embedding", {}).get("pool") == "patch" else 0

    @classmethod
    def formats(cls) -> tuple[Format, ...]:
        """Return the file formats that its products may have."""
        return tuple(_FORMATS.values())

    @classmethod
    def listed_as(cls, suffix: str) -> str:
        """Return what catalogues call a product: `embeddings`, as the conventions of STAC's `emb` have it."""
        return suffix.replace(cls.name, "embeddings", 1)

    @classmethod
    def gives(cls, entry: ModelEntry, made: Provenance) -> tuple[Given, ...]:
        """Return the vectors of the encoder's last layer."""
        return (Given("embeddings", ("similarity-search",), entry.dim, entry.patch),)

    layers: tuple[int, ...] = (-1,)
    merge: Merge = "mean"
    coords: bool = False
    imagined: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    used: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tuned: Path | None = None
    vectors: Vectors = field(default_factory=Vectors)
    dates: tuple[str, ...] = ()

    def anywhere(self) -> "Task":
        """Return the task with its checkpoint named from any folder."""
        return replace(self, tuned=self.tuned.absolute()) if self.tuned else self

    @property
    def wants_places(self) -> bool:
        """Whether the model takes the tiles' coordinates."""
        return self.coords

    @property
    def bands(self) -> Mapping[str, tuple[str, ...]]:
        """Bands of modalities that are not used whole."""
        return self.used

    @property
    def checkpoint(self) -> Path | None:
        """The fine-tuned backbone."""
        return self.tuned

    @classmethod
    def for_files(cls, outputs: tuple[str, ...], coords: bool) -> "Task":
        """Return the task that imagines these outputs."""
        return cls(imagined=outputs, coords=coords)

    def check(self, model: str, entry: ModelEntry) -> None:
        """Raise `UsageError` for options that cannot work together, or not with this model."""
        check_outputs(self.imagined, "--tim", model, entry)
        if bad := [n for n in self.layers if not -entry.depth <= n < entry.depth]:
            raise UsageError(f"--layer {bad[0]}: --model {model} has layers 0 to {entry.depth - 1} (-1 is the last).")
        if not self.layers or len({n % entry.depth for n in self.layers}) < len(self.layers):
            raise UsageError(f"--layer names the same layer twice, or none: {','.join(map(str, self.layers))}.")
        if self.imagined and self.used:
            raise UsageError("--tim imagines from whole modalities: leave out --bands.")
        if self.imagined and self.merge == "dict":
            raise UsageError(
                "--tim and --merge dict: the imagined modality would not appear in the products; use mean, max or concat."
            )
        for modality, bands in self.used.items():
            if bands != entry.bands.get(modality, bands):
                takes = f"takes the bands {' '.join(entry.bands[modality])} of {modality}, all of them"
                raise UsageError(f"--bands {modality}={','.join(bands)}: --model {model} {takes}; leave out --bands.")
        self._check_circumstances(model, entry)
        self.sampling.check()

    def _check_circumstances(self, model: str, entry: ModelEntry) -> None:
        """Raise `UsageError` for a place, dates or weights that the model does not take."""
        if self.coords and not entry.coords:
            raise UsageError(f"--coords: --model {model} takes no coordinates.")
        if self.dates and not entry.time:
            raise UsageError(f"--date: --model {model} takes no dates; leave out --date.")
        for date in self.dates:
            if parsed(date) is None:
                raise UsageError(
                    f"--date {date}: give a date, or a date and time, such as 2024-06-01 or 2024-06-01T10:30Z."
                )
        if self.tuned is not None and not entry.tunable:
            raise UsageError(f"--checkpoint: --model {model} takes none; fine-tuned backbones are TerraMind's.")
        if self.tuned is not None and not self.tuned.is_file():
            raise UsageError(f"--checkpoint {self.tuned}: no such file.")

    def by_input(self, found: Sequence[Source], model: str, entry: ModelEntry) -> dict[str, Source]:
        """Return sources by modality, those of several dates by `input_key`, in the order in which they were given.

        Raises `InputError` where the model does not take so many dates.
        """
        names = [source.modality.name for source in found]
        if self.dates and len(self.dates) != len(found):
            raise UsageError(
                f"--date: {len(self.dates)} for {len(found)} dates of a scene. Give one for each --in, in the same order."
            )
        if entry.dates > 1 and len(found) > entry.dates:
            raise InputError(
                f"{found[0].path}: --model {model} takes up to {entry.dates} dates of a place, found {len(found)}."
            )
        if entry.dates == 1 or len(set(names)) > 1:
            sources = super().by_input(found, model, entry)
        else:
            sources = {
                input_key(name, i, len(found)): source
                for i, (name, source) in enumerate(zip(names, found, strict=True))
            }
        if not entry.time:
            return sources
        given = self.dates or [None] * len(found)
        return {key: _dated(source, date) for (key, source), date in zip(sources.items(), given, strict=True)}

    def taken(self, sources: Mapping[str, Source], entry: ModelEntry) -> tuple[str, ...]:
        """Return the dates that the model is told: all, or none if one is not known."""
        dates = [source.date for source in sources.values() if source.date] if entry.time else []
        return tuple(dates) if len(dates) == len(sources) else ()

    def check_source(self, source: Source, model: str, entry: ModelEntry) -> None:
        """Raise `InputError` if the model does not take a raster, or would have to imagine the same."""
        super().check_source(source, model, entry)
        check_not_both(source, self.imagined, "--tim", entry)

    def check_grid(self, path: str, grid: Grid) -> None:
        """Raise `InputError` if coordinates are asked for, of tiles or cells, where none are known."""
        if self.coords and grid.crs is None:
            raise InputError(f"{path}: has no CRS, so its coordinates are not known; leave out --coords.")
        if self.vectors.format == "majortom" and grid.crs is None:
            raise InputError(f"{path}: has no CRS, which --format majortom needs for degrees; write geoparquet.")

    def request(self, inputs: Sequence[str]) -> Embedding:
        """Return what the model is asked for."""
        return Embedding(self.imagined, self.sampling, self.tuned, self.layers, self.merge, self.coords)

    def products(self, spec: ModelSpec, entry: ModelEntry) -> tuple[Product, ...]:
        """Return a product a layer, with `merge` dict one a modality of it."""
        outputs = entry.embeddings(self.request(spec.inputs), spec.inputs)
        return tuple(_product(output, self.vectors, entry.patch) for output in outputs)

    def details(self, spec: ModelSpec, grid: Grid) -> Mapping[str, Any]:
        """Return the bands in use and how vectors were taken and written."""
        asked = {"layers": self.layers, "merge": self.merge, "coords": self.coords}
        bands = {m: list(spec.modality(m).bands) for m in spec.inputs}
        return {"bands": bands, "embedding": asked | vars(self.vectors)}


def _dated(source: Source, asked: str | None) -> Source:
    """Return a source with the date that was asked for, or with a warning if it has none."""
    if asked is not None:
        return replace(source, date=parsed(asked), date_why="--date")
    if source.date is None:
        unknown = "its date is not known, and the model is told none: --date says it"
        return replace(source, warnings=(*source.warnings, unknown))
    return source


def _product(output: EmbeddingOutput, options: Vectors, patch: int) -> Product:
    """Return a product of embeddings: one band a dimension, one vector a patch, a tile or the scene."""
    by_scale = options.dtype == "int8" and options.normalize == "none"  # known only when all rows are
    wide = options.dtype == "float16" or by_scale
    pool = "none" if options.pool == "patch" else options.pool
    return Product(
        suffix=output.name,
        modality=output.modality or "",
        spec=OutputSpec(output.name, output.channels, patch, pool=pool),
        layout=Layout(
            bands=tuple(f"{i:04d}" for i in range(output.channels)),
            dtype=options.dtype,
            nodata=-128 if options.dtype == "int8" else float("nan"),
            work_dtype="float32" if wide else "",
        ),
        finish=partial(_finish, output.name, options),
        format=_FORMATS[options.format],
        about=(("layer", output.layer),),
        variable="embedding",
        described=geoemb.attributes,
    )


def _finish(name: str, options: Vectors, strip: Strip) -> NDArray[Any]:
    """Return `(D, h, W)`: normalised if asked for, in the work file's dtype."""
    values = strip.values
    check_finite(name, strip)
    if options.normalize == "l2":
        values = values / np.maximum(np.linalg.norm(values, axis=0), 1e-12)
    if options.dtype == "int8" and options.normalize == "l2":
        return signed_root_code(values)
    return values.astype(np.float16).astype(np.float32) if options.dtype == "float16" else values


def signed_root_code(values: NDArray[Any]) -> NDArray[np.int8]:
    """Return AlphaEarth's code of unit vectors: `q = clip(round(127.5 sign(v) sqrt|v|), -127, 127)`, int8.

    `v = sign(q) (q / 127.5)^2` gives the values back.
    """
    coded: NDArray[np.int8] = np.clip(np.rint(127.5 * np.sign(values) * np.sqrt(np.abs(values))), -127, 127).astype(
        np.int8
    )
    return coded
