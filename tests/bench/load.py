"""Loading TerraMind from files in the hub's names: memory, and from the start of the process to its first tile.

The files (3.2 GB for base with S1GRD and LULC) hold random weights, are written once into the scratch folder, and are in
the system's cache when they are read.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.bench import _measure as m
from tests.specs import spec_of


def write_files(folder: Path, size: str) -> None:
    """Write random weights of a size and of the tokenizers of S1GRD and LULC, flat, in the hub's names."""
    import torch

    from tests.bench import _models
    from tmtool.modality import MODALITIES
    from tmtool.models.weights import core_file, tokenizer_file

    folder.mkdir(parents=True, exist_ok=True)
    if (folder / core_file(size).filename).exists():
        return
    builder = getattr(_models.terratorch_register(), f"terramind_v1_{size}_generate")
    keys = [MODALITIES[name].token_key for name in m.OUTPUTS]
    model = builder(modalities=["S2L2A"], output_modalities=keys, pretrained=False)
    for name in m.OUTPUTS:
        torch.save(model.tokenizer[MODALITIES[name].token_key].state_dict(), folder / tokenizer_file(name).filename)
    torch.save(model.sampler.model.state_dict(), folder / core_file(size).filename)


def load(folder: Path | None, size: str, precision: str) -> tuple[int, int]:
    """Load in this process; return peak bytes above the imports, and the bytes of the weights in use."""
    from importlib import import_module

    from tmtool import models
    from tmtool.models.device import Compute
    from tmtool.models.measures import weights_of
    from tmtool.models.weights import locate

    import_module(models.find(size).module)
    base = m.peak_rss()
    spec = spec_of(size, "generate", ("S2L2A",), m.OUTPUTS)
    files = locate(models.find(size).files(spec), folder and str(folder), offline=True)
    spec = spec_of(size, "generate", ("S2L2A",), m.OUTPUTS, compute=Compute("cpu", precision), files=files)
    model = models.build(spec)
    return m.peak_rss() - base, weights_of(model)[1]


def weights(options: m.Options) -> Path | None:
    """Return a folder of weights in the hub's names, written if need be; None for the demo model, which has its own."""
    if options.model == "demo":
        return None
    folder = options.scratch / f"weights-{options.model}"
    m.in_own_process(write_files, folder, options.model)
    return folder


def first_tile(options: m.Options, scene: Path, folder: Path | None) -> dict[str, float]:
    """Start the command on a scene, and return the seconds of each part of the way to its first tile, and `all` of it."""
    command = [
        "generate",
        str(scene),
        "--out",
        ",".join(m.OUTPUTS),
        "--model",
        options.model,
        "--device",
        options.device,
    ]
    command += ["--weights", str(folder)] if folder else []
    command += ["--output-dir", str(options.scratch / "out"), "--overwrite", "--no-resume", "--offline", "-q"]
    command += ["--batch-size", str(options.batch_size or 1)]
    environment = os.environ | {"XDG_CACHE_HOME": str(options.scratch / "cache")}
    start = time.monotonic()  # of the machine, not of a process
    child = [sys.executable, "-m", "tests.bench._first_tile", repr(start), *command]
    done = subprocess.run(child, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(child)} ended with status {done.returncode}: {done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(options: m.Options) -> m.Rows:
    """Give the best start of several; the first does not count: it digests the weights and fills the system's cache."""
    from tests.bench import _scenes

    scene = m.in_own_process(_scenes.make_scene, options.scratch, m.CROP, m.CROP)
    folder = weights(options)
    first_tile(options, scene, folder)
    best = min((first_tile(options, scene, folder) for _ in range(options.repeat)), key=lambda found: found["all"])
    whole = best.pop("all")
    what = f"best of {options.repeat}, weights {'from files in the hub’s layout' if folder else 'of the package'}, warm"
    yield m.Row(f"process start to first tile, {what}", m.seconds(whole))
    for name, took in best.items():
        yield m.Row(f"of it {name}", m.seconds(took), f"{m.seconds(whole)} in all", m.share(took / whole))


def measure_memory(options: m.Options) -> m.Rows:
    """Give the peak of loading beside what the weights take."""
    folder = weights(options)
    for precision in ("fp32", "bf16"):
        peak, used = m.in_own_process(load, folder, options.model, precision)
        yield m.Row(
            f"loading for generate in {precision}, peak above the imports (mapped files count)",
            f"{peak / 1e9:.2f} GB",
            f"{used / 1e9:.2f} GB of weights in use",
            f"{peak / used:.2f} times",
        )
