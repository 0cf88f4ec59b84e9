"""The pipeline of one scene: the only module that wires all stages."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tmtool import models
from tmtool.errors import OutOfMemory, ProductError
from tmtool.files.journal import journal_path, read
from tmtool.models import ModelSpec
from tmtool.models.device import batch_size
from tmtool.models.memory import fit, limit_bytes
from tmtool.provenance import Provenance
from tmtool.scene.blocks import LocalBlocks, Models
from tmtool.scene.job import Job, Prepared
from tmtool.scene.progress import Reporter, SilentReporter
from tmtool.scene.status import Here, Place, Status, provenance_of, status_of
from tmtool.scene.writing import SceneWriter, WrittenScene
from tmtool.source import set_block_cache
from tmtool.tiles.engine import Block, Watch

_log = logging.getLogger("tmtool")

T = TypeVar("T")


@dataclass(frozen=True)
class SceneResult:
    """The outcome of a scene that was run. `seconds` excludes loading the model.

    `model_seconds` is the time of its forward passes, summed over devices.

    `measured` holds the measurements of each product: the use of codes, or the agreement with the input.
    `from_row` is the source row that the run resumed from, `beside` the sidecars of products.
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
    """Seconds spent on waiting: to `read` input, for the `model`, to `write` rows, to `build` products after the last tile."""


class Runner:
    """Runs the prepared scenes of one job; a model is built once for each kind of input.

    A `dry` one fetches no weights: it is for `expect`, `status` and `foresee`.
    """

    def __init__(self, job: Job, reporter: Reporter | None = None, *, dry: bool = False) -> None:
        self.job, self.reporter, self.models = job, reporter or SilentReporter(), Models(job, dry=dry)
        self.dry = dry
        self._least_said = sys.maxsize  # tiles a batch that the host has room for, as logged so far

    def expect(self, prepared: Sequence[Prepared]) -> None:
        """Take notice of all scenes: check the device and find their weights, before anything is loaded or written.

        Raises `WeightsError` and `DeviceError`.
        """
        for inputs in dict.fromkeys(tuple(p.sources) for p in prepared):
            self.models.expect(inputs)

    def announce(self, due: Sequence[Prepared]) -> None:
        """Take notice of the scenes that will be run, before the first one starts."""

    def has_room(self, begun: int) -> bool:
        """Return whether to begin another scene while `begun` ones wait for their tiles to run."""
        return not begun

    def status(self, prepared: Prepared, place: Place | None = None) -> Status:
        """Say whether a scene's products exist, here or in another place, as this job would make them. Loads no model.

        Raises `InputError` for tokens that another tokenizer made than the one that would decode them.
        """
        provenance = self._provenance(prepared, self.models.spec(tuple(prepared.sources)))
        self.job.task.check_made(prepared.sources, provenance)
        return status_of(prepared, provenance, place or Here())

    def foresee(self, prepared: Prepared) -> None:
        """Check what `begin` would check of a scene, and leave nothing behind. Raises `TmtoolError`."""
        spec = self.models.spec(tuple(prepared.sources))
        self._fitting(prepared, spec, *self._usual(prepared, spec, {}))

    def run(self, prepared: Prepared, place: str = "", check: Callable[[], None] = lambda: None) -> SceneResult:
        """Run one scene to its products; see `begin`."""
        running = self.begin(prepared, place, check)
        running.tiles()
        return running.result()

    def begin(self, prepared: Prepared, place: str = "", check: Callable[[], None] = lambda: None) -> "SceneRun":
        """Begin a scene, or resume it where an earlier run was interrupted; `SceneRun.tiles` then runs its tiles.

        `place` is shown beside the scene's name, `check` is called before products get their names and may raise. Raises
        `TmtoolError`.
        """
        spec = self.models.spec(tuple(prepared.sources))
        provenance = self._provenance(prepared, spec)
        begun = self._begun(prepared, provenance)
        spec = replace(spec, compute=replace(spec.compute, threads=begun.get("threads", spec.compute.threads)))
        batch, parts = self._fitting(prepared, spec, *self._usual(prepared, spec, begun))
        provenance = replace(provenance, batch_size=batch, threads=spec.compute.threads)
        prepared.scene.folder.mkdir(parents=True, exist_ok=True)
        stack = ExitStack()
        try:
            scene = self._pipeline(prepared, spec, batch, stack)
            writing = stack.enter_context(SceneWriter(prepared, provenance, scene.watch, prepared.plan.columns(parts)))
            at = writing.begin(self.job.resume)
            scene.begin(writing.columns, *at)
        except BaseException as error:
            stack.__exit__(type(error), error, error.__traceback__)
            raise
        name = f"{prepared.scene.stem} ({place})" if place else prepared.scene.stem
        return SceneRun(self.reporter, f"{name}{scene.place}", prepared, scene, writing, check, at, stack)

    def _pipeline(self, prepared: Prepared, spec: ModelSpec, batch: int, stack: ExitStack) -> "SceneBlocks":
        return LocalBlocks(self.models, prepared, spec, batch, stack, self.reporter.advance)

    def _begun(self, prepared: Prepared, provenance: Provenance) -> dict[str, Any]:
        """Return the settings with which the run to be resumed was begun; empty if there is none."""
        found = (
            read(journal_path(prepared.scene.folder, prepared.scene.stem, self.job.task.name))
            if self.job.resume
            else None
        )
        return dict(found.header) if found and found.header.get("making") == provenance.fingerprint() else {}

    def _usual(self, prepared: Prepared, spec: ModelSpec, begun: Mapping[str, Any]) -> tuple[int, int]:
        """Return tiles a batch and parts, as a scene was begun or as is usual."""
        usual = begun.get("batch_size") or self._batch_size(spec)
        return prepared.batch(self.job.batch_size or usual), begun.get("parts", 1)

    def _batch_size(self, spec: ModelSpec) -> int:
        return batch_size(spec.compute)

    def _fitting(self, prepared: Prepared, spec: ModelSpec, batch: int, parts: int) -> tuple[int, int]:
        """Return the tiles a batch, at most `batch`, and the parts, at least `parts`, that memory has room for.

        Raises `OutOfMemory` where it has none for one tile and the narrowest parts.
        """
        encodings = {self.job.task.encoding(source) for source in prepared.sources.values()} - {None}
        inputs = tuple(prepared.sources)
        specs = [spec, *(self.models.spec_of(self.job.doing(task), inputs) for task in encodings if task)]
        limit, batch = self._limit(), min(batch, self.models.in_force())
        model_bytes, tile_bytes = models.host_bytes(specs, prepared.plan.size)
        narrowest = prepared.plan.counts[1]
        while True:
            try:
                streaming = prepared.memory_bytes(parts) + self._held_bytes(prepared, parts)
                fits = fit(limit, streaming, model_bytes, tile_bytes, batch)
                break
            except OutOfMemory:
                if parts >= narrowest:
                    raise
                parts += 1
        allowed, why = limit
        if fits < min(batch, self._least_said):
            _log.warning("%d tiles per batch instead of %d: %.1f GB may be used (%s)", fits, batch, allowed / 1e9, why)
            self._least_said = fits
        if parts > 1:
            stem = prepared.scene.stem
            _log.info("%s: made in %d parts side by side: %.1f GB may be used (%s)", stem, parts, allowed / 1e9, why)
        return fits, parts

    def _limit(self) -> tuple[int, str]:
        """Return the memory that a process that computes may hold, and what says so."""
        return limit_bytes(self.job.max_memory)

    def _held_bytes(self, prepared: Prepared, parts: int) -> int:
        """Return the memory for finished rows that cannot be freed at once."""
        return 0

    def _provenance(self, prepared: Prepared, spec: ModelSpec) -> Provenance:
        return provenance_of(self.job, prepared, spec, self.models.weights(spec))


class SceneBlocks(Protocol):
    """Whatever computes the rows of a scene: this process (`LocalBlocks`), or others."""

    watch: Watch
    row_blocks: Sequence[range]
    """Source rows that are computed apart."""

    def begin(self, columns: Sequence[range], part: int, row: int) -> None:
        """Learn what will be asked for: these parts of the columns, beginning with number `part` at source row `row`."""

    def blocks(self, rows: range, cols: range) -> Generator[Block, None, None]:
        """Yield the finished rows of these source rows and columns."""
        ...

    @property
    def place(self) -> str:
        """Text for the log beyond the scene's place in the run."""
        ...

    @property
    def empty_tiles(self) -> int:
        """Tiles that no model saw."""
        ...

    @property
    def batch_in_force(self) -> int:
        """The most tiles a batch that devices had room for."""
        ...

    @property
    def build_seconds(self) -> float:
        """Time that this process spent on building models."""
        ...

    @property
    def model_seconds(self) -> float:
        """Time that models took on all devices together, without building them."""
        ...

    def waits(self) -> dict[str, float]:
        """Return the seconds that the scene waited, by reason."""
        ...


class SceneRun:
    """A scene that was begun. Call `tiles`, then `result`; or `abandon` at any time.

    After `tiles` its products are built on a thread of their own.
    """

    def __init__(
        self,
        reporter: Reporter,
        name: str,
        prepared: Prepared,
        scene: SceneBlocks,
        writing: SceneWriter,
        check: Callable[[], None],
        at: tuple[int, int],
        stack: ExitStack,
    ) -> None:
        self._reporter, self._name, self._prepared, self._scene = reporter, name, prepared, scene
        self._writing, self._check, self._at, self._stack = writing, check, at, stack
        self._built: Future[WrittenScene] = Future()
        self._start = self._tiles_done = 0.0

    def tiles(self) -> None:
        """Run the tiles. An error discards the products; a signal keeps what is needed to resume.

        Raises `TmtoolError`.
        """
        prepared, writing, columns = self._prepared, self._writing, self._writing.columns
        self._start = time.monotonic()
        self._reporter.begin(self._name, prepared.tiles(columns, self._scene.row_blocks))
        try:
            set_block_cache(list(prepared.sources.values()), prepared.plan.size, prepared.width(len(columns)))
            first, row = self._at
            for part in range(first, len(columns)):
                rows = range(max(row if part == first else 0, prepared.plan.rows.start), prepared.plan.rows.stop)
                with closing(self._scene.blocks(rows, columns[part])) as blocks:
                    for block in blocks:
                        writing.put(block, part)
            writing.flush()
            writing.say(batch_size=min(writing.batch_size, self._scene.batch_in_force))
            self._reporter.phase("writing products")
        except BaseException as error:
            self.abandon(error)
            raise
        finally:
            self._reporter.end()
        self._tiles_done = time.monotonic()
        self._built = apart(lambda: writing.finish(self._check))

    def result(self) -> SceneResult:
        """Wait until the products have their final names. Raises `TmtoolError` after discarding them."""
        try:
            written, end = self._built.result(), time.monotonic()
        except BaseException as error:
            self.abandon(error)
            raise
        self._stack.close()
        scene = self._scene
        build = max(0.0, min(end, written.at) - self._tiles_done)
        return SceneResult(
            products=written.paths,
            tiles=self._prepared.tile_count,
            empty_tiles=scene.empty_tiles,
            seconds=min(end, written.at) - self._start - scene.build_seconds,
            model_seconds=scene.model_seconds,
            warnings=tuple(written.warnings),
            measured=written.measured,
            from_row=self._at[1],
            beside=written.beside,
            stalls=scene.waits() | {"write": self._writing.wait_seconds, "build": build},
        )

    def abandon(self, error: BaseException) -> None:
        """Abandon the scene: its work files are discarded, or after a signal kept for a resume."""
        self._stack.__exit__(type(error), error, error.__traceback__)

    def put_back(self) -> None:
        """Give up a scene whose tiles were not run: it is left as it was found."""
        self.abandon(_PutBack() if self._at != (0, 0) else ProductError("not run"))


class _PutBack(BaseException):
    """A scene that an earlier run began is left for a later one."""


def apart(work: Callable[[], T]) -> "Future[T]":
    """Do `work` on a daemon thread, so that a signal is handled while it is busy for long."""
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:  # noqa: BLE001  (it is passed on)
            result.set_exception(error)

    threading.Thread(target=run, name="build", daemon=True).start()
    return result
