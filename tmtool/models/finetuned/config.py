"""The configuration of a fine-tuned task, read from TerraTorch's YAML: everything that predicting needs to know of it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from tmtool.errors import UsageError
from tmtool.models.finetuned._document import Component, Values, component, read_yaml, transforms
from tmtool.models.finetuned.inputs import Joined, Source, TaskInput, task_inputs

Kind = Literal["segmentation", "regression", "classification", "multilabel", "scalar_regression"]

PER_PIXEL: tuple[Kind, ...] = ("segmentation", "regression")
"""Kinds that answer for each pixel, rather than for each tile."""

TASKS: dict[str, Kind] = {
    "SemanticSegmentationTask": "segmentation",
    "PixelwiseRegressionTask": "regression",
    "ClassificationTask": "classification",
    "MultiLabelClassificationTask": "multilabel",
    "ScalarRegressionTask": "scalar_regression",
}
"""TerraTorch's tasks that can be predicted with, by class."""

FACTORIES = ("EncoderDecoderFactory", "PrithviModelFactory", "SMPModelFactory", "TimmModelFactory")
"""TerraTorch's model factories whose networks answer as these tasks need."""

_AS_THEY_ARE = {  # transforms that leave pixels as they are, or only move them about at random in training
    *("ToTensorV2", "MultimodalToTensor", "FlattenTemporalIntoChannels", "UnflattenTemporalFromChannels"),
    *("D4", "HorizontalFlip", "VerticalFlip", "Flip", "Transpose", "RandomRotate90", "SquareSymmetry"),
}
_SIZES = {"Resize", "CenterCrop", "RandomCrop"}
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_POOLED_ANY = ("mean", "max", "keep")


@dataclass(frozen=True)
class Tiling:
    """How TerraTorch cuts a raster for this task: in px, with the defaults of its `tiled_inference`.

    `delta` is what it leaves of the delta asked for. `blend` weights overlaps by their distance from the border, else
    all count alike; with `average` off the last tile wins.
    """

    crop: int = 224
    stride: int = 192
    delta: int = 8
    blend: bool = True
    average: bool = True


@dataclass(frozen=True)
class TaskConfig:
    """A fine-tuned task. `path` names its config in messages.

    The network takes `inputs` in order, `joined` as one tensor, by name, or by concatenating bands; with `temporal`
    each has `dates` dates (None: any number) and a time axis. It gives `channels` channels: scores of classes, or
    values. `class_names` is empty where the config has none. `tiling` is None where the config does not say.
    `notes` are for the user to know before a run.
    """

    path: str
    kind: Kind
    factory: str
    model_args: Mapping[str, Any]
    inputs: tuple[TaskInput, ...]
    joined: Joined
    temporal: bool
    dates: int | None
    channels: int
    class_names: tuple[str, ...] = ()
    ignore_index: int | None = None
    tiling: Tiling | None = None
    notes: tuple[str, ...] = ()

    @property
    def per_pixel(self) -> bool:
        """Whether there is an answer for each pixel, rather than for each tile."""
        return self.kind in PER_PIXEL

    @property
    def has_classes(self) -> bool:
        """Whether the answer are scores of classes, rather than values."""
        return self.kind in ("segmentation", "classification", "multilabel")

    @property
    def task(self) -> str:
        """The task's name in terratorch's factories."""
        return "classification" if self.kind == "multilabel" else self.kind

    def check_dates(self, counts: Mapping[str, int]) -> int:
        """Return the number of dates of a run, given those of each input (one stands for all, as of a DEM).

        Raises `UsageError` where the network takes another number.
        """
        several = {count for count in counts.values() if count > 1}
        said = ", ".join(f"{name}: {count}" for name, count in counts.items())
        if len(several) > 1:
            raise UsageError(f"Dates: {said}. All inputs with several dates need the same number.")
        found = several.pop() if several else 1
        if self.dates is not None and found != self.dates:
            raise UsageError(
                f"{self.path}: the network takes {self.dates} date{'s' * (self.dates > 1)}, found {found} ({said}). Give one "
                "--in MODALITY=FILE a date, in order of time."
            )
        return found


def read_config(path: str | Path, means: str | None = None, stds: str | None = None) -> TaskConfig:
    """Read a task from TerraTorch's YAML. `means` and `stds` are files or `pretraining`, and go before the config's.

    Nothing in the file is run. Raises `UsageError` for what is unknown or not supported.
    """
    document = read_yaml(Path(path))
    model = component(str(path), document, "model")
    has_data = isinstance(document, dict) and document.get("data") is not None
    data = component(str(path), document, "data") if has_data else None
    return task_config(str(path), model, data, means, stds)


def task_config(
    path: str, model: Component, data: Component | None, means: str | None = None, stds: str | None = None
) -> TaskConfig:
    """Make a task of a model section and a data section; see `read_config`."""
    kind = _kind(path, model)
    factory, model_args = _network(path, model)
    source = Source(path, data, model_args, means, stds)
    notes = _transform_notes(path, source.args)
    inputs, joined = task_inputs(source)
    temporal, dates = _dates(source)
    _check_statistics_by_date(path, inputs, dates)
    channels = _channels(path, kind, model, source)
    if source.args.get("use_metadata"):
        notes.append(
            "use_metadata: in training the network was also given dates and coordinates, which tmtool does not give it"
        )
    tiling = _tiling(path, model.args.get("tiled_inference_parameters"), notes)
    ignored = model.args.get("ignore_index")
    return TaskConfig(
        path, kind, factory, model_args, inputs, joined, temporal, dates, channels,
        _class_names(path, kind, model, source, channels), ignored if isinstance(ignored, int) else None, tiling, tuple(notes),
    )  # fmt: skip


def _kind(path: str, model: Component) -> Kind:
    foreign = "." in model.path and not model.path.startswith("terratorch.")
    if foreign or model.name not in TASKS:
        raise UsageError(
            f"{path}: model.class_path {model.path} is not a task that tmtool can predict with; those are "
            f"TerraTorch's {', '.join(TASKS)}."
        )
    return TASKS[model.name]


def _network(path: str, model: Component) -> tuple[str, Values]:
    factory, model_args = model.args.get("model_factory"), model.args.get("model_args")
    if model.args.get("model") is not None or not isinstance(factory, str) or not isinstance(model_args, dict):
        raise UsageError(
            f"{path}: expected model.init_args.model_factory (a name) and model_args (names with values): the network is built "
            "from these alone, and no other code is run."
        )
    if factory not in FACTORIES:
        raise UsageError(
            f"{path}: model_factory {factory} is not among those that tmtool builds: {', '.join(FACTORIES)}."
        )
    backbone = model_args.get("backbone")
    if not isinstance(backbone, str):
        raise UsageError(
            f"{path}: model_args.backbone is {backbone!r:.60}, expected the name of one of TerraTorch's backbones."
        )
    if factory == "SMPModelFactory" and "." in backbone and not backbone.startswith("tu-"):
        raise UsageError(f"{path}: backbone {backbone} is code of your own, which tmtool does not run.")
    for key, value in model_args.items():
        _check_plain(path, f"model_args.{key}", value, key in ("backbone", "model"))
    if model_args.get("peft_config") and find_spec("peft") is None:
        raise UsageError(f"{path}: model_args.peft_config needs the package peft. Run pip install 'tmtool[peft]'.")
    return factory, model_args


def _check_plain(path: str, key: str, value: Any, name: bool) -> None:
    """Raise `UsageError` for a value by which terratorch would import code, other than torch's layers."""
    if isinstance(value, dict):
        if "class_path" in value:
            raise UsageError(f"{path}: {key} is code ({value['class_path']}), which tmtool does not run.")
        for part, inner in value.items():
            _check_plain(path, f"{key}.{part}", inner, False)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_plain(path, key, inner, False)
    elif (
        isinstance(value, str)
        and not name
        and not key.startswith("model_args.peft_config.")  # names of layers
        and _DOTTED.fullmatch(value)
        and not value.startswith(("torch.nn.", "HLSBands."))
    ):
        raise UsageError(f"{path}: {key} names code ({value}), which tmtool does not run; torch.nn's layers it knows.")


def _transform_notes(path: str, args: Values) -> list[str]:
    """Return what to say of the transforms of testing and predicting; raise `UsageError` for those that change the data."""
    notes = []
    for key in ("test_transform", "predict_transform"):
        for step in transforms(args, key):
            if step.name in _SIZES:
                size = next((step.args[k] for k in ("height", "size", "width") if step.args.get(k)), "")
                notes.append(
                    f"{key} has {step.name} {size}: tmtool does not resize tiles, so the raster's pixels "
                    "must have the size that they had after this step"
                )
            elif step.name not in _AS_THEY_ARE:
                raise UsageError(
                    f"{path}: {key} has {step.path}, which changes the data in a way that tmtool does not support. It supports "
                    f"{', '.join(sorted(_AS_THEY_ARE | _SIZES))}."
                )
    return notes


def _dates(source: Source) -> tuple[bool, int | None]:
    """Return whether the network takes a time axis, and the number of dates that all settings agree on."""
    args, model_args = source.args, source.model_args
    wrapped = bool(model_args.get("backbone_use_temporal"))
    pooling = model_args.get("backbone_temporal_pooling", "mean")
    lengths = model_args.get("backbone_temporal_subset_lengths")
    frames = model_args.get("backbone_num_frames", model_args.get("num_frames"))
    if frames is None and source.backbone.startswith("prithvi_") and not wrapped:
        frames = 1
    expanded = args.get("expand_temporal_dimension", bool(source.built_in and source.built_in.dates > 1))
    said = {
        "backbone_temporal_n_timestamps": model_args.get("backbone_temporal_n_timestamps") if wrapped else None,
        "backbone_temporal_subset_lengths": sum(lengths) if wrapped and lengths else None,
        "temporal pooling by difference": 2 if wrapped and pooling == "diff" and not lengths else None,
        "num_frames": None if wrapped else frames,
        "timesteps": len(args["timesteps"]) if isinstance(args.get("timesteps"), list) else None,
        "the data module": source.built_in.dates if source.built_in and expanded else None,
        "UnflattenTemporalFromChannels": _unflattened(args),
    }
    known = {who: int(count) for who, count in said.items() if count is not None}
    if len(set(known.values())) > 1:
        raise UsageError(
            f"{source.path}: these disagree on the number of dates: {', '.join(f'{w} {n}' for w, n in known.items())}."
        )
    temporal = wrapped or bool(expanded) or any(count > 1 for count in known.values())
    dates = next(iter(known.values()), None if temporal else 1)
    if dates is None and wrapped and pooling not in _POOLED_ANY:
        raise UsageError(f"{source.path}: temporal pooling {pooling} needs backbone_temporal_n_timestamps.")
    return temporal, dates


def _unflattened(args: Values) -> int | None:
    for key in ("test_transform", "predict_transform", "val_transform", "train_transform"):
        for step in transforms(args, key):
            if step.name == "UnflattenTemporalFromChannels" and step.args.get("n_timesteps"):
                return int(step.args["n_timesteps"])
    return None


def _check_statistics_by_date(path: str, inputs: Sequence[TaskInput], dates: int | None) -> None:
    for entry in inputs:
        for count in {len(entry.means[0]), len(entry.stds[0])} - {1}:
            if count != dates:
                raise UsageError(
                    f"{path}: means or stds of {entry.name} are for {count} dates, the network takes {dates}."
                )


def _channels(path: str, kind: Kind, model: Component, source: Source) -> int:
    model_args = source.model_args
    if kind in ("segmentation", "classification", "multilabel"):
        found = model_args.get("num_classes", source.args.get("num_classes"))
        if not isinstance(found, int) or found < 1:
            raise UsageError(f"{path}: model_args.num_classes is {found!r}, expected how many classes there are.")
        return found
    found = model_args.get("num_outputs", model.args.get("num_outputs", model_args.get("num_classes", 1)))
    return found if isinstance(found, int) and found > 0 else 1


def _class_names(path: str, kind: Kind, model: Component, source: Source, channels: int) -> tuple[str, ...]:
    key = "class_names" if kind in ("segmentation", "classification", "multilabel") else "var_names"
    names = model.args.get(key) or source.args.get(key) or ()
    if names and len(names) != channels:
        raise UsageError(f"{path}: {len(names)} {key} for {channels} classes or values.")
    return tuple(str(name) for name in names)


def _tiling(path: str, found: Any, notes: list[str]) -> Tiling | None:
    if not found:
        return None
    if not isinstance(found, dict):
        raise UsageError(f"{path}: tiled_inference_parameters is {type(found).__name__}, expected names with values.")
    sizes = {}
    for name, default in (("crop", 224), ("stride", 192)):
        sides = {found.get(f"{axis}_{name}") or found.get(name) or default for axis in "hw"}
        if len(sides) > 1 or not all(isinstance(side, int) and side > 0 for side in sides):
            raise UsageError(
                f"{path}: tiled_inference_parameters: {name} is {sorted(map(str, sides))}; tmtool's tiles are square."
            )
        sizes[name] = sides.pop()
    crop, stride = sizes["crop"], sizes["stride"]
    delta = min(int(found.get("delta", 8)), (crop - stride) // 2)  # as TerraTorch does, so that all pixels are covered
    blend, average = bool(found.get("blend_overlaps", True)), bool(found.get("average_patches", True))
    if not blend or not average or not found.get("padding", "reflect"):
        notes.append("tiled_inference_parameters: overlaps are blended and borders reflected regardless")
    return Tiling(crop, stride, delta, blend, average)
