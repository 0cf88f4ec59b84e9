"""Reading: what a warp, a stack of bands and a unit cost beside a plain raster, and whether memory stays flat in height.

    python -m tests.bench.inputs [--width 2048] [--heights 2048 8192]

Reads whole scenes tile by tile as the engine does, without a model, each in a process of its own: megapixels a second, as a
ratio to the plain raster of the same run, and the peak memory of each height.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

from tmtool.grid import Grid, Window
from tmtool.modality import MODALITIES
from tmtool.settings import Reading
from tmtool.source import Reader, inspect, on_grid, set_block_cache

CROP, STRIDE = 256, 192


def write(path: Path, bands: int, height: int, width: int, **profile: object) -> None:
    rng = np.random.default_rng(0)
    kind = "float32" if bands == 2 else "uint16"
    options = {
        "crs": "EPSG:32719",
        "transform": Affine(10, 0, 300_000, 0, -10, 6_300_000),
        "tiled": True,
        "compress": "deflate",
    }
    options |= {"blockxsize": 512, "blockysize": 512, "dtype": kind} | profile
    with rasterio.open(path, "w", driver="GTiff", count=bands, height=height, width=width, **options) as dst:
        for row in range(0, height, 512):
            rows = min(512, height - row)
            values = rng.uniform(0.01, 0.4, (bands, rows, width)) * (1 if bands == 2 else 10_000)
            dst.write(values.astype(kind), window=rasterio.windows.Window(0, row, width, rows))


def read(path: str, modality: str, unit: str, warp: str, height: int, width: int) -> None:
    """Read a scene as the engine does, and print seconds and peak memory in MB."""
    source = inspect(path, MODALITIES[modality], Reading(unit={modality: unit} if unit else {}))
    if warp:
        grid = Grid(rasterio.crs.CRS.from_epsg(32719), Affine(10, 0, 300_000, 0, -10, 6_300_000), (height, width))
        source = on_grid(source, grid, "auto", 0.05, "first")
    set_block_cache([source], CROP, None)
    start = time.perf_counter()
    with Reader(source) as reader:
        rows, cols = source.grid.shape
        for row in range(0, rows - CROP + 1, STRIDE):
            for col in range(0, cols - CROP + 1, STRIDE):
                reader.read(Window(row, col, CROP, CROP))
    seconds = time.perf_counter() - start
    sys.stdout.write(f"{seconds} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}\n")


def measured(*args: object) -> tuple[float, float]:
    command = [sys.executable, "-m", "tests.bench.inputs", "--read", *map(str, args)]
    seconds, memory = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(seconds), float(memory)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--heights", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--read", nargs=6)
    options = parser.parse_args()
    if options.read:
        path, modality, unit, warp, height, width = options.read
        read(path, modality, unit.strip("-"), warp.strip("-"), int(height), int(width))
        return
    print("| input | height | Mpx/s | beside plain | peak memory, MB |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for height in options.heights:
            plain: dict[str, float] = {}
            half = (height // 2 + 200, options.width // 2 + 200)
            files = {name: Path(folder, f"{name}.tif") for name in ("s2", "s1", "own20")}
            write(files["s2"], 12, height, options.width)
            write(files["s1"], 2, height, options.width)
            place = {"crs": "EPSG:32718", "transform": _next_zone()}
            write(files["own20"], 2, *half, **place)
            for name, path, modality, unit, warp in (
                ("S2L2A, plain", files["s2"], "S2L2A", "-", "-"),
                ("S1RTC, plain", files["s1"], "S1RTC", "linear", "-"),
                ("S1RTC at 20 m of the next zone, warped", files["own20"], "S1RTC", "linear", "warp"),
            ):
                seconds, memory = measured(path, modality, unit, warp, height, options.width)
                rate = height * options.width / 1e6 / seconds
                plain.setdefault(modality, rate)
                print(f"| {name} | {height} | {rate:.1f} | {rate / plain[modality]:.2f} | {memory:.0f} |", flush=True)


def _next_zone() -> Affine:
    (x,), (y,) = rasterio.warp.transform("EPSG:32719", "EPSG:32718", [300_000], [6_300_000])
    return Affine(20, 0, round(x / 20) * 20 - 1000, 0, -20, round(y / 20) * 20 + 1000)


if __name__ == "__main__":
    main()
