"""`tmtool info`."""

from pathlib import Path

from tmtool.cli import _options as o
from tmtool.cli._compose import composed
from tmtool.cli._session import command
from tmtool.settings import RunSettings, Sampling


@composed
def info(
    tiles: o.TileOptions,
    inputs: o.Inputs = None,
    out: o.Out = "S1GRD,LULC",
    in_: o.In = None,
    s2_offset: o.S2Offset = None,
    model: o.Model = RunSettings.model,
    timesteps: o.Timesteps = Sampling.timesteps,
    json_: o.Json = False,
) -> None:
    """Say what a raster is taken for and why, and what generating from it would cost. Loads no model.

    Example: tmtool info Santiago.tif --out S1GRD,LULC
    """
    with command():
        from tmtool.batch import Listing, list_scenes
        from tmtool.cli._describe import describe_scenes
        from tmtool.tasks import Generate
        from tmtool.tasks.generate import output_named

        task = Generate(tuple(output_named(name) for name in o.split(out)), Sampling(timesteps=timesteps))
        listing, model_options = o.ListingOptions(s2_offset=s2_offset), o.ModelOptions(model=model)
        job = o.job_of(task, listing, o.OutputOptions(), model_options, tiles)
        describe_scenes(job, list_scenes(Listing(inputs), Path(), [in_] if in_ else []), as_json=json_)
