"""Where a tile's time goes, beside the time that its arithmetic takes at this device's ceiling.

The ceilings are measured: a large matrix product, and the convolution that the U-Net mostly consists of (3 x 3, 512
channels, channels-last). The arithmetic is counted as the tile is made. Matrix products count at the ceiling of products,
convolutions at that of convolutions.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

from tests.bench import _measure as m


@dataclass(frozen=True)
class Ceilings:
    """10**12 operations a second by precision, and what `--precision auto` is."""

    precision: str
    products: dict[str, float]
    convolutions: dict[str, float]


def ceilings(options: m.Options) -> Ceilings:
    """Measure the device's ceilings."""
    from tmtool.models.device import resolve
    from tmtool.models.measures import ceiling_of

    compute = resolve(options.device)
    found = {p: ceiling_of(replace(compute, precision=p)) for p in dict.fromkeys(("fp32", compute.precision, "bf16"))}
    return Ceilings(
        compute.precision, *({p: getattr(c, kind) for p, c in found.items()} for kind in ("products", "convolutions"))
    )


class Stages:
    """Times parts of a model and counts their arithmetic; a part within a part counts for itself only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.flop: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self.calls: dict[str, int] = defaultdict(int)
        self._open: list[tuple[str, float]] = []
        self._last = 0.0
        self.counter: Any = None

    def enter(self, name: str) -> None:
        """Begin a part."""
        self._charge()
        self._open.append((name, 0.0))
        self.calls[name] += 1

    def leave(self) -> None:
        """End the part that was begun last."""
        self._charge()
        self._open.pop()

    def _charge(self) -> None:
        """Put what passed since the last change on the innermost part."""
        from tmtool.models.measures import counted_by

        m.synchronise()
        now = time.perf_counter()
        if self._open:
            name = self._open[-1][0]
            self.seconds[name] += now - self._last
            if self.counter is not None:
                work = counted_by(self.counter)
                self.flop[name]["convolution"] += work.convolutions
                self.flop[name]["product"] += work.products
        self._last = time.perf_counter()

    def around(self, owner: Any, attribute: str, name: str | Callable[..., str]) -> None:
        """Make calls of a function or method a part of that name."""
        call = getattr(owner, attribute)

        @wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.enter(name if isinstance(name, str) else name(*args))
            try:
                return call(*args, **kwargs)
            finally:
                self.leave()

        setattr(owner, attribute, timed)


def profile(options: m.Options) -> tuple[dict[str, tuple[float, float, float]], int]:
    """Return of each part of a tile seconds, and operations in products and in convolutions; and parameters in millions.

    Times are medians over several tiles, without counting; the counting run is one of its own.
    """
    from statistics import median

    from tests.bench import _models, _scenes
    from tmtool.modality import MODALITIES
    from tmtool.models.measures import counter
    from tmtool.models.terramind import generator

    model: Any = _models.tmtool_model(options, "generate")
    batch = _models.batch_of(_scenes.tile(m.CROP))
    stages = Stages()
    last = {"name": ""}

    def drawing(modality: Any, *_: Any) -> str:
        last["name"] = modality.name
        return f"transformer and embeddings, {modality.name}"

    def decoder(_: Any, name: str, *__: Any) -> str:
        return f"{'ViT' if MODALITIES[name].classes else 'U-Net'} decoder, {name}"

    stages.around(model, "_draw_modality", drawing)
    stages.around(generator, "draw_tokens", lambda *_: f"drawing tokens, {last['name']}")
    stages.around(generator, "decode", decoder)

    def run() -> None:
        stages.enter("the rest: input, noise, output")
        model(batch)
        stages.leave()

    run()
    turns = []
    for _ in range(options.repeat):
        stages.seconds.clear()
        run()
        turns.append(dict(stages.seconds))

    stages.counter = counter()
    with stages.counter:
        run()
    return {
        name: (
            median(t[name] for t in turns),
            stages.flop[name]["product"],
            stages.flop[name]["convolution"],
        )
        for name in turns[0]
    }


def measure(options: m.Options) -> m.Rows:
    """Set every stage's time beside its floor."""
    from tests.bench import _scenes

    found = m.in_own_process(ceilings, options)
    for precision in found.products:
        what, conv = f"ceiling, {precision}", found.convolutions[precision]
        yield m.Row(f"{what}, matrix product", f"{found.products[precision]:.3g} TFLOP/s")
        yield m.Row(f"{what}, convolution 3 x 3 of 512 channels", f"{conv:.3g} TFLOP/s")
    stages = m.in_own_process(profile, options)
    total = [sum(column) for column in zip(*stages.values(), strict=True)]
    for name, (took, product, convolution) in {**stages, "one tile": total}.items():
        floor = product / found.products[found.precision] + convolution / found.convolutions[found.precision]
        says = f"{took / floor:.2f} times the floor" if floor > 0.01 * took else ""
        beside = (
            f"{m.seconds(floor)} floor ({product + convolution:.3g} TFLOP)" if product + convolution else "no products"
        )
        yield m.Row(f"{name}, {found.precision}", m.seconds(took), beside, says)
    side = min(options.scene, 2048)
    scene = m.in_own_process(_scenes.make_scene, options.scratch, side, side)
    costs = m.compared(options.scene_repeat, {"": (_pipeline, scene, options)})[""]
    wall = m.median_of(costs) / costs[0].tiles
    yield m.Row(
        f"read, stitch, write: a tile of {side} x {side} px without a model", m.seconds(wall), "beside the model"
    )


def _pipeline(scene: Any, options: m.Options) -> Callable[[], m.SceneCost]:
    return lambda: m.run_pass_through(scene, options.scratch / "out")
