"""TerraMind itself: tmtool's adapter beside TerraTorch as its notebook runs it, S2L2A to S1GRD and LULC, 10 timesteps.

Weights are random in both, so the values mean nothing. In tmtool's disfavour: a token costs it time for each code that
top-p leaves to draw from, and random weights leave thousands.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch

from tests.bench import _measure as m
from tmtool import models
from tmtool.device import batch_size, resolve
from tmtool.grid import TileBatch
from tmtool.job import Job
from tmtool.models import ModelSpec, Sampling
from tmtool.run import Runner

PRECISIONS = ("auto", "fp32")
TIMESTEPS = 10
SAMPLING = Sampling(timesteps=TIMESTEPS)
Subject = Callable[[Path], m.Cost]


def read(scene: Path) -> Any:
    """Read the whole scene as TerraTorch's notebook does, `(1, C, H, W)` float32."""
    with rasterio.open(scene) as src:
        return torch.tensor(src.read(), dtype=torch.float).unsqueeze(0)


def terratorch_forward(size: str, device: str) -> Callable[[Any], Any]:
    """Build TerraTorch's model and return the notebook's `model_forward`: a tensor in, all outputs in one tensor."""
    import terratorch.models.backbones.terramind  # noqa: F401  (registers the models)
    from terratorch.registry import FULL_MODEL_REGISTRY

    model: Any = FULL_MODEL_REGISTRY.build(
        f"terramind_v1_{size}_generate",
        modalities=["S2L2A"],
        output_modalities=list(m.OUTPUTS),
        pretrained=False,
        standardize=True,
        timesteps=TIMESTEPS,
    )
    model = model.to(device).eval()

    def forward(x: Any) -> Any:
        with torch.no_grad():
            generated = model(x)
        return torch.concat([generated[name] for name in m.OUTPUTS], dim=1)

    return forward


def terratorch_tile(options: argparse.Namespace) -> Subject:
    """Return TerraTorch's forward of one tile, from pixels in memory to values in memory."""
    device = resolve(options.device).device
    forward = terratorch_forward(options.model, device)

    def run(scene: Path) -> m.Cost:
        pixels = read(scene)
        return m.cost_of(lambda: forward(pixels.to(device)).cpu())

    return run


def terratorch_scene(options: argparse.Namespace) -> Subject:
    """Return TerraTorch's recipe for a scene, from the file to its values in memory, with tmtool's batch size."""
    from terratorch.tasks.tiled_inference import tiled_inference

    compute = resolve(options.device)
    device, batch = compute.device, batch_size(compute)
    forward = terratorch_forward(options.model, device)
    tiling: Any = {"crop": m.CROP, "stride": m.STRIDE, "delta": m.DELTA, "batch_size": batch}

    def recipe(scene: Path) -> None:
        joined = tiled_inference(forward, read(scene).to(device), **tiling)[0]
        joined[2:].argmax(dim=0)  # the ten channels of LULC; the notebook writes nothing

    return lambda scene: m.cost_of(lambda: recipe(scene))


def tmtool_tile(options: argparse.Namespace, precision: str) -> Subject:
    """Return tmtool's adapter on one tile, from pixels in memory to values in memory."""
    compute = resolve(options.device, precision)
    model = models.build(
        ModelSpec(options.model, "generate", ("S2L2A",), m.OUTPUTS, sampling=SAMPLING, compute=compute)
    )

    def run(scene: Path) -> m.Cost:
        batch = TileBatch({"S2L2A": read(scene).numpy()}, np.array([-m.DELTA]), np.array([-m.DELTA]))
        return m.cost_of(lambda: model(batch))

    return run


def tmtool_scene(options: argparse.Namespace, precision: str, products: Path) -> Subject:
    """Return tmtool's pipeline on a scene, from the file to its COGs."""
    settings: Any = {"device": options.device, "precision": precision, "overwrite": True}
    runner = Runner(Job("generate", m.OUTPUTS, options.model, weights="random", sampling=SAMPLING, **settings))
    return lambda scene: m.run_scene(runner, scene, products)


def subjects(options: argparse.Namespace, products: Path) -> dict[str, Subject]:
    """Return everything that takes turns, its models built."""
    found: dict[str, Subject] = {}
    for asked in PRECISIONS:
        used = resolve(options.device, asked).precision
        name = "tmtool" if asked == used else f"tmtool {asked}:"
        found[f"{name} {used}"] = (
            tmtool_scene(options, asked, products) if options.scene else tmtool_tile(options, asked)
        )
    found["terratorch fp32"] = terratorch_scene(options) if options.scene else terratorch_tile(options)
    return found


def main() -> None:
    """Measure, and print."""
    parser = m.arguments(__doc__, repeat=3)
    parser.add_argument("--model", default="tiny", choices=("tiny", "small", "base", "large"), help="default tiny")
    parser.add_argument("--scene", type=int, metavar="PX", help="a scene of PX x PX px rather than one tile of 256")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    parser.add_argument(
        "--threads", type=int, help="torch's threads on the CPU: 1 makes CPU s comparable on a busy machine"
    )
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    side, machine = options.scene or m.CROP, f"{m.machine()}; {torch.get_num_threads()} torch threads"
    with m.scratch(options.scratch) as folder:
        found = subjects(options, folder / "out")
        for size, repeat in ((m.CROP, 1), (side, options.repeat)):  # first calls are slower: they do not count
            scene = m.make_scene(folder, size, size)
            costs = m.in_turn(repeat, {name: partial(subject, scene) for name, subject in found.items()})
    both = {name: [m.median_of(c, k) for k in ("wall_s", "cpu_s")] for name, c in costs.items()}
    theirs = both["terratorch fp32"]
    rows = [
        (n, *(f"{s:.2f}" for s in own), *(f"{t / s:.2f}" for t, s in zip(theirs, own, strict=True)))
        for n, own in both.items()
    ]
    title = f"TerraMind {options.model}, {side} x {side} px, {TIMESTEPS} timesteps, median of {options.repeat}"
    what = "from file to COGs, of terratorch to values in memory" if options.scene else "one tile, memory to memory"
    notes = (
        f"{what}; building the models is left out; weights are random in both; CPU s are those of all threads",
        machine,
    )
    m.print_table(title, ("tool", "wall s", "CPU s", "terratorch / it, wall", "CPU"), rows, notes)


if __name__ == "__main__":
    main()
