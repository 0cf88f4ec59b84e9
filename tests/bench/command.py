"""`tmtool bench` beside the parts that measure the same here: one tile of S2L2A to S1GRD and LULC, 10 timesteps.

Both take turns, each turn of the command in a process of its own, as the command itself has it.
"""

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tests.bench import _measure as m
from tests.bench import floor, generate

if TYPE_CHECKING:
    from tmtool.bench.measure import Figures


def figures(options: m.Options, scene: Path) -> "Figures":
    """Return what the command measures of the scene's one tile, in one round."""
    from tests.bench import _models
    from tmtool.bench import measure as own
    from tmtool.scene.job import Scene, prepare

    job = _models.job(options, "generate")
    prepared = prepare(job, Scene(((None, str(scene)),), scene.stem, options.scratch), writes=False)
    found = own.measure(own.Trial(job, prepared), own.Effort(tiles=1, rounds=1), None)
    if not isinstance(found, own.Figures):
        raise RuntimeError(found.why)
    return found


def measure(options: m.Options) -> m.Rows:
    """Give both figures and their ratio."""
    from tests.bench import _scenes
    from tmtool.models.measures import Arithmetic, Ceiling

    scene = m.in_own_process(_scenes.make_scene, options.scratch, m.CROP, m.CROP)
    with m.Side(generate.tmtool_tile, options, "auto") as tile:
        tile()
        sides: dict[str, Any] = {"part": tile, "command": lambda: m.in_own_process(figures, options, scene)}
        turns = m.in_turn(options.repeat, sides | {"ceilings": lambda: m.in_own_process(floor.ceilings, options)})
    stages = m.in_own_process(floor.profile, options).values()
    work = Arithmetic(*(sum(stage[i] for stage in stages) for i in (1, 2)))
    ceilings = [Ceiling(c.products[c.precision], c.convolutions[c.precision]) for c in turns["ceilings"]]
    ours: list[Figures] = turns["command"]
    yield _row("one tile, a", median(f.tile_s for f in ours), m.median_of(turns["part"]), "s")
    yield _row("arithmetic of a tile, floor", ours[0].tflop_per_tile, work.tflop, "TFLOP")
    least = median(ceiling.seconds(work) for ceiling in ceilings)
    yield _row("a tile's floor, floor", median(f.floor_s or 0.0 for f in ours), least, "s")


def _row(what: str, own: float, beside: float, unit: str) -> m.Row:
    return m.Row(
        what, f"{own:.3g} {unit}, tmtool bench", f"{beside:.3g} {unit}, tests/bench", f"{own / beside:.2f} times"
    )
