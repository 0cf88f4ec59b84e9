"""Dask workers make the same pixels as a plain run: started here or elsewhere, killed, wrong, or lost half-way."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

from tmtool.batch._cluster import (
    Cluster,
    ClusterBlocks,
    ClusterRunner,
    Facts,
    _side_by_side,
    _Unfit,
    _warn_of_crowds,
    check_address,
    connect,
)
from tmtool.errors import ClusterError, ProductError, UsageError
from tmtool.scene.blocks import ComputedBlock
from tmtool.scene.job import Job, Scene, prepare
from tmtool.scene.progress import SilentReporter
from tmtool.tasks import TASKS, Generate
from tmtool.tiles.plan import TilePlan, Tiling

psutil = pytest.importorskip("psutil")  # comes with distributed

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
ENVIRONMENT |= {"OMP_WAIT_POLICY": "PASSIVE"}
"""That of processes: as many threads an operation as torch likes, whose number decides how it rounds.

They do not spin while they wait, as other tests need the cores.
"""
DEMO = ("--out", "S1GRD,LULC", "--model", "demo", "--timesteps", "2")


def smooth(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    """Return twelve bands of something like land, `(12, rows, cols)` DN."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(300, 4000, (12, -(-rows // 32), -(-cols // 32)))
    values = coarse.repeat(32, axis=1).repeat(32, axis=2)[:, :rows, :cols] + rng.normal(0, 60, (12, rows, cols))
    return values.clip(1, None).astype(np.uint16)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of 1500 x 700 px with holes: a corner without data, a strip, and single pixels.

    It is low enough to be one block to a process alone, and is cut for several workers.
    """
    values = smooth(1500, 700)
    values[:, :400, :500] = 0
    values[:, 700:730] = 0
    values[:, 1000::97, 3::89] = 0
    path = tmp_path_factory.mktemp("scene") / "wide.tif"
    profile = {"width": 700, "height": 1500, "count": 12, "dtype": "uint16", "nodata": 0, "crs": "EPSG:32719"}
    with rasterio.open(path, "w", driver="GTiff", tiled=True, transform=(10, 0, 3e5, 0, -10, 6e6), **profile) as dst:
        dst.write(values)
    return path


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "tmtool", *map(str, args)]


def run(*args: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command(*args), capture_output=True, text=True, env=ENVIRONMENT)


@pytest.fixture(scope="module")
def plain(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scene's products by a plain run."""
    out = tmp_path_factory.mktemp("plain")
    done = run("generate", scene, *DEMO, "-o", out)
    assert done.returncode == 0, done.stderr
    return out


def assert_same(out: Path, plain: Path) -> None:
    names = sorted(path.name for path in plain.iterdir())
    assert sorted(path.name for path in out.iterdir()) == names
    for name in (n for n in names if n.endswith(".tif")):
        with rasterio.open(out / name) as made, rasterio.open(plain / name) as expected:
            np.testing.assert_array_equal(made.read(), expected.read())
            ours, theirs = (json.loads(src.tags()["TMTOOL_PROVENANCE"]) for src in (made, expected))
            assert ours == theirs
            assert made.tags(1) == expected.tags(1)  # statistics


def test_local_processes_run_no_profiler() -> None:
    """Dask's may deadlock with a thread that starts, in CPython before 3.11.8."""
    with connect("local:1") as client:
        found = client.run(lambda dask_worker: "profile" in dask_worker.periodic_callbacks)
    assert list(found.values()) == [False]


def test_local_processes_make_the_same_pixels(scene: Path, plain: Path, tmp_path: Path) -> None:
    done = run("generate", scene, *DEMO, "-o", tmp_path, "--cluster", "local:2")
    assert done.returncode == 0, done.stderr
    assert "2 workers" in done.stderr
    assert "blocks 1-2 of 2" in done.stderr
    assert_same(tmp_path, plain)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def process(*args: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a process until the end of the block."""
    quiet = {"DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "error"}
    command = [sys.executable, "-m", *args]
    started = subprocess.Popen(command, env=ENVIRONMENT | quiet | environment, stderr=subprocess.DEVNULL)
    try:
        yield started
    finally:
        children = psutil.Process(started.pid).children(recursive=True) if started.poll() is None else []
        started.kill()
        for child in children:
            child.kill()
        started.wait()


@pytest.fixture
def scheduler() -> Iterator[str]:
    """The address of a scheduler that `dask scheduler` started."""
    port = free_port()
    with process("dask", "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"):
        yield f"tcp://127.0.0.1:{port}"


@contextmanager
def worker(address: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    options = ("--nthreads", "1", "--no-dashboard")
    with process("dask", "worker", address, *options, **{"OMP_WAIT_POLICY": "PASSIVE"} | environment) as started:
        yield started


def wait_for_workers(address: str, count: int) -> None:
    with connect(address) as client:
        client.wait_for_workers(count, timeout=60)


def test_a_worker_is_killed_and_another_comes_late(scene: Path, plain: Path, tmp_path: Path, scheduler: str) -> None:
    with worker(scheduler), worker(scheduler) as victim, ExitStack() as stack:
        wait_for_workers(scheduler, 2)
        args = ("generate", scene, *DEMO, "-o", tmp_path, "--cluster", scheduler)
        client = subprocess.Popen(command(*args), stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
        assert client.stderr is not None
        for line in client.stderr:
            if "32 tiles" in line:  # the blocks are out
                break
        (busy,) = (p for p in psutil.Process(victim.pid).children(recursive=True) if "spawn_main" in str(p.cmdline()))
        while busy.cpu_times().user < 3:  # somewhere in its block
            assert client.poll() is None, "the run was over before a worker could be killed"
            time.sleep(0.1)
        for one in (psutil.Process(victim.pid), busy):
            one.kill()
        stack.enter_context(worker(scheduler))
        rest = client.stderr.read()
        assert client.wait() == 0, rest
    assert_same(tmp_path, plain)


def test_a_run_that_is_stopped_goes_on_without_the_cluster(tmp_path: Path) -> None:
    path, out, whole = tmp_path / "tall.tif", tmp_path / "out", tmp_path / "whole"
    with rasterio.open(path, "w", driver="GTiff", width=200, height=3000, count=12, dtype="uint16", nodata=0) as dst:
        dst.write(smooth(3000, 200, seed=2))
    args = ("generate", path, *DEMO, "-o", out)
    client = subprocess.Popen(
        command(*args, "--cluster", "local:1"), stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    deadline = time.monotonic() + 120
    while '"row"' not in journals(out):
        assert client.poll() is None, client.stderr and client.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    client.send_signal(signal.SIGTERM)
    assert client.wait() == 143
    done = run(*args)
    assert done.returncode == 0, done.stderr
    assert "resuming an earlier run from" in done.stderr
    assert run("generate", path, *DEMO, "-o", whole).returncode == 0
    assert_same(out, whole)


def journals(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.glob(".tmtool-*journal*"))


def test_a_worker_with_other_weights_is_refused(scene: Path, tmp_path: Path, scheduler: str) -> None:
    homes = []
    for name, value in (("mine", 1.0), ("other", 2.0)):
        snapshot = tmp_path / name / "hub" / "models--ibm-esa-geospatial--TerraMind-1.0-Tokenizer-S2L2A"
        (snapshot / "snapshots" / "abc").mkdir(parents=True)
        (snapshot / "refs").mkdir()
        (snapshot / "refs" / "main").write_text("abc")
        state = {"quant_proj.weight": torch.full((1,), value)}
        torch.save(state, snapshot / "snapshots" / "abc" / "TerraMind_Tokenizer_S2L2A.pt")
        homes.append({"HF_HOME": str(tmp_path / name), "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": ""})
        homes[-1]["HF_HUB_CACHE"] = str(tmp_path / name / "hub")
    args = ("tokenize", scene, "--model", "base", "-o", tmp_path / "out", "--cluster", scheduler, "--offline")
    with worker(scheduler, **homes[0]), worker(scheduler, **homes[1]):
        wait_for_workers(scheduler, 2)
        done = subprocess.run(command(*args), capture_output=True, text=True, env=ENVIRONMENT | homes[0])
    assert done.returncode == 2
    assert "would differ: other weights" in done.stderr
    assert not (tmp_path / "out").exists()


def test_many_small_scenes_leave_memory_as_it_was(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for i in range(200):
        with rasterio.open(
            folder / f"s{i:03d}.tif", "w", driver="GTiff", width=48, height=32, count=12, dtype="uint16"
        ) as dst:
            dst.write(smooth(32, 48, seed=i))
    args = ("generate", folder, "--out", "LULC", "--model", "demo", "-o", out, "--cluster", "local:2", "--json")
    client = subprocess.Popen(
        command(*args), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=ENVIRONMENT
    )
    assert client.stdout is not None
    held, made = [], []
    for line in client.stdout:  # the scheduler runs in the client's process
        held.append(psutil.Process(client.pid).memory_info().rss)
        made += json.loads(line)["products"].values()
    assert client.wait() == 0
    assert len(set(made)) == len(made) == 200
    assert len(list(out.glob("*.tif"))) == 200
    assert held[-1] < held[50] + 40e6


@pytest.mark.parametrize("task", ["generate", "tokenize", "reconstruct", "embed"])
@pytest.mark.parametrize("height", [10_980, 2048, 3000, 257, 100_000])
def test_blocks_repeat_few_tiles(task: str, height: int) -> None:
    asked = Generate(("S1GRD", "LULC")) if task == "generate" else TASKS[task]()
    job = Job(asked, tiling=Tiling(delta=8 if task == "generate" else 16))
    plan = TilePlan((height, 10_980), job.tiling)
    specs = [product.spec for product in asked.products(job.spec(("S2L2A",)), job.entry)]
    blocks = plan.row_blocks()
    assert [row for rows in blocks for row in (rows.start, rows.stop)][1:-1] == [
        cut for rows in blocks[1:] for cut in (rows.start, rows.start)
    ]
    assert (blocks[0].start, blocks[-1].stop) == (0, height)
    for spec in specs:
        repeated = sum(len(plan.tile_rows(plan.product_rows(rows, spec), spec)) for rows in blocks)
        assert plan.counts[0] <= repeated <= 1.07 * plan.counts[0]
    assert len(blocks) == 1 + int(0.07 * plan.counts[0])


@pytest.mark.parametrize(
    ("height", "workers", "blocks"),
    [
        (2048, 1, 1),
        (2048, 2, 2),
        (2048, 3, 3),
        (2048, 64, 3),  # more would repeat more than a quarter of its eleven rows of tiles
        (800, 2, 2),  # three rows of tiles and the longest block, instead of four
        (600, 2, 1),  # two of three rows and one repeated: no gain
        (200, 8, 1),
        (10_980, 1, 4),
        (10_980, 3, 4),
        (10_980, 8, 8),
        (10_980, 16, 15),
        (10_980, 14, 12),  # a thirteenth block would leave the longest as it is
    ],
)
def test_a_scene_is_cut_for_workers_that_would_be_idle(height: int, workers: int, blocks: int) -> None:
    plan = TilePlan((height, 300), Tiling())
    cut = plan.row_blocks(workers)
    assert len(cut) == blocks
    assert [row for rows in cut for row in rows] == list(range(height))
    assert all(rows.start % plan.step == 0 for rows in cut)


@pytest.mark.parametrize("address", ["local", "local:0", "local:x", "host:8786", "no/such/file.json", "http://host:1"])
def test_what_is_no_cluster(address: str, tmtool: Any, make_raster: Any) -> None:
    with pytest.raises(UsageError, match="local:N"):
        check_address(address)
    result = tmtool("generate", make_raster(smooth(40, 40)), "--out", "LULC", "--model", "demo", "--cluster", address)
    assert result.exit_code == 2
    assert "local:N" in result.stderr


def test_without_a_scheduler_installed_the_cure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tmtool.batch._cluster.find_spec", lambda name: None if name == "distributed" else name)
    with pytest.raises(UsageError, match=r"pip install 'tmtool\[cluster\]'"):
        check_address("local:2")


def test_a_scheduler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tmtool.batch._cluster._CONNECT_S", 1.0)
    with (
        pytest.raises(UsageError, match="no scheduler with a worker answers"),
        connect(f"tcp://127.0.0.1:{free_port()}"),
    ):
        pass


class Pending:
    """A future whose result is already known, or an error."""

    def __init__(self, what: Any) -> None:
        self.what = what

    def result(self, timeout: float) -> Any:
        if isinstance(self.what, BaseException):
            raise self.what
        return self.what

    def cancel(self) -> None:
        self.what = KeyError("cancelled")


class Client:
    """What a cluster asks of its client; `results` are those of the blocks sent, in turn."""

    def __init__(self, *results: Any) -> None:
        self.results, self.retired, self.status = list(results), list[str](), "running"

    def submit(self, *_: Any, **__: Any) -> Pending:
        return Pending(self.results.pop(0))

    def retire_workers(self, workers: list[str]) -> None:
        self.retired += workers

    def ncores(self) -> dict[str, int]:
        return {"tcp://one": 1}


def scene_on(client: Client, make_raster: Any, tmp_path: Path) -> ClusterBlocks:
    job = Job(Generate(("LULC",)), model="demo")
    prepared = prepare(job, Scene(((None, str(make_raster(smooth(3000, 60)))),), "scene", tmp_path))
    scene = ClusterBlocks(Cluster(client, job), prepared, job.spec(("S2L2A",)), 1, SilentReporter())
    scene.begin([range(60)], 0, 0)
    return scene


def test_a_late_worker_that_differs_is_left_out(make_raster: Any, tmp_path: Path, caplog: Any) -> None:
    good = ComputedBlock((), True, 7, 2, 0.5, 1)
    client = Client(_Unfit("tcp://late", "torch 1 instead of 2"), good, good)
    scene = scene_on(client, make_raster, tmp_path)
    assert list(scene.blocks(range(3000), range(60))) == []
    assert client.retired == ["tcp://late"]
    assert (scene.empty_tiles, scene.model_seconds, scene.watch.varies) == (4, 1.0, True)


def test_a_block_that_ends_every_worker_and_a_lost_scheduler(make_raster: Any, tmp_path: Path) -> None:
    from distributed import KilledWorker

    last: Any = SimpleNamespace(address="tcp://last")
    killed = KilledWorker("block", last, 3)  # type: ignore[no-untyped-call]
    with pytest.raises(ProductError, match="the last one was tcp://last"):
        list(scene_on(Client(killed, killed), make_raster, tmp_path).blocks(range(3000), range(60)))
    client = Client(TimeoutError(), TimeoutError())
    scene = scene_on(client, make_raster, tmp_path)
    client.status = "closed"
    with pytest.raises(ClusterError, match="lost"):
        list(scene.blocks(range(3000), range(60)))


def test_idle_workers_are_shared_out_among_scenes(make_raster: Any, tmp_path: Path) -> None:
    job, wide = Job(Generate(("LULC",)), model="demo"), make_raster(smooth(2048, 60))
    scenes = [prepare(job, Scene(((None, str(wide)),), f"s{i}", tmp_path)) for i in range(5)]
    with ExitStack() as stack:
        runner = ClusterRunner(job, "local:4", stack)
    runner._cluster = cluster = Cluster(Client(), job)
    cluster.side_by_side = 4
    for count, total in ((1, 3), (2, 4), (3, 3), (5, 5)):
        runner.announce(scenes[:count])
        assert cluster.total == total
        scene = ClusterBlocks(cluster, scenes[0], job.spec(("S2L2A",)), 1, SilentReporter())
        assert len(scene.row_blocks) * count == total


FACTS = Facts({"torch": "2"}, "CPU with AVX2", {}, [{"a/b.pt": "0123456789abcdef"}], 1, (1, ""), "host", 8, True)


def test_facts_that_differ() -> None:
    one = FACTS
    assert not list(one.differences(one))
    other = replace(one, versions={"torch": "3"}, kind="H200", weights=[{"a/b.pt": "f123456789abcdef"}])
    text = "; ".join(one.differences(other))
    for words in (
        "torch 3 instead of 2",
        "H200 instead of CPU with AVX2",
        "b.pt f123456789ab instead of b.pt 0123456789ab",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("workers", "threads", "told"),
    [
        ([FACTS, FACTS], 4, ""),
        ([FACTS, FACTS], 5, "host: workers have 2 x 5 threads for 8 cores"),
        ([FACTS, replace(FACTS, host="other", cores=4)], 8, "other: workers have 1 x 8 threads for 4 cores"),
        ([replace(FACTS, spins=False)] * 9, 8, ""),
        ([FACTS] * 9, 0, ""),
    ],
)
def test_threads_that_spin_in_each_others_way(
    workers: list[Facts], threads: int, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    _warn_of_crowds(workers, threads)
    assert caplog.text == "" if not told else told in caplog.text


@pytest.mark.parametrize(
    ("workers", "threads", "count"),
    [
        ([FACTS] * 3, 2, 3),
        ([FACTS] * 3, 8, 1),  # threads that spin would keep the others from working
        ([replace(FACTS, spins=False)] * 3, 8, 2),  # one that waits leaves its cores to the other
        ([replace(FACTS, spins=False)] * 3, 64, 1),
        ([replace(FACTS, host=f"h{i}") for i in range(5)], 64, 5),
        ([FACTS] * 9, 0, 9),  # GPUs
    ],
)
def test_workers_that_compute_side_by_side(workers: list[Facts], threads: int, count: int) -> None:
    assert _side_by_side(workers, threads) == count


@pytest.mark.parametrize(
    "args", [("reconstruct", "--timesteps", "1"), ("embed", "--pool", "scene"), ("tokenize",)], ids=lambda args: args[0]
)
def test_the_other_commands_write_the_same_files(args: tuple[str, ...], tmp_path: Path) -> None:
    path, values = tmp_path / "tall.tif", smooth(1500, 200, seed=3)
    values[:, 1000:1100, 50:120] = 0
    with rasterio.open(path, "w", driver="GTiff", width=200, height=1500, count=12, dtype="uint16", nodata=0) as dst:
        dst.write(values)
    made: list[dict[str, bytes]] = []
    for name, more in (("plain", ()), ("workers", ("--cluster", "local:2"))):
        done = run(*args, path, "--model", "demo", "-o", tmp_path / name, *more)
        assert done.returncode == 0, done.stderr
        made.append({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()})
    assert made[0] == made[1]
    assert made[0]
