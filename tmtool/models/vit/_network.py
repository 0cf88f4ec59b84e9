"""Prithvi's and Clay's encoders in plain torch, with the tensor names of the hub's files, and embedding tiles with them.

Both are vision transformers, which terratorch builds from timm's and its own parts; tests compare each layer with terratorch's.
Its classes are not used, as importing them takes seconds, and those of Clay 1.5 lower torch's float32 matmul precision.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tmtool.errors import WeightsError
from tmtool.grid import TileBatch
from tmtool.models import Embedding, ModelSpec
from tmtool.models._inputs import Base
from tmtool.models._parts import compile_networks, no_initialisation, place, randomise
from tmtool.models.vit.facts import Facts
from tmtool.models.weights import load_strictly

Dates = NDArray[np.datetime64]
Shape = tuple[int, int, int]
"""Dates, rows and columns of patches."""

_SCALE = 0.1
"""Initial weight of the time and place codes in pretraining: random weights keep it."""


def _attention(qkv: Tensor, heads: int) -> Tensor:
    """Return what attention makes of queries, keys and values `(B, N, 3D)`: `(B, N, D)`."""
    q, k, v = torch.unflatten(qkv, -1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _waves(positions: Tensor, frequencies: Tensor) -> Tensor:
    """Return sines, then cosines, of positions `(M,)` at frequencies `(n,)`: `(M, 2n)`."""
    angles = positions[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Encoder(nn.Module):
    """The common part of both: patches and their codes go through blocks with a class token, which is then dropped.

    `patches` exists only after `settle` was called, once the weights are loaded.
    """

    cls_token: nn.Parameter
    patches: nn.Conv2d

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.facts = facts
        self._positions: dict[Shape, Tensor] = {}

    @property
    def encoder(self) -> nn.ModuleList:
        """The blocks."""
        raise NotImplementedError

    @property
    def last_norm(self) -> nn.LayerNorm:
        """What the last layer goes through."""
        raise NotImplementedError

    def settle(self) -> None:
        """Convert the weights from their stored form to the one that is used."""
        raise NotImplementedError

    def positions(self, shape: Shape) -> Tensor:
        """Return the code of each patch's position, `(T*h*w, D)` float32."""
        raise NotImplementedError

    def circumstances(self, dates: Dates | None, lonlat: NDArray[np.float64] | None) -> Tensor | None:
        """Return the code of dates and place, `(B, T or 1, D)` float32; None where neither is known or taken."""
        raise NotImplementedError

    def forward(
        self,
        pixels: Tensor,
        layers: Collection[int],
        dates: Dates | None = None,
        lonlat: NDArray[np.float64] | None = None,
    ) -> dict[int, Tensor]:
        """Return the layers asked for (from 0; the last one is normed), each `(B, T, D, h, w)` float32.

        `pixels` are `(B, C, T, S, S)` in standard deviations from the mean, `dates` `(B, T)` and `lonlat` `(B, 2)` degrees.
        """
        x = self.patches(pixels.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(pixels), -1))  # (B, T, D, h, w)
        shape = (x.shape[1], x.shape[3], x.shape[4])
        x = x.permute(0, 1, 3, 4, 2).flatten(1, 3) + self._position_code(shape, x.device)
        code = self.circumstances(dates, lonlat)
        if code is not None:
            code = code.to(x.device, non_blocking=True)
            x = x + code.repeat_interleave(shape[1] * shape[2] * shape[0] // code.shape[1], dim=1)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        return {i: self._on_grid(y, shape) for i, y in self._through(x, layers)}

    def _position_code(self, shape: Shape, device: torch.device) -> Tensor:
        if shape not in self._positions:
            self._positions[shape] = self.positions(shape).to(device)
        return self._positions[shape]

    def _through(self, x: Tensor, layers: Collection[int]) -> list[tuple[int, Tensor]]:
        found = []
        for i, block in enumerate(self.encoder[: max(layers) + 1]):
            x = block(x)
            if i in layers:
                found.append((i, self.last_norm(x) if i == self.facts.depth - 1 else x))
        return found

    @staticmethod
    def _on_grid(x: Tensor, shape: Shape) -> Tensor:
        return torch.unflatten(x[:, 1:].float(), 1, shape).permute(0, 1, 4, 2, 3)

    def _convolution(self, weight: Tensor, bias: Tensor) -> nn.Conv2d:
        """Return the embedding of patches by a weight `(D, C, p, p)`."""
        out, channels, side, _ = weight.shape
        with no_initialisation():
            convolution = nn.Conv2d(channels, out, side, stride=side)
        convolution.weight, convolution.bias = (nn.Parameter(t.detach(), requires_grad=False) for t in (weight, bias))
        return convolution


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(_attention(self.qkv(x), self.heads))  # type: ignore[no-any-return]


class _Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class _PrithviBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = _Attention(dim, heads), _Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class _Scale(nn.Module):
    """The learned weight of a code."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), _SCALE))


class Prithvi(Encoder):
    """Prithvi's encoder (terratorch's `PrithviViT`)."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        side = (1, facts.patch, facts.patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, facts.dim))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(len(facts.bands), facts.dim, side, stride=side)})
        if facts.time:
            self.temporal_embed_enc = _Scale()
        if facts.place:
            self.location_embed_enc = _Scale()
        self.blocks = nn.ModuleList(_PrithviBlock(facts.dim, facts.heads) for _ in range(facts.depth))
        self.norm = nn.LayerNorm(facts.dim)

    @property
    def encoder(self) -> nn.ModuleList:
        """The blocks."""
        return self.blocks

    @property
    def last_norm(self) -> nn.LayerNorm:
        """What the last layer goes through."""
        return self.norm

    def settle(self) -> None:
        """Take each date's patches by themselves: the stored kernel is one date deep."""
        projection: Any = self.patch_embed["proj"]
        self.patches = self._convolution(projection.weight.squeeze(2), projection.bias)
        del self.patch_embed

    def positions(self, shape: Shape) -> Tensor:
        """Return sines and cosines of column, row and date; of an image of another size, interpolated as terratorch does."""
        dates, *size = shape
        side, sixteenth = self.facts.image // self.facts.patch, self.facts.dim // 16
        along = torch.arange(side)
        cols, rows, times = (
            _sincos(values.double(), parts * sixteenth)
            for values, parts in ((along, 6), (along, 6), (torch.arange(dates), 4))
        )
        grid = (dates, side, side, -1)
        axes = (cols[None, None].expand(grid), rows[None, :, None].expand(grid), times[:, None, None].expand(grid))
        code = torch.cat(axes, dim=-1).float()
        if size != [side, side]:
            maps = code.permute(0, 3, 1, 2)
            code = F.interpolate(maps, size=size, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
        return code.flatten(0, 2)

    def circumstances(self, dates: Dates | None, lonlat: NDArray[np.float64] | None) -> Tensor | None:
        """Return sines and cosines of year and day of the year (from 0), and of latitude and longitude, as scaled."""
        dim, code = self.facts.dim, None
        if self.facts.time and dates is not None:
            years = dates.astype("datetime64[Y]")
            days = (dates.astype("datetime64[D]") - years.astype("datetime64[D]")).astype(np.int64)
            halves = [_sincos_of(v, dim // 2) for v in (years.astype(np.int64) + 1970, days)]
            code = self._weighed(self.temporal_embed_enc, torch.cat(halves, dim=-1))
        if self.facts.place and lonlat is not None:
            halves = [_sincos_of(lonlat[:, i : i + 1], dim // 2) for i in (1, 0)]
            where = self._weighed(self.location_embed_enc, torch.cat(halves, dim=-1))
            code = where if code is None else code + where
        return code

    def _weighed(self, part: _Scale, code: Tensor) -> Tensor:
        return part.scale * code.to(part.scale.device, non_blocking=True)


def _sincos(positions: Tensor, dim: int) -> Tensor:
    frequencies = 1 / 10_000 ** (torch.arange(dim // 2, dtype=positions.dtype) / (dim / 2))
    return _waves(positions, frequencies)


def _sincos_of(values: NDArray[Any], dim: int) -> Tensor:
    """Return the codes of values `(B, T)`: `(B, T, dim)` float32, computed in float32 as in pretraining."""
    numbers = torch.from_numpy(values.astype(np.float32))
    return torch.unflatten(_sincos(numbers.flatten(), dim), 0, numbers.shape)


class _ClayAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.to_qkv, self.to_out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out(_attention(self.to_qkv(self.norm(x)), self.heads))  # type: ignore[no-any-return]


class _ClayMlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


class _ClayBlock(nn.ModuleList):
    """A block, whose parts the files name by number."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__([_ClayAttention(dim, heads), _ClayMlp(dim)])

    def forward(self, x: Tensor) -> Tensor:
        attention, mlp = self
        x = x + attention(x)
        return x + mlp(x)  # type: ignore[no-any-return]


class _ClayKernels(nn.Module):
    """Makes the kernel of a patch embedding of wavelengths (DOFA's hypernetwork, arXiv 2403.15356)."""

    WIDTH = 128

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        width, self.patch = self.WIDTH, patch
        layer = nn.TransformerEncoderLayer(width, 4, dropout=0.0, activation="gelu", batch_first=True)
        self.fclayer = nn.ModuleDict({"l1": nn.Linear(width, width), "l2": nn.Linear(width, width)})
        self.weight_generator = nn.Module()
        self.weight_generator.encoder = nn.TransformerEncoder(layer, 1)
        self.weight_generator.fc_weight = nn.Linear(width, patch**2 * dim)
        self.weight_generator.fc_bias = nn.Linear(width, dim)
        self.weight_generator.weight_tokens = nn.Parameter(torch.empty(width, width))
        self.weight_generator.bias_token = nn.Parameter(torch.empty(1, width))

    def forward(self, wavelengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return kernel `(D, C, p, p)` and bias `(D,)` for wavelengths `(C,)` in micrometres."""
        n = self.WIDTH // 2
        waves = _waves(wavelengths, 1 / 10_000 ** (torch.arange(n) / (n - 1)))
        waves = waves + F.gelu(self.fclayer["l2"](F.gelu(self.fclayer["l1"](waves))))
        maker: Any = self.weight_generator
        tokens = torch.cat([maker.weight_tokens, waves, maker.bias_token])
        bands = slice(len(maker.weight_tokens), -1)
        made = maker.encoder(tokens)
        kernels = maker.fc_weight(made[bands] + tokens[bands]).unflatten(1, (-1, self.patch, self.patch))
        return 0.02 * kernels.transpose(0, 1), maker.fc_bias(made[-1])


class Clay(Encoder):
    """Clay's encoder (terratorch's `clay_v15.model.Encoder` without a mask, `EmbeddingEncoder` of v1)."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.cls_token = nn.Parameter(torch.empty(1, 1, facts.dim))
        self.patch_embedding = _ClayKernels(facts.dim, facts.patch)
        self.transformer = nn.Module()
        self.transformer.norm = nn.LayerNorm(facts.dim)
        self.transformer.layers = nn.ModuleList(_ClayBlock(facts.dim, facts.heads) for _ in range(facts.depth))

    @property
    def encoder(self) -> nn.ModuleList:
        """The blocks."""
        return self.transformer.layers  # type: ignore[return-value]

    @property
    def last_norm(self) -> nn.LayerNorm:
        """What the last layer goes through."""
        return self.transformer.norm  # type: ignore[return-value]

    @torch.no_grad()
    def settle(self) -> None:
        """Make the kernel for the bands in use, once and in float32, then drop the network that makes kernels."""
        self.patch_embedding.eval()
        self.patches = self._convolution(*self.patch_embedding(torch.tensor(self.facts.wavelengths)))
        del self.patch_embedding

    def positions(self, shape: Shape) -> Tensor:
        """Return sines and cosines of column and row by the size of a pixel; eight channels are left to time and place."""
        _, height, width = shape
        dim = self.facts.dim - 8
        n = dim // 4
        frequencies = 1 / 10_000 ** (2 * (torch.arange(n) / (n - 1)) / dim) * self.facts.gsd
        rows, cols = (_waves(torch.arange(size), frequencies) for size in (height, width))
        grid = (height, width, -1)
        code = torch.cat([cols[None].expand(grid), rows[:, None].expand(grid)], dim=-1)
        return F.pad(code, (0, 8)).flatten(0, 1)

    def circumstances(self, dates: Dates | None, lonlat: NDArray[np.float64] | None) -> Tensor | None:
        """Return sines and cosines of the ISO week and the hour (if `dates` have one), of latitude and longitude.

        Each that is unknown is zeros.
        """
        if dates is None and lonlat is None:
            return None
        given = dates if dates is not None else lonlat
        code = np.zeros((len(given), 1, self.facts.dim), np.float32)  # type: ignore[arg-type]
        if dates is not None:
            code[..., -8:-6] = _turn(_iso_week(dates) / 52)
            if np.datetime_data(dates.dtype)[0] not in ("Y", "M", "W", "D"):
                hours = (dates - dates.astype("datetime64[D]")).astype("timedelta64[h]").astype(np.int64)
                code[..., -6:-4] = _turn(hours / 24)
        if lonlat is not None:
            lon, lat = (_turn(lonlat[:, i : i + 1] / 360) for i in (0, 1))
            code[..., -4:] = np.concatenate([lat, lon], axis=-1)
        return torch.from_numpy(code)


def _turn(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sine and cosine of shares of a turn, as a last axis."""
    return np.stack([np.sin(2 * np.pi * share), np.cos(2 * np.pi * share)], axis=-1)


def _iso_week(dates: Dates) -> NDArray[np.int64]:
    """Return the ISO week of each date: that of its Thursday, counted in the Thursday's year."""
    days = dates.astype("datetime64[D]")
    thursday = days + (3 - (days.astype(np.int64) + 3) % 7)  # day 0, the first of 1970, was one
    since: NDArray[np.int64] = (thursday - thursday.astype("datetime64[Y]").astype("datetime64[D]")).astype(np.int64)
    return since // 7 + 1


def filled(
    make: Callable[[Facts], Encoder], facts: Facts, spec: ModelSpec, read: Callable[[Path], Mapping[str, Tensor]]
) -> Encoder:
    """Build an encoder, fill it with the weights that `spec` names, and make it ready on its device.

    `read` gives the tensors of a file by the encoder's names. Raises `WeightsError` if they are not exactly its own.
    """
    with no_initialisation():
        network = make(facts)
    if spec.files is None:
        randomise(network, facts.name)
        for part in network.modules():
            if isinstance(part, _Scale):
                part.scale.data.fill_(_SCALE)
    else:
        _load(network, read(spec.files[facts.file]), spec.files[facts.file])
    network.settle()
    place(network, spec.compute)
    if spec.compute.compiled:
        compile_networks(network)
    return network


def _load(network: Encoder, state: Mapping[str, Tensor], path: Path) -> None:
    load_strictly(network, state, path)
    if more := sorted(set(state) - set(network.state_dict())):
        raise WeightsError(
            f"{path}: holds {len(more)} tensors that {network.facts.name} does not have: {', '.join(more[:8])}. "
            "Choose the model of this file with --model."
        )


class VitEmbedder(Base):
    """Embeds tiles with Prithvi or Clay."""

    def __init__(self, network: Encoder, spec: ModelSpec) -> None:
        super().__init__(spec)
        assert isinstance(spec.request, Embedding)  # the only kind of work that its entry offers
        self.network, self.merge, facts = network, spec.request.merge, network.facts
        self.wanted = self.entry.embeddings(spec.request, spec.inputs)
        self._mean, self._std = (
            torch.tensor(v, device=self.device)[None, :, None, None, None] for v in (facts.mean, facts.std)
        )

    @torch.inference_mode()
    def __call__(self, batch: TileBatch) -> dict[str, NDArray[np.float32]]:
        """Return each product's vectors `(B, D, S/p, S/p)` float32, or `(B, T*D, S/p, S/p)` if dates are concatenated."""
        values = np.stack(list(batch.pixels.values()), axis=2)
        layers = {product.layer for product in self.wanted}
        found = self.vectors(values, layers, batch.dates, batch.lonlat)
        return self.fetched(
            {product.name: self._merge(found[product.layer], product.modality) for product in self.wanted}
        )

    @torch.inference_mode()
    def vectors(
        self,
        values: NDArray[np.float32],
        layers: Collection[int],
        dates: Dates | None = None,
        lonlat: NDArray[np.float64] | None = None,
    ) -> dict[int, Tensor]:
        """Return the layers asked for (from 0; the last one is normed), each `(B, T, D, S/p, S/p)` float32.

        `values` are digital numbers of the model's bands, `(B, C, S, S)` or `(B, C, T, S, S)`; `dates` `(B, T)` in UTC and
        `lonlat` `(B, 2)` in degrees are None where unknown. If one date is not known (NaT), the model gets none.
        """
        if dates is not None and np.isnat(dates).any():
            dates = None
        x = self.sent(values if values.ndim == 5 else values[:, :, None])
        with self.autocast():
            return self.network((x - self._mean) / self._std, layers, dates, lonlat)  # type: ignore[no-any-return]

    def _merge(self, x: Tensor, one: str | None) -> Tensor:
        """Merge dates `(B, T, D, h, w)`, or take `one`; concatenated, they follow each other as terratorch gives them to decoders."""
        if one is not None:
            return x[:, self.spec.inputs.index(one)]
        how = self.merge
        return x.mean(dim=1) if how == "mean" else x.amax(dim=1) if how == "max" else x.flatten(1, 2)
