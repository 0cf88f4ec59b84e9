"""How near outputs come to those of the same model in float32 and with many diffusion steps: its own limit.

All is judged on the same tiles, with the same start noise. Imports no torch until a model is run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmtool.grid import TileBatch
from tmtool.models.entry import ModelSpec, TileModel
from tmtool.models.registry import find

LIMIT_STEPS = 500
"""Steps of ddim after which more of them change next to nothing."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Reference:
    """What the limit gives for a batch: the tokens drawn, int64, and the outputs as the model gives them."""

    tokens: Arrays
    outputs: Arrays


@dataclass(frozen=True)
class Likeness:
    """How near one output comes to the limit; None is what it has not.

    `distance` is the mean absolute difference in the modality's pretraining standard deviations, and `classes` the share of
    pixels of the same class, both from the limit's own tokens; `end_to_end` is the one or the other with the tokens that
    were drawn. `spread` is the limit's standard deviation in the same unit. `tokens` is the share of equal tokens, `cosine`
    the mean of vectors with those of the limit.
    """

    distance: float | None = None
    spread: float | None = None
    classes: float | None = None
    end_to_end: float | None = None
    tokens: float | None = None
    cosine: float | None = None

    def not_worse_than(self, other: "Likeness") -> bool:
        """Whether nothing of it is farther from the limit."""
        farther = (self.distance or 0.0) > (other.distance or 0.0)
        shares = ((self.classes, other.classes), (self.tokens, other.tokens), (self.cosine, other.cosine))
        return not farther and all((own or 0.0) >= (its or 0.0) for own, its in shares)


def limit_of(spec: ModelSpec) -> ModelSpec:
    """Return the spec of the limit of a spec's decoders."""
    spec = replace(spec, compute=replace(spec.compute, precision="fp32"))
    return sampled(spec, solver="ddim", timesteps=LIMIT_STEPS)


def sampled(spec: ModelSpec, **sampling: Any) -> ModelSpec:
    """Return a spec that samples otherwise."""
    request = spec.request
    return replace(spec, request=replace(request, sampling=replace(request.sampling, **sampling)))


def drawn(model: Any, batch: TileBatch, given: Arrays | None = None) -> tuple[Arrays, Arrays]:
    """Run a model; return the tokens that it drew, `(B, h, w)` int64 by modality, and its outputs.

    Tokens that are `given` take the place of those that it would draw. A model that draws none has no tokens.
    """
    if not hasattr(model, "draw"):
        return {}, model(batch)
    import torch

    seen: dict[str, Any] = {}
    real = model.draw

    def draw(embedded: Any, cells: Any) -> Any:
        if given is None:
            seen.update(real(embedded, cells))
        else:
            seen.update({m: torch.from_numpy(tokens).to(model.device) for m, tokens in given.items()})
        return dict(seen)

    model.draw = draw
    try:
        outputs = model(batch)
    finally:
        del model.draw
    return {m: tokens.cpu().numpy() for m, tokens in seen.items()}, outputs


def reference_of(model: TileModel, batch: TileBatch) -> Reference:
    """Return what the model of a `limit_of` gives."""
    return Reference(*drawn(model, batch))


def judged(model: TileModel, spec: ModelSpec, batch: TileBatch, limit: Reference) -> dict[str, Likeness]:
    """Hold a model against its limit on the limit's batch; by output, and by modality for tokens that are not decoded."""
    tokens, whole = drawn(model, batch)
    equal = {m: float((own == limit.tokens[m]).mean()) for m, own in tokens.items()}
    same = all(share == 1 for share in equal.values())
    decoded = whole if same else drawn(model, batch, limit.tokens)[1]
    found = {m: Likeness(tokens=share) for m, share in equal.items()}
    for name, values in limit.outputs.items():
        if name not in spec.request.decoded:
            if name not in tokens:
                found[name] = Likeness(cosine=_cosine(decoded[name], values))
        elif spec.modality(name).classes:
            shares = (float((made[name].argmax(1) == values.argmax(1)).mean()) for made in (decoded, whole))
            found[name] = Likeness(classes=next(shares), end_to_end=next(shares), tokens=equal.get(name))
        else:
            near, far = (distance(spec, name, made[name], values) for made in (decoded, whole))
            spread = float(((values - _moments(spec, name)[0]) / _moments(spec, name)[1]).std())
            found[name] = Likeness(distance=near, spread=spread, end_to_end=far, tokens=equal.get(name))
    return found


def distance(spec: ModelSpec, name: str, a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the mean absolute difference of an output `(B, C, S, S)`, in pretraining standard deviations of its bands."""
    return float((np.abs(a - b) / _moments(spec, name)[1]).mean())


def _moments(spec: ModelSpec, name: str) -> list[NDArray[Any]]:
    return [np.asarray(v)[None, :, None, None] for v in find(spec.name).moments(spec.modality(name))]


def _cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the mean cosine of vectors `(B, D, h, w)`; of the same ones it is 1."""
    if np.array_equal(a, b):
        return 1.0
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean())
