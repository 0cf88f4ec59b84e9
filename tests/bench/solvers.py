"""How far solvers of few steps are from a decoder's own limit, ddim with 500 steps, and the time of a tile beside ddim's.

    python -m tests.bench.solvers [--model demo] [--weights DIR|random] [--input RASTER] [--out S1GRD,NDVI,S2L2A,S1RTC]

One tile from the middle of the raster, fp32, the same tokens and the same noise for all. Distances are means of the absolute
difference in the modality's pretraining standard deviations. With random weights only the times mean something.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from tmtool.grid import TileBatch, Window
from tmtool.models import build
from tmtool.models.terramind import generator
from tmtool.models.terramind._sampling import SOLVERS
from tmtool.scene.blocks import Models
from tmtool.scene.job import Job
from tmtool.source import Reader, inspect
from tmtool.tasks import Generate

CASES = (("ddim", 10), ("ddim", 20), ("dpm", 3), ("dpm", 4), ("dpm", 5), ("dpm", 10))
LIMIT = 500


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--weights")
    parser.add_argument("--input", type=Path, default=Path("samples/demo_scene.tif"))
    parser.add_argument("--out", default="S1GRD,NDVI,S2L2A,S1RTC")
    options = parser.parse_args()
    outputs = tuple(options.out.split(","))
    source = inspect(str(options.input))
    size = min(256, min(source.grid.shape) // 16 * 16)
    row, col = ((n - size) // 2 for n in source.grid.shape)
    with Reader(source) as reader:
        pixels, _ = reader.read(Window(row, col, size, size))
    job = Job(Generate(outputs), model=options.model, weights=options.weights, precision="fp32")
    model = build(Models(job).spec((source.modality.name,)))
    rows: list[dict[tuple[str, int], tuple[float, float]]] = []
    spreads: list[float] = []

    def measured(predict, start, alphas, steps, clip):  # type: ignore[no-untyped-def]
        limit = SOLVERS["ddim"](predict, start, alphas, LIMIT, clip)
        found = {}
        for name, count in CASES:
            began = time.perf_counter()
            x = SOLVERS[name](predict, start, alphas, count, clip)
            found[name, count] = float((x - limit).abs().mean()), time.perf_counter() - began
        rows.append(found)
        spreads.append(float(limit.std()))
        return limit

    generator.SOLVERS = {"ddim": measured}  # type: ignore[assignment]
    at = np.zeros(1, np.int64)
    with torch.inference_mode():
        model(TileBatch({source.modality.name: pixels[None]}, at + row, at + col))
    print(
        f"| output | std of the limit | {' | '.join(f'{name} {n}' for name, n in CASES)} | dpm 4 / ddim 10 | its time |"
    )
    print(f"|{'---|' * (len(CASES) + 4)}")
    for output, found, spread in zip(outputs, rows, spreads, strict=True):
        cells = " | ".join(f"{found[case][0]:.4f}" for case in CASES)
        (near, quick), (far, slow) = found["dpm", 4], found["ddim", 10]
        print(f"| {output} | {spread:.2f} | {cells} | {near / far:.2f} | {quick / slow:.2f} |")


if __name__ == "__main__":
    main()
