"""What a run is asked to do, and everything about it that can be known before a model is loaded."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tmtool import models
from tmtool.errors import OutputError, UsageError
from tmtool.files.writer import disk_bytes
from tmtool.grid import BoolArray, FloatArray, Grid, Tile, Window
from tmtool.modality import Modality
from tmtool.models import ModelEntry, ModelSpec
from tmtool.models.device import Compute
from tmtool.models.requests import input_name
from tmtool.products.product import Product
from tmtool.settings import Extent, Reading, RunSettings, Tiling
from tmtool.source import Reader, ShapeMask, Source, check_reading, grid_of, inspect, masked, on_grid, placed
from tmtool.tasks import Task
from tmtool.tiles.batches import Feed, TileInput, load
from tmtool.tiles.draws import MEMORY_BYTES
from tmtool.tiles.plan import TilePlan

STRIPS_AHEAD = 2
"""Finished rows of tiles that may wait for the writer."""


@dataclass(frozen=True)
class Job:
    """What to do with every scene of a run: the task, the model that does it, and where and how it runs."""

    task: Task
    model: str = RunSettings.model
    weights: str | None = RunSettings.weights
    offline: bool = RunSettings.offline
    reading: Reading = field(default_factory=Reading)
    extent: Extent = field(default_factory=Extent)
    tiling: Tiling = field(default_factory=Tiling)
    seed: int = RunSettings.seed
    batch_size: int | None = RunSettings.batch_size
    device: str = RunSettings.device
    precision: str = RunSettings.precision
    compile: str = RunSettings.compile
    overwrite: bool = False
    resume: bool = True
    max_memory: int | None = RunSettings.max_memory

    @property
    def entry(self) -> ModelEntry:
        """What the model says of itself. Raises `UsageError` if there is none of this name."""
        return models.find(self.model)

    def check(self) -> list[str]:
        """Raise `UsageError` for options that cannot work together; return notes."""
        if not self.task.can_be_done_by(self.entry):
            raise UsageError(f"--model {self.model}: {self.entry.title} cannot {self.task.name}.")
        self.task.check(self.model, self.entry)
        if self.task.checkpoint and self.weights == models.RANDOM:
            raise UsageError("--checkpoint and --weights random: choose one.")
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"--batch-size {self.batch_size} must be at least 1, or auto.")
        return self.tiling.check(self.entry.patch, on_patch_grid=self.task.on_patch_grid)

    def spec(self, inputs: tuple[str, ...], compute: Compute | None = None) -> ModelSpec:
        """Return what the model of a scene with these inputs computes; the location of its weights is filled in later."""
        return ModelSpec(
            name=self.model,
            request=self.task.request(inputs),
            inputs=inputs,
            seed=self.seed,
            compute=compute or Compute(),
            bands={m: bands for m, bands in self.task.bands_of(self.entry).items() if m in map(input_name, inputs)},
        )

    def doing(self, task: Task) -> "Job":
        """Return the job that does another task in the same way."""
        return replace(self, task=task)

    @property
    def all_tasks(self) -> "list[Job]":
        """This job, and before it the one whose products it may have to make on the way."""
        before = self.task.before
        return [self, *([self.doing(before)] if before else [])]

    @property
    def compute_asked(self) -> tuple[str, str, str]:
        """The device, the precision and the compiling that the model is asked for."""
        return self.device, self.task.precision(self.precision), self.compile


@dataclass(frozen=True)
class Scene:
    """What to work on, and the folder that its products go to; `stem` begins their names.

    `inputs` are rasters, each with the modality that it is taken for; None finds out.
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
    """A scene that passed its checks and can be run."""

    scene: Scene
    sources: Mapping[str, Source]
    plan: TilePlan
    products: tuple[Product, ...]
    grid: Grid
    """The grid that the inputs share, on which tiles are counted."""
    area: ShapeMask | None = None
    """What lies outside the area of interest, if there is one."""
    reference: Source | None = None
    """The raster that a product is brought to the level of, on the grid."""

    @property
    def made(self) -> Grid:
        """The part of the grid that is made."""
        return self.grid.part(
            Window(self.plan.rows.start, self.plan.cols.start, len(self.plan.rows), len(self.plan.cols))
        )

    @property
    def targets(self) -> list[Path]:
        """Where each product goes."""
        return [target(self.scene, product) for product in self.products]

    @property
    def disk_bytes(self) -> int:
        """Upper bound of the disk needed while the scene runs."""
        written = sum(disk_bytes(self.plan.product_grid(self.grid, p.spec), [p.layout]) for p in self.products)
        return written + self._waiting_bytes

    @property
    def _waiting_bytes(self) -> int:
        """Disk that draws need until they are combined: a row of tiles, and the rows that they share with the next."""
        plan = self.plan
        tiles = plan.counts[1] * plan.size**2 + 2 * plan.size * self.grid.shape[1]
        return sum(4 * p.spec.channels * p.spec.draws * tiles for p in self.products if p.combine)

    def batch(self, tiles: int) -> int:
        """Return the tiles a batch where so many are wanted: no more than there are, but for pinned scenes, which agree with others."""
        return tiles if self.plan.pinned else min(tiles, len(self.plan))

    def tiles_in_use(self) -> list[Tile]:
        """Return the tiles that products are made from, in order."""
        return list(self.plan.tiles(*self.plan.touching([p.spec for p in self.products])))

    @property
    def tile_count(self) -> int:
        """Number of the tiles that products are made from."""
        rows, cols = self.plan.touching([p.spec for p in self.products])
        return len(rows) * len(cols)

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
        combining = MEMORY_BYTES if any(p.combine for p in self.products) else 0
        return cache + 16 * tile + held + combining


def target(scene: Scene, product: Product) -> Path:
    """Return the final path of a product."""
    return scene.folder / f"{stem_of(scene, product)}_{product.suffix}{product.format.ending}"


def stem_of(scene: Scene, product: Product) -> str:
    """Return what a product's name begins with."""
    return scene.stem.removesuffix(product.drop)


def prepare(job: Job, scene: Scene, *, writes: bool = True) -> Prepared:
    """Check everything about a scene that can be known before a model is loaded. Raises `TmtoolError`."""
    prepared = prepared_of(job, scene, [look_at(job, path, modality) for modality, path in scene.inputs])
    if writes:
        _check_targets(prepared)
    return prepared


def look_at(job: Job, raster: Any, modality: Modality | None) -> Source:
    """Look at one input of a job: a path, or what xarray has of a raster or of tokens. Raises `InputError`."""
    return job.task.look_at(raster, modality, job.reading, job.entry)


def prepared_of(job: Job, scene: Scene, found: Sequence[Source]) -> Prepared:
    """Check what was found of a scene's inputs against the job and each other. Raises `InputError`."""
    sources = job.task.by_input(found, job.model, job.entry)
    for source in sources.values():
        job.task.check_source(source, job.model, job.entry)
    reading, path = job.reading, scene.path
    check_reading(list(sources.values()), reading, path)
    grid = grid_of(sources, reading.grid)
    job.task.check_grid(path, grid)
    products = job.task.products(job.spec(tuple(sources)), job.entry)
    place = placed(grid, job.extent, job.tiling, path)
    reference = f"--grid {reading.grid}" if reading.grid else next(iter(sources.values())).path
    for name, source in sources.items():
        there = on_grid(source, place.grid, reading.resampling, reading.min_overlap, reference)
        if place.pinned and source.grid == grid:
            there = replace(there, brought="")  # only the tiles begin elsewhere
        sources[name] = masked(there, place.grid, reading.mask)
    plan = TilePlan(place.grid.shape, job.tiling, job.entry.patch, place.part, place.pinned, place.position)
    level = _level_of(job, place.grid, path)
    return Prepared(scene, sources, plan.snapped([p.spec for p in products]), products, place.grid, place.area, level)


def _level_of(job: Job, grid: Grid, path: str) -> Source | None:
    """Return the raster that a product is brought to the level of, on the grid of a scene. Raises `InputError`."""
    if job.task.reference is None:
        return None
    modality, raster = job.task.reference
    return on_grid(inspect(raster, modality, job.reading), grid, job.reading.resampling, 0.0, path)


def _check_targets(prepared: Prepared) -> None:
    folder = prepared.scene.folder
    own = [p for p in prepared.targets if p.exists() and any(_same_file(p, s.path) for s in prepared.sources.values())]
    if own:
        raise OutputError(f"{own[0]}: this product would overwrite the input; choose another --output-dir.")
    parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{folder}: cannot be written to; choose another --output-dir.")
    free, needed = shutil.disk_usage(parent).free, prepared.disk_bytes
    if needed > free:
        raise OutputError(
            f"{folder}: not enough disk space for {prepared.scene.stem}: {needed / 1e6:,.0f} MB needed while it runs, "
            f"{free / 1e6:,.0f} MB free."
        )


def _same_file(path: Path, other: str) -> bool:
    return os.path.exists(other) and path.samefile(other)


AREA = "area"
"""Name of the feed that says which pixels lie in the area of interest."""


def area_feed(area: ShapeMask) -> Feed:
    """Return the feed that marks the area of interest; it has no bands itself."""

    def read(window: Window) -> tuple[FloatArray, BoolArray]:
        return np.empty((0, window.height, window.width), np.float32), ~area.covers(window)

    return Feed(read, ())


def fill_of(job: Job, source: Source) -> tuple[float, ...]:
    """Return what stands in for pixels without data, one value a band: the mean that the model was trained on."""
    return job.task.fill(source, job.entry)


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
    per_tile = job.entry.tflop_per_tile(spec, prepared.plan.size)
    return per_tile * prepared.tile_count * share / tflops


@contextlib.contextmanager
def tile_loader(job: Job, prepared: Prepared) -> Iterator[Callable[[Tile], TileInput]]:
    """Give what reads a tile of a scene as the model sees it."""
    plan = prepared.plan
    with contextlib.ExitStack() as stack:
        readers = {m: stack.enter_context(Reader(s)) for m, s in prepared.sources.items()}
        feeds = {m: Feed(r.read, fill_of(job, r.source), r.source.scale) for m, r in readers.items()}
        if prepared.area:
            feeds[AREA] = area_feed(prepared.area)
        yield lambda tile: load(tile, feeds, plan.shape, plan.delta)


def empty_share(job: Job, prepared: Prepared, samples: int = 64) -> float:
    """Estimate the share of tiles without valid pixels, from at most `samples` tiles spread evenly over the scene."""
    tiles, empty = prepared.tiles_in_use(), 0
    index = np.unique(np.linspace(0, len(tiles) - 1, min(samples, len(tiles))).round().astype(int))
    with tile_loader(job, prepared) as loaded:
        for i in index.tolist():
            empty += not loaded(tiles[i]).pixels
    return empty / len(index)
