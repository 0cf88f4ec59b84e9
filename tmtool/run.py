"""The pipeline of one scene: the only module that wires all stages."""

import logging
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tmtool import __version__, models
from tmtool.batches import Feed
from tmtool.device import Compute, batch_size, resolve
from tmtool.engine import Engine, Lazy, Watch, patch_feed
from tmtool.errors import InputError
from tmtool.grid import BoolArray, FloatArray, OutputSpec, Strip, Window
from tmtool.job import STRIPS_AHEAD, Job, Prepared, target
from tmtool.metrics import CodeUse, Comparison
from tmtool.modality import MODALITIES
from tmtool.models import ModelSpec, TileModel
from tmtool.models.weights import WeightFile, digest, local_file, locate
from tmtool.products import Product, check_statistics, tokenised
from tmtool.progress import Reporter, SilentReporter
from tmtool.source import Reader, Source, centres, set_block_cache
from tmtool.tasks import TASKS
from tmtool.writer import Writer, provenance_tags

_log = logging.getLogger("tmtool")


@dataclass(frozen=True)
class SceneResult:
    """What became of a scene that was run. `seconds` leaves out loading the model; `model_seconds` are its forward."""

    products: tuple[Path, ...]
    tiles: int
    empty_tiles: int
    seconds: float
    model_seconds: float
    warnings: tuple[str, ...] = ()
    measured: Mapping[str, Any] = field(default_factory=dict)


class Runner:
    """Runs the prepared scenes of one job; a model is built once for each kind of input."""

    def __init__(self, job: Job, reporter: Reporter | None = None) -> None:
        self.job, self.reporter = job, reporter or SilentReporter()
        self._built: dict[str, tuple[ModelSpec, TileModel]] = {}
        self._computes: dict[tuple[str, str], Compute] = {}
        self._digests: dict[Path, str] = {}

    def locate_weights(self, prepared: Sequence[Prepared]) -> None:
        """Find the weights of all scenes, so that a missing file is known before anything is loaded."""
        for inputs in dict.fromkeys(tuple(p.sources) for p in prepared):
            self._files(self.job.spec(inputs))

    def run(self, prepared: Prepared) -> SceneResult:
        """Run one scene to its products. On any error nothing is left of them. Raises `TmtoolError`."""
        start = time.monotonic()
        spec = self._spec(self.job, prepared)
        batch = min(self.job.batch_size or batch_size(spec.compute.device), len(prepared.plan))
        provenance = self._provenance(prepared, spec, batch)
        _check_tokens(prepared, provenance)
        prepared.scene.folder.mkdir(parents=True, exist_ok=True)
        self.reporter.begin(prepared.scene.stem, len(prepared.plan))
        try:
            with ExitStack() as stack:
                set_block_cache(list(prepared.sources.values()), prepared.plan.size)
                scene = _Pipeline(self, prepared, spec, batch, stack)
                writing = _Writing(prepared, provenance, stack)
                for output, strip in scene.engine.strips():
                    writing.put(output, strip)
                self.reporter.phase("writing products")
                paths, warnings, measured = writing.finish(scene.watch)
        finally:
            self.reporter.end()
        seconds = time.monotonic() - start - scene.build_seconds
        engine = scene.engine
        return SceneResult(
            paths, len(prepared.plan), engine.empty_tiles, seconds, scene.model_seconds, tuple(warnings), measured
        )

    def _files(self, spec: ModelSpec) -> dict[WeightFile, Path] | None:
        if self.job.weights == models.RANDOM:
            return None
        needed = models.find(self.job.model).files(spec)
        own = {local_file(spec.checkpoint): spec.checkpoint} if spec.checkpoint else {}
        return locate(needed, self.job.weights, self.job.offline) | own

    def _spec(self, job: Job, prepared: Prepared) -> ModelSpec:
        asked = (job.device, job.encoding().precision if job.task == "tokenize" else job.precision)
        if asked not in self._computes:
            self._computes[asked] = resolve(*asked)  # imports torch, once a process
        spec = job.spec(tuple(prepared.sources), self._computes[asked])
        return replace(spec, files=self._files(spec))

    def model(self, spec: ModelSpec) -> TileModel:
        """Return the model of a spec, built if it is not the last one of its task."""
        if spec.task not in self._built or self._built[spec.task][0] != spec:
            self._built.pop(spec.task, None)  # free the old one first
            start = time.monotonic()
            self._built[spec.task] = (spec, models.build(spec))
            _log.debug("model %s ready on %s in %.1f s", spec.name, spec.compute.device, time.monotonic() - start)
        return self._built[spec.task][1]

    def encoding_spec(self, prepared: Prepared) -> ModelSpec:
        """Return what makes the tokens that are decoded."""
        return self._spec(self.job.encoding(), prepared)

    def _provenance(self, prepared: Prepared, spec: ModelSpec, batch: int) -> dict[str, Any]:
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
            "model": job.model,
            "weights": weights,
            "inputs": {m: os.path.basename(s.path) for m, s in prepared.sources.items()},
            "outputs": list(spec.outputs),
            "offsets": {m: s.offset for m, s in prepared.sources.items() if s.modality.is_optical},
            "seed": job.seed,
            "sampling": vars(job.sampling),
            "tiling": vars(tiling),
            "precision": spec.compute.precision,
            "device": spec.compute.device.partition(":")[0],
            "batch_size": batch,
        }
        if job.task == "tokenize":
            height, width = prepared.grid.shape
            said["source"] = {"height": height, "width": width}
            said["codebook"] = MODALITIES[spec.inputs[0]].codebook
        if job.task == "embed":
            said["bands"] = {m: list(spec.modality(m).bands) for m in spec.inputs}
            said["embedding"] = vars(job.embedding) | vars(job.vectors)
        if notice := notice_of(job):
            said["warning"] = notice
        return said


def _check_tokens(prepared: Prepared, provenance: Mapping[str, Any]) -> None:
    """Raise `InputError` for tokens that another tokenizer made than the one that would decode them."""
    for source in prepared.sources.values():
        if source.made and source.made["weights"] != provenance["weights"]:
            raise InputError(
                f"{source.path}: its tokens were made by another tokenizer ({source.made['model']}, "
                f"{_weights_text(source.made['weights'])}) than the one in use ({provenance['model']}, "
                f"{_weights_text(provenance['weights'])}). Use the --model and --weights that they were made with."
            )


def _weights_text(weights: Any) -> str:
    if not isinstance(weights, dict):
        return f"{weights} weights"
    return ", ".join(f"{name} {value[:12]}" for name, value in weights.items())


def notice_of(job: Job) -> str:
    """Return what users of a job's products have to know, or nothing."""
    if job.weights == models.RANDOM:
        return "RANDOM WEIGHTS: the products mean nothing. They show that the pipeline works, not what TerraMind does."
    return models.find(job.model).notice


class _Pipeline:
    """The engine of one scene, with its feeds; for decoding a raster, with the engine before it that makes its tokens."""

    def __init__(self, runner: Runner, prepared: Prepared, spec: ModelSpec, batch: int, stack: ExitStack) -> None:
        self.watch = Watch()
        self._models: list[Lazy] = []
        self._engines: list[Engine] = []
        plan, sources = prepared.plan, prepared.sources
        feeds = {m: self._feed(source, stack) for m, source in sources.items()}
        for m, source in sources.items():
            if TASKS[spec.task].from_tokens:
                if source.scale == 1:
                    encoding = runner.encoding_spec(prepared)
                    tokens = tokenised(MODALITIES[m]).spec
                    encoder = self._engine(runner, encoding, plan, [tokens], {m: feeds[m]}, batch)
                    feeds[m] = patch_feed(encoder, (float(MODALITIES[m].middle_token),))
                feeds |= self._validity(source, stack)
        centre = centres(prepared.grid) if spec.embedding.coords else None
        self.engine = self._engine(
            runner, spec, plan, [p.spec for p in prepared.products], feeds, batch, runner.reporter.advance, centre
        )

    def _engine(self, runner: Runner, spec: ModelSpec, *args: Any) -> Engine:
        self._models.append(Lazy(lambda: runner.model(spec)))
        plan, specs, feeds, batch, *rest = args
        self._engines.append(Engine(plan, specs, feeds, self._models[-1], batch, *rest))
        return self._engines[-1]

    def _feed(self, source: Source, stack: ExitStack) -> Feed:
        """Open a source as the engine wants it."""
        reader = stack.enter_context(Reader(source))

        def read(window: Window) -> tuple[FloatArray, BoolArray]:
            pixels, valid = reader.read(window)
            self.watch.see(pixels, valid)
            return pixels, valid

        fill = source.modality.mean if source.scale == 1 else (float(source.modality.middle_token),)
        return Feed(read, fill, source.scale)

    @staticmethod
    def _validity(source: Source, stack: ExitStack) -> dict[str, Feed]:
        """Return the feed that tells which pixels of a tokenised raster hold data, if not all do."""
        told = source if source.scale == 1 else source.validity
        if told is None:
            return {}
        reader = stack.enter_context(Reader(told))

        def read(window: Window) -> tuple[FloatArray, BoolArray]:
            pixels, valid = reader.read(window)
            return pixels[:0], valid

        return {"validity": Feed(read, ())}

    @property
    def build_seconds(self) -> float:
        """Time that building models took."""
        return sum(model.build_seconds for model in self._models)

    @property
    def model_seconds(self) -> float:
        """Time that models took, without building them."""
        return sum(engine.model_seconds for engine in self._engines) - self.build_seconds


class _Writing:
    """Writes all products of a scene on a thread of its own; they get their names when every one is complete and valid."""

    def __init__(self, prepared: Prepared, provenance: Mapping[str, Any], stack: ExitStack) -> None:
        self._prepared, self._provenance = prepared, provenance
        self._writers: dict[str, Writer] = {}
        self._products = {p.spec.name: p for p in prepared.products}
        self._measures = {p.spec.name: m for p in prepared.products if (m := _measure(p, prepared, stack))}
        for name, product in self._products.items():
            grid = prepared.plan.product_grid(prepared.grid, product.spec)
            self._writers[name] = Writer(target(prepared.scene, product), grid, product.layout, product.format)
            stack.callback(self._writers[name].discard)
        self._pool = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="write"))
        self._pending: deque[Future[None]] = deque()

    def put(self, output: OutputSpec, strip: Strip) -> None:
        """Take finished rows; wait if the disk is far behind."""
        self._pending.append(self._pool.submit(self._write, output.name, strip))
        if len(self._pending) > STRIPS_AHEAD:
            self._pending.popleft().result()

    def _write(self, name: str, strip: Strip) -> None:
        values = self._products[name].finish(strip)
        self._writers[name].write(strip.row, values, strip.valid)
        if name in self._measures:
            self._measures[name].add(strip.row, values, strip.valid)

    def finish(self, watch: Watch) -> tuple[tuple[Path, ...], list[str], dict[str, Any]]:
        """Return the products' paths, warnings, and what was measured of them by their suffix."""
        while self._pending:
            self._pending.popleft().result()
        warnings: list[str] = []
        measured: dict[str, Any] = {}
        complete = {name: self._complete(name) for name, product in self._products.items() if product.holes}
        kept = [p for p in self._prepared.products if not complete.get(p.spec.name)]
        beside = next((target(self._prepared.scene, p).name for p in kept if p.holes), None)
        for product in kept:
            writer, name = self._writers[product.spec.name], product.spec.name
            warnings += check_statistics(product, writer.statistics, watch.varies)
            said = dict(self._provenance) | {"modality": product.modality}
            if complete:
                said |= {"validity": beside, "task": "validity" if product.holes else said["task"]}
            if name in self._measures:
                measured[product.suffix] = self._measures[name].result()
            writer.build(provenance_tags(said))
        paths = {p: self._writers[p.spec.name].commit() for p in kept}
        for p in self._prepared.products:
            if p not in kept:
                target(self._prepared.scene, p).unlink(missing_ok=True)  # of an older product with holes
        return tuple(path for p, path in paths.items() if not p.holes), warnings, measured

    def _complete(self, name: str) -> bool:
        height, width = self._prepared.grid.shape
        return self._writers[name].statistics.count == height * width


class _Measure(Protocol):
    """What is found out about a product while its rows go by."""

    def add(self, row: int, values: NDArray[Any], valid: BoolArray) -> None: ...
    def result(self) -> dict[str, Any]: ...


class _Codes:
    """The use of a codebook by a token raster."""

    def __init__(self, source: Source) -> None:
        self._use = CodeUse(source.modality.codebook, len(source.bands), 8 * np.dtype(source.dtype).itemsize)

    def add(self, row: int, values: NDArray[Any], valid: BoolArray) -> None:
        self._use.add(values, valid)

    def result(self) -> dict[str, Any]:
        return self._use.result()


class _Agreement:
    """The agreement of a reconstruction with the raster that it was made from, which is read again."""

    def __init__(self, source: Source, stack: ExitStack) -> None:
        self._reader = stack.enter_context(Reader(source))
        self._comparison = Comparison(source.modality, source.grid.shape[1])

    def add(self, row: int, values: NDArray[Any], valid: BoolArray) -> None:
        reference, _ = self._reader.read(Window(row, 0, *valid.shape))
        self._comparison.add(reference, values, valid)

    def result(self) -> dict[str, Any]:
        self._comparison.finish()
        return self._comparison.result()


def _measure(product: Product, prepared: Prepared, stack: ExitStack) -> _Measure | None:
    if not product.measure:
        return None
    source = prepared.sources[product.modality]
    if product.measure == "codes":
        return _Codes(source)
    return _Agreement(source, stack) if source.scale == 1 else None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
