"""What each task makes of a model's outputs. A new task is one entry here, what its model is called with, and its command."""

from collections.abc import Callable
from dataclasses import dataclass

from tmtool.modality import MODALITIES
from tmtool.models import ModelSpec
from tmtool.products import Product, Vectors, embedded, generated, tokenised, validity


@dataclass(frozen=True)
class Task:
    """`products` are what a job writes, by what its model computes; `on_patch_grid` says that tiles must lie on it.

    Tasks `by_tokenizer` take the modalities that have one, one at a time. With `from_tokens` the model's input is not
    pixels but tokens, of a token raster or made on the way.
    """

    products: Callable[[ModelSpec, Vectors], tuple[Product, ...]]
    on_patch_grid: bool = True
    by_tokenizer: bool = False
    from_tokens: bool = False


TASKS: dict[str, Task] = {
    "generate": Task(lambda spec, _: tuple(generated(MODALITIES[m]) for m in spec.outputs), on_patch_grid=False),
    "tokenize": Task(
        lambda spec, _: (validity(spec.inputs[0]), tokenised(MODALITIES[spec.inputs[0]])),
        by_tokenizer=True,
    ),
    "reconstruct": Task(
        lambda spec, _: tuple(generated(MODALITIES[m], f"{m}_rec", compared=True) for m in spec.outputs),
        by_tokenizer=True,
        from_tokens=True,
    ),
    "embed": Task(
        lambda spec, vectors: tuple(
            embedded(e.name, e.modality or "", e.channels, e.layer, vectors) for e in spec.embedded
        )
    ),
}
