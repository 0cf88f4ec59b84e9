"""`tmtool predict`."""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import typer

from tmtool.cli import _options as o
from tmtool.cli._compose import composed
from tmtool.cli._session import command
from tmtool.cli._task import TASK, TaskFileOptions

NamedInputs = Annotated[
    list[str] | None,
    typer.Option(
        "--in",
        metavar="NAME=FILE",
        rich_help_panel=o.IO,
        show_default="the config's only input",
        help="The raster of an input of the config, once for each; several dates of one in order of time.",
    ),
]
Probabilities = Annotated[
    bool,
    typer.Option("--probabilities", rich_help_panel=TASK, help="Write `{stem}_prob.tif` too, one band per class."),
]
ProbabilityType = Annotated[
    Literal["float32", "uint8"],
    typer.Option("--dtype", rich_help_panel=TASK, help="Number type of probabilities; uint8 is in steps of 1/250."),
]


def _pixels(flag: str, meaning: str) -> Any:
    """Return an option of the tiles, whose default is the config's."""
    return typer.Option(
        f"--{flag}",
        metavar="PX",
        rich_help_panel=o.TILES,
        envvar=f"TMTOOL_{flag.upper()}",
        show_default="the config's",
        help=meaning,
    )


@dataclass(frozen=True, eq=False, repr=False)
class TaskTiles:
    """The tiles of a task."""

    crop: Annotated[int | None, _pixels("crop", "Side of a tile, a multiple of the model's patch.")] = None
    stride: Annotated[int | None, _pixels("stride", "Distance between tiles, at most crop - 2*delta.")] = None
    delta: Annotated[int | None, _pixels("delta", "Margin of each tile that is discarded.")] = None


@composed
def predict(
    listing: o.ListingOptions,
    output: o.OutputOptions,
    task: TaskFileOptions,
    compute: o.ComputeOptions,
    tiles: TaskTiles,
    run: o.RunOptions,
    log: o.LogOptions,
    in_: NamedInputs = None,
    probabilities: Probabilities = False,
    dtype: ProbabilityType = "float32",
    format_: o.RasterFormat = "cog",
) -> None:
    """Predict with a task that was fine-tuned with TerraTorch: floods, burn scars, crops.

    Writes `{stem}_pred.tif` (or .zarr): classes with their names and colours, or values; for tasks with one answer per image, one
    pixel per tile. Tiles are the config's `tiled_inference_parameters` unless --crop, --stride or --delta say otherwise.

    Example: tmtool predict Valencia.tif --config burnscars.yaml --checkpoint best.ckpt

    Example: tmtool predict Valencia.tif --model-hub ibm-nasa-geospatial/Prithvi-EO-2.0-300M-BurnScars

    Example: tmtool predict --in S2L2A=may.tif --in S2L2A=june.tif --in DEM=dem.tif --config flood.yaml --checkpoint best.ckpt
    """
    with command(log):
        from tmtool.cli._scenes import run_command
        from tmtool.tasks.predict import task_of

        asked, tiling = task_of(task.files(), probabilities, dtype)
        job = o.job_of(replace(asked, format=format_), listing, output, compute, o.tiles_of(tiling, tiles))
        policy = o.policy_of(run, output, compute)
        run_command(job, listing, output, policy, in_, as_json=run.json_, quiet=log.quiet)
