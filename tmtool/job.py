"""What a run is asked to do, and everything about it that can be known before a model is loaded."""

import contextlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tmtool import models
from tmtool.batches import Feed, load
from tmtool.errors import InputError, OutputError, UsageError
from tmtool.grid import Grid, Tile
from tmtool.modality import Modality
from tmtool.models import Sampling
from tmtool.plan import TilePlan, Tiling
from tmtool.products import Product
from tmtool.source import Reader, Source, inspect
from tmtool.tasks import TASKS
from tmtool.writer import disk_bytes

STRIPS_AHEAD = 4
"""Finished strips of rows that may wait for the writer."""


@dataclass(frozen=True)
class Job:
    """What to do with every scene of a run. `modality` is what inputs are taken for; None finds out."""

    task: str
    outputs: tuple[str, ...]
    model: str = "base"
    weights: str | None = None
    offline: bool = False
    modality: Modality | None = None
    s2_offset: float | None = None
    tiling: Tiling = field(default_factory=Tiling)
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    batch_size: int | None = None
    device: str = "auto"
    precision: str = "auto"
    overwrite: bool = False

    def check(self) -> list[str]:
        """Raise `UsageError` for options that cannot work together; return notes."""
        entry = models.find(self.model)
        for output in self.outputs:
            if output not in entry.outputs:
                why = f" ({entry.absent[output]})" if output in entry.absent else ""
                raise UsageError(
                    f"--model {self.model} cannot make {output}{why}; it makes {', '.join(entry.outputs)}."
                )
        if len(set(self.outputs)) < len(self.outputs) or not self.outputs:
            raise UsageError(f"--out names the same modality twice, or none: {','.join(self.outputs)}.")
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"--batch-size {self.batch_size} must be at least 1, or auto.")
        self.sampling.check()
        return self.tiling.check(on_patch_grid=TASKS[self.task].on_patch_grid)


@dataclass(frozen=True)
class Scene:
    """One raster to work on, and the folder that its products go to; `stem` begins their names."""

    path: str
    stem: str
    folder: Path


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
        return sum(disk_bytes(self.grid.coarser(p.spec.scale), [p.layout]) for p in self.products)

    @property
    def memory_bytes(self) -> int:
        """Estimate of the memory that streaming needs beside the model: block cache, read-ahead, rolling rows, strips."""
        cache = max(64 << 20, sum(s.cache_bytes(self.plan.size) for s in self.sources.values()))
        tile = sum(len(s.bands) for s in self.sources.values()) * self.plan.size**2 * 4
        rows = 2 * self.plan.size + STRIPS_AHEAD * self.plan.tiling.stride
        held = sum(4 * p.spec.channels * rows * self.grid.shape[1] // p.spec.scale**2 for p in self.products)
        return cache + 16 * tile + held


def target(scene: Scene, product: Product) -> Path:
    """Return the final path of a product."""
    return scene.folder / f"{scene.stem}_{product.suffix}{product.format.ending}"


def prepare(job: Job, scene: Scene, *, writes: bool = True) -> Prepared:
    """Check everything about a scene that can be known before a model is loaded. Raises `TmtoolError`."""
    source = inspect(scene.path, job.modality, job.s2_offset)
    name = source.modality.name
    entry = models.find(job.model)
    if name not in entry.inputs:
        raise InputError(
            f"{scene.path}: is {name}, which --model {job.model} does not take ({', '.join(entry.inputs)})."
        )
    if name in job.outputs and source.modality.raw_key is None:
        raise InputError(f"{scene.path}: is {name}, and --out asks for {name} too; TerraMind cannot do both at once.")
    products = TASKS[job.task].products(job.outputs)
    prepared = Prepared(scene, {name: source}, TilePlan(source.grid.shape, job.tiling), products)
    if writes:
        _check_targets(prepared, job.overwrite)
    return prepared


def _check_targets(prepared: Prepared, overwrite: bool) -> None:
    folder = prepared.scene.folder
    existing = [p for p in prepared.targets if p.exists()]
    if existing and not overwrite:
        raise OutputError(f"{existing[0]}: exists already. Use --overwrite to replace it, or another --output-dir.")
    own = [p for p in prepared.targets if p.exists() and any(_same_file(p, s.path) for s in prepared.sources.values())]
    if own:
        raise OutputError(f"{own[0]}: is the input itself; choose another --output-dir.")
    parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{folder}: cannot be written to; choose another --output-dir.")
    free, needed = shutil.disk_usage(parent).free, prepared.disk_bytes
    if needed > free:
        raise OutputError(
            f"{folder}: not enough disk for {prepared.scene.stem}: {needed / 1e9:.2f} GB needed while it runs, "
            f"{free / 1e9:.2f} GB free."
        )


def _same_file(path: Path, other: str) -> bool:
    return os.path.exists(other) and path.samefile(other)


def estimate_seconds(job: Job, prepared: Prepared, tflops: float, share: float = 1.0) -> float:
    """Estimate a scene's run time on hardware that sustains `tflops`, if `share` of its tiles are not empty."""
    per_tile = models.find(job.model).tflop_per_tile(job.outputs, job.sampling.timesteps, prepared.plan.size)
    return per_tile * len(prepared.plan) * share / tflops


def empty_share(prepared: Prepared, samples: int = 64) -> float:
    """Estimate the share of tiles without valid pixels, from at most `samples` tiles spread evenly over the scene."""
    plan = prepared.plan
    index = np.unique(np.linspace(0, len(plan) - 1, min(samples, len(plan))).round().astype(int))
    cols = plan.counts[1]
    empty = 0
    with contextlib.ExitStack() as stack:
        readers = {m: stack.enter_context(Reader(s)) for m, s in prepared.sources.items()}
        feeds = {m: Feed(reader.read, reader.source.modality.mean) for m, reader in readers.items()}
        for i in index.tolist():
            r, c = divmod(i, cols)
            tile = Tile(i, r, c, plan.origin(r), plan.origin(c), plan.size)
            empty += not load(tile, feeds, plan.shape, plan.delta).pixels
    return empty / len(index)
