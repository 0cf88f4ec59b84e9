"""Generating modalities: the tokens of each output are drawn in turn, then decoded to pixels.

The loop is tmtool's own, because terratorch's draws from global generators and decodes in one step only.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tmtool.grid import TileBatch
from tmtool.modality import Modality
from tmtool.models import ModelSpec, Sampling
from tmtool.models import _noise as noise
from tmtool.models._inputs import Base, CellGrid, Embeddings, InputEmbedding, Tokenizer
from tmtool.models.terramind._sampling import SOLVERS, draw_tokens, linear_schedule
from tmtool.models.terramind._sequences import chooser, draw_sequence, packed
from tmtool.models.text import SEQUENCES, START, Vocabulary

Context = tuple[Tensor, Tensor | None]
"""What the decoder sees, `(B, N, D)`, and which of it is padding, `(B, N)`, or None if nothing is."""


class Drawer(InputEmbedding):
    """Draws the tokens of outputs, each conditioned on the inputs and on the outputs before it.

    `vocabularies` are the words of outputs that are sequences.
    """

    def __init__(
        self,
        core: nn.Module,
        tokenizers: Mapping[str, nn.Module],
        spec: ModelSpec,
        vocabularies: Mapping[str, Vocabulary] | None = None,
    ) -> None:
        self.core: Any = core
        self.vocabularies = vocabularies or {}
        super().__init__(self.core.encoder_embeddings, tokenizers, spec)
        self._encoded: tuple[list[Embeddings], Context] | None = None

    def draw(self, seen: list[Embeddings], cells: CellGrid) -> dict[str, Tensor]:
        """Return the tokens of every output, int64: `(B, h, w)`, or `(B, length)` of a sequence.

        Each output but the last is seen by those after it. A sequence among them is seen as one that begins until it is drawn,
        as in terratorch. Of several draws of a tile `seen` holds one: its encoding is kept as long as the list is the same.
        """
        first: Context | None = None
        if cells.tiles is None:
            seen = list(seen)
        else:
            tiles = cells.tiles.to(self.device)
            context, hidden = self._context_of(seen)
            first = context[tiles], None if hidden is None else hidden[tiles]
            seen = [part.at(tiles) for part in seen]
        drawn: dict[str, Tensor] = {}
        earlier = self.spec.outputs[:-1]
        begun = {m: self._embed_bodies(m, [[START]] * cells.shape[0], 1) for m in earlier if m in SEQUENCES}
        for name in self.spec.outputs:
            known = [*seen, *begun.values()]
            if name in SEQUENCES:
                drawn[name] = self._draw_sequence(name, known, cells)
            else:
                drawn[name] = self._draw_modality(self.spec.modality(name), known, cells, first).reshape(cells.shape)
            first = None
            if name in earlier:
                begun.pop(name, None)
                seen.append(self._embed_drawn(name, drawn[name]))
        return drawn

    def _embed_drawn(self, name: str, tokens: Tensor) -> Embeddings:
        if name not in SEQUENCES:
            return self.embed_tokens(self.spec.modality(name).token_key, tokens.flatten(1))
        bodies = [self.vocabularies[name].body(ids) for ids in tokens.tolist()]
        return self._embed_bodies(name, bodies, SEQUENCES[name].length - 1)

    def _embed_bodies(self, name: str, bodies: list[list[int]], length: int) -> Embeddings:
        return self.embed_sequence(name, *packed(bodies, length, self.device))

    def _draw_sequence(self, name: str, seen: list[Embeddings], cells: CellGrid) -> Tensor:
        choose = chooser(self.spec.request.sampling, self.spec.seed, name, *cells.origins)
        return draw_sequence(self.core, SEQUENCES[name], *self._context(seen), choose)

    def _context_of(self, seen: list[Embeddings]) -> "Context":
        """Return the context of a list of inputs, which is kept for the next call with the same."""
        if self._encoded is None or self._encoded[0] is not seen:
            self._encoded = (seen, self._context(seen))
        return self._encoded[1]

    def _draw_modality(
        self, modality: Modality, seen: list[Embeddings], cells: "CellGrid", first: "Context | None" = None
    ) -> Tensor:
        """Draw the tokens of one output, `(B, N)`: all at once, or in several steps that see what was drawn before.

        `first` is the context of what is seen, if it is known already.
        """
        sampling, seed = self.spec.request.sampling, self.spec.seed
        count = cells.rows.shape[1]
        tokens = torch.zeros(cells.rows.shape, dtype=torch.int64, device=self.device)
        schedule = linear_schedule(sampling.decoding_steps, count)
        rank = cells.order(cells.key(seed, modality.name, "order")).to(self.device)
        done = 0
        for step, size in enumerate(schedule):
            target = rank[:, done : done + size] if len(schedule) > 1 else None
            known = rank[:, :done] if done else None
            context = (
                first if first is not None and known is None else self._context_with(modality, seen, tokens, known)
            )
            logits = self._logits(modality, tokens, target, context)
            key = cells.key(seed, modality.name, "token", step)
            drawn = _draw(logits.float(), sampling, cells, target, key)
            tokens = drawn if target is None else tokens.scatter(1, target, drawn)
            done += size
        return tokens

    def _context_with(
        self, modality: Modality, seen: list[Embeddings], tokens: Tensor, known: Tensor | None
    ) -> "Context":
        """Return the context of what is seen, and of the cells `known` of the modality itself."""
        if known is not None:
            x, code, _ = self.embed_tokens(modality.token_key, tokens)
            seen = [*seen, Embeddings(_take(x, known), _take(code, known))]
        return self._context(seen)

    def _logits(self, modality: Modality, tokens: Tensor, target: Tensor | None, given: "Context") -> Tensor:
        """Return logits `(B, n, V)` of the cells `target` (None: all) in a context."""
        context, hidden = given
        mask = None if hidden is None else hidden[:, None]
        head = self.core.decoder_embeddings[modality.token_key]
        query = head.forward_embed({"tensor": tokens})["emb"]
        y = self.core.mask_token + (query if target is None else _take(query, target))
        return head.forward_logits(self.core.forward_decoder(y, context, mask, None))  # type: ignore[no-any-return]

    def _context(self, seen: list[Embeddings]) -> "Context":
        """Return the context of inputs."""
        x, code = (torch.cat(parts, dim=1) for parts in zip(*((part.x, part.code) for part in seen), strict=True))
        hidden = None
        if any(part.hidden is not None for part in seen):
            none = [torch.zeros(part.x.shape[:2], dtype=torch.bool, device=x.device) for part in seen]
            hidden = torch.cat(
                [n if part.hidden is None else part.hidden for part, n in zip(seen, none, strict=True)], 1
            )
        encoded = self.core.forward_encoder(x + code, None if hidden is None else hidden[:, None])
        return self.core.decoder_proj_context(encoded) + code, hidden


class Generator(Drawer):
    """Generates modalities from tiles: embed, draw the tokens of each output in turn, decode them.

    `coords` is terratorch's tokenizer of coordinates, where places are among the inputs.
    """

    def __init__(
        self,
        core: nn.Module,
        tokenizers: Mapping[str, nn.Module],
        spec: ModelSpec,
        coords: Any = None,
        vocabularies: Mapping[str, Vocabulary] | None = None,
    ) -> None:
        super().__init__(core, tokenizers, spec, vocabularies)
        self.coords = coords
        self._embedded_last: tuple[Any, list[Embeddings]] | None = None

    @torch.inference_mode()
    def __call__(self, batch: TileBatch) -> dict[str, NDArray[Any]]:
        """Return each output `(B, channels, S, S)` float32: values in the modality's unit, logits for LULC.

        Of a sequence what it says, `(B, channels, 1, 1)` as `tmtool.files.sayings` has it. Inputs are embedded and encoded once
        for consecutive batches of draws of the same pixels.
        """
        cells = CellGrid.of(batch, next(iter(batch.pixels.values())).shape[-1], self.noise_device)
        with self.autocast():
            tokens = self.draw(self._seen(batch), cells)
        found = {m: decode(self, m, self.tokenizers[m], tokens[m], cells) for m in self.spec.request.decoded}
        said = {m: self._said(m, tokens[m]) for m in self.vocabularies}
        return self.fetched(found) | said

    def _seen(self, batch: TileBatch) -> list[Embeddings]:
        if batch.draws is not None and self._embedded_last is not None and self._embedded_last[0] is batch.pixels:
            return self._embedded_last[1]
        seen = [self.embed_input(m, values) for m, values in batch.pixels.items()]
        seen += self.embed_lonlat(self.coords, batch.lonlat)
        if batch.draws is not None:
            self._embedded_last = (batch.pixels, seen)
        return seen

    def _said(self, name: str, tokens: Tensor) -> NDArray[Any]:
        """Return what a sequence's tokens `(B, length)` say."""
        values = [self.vocabularies[name].said(name, ids) for ids in tokens.tolist()]
        return np.stack(values)[:, :, None, None]


def decode(model: Base, name: str, tokenizer: Tokenizer, tokens: Tensor, cells: CellGrid) -> Tensor:
    """Decode tokens `(B, h, w)` to `(B, channels, S, S)` float32 in the modality's unit (logits for classes).

    A batch longer than decoders should take is decoded in parts of one size; the last part is padded with the last tile.
    """
    total, size = len(tokens), min(model.decoder_batch, len(tokens))
    if size == total:
        return _decode(model, name, tokenizer, tokens, cells)
    parts = []
    for start in range(0, total, size):
        tiles = torch.arange(start, start + size, device=tokens.device).clamp(max=total - 1)
        parts.append(_decode(model, name, tokenizer, tokens[tiles], cells.part(tiles)))
    return torch.cat(parts)[:total]


def _decode(model: Base, name: str, tokenizer: Tokenizer, tokens: Tensor, cells: CellGrid) -> Tensor:
    modality, sampling = model.spec.modality(name), model.spec.request.sampling
    quant = tokenizer.quantize.indices_to_embedding(tokens).float()
    if modality.classes:
        with model.autocast():
            return tokenizer.decode_quant(quant).float()
    key = cells.key(model.spec.seed, name, "diffusion")
    # with the strides of what comes after it, whatever it was cut from: compiled networks are made for them
    start = cells.normal(key, len(modality.bands)).to(model.device).clone(memory_format=torch.contiguous_format)

    def predict(x: Tensor, t: int) -> Tensor:
        # filled on the device: a number would be copied from the host, and the copy would wait for the device
        step = torch.full((1,), t, device=model.device)
        with model.autocast():
            return tokenizer.decoder(x, step, quant)  # type: ignore[no-any-return]

    alphas = tokenizer.noise_scheduler.alphas_cumprod.to(model.device, non_blocking=True)
    x = SOLVERS[sampling.solver](predict, start, alphas, sampling.steps, sampling.clip_sigma)
    mean, std = model.moments[name]
    return x * std + mean


def _draw(logits: Tensor, sampling: Sampling, cells: CellGrid, target: Tensor | None, key: noise.Key) -> Tensor:
    """Draw tokens `(B, n)` for logits `(B, n, V)` with the noise of their own cells."""
    rows, cols = cells.rows, cells.cols
    if target is not None:
        rows, cols = (v.gather(1, target.to(v.device)) for v in (rows, cols))
    count = rows.shape[1]
    rows, cols = rows.reshape(-1, 1), cols.reshape(-1, 1)

    def gumbel(at: Tensor, codes: Tensor) -> Tensor:
        at = at.to(rows.device)
        return noise.gumbel(
            cells.key_at(key, at, count), rows[at], cols[at], codes.to(rows.device), logits.shape[-1]
        ).to(codes.device)

    return draw_tokens(logits.flatten(0, 1), sampling, gumbel).reshape(logits.shape[:2])


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Gather `(B, n, D)` from `(B, N, D)` by `(B, n)`."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
