"""How far solvers of few steps are from a decoder's own limit, ddim with 500 steps, and the time of a tile beside ddim's.

    python -m tests.bench.solvers [--model demo] [--weights DIR|random] [--input RASTER] [--out S1GRD,NDVI,S2L2A,S1RTC]

One tile from the middle of the raster, fp32, the same tokens and the same noise for all. Distances are means of the absolute
difference in the modality's pretraining standard deviations. With random weights only the times mean something.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tmtool import models
from tmtool.grid import TileBatch, Window
from tmtool.models.quality import distance, drawn, limit_of, reference_of, sampled
from tmtool.models.terramind import generator
from tmtool.scene.blocks import Models
from tmtool.scene.job import Job
from tmtool.source import Reader, inspect
from tmtool.tasks import Generate

CASES = (("ddim", 10), ("ddim", 20), ("dpm", 3), ("dpm", 4), ("dpm", 5), ("dpm", 10))


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
    at = np.zeros(1, np.int64)
    batch = TileBatch({source.modality.name: pixels[None]}, at + row, at + col)
    job = Job(Generate(outputs), model=options.model, weights=options.weights, precision="fp32")
    spec = limit_of(Models(job).spec((source.modality.name,)))
    model: Any = models.build(spec)
    limit = reference_of(model, batch)
    took: list[float] = []
    generator.SOLVERS = {name: _timed(solver, took) for name, solver in generator.SOLVERS.items()}  # type: ignore[assignment]
    rows: dict[str, dict[tuple[str, int], tuple[float, float]]] = {output: {} for output in outputs}
    for name, count in CASES:
        took.clear()
        model.spec = sampled(spec, solver=name, timesteps=count)
        _, made = drawn(model, batch, limit.tokens)
        for output, seconds in zip(outputs, took, strict=True):
            rows[output][name, count] = distance(spec, output, made[output], limit.outputs[output]), seconds
    print(
        f"| output | std of the limit | {' | '.join(f'{name} {n}' for name, n in CASES)} | dpm 4 / ddim 10 | its time |"
    )
    print(f"|{'---|' * (len(CASES) + 4)}")
    for output, found in rows.items():
        cells = " | ".join(f"{found[case][0]:.4f}" for case in CASES)
        (near, quick), (far, slow) = found["dpm", 4], found["ddim", 10]
        mean, std = (np.asarray(v)[:, None, None] for v in models.find(spec.name).moments(spec.modality(output)))
        spread = float(((limit.outputs[output] - mean) / std).std())
        print(f"| {output} | {spread:.2f} | {cells} | {near / far:.2f} | {quick / slow:.2f} |")


def _timed(solver: Callable[..., Any], took: list[float]) -> Callable[..., Any]:
    """Return a solver that notes its seconds."""

    def timed(*args: Any) -> Any:
        start = time.perf_counter()
        found = solver(*args)
        took.append(time.perf_counter() - start)
        return found

    return timed


if __name__ == "__main__":
    main()
