"""What a process that computes needs: the models of a job, the engine of a scene, and the function of one block."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tmtool import models
from tmtool.grid import BoolArray, FloatArray, OutputSpec, Window
from tmtool.modality import MODALITIES
from tmtool.models import ModelEntry, ModelSpec
from tmtool.models.device import Compute, resolve
from tmtool.models.memory import BackOff, loading
from tmtool.models.weights import WeightFile, digest, local_file, locate, to_fetch
from tmtool.scene.job import AREA, Job, Prepared, area_feed, fill_of
from tmtool.source import Reader, Source, centres, set_block_cache
from tmtool.tasks import Task
from tmtool.tiles.batches import Feed, Told
from tmtool.tiles.draws import Combining
from tmtool.tiles.engine import Block, Engine, Lazy, Watch, finished, patch_feed
from tmtool.tiles.plan import hull

_log = logging.getLogger("tmtool")


class Models:
    """The models of one job: what they are, where their weights lie, and those that are built.

    `computes` maps what a job asks for to where models run, if that was decided by another machine.
    With `dry` nothing is fetched: weights that a run would fetch are left out.
    """

    def __init__(
        self, job: Job, computes: Mapping[tuple[str, str, str], Compute] | None = None, *, dry: bool = False
    ) -> None:
        self.job, self._dry = job, dry
        self._absent: set[WeightFile] = set()
        self._computes = dict(computes or {})
        self._built: dict[tuple[str, str], tuple[ModelSpec, BackOff]] = {}
        self._building = threading.Lock()
        self._most = sys.maxsize  # tiles a batch that the device had room for
        self._digests: dict[Path, str] = {}
        self._looked_at: set[Path] = set()

    def expect(self, inputs: tuple[str, ...]) -> None:
        """Check the device and find the weights of scenes with these inputs, quick checks first.

        Raises `WeightsError` and `DeviceError`; weights are fetched only if all other checks pass.
        """
        if self.job.weights is not None or self.job.offline:
            self.files(self.job.spec(inputs))
        self.spec(inputs)

    def spec(self, inputs: tuple[str, ...]) -> ModelSpec:
        """Return the model of scenes with these inputs. Raises `WeightsError` and `DeviceError`."""
        return self.spec_of(self.job, inputs)

    def spec_of(self, job: Job, inputs: tuple[str, ...]) -> ModelSpec:
        """Return the model of scenes with these inputs for this job, or the one that makes its tokens."""
        asked = job.compute_asked
        if asked not in self._computes:
            self._computes[asked] = resolve(*asked)  # imports torch, once a process
        spec = job.spec(inputs, self._computes[asked])
        return replace(spec, files=self.files(spec))

    def files(self, spec: ModelSpec) -> dict[WeightFile, Path] | None:
        """Find the weights of a model, and look once at each file's header; None for random ones. Raises `WeightsError`."""
        if self.job.weights == models.RANDOM:
            return None
        needed, checkpoint = self.job.entry.files(spec), spec.request.checkpoint
        own = {local_file(checkpoint): checkpoint} if checkpoint else {}
        if self._dry:
            needed = tuple(file for file in needed if file not in self._absent)
            self._absent.update(to_fetch(needed, self.job.weights, self.job.offline))
            needed = tuple(file for file in needed if file not in self._absent)
        found = locate(needed, self.job.weights, self.job.offline) | own
        for file, path in found.items():
            if path not in self._looked_at:
                self.job.entry.check_file(file, path)
                self._looked_at.add(path)
        return found

    def weights(self, spec: ModelSpec) -> Any:
        """Return what identifies a model's weights: their digests by file, or "random".

        None if some would have to be fetched.
        """
        if spec.files is None:
            return models.RANDOM
        if self._absent.intersection(models.find(spec.name).files(spec)):
            return None
        self._digests |= {path: digest(path) for path in spec.files.values() if path not in self._digests}
        return {str(file): self._digests[path] for file, path in spec.files.items()}

    def model(self, spec: ModelSpec) -> BackOff:
        """Return the model of a spec, built unless it is the one last built for its task and device.

        Any thread may call it. The thread that runs the model must, as this sets its number of intra-op threads.
        """
        key = type(spec.request).__name__, spec.compute.device
        spec.compute.prepare()
        with self._building:
            if key not in self._built or self._built[key][0] != spec:
                size = self.in_force()
                self._built.pop(key, None)  # free the old one first
                start = time.monotonic()
                with loading(spec.name):
                    self._built[key] = (spec, BackOff(models.build(spec), size))
                _log.debug("model %s ready on %s in %.1f s", spec.name, key[1], time.monotonic() - start)
            return self._built[key][1]

    def in_force(self) -> int:
        """Return the largest batch, in tiles, that the device has been found to have room for."""
        self._most = min([self._most, *(model.size for _, model in self._built.values())])
        return self._most


class LocalBlocks:
    """The engine of one scene, with its feeds; for decoding a raster, with the engine before it that makes its tokens."""

    def __init__(
        self,
        models: Models,
        prepared: Prepared,
        spec: ModelSpec,
        batch: int,
        stack: ExitStack,
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.watch = Watch()
        self.row_blocks: Sequence[range] = [prepared.plan.rows]
        self._of = models
        self._engines: list[Engine] = []
        self._models: list[list[Lazy]] = []
        self._codes: OutputSpec | None = None  # what is made on the way, and decoded
        self._encoded = 0  # rows of it that are decoded in the end
        plan, sources, task = prepared.plan, prepared.sources, models.job.task
        feeds = {m: self._feed(source, stack) for m, source in sources.items()}
        for m, source in sources.items():
            if encoding := task.encoding(source):
                job = models.job.doing(encoding)
                encoding_spec = models.spec_of(job, tuple(sources))
                compute = replace(encoding_spec.compute, threads=spec.compute.threads)
                self._codes = encoded_spec(encoding, encoding_spec, job.entry)
                encoder = self._engine(
                    replace(encoding_spec, compute=compute), plan, [self._codes], {m: feeds[m]}, batch
                )
                fill, cells = (float(MODALITIES[m].middle_token),), self._codes.scale
                seen = plan.seen_cols(plan.cols, [p.spec for p in prepared.products], cells)
                seen = range(seen.start * cells, min(seen.stop * cells, plan.shape[1]))
                feeds[m] = stack.enter_context(patch_feed(encoder, fill, lambda: self._encoded, seen))
            if told := task.validity(source):
                feeds["validity"] = self._validity(told, stack)
        if prepared.area:
            feeds[AREA] = area_feed(prepared.area)
        centre = centres(prepared.grid) if task.wants_places else None
        taken = task.taken(prepared.sources, self._of.job.entry)
        dates = np.array([np.datetime64(date) for date in taken]) if taken else None
        combine = {p.spec.name: p.combine for p in prepared.products if p.combine}
        rest = (Told(centre, dates), Combining(combine, prepared.scene.folder))
        self._engine(spec, plan, [p.spec for p in prepared.products], feeds, batch, advance, *rest)

    def begin(self, columns: Sequence[range], part: int, row: int) -> None:
        """Do nothing: rows are computed when they are asked for."""

    def blocks(self, rows: range, cols: range) -> Generator[Block, None, None]:
        """Yield the finished rows of these source rows and columns; see `Engine.blocks`."""
        engine = self._engines[-1]
        if self._codes:
            self._encoded = engine.plan.seen(rows, engine.specs, self._codes.scale).stop
        return engine.blocks(rows, cols)

    def _engine(self, spec: ModelSpec, *args: Any) -> Engine:
        copies = [replace(spec, compute=compute) for compute in spec.compute.each]
        plan, specs, feeds, batch, *rest = args
        self._models.append([Lazy(partial(self._of.model, copy)) for copy in copies])
        self._engines.append(Engine(plan, specs, feeds, self._models[-1], batch, *rest))
        return self._engines[-1]

    def _feed(self, source: Source, stack: ExitStack) -> Feed:
        """Open a source as the engine wants it."""
        reader = stack.enter_context(Reader(source))

        def read(window: Window) -> tuple[FloatArray, BoolArray]:
            pixels, valid = reader.read(window)
            self.watch.see(pixels, valid)
            return pixels, valid

        return Feed(read, fill_of(self._of.job, source), source.scale)

    @staticmethod
    def _validity(told: Source, stack: ExitStack) -> Feed:
        """Return the feed that marks which pixels hold data; it has no bands itself."""
        reader = stack.enter_context(Reader(told))

        def read(window: Window) -> tuple[FloatArray, BoolArray]:
            pixels, valid = reader.read(window)
            return pixels[:0], valid

        return Feed(read, ())

    @property
    def empty_tiles(self) -> int:
        """Tiles that no model saw."""
        return self._engines[-1].empty_tiles

    @property
    def batch_in_force(self) -> int:
        """The most tiles a batch that the device had room for."""
        return self._of.in_force()

    @property
    def place(self) -> str:
        """Empty: nothing to add to the scene's place in the run."""
        return ""

    @property
    def build_seconds(self) -> float:
        """Time that building models took."""
        return sum(max(model.build_seconds for model in copies) for copies in self._models)

    @property
    def model_seconds(self) -> float:
        """Time that models took, summed over devices, without building them."""
        built = sum(model.build_seconds for copies in self._models for model in copies)
        return sum(engine.model_seconds for engine in self._engines) - built

    def waits(self) -> dict[str, float]:
        """Return the seconds that the scene waited: to `read` input, and for the `model`, without building it."""
        return {
            "read": sum(engine.read_seconds for engine in self._engines),
            "model": max(0.0, sum(engine.wait_seconds for engine in self._engines) - self.build_seconds),
        }


@dataclass(frozen=True)
class BlockTask:
    """Some source rows and columns of a scene, to be computed by any process; `batch` and `threads` decide rounding."""

    job: Job
    prepared: Prepared
    rows: range
    cols: range
    batch: int
    threads: int = 0


@dataclass(frozen=True)
class ComputedBlock:
    """A block's products: their rows in order, ready to be written; and what else came out.

    `varies` says whether the input does, `batch` is the most tiles a batch that the device had room for.
    """

    blocks: tuple[Block, ...]
    varies: bool
    tiles: int
    empty_tiles: int
    model_seconds: float
    batch: int


def encoded_spec(encoding: Task, spec: ModelSpec, entry: ModelEntry) -> OutputSpec:
    """Return the output of a task that the next task takes in: its last product."""
    return encoding.products(spec, entry)[-1].spec


def part(job: Job, prepared: Prepared, rows: range) -> Prepared:
    """Return a scene whose array inputs are cut to the rows that the block of these source rows reads."""
    plan, specs = prepared.plan, [product.spec for product in prepared.products]

    def held(source: Source) -> Source:
        if source.array is None:
            return source
        seen = plan.seen(rows, specs, source.scale)
        if encoding := None if source.made else job.task.encoding(source):
            codes = encoded_spec(encoding, job.doing(encoding).spec(tuple(prepared.sources)), job.entry)
            cells = plan.seen(rows, specs, codes.scale)
            encoded = range(cells.start * codes.scale, min(cells.stop * codes.scale, plan.shape[0]))
            seen = hull([seen, plan.seen(encoded, [codes])])
        validity = source.validity and held(source.validity)
        return replace(source, array=source.array.rows(seen), validity=validity)

    return replace(prepared, sources={m: held(source) for m, source in prepared.sources.items()})


_last: Models | None = None
_one = threading.Lock()


def models_of(job: Job) -> Models:
    """Return this process's models of a job, kept until it is asked for another one's."""
    global _last
    if _last is None or _last.job != job:
        _last = Models(job)
    return _last


def compute_block(task: BlockTask) -> ComputedBlock:
    """Compute the products of one block; the rows are those of the whole scene's run, bit for bit.

    A pure function of the task, the input and the weights. It reads what lies around the block through handles of its own;
    the model stays loaded for the next one. Blocks take turns where several threads of a process ask. Raises `TmtoolError`.
    """
    with _one:
        return _compute(task, models_of(task.job))


def _compute(task: BlockTask, models: Models) -> ComputedBlock:
    prepared, tiles = task.prepared, 0

    def advance(count: int) -> None:
        nonlocal tiles
        tiles += count

    spec = models.spec(tuple(prepared.sources))
    spec = replace(spec, compute=replace(spec.compute, threads=task.threads))
    set_block_cache(list(prepared.sources.values()), prepared.plan.size, len(task.cols) + 2 * prepared.plan.size)
    products = {p.spec.name: p for p in prepared.products}
    with ExitStack() as stack:
        pipeline = LocalBlocks(models, prepared, spec, task.batch, stack, advance)
        rows = stack.enter_context(closing(pipeline.blocks(task.rows, task.cols)))
        blocks = tuple(finished(block, products) for block in rows)
    batch = min(task.batch, pipeline.batch_in_force)
    return ComputedBlock(blocks, pipeline.watch.varies, tiles, pipeline.empty_tiles, pipeline.model_seconds, batch)
