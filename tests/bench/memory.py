"""Peak memory of tmtool's whole pipeline on scenes of several sizes, beside TerraTorch's tiled_inference.

Both run a model without cost that gives 12 channels (S1GRD and LULC), each measurement in a process of its own.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

from tests.bench import _measure as m

Size = tuple[int, int]
SIZES: tuple[Size, ...] = ((1024, 10980), (5120, 5120), (10980, 10980))
QUICK_SIZES: tuple[Size, ...] = ((512, 2048), (1024, 1024), (2048, 2048))
TERRATORCH_NEEDS = 11e9 / 5120**2
"""Bytes a pixel that must be available before TerraTorch is tried: what 5120 x 5120 was measured to take, and room."""


def tmtool_imports() -> int:
    """Import what a run of tmtool imports whatever its model; return the peak."""
    import rio_cogeo.cogeo  # noqa: F401

    import tmtool.run  # noqa: F401
    from tmtool.device import resolve

    resolve("cpu", "auto")  # imports torch
    return m.peak_rss()


def tmtool_run(scene: Path, folder: Path) -> int:
    """Run a scene to its COGs; return the peak."""
    m.run_pass_through(scene, folder)
    return m.peak_rss()


def terratorch_imports() -> int:
    """Import what TerraTorch's recipe imports; return the peak."""
    import rasterio  # noqa: F401
    from terratorch.tasks.tiled_inference import tiled_inference  # noqa: F401

    return m.peak_rss()


def terratorch_run(scene: Path) -> int:
    """Do what TerraTorch's notebook does, up to the tensor of the whole output; return the peak."""
    import rasterio
    import torch
    from terratorch.tasks.tiled_inference import tiled_inference

    with rasterio.open(scene) as src:
        raster = torch.tensor(src.read(), dtype=torch.float).unsqueeze(0)
    tiled_inference(lambda x: x, raster, crop=m.CROP, stride=m.STRIDE, delta=m.DELTA, batch_size=16)
    return m.peak_rss()


def peak(repeat: int, measure: Callable[..., int], *args: object) -> float:
    """Return the median peak of `measure`, in GB."""
    return median(m.in_own_process(measure, *args) for _ in range(repeat)) / 1e9


def terratorch_peak(repeat: int, size: Size, folder: Path) -> float | str:
    """Return TerraTorch's median peak in GB, or why it was not run."""
    needed, free = TERRATORCH_NEEDS * size[0] * size[1] / 1e9, m.available_bytes() / 1e9
    if free < needed:
        return f"terratorch at {named(size)} was skipped: it needs about {needed:.0f} GB, {free:.1f} GB are available."
    return peak(repeat, terratorch_run, m.make_scene(folder, *size))


def named(size: Size) -> str:
    """Rows x columns."""
    return f"{size[0]} x {size[1]}"


def compared(tmtool: dict[Size, float], terratorch: dict[Size, float], base: tuple[float, float]) -> Iterable[str]:
    """Say the ratios: of scenes of one width, and of the tools at one size."""
    sizes = list(tmtool)
    for low, high in ((a, b) for a in sizes for b in sizes if a[1] == b[1] and a[0] < b[0]):
        yield (
            f"tmtool, {high[0] / low[0]:.1f} times the rows at the same width ({named(high)} to {named(low)}): "
            f"peak x {tmtool[high] / tmtool[low]:.2f}"
        )
    for size, gigabytes in terratorch.items():
        above = (gigabytes - base[1]) / (tmtool[size] - base[0])
        yield f"terratorch to tmtool at {named(size)}: peak x {gigabytes / tmtool[size]:.1f}, above the imports x {above:.1f}"


def main() -> None:
    """Measure, and print."""
    parser = m.arguments(__doc__, repeat=1)
    parser.add_argument("--quick", action="store_true", help="small scenes: a minute rather than many")
    options = parser.parse_args()
    sizes = QUICK_SIZES if options.quick else SIZES
    title, machine = "Peak resident memory, the pipeline without a model's cost", m.machine()
    beside = max(s for s in sizes if s[0] == s[1] and s[0] <= 5120)
    with m.scratch(options.scratch) as folder:
        base = peak(options.repeat, tmtool_imports), peak(options.repeat, terratorch_imports)
        tmtool = {s: peak(options.repeat, tmtool_run, m.make_scene(folder, *s), folder / "out") for s in sizes}
        theirs = terratorch_peak(options.repeat, beside, folder)
    terratorch = {beside: theirs} if isinstance(theirs, float) else {}
    rows = [
        (tool, named(size), f"{gb:.2f}", f"{base[i]:.2f}", f"{gb - base[i]:.2f}")
        for i, (tool, peaks) in enumerate((("tmtool", tmtool), ("terratorch", terratorch)))
        for size, gb in peaks.items()
    ]
    notes = [*compared(tmtool, terratorch, base), *([theirs] if isinstance(theirs, str) else []), machine]
    m.print_table(title, ("tool", "rows x cols", "peak GB", "imports alone GB", "above imports GB"), rows, notes)


if __name__ == "__main__":
    main()
