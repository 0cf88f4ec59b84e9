"""TerraTorch's own tasks, their normalisation and their tiles, to hold predictors against; and texture to run them on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch

from tests.conftest import ROOT
from tmtool.grid import TileBatch
from tmtool.models.finetuned.config import TASKS, TaskConfig
from tmtool.models.finetuned.inputs import TaskInput
from tmtool.models.requests import input_key

Tensors = torch.Tensor | dict[str, torch.Tensor]


def terratorch_task(config: TaskConfig, settings: Mapping[str, Any], seed: int = 3) -> Any:
    """Build TerraTorch's task with `settings` (its `init_args`) and seeded random weights; nothing is fetched."""
    from terratorch import tasks

    arguments = {k: v for k, v in settings.items() if k not in ("model_args", "optimizer", "lr_scheduler")}
    model_args = dict(config.model_args) | {"backbone_pretrained": False}
    torch.manual_seed(seed)
    name = next(name for name, kind in TASKS.items() if kind == config.kind)
    return lively(getattr(tasks, name)(model_args=model_args, **arguments)).eval()


def lively(module: Any) -> Any:
    """Give what starts at 0 or 1 other values, so that nothing is without effect."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim < 2 and not name.endswith("pos_emb"):
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            if name.endswith("running_var"):
                buffer.uniform_(0.8, 1.2)
    return module


def save_checkpoint(task: Any, path: Path) -> Path:
    """Write what Lightning writes of a task."""
    torch.save({"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams), "epoch": 1}, path)
    return path


def texture(entry: TaskInput, height: int, width: int, dates: int = 1) -> np.ndarray:
    """Return `(C, T, H, W)` float32 as a raster of this input might hold it: the sample scene's texture, rescaled."""
    with rasterio.open(ROOT / "samples" / "demo_scene.tif") as source:
        scene = source.read().astype(np.float64)
    scene = np.pad(scene, ((0, 0), (0, max(0, 2 * height)), (0, max(0, 2 * width))), mode="reflect")
    bands = []
    for i, (mean, std) in enumerate(zip(entry.means, entry.stds, strict=True)):
        layer = scene[i % len(scene)]
        moved = [layer[20 * t + i : 20 * t + i + height, 11 * t : 11 * t + width] for t in range(dates)]
        plain = [(m - layer.mean()) / layer.std() for m in moved]
        bands.append(np.stack([(p * std[0] + mean[0]) / entry.scale for p in plain]))
    return np.stack(bands).astype(np.float32)


def scene_of(config: TaskConfig, height: int, width: int, dates: int = 1) -> dict[str, np.ndarray]:
    """Return each input's texture, `(C, T, H, W)`."""
    return {entry.name: texture(entry, height, width, dates) for entry in config.inputs}


def as_terratorch_has_it(config: TaskConfig, scene: Mapping[str, np.ndarray]) -> Tensors:
    """Return what TerraTorch's dataset gives of a scene, without normalisation: `(1, C, [T,] H, W)`."""
    tensors = {}
    for entry in config.inputs:
        x = torch.from_numpy(scene[entry.name])[None] * (entry.scale if entry.scale != 1 else 1)
        tensors[entry.name] = x if config.temporal else x[:, :, 0]
    return tensors if config.joined == "dict" else torch.cat(list(tensors.values()), dim=1)


def normalised(config: TaskConfig, inputs: Tensors) -> Tensors:
    """Normalise as the data module's `aug` does, by terratorch's own classes."""
    from terratorch.datamodules.generic_multimodal_data_module import MultimodalNormalize
    from terratorch.datamodules.utils import Normalize

    def values(rows: Any) -> Any:
        return [row[0] for row in rows]

    means = {e.name: values(e.means) for e in config.inputs}
    stds = {e.name: values(e.stds) for e in config.inputs}
    if isinstance(inputs, dict):
        return MultimodalNormalize(means, stds)({"image": dict(inputs)})["image"]
    name = config.inputs[0].name
    return Normalize(means[name], stds[name])({"image": inputs})["image"]


def terratorch_logits(task: Any, config: TaskConfig, scene: Mapping[str, np.ndarray], tiles: Mapping[str, Any]) -> Any:
    """Return what TerraTorch's `predict_step` makes of a scene before it takes the largest, `(channels, H, W)`."""
    from terratorch.tasks.tiled_inference import tiled_inference

    inputs = normalised(config, as_terratorch_has_it(config, scene))
    return tiled_inference(lambda x: task(x).output, inputs, **tiles)[0].detach().numpy()


def predictor_logits(predictor: Any, scene: Mapping[str, np.ndarray], tiles: Mapping[str, Any]) -> np.ndarray:
    """Return the same of a predictor, which gets the scene's values as they are, on the same tiles."""
    from terratorch.tasks.tiled_inference import tiled_inference

    def forward(x: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.from_numpy(predictor(batch_of(predictor, {k: v.numpy() for k, v in x.items()}))["pred"])

    inputs = {name: torch.from_numpy(values)[None] for name, values in scene.items()}
    return tiled_inference(forward, inputs, **tiles)[0].numpy()


def batch_of(predictor: Any, tiles: Mapping[str, np.ndarray]) -> TileBatch:
    """Return a batch of tiles `(B, C, T, S, S)`, at the raster's corner."""
    pixels = {
        input_key(name, t, values.shape[2]): np.ascontiguousarray(values[:, :, t])
        for name, values in tiles.items()
        for t in range(values.shape[2])
    }
    origin = np.zeros(len(next(iter(tiles.values()))), np.int64)
    return TileBatch(pixels, origin, origin)
