"""`tmtool tokenize`."""

from pathlib import Path

from tmtool.cli import options as o
from tmtool.cli.session import command


def tokenize(
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
    """Turn rasters into tokens: one code of the modality's codebook for each patch of 16 x 16 px.

    Writes `{stem}_{MODALITY}_tokens.tif` (uint16), beside it `{stem}_{MODALITY}_valid.tif` if the raster has pixels without
    data, and prints the path of the first.

    Example: tmtool tokenize Santiago.tif
    """
    with command(quiet=quiet, verbose=verbose, log_file=log_file, log_format=log_format):
        from tmtool.cli.inputs import Listing, scenes
        from tmtool.cli.scenes import Manners, run_scenes
        from tmtool.job import Job
        from tmtool.plan import Tiling
        from tmtool.tasks import Tokenize

        job = Job(
            task=Tokenize(),
            model=model,
            weights=weights,
            offline=offline,
            s2_offset=s2_offset,
            tiling=Tiling(crop, stride, delta),
            batch_size=o.batch_size(batch_size),
            max_memory=o.size(max_memory),
            device=device,
            precision=precision,
            compile=compile_,
            overwrite=overwrite,
            resume=resume,
        )
        listing = Listing(inputs, recursive, pattern, files_from, null, shard)
        found = scenes(listing, output_dir, [in_] if in_ else [])
        run_scenes(job, found, Manners(dry_run, json_, quiet, stale, fail_fast, retries, report, cluster))
