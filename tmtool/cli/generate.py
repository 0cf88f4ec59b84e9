"""`tmtool generate`."""

from tmtool.cli import _options as o
from tmtool.cli._compose import composed
from tmtool.cli._session import command
from tmtool.settings import Sampling


@composed
def generate(
    out: o.Out,
    listing: o.ListingOptions,
    output: o.OutputOptions,
    model: o.ModelOptions,
    drawing: o.DrawingOptions,
    decoding: o.DecodingOptions,
    tiles: o.TileOptions,
    run: o.RunOptions,
    log: o.LogOptions,
    in_: o.Ins = None,
    decoding_steps: o.DecodingSteps = Sampling.decoding_steps,
    format_: o.GenerateFormat = "",
    level: o.Level = "",
    level_to: o.LevelTo = "",
) -> None:
    """Generate modalities from a raster: radar, land cover, elevation, ... as georeferenced COGs.

    Writes `{stem}_{MODALITY}.tif` (or .zarr) for each of --out and prints their paths. For --out coords (where the model thinks that
    tiles lie) and --out caption (texts; --model v01-base) it writes `{stem}_coords.geojson` and `{stem}_caption.geojson`,
    with one feature per tile. --in coords gives the model the location of each tile.

    Example: tmtool generate Santiago.tif --out S1GRD,LULC

    Example: tmtool generate --in S2L2A=s2.tif --in DEM=dem.tif --out S1GRD
    """
    with command(log):
        from tmtool.cli._scenes import run_command
        from tmtool.models.text import told_places
        from tmtool.tasks import Generate
        from tmtool.tasks.generate import output_named

        drawn = {"top_p": drawing.top_p, "top_k": drawing.top_k, "temperature": drawing.temperature}
        sampling = decoding.sampling(decoding_steps=decoding_steps, **drawn)
        rasters, told = told_places(in_ or ())
        outputs, levelled = (tuple(output_named(name) for name in o.split(names)) for names in (out, level))
        task = Generate(outputs, sampling, told, format_, levelled, level_to)
        job = o.job_of(task, listing, output, model, tiles, drawing.seed)
        run_command(job, listing, output, o.policy_of(run, output, model), rasters, as_json=run.json_, quiet=log.quiet)
