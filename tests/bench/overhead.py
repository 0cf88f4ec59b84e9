"""Share of tmtool's wall time that is not the model's forward, and the speed of the pipeline alone.

The model is a stand-in that sleeps and gives its input back. Sleeping leaves the cores to the pipeline, as a model on a
GPU does; a model on the CPU would compete with it for them.
"""

from functools import partial
from pathlib import Path

from tests.bench import _measure as m


def row(name: str, costs: list[m.SceneCost], pixels: int) -> tuple[object, ...]:
    """Return a table row of medians; the shares are of the wall time."""
    wall, cpu, forward, cog = (m.median_of(costs, k) for k in ("wall_s", "cpu_s", "forward_s", "cog_s"))
    rates = f"{costs[0].tiles / wall:.1f}", f"{pixels / wall / 1e6:.2f}"
    outside = f"{1 - forward / wall:.1%}" if forward > 0.01 * wall else "all"
    return (name, f"{wall:.2f}", f"{forward:.2f}", outside, f"{cog / wall:.1%}", f"{cpu:.2f}", *rates)


def measure(folder: Path, size: int, forward_ms: float, repeat: int) -> dict[str, list[m.SceneCost]]:
    """Run the scene in turn with the stand-in's forward time and without any."""
    scene, products = m.make_scene(folder, size, size), folder / "out"
    m.run_pass_through(m.make_scene(folder, 512, 512), products)  # imports and first uses
    times = {f"{forward_ms:g} ms a batch (a sleep)": forward_ms / 1e3, "0 ms: the pipeline alone": 0.0}
    return m.in_turn(repeat, {name: partial(m.run_pass_through, scene, products, s) for name, s in times.items()})


def main() -> None:
    """Measure, and print."""
    parser = m.arguments(__doc__, repeat=3)
    parser.add_argument("--size", type=int, default=2048, help="rows and columns of the scene (default 2048)")
    parser.add_argument("--forward-ms", type=float, default=150, help="what the stand-in sleeps a batch (default 150)")
    options = parser.parse_args()
    machine = m.machine()
    with m.scratch(options.scratch) as folder:
        costs = measure(folder, options.size, options.forward_ms, options.repeat)
    rows = [row(name, found, options.size**2) for name, found in costs.items()]
    title = f"Wall time of {options.size} x {options.size} px to S1GRD and LULC, median of {options.repeat}"
    header = ("model", "wall s", "forward s", "outside forward", "of it COGs", "CPU s", "tiles/s", "MPix/s")
    notes = (
        "the model is a stand-in that sleeps: the cores are free for the pipeline meanwhile, as with a GPU",
        "`outside forward` and `of it COGs` (all after the last tile) are shares of the wall time",
        "the file is local and in the system's cache; CPU s are those of all threads",
        machine,
    )
    m.print_table(title, header, rows, notes)


if __name__ == "__main__":
    main()
