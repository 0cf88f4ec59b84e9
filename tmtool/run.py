"""The pipeline of one scene: the only module that wires all stages."""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tmtool import __version__, models
from tmtool.batches import Feed, TileInput, collate, load, read_ahead
from tmtool.device import Compute, batch_size, resolve
from tmtool.grid import BoolArray, FloatArray, OutputSpec, Strip, Tile, TileBatch, Window
from tmtool.job import STRIPS_AHEAD, Job, Prepared, target
from tmtool.models import ModelSpec, TileModel
from tmtool.models.weights import WeightFile, digest, locate
from tmtool.plan import TilePlan
from tmtool.products import Product, check_statistics
from tmtool.progress import Reporter, SilentReporter
from tmtool.source import Reader, Source, set_block_cache
from tmtool.stitch import Stitcher
from tmtool.writer import Writer, provenance_tags

_log = logging.getLogger("tmtool")
_READ_THREADS = (
    1  # each thread has a GDAL handle and block cache of its own: two would decode every block twice or more
)


@dataclass(frozen=True)
class SceneResult:
    """What became of a scene that was run. `seconds` leaves out loading the model; `model_seconds` are its forward."""

    products: tuple[Path, ...]
    tiles: int
    empty_tiles: int
    seconds: float
    model_seconds: float
    warnings: tuple[str, ...] = ()


class Runner:
    """Runs the prepared scenes of one job; the model is built once for each kind of input."""

    def __init__(self, job: Job, reporter: Reporter | None = None) -> None:
        self.job, self.reporter = job, reporter or SilentReporter()
        self._built: tuple[ModelSpec, TileModel] | None = None
        self._compute: Compute | None = None
        self._digests: dict[Path, str] = {}

    def locate_weights(self, prepared: Sequence[Prepared]) -> None:
        """Find the weights of all scenes, so that a missing file is known before anything is loaded."""
        for inputs in dict.fromkeys(tuple(p.sources) for p in prepared):
            self._files(inputs)

    def run(self, prepared: Prepared) -> SceneResult:
        """Run one scene to its products. On any error nothing is left of them. Raises `TmtoolError`."""
        self._compute = self._compute or resolve(self.job.device, self.job.precision)  # imports torch, once a process
        start = time.monotonic()
        spec = self._spec(tuple(prepared.sources), self._compute)
        plan = prepared.plan
        batch = min(self.job.batch_size or batch_size(self._compute.device), len(plan))
        tags = {p.suffix: provenance_tags(self._provenance(prepared, spec, p, batch)) for p in prepared.products}
        prepared.scene.folder.mkdir(parents=True, exist_ok=True)
        self.reporter.begin(prepared.scene.stem, len(plan))
        try:
            with ExitStack() as stack:
                set_block_cache(list(prepared.sources.values()), plan.size)
                watch = _Watch()
                feeds = {m: stack.enter_context(_feed(s, watch)) for m, s in prepared.sources.items()}
                model = _Lazy(lambda: self._model(spec))
                engine = Engine(plan, [p.spec for p in prepared.products], feeds, model, batch, self.reporter.advance)
                paths, warnings = _write(prepared, engine.strips(), tags, watch, self.reporter)
        finally:
            self.reporter.end()
        seconds = time.monotonic() - start - model.build_seconds
        forward = engine.model_seconds - model.build_seconds
        return SceneResult(paths, len(plan), engine.empty_tiles, seconds, forward, tuple(warnings))

    def _files(self, inputs: tuple[str, ...]) -> dict[WeightFile, Path] | None:
        if self.job.weights == models.RANDOM:
            return None
        needed = models.find(self.job.model).files(inputs, self.job.outputs)
        return locate(needed, self.job.weights, self.job.offline)

    def _spec(self, inputs: tuple[str, ...], compute: Compute) -> ModelSpec:
        job = self.job
        files = self._files(inputs)
        return ModelSpec(job.model, job.task, inputs, job.outputs, job.seed, job.sampling, compute, files)

    def _model(self, spec: ModelSpec) -> TileModel:
        if self._built is None or self._built[0] != spec:
            self._built = None  # free the old one first
            start = time.monotonic()
            self._built = (spec, models.build(spec))
            _log.debug("model %s ready on %s in %.1f s", spec.name, spec.compute.device, time.monotonic() - start)
        return self._built[1]

    def _provenance(self, prepared: Prepared, spec: ModelSpec, product: Product, batch: int) -> dict[str, Any]:
        job, tiling = self.job, prepared.plan.tiling
        weights: Any = models.RANDOM
        if spec.files is not None:
            self._digests |= {path: digest(path) for path in spec.files.values() if path not in self._digests}
            weights = {str(file): self._digests[path] for file, path in spec.files.items()}
        said: dict[str, Any] = {
            "tool": "tmtool",
            "version": __version__,
            "libraries": {name: _version(name) for name in ("terratorch", "torch", "rasterio")},
            "task": job.task,
            "modality": product.modality,
            "model": job.model,
            "weights": weights,
            "inputs": {m: os.path.basename(s.path) for m, s in prepared.sources.items()},
            "outputs": list(job.outputs),
            "offsets": {m: s.offset for m, s in prepared.sources.items() if s.modality.is_optical},
            "seed": job.seed,
            "sampling": vars(job.sampling),
            "tiling": vars(tiling),
            "precision": spec.compute.precision,
            "device": spec.compute.device.partition(":")[0],
            "batch_size": batch,
        }
        if notice := notice_of(job):
            said["warning"] = notice
        return said


def notice_of(job: Job) -> str:
    """Return what users of a job's products have to know, or nothing."""
    if job.weights == models.RANDOM:
        return "RANDOM WEIGHTS: the products mean nothing. They show that the pipeline works, not what TerraMind does."
    return models.find(job.model).notice


class Engine:
    """Takes tiles through reading, the model and stitching.

    `feeds` say how to read each input, `advance` is told of tiles done. Afterwards `empty_tiles` and `model_seconds`
    say what was spared and spent.
    """

    def __init__(
        self,
        plan: TilePlan,
        specs: Sequence[OutputSpec],
        feeds: Mapping[str, Feed],
        model: TileModel,
        batch: int = 1,
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.plan, self.specs, self.feeds, self.model, self.batch = plan, specs, feeds, model, batch
        self.advance = advance
        self.empty_tiles, self.model_seconds = 0, 0.0

    def strips(self, rows: range | None = None) -> Iterator[tuple[OutputSpec, Strip]]:
        """Yield the finished rows of every output, each output's from the top.

        `rows` limits them to a block of source rows; blocks that share no row make up the whole scene, bit for bit.
        """
        plan = self.plan
        rows = rows if rows is not None else range(plan.shape[0])
        asked = [range(-(-rows.start // s.scale), -(-rows.stop // s.scale)) for s in self.specs]
        touched = [plan.tile_rows(r.start, r.stop, s.scale) for r, s in zip(asked, self.specs, strict=True) if len(r)]
        if not touched:
            return
        tile_rows = range(min(t.start for t in touched), max(t.stop for t in touched))
        tiles = list(plan.tiles(tile_rows))
        stitchers = [
            Stitcher(s, -(-plan.shape[1] // s.scale), r, tiles[0].index) for r, s in zip(asked, self.specs, strict=True)
        ]
        for done, outputs in self._model_outputs(tiles):
            for spec, stitcher in zip(self.specs, stitchers, strict=True):
                values = None if outputs is None else outputs[spec.name]
                for strip in stitcher.add(done.tile.index, plan.place(done.tile, spec), values, done.valid):
                    yield spec, strip
        for spec, stitcher in zip(self.specs, stitchers, strict=True):
            for strip in stitcher.finish():
                yield spec, strip

    def _model_outputs(self, tiles: Sequence[Tile]) -> Iterator[tuple[TileInput, Mapping[str, Any] | None]]:
        """Yield every tile with the model's outputs for it, or None for an empty one."""
        load_tile = partial(load, feeds=self.feeds, shape=self.plan.shape, delta=self.plan.delta)
        waiting: list[TileInput] = []
        for item in read_ahead(load_tile, tiles, depth=2 * self.batch + 2, threads=_READ_THREADS):
            if not item.pixels:
                self.empty_tiles += 1
                self.advance(1)
                yield item, None
                continue
            waiting.append(item)
            if len(waiting) == self.batch:
                yield from self._call(waiting)
                waiting = []
        if waiting:
            yield from self._call(waiting)

    def _call(self, items: Sequence[TileInput]) -> Iterator[tuple[TileInput, Mapping[str, Any]]]:
        batch = collate(items, self.batch)
        start = time.monotonic()
        outputs = self.model(batch)
        self.model_seconds += time.monotonic() - start
        self.advance(len(items))
        for i, item in enumerate(items):
            yield item, {name: values[i] for name, values in outputs.items()}


class _Lazy:
    """A model that is built when the first tile comes: a scene without valid pixels needs none."""

    def __init__(self, build: Callable[[], TileModel]) -> None:
        self._build = build
        self._model: TileModel | None = None
        self.build_seconds = 0.0

    def __call__(self, batch: TileBatch) -> Mapping[str, Any]:
        if self._model is None:
            start = time.monotonic()
            self._model = self._build()
            self.build_seconds = time.monotonic() - start
        return self._model(batch)


class _Watch:
    """Remembers whether the input's valid pixels vary, which a constant product is judged by."""

    def __init__(self) -> None:
        self._first: float | None = None
        self.varies = False

    def see(self, pixels: FloatArray, valid: BoolArray) -> None:
        """Take what was read; may be called from several threads."""
        if self.varies or not valid.any():
            return
        values = pixels[0][valid]
        first = values[0] if self._first is None else self._first
        self._first = first
        self.varies = bool((values != first).any())


@contextmanager
def _feed(source: Source, watch: _Watch) -> Iterator[Feed]:
    """Open a source as the engine wants it."""
    with Reader(source) as reader:

        def read(window: Window) -> tuple[FloatArray, BoolArray]:
            pixels, valid = reader.read(window)
            watch.see(pixels, valid)
            return pixels, valid

        yield Feed(read, source.modality.mean)


def _write(
    prepared: Prepared,
    strips: Iterator[tuple[OutputSpec, Strip]],
    tags: Mapping[str, Mapping[str, str]],
    watch: _Watch,
    reporter: Reporter,
) -> tuple[tuple[Path, ...], list[str]]:
    """Write all products on a thread of their own; give them their names when every one is complete and valid."""
    warnings: list[str] = []
    with ExitStack() as stack:
        writers: dict[str, Writer] = {}
        for product in prepared.products:
            grid = prepared.grid.coarser(product.spec.scale)
            writers[product.spec.name] = writer = Writer(
                target(prepared.scene, product), grid, product.layout, product.format
            )
            stack.callback(writer.discard)
        products = {p.spec.name: p for p in prepared.products}

        def write(name: str, strip: Strip) -> None:
            writers[name].write(strip.row, products[name].finish(strip), strip.valid)

        with ThreadPoolExecutor(1, thread_name_prefix="write") as pool:
            pending: deque[Future[None]] = deque()
            for spec, strip in strips:
                pending.append(pool.submit(write, spec.name, strip))
                if len(pending) > STRIPS_AHEAD:
                    pending.popleft().result()
            while pending:
                pending.popleft().result()
        reporter.phase("writing COGs")
        for product in prepared.products:
            writer = writers[product.spec.name]
            warnings += check_statistics(product, writer.statistics, watch.varies)
            writer.build(tags[product.suffix])
        return tuple(writers[p.spec.name].commit() for p in prepared.products), warnings


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
