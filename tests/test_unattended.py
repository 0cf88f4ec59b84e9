"""Runs that are left alone: killed, resumed, shared, repeated, with bad scenes among good ones."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from tests.simple_models import FAILURES
from tests.test_generate import left_behind, s2
from tmtool.errors import ReadError
from tmtool.files import journal

ROOT = Path(__file__).parents[1]
RUN = """
import sys, time
from tests import simple_models as s
from tmtool.cli import main

class Slow:
    def __init__(self, inner): self.inner = inner
    def __call__(self, batch):
        print("tile", *batch.rows[:1], file=sys.stderr, flush=True)
        time.sleep({pause})
        return self.inner(batch)

plain = s.build
s.build = lambda spec: Slow(plain(spec))
with s.registered():
    main()
"""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def start(*args: object, pause: float = 0.02, setup: str = "") -> "subprocess.Popen[str]":
    """Start a command in a process of its own, with a model that takes its time and says each tile on standard error."""
    command = [sys.executable, "-c", setup + RUN.format(pause=pause), *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def pixels(path: Path) -> np.ndarray:
    with rasterio.open(path) as src:
        return src.read()


def tiles_until(process: "subprocess.Popen[str]", count: int) -> int:
    """Wait until so many tiles were begun; return how many were before the process ended."""
    assert process.stderr is not None
    seen = 0
    for line in process.stderr:
        seen += line.startswith("tile")
        if seen == count:
            break
    return seen


def scene_with_holes(height: int = 1500, width: int = 500) -> np.ndarray:
    values = s2(height, width)
    values[:, 300:600, 100:400] = 0
    return values


COMMANDS = {
    "generate": ("generate", "--out", "S1GRD,LULC"),
    "tokenize": ("tokenize",),
    "reconstruct": ("reconstruct",),
    "embed": ("embed", "--dtype", "int8"),
    "embed-zarr": ("embed", "--format", "zarr"),
}


def products(folder: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted(folder.iterdir()):
        if path.suffix == ".tif":
            with rasterio.open(path) as src:
                yield path.name, (src.read(), [src.tags(i) for i in src.indexes])
        elif path.suffix == ".zarr":
            import xarray

            yield path.name, (xarray.open_zarr(path)["embedding"].values, [])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_run_goes_on_where_it_was(
    tmtool: Any, make_raster: Any, identity: str, tmp_path: Path, command: str
) -> None:
    path = make_raster(scene_with_holes(), nodata=0)
    args = (*COMMANDS[command], path, "--model", identity, "-o")
    assert tmtool(*args, tmp_path / "whole").exit_code == 0
    rng = random.Random(command)
    kills = 6 if command == "generate" else 2
    redone = []
    for _ in range(kills):
        process = start(*args, tmp_path / "killed")
        tiles_until(process, rng.randint(1, 9))
        process.kill()
        process.communicate()
        path_of_journal = next((tmp_path / "killed").glob("*.journal"), None)
        found = journal.read(path_of_journal) if path_of_journal else None
        redone.append(found.records[-1].row if found and found.records else 0)
    result = tmtool(*args, tmp_path / "killed", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["from_row"] == redone[-1]
    assert redone == sorted(redone)  # no run loses what an earlier one has done
    assert [n for n, _ in products(tmp_path / "killed")] == [n for n, _ in products(tmp_path / "whole")]
    for (_, (a, tags)), (_, (b, other)) in zip(
        products(tmp_path / "whole"), products(tmp_path / "killed"), strict=True
    ):
        np.testing.assert_array_equal(a, b)
        assert tags == other  # statistics
    assert not [name for name in left_behind(tmp_path / "killed") if name.startswith(".")]


def test_at_most_one_block_is_done_again(make_raster: Any, out: Path) -> None:
    path = make_raster(scene_with_holes())
    args = ("generate", path, "--out", "S1GRD", "--model", "identity", "-o", out, "--batch-size", 1)
    process = start(*args)
    tiles_until(process, 14)
    process.kill()
    process.communicate()
    record = journal.read(next(out.glob("*.journal"))).records[-1]  # type: ignore[union-attr]
    process = start(*args)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0
    rows = [int(line.split()[1]) for line in said.splitlines() if line.startswith("tile")]
    assert min(rows) >= record.row - 8 - 192  # the tiles above overlap what is still to be made
    assert record.row >= 192 * 3


def interrupted(tmtool: Any, make_raster: Any, out: Path, *options: object, tiles: int = 14) -> tuple[Any, ...]:
    """Begin a run and stop it; return the command's arguments."""
    path = make_raster(scene_with_holes())
    args = ("generate", path, "--out", "S1GRD", "--model", "identity", "-o", out, *options)
    FAILURES.update({"signal": signal.SIGTERM, "at": tiles})
    result = tmtool(*args)
    FAILURES.clear()
    assert result.exit_code == 143, result.stderr
    assert left_behind(out) == [".tmtool-scene_S1GRD.tif.work.tif", ".tmtool-scene_generate.journal"]
    return args


def test_parts_are_resumed(tmtool: Any, make_raster: Any, identity: str, out: Path, tmp_path: Path) -> None:
    path = make_raster(scene_with_holes(900, 2500), nodata=0)
    args = ("generate", path, "--out", "S1GRD", "--model", identity, "-o")
    few = "from tmtool import models\nfrom tmtool.scene import job\nmodels.host_bytes = lambda *a: (0, 0)\n"
    few += "job.Prepared.memory_bytes = lambda self, parts=1: 10**9 // parts\n"
    process = start(*args, out, "--max-memory", "400MB", setup=few)
    tiles_until(process, 52)
    process.kill()
    process.communicate()
    last = journal.read(next(out.glob("*.journal"))).records[-1]  # type: ignore[union-attr]
    assert last.part > 0
    result = tmtool(*args, out)  # with all the memory there is, it still goes on in parts
    assert f"resuming an earlier run from part {last.part + 1} of" in result.stderr
    assert f"row {last.row} of 900" in result.stderr
    assert tmtool(*args, tmp_path / "whole").exit_code == 0
    np.testing.assert_array_equal(pixels(out / "scene_S1GRD.tif"), pixels(tmp_path / "whole" / "scene_S1GRD.tif"))
    assert left_behind(out) == ["scene_S1GRD.tif"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "missing", "work"])
def test_a_damaged_journal_or_work_file_is_never_spliced(
    tmtool: Any, make_raster: Any, identity: str, out: Path, tmp_path: Path, damage: str
) -> None:
    args = interrupted(tmtool, make_raster, out)
    path, work = out / ".tmtool-scene_generate.journal", out / ".tmtool-scene_S1GRD.tif.work.tif"
    lines = path.read_bytes()
    rows = [r.row for r in journal.read(path).records]  # type: ignore[union-attr]
    if damage == "cut":
        path.write_bytes(lines[:-7])
    elif damage == "flipped":
        middle = lines.index(b"\n") + 20
        path.write_bytes(lines[:middle] + bytes([lines[middle] ^ 1]) + lines[middle + 1 :])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "missing":
        path.unlink()
    else:
        with rasterio.open(work, "r+") as dst:  # what a lost block on the disk looks like
            dst.write(np.full((2, 30, 500), 1.5, np.float32), window=((rows[0] + 5, rows[0] + 35), (0, 500)))
    result = tmtool(*args, "--json")
    assert result.exit_code == 0, result.stderr
    expected = {"cut": rows[-2], "flipped": 0, "empty": 0, "missing": 0, "work": rows[0]}
    assert json.loads(result.stdout)["from_row"] == expected[damage]
    assert tmtool(*args[:-1], tmp_path / "whole").exit_code == 0
    np.testing.assert_array_equal(pixels(out / "scene_S1GRD.tif"), pixels(tmp_path / "whole" / "scene_S1GRD.tif"))
    assert left_behind(out) == ["scene_S1GRD.tif"]


@pytest.mark.parametrize("change", ["seed", "input", "stride"])
def test_a_journal_of_something_else_is_set_aside(
    tmtool: Any, make_raster: Any, identity: str, out: Path, change: str
) -> None:
    args = interrupted(tmtool, make_raster, out)
    if change == "input":
        make_raster(scene_with_holes() + 1)
    more = {"seed": ("--seed", 3), "stride": ("--stride", 176)}.get(change, ())
    result = tmtool(*args, *more, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["from_row"] == 0
    words = {"seed": "seed: was 0, is 3", "input": "input_states.S2L2A", "stride": "tiling.stride: was 192, is 176"}
    assert f"had other settings or inputs ({words[change]}" in result.stderr
    assert "starting afresh" in result.stderr
    assert left_behind(out) == ["scene_S1GRD.tif"]


def test_no_resume_begins_afresh(tmtool: Any, make_raster: Any, identity: str, out: Path) -> None:
    args = interrupted(tmtool, make_raster, out)
    assert json.loads(tmtool(*args, "--no-resume", "--json").stdout)["from_row"] == 0


def test_a_resumed_run_keeps_its_batch_size(tmtool: Any, make_raster: Any, identity: str, out: Path) -> None:
    args = interrupted(tmtool, make_raster, out, "--batch-size", 3, tiles=5)
    result = tmtool(*args[:-2], "--json")
    assert json.loads(result.stdout)["from_row"] > 0
    with rasterio.open(out / "scene_S1GRD.tif") as src:
        assert json.loads(src.tags()["TMTOOL_PROVENANCE"])["batch_size"] == 3


def test_a_second_signal_ends_at_once_and_can_be_gone_on_from(
    tmtool: Any, make_raster: Any, identity: str, out: Path
) -> None:
    path = make_raster(scene_with_holes())
    args = ("generate", path, "--out", "S1GRD", "--model", identity, "-o", out)
    process = start(*args, pause=0.2)
    tiles_until(process, 9)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode in (130, 143)
    assert not (out / "scene_S1GRD.tif").exists()
    assert tmtool(*args).exit_code == 0


# --- done, stale ---------------------------------------------------------------------------------------------------


def test_what_is_done_is_skipped(tmtool: Any, make_raster: Any, identity: str, out: Path) -> None:
    for name in ("a.tif", "b.tif"):
        make_raster(s2(40, 40), name)
    args = ("generate", out.parent, "--pattern", "?.tif", "--out", "S1GRD,LULC", "--model", identity, "-o", out)
    assert tmtool(*args).exit_code == 0
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    FAILURES["raise"] = AssertionError("a model was called")
    result = tmtool(*args, "--json")
    assert result.exit_code == 0
    facts = [json.loads(line) for line in result.stdout.splitlines()]
    assert [f["status"] for f in facts] == ["skipped", "skipped"]
    assert list(facts[0]["products"].values()) == [str(out / "a_S1GRD.tif"), str(out / "a_LULC.tif")]
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == before
    FAILURES.clear()
    (out / "b_LULC.tif").unlink()
    assert "2 scenes: 1 done, 1 skipped" in tmtool(*args).stderr


@pytest.mark.parametrize("stale", ["error", "redo", "keep"])
@pytest.mark.parametrize("change", ["seed", "input", "damaged", "foreign", "version"])
def test_what_was_made_otherwise_is_stale(
    tmtool: Any, make_raster: Any, identity: str, out: Path, stale: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_raster(s2(40, 40))
    args = ("generate", path, "--out", "S1GRD", "--model", identity, "-o", out)
    assert tmtool(*args).exit_code == 0
    product = out / "scene_S1GRD.tif"
    if change == "input":
        make_raster(s2(40, 40) + 1)
    elif change == "damaged":
        product.write_bytes(product.read_bytes()[:-100])
    elif change == "foreign":
        product.write_bytes(path.read_bytes())
    elif change == "version":
        monkeypatch.setattr("tmtool.scene.status.__version__", "99.1.0")
    before = product.read_bytes()
    more = ("--seed", 7) if change == "seed" else ()
    result = tmtool(*args, *more, "--stale", stale, "--json")
    facts = json.loads(result.stdout)
    why = {
        "seed": "seed: was 0, is 7",
        "input": "input_states.S2L2A: was",
        "damaged": "is incomplete or damaged",
        "foreign": "was not made by tmtool|is not a valid COG",
        "version": "version: was 0.1, is 99.1",
    }[change]
    said = facts["error"]["message"] if stale == "error" else facts.get("why", why)
    assert any(word in said for word in why.split("|")), said
    assert facts["status"] == {"error": "invalid", "redo": "done", "keep": "kept"}[stale]
    assert result.exit_code == (2 if stale == "error" else 0)
    assert (product.read_bytes() == before) == (stale != "redo")
    if stale == "error":
        assert "--stale redo" in said


# --- several processes, several scenes -----------------------------------------------------------------------------


def folder_of(make_raster: Any, tmp_path: Path, count: int, height: int = 40) -> Path:
    for i in range(count):
        make_raster(s2(height, 40, seed=i), f"in/{i:02d}.tif")
    return tmp_path / "in"


def finished(process: "subprocess.Popen[str]") -> tuple[list[dict[str, Any]], str]:
    output, said = process.communicate(timeout=180)
    return [json.loads(line) for line in output.splitlines()], said


def test_two_processes_share_the_work(make_raster: Any, tmp_path: Path, out: Path) -> None:
    folder = folder_of(make_raster, tmp_path, 12)
    args = ("generate", folder, "--out", "S1GRD", "--model", "identity", "-o", out, "--json")
    both = [start(*args, pause=0.3) for _ in range(2)]
    facts = []
    for process in both:
        lines, said = finished(process)
        assert process.returncode == 0, said
        facts.append([f["inputs"]["S2L2A"] for f in lines if f["status"] == "done"])
    assert len(facts[0]) + len(facts[1]) == 12
    assert not set(facts[0]) & set(facts[1])
    assert all(facts)
    assert left_behind(out) == [f"{i:02d}_S1GRD.tif" for i in range(12)]


def test_one_of_two_is_killed_and_the_other_finishes_all(make_raster: Any, tmp_path: Path, out: Path) -> None:
    folder = folder_of(make_raster, tmp_path, 6, height=900)
    args = ("generate", folder, "--out", "S1GRD", "--model", "identity", "-o", out, "--json")
    first = start(*args, pause=0.1)
    tiles_until(first, 2)
    second = start(*args, pause=0.1)
    tiles_until(second, 2)
    first.kill()
    first.communicate()
    lines, said = finished(second)
    assert second.returncode == 0, said
    assert left_behind(out) == [f"{i:02d}_S1GRD.tif" for i in range(6)]


def test_what_a_dead_process_left_of_a_done_scene_is_tidied(
    tmtool: Any, make_raster: Any, identity: str, out: Path
) -> None:
    args = ("generate", make_raster(s2(900, 40)), "--out", "S1GRD", "--model", identity, "-o", out)
    assert tmtool(*args).exit_code == 0
    claimed = "from pathlib import Path; from tmtool.batch._claims import claim; import os, sys\n"
    claimed += "held = claim(Path(sys.argv[1]), 'scene_generate'); os._exit(9)"
    subprocess.run([sys.executable, "-c", claimed, str(out)], cwd=ROOT, check=False)
    (out / ".tmtool-scene_S1GRD.tif.work.tif").write_bytes(b"left")
    assert len(left_behind(out)) == 3
    result = tmtool(*args)
    assert "skipped, done before" in result.stderr
    assert left_behind(out) == ["scene_S1GRD.tif"]


def test_good_scenes_among_bad_ones(tmtool: Any, make_raster: Any, identity: str, tmp_path: Path, out: Path) -> None:
    folder = folder_of(make_raster, tmp_path, 2)
    (folder / "corrupt.tif").write_bytes(b"II*\0garbage")
    make_raster(s2(40, 40)[:5], "in/five.tif")
    cut = make_raster(s2(600, 40), "in/truncated.tif")
    cut.write_bytes(cut.read_bytes()[:-200_000])
    report = tmp_path / "report.json"
    args = ("generate", folder, "--out", "S1GRD", "--model", identity, "-o", out, "--json", "--report", report)
    result = tmtool(*args)
    assert result.exit_code == 1
    facts = [json.loads(line) for line in result.stdout.splitlines()]
    bad = {Path(next(iter(f["inputs"])) if isinstance(f["inputs"], list) else f["inputs"]["S2L2A"]).name: f["error"]
           for f in facts if f["status"] in ("invalid", "failed")}  # fmt: skip
    assert set(bad) == {"corrupt.tif", "five.tif", "truncated.tif"}
    assert all(name in error["message"] for name, error in bad.items())
    assert left_behind(out) == ["00_S1GRD.tif", "01_S1GRD.tif"]
    assert "5 scenes: 2 done" in result.stderr
    written = json.loads(report.read_text())
    assert written["counts"]["done"] == 2
    assert len(written["scenes"]) == 5
    assert written["ended_by"] == "itself"


def test_a_report_that_cannot_be_written_is_refused_at_once(
    tmtool: Any, make_raster: Any, identity: str, tmp_path: Path, out: Path
) -> None:
    (tmp_path / "file").write_text("")
    args = ("generate", make_raster(s2(40, 40)), "--out", "S1GRD", "--model", identity, "-o", out)
    result = tmtool(*args, "--report", tmp_path / "file" / "r.json")
    assert result.exit_code == 2
    assert "r.json: cannot be written" in result.stderr
    assert not out.exists()


def test_fail_fast(tmtool: Any, make_raster: Any, identity: str, tmp_path: Path, out: Path) -> None:
    folder = folder_of(make_raster, tmp_path, 3)
    (folder / "00.tif").write_bytes(b"garbage")
    result = tmtool("generate", folder, "--out", "S1GRD", "--model", identity, "-o", out, "--fail-fast")
    assert result.exit_code != 0
    assert not out.exists()


def test_retries(tmtool: Any, make_raster: Any, identity: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tmtool.source import Reader

    path = make_raster(s2(600, 40))
    plain, calls = Reader.read, []

    def flaky(self: Reader, window: Any) -> Any:
        calls.append(window)
        if len(calls) in (6, 7):
            raise ReadError(f"{path}: the disk was away.")
        return plain(self, window)

    monkeypatch.setattr(Reader, "read", flaky)
    args = ("generate", path, "--out", "S1GRD", "--model", identity, "-o", out)
    result = tmtool(*args, "--retries", 2)
    assert result.exit_code == 0, result.stderr
    assert "Trying again (1 of 2)" in result.stderr
    calls.clear()
    result = tmtool(*args, "--overwrite")
    assert result.exit_code == 1
    assert left_behind(out) == ["scene_S1GRD.tif"]


# --- what goes wrong leaves nothing, and never hangs -----------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("a bug"), MemoryError(), ReadError("gone")])
def test_a_model_that_fails_leaves_nothing(tmtool: Any, make_raster: Any, identity: str, out: Path, error: Any) -> None:
    FAILURES.update({"raise": error, "at": 5})
    args = ("generate", make_raster(scene_with_holes()), "--out", "S1GRD", "--model", identity, "-o", out)
    if isinstance(error, ReadError):
        assert tmtool(*args).exit_code == 1
    else:
        with pytest.raises(type(error)):  # a bug keeps its traceback
            tmtool(*args)
    assert left_behind(out) == []


def test_a_writer_that_fails_leaves_nothing(
    tmtool: Any, make_raster: Any, identity: str, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tmtool.files.writer import ProductWriter

    def full(self: ProductWriter, *args: Any) -> None:
        raise self._disk_error(OSError(28, "No space left on device"))

    monkeypatch.setattr(ProductWriter, "write", full)
    args = ("generate", make_raster(scene_with_holes()), "--out", "S1GRD", "--model", identity, "-o", out)
    result = tmtool(*args)
    assert result.exit_code == 1
    assert "GB free on its disk" in result.stderr
    assert left_behind(out) == []


def test_logs_as_json(tmtool: Any, make_raster: Any, identity: str, out: Path) -> None:
    path = make_raster(s2(40, 40))
    result = tmtool("generate", path, "--out", "S1GRD", "--model", identity, "-o", out, "--log-format", "json")
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert {"time", "level", "message"} == set(lines[0])


def test_a_thousand_scenes_are_planned(tmtool: Any, make_raster: Any, identity: str, tmp_path: Path, out: Path) -> None:
    first = make_raster(s2(16, 16), "in/0000.tif")
    for i in range(1, 1000):
        os.link(first, first.with_name(f"{i:04d}.tif"))
    result = tmtool("generate", first.parent, "--out", "S1GRD", "--model", identity, "-o", out, "--dry-run", "--json")
    facts = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(facts) == 1000
    assert {f["status"] for f in facts} == {"planned"}
    assert not out.exists()


def test_the_demo_model_is_resumed(tmtool: Any, tmp_path: Path) -> None:
    sample = ROOT / "samples" / "demo_scene.tif"
    args = ("generate", sample, "--out", "LULC", "--model", "demo", "--batch-size", 1, "-o")
    assert tmtool(*args, tmp_path / "whole").exit_code == 0
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "tmtool", *map(str, args), str(out)],
        stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=ROOT,
    )  # fmt: skip
    while not (found := list(out.glob("*.journal"))) or not getattr(journal.read(found[0]), "records", []):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    result = tmtool(*args, out, "--json")
    assert json.loads(result.stdout)["from_row"] > 0
    name = "demo_scene_LULC.tif"
    np.testing.assert_array_equal(pixels(out / name), pixels(tmp_path / "whole" / name))


def test_a_product_being_built_is_abandoned_and_built_again(
    tmtool: Any, make_raster: Any, identity: str, out: Path
) -> None:
    path = make_raster(scene_with_holes())
    args = ("generate", path, "--out", "S1GRD", "--model", identity, "-o", out)
    slow = RUN.replace("with s.registered", "from tmtool.files import cog\ncog.rasterio.shutil.copy = lambda *a, **k: "
                       "(print('building', file=sys.stderr, flush=True), time.sleep(300))\nwith s.registered")  # fmt: skip
    command = [sys.executable, "-c", slow.format(pause=0), *map(str, args)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        while process.stderr.readline() != "building\n":
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
    assert not (out / "scene_S1GRD.tif").exists()
    FAILURES["raise"] = AssertionError("a tile was made again")
    result = tmtool(*args, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["from_row"] == 1500
    assert left_behind(out) == ["scene_S1GRD.tif"]


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
from tests import simple_models as s
from tmtool.cli import main
with s.registered():
    main()
"""


@pytest.mark.parametrize("height", [300, 3000])
def test_a_disk_that_takes_no_more_leaves_no_product(make_raster: Any, out: Path, height: int) -> None:
    """Files may not grow beyond 1 MB here, which GDAL meets as it meets a full disk: while rows or the COG are written."""
    path = make_raster(np.random.default_rng(0).normal(-12, 4, (2, height, 500)).astype(np.float32))
    args = ("generate", path, "--in", "S1GRD", "--out", "S1RTC", "--model", "identity", "-o", out)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, args)], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 1, done.stderr
    assert (
        "scene_S1RTC.tif: writing failed: File too large. Raise the limit on the size of files (ulimit -f)"
        in done.stderr
    )
    assert left_behind(out) == []


def test_a_reader_that_breaks_midway_leaves_nothing(
    tmtool: Any, make_raster: Any, identity: str, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tmtool.source import Reader

    plain, calls = Reader.read, []

    def breaking(self: Reader, window: Any) -> Any:
        calls.append(window)
        if len(calls) == 12:
            raise SystemError("a thread died")
        return plain(self, window)

    monkeypatch.setattr(Reader, "read", breaking)
    with pytest.raises(SystemError):
        tmtool("generate", make_raster(scene_with_holes()), "--out", "S1GRD", "--model", identity, "-o", out)
    assert left_behind(out) == []
