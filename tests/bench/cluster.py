"""What Dask workers cost and gain: the command with `--cluster` beside the plain one, on a tall scene and on many small ones.

Each figure is the wall time of a whole process, less that of the same command on one small scene, which
is start-up. The model is the demonstration's; workers use as many threads an operation as the plain run.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from tests.bench import _measure as m

KINDS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "local:1": ("--cluster", "local:1"),
    "local:2": ("--cluster", "local:2"),
}
SMALL = 60


def command(inputs: Sequence[Path], out: Path, options: Sequence[str]) -> Callable[[], float]:
    """Return what runs `tmtool generate` and gives its seconds."""
    line = [sys.executable, "-m", "tmtool", "generate", *map(str, inputs), "--out", "S1GRD,LULC", "--model", "demo"]

    def run() -> float:
        start = time.perf_counter()
        subprocess.run(
            [*line, "-o", str(out), "--overwrite", "-q", *options],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return time.perf_counter() - start

    return run


def measure(options: m.Options) -> m.Rows:
    """Run plain, on one worker and on two, in turn."""
    from tests.bench import _scenes

    height, width = 3000, options.scene // 2
    tall, one = (m.in_own_process(_scenes.make_scene, options.scratch, *s) for s in ((height, width), (64, 64)))
    folder = options.scratch / "small"
    folder.mkdir(exist_ok=True)
    small = [Path(shutil.copy(one, folder / f"s{i:03d}.tif")) for i in range(SMALL)]
    jobs = {"start": small[:1], "tall": [tall], "small": small}
    found = m.in_turn(
        options.scene_repeat,
        {f"{k}/{n}": command(inputs, options.scratch / "out", KINDS[k]) for k in KINDS for n, inputs in jobs.items()},
    )
    took = {name: median(times) for name, times in found.items()}
    plain = took["plain/tall"] - took["plain/start"]
    for kind in KINDS:
        start = took[f"{kind}/start"]
        scene, many = (took[f"{kind}/{name}"] - start for name in ("tall", "small"))
        yield m.Row(
            f"{kind}: scene of {height} x {width} px, demo",
            f"{scene:.1f} s",
            f"{start:.1f} s to start",
            f"{scene / plain:.2f} times the plain run's",
        )
        yield m.Row(f"{kind}: scenes of 64 x 64 px", f"{(SMALL - 1) / many:.1f} scenes/s")
