"""What the benchmarks share: options, rows of the table, turns, costs, a model without cost. `tmtool bench` has the rest."""

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

from tmtool.bench._costs import Cost, cost_of, peak_rss, synchronise
from tmtool.bench._process import Side, in_own_process

if TYPE_CHECKING:
    from tmtool.grid import FloatArray, TileBatch
    from tmtool.models import ModelSpec
    from tmtool.scene.run import Runner

__all__ = ["Cost", "cost_of", "in_own_process", "peak_rss", "synchronise"]

T = TypeVar("T")

OUTPUTS = ("S1GRD", "LULC")
TIMESTEPS = 10
CROP, STRIDE, DELTA = 256, 192, 8
"""Tiles of both tools, in px; tmtool's defaults, and what TerraTorch's notebook takes."""

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs the hub
warnings.filterwarnings("ignore")  # the libraries' own, in the middle of a table


@dataclass(frozen=True)
class Options:
    """What was asked for. `scene` is the side of the scene in px, `scratch` a folder for scenes, weights and products.

    Medians are of `repeat` turns, those of scenes of `scene_repeat`.
    """

    scratch: Path
    model: str = "base"
    device: str = "auto"
    batch_size: int | None = None
    scene: int = 2048
    repeat: int = 3
    scene_repeat: int = 1
    quick: bool = False

    @property
    def weights(self) -> str | None:
        """What `Job` is told: random weights, or those that the demo model has."""
        return None if self.model == "demo" else "random"


@dataclass(frozen=True)
class Row:
    """A line of the table: what was measured, tmtool's figure, what it is held against, and what that comes to."""

    what: str
    own: str
    beside: str = ""
    says: str = ""


Rows = Iterator[Row]


def seconds(value: float) -> str:
    """Return seconds in words, to three digits."""
    if value >= 1000:
        return f"{value:.0f} s"
    return f"{value:.3g} s" if value >= 0.1 else f"{value * 1e3:.3g} ms"


def share(value: float) -> str:
    """Return a share in per cent, with more digits where it is close to all."""
    return f"{value:.2%}" if 0.99 < value < 1 else f"{value:.1%}"


def available_bytes() -> float:
    """Return the memory that a new process can have, in bytes; infinite where the system does not say."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return float("inf")
    line = next(line for line in info.read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) << 10


def in_turn(repeat: int, subjects: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Call every subject `repeat` times, taking turns, so that what else the machine does meets all of them alike."""
    found: dict[str, list[T]] = {name: [] for name in subjects}
    for _ in range(repeat):
        for name, subject in subjects.items():
            found[name].append(subject())
    return found


def compared(repeat: int, sides: Mapping[str, tuple[Any, ...]], warm: int = 1) -> dict[str, list[Any]]:
    """Make a `Side` of each, let them take turns, and return what each gave; the first `warm` turns do not count."""
    with ExitStack() as stack:
        made: dict[str, Side] = {}
        for name, side in sides.items():
            made[name] = Side(*side)
            stack.callback(made[name].close)
        return {name: found[warm:] for name, found in in_turn(warm + repeat, made).items()}


@dataclass(frozen=True)
class SceneCost(Cost):
    """What one scene took; of it the model's calls, and what came after the last tile (the COGs)."""

    forward_s: float
    cog_s: float
    tiles: int


def median_of(costs: Sequence[Cost], name: str = "wall_s") -> float:
    """Return the median of an attribute."""
    return float(median(getattr(c, name) for c in costs))


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
    from tmtool.scene.job import Scene, prepare

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
    from tmtool.modality import INPUTS
    from tmtool.models import ModelEntry
    from tmtool.scene.job import Job
    from tmtool.scene.run import Runner
    from tmtool.tasks import Generate

    _seconds = seconds
    models.register("pass-through", ModelEntry("benchmark", __name__, INPUTS, OUTPUTS))
    try:
        return run_scene(
            Runner(Job(Generate(OUTPUTS), model="pass-through", device="cpu", overwrite=True)), scene, folder
        )
    finally:
        del models.MODELS["pass-through"]


def machine(device: str) -> str:
    """Say what the numbers are measured on, how busy it is, and with which versions. Imports torch."""
    from tmtool.models.device import resolve
    from tmtool.models.machine import machine

    compute = resolve(device)
    return f"{machine(compute)} at the start; precision auto is {compute.precision}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, its columns aligned."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [[c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in (header, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], ["-" * w for w in widths], *lines[1:]))
