"""Peak memory of tmtool's whole pipeline on scenes of several sizes, beside TerraTorch's tiled_inference.

Both run a model without cost that gives 12 channels (S1GRD and LULC), each measurement in a process of its own.
"""

from collections.abc import Callable
from pathlib import Path

from tests.bench import _measure as m

Size = tuple[int, int]
SIZES: tuple[Size, ...] = ((1024, 10980), (5120, 5120), (10980, 10980))
QUICK_SIZES: tuple[Size, ...] = ((512, 2048), (1024, 1024), (2048, 2048))
TERRATORCH_NEEDS = 11e9 / 5120**2
"""Bytes a pixel that must be available before TerraTorch is tried: what 5120 x 5120 was measured to take, and room."""


def tmtool_imports() -> int:
    """Import what a run of tmtool imports whatever its model; return the peak."""
    import rio_cogeo.cogeo  # noqa: F401

    import tmtool.scene.run  # noqa: F401
    from tmtool.models.device import resolve

    resolve("cpu", "auto")  # imports torch
    return m.peak_rss()


def tmtool_run(scene: Path, folder: Path) -> int:
    """Run a scene to its COGs; return the peak."""
    m.run_pass_through(scene, folder)
    return m.peak_rss()


def terratorch_imports() -> int:
    """Import what TerraTorch's recipe imports; return the peak."""
    import rasterio  # noqa: F401

    from tests.bench import _models

    _models.terratorch_tiled_inference()
    return m.peak_rss()


def terratorch_run(scene: Path) -> int:
    """Do what TerraTorch's notebook does, up to the tensor of the whole output; return the peak."""
    import rasterio
    import torch

    from tests.bench import _models

    tiled_inference = _models.terratorch_tiled_inference()
    with rasterio.open(scene) as src:
        raster = torch.tensor(src.read(), dtype=torch.float).unsqueeze(0)
    tiled_inference(lambda x: x, raster, crop=m.CROP, stride=m.STRIDE, delta=m.DELTA, batch_size=16)
    return m.peak_rss()


def peak(measure: Callable[..., int], *args: object) -> float:
    """Return the peak of `measure` in a process of its own, in GB."""
    return m.in_own_process(measure, *args) / 1e9


def named(size: Size) -> str:
    """Rows x columns."""
    return f"{size[0]} x {size[1]}"


def measure(options: m.Options) -> m.Rows:
    """Give the peak of every size, and of TerraTorch at one of them."""
    from tests.bench import _scenes

    folder, products = options.scratch, options.scratch / "out"
    base, their_base = peak(tmtool_imports), peak(terratorch_imports)
    yield m.Row("imports alone", f"{base:.2f} GB", f"{their_base:.2f} GB terratorch")
    tmtool: dict[Size, float] = {}
    for size in QUICK_SIZES if options.quick else SIZES:
        scene = m.in_own_process(_scenes.make_scene, folder, *size)
        tmtool[size] = peak(tmtool_run, scene, products)
        shorter = [s for s in tmtool if s[1] == size[1] and s[0] < size[0]]
        beside = f"{tmtool[shorter[0]]:.2f} GB at {named(shorter[0])}" if shorter else ""
        says = (
            f"{tmtool[size] / tmtool[shorter[0]]:.2f} times, of {size[0] / shorter[0][0]:.1f} times the rows"
            if shorter
            else ""
        )
        yield m.Row(f"scene of {named(size)} px, peak", f"{tmtool[size]:.2f} GB", beside, says)
    yield _beside(max(s for s in tmtool if s[0] == s[1] and s[0] <= 5120), folder, tmtool, (base, their_base))


def _beside(size: Size, folder: Path, tmtool: dict[Size, float], imports: tuple[float, float]) -> m.Row:
    """Compare with TerraTorch at one size, if there is memory for it."""
    from tests.bench import _scenes

    what, own = f"scene of {named(size)} px, peak of both tools", f"{tmtool[size]:.2f} GB"
    needed, free = TERRATORCH_NEEDS * size[0] * size[1] / 1e9, m.available_bytes() / 1e9
    if free < needed:
        return m.Row(what, own, f"terratorch was left out: about {needed:.0f} GB needed, {free:.1f} GB available")
    theirs = peak(terratorch_run, m.in_own_process(_scenes.make_scene, folder, *size))
    above = (theirs - imports[1]) / (tmtool[size] - imports[0])
    says = f"{theirs / tmtool[size]:.1f} times; {above:.1f} times above the imports"
    return m.Row(what, own, f"{theirs:.2f} GB terratorch", says)
