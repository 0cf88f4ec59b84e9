"""What several draws cost: `generate --samples N` beside N single runs of the sample with the demo model, and peak memory by N.

python -m tests.bench.samples [--samples 8] [--rounds 3]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SAMPLE = Path(__file__).parent.parent.parent / "samples" / "demo_scene.tif"


def run(samples: int, folder: Path) -> tuple[float, float, float]:
    """Return the seconds of a whole process, of its scene alone, and the process's peak memory in MB."""
    command = [sys.executable, "-m", "tmtool", "generate", str(SAMPLE), "--model", "demo", "--out", "S1GRD,LULC"]
    command += ["--samples", str(samples), "-o", str(folder), "--overwrite", "--json", "--quiet"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    assert status == 0
    return seconds, json.loads(said)["seconds"], usage.ru_maxrss / 1024


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    n = options.samples
    counts = (1, 2, n, 2 * n)
    with tempfile.TemporaryDirectory() as folder:
        rounds = [{count: run(count, Path(folder)) for count in counts} for _ in range(options.rounds)]
    print(
        "| draws | whole process, of N single ones | scene alone, of N single ones | peak MB |\n| --- | --- | --- | --- |"
    )
    for count in counts:
        whole = statistics.median(r[count][0] / (count * r[1][0]) for r in rounds)
        scene = statistics.median(r[count][1] / (count * r[1][1]) for r in rounds)
        print(
            f"| {count} | {whole:.2f} | {scene:.2f} | {statistics.median(r[count][2] for r in rounds):.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
