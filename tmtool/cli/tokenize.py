"""`tmtool tokenize`."""

from tmtool.cli import _options as o
from tmtool.cli._compose import composed
from tmtool.cli._session import command


@composed
def tokenize(
    listing: o.ListingOptions,
    output: o.OutputOptions,
    model: o.TokenModelOptions,
    tiles: o.PatchTileOptions,
    run: o.RunOptions,
    log: o.LogOptions,
    in_: o.TokenIn = None,
) -> None:
    """Turn rasters into tokens: one code of the modality's codebook for each patch of 16 x 16 px.

    Writes `{stem}_{MODALITY}_tokens.tif` (uint16), beside it `{stem}_{MODALITY}_valid.tif` if the raster has pixels without
    data, and prints the path of the first.

    Example: tmtool tokenize Santiago.tif
    """
    with command(log):
        from tmtool.cli._scenes import run_command
        from tmtool.tasks import Tokenize

        job = o.job_of(Tokenize(), listing, output, model, tiles)
        policy, taken_for = o.policy_of(run, output, model), [in_] if in_ else []
        run_command(job, listing, output, policy, taken_for, as_json=run.json_, quiet=log.quiet)
