"""The commands as functions over xarray: `generate`, `tokenize`, `reconstruct`, `embed` and `predict`.

Each takes a raster and gives an `xarray.Dataset`, whose values are the command's products, bit for bit. A raster is

- a path (anything GDAL opens), or a `DataArray` (band, y, x), or (y, x) for one band, as `rioxarray.open_rasterio` gives
  it. Its modality is inferred and checked as for a file, from band names (its `long_name` or `band`), tags, count and
  dtype; `modality` sets it, like the command's `--in`. Its CRS, affine and nodata are what `.rio` says.
  Float arrays with NaN for nodata (`masked=True`) are as good as integers with a nodata value.
- for `generate`, `embed` and `predict` also a dict of them by modality: files are warped to the first one's grid, arrays
  have to lie on it; for `embed` and `predict` with a list of them, in order of time, where there are several dates of one.

A path, or an array backed by dask, gives a lazy Dataset: for each block of rows, one dask task computes all products.
By default blocks repeat at most 7 % of the tiles; `blocks` asks for more and smaller ones. Compute or store
the Dataset as a whole, or each variable computes the blocks again. An array in memory gives a Dataset in memory, at once
and without dask. For a raster larger than memory give a path, which is read window by window: dask holds the rows of an
array in memory until they are used.

The Dataset has one variable a product, named as the command's files are. Dimensions are (y, x), or (band, y, x) with the
names of the bands as coordinate (`band_S2L2A` and so on, where products have different ones). CRS and affine are those of
the product, in `spatial_ref`; a rotated raster has no `x` and `y`. `_FillValue` is nodata, values are not masked. Attributes
name bands, units and classes; `TMTOOL_PROVENANCE` (JSON) says how the product was made.

Keywords are the command's options and mean the same; errors (`tmtool.errors.TmtoolError`) call them by their own names.
All checks that need no model are made when a function is called; notes go to the `tmtool` logger.
"""

import functools
import inspect
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypedDict, TypeVar, Unpack, get_args, get_type_hints

import xarray as xr

from tmtool import models
from tmtool.errors import TmtoolError, UsageError
from tmtool.modality import Modality, find
from tmtool.models import RANDOM
from tmtool.names import in_one_word
from tmtool.scene.datasets import computed, dataset, lazy, making_of
from tmtool.scene.job import Job, Prepared, Scene, look_at, prepared_of
from tmtool.scene.seen import seen
from tmtool.scene.status import notice_of
from tmtool.settings import (
    Anchor,
    Codes,
    Dtype,
    Extent,
    Merge,
    Normalize,
    Pool,
    Reading,
    Resampling,
    RunSettings,
    Sampling,
    Solver,
    Tiling,
    Vectors,
)
from tmtool.source import check_reading, grid_of, masked, on_grid, placed, units_of
from tmtool.source import inspect as look
from tmtool.source.deliveries.stac import set_sign
from tmtool.tasks import Embed, Generate, Reconstruct, Task, Tokenize
from tmtool.tasks.predict import ProbabilityType, TaskFiles, task_of

P = ParamSpec("P")
Made = TypeVar("Made", bound=xr.Dataset | xr.DataArray)

_log = logging.getLogger("tmtool")

_FloatDtype = Literal["float32", "float16"]

Raster = str | os.PathLike[str] | xr.DataArray
"""A path or an array."""


class ReadingOptions(TypedDict, total=False):
    """Keywords about how rasters are read, and which part of them."""

    s2_offset: float | None
    unit: Mapping[str, str] | None
    lulc_codes: Codes
    grid: str
    resampling: Resampling
    min_overlap: float
    mask: str | Sequence[str] | None
    sign: str
    bbox: str | Sequence[float]
    window: str | Sequence[int]
    aoi: str | os.PathLike[str]
    anchor: Anchor


class _Model(ReadingOptions, total=False):
    """Keywords of all functions."""

    model: str
    weights: str | os.PathLike[str] | None
    offline: bool
    device: str
    precision: str
    compile: str
    batch_size: int | None
    crop: int | None
    stride: int | None
    delta: int | None
    blocks: int | None


class _Drawing(TypedDict, total=False):
    """Keywords of functions that draw tokens."""

    seed: int
    top_p: float
    top_k: int
    temperature: float


class _Decoding(TypedDict, total=False):
    """Keywords of functions that decode tokens."""

    solver: Solver
    timesteps: int | None
    clip_sigma: float | None
    samples: int


class PredictOptions(ReadingOptions, total=False):
    """Keywords of `predict`."""

    model_hub: str | None
    means: str | os.PathLike[str] | None
    stds: str | os.PathLike[str] | None
    device: str
    precision: str
    compile: str
    batch_size: int | None
    crop: int | None
    stride: int | None
    delta: int | None
    blocks: int | None
    offline: bool


class GenerateOptions(_Model, _Drawing, _Decoding, total=False):
    """Keywords of `generate`."""

    decoding_steps: int


class TokenizeOptions(_Model, total=False):
    """Keywords of `tokenize`."""


class ReconstructOptions(_Model, _Decoding, total=False):
    """Keywords of `reconstruct`."""

    seed: int


class EmbedOptions(_Model, _Drawing, total=False):
    """Keywords of `embed`."""

    layer: int | Sequence[int]
    merge: Merge
    bands: Mapping[str, Sequence[str]] | None
    tim: str | Sequence[str]
    coords: bool
    date: str | Sequence[str] | None
    normalize: Normalize
    pool: Pool
    dtype: Dtype
    checkpoint: str | os.PathLike[str] | None


_DEFAULTS: dict[str, Any] = {
    **{f.name: f.default for group in (RunSettings, Sampling, Vectors, Reading, Extent) for f in fields(group)},
    **{"unit": None, "mask": None, "sign": "", "crop": None, "stride": None, "delta": None, "blocks": None},
    **{"model_hub": None, "means": None, "stds": None},
    **{"layer": -1, "merge": "mean", "bands": None, "tim": (), "coords": False, "date": None, "checkpoint": None},
}


def _spoken(function: Callable[P, Made]) -> Callable[P, Made]:
    """Give a function its options as keywords, and have error messages name the keywords instead of command-line options."""
    hints = get_type_hints(function)
    options = get_args(hints.pop("options"))[0] if get_args(hints["options"]) else hints.pop("options")
    own = [p for p in inspect.signature(function).parameters.values() if p.name != "options"]
    keywords = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS[name], annotation=hint)
        for name, hint in get_type_hints(options).items()
    ]
    names = {"in": "modality", **{p.name.replace("_", "-"): p.name for p in (*own, *keywords)}}
    flags = re.compile(rf"--({'|'.join(sorted(names, key=len, reverse=True))})\b")

    @functools.wraps(function)
    def call(*args: P.args, **given: P.kwargs) -> Made:
        if unknown := set(given) - {p.name for p in (*own, *keywords)}:
            raise TypeError(f"{function.__name__}() got an unexpected keyword argument {min(unknown)!r}")
        try:
            return function(*args, **given)
        except TmtoolError as error:
            said = flags.sub(lambda flag: names[flag[1]], str(error))
            if said == str(error):
                raise
            raise type(error)(said) from error

    call.__signature__ = inspect.Signature([*own, *keywords], return_annotation=hints["return"])  # type: ignore[attr-defined]
    return call


@_spoken
def open_raster(raster: Raster, modality: str | None = None, **options: Unpack[ReadingOptions]) -> xr.DataArray:
    """Return a raster as a model sees it: (band, y, x) float32, in the modality's unit, NaN where there is no data.

    What the options say is done: offsets and units, masks, warps, parts. A path gives a lazy array of dask, which reads the
    windows that are asked for; its attributes say what was done. Raises `InputError` and `UsageError`.

    Example: `tmtool.open("S2B_MSIL2A_20240203T143729.SAFE", mask="clouds").sel(band="B04").plot.imshow()`

    Example: `tmtool.open("s1rtc.tif", "S1RTC", unit={"S1RTC": "linear"}, grid="Santiago.tif")`
    """
    reading, extent = _reading(options), _extent(options)
    source = look(
        _path(raster) if isinstance(raster, (str, os.PathLike)) else raster,
        find(modality) if modality else None,
        reading,
    )
    check_reading([source], reading, source.path)
    grid = grid_of({source.modality.name: source}, reading.grid)
    part = placed(grid, replace(extent, anchor="raster"), Tiling(), source.path)
    there = on_grid(source, grid, reading.resampling, reading.min_overlap, f"--grid {reading.grid}")
    return seen(masked(there, grid, reading.mask), part)


@_spoken
def generate(
    raster: Raster | Mapping[str, Raster],
    out: str | Sequence[str],
    *,
    modality: str | None = None,
    **options: Unpack[GenerateOptions],
) -> xr.Dataset:
    """Generate the modalities `out` from a raster, or from several of one scene; each conditions the next.

    Returns a Dataset on the raster's grid: `S1GRD` and `S1RTC` (band, y, x) float32, dB; `DEM` (y, x) float32, m; `NDVI`
    (y, x) float32, -1 to 1; `LULC` (y, x) uint8, classes as its `flag_meanings` says, 0 for nodata; `S2L2A` (band, y, x)
    uint16, DN, 0 for nodata. Nodata of floats is NaN. With `samples` above 1 each is the mean of so many draws, and beside it are
    `S1GRD_std` and the like, float32 in the same unit, and of land cover `LULC_prob` (band, y, x) and `LULC_entropy` (y, x), nats.

    Raises `UsageError` for options and `InputError` for rasters that cannot work, `WeightsError`, `DeviceError`; while
    computing also `ReadError`, `ProductError` and `OutOfMemory`.

    Example: `tmtool.generate("Santiago.tif", ["S1GRD", "LULC"]).to_zarr("Santiago.zarr")`

    Example: `tmtool.generate({"S2L2A": s2, "DEM": "dem.tif"}, "S1GRD")["S1GRD"].sel(band="VV")`
    """
    return _run(Generate(_outputs(out), _sampling(options)), raster, modality, options)


@_spoken
def tokenize(raster: Raster, *, modality: str | None = None, **options: Unpack[TokenizeOptions]) -> xr.Dataset:
    """Turn a raster into tokens: one code of its modality's codebook for each patch of 16 x 16 px.

    Returns a Dataset of `{MOD}_tokens` (y, x) uint16, nodata 65535, on the patch grid; and, as a patch may hold pixels of
    both kinds, `{MOD}_valid` (y_px, x_px) uint8, 1 where the raster has data, else 0, on the raster's grid, whose CRS and
    affine are in `spatial_ref_px`. `reconstruct` takes the Dataset. Saved as GeoTIFFs, with `{MOD}_valid.tif` beside the
    tokens, the command takes them too. Raises as `generate` does.

    Example: `tmtool.tokenize("Santiago.tif")["S2L2A_tokens"].rio.to_raster("tokens.tif")`
    """
    return _run(Tokenize(), raster, modality, options)


@_spoken
def reconstruct(
    raster: Raster | xr.Dataset, *, modality: str | None = None, **options: Unpack[ReconstructOptions]
) -> xr.Dataset:
    """Decode tokens to pixels: of the Dataset or the token raster that tokenize made, or of a raster, tokenized on the way.

    Returns a Dataset of `{MOD}_rec` on the raster's grid, with dimensions, dtype and unit as `generate` gives the modality.
    All ways give the same pixels with the same tiles and seed. Raises as `generate` does, and `InputError` for tokens of
    another tokenizer than the one in use.

    Example: `tmtool.reconstruct(tmtool.tokenize("Santiago.tif"))["S2L2A_rec"].compute()`
    """
    return _run(Reconstruct(_sampling(options)), raster, modality, options)


@_spoken
def embed(
    raster: Raster | Mapping[str, Raster | Sequence[Raster]],
    *,
    modality: str | None = None,
    **options: Unpack[EmbedOptions],
) -> xr.Dataset:
    """Embed a raster, or several of one scene, with an encoder: one vector for each patch, tile or scene.

    Returns a Dataset of `embed` (band, y, x) float32 or float16, nodata NaN, one band a dimension of the vectors, on the
    grid of what is `pool`ed; with several layers `embed_layer5` and so on, with `merge` "dict" `embed_S2L2A` and so on.
    `bands` are those that are used of a modality: `{"S2L2A": ["BLUE", "GREEN", "RED"]}`. Codes of int8 and other formats are
    the command's. Raises as `generate` does.

    Example: `tmtool.embed("Santiago.tif", normalize="l2")["embed"].sel(band="0000")`
    """
    asked: dict[str, Any] = _DEFAULTS | {"dtype": "float32"} | dict(options)
    choices = (("merge", Merge), ("normalize", Normalize), ("pool", Pool), ("dtype", _FloatDtype))
    for option, allowed in choices:
        if asked[option] not in get_args(allowed):
            raise UsageError(f"--{option} {asked[option]}: choose from {', '.join(get_args(allowed))}.")
    layer, checkpoint = asked["layer"], asked["checkpoint"]
    task = Embed(
        layers=(layer,) if isinstance(layer, int) else tuple(layer),
        merge=asked["merge"],
        coords=asked["coords"],
        imagined=_outputs(asked["tim"]),
        sampling=_sampling(options),
        used={find(name).name: find(name).subset(names).bands for name, names in (asked["bands"] or {}).items()},
        tuned=Path(checkpoint).absolute() if checkpoint is not None else None,
        dates=(asked["date"],) if isinstance(asked["date"], str) else tuple(asked["date"] or ()),
        vectors=Vectors(asked["normalize"], asked["dtype"], pool=asked["pool"]),
    )
    return _run(task, raster, modality, options)


@_spoken
def predict(
    raster: Raster | Mapping[str, Raster | Sequence[Raster]],
    checkpoint: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | None = None,
    *,
    probabilities: bool = False,
    dtype: ProbabilityType = "float32",
    modality: str | None = None,
    **options: Unpack[PredictOptions],
) -> xr.Dataset:
    """Predict with a task that was fine-tuned with TerraTorch: its `checkpoint`, and its YAML `config`.

    Returns a Dataset of `pred`: classes (y, x) uint8, 255 for nodata (uint16, 65535, where there are many), or values (band,
    y, x) float32, nodata NaN; of a task with one answer an image on the grid of tiles. `probabilities` adds `prob`
    (band, y, x), a band a class, float32, or uint8 in steps of 1/250. Tiles are the config's `tiled_inference_parameters`
    unless `crop`, `stride` or `delta` say otherwise. With `model_hub`, "organisation/name" on the Hugging Face hub, files are
    found there. Raises as `generate` does.

    Example: `tmtool.predict("Valencia.tif", "best.ckpt", "burnscars.yaml")["pred"].rio.to_raster("burned.tif")`

    Example: `tmtool.predict({"S2L2A": ["may.tif", "june.tif"], "DEM": "dem.tif"}, "flood.ckpt", "flood.yaml")`
    """
    if dtype not in get_args(ProbabilityType):
        raise UsageError(f"--dtype {dtype}: choose from {', '.join(get_args(ProbabilityType))}.")
    means, stds = (None if path is None else os.fspath(path) for path in (options.get("means"), options.get("stds")))
    files = TaskFiles(
        Path(config) if config is not None else None,
        Path(checkpoint) if checkpoint is not None else None,
        means,
        stds,
        options.get("model_hub"),
        options.get("offline", False),
    )
    task, tiling = task_of(files, probabilities, dtype)
    own = {"crop": tiling.crop, "stride": tiling.stride, "delta": tiling.delta}
    given = {name: value for name, value in options.items() if value is not None}
    return _run(task, raster, modality, own | given | {"model": task.model, "offline": True})


def _sampling(options: Mapping[str, Any]) -> Sampling:
    names = {f.name for f in fields(Sampling)}
    return Sampling(**{name: value for name, value in options.items() if name in names})


def _outputs(names: str | Sequence[str]) -> tuple[str, ...]:
    """Return modalities by their names, which may come as one text with commas too."""
    listed = [name for name in names.split(",") if name.strip()] if isinstance(names, str) else names
    return tuple(find(name, output=True).name for name in listed)


def _folder(weights: str | os.PathLike[str] | None) -> str | None:
    """Return the weights' location as an absolute path, as blocks may be computed in another working directory."""
    return weights if weights in (None, RANDOM) else os.path.abspath(weights)


def _reading(options: Mapping[str, Any]) -> Reading:
    if options.get("sign"):
        set_sign(options["sign"])
    said = {f.name: options[f.name] for f in fields(Reading) if options.get(f.name) is not None}
    masks, units = said.pop("mask", ()), said.pop("unit", {})
    masks = masks.split(",") if isinstance(masks, str) else masks
    return Reading(**said, mask=tuple(masks), unit=units_of([f"{m}={unit}" for m, unit in units.items()]))


def _extent(options: Mapping[str, Any]) -> Extent:
    said: dict[str, Any] = {f.name: _words(options[f.name]) for f in fields(Extent) if options.get(f.name) is not None}
    return Extent(**said)


def _words(value: Any) -> str:
    """Return a value as the command line has it: a path, or numbers with commas."""
    return os.fspath(value) if isinstance(value, (str, os.PathLike)) else ",".join(map(str, value))


def _job(task: Task, options: Mapping[str, Any]) -> Job:
    """Return the job that the options of a function ask for."""
    names = {f.name for f in fields(RunSettings)}
    given = {name: value for name, value in options.items() if name in names}
    given |= {"reading": _reading(options), "extent": _extent(options)}
    given["weights"] = _folder(options.get("weights"))
    entry = models.find(options.get("model", RunSettings.model))
    tiles = {name: options.get(name) for name in ("crop", "stride", "delta")}
    tiling = Tiling.fitting(entry.patch, on_patch_grid=task.on_patch_grid, own=entry.tiling, **tiles)
    return Job(task, tiling=tiling, **given)


def _run(task: Task, raster: Any, modality: str | None, options: Mapping[str, Any]) -> xr.Dataset:
    """Return the products of a task, computed or lazy."""
    job, blocks = _job(task, options), options.get("blocks")
    if blocks is not None and blocks < 1:
        raise UsageError(f"blocks {blocks} must be at least 1.")
    notes = job.check()
    prepared = _looked_at(job, _inputs(job, raster, modality))
    making = making_of(job, prepared)
    notes += [f"{source.path}: {text}" for source in prepared.sources.values() for text in source.warnings]
    for note in filter(None, [*notes, notice_of(job)]):
        _log.warning("%s", note)
    wanted_lazy = any(source.array is None or source.array.lazy for source in prepared.sources.values())
    return dataset(making, lazy(making, blocks or 1) if wanted_lazy else computed(making))


def _inputs(job: Job, raster: Any, modality: str | None) -> list[tuple[Modality | None, Any]]:
    """Return the rasters with their modalities. Paths are absolute, as blocks may be computed in another working directory."""
    if isinstance(raster, Mapping) and not isinstance(raster, xr.Dataset):
        if modality is not None or not raster:
            raise UsageError("A dict of rasters names the modality of each: give at least one, and no other modality.")
        listed = ((name, one if isinstance(one, (list, tuple)) else [one]) for name, one in raster.items())
        pairs = [(name, one) for name, several in listed for one in several]
    else:
        only = next(iter(job.task.bands)) if len(job.task.bands) == 1 else None
        pairs = [(modality or only, raster)]
    return [
        (None if name is None else _used(job, name), _path(one) if isinstance(one, (str, os.PathLike)) else one)
        for name, one in pairs
    ]


def _path(path: str | os.PathLike[str]) -> str:
    return os.path.abspath(path) if os.path.exists(path) else in_one_word(os.fspath(path))  # GDAL opens more than files


def _used(job: Job, name: str) -> Modality:
    """Return a modality with the bands of it that are used."""
    modality = find(name)
    return modality.subset(job.task.bands[modality.name]) if modality.name in job.task.bands else modality


def _looked_at(job: Job, inputs: Sequence[tuple[Modality | None, Any]]) -> Prepared:
    """Check all that can be known before a model is loaded."""
    if job.task.one_input and len(inputs) > 1:
        raise UsageError(f"{job.task.name} takes one raster at a time, got {len(inputs)}.")
    sources = [look_at(job, raster, modality) for modality, raster in inputs]
    scene = Scene(tuple((s.modality, s.path) for s in sources), "array", Path())
    return prepared_of(job, scene, sources)
