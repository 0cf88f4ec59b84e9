"""TerraMind's encoder as a backbone: one vector a patch, of any layer, merged over modalities."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tmtool.grid import TileBatch
from tmtool.models import Embedding, ModelSpec
from tmtool.models._inputs import CellGrid, Embeddings, InputEmbedding
from tmtool.models.terramind.generator import Drawer


class Embedder(InputEmbedding):
    """Embeds tiles. `backbone` is terratorch's TerraMindViT or TerraMindTiM, of which only the modules are used.

    With `drawer`, the tokens of imagined modalities are drawn first and embedded with the inputs (TiM). `coords` is
    terratorch's tokenizer of coordinates.
    """

    def __init__(
        self,
        backbone: Any,
        tokenizers: Mapping[str, nn.Module],
        spec: ModelSpec,
        request: Embedding,
        drawer: Drawer | None = None,
        coords: Any = None,
    ) -> None:
        super().__init__(backbone.encoder_embeddings, tokenizers, spec)
        self.blocks, self.norm = backbone.encoder, backbone.encoder_norm
        self.drawer, self.coords = drawer, coords
        self.request = request
        self.wanted = self.entry.embeddings(request, spec.inputs)

    @torch.inference_mode()
    def __call__(self, batch: TileBatch) -> dict[str, NDArray[np.float32]]:
        """Return each product's vectors `(B, D, S/16, S/16)` float32."""
        size = next(iter(batch.pixels.values())).shape[-1]
        with self.autocast():
            images = {m: self.embed_input(m, values) for m, values in batch.pixels.items()}
            others = self.embed_lonlat(self.coords, batch.lonlat)
            imagined = self._imagine([*images.values(), *others], batch, size)
            layers = self._encode([*images.values(), *others, *imagined])
        side = size // self.entry.patch
        outputs = {}
        for product in self.wanted:
            counts = [part.x.shape[1] for part in (*images.values(), *others, *imagined)]
            parts = list(torch.split(layers[product.layer].float(), counts, dim=1))
            del parts[len(images) : len(images) + len(others)]  # only what lies on the patch grid is merged
            merged = parts[self.spec.inputs.index(product.modality)] if product.modality else self._merge(parts)
            outputs[product.name] = torch.unflatten(merged.transpose(1, 2), 2, (side, side))
        return self.fetched(outputs)

    def _imagine(self, seen: list[Embeddings], batch: TileBatch, size: int) -> list[Embeddings]:
        if self.drawer is None:
            return []
        drawn = self.drawer.draw(seen, CellGrid.of(batch, size, self.noise_device))
        return [self.embed_tokens(self.spec.modality(m).token_key, tokens.flatten(1)) for m, tokens in drawn.items()]

    def _encode(self, parts: list[Embeddings]) -> dict[int, Tensor]:
        """Return the layers asked for, `(B, N, D)`; the last one is normed."""
        x = torch.cat([part.x + part.code for part in parts], dim=1)
        wanted = {product.layer for product in self.wanted}
        layers = {}
        for i, block in enumerate(self.blocks[: max(wanted) + 1]):
            x = block(x)
            if i in wanted:
                layers[i] = self.norm(x) if i == len(self.blocks) - 1 else x
        return layers

    def _merge(self, parts: list[Tensor]) -> Tensor:
        """Merge the modalities' vectors `(B, N, D)` patch by patch."""
        if self.request.merge == "concat":
            return torch.cat(parts, dim=-1)
        stacked = torch.stack(parts, dim=1)
        return stacked.amax(dim=1) if self.request.merge == "max" else stacked.mean(dim=1)


def select_bands(embedding: Any, index: list[int]) -> None:
    """Keep these bands of a patch embedding, in this order, as terratorch's `select_modality_patch_embed_weights` does."""
    weight = embedding.proj.weight
    pixels = weight.shape[1] // embedding.num_channels  # of a patch; bands vary fastest
    kept = weight.unflatten(1, (pixels, embedding.num_channels))[..., index].flatten(1)
    embedding.proj = nn.Linear(kept.shape[1], kept.shape[0], bias=False, dtype=weight.dtype, device=weight.device)
    embedding.proj.weight = nn.Parameter(kept, requires_grad=False)
    embedding.num_channels = len(index)
