"""Claims: jobs that are given the same scenes share them by claiming each one with a lock file in the output folder.

The file names its owner. A thread rewrites it every `patience_s / 6` as a heartbeat; if the owner has died, or its heartbeat
has stopped, another process may take the claim over. A claim does not say what is done: look for the product after claiming.

Written here because no maintained library fits: filelock's `SoftFileLease` leaves a dead owner's file in place for ever on NFS
and SMB (it needs RENAME_EXCHANGE there), and flufl.lock breaks locks by local clocks and lets two breakers win.
"""

import contextlib
import json
import logging
import os
import re
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from tmtool.errors import OutputError, TmtoolError
from tmtool.files.writer import WORK_PREFIX

_log = logging.getLogger("tmtool")

_BEATS = 6  # heartbeats in the patience of others: some may be late, or wait behind one slow disk
TRIES = 100
_MAX_BYTES = 4096


class ClaimLost(TmtoolError):
    """A claim that another process took over, as this one had no heartbeat (suspended, or its disk gone) for too long."""


@dataclass(frozen=True)
class Owner:
    """The record in a claim's file. `machine` is where `pid` is valid; `start` tells a process from a later one with its pid."""

    token: str
    host: str
    machine: str
    pid: int
    start: str
    since: str
    patience_s: float

    def __str__(self) -> str:
        return f"{self.host}, pid {self.pid}, since {self.since}"

    @property
    def dead(self) -> bool:
        """Whether this owner is known to be gone; False also where nothing is known."""
        if self.machine != _machine() or os.name != "posix":
            return False
        try:
            with contextlib.suppress(PermissionError):  # another user's
                os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        now = _start(self.pid)
        return bool(now and self.start) and now != self.start


@dataclass(frozen=True)
class _Look:
    """A claim's file at one moment; `owner` is None where the file holds no (or not yet a whole) record."""

    owner: Owner | None
    inode: int
    mtime_ns: int

    def __str__(self) -> str:
        return str(self.owner or "an unknown owner")

    def is_of(self, token: str) -> bool:
        return self.owner is not None and self.owner.token == token

    def gone(self, folder: Path, patience_s: float) -> bool:
        """Whether the owner is dead, or silent for longer than its patience and the taker's."""
        if self.owner and self.owner.dead:
            return True
        patience_s = max(patience_s, self.owner.patience_s if self.owner else 0)
        return _folder_time_ns(folder) - self.mtime_ns > patience_s * 1e9


class Claim:
    """A claim of this process; a context manager that releases it. Made by `claim`.

    `lost` says what the last heartbeat found; `check` looks now. `record` is what the file holds, `token` what tells it from
    every other claim, `interval_s` how often it is written again.
    """

    def __init__(self, path: Path, patience_s: float) -> None:
        self.path = path
        self.lost = False
        self.interval_s = patience_s / _BEATS
        self.token = secrets.token_hex(8)
        pid, since = os.getpid(), datetime.now(UTC).isoformat(timespec="seconds")
        self._pid = pid
        owner = Owner(self.token, socket.gethostname(), _machine(), pid, _start(pid), since, patience_s)
        self.record = json.dumps(asdict(owner)).encode()

    def __enter__(self) -> "Claim":
        """Return itself: it is held already."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Release it."""
        self.release()

    def check(self) -> None:
        """Raise `ClaimLost` if somebody took the claim over. Call it before files get their final names."""
        with _named(self.path):
            if self.beat():
                return
            now = _look(self.path)
        by = f"taken over by {now}" if now else "removed"
        raise ClaimLost(f"{self.path}: this claim was {by}; this run's work on the scene is discarded.")

    def beat(self) -> bool:
        """Write the file again, for its new mtime, and return whether it is still this claim's."""
        try:
            # What is written is the file that was read, whatever has its name by then.
            with self.path.open("r+b", buffering=0) as file:
                owner = parse(file.read(_MAX_BYTES))
                if owner is None or owner.token != self.token:
                    self.lost = True
                if not self.lost:
                    self._rewrite(file)
        except FileNotFoundError:
            self.lost = True
        return not self.lost

    def _rewrite(self, file: FileIO) -> None:
        # A write gets its mtime from the file server; os.utime gets it from this host on some network file systems.
        try:
            file.seek(0)
            file.write(self.record)
            os.fsync(file.fileno())
        except OSError as error:  # the next one may work, and if none does others take over
            _log.debug("%s: heartbeat failed (%s)", self.path, error)

    def release(self) -> None:
        """Remove the file if it is still this claim's. May be called any number of times; a forked child leaves it be."""
        if self._pid != os.getpid():
            return
        _heart.remove(self)
        try:
            # The beat shows life to a taker that is about to look again, so the file stays ours until it is removed.
            if self.beat():
                self.path.unlink(missing_ok=True)
        except OSError as error:  # the scene itself is done, and others take over what stays
            _log.debug("%s: cannot be removed (%s)", self.path, error)
        self.lost = True


class _Heart:
    """The one thread that keeps all claims of this process fresh; it ends when there are none."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything, as a forked child must: it has no such thread, and its parent's claims are not its own."""
        self._changed = threading.Condition()
        self._due: dict[Claim, float] = {}
        self._thread: threading.Thread | None = None

    def add(self, claim: Claim) -> None:
        with self._changed:
            self._due[claim] = time.monotonic() + claim.interval_s
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="tmtool-claims", daemon=True)
                self._thread.start()
            self._changed.notify()

    def remove(self, claim: Claim) -> None:
        with self._changed:
            self._due.pop(claim, None)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._due:
                    self._thread = None
                    return
                now = time.monotonic()
                due = [claim for claim, at in self._due.items() if at <= now]
                if not due:
                    self._changed.wait(min(self._due.values()) - now)
                self._due.update({claim: now + claim.interval_s for claim in due})
            for claim in due:  # with the lock free: a disk may hang
                try:
                    claim.beat()
                except OSError as error:
                    _log.debug("%s: heartbeat failed (%s)", claim.path, error)


_heart = _Heart()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_heart.reset)


def keep_fresh(claim: Claim) -> None:
    """Beat for a claim from now on."""
    _heart.add(claim)


def forget(claim: Claim) -> None:
    """Beat for a claim no more."""
    _heart.remove(claim)


def claim(folder: Path, name: str, *, patience_s: float = 120.0) -> Claim | None:
    """Claim `name` in `folder`, or return None where somebody else is alive and working on it.

    An owner on this host is taken over as soon as it is dead, any owner after `patience_s` without a heartbeat.
    Raises `OutputError` where the folder cannot be written to.
    """
    path = claim_path(folder, name)
    mine = Claim(path, patience_s)
    try:
        with _named(path):
            if _seize(path, mine, patience_s) and mine.beat():
                _heart.add(mine)
                return mine
    except BaseException:
        mine.release()
        raise
    return None


def check_writable(folder: Path) -> None:
    """Raise `OutputError` if a claim could not be written in `folder`, which need not exist yet. Leaves nothing behind."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(prefix=WORK_PREFIX, dir=there):
            pass
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written to ({error.strerror}).") from error


def owner(folder: Path, name: str) -> str | None:
    """Return who claimed `name`, as "host, pid 123, since 2025-01-31T12:00:00+00:00", or None where nobody did."""
    with _named(claim_path(folder, name)):
        look = _look(claim_path(folder, name))
    return str(look) if look else None


def _seize(path: Path, mine: Claim, patience_s: float) -> bool:
    """Put `mine` at `path` if there is nothing, or in the place of a claim whose owner is gone. Of many takers one succeeds.

    Only who holds the guard of a claim, a file named after its token, may replace it. So nobody replaces a claim that
    came after the one he judged. The guard is itself claimed in this way, since its holder may die too; renamed, it is
    the new claim.
    """
    for _ in range(TRIES):
        if _create(path, mine.record):
            return True
        look = _look(path)
        if look is None:
            time.sleep(0.01)  # released this moment, or an old view of the folder
            continue
        if look.is_of(mine.token):
            return True  # an NFS request that was repeated, and met what it had done the first time
        if not look.gone(path.parent, patience_s):
            _log.debug("%s: claimed by %s", path, look)
            return False
        key = look.owner.token if look.owner else f"{look.inode:x}-{look.mtime_ns:x}"
        guard = path.with_name(f"{WORK_PREFIX}{key}.guard")
        if not _seize(guard, mine, patience_s):
            return False
        try:
            if _look(path) == look:
                with contextlib.suppress(FileNotFoundError):  # whoever took this guard over, or a repeated NFS request
                    guard.replace(path)
                now = _look(path)
                return now is not None and now.is_of(mine.token)
        finally:
            guard.unlink(missing_ok=True)
    raise OutputError(f"{path}: can neither be created nor read; remove it.")


def _create(path: Path, record: bytes) -> bool:
    try:
        file = path.open("xb")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(record)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True


def _look(path: Path) -> _Look | None:
    try:
        with path.open("rb") as file:  # NFS asks the server about a file that is opened, not about one that is statted
            text = file.read(_MAX_BYTES)
            stat = os.fstat(file.fileno())
    except FileNotFoundError:
        return None
    return _Look(parse(text), stat.st_ino, stat.st_mtime_ns)


def parse(text: bytes) -> Owner | None:
    """Return the record of a claim; None if it is none."""
    try:
        raw = json.loads(text)
        token, host, machine, start, since = (str(raw[key]) for key in ("token", "host", "machine", "start", "since"))
        found = Owner(token, host, machine, int(raw["pid"]), start, since, float(raw["patience_s"]))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    # The token becomes part of a file's name, and a pid of 0 or less means no process but many.
    return found if re.fullmatch("[0-9a-f]{16}", found.token) and 0 < found.pid < 2**31 else None


def _folder_time_ns(folder: Path) -> int:
    """Return the mtime that a file written now gets: the clock that heartbeats are stamped with, whatever host they are from."""
    number, name = tempfile.mkstemp(prefix=WORK_PREFIX, suffix=".now", dir=folder)
    try:
        os.write(number, b"\n")
        os.fsync(number)
        return os.fstat(number).st_mtime_ns
    finally:
        os.close(number)
        os.unlink(name)


def _machine() -> str:
    """Return an identifier shared by the processes that see each other under the same pids and start times."""
    parts = [socket.gethostname()]
    # Only Linux has what follows. Hosts or containers that share a name differ in it, and so does a host after a boot.
    for link in ("pid", "time"):
        with contextlib.suppress(OSError):
            parts.append(os.readlink(f"/proc/self/ns/{link}"))
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    return " ".join(parts)


def _start(pid: int) -> str:
    """Return the start time of a process, "ended" for one that only waits to be reaped, or "" where /proc tells nothing."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "ended" if fields[0] in "ZX" else fields[19]


def claim_path(folder: Path, name: str) -> Path:
    """Return where a claim lies."""
    return folder / f"{WORK_PREFIX}{name}.claim"


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        cure = "is there space, and may you write there?"
        raise OutputError(f"{path}: a scene's claim cannot be read or written ({error.strerror}); {cure}") from error
