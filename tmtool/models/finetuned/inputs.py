"""What a fine-tuned task takes in: which modalities, which bands in which order, and how each is standardised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tmtool.errors import UsageError
from tmtool.modality import MODALITIES, S2_BANDS, S2_NAMES
from tmtool.models.finetuned._document import Component, Values
from tmtool.models.finetuned._statistics import (
    BUILT_IN,
    PRETRAINING,
    BuiltIn,
    Statistic,
    given,
    pretraining,
    statistic,
    three_ways,
)

Joined = Literal["tensor", "dict", "concat"]
"""How the network takes its inputs: one alone, several by name, or several as the bands of one."""

GENERIC = (
    "GenericNonGeoSegmentationDataModule",
    "GenericNonGeoPixelwiseRegressionDataModule",
    "GenericNonGeoClassificationDataModule",
)
MULTIMODAL = "GenericMultiModalDataModule"
IMPACT_MESH = "ImpactMeshDataModule"

_MODALITIES = (
    ("s2l2a", "S2L2A"),
    ("s2l1c", "S2L1C"),
    ("s1rtc", "S1RTC"),
    ("s1", "S1GRD"),
    ("rgb", "RGB"),
    ("dem", "DEM"),
    ("lulc", "LULC"),
    ("ndvi", "NDVI"),
)
"""How terratorch finds a modality by its name: the first of these that is in it."""


@dataclass(frozen=True)
class TaskInput:
    """One input of a network, as its training saw it.

    `name` is the network's, `modality` the one of tmtool's that a raster is read as, or None. `bands` are in the order
    in which the network takes them; `file_bands` are those of a raster like the training's, by position (may be empty).
    Bands have tmtool's names (B02, VV) where they are known, else the config's. `means` and `stds` are in the unit that
    values have after they were multiplied by `scale`, and `statistics` says where they are known from. `fill` takes the
    place of pixels without data, as they are in the raster; None stands for the mean.
    """

    name: str
    modality: str | None
    bands: tuple[str, ...]
    file_bands: tuple[str, ...]
    means: Statistic
    stds: Statistic
    statistics: str
    scale: float = 1.0
    fill: float | None = None

    @property
    def filled(self) -> tuple[float, ...]:
        """What takes the place of pixels without data, one value a band, as the raster's values are."""
        if self.fill is not None:
            return (self.fill,) * len(self.bands)
        return tuple(sum(row) / len(row) / self.scale for row in self.means)


@dataclass(frozen=True)
class Source:
    """What a data section and a backbone say, before it is made into inputs; `path` names the config in messages."""

    path: str
    data: Component | None
    model_args: Values
    means: str | None
    stds: str | None

    @property
    def args(self) -> Values:
        """The data module's arguments; none without a data section."""
        return self.data.args if self.data else {}

    @property
    def built_in(self) -> BuiltIn | None:
        """What the data module knows by itself."""
        return BUILT_IN.get(self.data.name) if self.data else None

    @property
    def backbone(self) -> str:
        """The backbone's name in terratorch's registries."""
        return str(self.model_args.get("backbone", "")).removeprefix("terratorch_")


def task_inputs(source: Source) -> tuple[tuple[TaskInput, ...], Joined]:
    """Return a task's inputs in order, and how the network takes them. Raises `UsageError` for what is not known."""
    _check_module(source)
    names = _names(source)
    joined: Joined = "dict" if _by_name(source) else "tensor"
    if source.args.get("concat_bands"):
        joined = "concat"
    inputs = tuple(_input(source, name, joined) for name in names)
    return _standardised(source, inputs), joined


def _check_module(source: Source) -> None:
    data = source.data
    if data is None or data.name in (*GENERIC, MULTIMODAL, IMPACT_MESH, *BUILT_IN):
        return
    if source.means is None or source.stds is None:
        reason = f"its data module {data.path} is not one that tmtool knows"
        raise three_ways(source.path, reason)


def _by_name(source: Source) -> bool:
    """Whether the data module gives a dictionary of modalities; without one, whether the backbone has several."""
    if source.data is None:
        return len(_backbone_modalities(source)) > 1
    return source.data.name == MULTIMODAL or ("modalities" in source.args and not source.built_in)


def _names(source: Source) -> list[str]:
    known = _backbone_modalities(source)
    if not _by_name(source):
        return known[:1] or ["image"]
    names = [str(m) for m in source.args.get("modalities") or known]
    images = source.args.get("image_modalities") or names
    for name in names:
        if name not in images or any(word in name.lower() for word in ("coord", "location", "caption", "text")):
            raise UsageError(f"{source.path}: modality {name} is not a raster; tmtool predicts from rasters only.")
    if not names:
        raise UsageError(f"{source.path}: data.init_args.modalities is empty.")
    if known and not source.args.get("concat_bands"):
        names = [name for name in names if name in known]  # TerraTorch's network warns of others and ignores them
        if not names:
            raise UsageError(
                f"{source.path}: the data's modalities {source.args.get('modalities')} are none of the backbone's: "
                f"{', '.join(known)}."
            )
    return names


def _backbone_modalities(source: Source) -> list[str]:
    """Return the names of the modalities that a TerraMind backbone takes; none for others."""
    found = source.model_args.get("backbone_modalities") or []
    entries = [found] if isinstance(found, dict | str) else found
    return [str(name) for entry in entries for name in (entry if isinstance(entry, dict) else [entry])]


def modality_of(name: str, bands: Sequence[str]) -> str | None:
    """Return which of tmtool's modalities an input is: by its name, as terratorch finds it, else by its bands."""
    plain = name.lower().replace("sen", "s")
    found = next((modality for mark, modality in _MODALITIES if mark in plain), None)
    if found or not bands:
        return found
    if set(bands) <= set(S2_BANDS):
        return "S2L2A"
    fitting = [m for m in ("S2L1C", "S1GRD", "DEM") if set(bands) <= set(MODALITIES[m].bands)]
    return fitting[0] if fitting else None


def _input(source: Source, name: str, joined: Joined) -> TaskInput:
    wanted, in_file = _bands(source, name, joined)
    modality = modality_of(name, wanted)
    if not wanted and modality:
        wanted = in_file = MODALITIES[modality].bands
    scale = source.args.get("constant_scale", source.built_in.scale if source.built_in else 1.0)
    if isinstance(scale, dict):
        scale = scale.get(name, 1.0)
    fill = source.args.get("no_data_replace", 0 if source.built_in else None)
    try:
        scale, fill = float(1.0 if scale is None else scale), None if fill is None else float(fill)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{source.path}: constant_scale and no_data_replace have to be numbers ({error}).") from error
    if not scale:
        raise UsageError(f"{source.path}: constant_scale of {name} is 0, which leaves nothing of the data.")
    return TaskInput(name, modality, wanted, in_file or wanted, (), (), "", scale, fill)


def _bands(source: Source, name: str, joined: Joined) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the bands that the network takes of an input, and those of a file like the training's; empty: not said."""
    args, built_in = source.args, source.built_in
    if built_in:
        wanted = _expanded(args.get("bands")) or _named(built_in.bands)
        return wanted, _named(built_in.file_bands or built_in.bands)

    def said(*keys: str) -> tuple[str, ...]:
        found = next((args[key] for key in keys if args.get(key)), None)
        return _expanded(found.get(name) if isinstance(found, dict) else found)

    in_file = said("predict_dataset_bands", "dataset_bands")
    wanted = said("predict_output_bands", "output_bands") or in_file
    if lacking := [band for band in wanted if in_file and band not in in_file]:
        raise UsageError(
            f"{source.path}: output_bands has {', '.join(lacking)}, and dataset_bands of {name} does not: {' '.join(in_file)}."
        )
    own = _backbone_bands(source, name)
    if wanted and own and joined != "concat" and len(wanted) != len(own):
        raise UsageError(
            f"{source.path}: {name} has {len(wanted)} bands in the data section ({' '.join(wanted)}), and the backbone takes "
            f"{len(own)} ({' '.join(own)})."
        )
    return wanted or own, in_file


def _backbone_bands(source: Source, name: str) -> tuple[str, ...]:
    for key in ("backbone_bands", "backbone_model_bands", "bands"):
        found = source.model_args.get(key)
        if found:
            return _expanded(found.get(name) if isinstance(found, dict) else found)
    if source.backbone.startswith("prithvi_"):
        return _named(("BLUE", "GREEN", "RED", "NIR_NARROW", "SWIR_1", "SWIR_2"))
    return ()


def _expanded(found: Any) -> tuple[str, ...]:
    """Return bands by name; a pair of numbers stands for all from the first to the last."""
    bands: list[Any] = []
    for band in found if isinstance(found, list | tuple) else []:
        pair = isinstance(band, list | tuple) and len(band) == 2 and all(isinstance(b, int) for b in band)
        bands += range(band[0], band[1] + 1) if pair else [band]
    return _named([str(band) for band in bands])


def _named(bands: Sequence[str]) -> tuple[str, ...]:
    """Return bands by tmtool's names where there are such."""
    plain = [band.strip().rpartition(".")[2] for band in bands]  # HLSBands.RED
    return tuple("elevation" if b.upper() == "DEM" else S2_NAMES.get(b.upper(), b) for b in plain)


def _standardised(source: Source, inputs: tuple[TaskInput, ...]) -> tuple[TaskInput, ...]:
    if (source.means is None) != (source.stds is None):
        raise UsageError("--means and --stds belong together: give both.")
    if source.means is not None and source.stds is not None:
        return _by_option(source, inputs, source.means, source.stds)
    return tuple(_by_config(source, entry) for entry in inputs)


def _by_option(source: Source, inputs: tuple[TaskInput, ...], means: str, stds: str) -> tuple[TaskInput, ...]:
    if (means == PRETRAINING) != (stds == PRETRAINING):
        raise UsageError("--means pretraining goes with --stds pretraining.")
    if means == PRETRAINING:
        found = {e.name: pretraining(source.path, source.backbone, e.modality, e.bands) for e in inputs}
        if any(entry.scale != 1 for entry in inputs):
            raise UsageError(
                f"{source.path}: --means pretraining is in the unit of the raster, and the config multiplies it by constant_scale. "
                "Give --means FILE --stds FILE."
            )
        return tuple(_with(source, e, *found[e.name], f"pretraining of {source.backbone}") for e in inputs)
    names = [entry.name for entry in inputs]
    tables = [given(option, file, names) for option, file in (("--means", means), ("--stds", stds))]
    return tuple(
        _with(source, e, *_pair(source, e, tables, ("--means", "--stds")), f"{means} and {stds}") for e in inputs
    )


def _by_config(source: Source, entry: TaskInput) -> TaskInput:
    data, built_in = source.data, source.built_in
    if data is None:
        raise three_ways(source.path, "there is no data section")
    if built_in:
        known = {b: (m, s) for b, m, s in zip(_named(built_in.bands), built_in.means, built_in.stds, strict=True)}
        if unknown := [band for band in entry.bands if band not in known]:
            raise UsageError(f"{source.path}: {data.name} has no band {', '.join(unknown)}; it has {' '.join(known)}.")
        means, stds = (tuple((known[b][i],) for b in entry.bands) for i in (0, 1))
        return _with(source, entry, means, stds, data.name)
    tables = [data.args.get(key) for key in ("means", "stds")]
    if not any(tables) and data.name in GENERIC and data.name != "GenericNonGeoClassificationDataModule":
        return _unchanged(source, entry, f"{data.name} without means and stds: not standardised, as in TerraTorch")
    return _with(source, entry, *_pair(source, entry, tables, ("means", "stds")), "the config")


def _unchanged(source: Source, entry: TaskInput, why: str) -> TaskInput:
    count = len(entry.bands)
    return _with(source, entry, ((0.0,),) * count, ((1.0,),) * count, why)


def _pair(
    source: Source, entry: TaskInput, tables: Sequence[Any], keys: tuple[str, str]
) -> tuple[Statistic, Statistic]:
    """Return an input's means and standard deviations out of two tables by name, or lists for the only input."""
    found: list[Any] = [t.get(entry.name) if isinstance(t, Mapping) else t for t in tables]
    if missing := [key for key, value in zip(keys, found, strict=True) if value is None]:
        known = source.data.name if source.data else "the config"
        raise three_ways(source.path, f"{known} says no {' and no '.join(missing)} of {entry.name}")
    folder = Path(source.path).parent
    means, stds = (
        statistic(source.path, f"{key} of {entry.name}", value, folder) for key, value in zip(keys, found, strict=True)
    )
    return means, stds


def _with(source: Source, entry: TaskInput, means: Statistic, stds: Statistic, origin: str) -> TaskInput:
    if not entry.bands:  # nothing names them: they are known by their number
        numbers = tuple(str(i + 1) for i in range(len(means)))
        entry = replace(entry, bands=numbers, file_bands=entry.file_bands or numbers)
    for what, values in (("means", means), ("stds", stds)):
        if len(values) != len(entry.bands):
            raise UsageError(
                f"{source.path}: {len(values)} {what} for {entry.name}, expected {len(entry.bands)}: one for each of "
                f"{' '.join(entry.bands) or 'its bands'}."
            )
    if any(not value > 0 for row in stds for value in row):
        raise UsageError(f"{source.path}: a standard deviation of {entry.name} is not above 0.")
    if not all(abs(value) < float("inf") for row in (*means, *stds) for value in row):
        raise UsageError(f"{source.path}: a mean or standard deviation of {entry.name} is not finite.")
    return replace(entry, means=means, stds=stds, statistics=origin)
