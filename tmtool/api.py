"""The four commands as functions over xarray: `generate`, `tokenize`, `reconstruct` and `embed`.

Each takes a raster and gives an `xarray.Dataset`, whose values are the command's products, bit for bit. A raster is

- a path (anything GDAL opens), or a `DataArray` (band, y, x), or (y, x) for one band, as `rioxarray.open_rasterio` gives
  it. What it is is found out as for a file, from band names (its `long_name` or `band`), tags, count and dtype, and
  checked as for a file; `modality` says it, like the command's `--in`. Its CRS, affine and nodata are what `.rio` says.
  Float arrays with NaN for nodata (`masked=True`) are as good as integers with a nodata value.
- for `generate` and `embed` also a dict of them by modality, all on one grid.

A path, or an array backed by dask, gives a lazy Dataset: one task of dask for each block of rows computes all of its
products. `blocks` asks for more and smaller ones than the fewest that repeat at most 7 % of the tiles. Compute or store
the Dataset as a whole, or each variable computes the blocks again. An array in memory gives a Dataset in memory, at once
and without dask. Keep in mind that dask holds an array's rows while they are waited for: a path is read window by window,
and so is what to give for a raster larger than memory.

The Dataset has one variable a product, named as the command's files are. Dimensions are (y, x), or (band, y, x) with the
names of the bands as coordinate (`band_S2L2A` and so on, where products have different ones). CRS and affine are those of
the product, in `spatial_ref`; a rotated raster has no `x` and `y`. `_FillValue` is nodata, values are not masked. Attributes
name bands, units and classes; `TMTOOL_PROVENANCE` (JSON) says how the product was made.

Keywords are the command's options and mean the same; errors (`tmtool.errors.TmtoolError`) call them by the command's names.
All that can be known before a model is loaded is checked when a function is called; notes go to the `tmtool` logger.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import xarray as xr

from tmtool.datasets import computed, dataset, lazy, making_of
from tmtool.errors import UsageError
from tmtool.job import Job, Prepared, Scene, look_at, prepared_of
from tmtool.modality import Modality, find
from tmtool.models import RANDOM, Sampling
from tmtool.plan import Tiling
from tmtool.status import notice_of
from tmtool.tasks import Embed, Generate, Reconstruct, Tokenize, Vectors

_log = logging.getLogger("tmtool")

Merge = Literal["mean", "max", "concat", "dict"]
Normalize = Literal["none", "l2"]
Pool = Literal["patch", "tile", "scene"]
Dtype = Literal["float32", "float16"]

Raster = str | os.PathLike[str] | xr.DataArray
"""A path or an array."""


def generate(
    raster: Raster | Mapping[str, Raster],
    out: str | Sequence[str],
    *,
    modality: str | None = None,
    s2_offset: float | None = None,
    model: str = "base",
    weights: str | os.PathLike[str] | None = None,
    offline: bool = False,
    device: str = "auto",
    precision: str = "auto",
    compile: str = "auto",
    batch_size: int | None = None,
    seed: int = 0,
    top_p: float = 0.8,
    top_k: int = 0,
    temperature: float = 1.0,
    decoding_steps: int = 1,
    timesteps: int = 10,
    clip_sigma: float | None = None,
    crop: int = 256,
    stride: int = 192,
    delta: int = 8,
    blocks: int | None = None,
) -> xr.Dataset:
    """Generate the modalities `out` from a raster, or from several of one scene; each conditions the next.

    Returns a Dataset on the raster's grid: `S1GRD` and `S1RTC` (band, y, x) float32, dB; `DEM` (y, x) float32, m; `NDVI`
    (y, x) float32, -1 to 1; `LULC` (y, x) uint8, classes as its `flag_meanings` says, 0 for nodata; `S2L2A` (band, y, x)
    uint16, DN, 0 for nodata. Nodata of floats is NaN.

    Raises `UsageError` for options and `InputError` for rasters that cannot work, `WeightsError`, `DeviceError`; while
    computing also `ReadError`, `ProductError` and `OutOfMemory`.

    Example: `tmtool.generate("Santiago.tif", ["S1GRD", "LULC"]).to_zarr("Santiago.zarr")`

    Example: `tmtool.generate({"S2L2A": s2, "DEM": "dem.tif"}, "S1GRD")["S1GRD"].sel(band="VV")`
    """
    job = Job(
        task=Generate(_outputs(out), Sampling(top_p, top_k, temperature, decoding_steps, timesteps, clip_sigma)),
        model=model,
        weights=_folder(weights),
        offline=offline,
        s2_offset=s2_offset,
        tiling=Tiling(crop, stride, delta),
        seed=seed,
        batch_size=batch_size,
        device=device,
        precision=precision,
        compile=compile,
    )
    return _run(job, raster, modality, blocks)


def tokenize(
    raster: Raster,
    *,
    modality: str | None = None,
    s2_offset: float | None = None,
    model: str = "base",
    weights: str | os.PathLike[str] | None = None,
    offline: bool = False,
    device: str = "auto",
    precision: str = "auto",
    compile: str = "auto",
    batch_size: int | None = None,
    crop: int = 256,
    stride: int = 192,
    delta: int = 16,
    blocks: int | None = None,
) -> xr.Dataset:
    """Turn a raster into tokens: one code of its modality's codebook for each patch of 16 x 16 px.

    Returns a Dataset of `{MOD}_tokens` (y, x) uint16, nodata 65535, on the patch grid; and, as a patch may hold pixels of
    both kinds, `{MOD}_valid` (y_px, x_px) uint8, 1 where the raster has data, else 0, on the raster's grid, whose CRS and
    affine are in `spatial_ref_px`. `reconstruct` takes the Dataset. Saved as GeoTIFFs, with `{MOD}_valid.tif` beside the
    tokens, the command takes them too. Raises as `generate` does.

    Example: `tmtool.tokenize("Santiago.tif")["S2L2A_tokens"].rio.to_raster("tokens.tif")`
    """
    job = Job(
        task=Tokenize(),
        model=model,
        weights=_folder(weights),
        offline=offline,
        s2_offset=s2_offset,
        tiling=Tiling(crop, stride, delta),
        batch_size=batch_size,
        device=device,
        precision=precision,
        compile=compile,
    )
    return _run(job, raster, modality, blocks)


def reconstruct(
    raster: Raster | xr.Dataset,
    *,
    modality: str | None = None,
    s2_offset: float | None = None,
    model: str = "base",
    weights: str | os.PathLike[str] | None = None,
    offline: bool = False,
    device: str = "auto",
    precision: str = "auto",
    compile: str = "auto",
    batch_size: int | None = None,
    seed: int = 0,
    timesteps: int = 10,
    clip_sigma: float | None = None,
    crop: int = 256,
    stride: int = 192,
    delta: int = 16,
    blocks: int | None = None,
) -> xr.Dataset:
    """Decode tokens to pixels: of the Dataset or the token raster that tokenize made, or of a raster, tokenized on the way.

    Returns a Dataset of `{MOD}_rec` on the raster's grid, with dimensions, dtype and unit as `generate` gives the modality.
    All ways give the same pixels with the same tiles and seed. Raises as `generate` does, and `InputError` for tokens of
    another tokenizer than the one in use.

    Example: `tmtool.reconstruct(tmtool.tokenize("Santiago.tif"))["S2L2A_rec"].compute()`
    """
    job = Job(
        task=Reconstruct(Sampling(timesteps=timesteps, clip_sigma=clip_sigma)),
        model=model,
        weights=_folder(weights),
        offline=offline,
        s2_offset=s2_offset,
        tiling=Tiling(crop, stride, delta),
        seed=seed,
        batch_size=batch_size,
        device=device,
        precision=precision,
        compile=compile,
    )
    return _run(job, raster, modality, blocks)


def embed(
    raster: Raster | Mapping[str, Raster],
    *,
    modality: str | None = None,
    s2_offset: float | None = None,
    layer: int | Sequence[int] = -1,
    merge: Merge = "mean",
    bands: Mapping[str, Sequence[str]] | None = None,
    tim: str | Sequence[str] = (),
    coords: bool = False,
    normalize: Normalize = "none",
    pool: Pool = "patch",
    dtype: Dtype = "float32",
    model: str = "base",
    checkpoint: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    offline: bool = False,
    device: str = "auto",
    precision: str = "auto",
    compile: str = "auto",
    batch_size: int | None = None,
    seed: int = 0,
    top_p: float = 0.8,
    top_k: int = 0,
    temperature: float = 1.0,
    crop: int = 256,
    stride: int = 192,
    delta: int = 16,
    blocks: int | None = None,
) -> xr.Dataset:
    """Embed a raster, or several of one scene, with TerraMind's encoder: one vector for each patch, tile or scene.

    Returns a Dataset of `embed` (band, y, x) float32 or float16, nodata NaN, one band a dimension of the vectors, on the
    grid of what is `pool`ed; with several layers `embed_layer5` and so on, with `merge` "dict" `embed_S2L2A` and so on.
    `bands` are those that are used of a modality: `{"S2L2A": ["BLUE", "GREEN", "RED"]}`. Codes of int8 and other formats are
    the command's. Raises as `generate` does.

    Example: `tmtool.embed("Santiago.tif", normalize="l2")["embed"].sel(band="0000")`
    """
    chosen = (
        ("merge", merge, Merge),
        ("normalize", normalize, Normalize),
        ("pool", pool, Pool),
        ("dtype", dtype, Dtype),
    )
    for option, value, choices in chosen:
        if value not in get_args(choices):
            raise UsageError(f"--{option} {value}: choose from {', '.join(get_args(choices))}.")
    job = Job(
        task=Embed(
            layers=(layer,) if isinstance(layer, int) else tuple(layer),
            merge=merge,
            coords=coords,
            imagined=_outputs(tim),
            sampling=Sampling(top_p, top_k, temperature),
            used={find(name).name: find(name).subset(names).bands for name, names in (bands or {}).items()},
            tuned=Path(checkpoint).absolute() if checkpoint is not None else None,
            vectors=Vectors(normalize, dtype, pool=pool),
        ),
        model=model,
        weights=_folder(weights),
        offline=offline,
        s2_offset=s2_offset,
        tiling=Tiling(crop, stride, delta),
        seed=seed,
        batch_size=batch_size,
        device=device,
        precision=precision,
        compile=compile,
    )
    return _run(job, raster, modality, blocks)


def _outputs(names: str | Sequence[str]) -> tuple[str, ...]:
    """Return modalities by their names, which may come as one text with commas too."""
    listed = [name for name in names.split(",") if name.strip()] if isinstance(names, str) else names
    return tuple(find(name, output=True).name for name in listed)


def _folder(weights: str | os.PathLike[str] | None) -> str | None:
    """Return where weights lie, from wherever a block is computed."""
    return weights if weights in (None, RANDOM) else os.path.abspath(weights)


def _run(job: Job, raster: Any, modality: str | None, blocks: int | None) -> xr.Dataset:
    """Return the products of a job, computed or lazy."""
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
    """Return the rasters with what they are taken for. Files are named from wherever a block is computed."""
    if isinstance(raster, Mapping) and not isinstance(raster, xr.Dataset):
        if modality is not None or not raster:
            raise UsageError("A dict of rasters names the modality of each: give at least one, and no other modality.")
        pairs = list(raster.items())
    else:
        only = next(iter(job.task.bands)) if len(job.task.bands) == 1 else None
        pairs = [(modality or only, raster)]
    return [
        (None if name is None else _used(job, name), _path(one) if isinstance(one, (str, os.PathLike)) else one)
        for name, one in pairs
    ]


def _path(path: str | os.PathLike[str]) -> str:
    return os.path.abspath(path) if os.path.exists(path) else os.fspath(path)  # GDAL opens more than files


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
