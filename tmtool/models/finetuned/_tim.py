"""TerraMind's thinking in modalities (TiM) within a fine-tuned network: tokens drawn by place, and no part too many."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tmtool.errors import UsageError
from tmtool.modality import MODALITIES
from tmtool.models import ModelSpec, Request, Sampling
from tmtool.models._inputs import CellGrid
from tmtool.models.device import Compute
from tmtool.models.terramind.generator import Drawer


class PlacedSampler(nn.Module):
    """Stands in for terratorch's `GenerationSampler`, with its names of parameters.

    That one draws from global generators; this one with the noise of each cell's own place, so that the same place
    thinks the same in every tile and run. `place` tells where the tiles of the next call lie.
    """

    def __init__(self, core: nn.Module, targets: Mapping[str, str], seed: int) -> None:
        super().__init__()
        self.model = core
        self._targets, self._seed = dict(targets), seed
        self._at: tuple[Tensor, Tensor, int] | None = None

    def place(self, rows: Tensor, cols: Tensor, size: int) -> None:
        """Take the origins of tiles in source px, `(B,)` int64, and their side before the network pads them."""
        self._at = rows, cols, size

    def generate(
        self, mod_dict: dict[str, Any], schedule: list[dict[str, Any]], top_p: float = 0.0, top_k: int = 0, **_: Any
    ) -> dict[str, Any]:
        """Return the tokens of the schedule's targets, `(B, N)` int64 under `tensor`, as terratorch's sampler does."""
        targets = list(dict.fromkeys(step["target_domain"] for step in schedule))
        known = {key: value["tensor"] for key, value in mod_dict.items() if key not in targets}
        first = next(iter(known.values()))
        sampling = Sampling(
            top_p=top_p,
            top_k=top_k,
            temperature=schedule[0]["temperature"],
            decoding_steps=len(schedule) // len(targets),
        )
        request = Request(tuple(self._targets[t] for t in targets), sampling)
        spec = ModelSpec(
            "base", request, (), self._seed, Compute(str(first.device))
        )  # what all sizes share is asked of it
        drawer = Drawer(self.model, {}, spec)
        seen = [
            drawer.embed_tokens(key, value if value.is_floating_point() else value.flatten(1))
            for key, value in known.items()
        ]
        drawn = drawer.draw(seen, self._cells(first, drawer.noise_device))
        return {key: {"tensor": drawn[self._targets[key]].flatten(1)} for key in targets}

    def _cells(self, image: Tensor, device: torch.device) -> CellGrid:
        """Return the cells of the tiles that were placed; of several dates each has its tile's."""
        count, side = len(image), image.shape[-1]
        origin = torch.zeros(count, dtype=torch.int64)
        rows, cols, size = self._at or (origin, origin, side)
        dates, padded = count // len(rows), (side - size) // 2
        rows, cols = ((v - padded).repeat_interleave(dates) for v in (rows, cols))
        return CellGrid(rows, cols, side, device)


def take_over(network: nn.Module, seed: int) -> tuple[list[PlacedSampler], tuple[str, ...]]:
    """Put own samplers into a network's TiM backbones, and remove the tokenizers that they do not call.

    Returns the samplers, and how the names of what was removed begin. Raises `UsageError` for imagined text.
    """
    samplers, removed = [], []
    for name, part in network.named_modules():
        if type(part).__name__ == "TerraMindTiM":
            backbone: Any = part
            targets = {backbone.mod_name_mapping[m]: m for m in backbone.tim_modalities}
            known = {m.token_key: m.name for m in MODALITIES.values() if m.token_key}
            if unknown := [m for key, m in targets.items() if key not in known]:
                raise UsageError(
                    f"tim_modalities: {', '.join(unknown)} cannot be imagined here; {', '.join(known.values())} can."
                )
            sampler = PlacedSampler(backbone.sampler.model, {key: known[key] for key in targets}, seed)
            backbone.sampler = sampler
            samplers.append(sampler)
            inputs = {backbone.mod_name_mapping[m] for m in backbone.modalities if m not in backbone.tim_modalities}
            removed += [f"{name}.tokenizer.{key}." for key in _unused(backbone.tokenizer, inputs)]
    return samplers, tuple(removed)


def _unused(tokenizers: Any, inputs: set[str]) -> list[str]:
    """Remove the tokenizers of modalities that are no inputs and return their names."""
    names = [key for key in list(tokenizers) if key not in inputs]
    for key in names:
        del tokenizers[key]
    return names
