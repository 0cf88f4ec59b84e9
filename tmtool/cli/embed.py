"""`tmtool embed`."""

from dataclasses import dataclass

from tmtool.cli import _options as o
from tmtool.cli._compose import composed
from tmtool.cli._session import command
from tmtool.settings import Vectors


@dataclass(frozen=True, eq=False, repr=False)
class VectorOptions:
    """What is taken of the encoder, and how it is written."""

    layer: o.Layer = "-1"
    merge: o.Merge = "mean"
    bands: o.Bands = None
    tim: o.Tim = ""
    coords: o.Coords = False
    date: o.Dates = None
    normalize: o.Normalize = Vectors.normalize
    pool: o.Pool = Vectors.pool
    dtype: o.Dtype = Vectors.dtype
    format_: o.FileFormat = Vectors.format


@composed
def embed(
    listing: o.ListingOptions,
    output: o.OutputOptions,
    vectors: VectorOptions,
    model: o.EncoderModelOptions,
    drawing: o.DrawingOptions,
    tiles: o.PatchTileOptions,
    run: o.RunOptions,
    log: o.LogOptions,
    in_: o.Ins = None,
    checkpoint: o.CheckpointFile = None,
) -> None:
    """Embed rasters with the encoder of TerraMind, Prithvi or Clay: one vector for each patch of 16 x 16 px.

    Patches of Prithvi 600M are of 14 px, Clay's of 8 px. Both families take Sentinel-2 alone: the bands that they were trained
    on are found by name, or by position where the raster holds just these or all twelve. Prithvi takes several dates of a
    place, one --in S2L2A=FILE each in order of time, and --merge says how their vectors become one.

    Writes `{stem}_embed.tif` (or .zarr, .parquet), one band a dimension, and prints its path; for several layers
    `{stem}_embed_layer5.tif` and so on. Of several inputs the first one gives the stem. Sampling options and the seed matter
    with --tim only.

    Example: tmtool embed Santiago.tif --normalize l2 --dtype int8

    Example: tmtool embed --in S2L2A=s2.tif --in S1RTC=s1.tif --in DEM=dem.tif --format geoparquet

    Example: tmtool embed Santiago.tif --model prithvi-eo-v2-300-tl --coords --date 2024-06-01
    """
    with command(log):
        from tmtool.batch import bands_of
        from tmtool.cli._scenes import run_command
        from tmtool.settings import Sampling
        from tmtool.tasks import Embed

        task = Embed(
            layers=o.layers(vectors.layer),
            merge=vectors.merge,
            coords=vectors.coords,
            imagined=o.modalities(vectors.tim),
            sampling=Sampling(drawing.top_p, drawing.top_k, drawing.temperature),
            used=bands_of(vectors.bands),
            tuned=checkpoint,
            dates=tuple(vectors.date or ()),
            vectors=Vectors(vectors.normalize, vectors.dtype, vectors.format_, vectors.pool),
        )
        job = o.job_of(task, listing, output, model, tiles, drawing.seed)
        run_command(job, listing, output, o.policy_of(run, output, model), in_, as_json=run.json_, quiet=log.quiet)
