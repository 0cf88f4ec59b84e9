"""What the benchmarks share: scenes, the pipeline around a model without cost, peak memory, tables."""

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from tmtool.grid import FloatArray, TileBatch
    from tmtool.models import ModelSpec
    from tmtool.run import Runner

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
OUTPUTS = ("S1GRD", "LULC")
CROP, STRIDE, DELTA = 256, 192, 8
"""Tiles of both tools, in px; tmtool's defaults, and what TerraTorch's notebook takes."""

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs the hub
warnings.filterwarnings("ignore")  # the libraries' own, in the middle of a table


def arguments(doc: str | None, *, repeat: int) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=repeat, help=f"measurements a median is of (default {repeat})")
    parser.add_argument(
        "--scratch", type=Path, help="folder for scenes, which are kept and reused (default: temporary)"
    )
    return parser


@contextmanager
def scratch(folder: Path | None) -> Iterator[Path]:
    """Give a folder for scenes and products: `folder` itself, or a temporary one. Ends the benchmark without examples."""
    missing = [
        p for p in (SHARED / "tools" / "make_scene.py", SHARED / "data" / "terramind_examples") if not p.exists()
    ]
    if missing:
        print(f"skipped: the example data this benchmark needs is absent (no {missing[0]})")
        raise SystemExit(0)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="tmtool-bench-") as name:
        yield Path(name)


def make_scene(folder: Path, height: int, width: int) -> Path:
    """Make a Sentinel-2 scene of 12 bands of int16 from a real chip (deflate, blocks of 512 px), or find it there."""
    path = folder / f"scene_{height}x{width}.tif"
    if not path.exists():
        part = folder / f"part-{os.getpid()}.tif"
        size = ["--size", str(height), "--width", str(width)]
        subprocess.run([sys.executable, SHARED / "tools" / "make_scene.py", part, *size], check=True)
        part.rename(path)
    return path


def peak_rss() -> int:
    """Return the most memory that this process has held at once, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent held when it started this process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def available_bytes() -> float:
    """Return the memory that a new process can have, in bytes; infinite where the system does not say."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return float("inf")
    line = next(line for line in info.read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) << 10


def in_own_process(function: Callable[..., T], *args: Any) -> T:
    """Call a module's function in a fresh process, which has imported nothing but that module."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, args))  # a pool's would outlive a killed benchmark
    process.start()
    sender.close()
    try:
        found: T = receiver.recv()
    except EOFError:
        process.join()
        raise SystemExit(f"{function.__name__} ended with status {process.exitcode} and no result") from None
    process.join()
    return found


def _send(sender: "Connection", function: Callable[..., Any], args: Sequence[Any]) -> None:
    sender.send(function(*args))


class PassThrough:
    """Gives views of the input's first bands under every output's name, after sleeping for `seconds` a batch.

    tests.simple_models.Identity copies, and keeps every batch that it saw: 10 GB of them over a Sentinel-2 tile.
    """

    def __init__(self, channels: Mapping[str, int], seconds: float) -> None:
        self.channels, self.seconds = channels, seconds

    def __call__(self, batch: "TileBatch") -> dict[str, "FloatArray"]:
        """Sleep, and return each output `(B, channels, S, S)`."""
        if self.seconds:
            time.sleep(self.seconds)
        pixels = next(iter(batch.pixels.values()))
        return {name: pixels[:, :count] for name, count in self.channels.items()}


_seconds = 0.0
"""What the next `PassThrough` sleeps; a `ModelSpec` has no place for it."""


def build(spec: "ModelSpec") -> PassThrough:
    """Build the model that `run_pass_through` registers."""
    from tmtool.modality import MODALITIES

    return PassThrough({m: MODALITIES[m].channels for m in spec.outputs}, _seconds)


@dataclass(frozen=True)
class Cost:
    """What something took: seconds on the clock, and seconds of this machine's cores by all threads together."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class SceneCost(Cost):
    """What one scene took; of it the model's calls, and what came after the last tile (the COGs)."""

    forward_s: float
    cog_s: float
    tiles: int


def cost_of(call: Callable[[], Any]) -> Cost:
    """Return what a call takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


class _Clock:
    """A reporter that notes when the last tile is through."""

    def __init__(self) -> None:
        self.tiles_done = 0.0

    def begin(self, name: str, tiles: int) -> None:
        """Do nothing."""

    def advance(self, tiles: int) -> None:
        """Do nothing."""

    def phase(self, text: str) -> None:
        """Note the time."""
        self.tiles_done = time.perf_counter()

    def end(self) -> None:
        """Do nothing."""


def run_scene(runner: "Runner", scene: Path, folder: Path) -> SceneCost:
    """Run one scene into `folder`, from the look at its file to its COGs. `wall_s` leaves out building the model."""
    from tmtool.job import Scene, prepare

    runner.reporter = clock = _Clock()
    start, cpu = time.perf_counter(), time.process_time()
    prepared = prepare(runner.job, Scene(((None, str(scene)),), scene.stem, folder))
    looked = time.perf_counter() - start
    result = runner.run(prepared)
    cpu, cog = time.process_time() - cpu, time.perf_counter() - clock.tiles_done
    return SceneCost(looked + result.seconds, cpu, result.model_seconds, cog, result.tiles)


def run_pass_through(scene: Path, folder: Path, seconds: float = 0.0) -> SceneCost:
    """Run tmtool's whole pipeline on the CPU around a `PassThrough`."""
    global _seconds
    from tmtool import models
    from tmtool.job import Job
    from tmtool.models import ModelEntry
    from tmtool.run import Runner

    _seconds = seconds
    models.MODELS["pass-through"] = ModelEntry("benchmark", __name__, lambda spec: ())
    try:
        return run_scene(
            Runner(Job("generate", OUTPUTS, model="pass-through", device="cpu", overwrite=True)), scene, folder
        )
    finally:
        del models.MODELS["pass-through"]


def in_turn(repeat: int, subjects: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Call every subject `repeat` times, taking turns, so that what else the machine does meets all of them alike."""
    found: dict[str, list[T]] = {name: [] for name in subjects}
    for _ in range(repeat):
        for name, subject in subjects.items():
            found[name].append(subject())
    return found


def median_of(costs: Sequence[Cost], name: str) -> float:
    """Return the median of an attribute."""
    return float(median(getattr(c, name) for c in costs))


def machine() -> str:
    """Say in a line what the numbers were measured on and how busy it was."""
    names = ("tmtool", "terratorch", "torch", "rasterio")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{platform.machine()}, {cores} cores, Python {platform.python_version()}, "
        f"{', '.join(f'{n} {version(n)}' for n in names)}; load {os.getloadavg()[0]:.1f} at the start"
    )


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]], notes: Sequence[str] = ()) -> None:
    """Print a Markdown table, its columns aligned, with a line above and lines below."""
    cells = [[str(c) for c in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    aligned = [
        [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        for row in cells
    ]
    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    print(f"{title}\n")
    for row in (aligned[0], rule, *aligned[1:]):
        print(f"| {' | '.join(row)} |")
    print("".join(f"\n- {note}" for note in notes))
