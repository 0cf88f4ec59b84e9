"""How near predictors come to TerraTorch's own tasks, at the width that a config says.

    python -m tests.bench.predict CONFIG.yaml... [--precision fp32]

For each config: TerraTorch's task with seeded random weights, its checkpoint, and tmtool's predictor of that, over 600 x 500
px of the sample scene's texture on the same tiles. Prints a line of a table each. Configs whose statistics are not known
take those of the pretraining; TiM draws the likeliest tokens on both sides.
"""

import argparse
import resource
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import yaml

from tests import finetuned
from tmtool.errors import UsageError
from tmtool.models.device import Compute
from tmtool.models.finetuned._network import factories
from tmtool.models.finetuned._predictor import build_predictor
from tmtool.models.finetuned.checkpoint import read_task_checkpoint
from tmtool.models.finetuned.config import TaskConfig, read_config

SHAPE = (600, 500)
TILES = {"crop": 256, "stride": 208, "delta": 8, "batch_size": 1}


def _read(path: Path, folder: Path) -> tuple[TaskConfig, dict]:
    document = yaml.safe_load(path.read_text())
    settings = document["model"]["init_args"]
    if "tim" in settings["model_args"]["backbone"]:
        settings["model_args"]["backbone_tim_top_k"] = 1
    copy = folder / path.name
    copy.write_text(yaml.safe_dump(document))
    try:
        return read_config(copy), settings
    except UsageError:
        return read_config(copy, "pretraining", "pretraining"), settings


def compare(path: Path, precision: str, folder: Path) -> str:
    """Return a line of the table for one config."""
    config, settings = _read(path, folder)
    task = finetuned.terratorch_task(config, settings)
    scene = finetuned.scene_of(config, *SHAPE, config.dates or 2)
    start = time.perf_counter()
    theirs = finetuned.terratorch_logits(task, config, scene, TILES)
    own = time.perf_counter() - start
    checkpoint = read_task_checkpoint(finetuned.save_checkpoint(task, folder / "best.ckpt"))
    del task
    start = time.perf_counter()
    predictor = build_predictor(config, checkpoint, Compute(precision=precision), config.dates or 2)
    built = time.perf_counter() - start
    start = time.perf_counter()
    ours = finetuned.predictor_logits(predictor, scene, TILES)
    seconds = time.perf_counter() - start
    spread = float(np.ptp(theirs))
    other = theirs.argmax(0) != ours.argmax(0)
    ordered = np.sort(theirs, axis=0)
    margin = float((ordered[-1] - ordered[-2])[other].max() / spread) if other.any() else 0.0
    return (
        f"| {path.stem} | {config.dates} | {spread:.3g} | {np.abs(ours - theirs).max() / spread:.1e} | {int(other.sum())} | "
        f"{margin:.1e} | {built:.1f} | {own:.0f} | {seconds:.0f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="+", type=Path)
    parser.add_argument("--precision", default="fp32")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    factories()
    print(f"terratorch imported in {time.perf_counter() - start:.1f} s\n")
    print(
        "| config | dates | spread of logits | largest difference / spread | classes that differ | their margin / spread |",
        end="",
    )
    print(" built, s | TerraTorch, s | tmtool, s |\n|---|---|---|---|---|---|---|---|---|")
    for path in options.configs:
        with tempfile.TemporaryDirectory() as folder:
            print(compare(path, options.precision, Path(folder)), flush=True)
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")


if __name__ == "__main__":
    main()
