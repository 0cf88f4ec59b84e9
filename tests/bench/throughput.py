"""Throughput: the command end to end beside its model alone, and the model by batch size.

The model that runs alone is the very one that the command built, on the batches that the command gave it.
"""

import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench import _measure as m

_KEPT = 4
"""Batches that the model alone runs through, again and again."""


@dataclass
class Keeper:
    """Stands around a model that a run builds: keeps its first batches, and adds up what its calls take on a GPU."""

    model: Any
    batches: list[Any] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)

    def __call__(self, batch: Any) -> Mapping[str, Any]:
        """Call the model."""
        import torch

        if len(self.batches) < _KEPT:
            self.batches.append(batch)
        cuda = torch.cuda.is_available()
        pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if cuda else []
        for event in pair[:1]:
            event.record()
        outputs = self.model(batch)
        for event in pair[1:]:
            event.record()
        self.events.append(pair)
        return outputs

    def alone(self, least_s: float) -> float:
        """Return tiles a second of the model alone, on the kept batches for at least so many seconds.

        On a thread that ends with it, as the command's does: were the main thread to call the model, libgomp would count
        its team too, find more threads than cores, and have threads sleep where they spin while they wait.
        """
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(self._alone, least_s).result()

    def _alone(self, least_s: float) -> float:
        tiles, start = 0, time.perf_counter()
        m.synchronise()
        while tiles == 0 or time.perf_counter() - start < least_s:
            for batch in self.batches:
                self.model(batch)
                tiles += len(batch.rows)
        m.synchronise()
        return tiles / (time.perf_counter() - start)


@dataclass(frozen=True)
class Found:
    """What one turn gave: the scene's cost, tiles a second of the model alone, share of the time that the GPU was busy."""

    scene: m.SceneCost
    model_rate: float
    busy: float | None
    tflop: float
    device: str


def measure_task(options: m.Options, task: str, scene: Path, warm: Path) -> list[Found]:
    """Run the scene and the model alone in turn, in this process."""
    from tests.bench import _models
    from tmtool import models
    from tmtool.models.device import resolve
    from tmtool.scene.run import Runner

    keepers: list[Keeper] = []
    specs: list[Any] = []
    real = models.build

    def build(spec: Any) -> Any:
        specs.append(spec)
        keepers.append(Keeper(real(spec)))
        return keepers[-1]

    models.build = build
    runner, products = Runner(_models.job(options, task)), options.scratch / "out"
    gpu = resolve(options.device).device.startswith("cuda")
    m.run_scene(runner, scene if gpu else warm, products)  # a GPU's batch may be larger than the small scene
    keeper, spec = keepers[0], specs[0]
    found = []
    for _ in range(options.scene_repeat):
        before = keeper.alone(1.0 if options.quick else 5.0)
        keeper.events.clear()
        with gpu_busy(spec.compute.device) as sampled:
            cost = m.run_scene(runner, scene, products)
        events_ms = sum(a.elapsed_time(b) for a, b in filter(None, keeper.events))
        shares = sampled or ([events_ms / 1e3 / cost.wall_s] if events_ms else [])
        after = keeper.alone(1.0 if options.quick else 5.0)
        busy = sum(shares) / len(shares) if shares else None
        tflop = models.find(options.model).tflop_per_tile(spec, m.CROP)
        found.append(Found(cost, (before + after) / 2, busy, tflop, spec.compute.device))
    return found


@contextmanager
def gpu_busy(device: str) -> Iterator[list[float]]:
    """Give a list that holds afterwards the shares of time that nvidia-smi saw a kernel on the GPU, a tenth of a second each."""
    shares: list[float] = []
    query = ["nvidia-smi", f"--id={device.partition(':')[2] or 0}", "--query-gpu=utilization.gpu"]
    try:
        if not device.startswith("cuda"):
            raise FileNotFoundError
        sampler = subprocess.Popen([*query, "--format=csv,noheader,nounits", "-lms", "100"], stdout=subprocess.PIPE)
    except FileNotFoundError:  # then the calls' own CUDA events have to do
        yield shares
        return
    yield shares
    sampler.terminate()
    lines = sampler.communicate()[0].decode().split()
    shares += [int(line) / 100 for line in lines if line.isdigit()]


def rates(options: m.Options, task: str, ceiling_tflops: float | None = None) -> m.Rows:
    """Compare a command with its model alone."""
    from tests.bench import _scenes

    side = options.scene
    scene = m.in_own_process(_scenes.make_scene, options.scratch, side, side)
    small = min(side, 600)
    warm = m.in_own_process(_scenes.make_scene, options.scratch, small, small)
    found = m.in_own_process(measure_task, options, task, scene, warm)
    whole = median(f.scene.tiles / f.scene.wall_s for f in found)
    alone = median(f.model_rate for f in found)
    inside = median(f.scene.forward_s / f.scene.wall_s for f in found)
    what = f"{task}, scene of {side} x {side} px ({found[0].scene.tiles} tiles), file to COGs"
    yield m.Row(
        what, f"{whole:.3g} tiles/s", f"{alone:.3g} tiles/s, its model alone", f"{m.share(whole / alone)} of it"
    )
    yield m.Row(f"{task}: of the wall time, in the model", m.share(inside))
    if found[0].busy is not None:
        yield m.Row(f"{task}: GPU busy while the scene runs", m.share(median(f.busy or 0 for f in found)))
    if ceiling_tflops:
        for name, rate in (("end to end", whole), ("model alone", alone)):
            reached = rate * found[0].tflop
            says = f"{m.share(reached / ceiling_tflops)} of it"
            beside = f"{ceiling_tflops:.3g} TFLOP/s, a large matrix product"
            yield m.Row(
                f"{task}: arithmetic, {name} ({found[0].tflop:.3g} TFLOP a tile)",
                f"{reached:.3g} TFLOP/s",
                beside,
                says,
            )


def measure(options: m.Options) -> m.Rows:
    """Compare `generate` with its model alone, and with the device's rate of arithmetic."""
    from tests.bench.floor import ceilings

    found = m.in_own_process(ceilings, options)
    yield from rates(options, "generate", found.products[found.precision])


def batch_rates(options: m.Options) -> dict[int, float | str]:
    """Return tiles a second of the model by batch size, twice as large each time; in the end why it went no further."""
    import numpy as np

    from tests.bench import _models, _scenes
    from tmtool.models.device import resolve
    from tmtool.models.memory import is_out_of_memory

    model, tile = _models.tmtool_model(options, "generate"), _scenes.tile(m.CROP)
    most = (2 if options.quick else 8) if resolve(options.device).device == "cpu" else 128
    found: dict[int, float | str] = {}
    size = 1
    while size <= most:
        batch = _models.batch_of(np.repeat(tile, size, axis=0))
        try:
            m.cost_of(lambda batch=batch: model(batch))
            costs = [m.cost_of(lambda batch=batch: model(batch)) for _ in range(options.repeat)]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            found[size] = "out of memory"
            break
        found[size] = size / m.median_of(costs)
        size *= 2
    return found


def measure_batches(options: m.Options) -> m.Rows:
    """Give the model's throughput by batch size."""
    found = m.in_own_process(batch_rates, options)
    for size, rate in found.items():
        what = f"generate, model alone, {size} tile{'s' if size > 1 else ''} a batch"
        if isinstance(rate, str):
            yield m.Row(what, rate)
        else:
            yield m.Row(
                what, f"{rate:.3g} tiles/s", f"{found[1]:.3g} tiles/s, one by one", f"{rate / found[1]:.2f} times"
            )
