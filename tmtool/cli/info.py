"""`tmtool info`."""

from pathlib import Path

from tmtool.cli import options as o
from tmtool.cli.session import command


def info(
    inputs: o.Inputs = None,
    out: o.Out = "S1GRD,LULC",
    in_: o.In = None,
    s2_offset: o.S2Offset = None,
    model: o.Model = "base",
    timesteps: o.Timesteps = 10,
    crop: o.Crop = 256,
    stride: o.Stride = 192,
    delta: o.Delta = 8,
    json_: o.Json = False,
) -> None:
    """Say what a raster is taken for and why, and what generating from it would cost. Loads no model.

    Example: tmtool info Santiago.tif --out S1GRD,LULC
    """
    with command():
        from tmtool.cli.describe import describe_scenes
        from tmtool.cli.inputs import Listing, scenes
        from tmtool.job import Job
        from tmtool.modality import find
        from tmtool.models import Sampling
        from tmtool.plan import Tiling
        from tmtool.tasks import Generate

        job = Job(
            task=Generate(tuple(find(name, output=True).name for name in o.split(out)), Sampling(timesteps=timesteps)),
            model=model,
            s2_offset=s2_offset,
            tiling=Tiling(crop, stride, delta),
        )
        describe_scenes(job, scenes(Listing(inputs), Path(), [in_] if in_ else []), as_json=json_)
