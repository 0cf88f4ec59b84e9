"""`tmtool reconstruct`."""

from pathlib import Path

from tmtool.cli import options as o
from tmtool.cli.session import command


def reconstruct(
    inputs: o.Inputs = None,
    in_: o.TokenIn = None,
    recursive: o.Recursive = False,
    pattern: o.Pattern = None,
    files_from: o.FilesFrom = None,
    null: o.Null = False,
    shard: o.Shard = None,
    output_dir: o.OutputDir = Path(),
    overwrite: o.Overwrite = False,
    stale: o.Stale = "error",
    resume: o.Resume = True,
    s2_offset: o.S2Offset = None,
    model: o.Model = "base",
    weights: o.Weights = None,
    offline: o.Offline = False,
    device: o.Device = "auto",
    precision: o.TokenPrecision = "auto",
    compile_: o.Compile = "auto",
    batch_size: o.BatchSize = "auto",
    max_memory: o.MaxMemory = None,
    cluster: o.Cluster = None,
    seed: o.Seed = 0,
    timesteps: o.Timesteps = 10,
    clip_sigma: o.ClipSigma = None,
    crop: o.Crop = 256,
    stride: o.PatchStride = 192,
    delta: o.PatchDelta = 16,
    dry_run: o.DryRun = False,
    json_: o.Json = False,
    report: o.Report = None,
    fail_fast: o.FailFast = False,
    retries: o.Retries = 0,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    log_file: o.LogFile = None,
    log_format: o.LogFormat = "text",
) -> None:
    """Decode tokens to pixels: of a token raster that tokenize wrote, or of a raster that is tokenized on the way.

    Writes `{stem}_{MODALITY}_rec.tif` and prints its path. Both ways give the same pixels with the same tiles and seed. From
    a raster it also says how well input and reconstruction agree: MAE, RMSE, PSNR and SSIM of each band (of a data range
    of 6 pretraining standard deviations), accuracy and mIoU of classes. A token raster's `{stem}_{MODALITY}_valid.tif`, if
    it has one, must lie beside it.

    Example: tmtool reconstruct Santiago.tif

    Example: tmtool reconstruct Santiago_S2L2A_tokens.tif
    """
    with command(quiet=quiet, verbose=verbose, log_file=log_file, log_format=log_format):
        from tmtool.cli.inputs import Listing, scenes
        from tmtool.cli.scenes import Manners, run_scenes
        from tmtool.job import Job
        from tmtool.models import Sampling
        from tmtool.plan import Tiling
        from tmtool.tasks import Reconstruct

        job = Job(
            task=Reconstruct(Sampling(timesteps=timesteps, clip_sigma=clip_sigma)),
            model=model,
            weights=weights,
            offline=offline,
            s2_offset=s2_offset,
            tiling=Tiling(crop, stride, delta),
            seed=seed,
            batch_size=o.batch_size(batch_size),
            max_memory=o.size(max_memory),
            device=device,
            precision=precision,
            compile=compile_,
            overwrite=overwrite,
            resume=resume,
        )
        listing = Listing(inputs, recursive, pattern, files_from, null, shard, tokens=True)
        found = scenes(listing, output_dir, [in_] if in_ else [])
        run_scenes(job, found, Manners(dry_run, json_, quiet, stale, fail_fast, retries, report, cluster))
