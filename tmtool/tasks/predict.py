"""`predict`: what a task that was fine-tuned with TerraTorch makes of a raster, or of several of one scene."""

import colorsys
import hashlib
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tmtool.errors import InputError, UsageError
from tmtool.files.writer import Format, Layout
from tmtool.grid import Grid, OutputSpec, Strip
from tmtool.modality import MODALITIES, Modality
from tmtool.models import ModelEntry, ModelSpec, Request
from tmtool.models.card import Given, Taken
from tmtool.models.finetuned.config import PER_PIXEL, TaskConfig, read_config
from tmtool.models.finetuned.config import Tiling as ConfigTiling
from tmtool.models.finetuned.inputs import TaskInput
from tmtool.models.requests import Prediction, input_key
from tmtool.products.product import Product, check_finite
from tmtool.provenance import Provenance
from tmtool.settings import RasterFormat, Reading
from tmtool.source import Source, band_names, describe, inspect
from tmtool.tasks.base import RASTERS, Task

_log = logging.getLogger("tmtool")

ProbabilityType = Literal["float32", "uint8"]

_REFLECTANCE = 2.0
"""Means below this are of reflectance from 0 to 1, not of digital numbers."""
_WORK = {
    "segmentation": "semantic-segmentation",
    "regression": "regression",
    "classification": "scene-classification",
    "multilabel": "classification",
    "scalar_regression": "regression",
}
"""Kinds of tasks in the words of STAC's `mlm`."""
_STEPS = 250
"""Steps of a probability in uint8, whose 255 is nodata."""


@dataclass(frozen=True)
class TaskFiles:
    """Where a fine-tuned task comes from; the names are the command line's.

    `means` and `stds` are files or `pretraining`. With `model_hub`, a repository of the hub, `config` and `checkpoint` name
    files in it, or are found there; `offline` takes them from the hub's cache only.
    """

    config: Path | None = None
    checkpoint: Path | None = None
    means: str | None = None
    stds: str | None = None
    model_hub: str | None = None
    offline: bool = False


@dataclass(frozen=True)
class Predict(Task):
    """Predict with a fine-tuned task. `digest` identifies its config; without a `tuned` checkpoint weights are random.

    With `probabilities` there is a band a class of what the decision rests on, in `dtype`.
    """

    name: ClassVar[str] = "predict"
    holds: ClassVar[str] = "answers"
    model: ClassVar[str] = "finetuned"
    """The name of the entry of its models."""
    asks: ClassVar[type[Request]] = Prediction
    on_patch_grid: ClassVar[bool] = False

    @classmethod
    def suffixes(cls) -> str:
        """Return a regular expression of its products' suffixes."""
        return "pred|prob"

    @classmethod
    def cell_px(cls, made: Provenance) -> int:
        """Return 1 for answers of pixels, 0 for those of tiles."""
        return int(made.details.get("kind") in PER_PIXEL)

    @classmethod
    def takes(cls, entry: ModelEntry, made: Provenance) -> tuple[Taken, ...]:
        """Return the config's inputs; their statistics are in the config."""
        return tuple(Taken(name, tuple(said["bands"])) for name, said in made.details.get("used", {}).items())

    @classmethod
    def gives(cls, entry: ModelEntry, made: Provenance) -> tuple[Given, ...]:
        """Return the answer."""
        work = _WORK.get(str(made.details.get("kind")), "classification")
        return (Given("pred", (work,), None),)

    config: TaskConfig
    digest: str
    tuned: Path | None = None
    probabilities: bool = False
    dtype: ProbabilityType = "float32"
    format: RasterFormat = "cog"

    @classmethod
    def formats(cls) -> tuple[Format, ...]:
        """Return the file formats that its products may have."""
        return tuple(RASTERS.values())

    @classmethod
    def for_files(cls, outputs: tuple[str, ...], coords: bool) -> "Task":
        """Raise `UsageError`: its one file is the user's own."""
        raise UsageError(
            "--for predict: its weights are your own, the --checkpoint of `tmtool predict`; nothing is fetched."
        )

    @property
    def checkpoint(self) -> Path | None:
        """The task's checkpoint."""
        return self.tuned

    def anywhere(self) -> "Task":
        """Return the task with its checkpoint named from any folder."""
        return replace(self, tuned=self.tuned.absolute()) if self.tuned else self

    def check(self, model: str, entry: ModelEntry) -> None:
        """Raise `UsageError` for options that cannot work, `WeightsError` for the checkpoint of another config."""
        if self.tuned is not None and not self.tuned.is_file():
            raise UsageError(f"--checkpoint {self.tuned}: no such file.")
        if self.probabilities and not self.config.has_classes:
            raise UsageError(f"--probabilities: {self.config.path} is of {self.config.kind}, which has no classes.")
        if self.tuned is not None:
            from tmtool.models.finetuned.checkpoint import check_same_task, read_task_checkpoint  # imports torch

            check_same_task(self.config, read_task_checkpoint(self.tuned))

    def look_at(self, raster: Any, modality: Modality | None, how: Reading, entry: ModelEntry) -> Source:
        """Look at one input as the config has it: its bands by name, or by position as in the training's rasters."""
        wanted = self._wanted(raster, modality)
        used = _as_trained(wanted, wanted.bands)
        raster = describe(raster, how)
        names = band_names(raster)
        whole = _as_trained(wanted, wanted.file_bands)
        if not set(used.bands) <= set(filter(None, names)) and len(names) == len(whole.bands) > 0:
            found = inspect(raster, whole, how)
            places = [whole.bands.index(band) for band in used.bands]
            odd = [n for n, band in zip(names, whole.bands, strict=True) if n and n != band]
            why = f"its bands are named {', '.join(odd[:3])}, and taken by position for {' '.join(whole.bands)}"
            return replace(
                found,
                modality=used,
                bands=tuple(found.bands[i] for i in places),
                values=tuple(found.values[i] for i in places) if found.values else (),
                warnings=(*found.warnings, *([why] if odd else [])),
            )
        return inspect(raster, used, how)

    def _wanted(self, raster: Any, modality: Modality | None) -> TaskInput:
        """Return the input of the config that a raster is for."""
        inputs = self.config.inputs
        asked = [e for e in inputs if modality is None or modality.name in (e.name, e.modality)]
        if len(asked) == 1:
            return asked[0]
        needs = ", ".join(entry.name for entry in inputs)
        what = f"--in {modality.name}" if modality else f"{raster}"
        raise UsageError(f"{what}: {self.config.path} takes {needs}. Give --in NAME=FILE for each.")

    def check_source(self, source: Source, model: str, entry: ModelEntry) -> None:
        """Do nothing: `look_at` has asked the config."""

    def by_input(self, found: Sequence[Source], model: str, entry: ModelEntry) -> dict[str, Source]:
        """Return sources by input and date, in the order in which they were given. Raises `InputError` for what is missing."""
        groups: dict[str, list[Source]] = defaultdict(list)
        for source in found:
            groups[source.modality.name].append(source)
        if missing := [entry.name for entry in self.config.inputs if entry.name not in groups]:
            raise InputError(
                f"{found[0].path}: {self.config.path} needs {', '.join(missing)} too: give --in {missing[0]}=FILE."
            )
        self.config.check_dates({name: len(group) for name, group in groups.items()})
        return {
            input_key(entry.name, date, len(groups[entry.name])): source
            for entry in self.config.inputs
            for date, source in enumerate(groups[entry.name])
        }

    def fill(self, source: Source, entry: ModelEntry) -> tuple[float, ...]:
        """Return NaN: the predictor puts what the training put in place of pixels without data."""
        return (float("nan"),) * len(source.bands)

    def request(self, inputs: Sequence[str]) -> Request:
        """Return what the model is asked for."""
        dates = max([1, *(int(name.rpartition("@")[2]) for name in inputs if "@" in name)])
        return Prediction(checkpoint=self.tuned, config=self.config, dates=dates, scores=self.probabilities)

    def products(self, spec: ModelSpec, entry: ModelEntry) -> tuple[Product, ...]:
        """Return the answer, and the probabilities if they are asked for."""
        made = (self._answer(), *([self._scores()] if self.probabilities else []))
        return tuple(replace(product, format=RASTERS[self.format]) for product in made)

    def details(self, spec: ModelSpec, grid: Grid) -> Mapping[str, Any]:
        """Return the config's digest, and the bands and statistics in use."""
        used = {e.name: {"bands": list(e.bands), "statistics": e.statistics} for e in self.config.inputs}
        return {"config": self.digest, "kind": self.config.kind, "used": used}

    def _spec(self, name: str) -> OutputSpec:
        if self.config.per_pixel:
            answer: Literal["classes", "values"] = "classes" if self.config.kind == "segmentation" else "values"
            return OutputSpec(name, self.config.channels, seams=answer if name == "pred" else "")
        return OutputSpec(name, self.config.channels, stitch="own", pool="tile")

    def _answer(self) -> Product:
        config = self.config
        if config.kind in ("segmentation", "classification"):
            wide = config.channels > np.iinfo(np.uint8).max
            dtype, nodata = ("uint16", 65_535) if wide else ("uint8", 255)
            layout = Layout(("class",), dtype, nodata, classes=_classes(config), resampling="mode")
            return Product("pred", "", self._spec("pred"), layout, partial(_decided, dtype))
        names = config.class_names or tuple(f"value {i}" for i in range(config.channels))
        layout = Layout(names, "float32", float("nan"))
        sigmoid = config.kind == "multilabel"
        return Product("pred", "", self._spec("pred"), layout, partial(_values, sigmoid))

    def _scores(self) -> Product:
        config, coded = self.config, self.dtype == "uint8"
        names = tuple(name for name, _ in _classes(config))
        scale, nodata = (1 / _STEPS, 255.0) if coded else (1.0, float("nan"))
        layout = Layout(names, self.dtype, nodata, scale=scale)
        finish = partial(_probabilities, config.kind == "multilabel", coded)
        return Product("prob", "", self._spec("prob"), layout, finish)


def task_of(
    files: TaskFiles, probabilities: bool = False, dtype: ProbabilityType = "float32", *, to_run: bool = True
) -> tuple[Predict, ConfigTiling]:
    """Return the task of a config and a checkpoint, and the tiles that it was made for. Raises `UsageError`.

    Without a config, the checkpoint's own settings say what it is; that imports torch. A task that is not `to_run`, but
    to be described, needs no checkpoint.
    """
    config, checkpoint = files.config, files.checkpoint
    if files.model_hub is not None:
        from tmtool.models.finetuned.hub import task_files

        one, other = (str(name) if name else None for name in (config, checkpoint))
        config, checkpoint = task_files(files.model_hub, one, other, files.offline)
    if checkpoint is None and to_run:
        raise UsageError("--checkpoint: give the fine-tuned weights; a config alone has none.")
    if checkpoint is not None and not checkpoint.is_file():
        raise UsageError(f"--checkpoint {checkpoint}: no such file.")
    if config is not None:
        read = read_config(config, files.means, files.stds)
    elif checkpoint is not None:
        from tmtool.models.finetuned.checkpoint import config_of, read_task_checkpoint

        read = config_of(read_task_checkpoint(checkpoint), files.means, files.stds)
    else:
        raise UsageError("--config: give TerraTorch's YAML of the task, or a --checkpoint that holds its settings.")
    for note in read.notes:
        _log.warning("%s: %s", read.path, note)
    task = Predict(read, digest_of(config), checkpoint and checkpoint.absolute(), probabilities, dtype)
    return task, read.tiling or ConfigTiling()


def digest_of(path: Path | None) -> str:
    """Return the SHA-256 of a config's text."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path else ""


def _as_trained(entry: TaskInput, bands: Sequence[str]) -> Modality:
    """Return an input as a modality of these bands, in the unit that its statistics are of. Raises `UsageError`."""
    if entry.modality is None:
        raise UsageError(f"{entry.name}: is not a modality that tmtool reads; it reads {', '.join(MODALITIES)}.")
    known = replace(MODALITIES[entry.modality], name=entry.name, bands=tuple(bands))
    means = [mean / entry.scale for row in entry.means for mean in row]
    if known.is_optical and max(map(abs, means)) < _REFLECTANCE:
        return replace(known, unit="reflectance")
    return known


def _classes(config: TaskConfig) -> tuple[tuple[str, str], ...]:
    """Return (name, colour) of each class: land cover's own where the name is one of its classes, else colours far apart in hue.

    The first of those is grey.
    """
    names = config.class_names or tuple(f"class {i}" for i in range(config.channels))
    known = {name.casefold(): colour for name, colour in MODALITIES["LULC"].classes}
    return tuple((name, known.get(name.casefold()) or _colour(i)) for i, name in enumerate(names))


def _colour(i: int) -> str:
    if i == 0:
        return "#B0B0B0"
    hue = (i - 1) * 0.618033988749895 % 1  # the golden ratio's steps never come close to each other
    red, green, blue = (round(255 * v) for v in colorsys.hsv_to_rgb(hue, 0.75, 0.85 if i % 2 else 0.6))
    return f"#{red:02X}{green:02X}{blue:02X}"


def _decided(dtype: str, strip: Strip) -> NDArray[Any]:
    """Return the class with the highest score, `(1, h, W)`."""
    check_finite("pred", strip)
    decided: NDArray[Any] = strip.values.argmax(axis=0)[None].astype(dtype)
    return decided


def _values(sigmoid: bool, strip: Strip) -> NDArray[Any]:
    check_finite("pred", strip)
    return _sigmoid(strip.values) if sigmoid else strip.values


def _probabilities(sigmoid: bool, coded: bool, strip: Strip) -> NDArray[Any]:
    """Return probabilities `(classes, h, W)` of blended scores: float32, or uint8 in steps of 1/250."""
    check_finite("prob", strip)
    values = strip.values
    if sigmoid:
        found = _sigmoid(values)
    else:
        powers = np.exp(values - values.max(axis=0))
        found = powers / powers.sum(axis=0)
    coded_values: NDArray[Any] = np.rint(found * _STEPS).astype(np.uint8) if coded else found
    return coded_values


def _sigmoid(values: NDArray[Any]) -> NDArray[Any]:
    result: NDArray[Any] = 1 / (1 + np.exp(-values))
    return result
