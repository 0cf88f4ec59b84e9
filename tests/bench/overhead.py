"""Share of tmtool's wall time that is not the model's forward, and the speed of the pipeline alone.

The model is a stand-in that sleeps and gives its input back. Sleeping leaves the cores to the pipeline, as a model on a
GPU does; a model on the CPU would compete with it for them.
"""

from collections.abc import Callable
from pathlib import Path

from tests.bench import _measure as m

FORWARD_MS = 150


def pipeline(scene: Path, products: Path, forward_ms: float) -> Callable[[], m.SceneCost]:
    """Return the pipeline on a scene around a model that sleeps."""
    return lambda: m.run_pass_through(scene, products, forward_ms / 1e3)


def measure(options: m.Options) -> m.Rows:
    """Run the scene in turn with the stand-in's forward time and without any."""
    from tests.bench import _scenes

    side, products = options.scene, options.scratch / "out"
    scene = m.in_own_process(_scenes.make_scene, options.scratch, side, side)
    sides = {ms: (pipeline, scene, products, ms) for ms in (FORWARD_MS, 0)}
    costs = m.compared(options.scene_repeat, {str(ms): side for ms, side in sides.items()})
    for ms, found in costs.items():
        wall, cpu, forward, cog = (m.median_of(found, k) for k in ("wall_s", "cpu_s", "forward_s", "cog_s"))
        what = f"scene of {side} x {side} px around a model that sleeps {ms} ms a batch"
        says = f"{m.share(1 - forward / wall)} outside the model, {m.share(cog / wall)} after the last tile"
        yield m.Row(what, f"{wall:.2f} s", f"{forward:.2f} s of it in the model", says if float(ms) else "")
        yield m.Row(f"the same, rate and CPU time ({ms} ms)", f"{side**2 / wall / 1e6:.2f} MPix/s", f"{cpu:.2f} CPU s")
