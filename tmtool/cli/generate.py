"""`tmtool generate`."""

from pathlib import Path

from tmtool.cli import options as o
from tmtool.cli.session import command


def generate(
    out: o.Out,
    inputs: o.Inputs = None,
    in_: o.Ins = None,
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
    precision: o.Precision = "auto",
    compile_: o.Compile = "auto",
    batch_size: o.BatchSize = "auto",
    max_memory: o.MaxMemory = None,
    cluster: o.Cluster = None,
    seed: o.Seed = 0,
    top_p: o.TopP = 0.8,
    top_k: o.TopK = 0,
    temperature: o.Temperature = 1.0,
    decoding_steps: o.DecodingSteps = 1,
    timesteps: o.Timesteps = 10,
    clip_sigma: o.ClipSigma = None,
    crop: o.Crop = 256,
    stride: o.Stride = 192,
    delta: o.Delta = 8,
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
    """Generate modalities from a raster: radar, land cover, elevation, ... as georeferenced COGs.

    Writes `{stem}_{MODALITY}.tif` for each of --out and prints their paths.

    Example: tmtool generate Santiago.tif --out S1GRD,LULC

    Example: tmtool generate --in S2L2A=s2.tif --in DEM=dem.tif --out S1GRD
    """
    with command(quiet=quiet, verbose=verbose, log_file=log_file, log_format=log_format):
        from tmtool.cli.inputs import Listing, scenes
        from tmtool.cli.scenes import Manners, run_scenes
        from tmtool.job import Job
        from tmtool.modality import find
        from tmtool.models import Sampling
        from tmtool.plan import Tiling
        from tmtool.tasks import Generate

        job = Job(
            task=Generate(
                tuple(find(name, output=True).name for name in o.split(out)),
                Sampling(top_p, top_k, temperature, decoding_steps, timesteps, clip_sigma),
            ),
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
        listing = Listing(inputs, recursive, pattern, files_from, null, shard)
        run_scenes(
            job,
            scenes(listing, output_dir, in_ or ()),
            Manners(dry_run, json_, quiet, stale, fail_fast, retries, report, cluster),
        )
