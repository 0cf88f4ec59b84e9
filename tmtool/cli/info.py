"""`tmtool info`."""

from pathlib import Path

from tmtool.cli import _options as o
from tmtool.cli._compose import composed
from tmtool.cli._session import command
from tmtool.cli._task import TaskFileOptions
from tmtool.settings import RunSettings, Sampling


@composed
def info(
    task: TaskFileOptions,
    tiles: o.TileOptions,
    reading: o.ReadingOptions,
    inputs: o.Inputs = None,
    out: o.Out = "S1GRD,LULC",
    in_: o.Ins = None,
    model: o.Model = RunSettings.model,
    solver: o.SolverOption = Sampling.solver,
    timesteps: o.Timesteps = Sampling.timesteps,
    json_: o.Json = False,
) -> None:
    """Say what a raster is taken for and why, and what generating from it would cost. Loads no model.

    With --config, --checkpoint or --model-hub: what that fine-tuned task wants, and whether a raster has it.

    Example: tmtool info Santiago.tif --out S1GRD,LULC

    Example: tmtool info Valencia.tif --config burnscars.yaml
    """
    with command():
        from tmtool.batch import Listing, list_scenes
        from tmtool.cli._describe import describe_scenes, describe_task
        from tmtool.tasks import Generate
        from tmtool.tasks.generate import output_named
        from tmtool.tasks.predict import task_of

        compute = o.ComputeOptions()
        if task.given:
            asked, tiling = task_of(task.files(), to_run=False)
            tiles = o.tiles_of(tiling, tiles)
            describe_task(asked.config, tiling, as_json=json_)
            if not inputs and not in_:
                return
            job = o.job_of(asked, reading, o.OutputOptions(), compute, tiles)
        else:
            generate = Generate(
                tuple(output_named(name) for name in o.split(out)), Sampling(timesteps=timesteps, solver=solver)
            )
            job = o.job_of(generate, reading, o.OutputOptions(), o.ModelOptions(model=model), tiles)
        describe_scenes(job, list_scenes(Listing(inputs), Path(), in_ or []), as_json=json_)
