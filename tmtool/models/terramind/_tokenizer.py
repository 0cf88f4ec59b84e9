"""Tokenizers on their own: pixels to tokens, and tokens to pixels."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tmtool.grid import TileBatch
from tmtool.modality import TOKEN_PX
from tmtool.models import ModelSpec
from tmtool.models._inputs import Base, CellGrid
from tmtool.models.terramind.generator import decode


class Encoder(Base):
    """Turns tiles of one modality into tokens."""

    def __init__(self, tokenizer: nn.Module, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.tokenizer = tokenizer

    @torch.inference_mode()
    def __call__(self, batch: TileBatch) -> dict[str, NDArray[np.uint16]]:
        """Return the input's tokens `(B, 1, S/16, S/16)` uint16 under its name."""
        ((name, values),) = batch.pixels.items()
        with self.autocast():
            tokens = self.encode(self.tokenizer, self.standardised(name, values))  # type: ignore[arg-type]
        return {m: values.astype(np.uint16) for m, values in self.fetched({name: tokens[:, None]}).items()}


class Decoder(Base):
    """Turns tiles of tokens into the modality's pixels."""

    def __init__(self, tokenizer: nn.Module, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.tokenizer = tokenizer

    @torch.inference_mode()
    def __call__(self, batch: TileBatch) -> dict[str, NDArray[np.float32]]:
        """Return the pixels `(B, channels, S, S)` float32, logits for classes, of tokens `(B, 1, S/16, S/16)`."""
        (name,) = self.spec.outputs
        tokens = self.sent(batch.pixels[name][:, 0]).long()
        cells = CellGrid.of(batch, tokens.shape[-1] * TOKEN_PX, self.noise_device)
        if cells.tiles is not None:
            tokens = tokens[cells.tiles.to(tokens.device)]
        return self.fetched({name: decode(self, name, self.tokenizer, tokens, cells)})  # type: ignore[arg-type]
