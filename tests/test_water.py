"""The water task in samples/: TerraTorch's config and checkpoint, predicted with as the README shows."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import yaml

from tests.conftest import ROOT

SAMPLES = ROOT / "samples"


def test_the_sample_is_mapped_as_the_readme_says(tmtool: Any, tmp_path: Path) -> None:
    """The scene's truth comes from its seed, which the training has not seen; samples/WATER.md has the scores of other scenes."""
    sys.path.insert(0, str(ROOT))
    from samples.make_samples import HEIGHT, SEED, WIDTH, demo_world
    from samples.synthesis import synthesise
    from samples.train_water import NAMES, ious, labels

    task = ("--config", SAMPLES / "water.yaml", "--checkpoint", SAMPLES / "water.ckpt")
    result = tmtool("predict", SAMPLES / "demo_scene.tif", *task, "-o", tmp_path, "--json")
    assert result.exit_code == 0, result.stderr
    with rasterio.open(json.loads(result.stdout)["products"]["pred"]) as src:
        found, valid = src.read(1), src.read_masks(1) > 0
        colours, tags = src.colormap(1), src.tags(1)
    assert 0.9 < valid.mean() < 1
    truth = labels(synthesise(SEED, HEIGHT, WIDTH, **demo_world())["LULC"])
    matrix = np.bincount(truth[valid].astype(int) * 3 + found[valid], minlength=9).reshape(3, 3)
    land, cloud, water = ious(matrix)
    assert water > 0.92, water
    assert cloud > 0.9, cloud
    assert land > 0.98, land
    for index, name in enumerate(NAMES):
        assert name in str(tags)
        assert colours[index][3] == 255
    assert len({colours[index] for index in range(len(NAMES))}) == len(NAMES)


def test_the_checkpoint_is_small_and_lightnings_own() -> None:
    import torch

    path = SAMPLES / "water.ckpt"
    assert path.stat().st_size < 8e6
    content = torch.load(path, weights_only=True)
    config = yaml.safe_load((SAMPLES / "water.yaml").read_text())["model"]["init_args"]
    assert content["hyper_parameters"]["model_args"] == config["model_args"]
    assert not any("optim" in key for key in content)
