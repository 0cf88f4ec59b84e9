"""Predicting with a fine-tuned task: pixels as they are in rasters in, scores or values out."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tmtool.errors import UsageError
from tmtool.grid import FloatArray, TileBatch
from tmtool.models.device import Compute
from tmtool.models.entry import ModelSpec
from tmtool.models.finetuned import _network as networks
from tmtool.models.finetuned.checkpoint import TaskCheckpoint, check_same_task, load_task, read_task_checkpoint
from tmtool.models.finetuned.config import TaskConfig
from tmtool.models.finetuned.inputs import TaskInput
from tmtool.models.requests import Prediction, input_key

OUTPUT, SCORES = "pred", "prob"
"""The names of what a predictor gives, and of its scores as a product of their own."""


def build(spec: ModelSpec) -> "_Products":
    """Build the predictor of a spec's request, filled from its checkpoint (seeded random weights without one)."""
    request = spec.request
    if not isinstance(request, Prediction) or request.config is None:
        raise UsageError("A fine-tuned task needs its config.")
    checkpoint = read_task_checkpoint(request.checkpoint) if request.checkpoint else None
    if checkpoint is not None:
        check_same_task(request.config, checkpoint)
    predictor = build_predictor(request.config, checkpoint, spec.compute, request.dates, spec.seed)
    return _Products(predictor, request.scores)


class _Products:
    """A predictor under the names of a task's products: its answer, and once more as `prob` where scores are kept."""

    def __init__(self, predictor: "Predictor", scores: bool) -> None:
        self._predictor, self._names = predictor, (OUTPUT, SCORES) if scores else (OUTPUT,)

    def __call__(self, batch: TileBatch) -> dict[str, NDArray[np.float32]]:
        """Return the answers `(B, channels, S, S)`, of a tile `(B, channels, 1, 1)`."""
        answer = self._predictor(batch)[OUTPUT]
        return dict.fromkeys(self._names, answer if answer.ndim == 4 else answer[:, :, None, None])


def build_predictor(
    config: TaskConfig, checkpoint: TaskCheckpoint | None, compute: Compute, dates: int = 1, seed: int = 0
) -> "Predictor":
    """Build a task's network, fill it from `checkpoint` (None: seeded random weights) and put it on its device.

    `dates` is what `config.check_dates` gave. Imports terratorch whole. Raises `WeightsError` if the checkpoint does not
    cover the network, or is of another config.
    """
    network = networks.build_network(config, initialised=checkpoint is None)
    from tmtool.models._parts import place
    from tmtool.models.finetuned._tim import take_over

    samplers, removed = take_over(network, seed)
    if checkpoint is not None:
        load_task(network, config, checkpoint, spare=removed)
    _keep_quantisers_exact(network, compute)
    place(network, compute)
    return Predictor(config, network, compute, dates, samplers)


def _keep_quantisers_exact(network: nn.Module, compute: Compute) -> None:
    """Have what surrounds quantisers compute in float32 under autocast: in bf16 they keep 5 % of their codes."""
    for name, part in network.named_modules():
        if name.endswith(("quant_proj", "quantize")):
            part.forward = _exact(part.forward, compute.device.partition(":")[0])


def _exact(forward: Any, device: str) -> Any:
    def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device, enabled=False):
            return forward(x.float(), *args, **kwargs)

    return call


class Predictor:
    """Predicts tiles. `network` is terratorch's, filled and placed; `samplers` are those of its TiM backbones."""

    def __init__(
        self, config: TaskConfig, network: nn.Module, compute: Compute, dates: int = 1, samplers: Any = ()
    ) -> None:
        self.config, self.network, self.compute, self.dates, self.samplers = config, network, compute, dates, samplers
        self.device = torch.device(compute.device)
        self._moments = {entry.name: self._moments_of(entry) for entry in config.inputs}

    def _moments_of(self, entry: TaskInput) -> tuple[Tensor, Tensor, Tensor]:
        """Return means, standard deviations and what fills holes, each `(1, C, T, 1, 1)` with T 1 or the dates."""
        rows = entry.means, entry.stds, tuple((value,) for value in entry.filled)
        mean, std, fill = (torch.tensor(row, device=self.device)[None, :, :, None, None] for row in rows)
        return mean, std, fill

    @torch.inference_mode()
    def __call__(self, batch: TileBatch) -> dict[str, NDArray[np.float32]]:
        """Return the network's answer under `pred`, float32: logits of classes, or values.

        `batch.pixels` has `(B, C, S, S)` float32 for each key of `input_key`, as the raster's values are (before
        `constant_scale`), NaN where there is no data; an input with one date of several stands for all of them.
        The answer is `(B, channels, S, S)` of a task per pixel, else `(B, channels)`.
        """
        size = next(iter(batch.pixels.values())).shape[-1]
        for sampler in self.samplers:
            sampler.place(torch.from_numpy(batch.rows), torch.from_numpy(batch.cols), size)
        with self._autocast():
            answer = self.network(self.joined(batch.pixels)).output.float()
        return {OUTPUT: self._shaped(answer, size).cpu().numpy()}

    def _autocast(self) -> Any:
        from tmtool.models._parts import DTYPES

        dtype = DTYPES[self.compute.precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def joined(self, pixels: Mapping[str, FloatArray]) -> Tensor | dict[str, Tensor]:
        """Return standardised inputs as the network takes them: `(B, C, S, S)`, or with a time axis `(B, C, T, S, S)`."""
        inputs = {entry.name: self.standardised(entry, pixels) for entry in self.config.inputs}
        if self.config.joined == "dict":
            return inputs
        return torch.cat(list(inputs.values()), dim=1)

    def standardised(self, entry: TaskInput, pixels: Mapping[str, FloatArray]) -> Tensor:
        """Do to an input what TerraTorch's data modules do: fill holes, multiply by its scale, standardise."""
        keys = [input_key(entry.name, date, self.dates) for date in range(self.dates)]
        keys = [entry.name] * self.dates if entry.name in pixels else keys
        if missing := [key for key in keys if key not in pixels]:
            raise UsageError(f"{self.config.path}: the network needs {', '.join(missing)}, found {', '.join(pixels)}.")
        x = torch.stack([self._sent(pixels[key]) for key in keys], dim=2)
        mean, std, fill = self._moments[entry.name]
        if x.shape[1] != mean.shape[1]:
            raise UsageError(f"{self.config.path}: {entry.name} has {mean.shape[1]} bands, found {x.shape[1]}.")
        x = torch.where(x.isnan(), fill, x)
        x = (x * entry.scale - mean) / std if entry.scale != 1 else (x - mean) / std
        return x if self.config.temporal else x[:, :, 0]

    def _sent(self, values: FloatArray) -> Tensor:
        x = torch.from_numpy(np.ascontiguousarray(values))
        return x.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else x.to(self.device)

    def _shaped(self, answer: Tensor, size: int) -> Tensor:
        """Return an answer with its channels, which networks leave out if there is one. Raises `UsageError`."""
        if not self.config.per_pixel:
            answer = answer.reshape(len(answer), -1)
            expected: tuple[int, ...] = (self.config.channels,)
        else:
            answer = answer[:, None] if answer.ndim == 3 else answer
            expected = (self.config.channels, size, size)
        if tuple(answer.shape[1:]) != expected:
            raise UsageError(
                f"{self.config.path}: the network answers a tile of {size} px with {list(answer.shape[1:])}, expected "
                f"{list(expected)}: a channel a class or value{', as large as the tile' if self.config.per_pixel else ''}. "
                "See num_classes, rescale and image_size_out in its model_args."
            )
        return answer
