"""TerraMind through terratorch: the only module that imports it.

terratorch's classes hold the architecture; the loop around them (tokens, chaining, diffusion) is tmtool's own, because
terratorch's draws from global generators and decodes in one step only.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from terratorch.models.backbones.terramind.model import terramind_register
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tmtool import noise
from tmtool.device import Compute
from tmtool.grid import PATCH, TileBatch
from tmtool.modality import MODALITIES, Modality
from tmtool.models import ModelSpec, Sampling, TileModel
from tmtool.models.sampling import ddim, draw_tokens, linear_schedule
from tmtool.models.weights import WeightFile, load_strictly, read_state

CORE = "core"
_SPARE_CORE = ("encoder_embeddings.", "decoder_embeddings.")
_SPARE_TOKENIZER = ("encoder.", "quant_proj.", "decoder.", "post_quant_proj.")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build(spec: ModelSpec) -> TileModel:
    """Build what `spec` needs of TerraMind, load its weights, and put it on its device."""
    builder = getattr(terramind_register, f"terramind_v1_{spec.name}_generate")
    file_of = {part_of(file): path for file, path in (spec.files or {}).items()}
    return assemble(spec, builder, lambda part: (read_state(file_of[part]), file_of[part]))


def part_of(file: WeightFile) -> str:
    """Return the part that a file holds: a modality for its tokenizer, else `core`."""
    return next((m for m in MODALITIES if file.repo.endswith(f"-Tokenizer-{m}")), CORE)


def assemble(
    spec: ModelSpec, builder: Callable[..., Any], state_of: Callable[[str], tuple[Mapping[str, Tensor], Path]]
) -> TileModel:
    """Build with `builder`, which makes terratorch's TerraMindGeneration, and fill each part from its state.

    `state_of(part)` gives the tensors and the file of `core` or of a modality's tokenizer.
    """
    core, tokenizers = _build_parts(spec, builder)
    tokenised = _tokenised(spec)
    for modality, tokenizer in tokenizers.items():
        _drop_unused(tokenizer, encoder=modality in tokenised, decoder=modality in spec.outputs)
    for part, module in ((CORE, core), *tokenizers.items()):
        if spec.files is None:
            _randomise(module, part)
        else:
            load_strictly(module, *state_of(part), spare=_SPARE_CORE if part == CORE else _SPARE_TOKENIZER)
        _place(module, spec.compute)
    return TerraMindGenerator(core, tokenizers, spec)


def _tokenised(spec: ModelSpec) -> list[str]:
    """Inputs that the model takes as tokens only."""
    return [m for m in spec.inputs if MODALITIES[m].raw_key is None]


def _build_parts(spec: ModelSpec, builder: Callable[..., Any]) -> tuple[nn.Module, dict[str, nn.Module]]:
    """Return the encoder-decoder with the embeddings that this job uses, and its tokenizers by modality."""
    raw = [MODALITIES[m].raw_key or MODALITIES[m].token_key for m in spec.inputs]
    targets = [MODALITIES[m].token_key for m in spec.outputs]
    # terratorch embeds all outputs but the last as inputs of the next; over several steps the last sees itself too
    seen = [*raw, targets[-1]] if spec.sampling.decoding_steps > 1 else raw
    with _NoInitialisation():
        model = builder(modalities=list(dict.fromkeys(seen)), output_modalities=targets, pretrained=False)
    names = dict.fromkeys([*_tokenised(spec), *spec.outputs])
    return model.sampler.model, {m: model.tokenizer[MODALITIES[m].token_key] for m in names}


def _drop_unused(tokenizer: nn.Module, *, encoder: bool, decoder: bool) -> None:
    """Remove the half of a tokenizer that the job does not use, before weights are asked for it."""
    unused = [] if encoder else ["encoder", "quant_proj"]
    unused += [] if decoder else ["decoder", "post_quant_proj"]
    for name in (*unused, "pipeline"):  # the pipeline is diffusers' wrapper around the decoder
        if hasattr(tokenizer, name):
            delattr(tokenizer, name)


class _NoInitialisation(TorchFunctionMode):
    """Skips random initialisation, which takes longer than loading the weights that replace it."""

    _RANDOM = frozenset(
        {"uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "xavier_uniform_", "kaiming_normal_"}
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self._RANDOM:
            return args[0] if args else (kwargs or {}).get("tensor")
        return func(*args, **(kwargs or {}))


def _place(module: nn.Module, compute: Compute) -> None:
    """Make a filled part ready: inference mode, precision, device."""
    module.eval().requires_grad_(False)
    dtype = _DTYPES[compute.precision]
    if dtype != torch.float32:
        _cast(module, dtype)
        module.to(memory_format=torch.channels_last)  # what half-precision kernels want
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.dtype == torch.float32:
                tensor.data = tensor.data.clone()  # the last of the mapped file, which can be let go then
    module.to(compute.device)


def _randomise(module: nn.Module, part: str) -> None:
    """Fill with seeded noise of a scale that keeps activations finite, the same whatever else is built."""
    norms = {id(p) for m in module.modules() if "Norm" in type(m).__name__ for p in m.parameters(recurse=False)}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("pos_emb"):
                continue
            if parameter.ndim < 2:
                parameter.fill_(1.0 if id(parameter) in norms and name.endswith("weight") else 0.0)
                continue
            generator = torch.Generator().manual_seed(noise.key_of(0, part, name)[0])
            std = 0.02 if "emb" in name or "mask_token" in name else (parameter[0].numel()) ** -0.5
            parameter.normal_(0.0, std, generator=generator)


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast what multiplies matrices; norms, position codes and what surrounds the quantiser stay float32."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d) and not ("post_mlp" in name or "quant_proj" in name):
            part.to(dtype)


class _Part(Protocol):
    """What is used of a tokenizer (terratorch's VQVAE or DiVAE)."""

    encoder: Any
    decoder: Any
    quant_proj: Any
    quantize: Any
    noise_scheduler: Any

    def prepare_input(self, x: Tensor) -> Tensor: ...
    def decode_quant(self, quant: Tensor) -> Tensor: ...


class TerraMindGenerator:
    """Generates modalities from tiles: encode, draw the tokens of each output in turn, decode them."""

    def __init__(self, core: nn.Module, tokenizers: Mapping[str, nn.Module], spec: ModelSpec) -> None:
        self.core: Any = core
        self.tokenizers: Mapping[str, Any] = tokenizers
        self.spec = spec
        self.device = torch.device(spec.compute.device)
        self._moments = {m: self._standard(MODALITIES[m]) for m in dict.fromkeys([*spec.inputs, *spec.outputs])}

    def _standard(self, modality: Modality) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(v, device=self.device)[None, :, None, None] for v in (modality.mean, modality.std))
        return mean, std

    @torch.inference_mode()
    def __call__(self, batch: TileBatch) -> dict[str, NDArray[np.float32]]:
        """Return each output `(B, channels, S, S)` float32: values in the modality's unit, logits for LULC."""
        rows, cols = (torch.from_numpy(v) for v in (batch.rows, batch.cols))
        cells = CellGrid(rows, cols, next(iter(batch.pixels.values())).shape[-1], self._noise_device)
        with self._autocast():
            tokens = self.draw(batch.pixels, cells)
        return {m: self.decode(m, tokens[m], cells).cpu().numpy() for m in self.spec.outputs}

    @property
    def _noise_device(self) -> torch.device:
        return torch.device("cpu") if self.device.type == "mps" else self.device  # noise is float64, which mps lacks

    def _autocast(self) -> Any:
        dtype = _DTYPES[self.spec.compute.precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def draw(self, pixels: Mapping[str, NDArray[np.float32]], cells: "CellGrid") -> dict[str, Tensor]:
        """Draw the tokens of every output, `(B, h, w)` int64, each conditioned on the inputs and the outputs before it."""
        seen = [self._embed_input(m, values) for m, values in pixels.items()]
        drawn: dict[str, Tensor] = {}
        for modality in self.spec.outputs:
            tokens = self._draw_modality(MODALITIES[modality], seen, cells)
            drawn[modality] = tokens.reshape(cells.shape)
            if modality != self.spec.outputs[-1]:
                seen.append(self._embed_tokens(MODALITIES[modality], tokens))
        return drawn

    def _embed_input(self, name: str, values: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        """Return an input's patch embeddings and its position-and-modality code, both `(B, N, D)`."""
        modality = MODALITIES[name]
        x = torch.from_numpy(np.ascontiguousarray(values)).to(self.device)
        if not modality.classes:
            mean, std = self._moments[name]
            x = (x - mean) / std
        if modality.raw_key is None:
            return self._embed_tokens(modality, self._encode(self.tokenizers[name], x).flatten(1))
        embedded = self.core.encoder_embeddings[modality.raw_key]({"tensor": x})
        return embedded["x"], embedded["emb"]

    def _encode(self, tokenizer: _Part, x: Tensor) -> Tensor:
        """Return the tokens of `x`, `(B, h, w)` int64. The quantiser is float32: in bf16 it keeps 5 % of its codes."""
        features = tokenizer.encoder(tokenizer.prepare_input(x))
        with torch.autocast(self.device.type, enabled=False):
            _, _, tokens = tokenizer.quantize(tokenizer.quant_proj(features.float()))
        return tokens.long()  # type: ignore[no-any-return]

    def _embed_tokens(self, modality: Modality, tokens: Tensor) -> tuple[Tensor, Tensor]:
        embedded = self.core.encoder_embeddings[modality.token_key]({"tensor": tokens})
        return embedded["x"], embedded["emb"]

    def _draw_modality(self, modality: Modality, seen: list[tuple[Tensor, Tensor]], cells: "CellGrid") -> Tensor:
        """Draw the tokens of one output, `(B, N)`: all at once, or in several steps that see what was drawn before."""
        sampling, seed = self.spec.sampling, self.spec.seed
        count = cells.rows.shape[1]
        tokens = torch.zeros(cells.rows.shape, dtype=torch.int64, device=self.device)
        schedule = linear_schedule(sampling.decoding_steps, count)
        rank = cells.order(noise.key_of(seed, modality.name, "order")).to(self.device)
        done = 0
        for step, size in enumerate(schedule):
            target = rank[:, done : done + size] if len(schedule) > 1 else None
            known = rank[:, :done] if done else None
            logits = self._logits(modality, seen, tokens, known, target)
            key = noise.key_of(seed, modality.name, "token", step)
            drawn = _draw(logits.float(), sampling, cells, target, key)
            tokens = drawn if target is None else tokens.scatter(1, target, drawn)
            done += size
        return tokens

    def _logits(
        self,
        modality: Modality,
        seen: list[tuple[Tensor, Tensor]],
        tokens: Tensor,
        known: Tensor | None,
        target: Tensor | None,
    ) -> Tensor:
        """Return logits `(B, n, V)` of the cells `target` (None: all), given the inputs and the cells `known`."""
        if known is not None:
            x, code = self._embed_tokens(modality, tokens)
            seen = [*seen, (_take(x, known), _take(code, known))]
        x, code = (torch.cat(parts, dim=1) for parts in zip(*seen, strict=True))
        context = self.core.decoder_proj_context(self.core.forward_encoder(x + code, None)) + code
        head = self.core.decoder_embeddings[modality.token_key]
        query = head.forward_embed({"tensor": tokens})["emb"]
        y = self.core.mask_token + (query if target is None else _take(query, target))
        return head.forward_logits(self.core.forward_decoder(y, context, None, None))  # type: ignore[no-any-return]

    def decode(self, name: str, tokens: Tensor, cells: "CellGrid") -> Tensor:
        """Decode tokens `(B, h, w)` to `(B, channels, S, S)` float32 in the modality's unit (logits for classes)."""
        tokenizer, modality = self.tokenizers[name], MODALITIES[name]
        quant = tokenizer.quantize.indices_to_embedding(tokens).float()
        if modality.classes:
            with self._autocast():
                return tokenizer.decode_quant(quant).float()  # type: ignore[no-any-return]
        sampling: Sampling = self.spec.sampling
        start = cells.normal(noise.key_of(self.spec.seed, name, "diffusion"), len(modality.bands)).to(self.device)

        def predict(x: Tensor, t: int) -> Tensor:
            with self._autocast():
                return tokenizer.decoder(x, t, quant)  # type: ignore[no-any-return]

        alphas = tokenizer.noise_scheduler.alphas_cumprod.to(self.device)
        x = ddim(predict, start, alphas, sampling.timesteps, sampling.clip_sigma)
        mean, std = self._moments[name]
        return x * std + mean


class CellGrid:
    """Absolute positions of a batch of tiles of `size` px: of their pixels, and of their cells on the patch grid."""

    def __init__(self, rows: Tensor, cols: Tensor, size: int, device: torch.device) -> None:
        self._pixel_rows, self._pixel_cols, self._size = rows.to(device), cols.to(device), size
        side = size // PATCH
        self.shape = (len(rows), side, side)
        first_row, first_col = (v.to(device).div(PATCH, rounding_mode="floor") for v in (rows, cols))
        index = torch.arange(side * side, device=device)
        self.rows = first_row[:, None] + index // side
        self.cols = first_col[:, None] + index % side

    def normal(self, key: tuple[int, int], channels: int) -> Tensor:
        """Return each tile's own normal noise, `(B, channels, S, S)` float32."""
        return noise.normal(key, self._pixel_rows, self._pixel_cols, channels, self._size, self._size)

    def order(self, key: tuple[int, int]) -> Tensor:
        """Return each tile's cells in the order in which they are decoded, `(B, N)` int64."""
        return noise.order(key, self.rows, self.cols).argsort(dim=1, stable=True)


def _draw(logits: Tensor, sampling: Sampling, cells: CellGrid, target: Tensor | None, key: tuple[int, int]) -> Tensor:
    """Draw tokens `(B, n)` for logits `(B, n, V)` with the noise of their own cells."""
    rows, cols = cells.rows, cells.cols
    if target is not None:
        rows, cols = (v.gather(1, target.to(v.device)) for v in (rows, cols))
    rows, cols = rows.reshape(-1, 1), cols.reshape(-1, 1)

    def gumbel(at: slice, codes: Tensor) -> Tensor:
        return noise.gumbel(key, rows[at], cols[at], codes.to(rows.device), logits.shape[-1]).to(codes.device)

    return draw_tokens(logits.flatten(0, 1), sampling, gumbel).reshape(logits.shape[:2])


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Gather `(B, n, D)` from `(B, N, D)` by `(B, n)`."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
