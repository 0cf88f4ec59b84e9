"""`embed` and `tokenize` beside what TerraTorch's users do: the backbone, or the tokenizer, a tile at a time in fp32.

Both are given DN in memory and give values in memory; standardising is part of it on both sides.
"""

from collections.abc import Callable

from tests.bench import _measure as m
from tests.bench import throughput

TILES = 8
PRECISIONS = {"embed": ("auto", "fp32"), "tokenize": ("auto", "bf16")}
"""What is compared; auto is fp32 for tokenize, since rounding turns some tokens into others."""


def tmtool(options: m.Options, task: str, precision: str) -> Callable[[], m.Cost]:
    """Return tmtool's adapter on some tiles, in batches as the command makes them."""
    import numpy as np

    from tests.bench import _models, _scenes
    from tmtool.models.device import batch_size, resolve

    model = _models.tmtool_model(options, task, precision)
    size = min(options.batch_size or batch_size(resolve(options.device)), TILES)
    batch = _models.batch_of(np.repeat(_scenes.tile(m.CROP), size, axis=0), first=-16)
    return lambda: m.cost_of(lambda: [model(batch) for _ in range(TILES // size)])


def terratorch(options: m.Options, task: str) -> Callable[[], m.Cost]:
    """Return TerraTorch's module on as many tiles, one by one."""
    import torch

    from tests.bench import _models, _scenes
    from tmtool.models.device import resolve

    device = resolve(options.device).device
    forward = {"embed": _models.terratorch_embed, "tokenize": _models.terratorch_tokenize}[task](options)
    pixels = torch.from_numpy(_scenes.tile(m.CROP))

    def tile() -> None:
        found = forward(pixels.to(device))
        (found[-1] if isinstance(found, list) else found).cpu()

    return lambda: m.cost_of(lambda: [tile() for _ in range(TILES)])


def measure(options: m.Options) -> m.Rows:
    """Compare tiles in memory, and the commands with their models alone."""
    for task in ("embed", "tokenize"):
        sides = {p: (tmtool, options, task, p) for p in PRECISIONS[task]}
        costs = m.compared(options.repeat, {**sides, "terratorch": (terratorch, options, task)})
        theirs = m.median_of(costs.pop("terratorch")) / TILES
        for precision, own in costs.items():
            wall = m.median_of(own) / TILES
            yield m.Row(
                f"{task}, a tile of {m.CROP} px, memory to memory, tmtool --precision {precision}",
                m.seconds(wall),
                f"{m.seconds(theirs)} terratorch, fp32, one by one",
                f"{theirs / wall:.2f} times as fast",
            )
        yield from throughput.rates(options, task)
