"""Scenes on a Dask cluster: their blocks go out to workers, the products come back in order and are written here."""

import asyncio
import json
import logging
import os
import socket
from collections import deque
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tmtool import __version__
from tmtool.compat.libc import keep_freed_memory
from tmtool.errors import ClusterError, DeviceError, ProductError, TmtoolError, UsageError, WeightsError
from tmtool.models import RANDOM, ModelSpec
from tmtool.models.device import Compute, batch_size, cores, cuda_devices, kind_of
from tmtool.models.memory import limit_bytes
from tmtool.provenance import weights_text
from tmtool.scene.blocks import BlockTask, ComputedBlock, Models, compute_block, models_of
from tmtool.scene.job import Job, Prepared
from tmtool.scene.progress import Reporter
from tmtool.scene.run import Runner, SceneBlocks
from tmtool.source import absolute
from tmtool.tiles.engine import Block, Watch

_log = logging.getLogger("tmtool")

_SCHEMES = ("tcp", "tls", "ws", "wss", "ucx")
_FORMS = "local:N, local-cuda, a scheduler's address such as tcp://host:8786, or a scheduler file"
_CONNECT_S = 30.0
_FIRST_WORKER_S = 120.0
_LOOK_S = 30.0
"""How often a long wait for a block checks that there are workers at all."""
_SPAWNED_WITH = "distributed.nanny.pre-spawn-environ"
"""What Dask sets for its workers, and for this process: else one thread for numeric libraries, and a threshold of malloc."""
_NO_PROFILE = {"distributed.worker.profile.enabled": False}
"""Dask's profiler calls `sys._current_frames`, in which CPython before 3.11.8 may deadlock with a thread that starts (gh-106883)."""
_AHEAD = 2
"""Blocks in flight for each worker: one that it computes, and one that it finds when it is done."""


@contextmanager
def connect(address: str) -> Iterator[Any]:
    """Connect to a cluster, or start one on this machine; yields a `distributed.Client`.

    `address` is `local:N`, `local-cuda`, a scheduler's address or the path of a scheduler file. Raises `UsageError` if it
    is none of these or nothing answers there.
    """
    distributed = _distributed()
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters of it is said here in fewer words
    with ExitStack() as stack:
        where = _target(address, stack)
        try:
            if isinstance(where, str):
                asyncio.run(_shake_hands(where))
            client = stack.enter_context(distributed.Client(where, timeout=_CONNECT_S, set_as_default=False))
            client.wait_for_workers(1, timeout=_FIRST_WORKER_S)
        except (OSError, TimeoutError, ValueError) as error:
            raise UsageError(
                f"--cluster {address}: no scheduler with a worker answers there ({str(error) or type(error).__name__})."
            ) from error
        count = len(client.ncores())
        _log.info("cluster: %d worker%s, dashboard at %s", count, "s" * (count > 1), client.dashboard_link)
        yield client


def _distributed() -> Any:
    """Import Dask's scheduler, which takes half a second."""
    return import_module("distributed")


def check_address(address: str) -> None:
    """Raise `UsageError` if `address` cannot be a cluster's, or Dask's scheduler is not installed."""
    kind, _, rest = address.partition(":")
    local = _is_local(address) and (address == "local-cuda" or (rest.isdigit() and int(rest) > 0))
    if not (local or (kind in _SCHEMES and rest.startswith("//")) or Path(address).is_file()):
        raise UsageError(f"--cluster {address}: give {_FORMS}.")
    if find_spec("distributed") is None:
        raise UsageError(f"--cluster {address} needs the package distributed. Run pip install 'tmtool[cluster]'.")


def _is_local(address: str) -> bool:
    """Whether a cluster is one of this machine, which is started for the run."""
    return address == "local-cuda" or address.startswith("local:")


async def _shake_hands(address: str) -> None:
    """Check that a scheduler answers within the connect timeout: `distributed.Client` itself waits for ever.

    Raises `OSError` and `TimeoutError`.
    """
    options = _distributed().Security().get_connection_args("client")
    connecting = import_module("distributed.comm").connect(address, timeout=_CONNECT_S, **options)
    connection = await asyncio.wait_for(connecting, _CONNECT_S)
    await connection.close()


def _target(address: str, stack: ExitStack) -> Any:
    """Return a cluster that is started here and ended with the stack, or the address of a scheduler elsewhere."""
    check_address(address)
    kind, _, rest = address.partition(":")
    if address == "local-cuda":
        return stack.enter_context(_local_cuda())
    if kind == "local":
        return stack.enter_context(_local([{}] * int(rest)))
    if not Path(address).is_file():
        return address
    try:
        return str(json.loads(Path(address).read_text())["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--cluster {address}: is no scheduler file, which is JSON with an address.") from error


def _local(environments: Sequence[Mapping[str, str]]) -> Any:
    """Return a cluster of processes on this machine, one for each environment.

    Each uses as many threads as a plain run. Several share cores, so their threads do not spin while they wait.
    """
    distributed = _distributed()
    quiet = {"DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "critical"}
    options = {"nthreads": 1, "memory_limit": 0, "dashboard": False}  # memory is tmtool's to keep within limits
    workers = {
        i: {
            "cls": distributed.Nanny,
            "options": options | {"env": dict(environment) | quiet, "silence_logs": logging.CRITICAL},
        }
        for i, environment in enumerate(environments)
    }
    scheduler = {"cls": distributed.Scheduler, "options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}}
    shared = {"OMP_WAIT_POLICY": "PASSIVE"} if len(environments) > 1 else {}
    with import_module("dask").config.set({_SPAWNED_WITH: shared} | _NO_PROFILE):
        return distributed.SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL)


def _local_count(address: str) -> int:
    """Return the processes of a cluster of this machine. Raises `DeviceError` where each needs a GPU and there is none."""
    count = cuda_devices() if address == "local-cuda" else int(address.partition(":")[2])
    if not count:
        raise DeviceError("--cluster local-cuda: this machine has no CUDA device that torch can use.")
    return count


def _local_cuda() -> Any:
    """Return a cluster of one process for each GPU of this machine: dask-cuda's where it is installed."""
    count = _local_count("local-cuda")
    if find_spec("dask_cuda"):
        return import_module("dask_cuda").LocalCUDACluster()
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = shown.split(",") if shown else [str(i) for i in range(count)]
    return _local([{"CUDA_VISIBLE_DEVICES": name} for name in names])


@dataclass(frozen=True)
class Facts:
    """What decides whether workers compute the same, and how much at a time."""

    versions: Mapping[str, str]
    kind: str
    computes: Mapping[tuple[str, str, str], Compute]
    weights: Sequence[Any]
    batch: int
    memory: tuple[int, str]
    host: str
    cores: int
    spins: bool
    """Whether waiting threads spin and so keep a core busy, as OpenMP's do by default."""

    def differences(self, other: "Facts") -> Iterator[str]:
        """Yield each difference of `other` that changes results."""
        for name, found in other.versions.items():
            if found != self.versions[name]:
                yield f"{name} {found} instead of {self.versions[name]}"
        if other.kind != self.kind:
            yield f"{other.kind} instead of {self.kind}"
        if (precisions := other.precisions) != self.precisions:
            yield f"precision {precisions} instead of {self.precisions}"
        for mine, its in zip(self.weights, other.weights, strict=True):
            if mine != its and None not in (mine, its):
                yield f"other weights: {weights_text(its)} instead of {weights_text(mine)}"

    @property
    def precisions(self) -> str:
        """The precisions in use."""
        return ", ".join(sorted({compute.precision for compute in self.computes.values()}))


def facts(job: Job, kinds: Sequence[tuple[str, ...]], dry: bool = False) -> Facts:
    """Return the facts of this process, for scenes with these kinds of inputs. Raises `WeightsError` and `DeviceError`.

    If `dry`, no weights are fetched, and those that would be are None.
    """
    models = Models(job, dry=True) if dry else models_of(job)
    specs = [models.spec(inputs) for inputs in kinds]
    computes = {j.compute_asked: models.spec_of(j, kinds[0]).compute for j in job.all_tasks}
    compute = specs[0].compute
    return Facts(
        versions={"tmtool": __version__} | {name: version(name) for name in ("torch", "terratorch", "numpy")},
        kind=kind_of(compute),
        computes=computes,
        weights=[models.weights(spec) for spec in specs],
        batch=batch_size(compute),
        memory=limit_bytes(job.max_memory),
        host=socket.gethostname(),
        cores=cores(),
        spins=os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE",
    )


def _warn_of_crowds(workers: Collection[Facts], threads: int) -> None:
    """Warn of hosts on which spinning threads would take cores from working ones."""
    for host in sorted({worker.host for worker in workers}):
        there = [worker for worker in workers if worker.host == host]
        if threads * len(there) > there[0].cores and any(worker.spins for worker in there):
            _log.warning(
                "%s: workers have %d x %d threads for %d cores, and waiting threads keep cores busy. Start workers with "
                "OMP_WAIT_POLICY=PASSIVE, or this command with a smaller OMP_NUM_THREADS (which changes rounding).",
                *(host, len(there), threads, there[0].cores),
            )


def _side_by_side(workers: Collection[Facts], threads: int) -> int:
    """Count the workers that can usefully compute a block each at the same time.

    Where they have fewer cores than threads, those that do not spin leave about half of their cores to others.
    """
    count = 0
    for host in {worker.host for worker in workers}:
        there = [worker for worker in workers if worker.host == host]
        fit = there[0].cores // threads if threads else len(there)
        count += min(len(there), max(1, fit if any(worker.spins for worker in there) else 2 * fit))
    return count


class _Unfit(Exception):
    """A worker whose results would differ. The arguments are its address and why."""


def _on_worker(task: BlockTask, kinds: Sequence[tuple[str, ...]], expected: Facts) -> ComputedBlock:
    """Compute a block on a worker, which may have joined after the others were inspected."""
    address = _distributed().get_worker().address
    keep_freed_memory()
    if found := list(expected.differences(facts(task.job, kinds))):
        raise _Unfit(address, "; ".join(found))
    try:
        return compute_block(task)
    except TmtoolError as error:
        told = type(error)(f"{error} (on worker {address}, which must see inputs by the same paths)")
    raise told  # here, without what caused it: a cause that cannot be pickled would make another error of it


class Cluster:
    """The workers and the blocks in flight; blocks of the scenes begun first are sent first."""

    def __init__(self, client: Any, job: Job, *, dry: bool = False) -> None:
        self.client, self.job, self.dry = client, _anywhere(job), dry
        self.kinds: list[tuple[str, ...]] = []
        self.expected: Facts | None = None
        self.scenes: deque[ClusterBlocks] = deque()
        self.begun = self.total = 0
        self.side_by_side = self.share = 1  # workers that compute at once: of all scenes, and of each

    def inspect(self, kinds: Sequence[tuple[str, ...]]) -> Facts:
        """Inspect all workers; return what they have in common, with the smallest batch and memory of any.

        On CPUs the threads of an operation are those of a plain run here, whatever workers would use by themselves.
        Raises `WeightsError` or `DeviceError` if workers differ, or lack what the job needs.
        """
        self.kinds = list(kinds)
        found: dict[str, Any] = self.client.run(facts, self.job, self.kinds, self.dry, on_error="return")
        for address, what in found.items():
            if isinstance(what, TmtoolError):
                raise type(what)(f"worker {address}: {what}")
            if isinstance(what, BaseException):
                raise DeviceError(f"worker {address}: cannot run tmtool {__version__} ({what!r}).") from what
        return self.agree(found)

    def agree(self, found: Mapping[str, Facts]) -> Facts:
        """Return what workers have in common, by their addresses; see `inspect`. Raises `WeightsError` if they differ."""
        first = next(iter(found.values()))
        for address, what in found.items():
            if differences := list(first.differences(what)):
                raise WeightsError(f"the results of worker {address} would differ: {'; '.join(differences)}.")
        hosts = [what.host for what in found.values()]
        memory = min((what.memory[0] // hosts.count(what.host), what.memory[1]) for what in found.values())
        computes = {asked: c.as_threaded_here() for asked, c in first.computes.items()}
        threads = max(c.threads for c in computes.values())
        _warn_of_crowds(found.values(), threads)
        self.side_by_side = _side_by_side(found.values(), threads)
        self.expected = replace(first, computes=computes, batch=min(f.batch for f in found.values()), memory=memory)
        return self.expected

    @property
    def limit(self) -> int:
        """Blocks in flight at most."""
        return _AHEAD * max(1, len(self.client.ncores()))

    def has_room(self) -> bool:
        """Whether workers may run out of blocks before the scene that is being written is done."""
        return sum(len(scene) for scene in list(self.scenes)[1:]) < self.limit

    def fill(self) -> None:
        """Send out blocks, as many as may be in flight."""
        free = self.limit - sum(len(scene.flying) for scene in self.scenes)
        for scene in self.scenes:
            while scene.waiting and free > 0:
                scene.flying.append(self._submit(scene.waiting.popleft()))
                free -= 1

    def _submit(self, task: BlockTask) -> tuple[BlockTask, Any]:
        return task, self.client.submit(_on_worker, task, self.kinds, self.expected, pure=False)

    def take(self, scene: "ClusterBlocks") -> ComputedBlock:
        """Wait for the first block of a scene that is not taken yet. Raises `TmtoolError`."""
        while True:
            task, future = scene.flying[0]
            try:
                result: ComputedBlock = self._wait(future)
            except _Unfit as unfit:
                address, why = unfit.args
                _log.warning("worker %s is not used, as its results would differ: %s", address, why)
                self.client.retire_workers([address])
                scene.flying[0] = self._submit(task)
                continue
            scene.flying.popleft()
            self.fill()
            return result

    def _wait(self, future: Any) -> Any:
        killed: Any = _distributed().KilledWorker
        said = False
        while True:
            try:
                return future.result(timeout=_LOOK_S)
            except TimeoutError:
                if self.client.status != "running":
                    raise ClusterError(
                        "The connection to the scheduler was lost. Run the same command again to resume."
                    ) from None
                if not said and not self.client.ncores():
                    said = True
                    _log.warning("the cluster has no workers now; waiting for some")
            except killed as error:
                last = error.last_worker.address
                raise ProductError(
                    f"A block ended every worker that tried it, most likely by using too much memory; the last one was {last}."
                ) from error
            except (CancelledError, OSError) as error:
                raise ClusterError(
                    f"The cluster was lost ({error!r}). Run the same command again to resume."
                ) from error


class ClusterBlocks:
    """A scene whose blocks are computed by workers, with the interface of `LocalBlocks`."""

    def __init__(self, cluster: Cluster, prepared: Prepared, spec: ModelSpec, batch: int, reporter: Reporter) -> None:
        self._cluster, self._prepared, self._reporter = cluster, _seen_from_anywhere(prepared), reporter
        self._task = (batch, spec.compute.threads)
        self.watch = Watch()
        self.row_blocks: Sequence[range] = prepared.plan.row_blocks(cluster.share)
        self.waiting: deque[BlockTask] = deque()
        self.flying: deque[tuple[BlockTask, Any]] = deque()
        self.empty_tiles, self.batch_in_force = 0, batch
        self.build_seconds, self.model_seconds = 0.0, 0.0
        self.place = ""

    def __len__(self) -> int:
        """Count the blocks that were not taken."""
        return len(self.waiting) + len(self.flying)

    def begin(self, columns: Sequence[range], part: int, row: int) -> None:
        """Send out blocks from row `row` of part `part` on, when it is their turn."""
        for number in range(part, len(columns)):
            for rows in self.row_blocks:
                rest = range(max(rows.start, row if number == part else 0), rows.stop)
                if rest:
                    self.waiting.append(
                        BlockTask(self._cluster.job, self._prepared, rest, columns[number], *self._task)
                    )
        first, self._cluster.begun = self._cluster.begun + 1, self._cluster.begun + len(self)
        self.place = f", blocks {first}-{self._cluster.begun} of {self._cluster.total}"
        self._cluster.scenes.append(self)
        self._cluster.fill()

    def blocks(self, rows: range, cols: range) -> Generator[Block, None, None]:
        """Yield the finished rows, block by block."""
        while len(self) and (self.flying[0][0] if self.flying else self.waiting[0]).cols == cols:
            computed = self._cluster.take(self)
            self.watch.varies |= computed.varies
            self.empty_tiles += computed.empty_tiles
            self.model_seconds += computed.model_seconds
            self.batch_in_force = min(self.batch_in_force, computed.batch)
            self._reporter.advance(computed.tiles)
            yield from computed.blocks

    def waits(self) -> dict[str, float]:
        """Return nothing: only workers are waited for."""
        return {}

    def close(self) -> None:
        """Cancel the blocks that were not taken."""
        for _, future in self.flying:
            future.cancel()
        self.waiting.clear()
        self.flying.clear()
        if self in self._cluster.scenes:
            self._cluster.scenes.remove(self)


class ClusterRunner(Runner):
    """Runs the prepared scenes of one job on a cluster; products are written by this process.

    It connects to the cluster, or starts one, when there is work; `stack` closes it. A `dry` runner connects to an existing
    cluster, but starts none.
    """

    def __init__(
        self, job: Job, address: str, stack: ExitStack, reporter: Reporter | None = None, *, dry: bool = False
    ) -> None:
        super().__init__(job, reporter, dry=dry)
        check_address(address)
        self._address, self._stack = address, stack

    def expect(self, prepared: Sequence[Prepared]) -> None:
        """Inspect the workers: they must have the same weights as this machine."""
        kinds = list(dict.fromkeys(tuple(p.sources) for p in prepared))
        if _is_local(self._address):
            count = _local_count(self._address)
            super().expect(prepared)  # what fails there fails on all workers
            if self.dry:
                one = replace(facts(self.job, kinds, dry=True), spins=count == 1)
                self._cluster = Cluster(None, self.job, dry=True)
                self._expected = self._cluster.agree({f"local {i}": one for i in range(count)})
                return
        self._cluster = Cluster(self._stack.enter_context(connect(self._address)), self.job, dry=self.dry)
        found = self._expected = self._cluster.inspect(kinds)
        if (theirs := found.versions["tmtool"]) != __version__:
            raise DeviceError(f"The workers have tmtool {theirs}, this machine has {__version__}. Install one of them.")
        self.models = Models(self.job, found.computes, dry=self.dry)
        for inputs, weights in zip(kinds, found.weights, strict=True):
            mine = self.models.weights(self.models.spec(inputs))
            if mine != weights and None not in (mine, weights):
                raise WeightsError(
                    f"The workers have other weights than this machine: {weights_text(weights)} instead of "
                    f"{weights_text(mine)}. Give all of them the same --weights folder, or fetch again."
                )

    def announce(self, due: Sequence[Prepared]) -> None:
        """Take notice of the scenes that will be run: divide the workers among them, and count the blocks."""
        self._cluster.share = self._cluster.side_by_side // len(due)
        self._cluster.total = sum(len(p.plan.row_blocks(self._cluster.share)) for p in due)

    def has_room(self, begun: int) -> bool:
        """Return whether another scene should be begun, so that workers do not run out of blocks."""
        return not begun or self._cluster.has_room()

    def _pipeline(self, prepared: Prepared, spec: ModelSpec, batch: int, stack: ExitStack) -> SceneBlocks:
        scene = ClusterBlocks(self._cluster, prepared, spec, batch, self.reporter)
        stack.callback(scene.close)
        return scene

    def _batch_size(self, spec: ModelSpec) -> int:
        return self._expected.batch

    def _limit(self) -> tuple[int, str]:
        return self._expected.memory

    def _held_bytes(self, prepared: Prepared, parts: int) -> int:
        rows = max(len(rows) for rows in prepared.plan.row_blocks(self._cluster.share))
        pixels = rows * prepared.width(parts)
        return _AHEAD * sum(pixels * p.layout.pixel_bytes // p.spec.scale**2 for p in prepared.products)


def _anywhere(job: Job) -> Job:
    """Return the job with absolute paths, so that it means the same in another working directory."""
    weights = job.weights if job.weights in (None, RANDOM) else os.path.abspath(job.weights)
    return replace(job, weights=weights, task=job.task.anywhere())


def _seen_from_anywhere(prepared: Prepared) -> Prepared:
    """Return the scene with absolute paths of local files; other GDAL names, such as URLs, stay as they are."""
    sources = {}
    for m, source in prepared.sources.items():
        told = source.validity
        told = replace(told, path=absolute(told.path)) if told else None
        sources[m] = replace(source, path=absolute(source.path), validity=told)
    return replace(prepared, sources=sources)
