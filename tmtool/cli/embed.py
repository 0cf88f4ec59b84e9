"""`tmtool embed`."""

from pathlib import Path

from tmtool.cli import options as o
from tmtool.cli.session import command


def embed(
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
    layer: o.Layer = "-1",
    merge: o.Merge = "mean",
    bands: o.Bands = None,
    tim: o.Tim = "",
    coords: o.Coords = False,
    normalize: o.Normalize = "none",
    pool: o.Pool = "patch",
    dtype: o.Dtype = "float32",
    format_: o.FileFormat = "cog",
    model: o.Model = "base",
    checkpoint: o.CheckpointFile = None,
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
    """Embed rasters with TerraMind's encoder: one vector for each patch of 16 x 16 px.

    Writes `{stem}_embed.tif` (or .zarr, .parquet), one band a dimension, and prints its path; for several layers
    `{stem}_embed_layer5.tif` and so on. Of several inputs the first one gives the stem. Sampling options and the seed matter
    with --tim only.

    Example: tmtool embed Santiago.tif --normalize l2 --dtype int8

    Example: tmtool embed --in S2L2A=s2.tif --in S1RTC=s1.tif --in DEM=dem.tif --format geoparquet
    """
    with command(quiet=quiet, verbose=verbose, log_file=log_file, log_format=log_format):
        from tmtool.cli.inputs import Listing, bands_of, scenes
        from tmtool.cli.scenes import Manners, run_scenes
        from tmtool.job import Job
        from tmtool.modality import find
        from tmtool.models import Sampling
        from tmtool.plan import Tiling
        from tmtool.tasks import Embed, Vectors

        chosen = bands_of(bands)
        job = Job(
            task=Embed(
                layers=o.layers(layer),
                merge=merge,
                coords=coords,
                imagined=tuple(find(name, output=True).name for name in o.split(tim)),
                sampling=Sampling(top_p, top_k, temperature),
                used=chosen,
                tuned=checkpoint,
                vectors=Vectors(normalize, dtype, format_, pool),
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
        found = scenes(listing, output_dir, in_ or (), chosen)
        run_scenes(job, found, Manners(dry_run, json_, quiet, stale, fail_fast, retries, report, cluster))
