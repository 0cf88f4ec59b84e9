"""The pipeline of one scene: the only module that wires all stages."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tmtool import models
from tmtool.batches import Feed
from tmtool.device import Compute, batch_size, resolve
from tmtool.engine import Engine, Lazy, Watch, patch_feed
from tmtool.errors import InputError, OutOfMemory
from tmtool.grid import BoolArray, FloatArray, Window
from tmtool.job import Job, Prepared
from tmtool.journal import journal_path, read
from tmtool.memory import BackOff, fit, limit_bytes, loading
from tmtool.modality import MODALITIES
from tmtool.models import ModelSpec
from tmtool.models.weights import WeightFile, digest, local_file, locate
from tmtool.products import tokenised
from tmtool.progress import Reporter, SilentReporter
from tmtool.provenance import Status, fingerprint, provenance_of, status_of, weights_text
from tmtool.source import Reader, Source, centres, set_block_cache
from tmtool.tasks import TASKS
from tmtool.writing import Writing, Written

_log = logging.getLogger("tmtool")


@dataclass(frozen=True)
class SceneResult:
    """What became of a scene that was run. `seconds` leaves out loading the model; `model_seconds` are its forward.

    `measured` holds by product what was found out about it: the use of codes, or the agreement with the input.
    `from_row` is the source row that the run went on from, `beside` what belongs to products but is none.
    """

    products: tuple[Path, ...]
    tiles: int
    empty_tiles: int
    seconds: float
    model_seconds: float
    warnings: tuple[str, ...] = ()
    measured: Mapping[str, Any] = field(default_factory=dict)
    from_row: int = 0
    beside: tuple[Path, ...] = ()
    stalls: Mapping[str, float] = field(default_factory=dict)
    """Seconds spent on waiting: to `read` input, to `write` rows, to `build` products after the last tile."""


class Runner:
    """Runs the prepared scenes of one job; a model is built once for each kind of input."""

    def __init__(self, job: Job, reporter: Reporter | None = None) -> None:
        self.job, self.reporter = job, reporter or SilentReporter()
        self._built: dict[str, tuple[ModelSpec, BackOff]] = {}
        self._most = sys.maxsize  # tiles a batch that the device had room for
        self._least_said = sys.maxsize  # tiles a batch that the host has room for, as the log has been told
        self._computes: dict[tuple[str, str, str], Compute] = {}
        self._digests: dict[Path, str] = {}

    def locate_weights(self, prepared: Sequence[Prepared]) -> None:
        """Find the weights of all scenes, so that a missing file is known before anything is loaded."""
        for inputs in dict.fromkeys(tuple(p.sources) for p in prepared):
            self._files(self.job.spec(inputs))

    def status(self, prepared: Prepared) -> Status:
        """Say whether a scene's products exist as this job would make them. Loads no model.

        Raises `InputError` for tokens that another tokenizer made than the one that would decode them.
        """
        said = self._said(prepared, self._spec(self.job, prepared))
        for source in prepared.sources.values():
            if source.made and source.made.get("weights") != said["weights"]:
                raise InputError(
                    f"{source.path}: its tokens were made by another tokenizer ({source.made.get('model')}, "
                    f"{weights_text(source.made.get('weights'))}) than the one in use ({said['model']}, "
                    f"{weights_text(said['weights'])}). Use the --model and --weights that they were made with."
                )
        return status_of(prepared, said)

    def run(self, prepared: Prepared, place: str = "", check: Callable[[], None] = lambda: None) -> SceneResult:
        """Run one scene to its products; see `start`."""
        return self.start(prepared, place, check).result()

    def start(self, prepared: Prepared, place: str = "", check: Callable[[], None] = lambda: None) -> "Running":
        """Run all tiles of a scene, going on from where an earlier run was broken off; its products are then being built.

        On an error nothing is left of them; on a signal what is needed to go on. `place` is told beside the scene's name,
        `check` is called before products get their names and may raise. Raises `TmtoolError`.
        """
        spec = self._spec(self.job, prepared)
        said = self._said(prepared, spec)
        start = time.monotonic()  # torch is imported and weights are digested by now, which is not the scene's time
        batch, parts = self._fitting(prepared, spec, *self._begun(prepared, spec, said))
        said["batch_size"] = batch
        columns = prepared.plan.columns(parts)
        prepared.scene.folder.mkdir(parents=True, exist_ok=True)
        name = f"{prepared.scene.stem} ({place})" if place else prepared.scene.stem
        self.reporter.begin(name, prepared.tiles(columns))
        stack = ExitStack()
        try:
            set_block_cache(list(prepared.sources.values()), prepared.plan.size, prepared.width(parts))
            scene = _Pipeline(self, prepared, spec, batch, stack)
            writing = stack.enter_context(Writing(prepared, said, scene.watch, columns))
            first, row = writing.begin(self.job.resume)
            for part in range(first, parts):
                rows = range(row if part == first else 0, prepared.grid.shape[0])
                with closing(scene.engine.blocks(rows, columns[part])) as blocks:
                    for block in blocks:
                        writing.put(block, part)
            writing.flush()
            writing.say(batch_size=min(batch, self._in_force()))
            self.reporter.phase("writing products")
        except BaseException as error:
            stack.__exit__(type(error), error, error.__traceback__)
            raise
        finally:
            self.reporter.end()
        running = Running(stack, scene, _apart(lambda: writing.finish(check)), len(prepared.plan), row, start)
        running.write_seconds = writing.wait_seconds
        return running

    def _begun(self, prepared: Prepared, spec: ModelSpec, said: Mapping[str, Any]) -> tuple[int, int]:
        """Return tiles a batch and parts: those that a run which will be gone on with began with, else the usual."""
        found = (
            read(journal_path(prepared.scene.folder, prepared.scene.stem, self.job.task)) if self.job.resume else None
        )
        begun = found.header if found and found.header.get("making") == fingerprint(said) else {}
        usual = begun.get("batch_size") or batch_size(spec.compute.device)
        return min(self.job.batch_size or usual, len(prepared.plan)), begun.get("parts", 1)

    def _fitting(self, prepared: Prepared, spec: ModelSpec, batch: int, parts: int) -> tuple[int, int]:
        """Return the tiles a batch, at most `batch`, and the parts, at least `parts`, that memory has room for.

        Raises `OutOfMemory` where it has none for one tile and the narrowest parts.
        """
        encodes = TASKS[spec.task].from_tokens and any(source.scale == 1 for source in prepared.sources.values())
        specs = [spec, self.encoding_spec(prepared)] if encodes else [spec]
        limit, batch = limit_bytes(self.job.max_memory), min(batch, self._in_force())
        model_bytes, tile_bytes = models.host_bytes(specs, prepared.plan.size)
        narrowest = prepared.plan.counts[1]
        while True:
            try:
                fits = fit(limit, prepared.memory_bytes(parts), model_bytes, tile_bytes, batch)
                break
            except OutOfMemory:
                if parts >= narrowest:
                    raise
                parts += 1
        allowed, why = limit
        if fits < min(batch, self._least_said):
            _log.warning("%d tiles a batch instead of %d: %.1f GB may be used (%s)", fits, batch, allowed / 1e9, why)
            self._least_said = fits
        if parts > 1:
            stem = prepared.scene.stem
            _log.info("%s: made in %d parts side by side: %.1f GB may be used (%s)", stem, parts, allowed / 1e9, why)
        return fits, parts

    def _in_force(self) -> int:
        """Return the most tiles a batch that the device has been found to have room for."""
        self._most = min(self._most, *(model.size for _, model in self._built.values()), sys.maxsize)
        return self._most

    def _files(self, spec: ModelSpec) -> dict[WeightFile, Path] | None:
        if self.job.weights == models.RANDOM:
            return None
        needed = models.find(self.job.model).files(spec)
        own = {local_file(spec.checkpoint): spec.checkpoint} if spec.checkpoint else {}
        return locate(needed, self.job.weights, self.job.offline) | own

    def _spec(self, job: Job, prepared: Prepared) -> ModelSpec:
        precision = job.encoding().precision if job.task == "tokenize" else job.precision
        asked = (job.device, precision, job.compile)
        if asked not in self._computes:
            self._computes[asked] = resolve(*asked)  # imports torch, once a process
        spec = job.spec(tuple(prepared.sources), self._computes[asked])
        return replace(spec, files=self._files(spec))

    def model(self, spec: ModelSpec) -> BackOff:
        """Return the model of a spec, built if it is not the last one of its task."""
        if spec.task not in self._built or self._built[spec.task][0] != spec:
            size = self._in_force()
            self._built.pop(spec.task, None)  # free the old one first
            start = time.monotonic()
            with loading(spec.name):
                self._built[spec.task] = (spec, BackOff(models.build(spec), size))
            _log.debug("model %s ready on %s in %.1f s", spec.name, spec.compute.device, time.monotonic() - start)
        return self._built[spec.task][1]

    def encoding_spec(self, prepared: Prepared) -> ModelSpec:
        """Return what makes the tokens that are decoded."""
        return self._spec(self.job.encoding(), prepared)

    def _said(self, prepared: Prepared, spec: ModelSpec) -> dict[str, Any]:
        weights: Any = models.RANDOM
        if spec.files is not None:
            self._digests |= {path: digest(path) for path in spec.files.values() if path not in self._digests}
            weights = {str(file): self._digests[path] for file, path in spec.files.items()}
        return provenance_of(self.job, prepared, spec, weights)


class Running:
    """A scene whose products are being built. Call `result`, or `abandon` if that cannot be waited for."""

    def __init__(
        self, stack: ExitStack, scene: "_Pipeline", built: "Future[Written]", tiles: int, row: int, start: float
    ) -> None:
        self._stack, self._scene, self._built, self._row, self._start = stack, scene, built, row, start
        self._tiles = tiles
        self._tiles_done, self.write_seconds = time.monotonic(), 0.0

    def result(self) -> SceneResult:
        """Wait until the products have their names. Raises `TmtoolError`; nothing is left of them then."""
        try:
            written, end = self._built.result(), time.monotonic()
        except BaseException as error:
            self.abandon(error)
            raise
        self._stack.close()
        return SceneResult(
            products=written.paths,
            tiles=self._tiles,
            empty_tiles=self._scene.engine.empty_tiles,
            seconds=min(end, written.at) - self._start - self._scene.build_seconds,
            model_seconds=self._scene.model_seconds,
            warnings=tuple(written.warnings),
            measured=written.measured,
            from_row=self._row,
            beside=written.beside,
            stalls={
                "read": self._scene.read_seconds,
                "write": self.write_seconds,
                "build": max(0.0, min(end, written.at) - self._tiles_done),
            },
        )

    def abandon(self, error: BaseException) -> None:
        """Let go of the scene: what is begun is removed, or after a signal left for a later run."""
        self._stack.__exit__(type(error), error, error.__traceback__)


def _apart(work: Callable[[], Written]) -> "Future[Written]":
    """Do `work` on a thread that nobody waits for at the end, so that a signal is heard while GDAL is busy for long."""
    result: Future[Written] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="build", daemon=True).start()
    return result


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
                    feeds[m] = stack.enter_context(patch_feed(encoder, (float(MODALITIES[m].middle_token),)))
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
    def read_seconds(self) -> float:
        """Time that was spent on waiting for input."""
        return sum(engine.read_seconds for engine in self._engines)

    @property
    def model_seconds(self) -> float:
        """Time that models took, without building them."""
        return sum(engine.model_seconds for engine in self._engines) - self.build_seconds
