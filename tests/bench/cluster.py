"""What Dask workers cost and gain: the command with `--cluster` beside the plain one, on a tall scene and on many small ones.

Each figure is the wall time of a whole process less that of the same command on one small scene, which is start-up.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tests.bench import _measure as m

KINDS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "local:1": ("--cluster", "local:1"),
    "local:2": ("--cluster", "local:2"),
}


def wall_s(inputs: Sequence[Path], out: Path, options: Sequence[str]) -> float:
    """Return the seconds of `tmtool generate` with the demonstration model, one thread a process."""
    command = [sys.executable, "-m", "tmtool", "generate", *map(str, inputs), "--out", "S1GRD,LULC", "--model", "demo"]
    start = time.perf_counter()
    subprocess.run(
        [*command, "-o", str(out), "--overwrite", "-q", *options],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return time.perf_counter() - start


def main() -> None:
    """Measure, and print."""
    parser = m.arguments(__doc__, repeat=1)
    parser.add_argument("--rows", type=int, default=3000, help="rows of the tall scene, 1024 px wide (default 3000)")
    parser.add_argument("--scenes", type=int, default=100, help="small scenes of 64 x 64 px (default 100)")
    options = parser.parse_args()
    machine = m.machine()
    with m.scratch(options.scratch) as folder:
        one = m.make_scene(folder, 64, 64)
        small = [Path(shutil.copy(one, folder / f"s{i:04d}.tif")) for i in range(options.scenes)]
        jobs = {"start": small[:1], "tall": [m.make_scene(folder, options.rows, 1024)], "small": small}
        found = m.in_turn(
            options.repeat,
            {
                f"{kind}/{name}": lambda inputs=inputs, kind=kind: wall_s(inputs, folder / "out", KINDS[kind])
                for kind in KINDS
                for name, inputs in jobs.items()
            },
        )
    walls = {name: median(times) for name, times in found.items()}
    rows = []
    for kind in KINDS:
        start = walls[f"{kind}/start"]
        tall, many = (walls[f"{kind}/{name}"] - start for name in ("tall", "small"))
        ratio = tall / (walls["plain/tall"] - walls["plain/start"])
        rate = (options.scenes - 1) / many
        rows.append((kind, f"{start:.1f}", f"{tall:.1f}", f"{ratio:.2f}", f"{rate:.1f}"))
    title = f"{options.rows} x 1024 px to S1GRD and LULC by the demo model, and {options.scenes} scenes of 64 x 64 px"
    header = ("", "start s", "tall scene s", "of the plain run's", "small scenes/s")
    m.print_table(title, header, rows, ("one thread a process", machine))


if __name__ == "__main__":
    main()
