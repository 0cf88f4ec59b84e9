"""Model specs in few words, by the name of the task."""

from typing import Any

from tmtool.modality import MODALITIES
from tmtool.models import Decoding, Embedding, Encoding, Generation, ModelSpec, Moments, Request, Sampling, find

_REQUESTS: dict[str, type[Request]] = {
    "generate": Generation,
    "tokenize": Encoding,
    "reconstruct": Decoding,
    "embed": Embedding,
}


def spec_of(
    name: str,
    task: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...] = (),
    *,
    sampling: Sampling | None = None,
    request: dict[str, Any] | None = None,
    **kwargs: Any,
) -> ModelSpec:
    """Return the spec of a task; `request` is what else its request takes, `kwargs` what else the spec does."""
    asked = _REQUESTS[task](outputs, sampling or Sampling(), **(request or {}))
    return ModelSpec(name, asked, inputs, **kwargs)


def moments_of(modality: str) -> Moments:
    """Return TerraMind's pretraining mean and standard deviation of each band of a modality."""
    return find("base").moments(MODALITIES[modality])
