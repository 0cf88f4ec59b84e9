"""`tmtool reconstruct`."""

from tmtool.cli import _options as o
from tmtool.cli._compose import composed
from tmtool.cli._session import command
from tmtool.settings import RunSettings


@composed
def reconstruct(
    listing: o.ListingOptions,
    output: o.OutputOptions,
    model: o.TokenModelOptions,
    decoding: o.DecodingOptions,
    tiles: o.PatchTileOptions,
    run: o.RunOptions,
    log: o.LogOptions,
    in_: o.TokenIn = None,
    seed: o.Seed = RunSettings.seed,
    format_: o.RasterFormat = "cog",
) -> None:
    """Decode tokens to pixels: of a token raster that tokenize wrote, or of a raster that is tokenized on the way.

    Writes `{stem}_{MODALITY}_rec.tif` (or .zarr) and prints its path. Both ways give the same pixels with the same tiles and seed. From
    a raster it also says how well input and reconstruction agree: MAE, RMSE, PSNR and SSIM of each band (of a data range
    of 6 pretraining standard deviations), accuracy and mIoU of classes. A token raster's `{stem}_{MODALITY}_valid.tif`, if
    it has one, must lie beside it.

    Example: tmtool reconstruct Santiago.tif

    Example: tmtool reconstruct Santiago_S2L2A_tokens.tif
    """
    with command(log):
        from tmtool.cli._scenes import run_command
        from tmtool.tasks import Reconstruct

        job = o.job_of(Reconstruct(decoding.sampling(), format_), listing, output, model, tiles, seed)
        policy, taken_for = o.policy_of(run, output, model), [in_] if in_ else []
        run_command(job, listing, output, policy, taken_for, as_json=run.json_, quiet=log.quiet)
