"""What a run is asked to do, and everything about it that can be known before a model is loaded."""

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tmtool import models
from tmtool.batches import Feed, load
from tmtool.device import Compute
from tmtool.errors import InputError, OutputError, UsageError
from tmtool.grid import Grid, Tile
from tmtool.modality import MODALITIES, OUTPUTS, Modality
from tmtool.models import Embedding, ModelEntry, ModelSpec, Sampling
from tmtool.plan import TilePlan, Tiling
from tmtool.products import Product, Vectors
from tmtool.source import Reader, Source, check_one_grid, inspect, token_source
from tmtool.tasks import TASKS
from tmtool.writer import disk_bytes

STRIPS_AHEAD = 2
"""Finished rows of tiles that may wait for the writer."""


@dataclass(frozen=True)
class Job:
    """What to do with every scene of a run.

    `outputs` are the modalities to generate, or to imagine for `embed` (TiM); `bands` names the bands of inputs that are
    not used whole; `checkpoint` is a fine-tuned backbone.
    """

    task: str
    outputs: tuple[str, ...] = ()
    model: str = "base"
    weights: str | None = None
    offline: bool = False
    bands: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    checkpoint: Path | None = None
    s2_offset: float | None = None
    tiling: Tiling = field(default_factory=Tiling)
    sampling: Sampling = field(default_factory=Sampling)
    embedding: Embedding = field(default_factory=Embedding)
    vectors: Vectors = field(default_factory=Vectors)
    seed: int = 0
    batch_size: int | None = None
    device: str = "auto"
    precision: str = "auto"
    compile: str = "auto"
    overwrite: bool = False
    resume: bool = True
    max_memory: int | None = None

    def check(self) -> list[str]:
        """Raise `UsageError` for options that cannot work together; return notes."""
        entry = models.find(self.model)
        option = "--tim" if self.task == "embed" else "--out"
        for output in self.outputs:
            if output not in entry.outputs:
                why = f" ({entry.absent[output]})" if output in entry.absent else ""
                raise UsageError(
                    f"{option}: --model {self.model} cannot make {output}{why}; it makes {', '.join(entry.outputs)}."
                )
        if len(set(self.outputs)) < len(self.outputs) or (self.task == "generate" and not self.outputs):
            raise UsageError(f"{option} names the same modality twice, or none: {','.join(self.outputs)}.")
        if self.task == "embed":
            self._check_embedding(entry)
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"--batch-size {self.batch_size} must be at least 1, or auto.")
        self.sampling.check()
        return self.tiling.check(on_patch_grid=TASKS[self.task].on_patch_grid)

    def _check_embedding(self, entry: ModelEntry) -> None:
        layers, merge = self.embedding.layers, self.embedding.merge
        if bad := [n for n in layers if not -entry.depth <= n < entry.depth]:
            raise UsageError(
                f"--layer {bad[0]}: --model {self.model} has layers 0 to {entry.depth - 1} (-1 is the last)."
            )
        if not layers or len({n % entry.depth for n in layers}) < len(layers):
            raise UsageError(f"--layer names the same layer twice, or none: {','.join(map(str, layers))}.")
        if self.outputs and self.bands:
            raise UsageError("--tim imagines from whole modalities: leave out --bands.")
        if self.outputs and merge == "dict":
            raise UsageError("--tim and --merge dict: the imagined modality would not show; use mean, max or concat.")
        if self.embedding.coords and not entry.coords:
            raise UsageError(f"--coords: --model {self.model} takes no coordinates.")
        if self.checkpoint is not None:
            if not self.checkpoint.is_file():
                raise UsageError(f"--checkpoint {self.checkpoint}: no such file.")
            if self.weights == models.RANDOM:
                raise UsageError("--checkpoint and --weights random: choose one.")

    def spec(self, inputs: tuple[str, ...], compute: Compute | None = None) -> ModelSpec:
        """Return what the model of a scene with these inputs computes; where its weights lie is still open."""
        return ModelSpec(
            name=self.model,
            task=self.task,
            inputs=inputs,
            outputs=inputs if self.task == "reconstruct" else self.outputs,
            seed=self.seed,
            sampling=self.sampling,
            compute=compute or Compute(),
            embedding=self.embedding,
            bands={m: bands for m, bands in self.bands.items() if m in inputs},
            checkpoint=self.checkpoint,
        )

    def encoding(self) -> "Job":
        """Return the job that makes the tokens that this one decodes.

        Its precision is float32 unless another is asked for: tokens are discrete, and rounding flips some of them.
        """
        return replace(
            self, task="tokenize", outputs=(), precision="fp32" if self.precision == "auto" else self.precision
        )


@dataclass(frozen=True)
class Scene:
    """What to work on, and the folder that its products go to; `stem` begins their names.

    `inputs` are rasters on one grid, each with the modality that it is taken for; None finds out.
    """

    inputs: tuple[tuple[Modality | None, str], ...] = field(repr=False)  # of which schedulers of tasks may tell
    stem: str
    folder: Path

    @property
    def path(self) -> str:
        """The first raster."""
        return self.inputs[0][1]


@dataclass(frozen=True)
class Prepared:
    """A scene that was looked at and can be run."""

    scene: Scene
    sources: Mapping[str, Source]
    plan: TilePlan
    products: tuple[Product, ...]

    @property
    def grid(self) -> Grid:
        """The grid that the inputs share."""
        return next(iter(self.sources.values())).grid

    @property
    def targets(self) -> list[Path]:
        """Where each product goes."""
        return [target(self.scene, product) for product in self.products]

    @property
    def disk_bytes(self) -> int:
        """Upper bound of the disk needed while the scene runs."""
        return sum(disk_bytes(self.plan.product_grid(self.grid, p.spec), [p.layout]) for p in self.products)

    def tiles(self, columns: Sequence[range], rows: Sequence[range]) -> int:
        """Count the tiles that the model sees if the scene is made in these parts: some twice where parts meet."""
        plan, spec = self.plan, self.products[0].spec
        across = sum(len(plan.tile_cols(plan.product_cols(span, spec), spec)) for span in columns)
        return across * sum(len(plan.tile_rows(plan.product_rows(span, spec), spec)) for span in rows)

    def width(self, parts: int) -> int:
        """Source columns that are read at a time where the scene is made in so many parts."""
        return min(self.grid.shape[1], max(len(cols) for cols in self.plan.columns(parts)) + 2 * self.plan.size)

    def memory_bytes(self, parts: int = 1) -> int:
        """Estimate of the memory that streaming needs beside the model: block cache, read-ahead, rolling rows, strips."""
        width = self.width(parts)
        cache = max(64 << 20, sum(s.cache_bytes(self.plan.size, width) for s in self.sources.values()))
        tile = sum(len(s.bands) * (self.plan.size // s.scale) ** 2 * 4 for s in self.sources.values())
        rows = 2 * self.plan.size + STRIPS_AHEAD * self.plan.tiling.stride
        held = sum(4 * p.spec.channels * rows * width // p.spec.scale**2 for p in self.products)
        return cache + 16 * tile + held


def target(scene: Scene, product: Product) -> Path:
    """Return the final path of a product."""
    stem = scene.stem.removesuffix(f"_{product.modality}_tokens") if product.suffix.endswith("_rec") else scene.stem
    return scene.folder / f"{stem}_{product.suffix}{product.format.ending}"


def prepare(job: Job, scene: Scene, *, writes: bool = True) -> Prepared:
    """Check everything about a scene that can be known before a model is loaded. Raises `TmtoolError`."""
    prepared = prepared_of(job, scene, [look_at(job, path, modality) for modality, path in scene.inputs])
    if writes:
        _check_targets(prepared)
    return prepared


def look_at(job: Job, raster: Any, modality: Modality | None) -> Source:
    """Look at one input of a job: a path, or what xarray has of a raster or of tokens. Raises `InputError`."""
    tokens = token_source(raster) if TASKS[job.task].from_tokens else None
    return tokens or inspect(raster, modality, job.s2_offset)


def prepared_of(job: Job, scene: Scene, found: Sequence[Source]) -> Prepared:
    """Check what was found of a scene's inputs against the job and each other. Raises `InputError`."""
    sources: dict[str, Source] = {}
    for source in found:
        name = source.modality.name
        if name in sources:
            raise InputError(f"{source.path}: is {name}, as {sources[name].path} is already.")
        sources[name] = source
    for source in sources.values():
        _check_taken(job, source)
    check_one_grid(list(sources.values()))
    products = TASKS[job.task].products(job.spec(tuple(sources)), job.vectors)
    prepared = Prepared(scene, sources, TilePlan(next(iter(sources.values())).grid.shape, job.tiling), products)
    if job.embedding.coords and prepared.grid.crs is None:
        raise InputError(f"{scene.path}: has no CRS, so its coordinates are not known; leave out --coords.")
    return prepared


def _check_taken(job: Job, source: Source) -> None:
    """Raise `InputError` if the job's model does not take what a raster is."""
    name, entry = source.modality.name, models.find(job.model)
    if TASKS[job.task].by_tokenizer and name not in entry.outputs:
        why = f" in --model {job.model}" if name in OUTPUTS else ""
        raise InputError(
            f"{source.path}: is {name}, which has no tokenizer{why}; {job.task} takes {', '.join(entry.outputs)}."
        )
    if not TASKS[job.task].by_tokenizer and name not in entry.inputs:
        raise InputError(
            f"{source.path}: is {name}, which --model {job.model} does not take ({', '.join(entry.inputs)})."
        )
    if name in job.outputs and MODALITIES[name].raw_key is None:
        option = "--tim" if job.task == "embed" else "--out"
        raise InputError(
            f"{source.path}: is {name}, and {option} asks for {name} too; TerraMind cannot do both at once."
        )


def _check_targets(prepared: Prepared) -> None:
    folder = prepared.scene.folder
    own = [p for p in prepared.targets if p.exists() and any(_same_file(p, s.path) for s in prepared.sources.values())]
    if own:
        raise OutputError(f"{own[0]}: is the input itself; choose another --output-dir.")
    parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{folder}: cannot be written to; choose another --output-dir.")
    free, needed = shutil.disk_usage(parent).free, prepared.disk_bytes
    if needed > free:
        raise OutputError(
            f"{folder}: not enough disk for {prepared.scene.stem}: {needed / 1e6:,.0f} MB needed while it runs, "
            f"{free / 1e6:,.0f} MB free."
        )


def _same_file(path: Path, other: str) -> bool:
    return os.path.exists(other) and path.samefile(other)


DEVICE_CLASSES = {
    "laptop CPU, 8 cores, fp32": 0.5,
    "2 server cores with AMX, bf16": 0.8,
    "GPU with 8-16 GB (T4, RTX 3060), fp16": 15.0,
    "data-centre GPU (A100), bf16": 100.0,
    "data-centre GPU (H100, H200), bf16": 250.0,
}
"""Sustained 10**12 operations a second that time estimates assume; only the second is a measurement."""


def estimate_seconds(job: Job, prepared: Prepared, tflops: float, share: float = 1.0) -> float:
    """Estimate a scene's run time on hardware that sustains `tflops`, if `share` of its tiles are not empty."""
    spec = job.spec(tuple(prepared.sources))
    per_tile = models.find(job.model).tflop_per_tile(spec, prepared.plan.size)
    return per_tile * len(prepared.plan) * share / tflops


def empty_share(prepared: Prepared, samples: int = 64) -> float:
    """Estimate the share of tiles without valid pixels, from at most `samples` tiles spread evenly over the scene."""
    plan = prepared.plan
    index = np.unique(np.linspace(0, len(plan) - 1, min(samples, len(plan))).round().astype(int))
    cols = plan.counts[1]
    empty = 0
    with contextlib.ExitStack() as stack:
        readers = {m: stack.enter_context(Reader(s)) for m, s in prepared.sources.items()}
        feeds = {m: Feed(r.read, r.source.modality.mean, r.source.scale) for m, r in readers.items()}
        for i in index.tolist():
            r, c = divmod(i, cols)
            tile = Tile(i, r, c, plan.origin(r), plan.origin(c), plan.size)
            empty += not load(tile, feeds, plan.shape, plan.delta).pixels
    return empty / len(index)
