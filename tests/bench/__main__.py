"""Runs the benchmarks and prints one table, in Markdown."""

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tests.bench import _measure as m
from tests.bench import accuracy, cluster, command, floor, generate, load, memory, others, overhead, throughput


@dataclass(frozen=True)
class Part:
    """One of the things that are measured."""

    title: str
    measure: Callable[[m.Options], m.Rows]


PARTS = {
    "a": Part("one tile and a scene, beside TerraTorch", generate.measure),
    "b": Part("end to end beside the model alone", throughput.measure),
    "c": Part("peak memory by the scene's size, beside TerraTorch", memory.measure),
    "d": Part("process start to first tile", load.measure),
    "e": Part("embed and tokenize, beside TerraTorch", others.measure),
    "f": Part("throughput by batch size", throughput.measure_batches),
    "g": Part("half precision against float32", accuracy.measure),
    "floor": Part("where a tile's time goes, beside its floor", floor.measure),
    "load": Part("memory of loading", load.measure_memory),
    "overhead": Part("the pipeline around a model without cost", overhead.measure),
    "cluster": Part("Dask workers beside a plain run", cluster.measure),
    "command": Part("tmtool bench beside these benchmarks", command.measure),
}


def parse(arguments: list[str]) -> tuple[list[str], argparse.Namespace]:
    """Return the parts asked for, and the options."""
    listed = "".join(f"\n  {name:9} {part.title}" for name, part in PARTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=f"{__doc__}\n\nparts:{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default=",".join(PARTS), help="parts to run, with commas (default: all)")
    parser.add_argument("--quick", action="store_true", help="small scenes, fewer turns: minutes rather than hours")
    parser.add_argument("--model", default="base", choices=("base", "large", "small", "tiny", "demo"))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    parser.add_argument("--threads", type=int, help="torch's threads on the CPU (default: torch's own)")
    parser.add_argument("--batch-size", type=int, help="tiles a batch (default: what tmtool chooses)")
    parser.add_argument("--scene", type=int, metavar="PX", help="side of the scene (default 2048, with --quick 600)")
    parser.add_argument("--repeat", type=int, help="turns that a median is of (default 3, of scenes 1; with --quick 2)")
    parser.add_argument("--chips", type=Path, help="folder of real Sentinel-2 chips (default: of ../shared, if there)")
    parser.add_argument("--scratch", type=Path, help="folder for scenes and weights, kept (default: temporary)")
    options = parser.parse_args(arguments)
    parts = options.only.split(",")
    if unknown := [name for name in parts if name not in PARTS]:
        parser.error(f"--only: no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    return parts, options


@contextmanager
def scratch(folder: Path | None) -> Iterator[Path]:
    """Give the folder, or a temporary one."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="tmtool-bench-") as name:
        yield Path(name)


def rows(name: str, part: Part, options: m.Options) -> Iterator[tuple[str, ...]]:
    """Yield a part's rows as they are measured; one that fails ends with a row that says why, and the others go on."""
    start = time.monotonic()
    print(f"{name}: {part.title} ...", file=sys.stderr, flush=True)
    try:
        for row in part.measure(options):
            print(f"  {row.what}: {row.own} | {row.beside} | {row.says}", file=sys.stderr, flush=True)
            yield name, row.what, row.own, row.beside, row.says
    except Exception as error:  # noqa: BLE001  (the others shall run)
        print(f"{name} failed: {error!r}", file=sys.stderr)
        yield name, "failed", "", (str(error) or repr(error)).splitlines()[0][:120], ""
    print(f"  {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


def _told(arguments: list[str]) -> str:
    """Return the arguments as the table's head has them, without where files lie."""
    paths = [i for i, word in enumerate(arguments) if word in ("--chips", "--scratch")]
    return shlex.join(word for i, word in enumerate(arguments) if i not in paths and i - 1 not in paths)


def main() -> int:
    """Measure, and print."""
    parts, given = parse(sys.argv[1:])
    if given.threads:
        os.environ["OMP_NUM_THREADS"] = str(given.threads)  # every measurement is in a process of its own
    if given.chips:
        os.environ["BENCH_CHIPS"] = str(given.chips.absolute())
    from tests.bench import _scenes  # now that it is known where chips are

    quick = given.quick
    repeat, turns = (given.repeat or default for default in ((2, 2) if quick else (3, 1)))
    with scratch(given.scratch) as folder:
        scene = given.scene or (600 if quick else 2048)
        options = m.Options(folder, given.model, given.device, given.batch_size, scene, repeat, turns, quick)
        head, made_of = m.in_own_process(m.machine, given.device), _scenes.origin()
        found = [row for name in parts for row in rows(name, PARTS[name], options)]
    command = f"python -m tests.bench {_told(sys.argv[1:])}".strip()
    threads = os.environ.get("OMP_NUM_THREADS")
    print(f"`{f'OMP_NUM_THREADS={threads} ' if threads else ''}{command}`, {datetime.now():%Y-%m-%d}. ")
    print(
        f"Model {given.model}, {m.TIMESTEPS} timesteps, medians of {repeat} turns ({turns} of scenes), scenes made of {made_of}. {head}.\n"
    )
    print(m.table(("part", "measured", "tmtool", "beside it", "that is"), found))
    return int(any(row[1] == "failed" for row in found))


if __name__ == "__main__":
    sys.exit(main())
