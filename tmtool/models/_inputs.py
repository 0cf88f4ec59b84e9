"""What enters the transformer: pixels embedded as patches, tokens of tokenised modalities, coordinates."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tmtool.grid import TileBatch
from tmtool.modality import TOKEN_PX, Modality
from tmtool.models import ModelSpec, find
from tmtool.models import _noise as noise
from tmtool.models._parts import DTYPES
from tmtool.models.device import decoder_batch
from tmtool.models.text import SEQUENCES


class Embeddings(NamedTuple):
    """Patch or token embeddings `x`, and their position-and-modality `code`; both `(B, N, D)`.

    `hidden` `(B, N)` says which of them are padding, where any may be.
    """

    x: Tensor
    code: Tensor
    hidden: Tensor | None = None

    def at(self, index: Tensor) -> "Embeddings":
        """Return those of the tiles at these places, `(n,)` int64."""
        return Embeddings(self.x[index], self.code[index], None if self.hidden is None else self.hidden[index])


class Tokenizer(Protocol):
    """What is used of a tokenizer (terratorch's VQVAE or DiVAE)."""

    encoder: Any
    decoder: Any
    quant_proj: Any
    quantize: Any
    noise_scheduler: Any

    def prepare_input(self, x: Tensor) -> Tensor:
        """Turn classes into one channel a class; leave others as they are."""
        ...

    def decode_quant(self, quant: Tensor) -> Tensor:
        """Decode latents in one step."""
        ...


class Base:
    """What all adapters share: the spec, its device and precision, and the modalities' moments."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.device = torch.device(spec.compute.device)
        self.decoder_batch = decoder_batch(spec.compute.device)
        self.entry = find(spec.name)
        used = dict.fromkeys([*spec.inputs, *(m for m in spec.outputs if m not in SEQUENCES)])
        self.moments = {m: self._moments(spec.modality(m)) for m in used}

    def _moments(self, modality: Modality) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(v, device=self.device)[None, :, None, None] for v in self.entry.moments(modality))
        return mean, std

    @property
    def noise_device(self) -> torch.device:
        """Where noise is made: it is float64, which mps lacks."""
        return torch.device("cpu") if self.device.type == "mps" else self.device

    def autocast(self) -> Any:
        """Return the context in which half-precision weights meet float32 activations."""
        dtype = DTYPES[self.spec.compute.precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def standardised(self, name: str, values: NDArray[np.float32]) -> Tensor:
        """Return pixels `(B, C, S, S)` in standard deviations from the pretraining mean; classes as they are."""
        x = self.sent(values)
        if self.spec.modality(name).classes:
            return x
        mean, std = self.moments[name]
        return (x - mean) / std

    def sent(self, values: NDArray[Any]) -> Tensor:
        """Return an array on the device. On CUDA the copy is asynchronous, from page-locked memory."""
        x = torch.from_numpy(np.ascontiguousarray(values))
        return x.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else x.to(self.device)

    def fetched(self, outputs: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
        """Return outputs on the host. On CUDA all copies are queued first, then synchronised once."""
        if self.device.type != "cuda":
            return {name: values.cpu().numpy() for name, values in outputs.items()}
        copies = {
            name: torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
            for name, values in outputs.items()
        }
        torch.cuda.synchronize(self.device)
        return {name: values.numpy() for name, values in copies.items()}

    def encode(self, tokenizer: Tokenizer, x: Tensor) -> Tensor:
        """Return the tokens of `x`, `(B, h, w)` int64. The quantiser is float32: in bf16 it keeps 5 % of its codes."""
        features = tokenizer.encoder(tokenizer.prepare_input(x))
        with torch.autocast(self.device.type, enabled=False):
            latent = tokenizer.quant_proj(features.float())
            # not its forward, which also copies a Python number to the device for the loss, and so synchronises
            _, tokens = tokenizer.quantize.latent_to_code_and_indice(latent.flatten(2).transpose(1, 2))
        return tokens.unflatten(1, latent.shape[2:]).long()  # type: ignore[no-any-return]


class InputEmbedding(Base):
    """Embeds inputs with the embeddings of an encoder, `encoder_embeddings` by the model's keys."""

    def __init__(self, encoder_embeddings: Any, tokenizers: Mapping[str, Any], spec: ModelSpec) -> None:
        super().__init__(spec)
        self.encoder_embeddings, self.tokenizers = encoder_embeddings, tokenizers

    def embed_input(self, name: str, values: NDArray[np.float32]) -> Embeddings:
        """Embed pixels `(B, C, S, S)` in the modality's unit."""
        modality = self.spec.modality(name)
        x = self.standardised(name, values)
        if modality.raw_key is None:
            return self.embed_tokens(modality.token_key, self.encode(self.tokenizers[name], x).flatten(1))
        return self._embedded(modality.raw_key, x)

    def embed_tokens(self, key: str | None, tokens: Tensor) -> Embeddings:
        """Embed tokens `(B, N)` of the model's modality `key`."""
        return self._embedded(key, tokens)

    def embed_lonlat(self, coords: Any, lonlat: NDArray[np.float64] | None) -> list[Embeddings]:
        """Embed places `(B, 2)` of longitude and latitude, by terratorch's tokenizer `coords`; nothing without it."""
        if coords is None:
            return []
        tokens = coords.encode(torch.from_numpy(lonlat))["tensor"]
        return [self.embed_tokens("coords", tokens.to(self.device, non_blocking=True))]

    def embed_sequence(self, name: str, tokens: Tensor, hidden: Tensor) -> Embeddings:
        """Embed a sequence's tokens `(B, N)`, of which those `hidden` are padding."""
        embedded = self.encoder_embeddings[name]({"tensor": tokens, "input_mask": hidden})
        return Embeddings(embedded["x"], embedded["emb"], hidden)

    def _embedded(self, key: str | None, tensor: Tensor) -> Embeddings:
        embedded = self.encoder_embeddings[key](tensor)
        return Embeddings(embedded["x"], embedded["emb"])


class CellGrid:
    """Absolute positions of a batch of tiles of `size` px: of their pixels, and of their cells on the patch grid.

    Where there are several draws of a tile, `tiles` `(B,)` int64 says which tile of the batch each is of, and `numbers` which
    draw: the seed of draw n is n more than the seed.
    """

    def __init__(
        self,
        rows: Tensor,
        cols: Tensor,
        size: int,
        device: torch.device,
        tiles: Tensor | None = None,
        numbers: Sequence[int] = (0,),
    ) -> None:
        self.tiles, self._numbers = tiles, numbers
        rows, cols = (v.to(device, non_blocking=True) for v in (rows, cols))
        self._pixel_rows, self._pixel_cols, self._size = rows, cols, size
        side = size // TOKEN_PX
        self.shape = (len(rows), side, side)
        first_row, first_col = (v.div(TOKEN_PX, rounding_mode="floor") for v in (rows, cols))
        index = torch.arange(side * side, device=device)
        self.rows = first_row[:, None] + index // side
        self.cols = first_col[:, None] + index % side

    @classmethod
    def of(cls, batch: TileBatch, size: int, device: torch.device) -> "CellGrid":
        """Return the positions of a batch."""
        rows, cols = torch.from_numpy(batch.rows), torch.from_numpy(batch.cols)
        if batch.draws is None:
            return cls(rows, cols, size, device)
        tiles = torch.from_numpy(batch.draws.index)
        return cls(rows[tiles], cols[tiles], size, device, tiles.to(device), batch.draws.number.tolist())

    def key(self, seed: int, modality: str, purpose: str, step: int = 0) -> noise.Key:
        """Return the key of a stream, or those of each tile's draw."""
        seeds = [seed + number for number in self._numbers]
        return noise.keys_of(seeds, modality, purpose, step, self.rows.device)

    @staticmethod
    def key_at(key: noise.Key, cells: Tensor, count: int) -> noise.Key:
        """Return the keys of cells, `(n,)` int64 that number the cells of all tiles, of which each has `count`."""
        first, second = key
        if isinstance(first, int) or isinstance(second, int):
            return key
        tiles = cells // count
        return first[tiles], second[tiles]

    @property
    def origins(self) -> tuple[Tensor, Tensor]:
        """First row and column of each tile in source px, `(B, 1)` int64."""
        return self._pixel_rows[:, None], self._pixel_cols[:, None]

    def part(self, tiles: Tensor) -> "CellGrid":
        """Return the positions of some of the tiles, `(n,)` int64."""
        rows, cols = (v[tiles.to(v.device)] for v in (self._pixel_rows, self._pixel_cols))
        numbers = self._numbers if len(self._numbers) == 1 else [self._numbers[i] for i in tiles.tolist()]
        return CellGrid(rows, cols, self._size, rows.device, numbers=numbers)

    def normal(self, key: noise.Key, channels: int) -> Tensor:
        """Return each tile's own normal noise, `(B, channels, S, S)` float32."""
        return noise.normal(key, self._pixel_rows, self._pixel_cols, channels, self._size, self._size)

    def order(self, key: noise.Key) -> Tensor:
        """Return each tile's cells in the order in which they are decoded, `(B, N)` int64."""
        return noise.order(key, self.rows, self.cols).argsort(dim=1, stable=True)
