"""TerraMind beside TerraTorch as its notebook runs it (fp32, the whole raster in memory): S2L2A to S1GRD and LULC.

Weights are random in both (but for tmtool's demo), so the values mean nothing. In tmtool's disfavour: a token costs it
time for each code that top-p leaves, and random weights leave thousands. Building the models is left out on both sides.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench import _measure as m

Subject = Callable[[], m.Cost]


def tmtool_tile(options: m.Options, precision: str) -> Subject:
    """Return tmtool's adapter on one tile, from pixels in memory to values in memory."""
    from tests.bench import _models, _scenes

    model = _models.tmtool_model(options, "generate", precision)
    batch = _models.batch_of(_scenes.tile(m.CROP))
    return lambda: m.cost_of(lambda: model(batch))


def terratorch_tile(options: m.Options) -> Subject:
    """Return TerraTorch's forward of one tile, from pixels in memory to values in memory."""
    import torch

    from tests.bench import _models, _scenes
    from tmtool.models.device import resolve

    device = resolve(options.device).device
    forward, pixels = _models.terratorch_generate(options), torch.from_numpy(_scenes.tile(m.CROP))
    return lambda: m.cost_of(lambda: forward(pixels.clone().to(device)).cpu())  # it standardises in place


def tmtool_scene(options: m.Options, scene: Path) -> Subject:
    """Return tmtool's pipeline on a scene, from the file to its COGs."""
    from tests.bench import _models
    from tmtool.scene.run import Runner

    runner = Runner(_models.job(options, "generate"))
    return partial(m.run_scene, runner, scene, options.scratch / "out")


def terratorch_scene(options: m.Options, scene: Path) -> Subject:
    """Return TerraTorch's recipe for a scene, from the file to its values in memory, with tmtool's batch size."""
    import rasterio
    import torch

    from tests.bench import _models
    from tmtool.models.device import batch_size, resolve

    compute = resolve(options.device)
    tiled_inference = _models.terratorch_tiled_inference()
    forward = _models.terratorch_generate(options)
    tiling: Any = {"crop": m.CROP, "stride": m.STRIDE, "delta": m.DELTA}
    tiling["batch_size"] = options.batch_size or batch_size(compute)

    def recipe() -> None:
        with rasterio.open(scene) as src:
            raster = torch.tensor(src.read(), dtype=torch.float).unsqueeze(0)
        joined = tiled_inference(forward, raster.to(compute.device), **tiling)[0]
        joined[2:].argmax(dim=0).cpu()  # the ten channels of LULC; the notebook writes nothing

    return lambda: m.cost_of(recipe)


def measure(options: m.Options) -> m.Rows:
    """Compare on one tile and on a scene."""
    from tests.bench import _scenes

    scene = m.in_own_process(_scenes.make_scene, options.scratch, options.scene, options.scene)
    tile = {
        "auto": (tmtool_tile, options, "auto"),
        "fp32": (tmtool_tile, options, "fp32"),
        "terratorch": (terratorch_tile, options),
    }
    yield from _rows(f"one tile of {m.CROP} px, memory to memory", m.compared(options.repeat, tile))
    whole = {"auto": (tmtool_scene, options, scene), "terratorch": (terratorch_scene, options, scene)}
    repeat = options.scene_repeat
    what = f"scene of {options.scene} x {options.scene} px, file to COGs (terratorch: to memory)"
    yield from _rows(what, m.compared(repeat, whole, warm=int(repeat > 1)))


def _rows(what: str, costs: dict[str, list[m.Cost]]) -> m.Rows:
    theirs = m.median_of(costs.pop("terratorch"))
    for precision, own in costs.items():
        wall = m.median_of(own)
        yield m.Row(
            f"{what}, tmtool --precision {precision}",
            m.seconds(wall),
            f"{m.seconds(theirs)} terratorch, fp32",
            f"{theirs / wall:.2f} times as fast",
        )
