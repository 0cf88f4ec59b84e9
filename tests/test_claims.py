import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tmtool.batch import _claims as claims
from tmtool.batch._claims import Claim, ClaimLost, claim, owner
from tmtool.errors import OutputError

HANG_S = 60  # no test waits so long unless something hangs
LONG_S = 1e6  # a patience that no silence outlasts, unless a test makes the file old

HEAD = """
import os, sys
from pathlib import Path
from tmtool.batch import _claims as claims
from tmtool.batch._claims import claim
folder = Path(sys.argv[1])
def say(*words): print(*words, flush=True)
"""
HOLDER = """
held = claim(folder, "a", patience_s=float(sys.argv[2]))
say(held is not None)
sys.stdin.readline()
try:
    held.check()
    say("held")
except claims.ClaimLost as error:
    say("lost:", error)
held.release()
"""
ELSEWHERE = 'claims._machine = lambda: "another host"\nclaims.socket.gethostname = lambda: "elsewhere"\n'


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start plain Python on a script; what still runs at the end is killed."""
    running: list[subprocess.Popen[str]] = []
    timers = []

    def run(code: str, *args: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HEAD + code, *map(str, args)]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        running.append(process)
        timers.append(threading.Timer(HANG_S, process.kill))
        timers[-1].start()
        return process

    yield run
    for timer in timers:
        timer.cancel()
    for process in running:
        process.kill()
        process.communicate()


def told(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def until(true: Callable[[], Any]) -> Any:
    """Wait for something that must happen."""
    end = time.monotonic() + HANG_S
    while time.monotonic() < end:
        if value := true():
            return value
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def path_of(folder: Path, name: str = "a") -> Path:
    return folder / f".tmtool-{name}.claim"


def make_old(path: Path) -> None:
    os.utime(path, (1e9, 1e9))


def is_fresh(path: Path) -> bool:
    return path.stat().st_mtime > 1.1e9


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def record(folder: Path, **changes: object) -> dict[str, Any]:
    """What a claim of this process says, with changes."""
    with claim(folder, "record") as held:  # type: ignore[union-attr]
        found = json.loads(held.path.read_text())
    token = f"{random.getrandbits(64):016x}"
    return found | {"token": token} | changes


def put(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("name", ["a", "a b", "[x]*?", "ä{0}%s", "-", ".", "a\nb", "x" * 200])
def test_a_claim_is_one_hidden_file_and_then_none(tmp_path: Path, name: str) -> None:
    assert owner(tmp_path, name) is None
    held = claim(tmp_path, name)
    assert held is not None
    assert left(tmp_path) == [f".tmtool-{name}.claim"]
    assert f", pid {os.getpid()}, since 20" in str(owner(tmp_path, name))
    held.check()
    assert claim(tmp_path, name) is None
    held.release()
    held.release()
    assert left(tmp_path) == []
    with pytest.raises(ClaimLost):
        held.check()


def test_released_on_exception(tmp_path: Path) -> None:
    def work() -> None:
        with claim(tmp_path, "a") as held:  # type: ignore[union-attr]
            assert path_of(tmp_path).exists()
            assert not held.lost
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert left(tmp_path) == []


def test_an_exception_while_claiming_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Claim) -> bool:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(Claim, "beat", interrupted)
    with pytest.raises(KeyboardInterrupt):
        claim(tmp_path, "a")
    assert left(tmp_path) == []


def test_who_has_it_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with claim(tmp_path, "a"), caplog.at_level("DEBUG", "tmtool"):  # type: ignore[union-attr]
        assert claim(tmp_path, "a") is None
    assert f"claimed by {claims.socket.gethostname()}, pid {os.getpid()}" in caplog.text


def test_two_processes_share_names(tmp_path: Path, start: Any) -> None:
    code = """
    say("ready")
    sys.stdin.readline()
    held = {name: got for name in map(str, range(50)) if (got := claim(folder, name))}
    say(*held)
    sys.stdin.readline()
    for got in held.values():
        got.check()
        got.release()
    """
    code = "\n".join(line[4:] for line in code.splitlines())
    processes = [start(code, tmp_path) for _ in range(2)]
    assert [told(p) for p in processes] == ["ready"] * 2
    for process in processes:
        tell(process)
    names = [told(p).split() for p in processes]
    assert sorted(names[0] + names[1]) == sorted(map(str, range(50)))
    for process in processes:
        tell(process)
    assert [p.wait() for p in processes] == [0, 0]
    assert left(tmp_path) == []


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_owner_is_taken_over_at_once(tmp_path: Path, start: Any, reaped: bool) -> None:
    process = start(HOLDER, tmp_path, LONG_S)
    assert told(process) == "True"
    assert claim(tmp_path, "a", patience_s=LONG_S) is None
    assert f"pid {process.pid}," in str(owner(tmp_path, "a"))
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | (0 if reaped else os.WNOWAIT))
    assert left(tmp_path) == [path_of(tmp_path).name]  # nobody could remove it
    held = claim(tmp_path, "a", patience_s=LONG_S)
    assert held is not None
    held.check()
    assert left(tmp_path) == [path_of(tmp_path).name]
    held.release()
    assert left(tmp_path) == []


def test_a_pid_used_again_is_not_the_owner(tmp_path: Path) -> None:
    mine = record(tmp_path)
    put(path_of(tmp_path), mine)
    assert claim(tmp_path, "a") is None
    put(path_of(tmp_path), mine | {"start": "1"})
    with claim(tmp_path, "a") as held:  # type: ignore[union-attr]
        held.check()
    assert left(tmp_path) == []


def test_the_same_pid_on_another_machine_says_nothing(tmp_path: Path) -> None:
    put(path_of(tmp_path), record(tmp_path, pid=dead_pid(), machine="another boot, container or host"))
    assert claim(tmp_path, "a") is None


def test_another_host_is_taken_over_after_silence_only(tmp_path: Path, start: Any) -> None:
    process, path = start(ELSEWHERE + HOLDER, tmp_path, 1), path_of(tmp_path)
    assert told(process) == "True"
    assert str(owner(tmp_path, "a")).startswith("elsewhere, pid ")
    for _ in range(3):  # each heartbeat makes up for any silence
        make_old(path)
        until(lambda: is_fresh(path))
        assert claim(tmp_path, "a", patience_s=3600) is None
    process.kill()
    process.wait()
    assert claim(tmp_path, "a", patience_s=3600) is None
    make_old(path)
    with claim(tmp_path, "a", patience_s=3600) as held:  # type: ignore[union-attr]
        held.check()
    assert left(tmp_path) == []


def test_silence_is_as_long_as_the_owner_says(tmp_path: Path) -> None:
    path = path_of(tmp_path)
    put(path, record(tmp_path, patience_s=1e12))
    make_old(path)
    assert claim(tmp_path, "a", patience_s=1) is None


def test_silence_does_not_depend_on_this_hosts_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1e12)
    monkeypatch.setattr(time, "time_ns", lambda: 10**21)
    with claim(tmp_path, "a"):  # type: ignore[union-attr]
        assert claim(tmp_path, "a") is None


def test_a_suspended_owner_finds_its_claim_lost(tmp_path: Path, start: Any) -> None:
    process = start(HOLDER, tmp_path, 0.5)
    assert told(process) == "True"
    process.send_signal(signal.SIGSTOP)
    held = until(lambda: claim(tmp_path, "a", patience_s=0.5))
    process.send_signal(signal.SIGCONT)
    tell(process)
    said = told(process)
    assert said.startswith(f"lost: {path_of(tmp_path)}: this claim was taken over by ")
    assert f"pid {os.getpid()}," in said
    assert process.wait() == 0
    held.check()
    assert left(tmp_path) == [path_of(tmp_path).name]
    held.release()
    assert left(tmp_path) == []


def test_the_heartbeat_notices_a_loss(tmp_path: Path) -> None:
    held = claim(tmp_path, "a", patience_s=0.5)
    assert held is not None
    held.path.unlink()
    until(lambda: held.lost)
    with pytest.raises(ClaimLost, match=r"tmtool-a\.claim: this claim was removed"):
        held.check()
    held.release()


@pytest.mark.parametrize("content", [b"", b"\0\xff", b"[" * 4000, b"{}", b'{"token": "../../x"}', b"1" * 5000])
def test_garbage_is_waited_for_and_then_replaced(tmp_path: Path, content: bytes) -> None:
    path = path_of(tmp_path)
    path.write_bytes(content)
    assert claim(tmp_path, "a") is None  # perhaps half written
    assert owner(tmp_path, "a") == "an unknown owner"
    make_old(path)
    with claim(tmp_path, "a") as held:  # type: ignore[union-attr]
        held.check()
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    "changes", [{"token": "../../x"}, {"pid": 0}, {"pid": -1}, {"pid": 1e400}, {"patience_s": "x"}]
)
def test_impossible_records_are_garbage(tmp_path: Path, changes: dict[str, Any]) -> None:
    put(path_of(tmp_path), record(tmp_path, **changes))
    assert owner(tmp_path, "a") == "an unknown owner"


def test_many_threads_race_for_a_stale_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_look", late(claims._look))
    monkeypatch.setattr(claims, "_create", late(claims._create))
    dead, rounds, takers = dead_pid(), 100, 4
    for i in range(rounds):
        put(path_of(tmp_path, str(i)), record(tmp_path, pid=dead))
    won: list[list[Claim]] = [[] for _ in range(rounds)]
    together = threading.Barrier(takers, timeout=HANG_S)

    def take() -> None:
        for i in range(rounds):
            together.wait()
            if got := claim(tmp_path, str(i)):
                won[i].append(got)

    threads = [threading.Thread(target=take) for _ in range(takers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(w) for w in won] == [1] * rounds
    for (held,) in won:
        held.check()
        held.release()
    assert left(tmp_path) == []


def late(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let others in before and after."""

    def call(*args: Any) -> Any:
        time.sleep(random.random() * 1e-3)
        value = function(*args)
        time.sleep(random.random() * 1e-3)
        return value

    return call


def test_processes_race_for_stale_claims(tmp_path: Path, start: Any) -> None:
    dead, names = dead_pid(), [str(i) for i in range(100)]
    for name in names:
        put(path_of(tmp_path, name), record(tmp_path, pid=dead))
    code = """
say("ready")
sys.stdin.readline()
held = [name for name in map(str, range(100)) if claim(folder, name)]
say(*held)
sys.stdin.readline()
os._exit(0)
"""
    processes = [start(code, tmp_path) for _ in range(3)]
    assert [told(p) for p in processes] == ["ready"] * 3
    for process in processes:
        tell(process)
    won = [told(p).split() for p in processes]
    assert sorted(sum(won, [])) == sorted(names)
    assert left(tmp_path) == sorted(path_of(tmp_path, name).name for name in names)


def test_takers_that_died_in_the_middle_are_in_nobodys_way(tmp_path: Path) -> None:
    path, dead = path_of(tmp_path), dead_pid()
    for _ in range(3):  # an owner, its taker, and the taker's taker
        content = record(tmp_path, pid=dead)
        put(path, content)
        path = tmp_path / f".tmtool-{content['token']}.guard"
    with claim(tmp_path, "a") as held:  # type: ignore[union-attr]
        held.check()
        assert left(tmp_path)[-1] == path_of(tmp_path).name


def test_a_taker_that_lives_is_not_disturbed(tmp_path: Path) -> None:
    content = record(tmp_path, pid=dead_pid())
    put(path_of(tmp_path), content)
    put(tmp_path / f".tmtool-{content['token']}.guard", record(tmp_path))
    assert claim(tmp_path, "a") is None
    assert len(left(tmp_path)) == 2


def test_a_taker_suspended_in_the_middle_yields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(path_of(tmp_path), record(tmp_path, pid=dead_pid()))
    other = record(tmp_path, host="the other")
    replace = Path.replace

    def resumed(self: Path, target: Path) -> Path:
        put(self, other)  # meanwhile somebody took the guard over
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", resumed)
    assert claim(tmp_path, "a") is None
    assert str(owner(tmp_path, "a")).startswith("the other, ")
    assert left(tmp_path) == [path_of(tmp_path).name]


def test_an_owner_that_comes_back_keeps_its_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = claim(tmp_path, "a")
    assert held is not None
    make_old(held.path)
    create = claims._create

    def slow(path: Path, content: bytes) -> bool:
        if path.suffix == ".guard":
            held.check()  # after it was judged, before it is replaced
        return create(path, content)

    monkeypatch.setattr(claims, "_create", slow)
    assert claim(tmp_path, "a", patience_s=1) is None
    held.check()
    held.release()
    assert left(tmp_path) == []


def test_many_claims_have_one_heartbeat(tmp_path: Path) -> None:
    held = [claim(tmp_path, str(i), patience_s=0.5) for i in range(20)]
    hearts = [t for t in threading.enumerate() if t.name == "tmtool-claims"]
    assert len(hearts) == 1
    for one in held:
        assert one is not None
        make_old(one.path)
    until(lambda: all(is_fresh(one.path) for one in held if one))
    for one in held:
        if one:
            one.release()
    hearts[0].join(HANG_S)
    assert not hearts[0].is_alive()
    assert left(tmp_path) == []


def test_a_forked_child_leaves_its_parents_claims(tmp_path: Path, start: Any) -> None:
    code = """
import signal, time
with claim(folder, "a", patience_s=0.5) as held:
    child = os.fork()
    if not child:
        signal.alarm(int(sys.argv[2]))
        held.check()
        held.release()
        assert claim(folder, "a", patience_s=1e6) is None
        with claim(folder, "b", patience_s=0.5) as own:
            os.utime(own.path, (1e9, 1e9))
            while own.path.stat().st_mtime < 1.1e9:
                time.sleep(0.01)
        os._exit(0)
    say(os.waitpid(child, 0)[1])
    held.check()
"""
    process = start(code, tmp_path, HANG_S)
    assert told(process) == "0"
    assert process.wait() == 0
    assert left(tmp_path) == []


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(OutputError, match=r"\.tmtool-a\.claim: .* cannot be read or written"):
            claim(folder, "a")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    root = os.geteuid() == 0
    try:
        if root:  # who may write anywhere
            os.seteuid(65534)
        with pytest.raises(OutputError, match=r"\.tmtool-a\.claim: .*Permission denied"):
            claim(closed, "a")
    finally:
        if root:
            os.seteuid(0)
    assert left(closed) == []


def test_a_name_that_is_taken_by_something_else(tmp_path: Path) -> None:
    path_of(tmp_path).mkdir()
    with pytest.raises(OutputError, match="Is a directory"):
        claim(tmp_path, "a")
    path_of(tmp_path, "b").symlink_to("nowhere")
    with pytest.raises(OutputError, match="can neither be created nor read"):
        claim(tmp_path, "b")


def test_a_full_disk_leaves_nothing(tmp_path: Path, start: Any) -> None:
    code = """
import resource
from tmtool.errors import OutputError
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
try:
    claim(folder, "a")
except OutputError as error:
    say(error)
"""
    process = start(code, tmp_path)
    assert ".tmtool-a.claim: a scene's claim cannot be read or written (File too large)" in told(process)
    assert process.wait() == 0
    assert left(tmp_path) == []
