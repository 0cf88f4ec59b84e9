"""What each task makes of a model's outputs. A new task is one entry here and its command."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tmtool.modality import MODALITIES
from tmtool.products import Product, generated


@dataclass(frozen=True)
class Task:
    """`products` turns the names of a job's outputs into its products; `on_patch_grid` says which grid they lie on."""

    name: str
    products: Callable[[Sequence[str]], tuple[Product, ...]]
    on_patch_grid: bool = False


TASKS: dict[str, Task] = {
    "generate": Task("generate", lambda outputs: tuple(generated(MODALITIES[m]) for m in outputs)),
}
