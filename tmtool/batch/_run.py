"""Many scenes: check all, run those that are not done, report the outcome of each."""

import logging
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from tmtool import errors
from tmtool.batch._claims import Claim
from tmtool.batch._outcome import Outcome, Tally
from tmtool.batch._place import Folder
from tmtool.batch.rates import Meter, times
from tmtool.batch.words import duration, size_text
from tmtool.scene.job import Job, Prepared, Scene, prepare
from tmtool.scene.progress import Reporter
from tmtool.scene.run import Runner, SceneRun, apart
from tmtool.scene.status import Status, notice_of
from tmtool.settings import Policy

T = TypeVar("T")

_log = logging.getLogger("tmtool")

_LOOK_AGAIN_S = 1.0
"""How long to wait before looking again at scenes that other processes work on."""

_FOR_ALL = (errors.DeviceError, errors.WeightsError, errors.ClusterError, errors.StoreError)
"""Errors that concern every scene: they end the run."""


def run_batch(
    job: Job,
    scenes: Sequence[Scene],
    policy: Policy | None = None,
    tell: Callable[[Outcome], None] = lambda _: None,
    reporter: Reporter | None = None,
    place: Folder | None = None,
) -> Tally:
    """Run `job` over the scenes that are not done, and return the outcome of each; `tell` is called with each as it happens.

    Every scene is checked before a model is loaded. Processes that share an output folder share the work. A bad scene is
    an outcome, not an error. Raises `UsageError`, `DeviceError`, `WeightsError`, `ClusterError` and `StoreError`, which concern every
    scene. `place` is where products go if they do not stay in the scenes' folders.

    Example: `run_batch(Job(Generate(("LULC",))), list_scenes(Listing(["scenes/"]), Path("out"))).exit_code`
    """
    policy = policy or Policy()
    for note in job.check():
        _log.warning("%s", note)
    if notice := notice_of(job):
        _log.warning("%s", notice)
    tally = Tally()
    if policy.report:
        tally.write(policy.report, "nothing yet")  # if it cannot be written, fail now
    ended_by = "an error"
    try:
        with ExitStack() as stack:
            runner = _runner(job, policy, stack, reporter)
            _Batch(job, policy, runner, tally, tell, place or Folder(Path())).run(scenes)
        ended_by = "itself"
    except BaseException as stop:
        ended_by = getattr(stop, "signal_name", ended_by)
        raise
    finally:
        if len(scenes) > 1 and tally.outcomes:
            _log.info("%s", tally.text())
        if policy.report:
            tally.write(policy.report, ended_by)
    return tally


def _runner(job: Job, policy: Policy, stack: ExitStack, reporter: Reporter | None) -> Runner:
    if not policy.cluster:
        return Runner(job, reporter, dry=policy.dry_run)
    from tmtool.batch._cluster import ClusterRunner

    return ClusterRunner(job, policy.cluster, stack, reporter, dry=policy.dry_run)


_OF_ANY = {"seams", "level"}
"""What is measured of any product, beside what its own measure finds."""


class _FailedFast(Exception):
    """A scene has failed, and no other is to be begun."""


@dataclass(frozen=True)
class _Begun:
    """A scene that this process has claimed and begun."""

    prepared: Prepared
    held: Claim
    place: str
    running: SceneRun


@dataclass(frozen=True)
class _Sending:
    """A scene whose products are made and are being sent where they go."""

    outcome: Outcome
    held: Claim
    sent: Future[None]


class _Batch:
    """The scenes of one run."""

    def __init__(
        self,
        job: Job,
        policy: Policy,
        runner: Runner,
        tally: Tally,
        tell: Callable[[Outcome], None],
        place: Folder,
    ) -> None:
        self.job, self.policy, self.runner, self.tally, self._listener = job, policy, runner, tally, tell
        self.place = place
        self._ahead: deque[_Begun] = deque()  # begun, but not run
        self._last: _Begun | None = None  # its products are being built while the next one's tiles run
        self._sending: _Sending | None = None
        self._untidy: list[Prepared] = []
        self._meter = Meter(job)

    def run(self, found: Sequence[Scene]) -> None:
        """Check all scenes, then run those that are not done; come back to those that other processes work on."""
        try:
            ready = self._checked(found)
            if ready:
                self.runner.expect(ready)
            due = self._due(ready)
            if due:
                self.runner.announce(due)
            if self.policy.dry_run:
                self._plan_all(due)
            else:
                self._run_all(due)
        except _FailedFast:
            _log.error("stopped at the first failure, as --fail-fast asks")
            self._collect()
        except Exception:  # which is no reason to lose the scene before
            self._collect()
            raise
        except BaseException as error:
            if self._last is not None:
                self._last.running.abandon(error)
                self._last.held.release()
            if self._sending is not None:
                self._sending.held.release()
            raise
        finally:
            for begun in self._ahead:
                begun.running.put_back()
                begun.held.release()
            self._meter.remember()

    def _due(self, ready: Sequence[Prepared]) -> deque[Prepared]:
        """Return the scenes that are to be run. Raises `OutputError` where they could not be written."""
        self.place.begin(len(ready))
        due = deque(p for p in ready if self._is_due(p))
        self.place.looked()
        if not self.policy.dry_run or not self.place.sends:
            for folder in dict.fromkeys(prepared.scene.folder for prepared in due):
                self.place.check_writable(folder)
        return due

    def _plan_all(self, due: Iterable[Prepared]) -> None:
        for prepared in due:
            self._plan(prepared)

    def _plan(self, prepared: Prepared) -> None:
        """Say what a scene would take, after the checks that a run makes as it begins it."""
        try:
            self.runner.foresee(prepared)
        except _FOR_ALL:
            raise
        except errors.TmtoolError as error:
            self._failed(Outcome(prepared.scene, "failed", prepared, error=error))
            return
        estimate = times(self.job, prepared)
        (here, seconds), *_, (fast, shortest) = estimate.items()
        _log.info(
            "%s: %d tiles, at most %s of disk while it runs, roughly %s (%s) or %s (%s)",
            prepared.scene.stem, prepared.tile_count, size_text(prepared.disk_bytes),
            duration(seconds), here, duration(shortest), fast,
        )  # fmt: skip
        self._tell(Outcome(prepared.scene, "planned", prepared, estimate=estimate))

    def _run_all(self, due: deque[Prepared]) -> None:
        total, busy, said = len(due), 0, False
        while due or self._ahead:
            if busy < len(due) and self.runner.has_room(len(self._ahead)):
                prepared = due.popleft()
                if self._take(prepared, f"{total - len(due)} of {total}" if total > 1 else ""):
                    busy = 0
                else:
                    due.append(prepared)
                    busy += 1
                continue
            if self._ahead:
                self._run(self._ahead.popleft())
                continue
            self._collect()  # others work on all that are left
            if not said:
                by = self.place.owner(due[-1].scene.folder, self._claim_name(due[-1]))
                _log.info("waiting for %d scenes that others work on (%s)", busy, by or "just released")
            said, busy = True, 0
            time.sleep(_LOOK_AGAIN_S)
        self._collect()
        for prepared in list(self._untidy):  # unless it died meanwhile
            self._tidy(prepared)

    def _checked(self, found: Sequence[Scene]) -> list[Prepared]:
        """Check every scene before anything is loaded; return those that can be used."""
        ready: list[Prepared] = []
        by_target: dict[Path, Scene] = {}
        for scene in found:
            try:
                prepared = prepare(self.job, scene)
                for path in prepared.targets:
                    if (other := by_target.setdefault(path, scene)) is not scene:
                        raise errors.UsageError(
                            f"{scene.path}: would write {self.place.name(path)}, as {other.path} does; run it separately "
                            "with another --output-dir."
                        )
            except errors.TmtoolError as error:
                self._failed(Outcome(scene, "invalid", error=error))
                continue
            for source in prepared.sources.values():
                why = (source.modality.name, source.modality_why, source.offset, source.offset_why)
                _log.debug("%s: %s by %s; offset %g (%s)", source.path, *why)
                if source.brought or source.unit_why:
                    _log.info("%s: read %s", source.path, ", ".join(filter(None, (source.brought, source.unit_why))))
                for warning in source.warnings:
                    _log.warning("%s: %s", source.path, warning)
            ready.append(prepared)
        return ready

    def _is_due(self, prepared: Prepared) -> bool:
        """Whether a scene is to be run: not if its products exist, or other files have their names."""
        try:
            status = self._status(prepared)
        except errors.TmtoolError as error:
            if isinstance(error, (errors.WeightsError, errors.StoreError)):
                raise
            self._failed(Outcome(prepared.scene, "invalid", prepared, error=error))
            return False
        if status.kind == "done" and not self.job.overwrite:
            self._tidy(prepared)
            self._tell(Outcome(prepared.scene, "skipped", prepared, why="done before"))
            return False
        if status.kind == "absent" or self.job.overwrite or self.policy.stale == "redo":
            return True
        if self.policy.stale == "keep":
            self._tell(Outcome(prepared.scene, "kept", prepared, why=status.why))
            return False
        in_the_way = errors.OutputError(
            f"{status.why}. Use --overwrite or --stale redo to replace it, --stale keep to leave it, or another "
            "--output-dir."
        )
        self._failed(Outcome(prepared.scene, "invalid", prepared, error=in_the_way))
        return False

    def _tidy(self, prepared: Prepared) -> None:
        """Remove the leftovers of a run that died just after it committed its products."""
        folder, name = prepared.scene.folder, self._claim_name(prepared)
        task = self.job.task.name
        if self.policy.dry_run or not (self.place.leftovers(prepared, task) or self.place.owner(folder, name)):
            return
        held = self.place.claim(folder, name)
        if held is None:  # whoever made it is about to tidy up
            self._untidy.append(prepared)
            return
        with held:
            for path in self.place.leftovers(prepared, task):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def _status(self, prepared: Prepared) -> Status:
        from_tokens = any(source.made for source in prepared.sources.values())
        if not from_tokens and not any(self.place.exists(path) for path in prepared.targets):
            return Status("absent")  # without asking for weights
        return self.runner.status(prepared, self.place)

    def _is_made(self, prepared: Prepared) -> bool:
        """Whether an earlier run made the products here but could not send them."""
        if not self.place.sends or self.job.overwrite or not any(path.exists() for path in prepared.targets):
            return False
        return self.runner.status(prepared).kind == "done"

    def _claim_name(self, prepared: Prepared) -> str:
        return f"{prepared.scene.stem}_{self.job.task.name}"

    def _take(self, prepared: Prepared, place: str) -> bool:
        """Claim and begin a scene, unless another process works on it: then return False."""
        folder = prepared.scene.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise errors.OutputError(f"{folder}: cannot be written to ({error.strerror}).") from error
        held = self.place.claim(folder, self._claim_name(prepared))
        if held is None:
            return False
        with self._scene_of(prepared, held):
            if not self._is_due(prepared):  # another process was here in the meantime
                held.release()
            elif self._is_made(prepared):
                self._send(Outcome(prepared.scene, "done", prepared, why="made before, sent now"), held)
            else:
                running = self._trying(lambda: self.runner.begin(prepared, place, held.check))
                self._ahead.append(_Begun(prepared, held, place, running))
        return True

    def _run(self, begun: _Begun) -> None:
        """Run the tiles of a scene. Its products are built while the next one's tiles run."""
        first = iter([begun.running])

        def once() -> SceneRun:
            running = next(first, None) or self.runner.begin(begun.prepared, begun.place, begun.held.check)
            running.tiles()
            return running

        before = self._last
        with self._scene_of(begun.prepared, begun.held):
            self._last = replace(begun, running=self._trying(once))
        if self._last is not before:
            self._collect_of(before)

    @contextmanager
    def _scene_of(self, prepared: Prepared, held: Claim) -> Iterator[None]:
        """Release the claim if work on a scene fails; record the failure as the scene's outcome if other scenes can continue."""
        try:
            yield
        except _FOR_ALL:
            held.release()
            raise
        except errors.TmtoolError as error:
            held.release()
            self._failed(Outcome(prepared.scene, "failed", prepared, error=error))
        except BaseException:
            held.release()
            raise

    def _trying(self, call: Callable[[], T]) -> T:
        """Call, and retry after an error that may be temporary, as often as --retries allows."""
        for attempt in range(1, self.policy.retries + 1):
            try:
                return call()
            except (errors.ReadError, errors.DiskError) as error:
                _log.warning("%s Trying again (%d of %d).", error, attempt, self.policy.retries)
        return call()

    def _collect(self) -> None:
        """Wait for the scene whose products are being built, if there is one, and until all are where they go."""
        last, self._last = self._last, None
        self._collect_of(last)
        sending, self._sending = self._sending, None
        self._await_sent(sending)

    def _collect_of(self, last: _Begun | None) -> None:
        if last is None:
            return
        try:
            result = last.running.result()
        except BaseException as error:
            last.held.release()
            if not isinstance(error, errors.TmtoolError):
                raise
            self._failed(Outcome(last.prepared.scene, "failed", last.prepared, error=error))
            return
        self._send(Outcome(last.prepared.scene, "done", last.prepared, result), last.held)
        compute = self.runner.models.spec(tuple(last.prepared.sources)).compute
        if not (self.policy.cluster or compute.beside or result.from_row):
            self._meter.add(last.prepared, compute, result.tiles - result.empty_tiles, result.seconds)

    def _send(self, outcome: Outcome, held: Claim) -> None:
        """Send what a scene has made where it goes, beside what runs next; that is all where it stays."""
        if not self.place.sends:
            held.release()
            self._tell(outcome)
            return
        try:
            self.place.finish(outcome)
        except BaseException:
            held.release()
            raise
        sent = apart(lambda: self._trying(lambda: self.place.send(outcome, held.check)))
        before, self._sending = self._sending, _Sending(outcome, held, sent)
        self._await_sent(before)

    def _await_sent(self, sending: _Sending | None) -> None:
        """Wait until the products of a scene are where they go."""
        if sending is None:
            return
        outcome = sending.outcome
        with sending.held:
            try:
                sending.sent.result()
            except errors.TmtoolError as error:
                outcome = Outcome(outcome.scene, "failed", outcome.prepared, error=error)
        self._failed(outcome) if outcome.bad else self._tell(outcome)

    def _failed(self, outcome: Outcome) -> None:
        _log.error("%s", outcome.error)
        self._tell(outcome)
        if self.policy.fail_fast:
            raise _FailedFast

    def _tell(self, outcome: Outcome) -> None:
        """Report the outcome of a scene to the listener and the log."""
        outcome.name = self.place.name
        self.tally.outcomes.append(outcome)
        if outcome.why:
            _log.info("%s: %s, %s", outcome.scene.stem, outcome.status, outcome.why)
        if outcome.result is not None:
            _log_result(outcome)
        self._listener(outcome)


def _log_result(outcome: Outcome) -> None:
    result, prepared, stem = outcome.result, outcome.prepared, outcome.scene.stem
    if result is None or prepared is None:
        return
    for warning in result.warnings:
        _log.warning("%s: %s", outcome.scene.path, warning)
    _log.info("%s: %d tiles (%d empty) in %.1f s", stem, result.tiles, result.empty_tiles, result.seconds)
    for product in prepared.products:
        facts = result.measured.get(product.suffix, {})
        if product.measuring and facts.keys() - _OF_ANY:  # it had something to be measured by
            text = product.measuring.text(facts, prepared.sources[product.modality].modality)
            _log.info("%s_%s: %s", stem, product.suffix, text)
    whole = max(result.seconds, 1e-9)
    words = {
        "read": "for input",
        "model": "for the model",
        "write": "for the disk",
        "build": "for products after the last tile",
    }
    waits = ", ".join(f"{100 * s / whole:.0f} % {words[what]}" for what, s in result.stalls.items())
    busy = 100 * result.model_seconds / whole
    _log.debug("%s: %.1f s, of which waiting %s; the model was busy for %.0f %%", stem, whole, waits, busy)
