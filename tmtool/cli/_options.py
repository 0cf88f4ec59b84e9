"""Options that commands share, each declared once."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer

from tmtool import errors, settings
from tmtool.cli import _complete
from tmtool.modality import INPUTS, OUTPUTS
from tmtool.settings import Extent, Policy, Reading, RunSettings, Sampling, Tiling

if TYPE_CHECKING:
    from tmtool.scene.job import Job
    from tmtool.tasks import Task

IO, TILES, _SAMPLING, _MODEL, _RUN = "Input and output", "Tiles", "Sampling", "Model and device", "Run"
READ, _PART = "How inputs are read", "Part of a scene"
_EMBEDDING = "Embedding"

Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="INPUT",
        help="Rasters: files, folders, globs, anything GDAL opens (/vsicurl/..., VRT), Sentinel-2 products (.SAFE, EOPF .zarr, zips), "
        "STAC items, name_{band}.tif; or - for a list on standard input.",
        show_default=False,
    ),
]
Recursive = Annotated[
    bool,
    typer.Option(
        "--recursive",
        rich_help_panel=IO,
        help="Also search the subfolders of an input folder, and mirror them under --output-dir.",
    ),
]
Pattern = Annotated[
    str | None,
    typer.Option(
        "--pattern",
        metavar="GLOB",
        rich_help_panel=IO,
        show_default="the endings of rasters",
        help="In input folders, take only files whose names match, as in '*_10m.tif'.",
    ),
]
FilesFrom = Annotated[
    str | None,
    typer.Option(
        "--files-from",
        metavar="F",
        rich_help_panel=IO,
        help="Also take inputs from this list, one per line; - is standard input.",
    ),
]
Null = Annotated[
    bool,
    typer.Option(
        "-0", "--null", rich_help_panel=IO, help="Lists of inputs are separated by NUL, as find -print0 writes them."
    ),
]
Shard = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="K/N",
        rich_help_panel=IO,
        show_default="all scenes",
        help="Run every N-th scene from the K-th, K from 1 to N: for N jobs that share one list, as in a SLURM array.",
    ),
]
Out = Annotated[
    str,
    typer.Option(
        "--out",
        metavar="MOD,...",
        autocompletion=_complete.outputs,
        rich_help_panel=IO,
        help=f"Modalities to generate, in order; each conditions the next. Choose from {', '.join(OUTPUTS)}; "
        "also coords and caption, one for each tile.",
    ),
]
In = Annotated[
    str | None,
    typer.Option(
        "--in",
        metavar="MOD",
        autocompletion=_complete.inputs,
        rich_help_panel=IO,
        show_default="found out from names, tags and band count",
        help=f"What the inputs are. Of {', '.join(INPUTS)}.",
    ),
]
TokenIn = Annotated[
    str | None,
    typer.Option(
        "--in",
        metavar="MOD",
        autocompletion=_complete.inputs,
        rich_help_panel=IO,
        show_default="found out from names, tags and band count",
        help=f"What the inputs are, of those with a tokenizer: {', '.join(OUTPUTS)}. Token rasters say it themselves.",
    ),
]
Ins = Annotated[
    list[str] | None,
    typer.Option(
        "--in",
        metavar="MOD|MOD=FILE",
        autocompletion=_complete.inputs,
        rich_help_panel=IO,
        show_default="found out from names, tags and band count",
        help=f"What the inputs are, of {', '.join(INPUTS)}; or, once for each modality of one scene, MOD=FILE in place of "
        "INPUT; or MOD=FOLDER or a pattern such as s1/{stem}*.tif for many scenes, {date} for dates.",
    ),
]
OutputDir = Annotated[
    str,
    typer.Option(
        "-o",
        "--output-dir",
        metavar="DIR|URL",
        rich_help_panel=IO,
        envvar="TMTOOL_OUTPUT_DIR",
        help="Folder for the products, or an object store: s3://bucket/prefix, gs:// or az:// alike.",
    ),
]
Scratch = Annotated[
    Path | None,
    typer.Option(
        "--scratch",
        metavar="DIR",
        rich_help_panel=IO,
        envvar="TMTOOL_SCRATCH",
        show_default="a folder among temporary files",
        help="Where products that go to an object store are made, in a folder named after its URL.",
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        rich_help_panel=IO,
        envvar="TMTOOL_OVERWRITE",
        help="Replace existing products. Without it, scenes whose products exist are skipped; see --stale.",
    ),
]
PreviewOption = Annotated[
    bool,
    typer.Option(
        "--preview",
        rich_help_panel=IO,
        envvar="TMTOOL_PREVIEW",
        help="Also draw each product in GeoTIFF, as `tmtool preview` does: a PNG beside it.",
    ),
]
StacOption = Annotated[
    bool,
    typer.Option(
        "--stac",
        rich_help_panel=IO,
        envvar="TMTOOL_STAC",
        help="Also write a STAC item of each scene, {stem}.json, that lists its products; see `tmtool stac`.",
    ),
]
S2Offset = Annotated[
    float | None,
    typer.Option(
        "--s2-offset",
        metavar="N",
        rich_help_panel=READ,
        show_default="the file's metadata, else 0",
        help="Offset contained in Sentinel-2's DN (1000 since baseline 04.00); it is subtracted on reading.",
    ),
]
GridOption = Annotated[
    str,
    typer.Option(
        "--grid",
        metavar="GRID",
        rich_help_panel=READ,
        show_default="that of the first raster",
        help="The grid of the products, to which rasters on others are warped as they are read: a modality among the inputs, a "
        "raster, or a CRS and a pixel size: EPSG:32633@10m, or utm@10m for the zone that the first raster lies in.",
    ),
]
Resampling = Annotated[
    settings.Resampling,
    typer.Option(
        "--resampling",
        rich_help_panel=READ,
        help="How rasters are warped. auto: classes nearest; others bilinear, or average where pixels get at least twice as "
        "large; a Sentinel-2 product's coarser bands nearest, so that values stay measured ones.",
    ),
]
MinOverlap = Annotated[
    float,
    typer.Option(
        "--min-overlap",
        metavar="SHARE",
        min=0,
        max=1,
        rich_help_panel=READ,
        help="Share of the grid that a warped raster has to cover.",
    ),
]
UnitOption = Annotated[
    list[str] | None,
    typer.Option(
        "--unit",
        metavar="MOD=UNIT",
        rich_help_panel=READ,
        show_default="the modality's own, or what metadata says",
        help="What a modality's rasters are in, if not in its own unit: S1GRD=linear or S1RTC=linear (power), "
        "S2L2A=reflectance, DEM=feet. Once for each modality.",
    ),
]
LulcCodes = Annotated[
    settings.Codes,
    typer.Option(
        "--lulc-codes", rich_help_panel=READ, help="Legend of LULC inputs; its codes become TerraMind's classes."
    ),
]
MaskOption = Annotated[
    list[str] | None,
    typer.Option(
        "--mask",
        metavar="WHAT",
        rich_help_panel=READ,
        show_default="nothing",
        help="Leave out pixels as if they had no data: clouds,shadow,cirrus,snow of a Sentinel-2 product's own mask, a raster "
        "where it is not 0, or a vector file's polygons. May be repeated.",
    ),
]
Sign = Annotated[
    str,
    typer.Option(
        "--sign",
        metavar="COMMAND",
        rich_help_panel=READ,
        envvar="TMTOOL_SIGN",
        show_default="links are taken as they are",
        help="Command that signs the links of STAC items: it gets one on standard input and prints it signed. GDAL's own way "
        "works too, such as VSICURL_PC_URL_SIGNING=YES for the Planetary Computer.",
    ),
]
Bbox = Annotated[
    str,
    typer.Option(
        "--bbox",
        metavar="W,S,E,N",
        rich_help_panel=_PART,
        show_default="the whole scene",
        help="Make this part only: in degrees, or in a CRS as 300000,6200000,310000,6210000@EPSG:32719. Products equal the same "
        "part of a whole run.",
    ),
]
WindowOption = Annotated[
    str,
    typer.Option(
        "--window",
        metavar="COL,ROW,W,H",
        rich_help_panel=_PART,
        show_default="the whole scene",
        help="Make this part only, in pixels of the grid, as gdal_translate -srcwin takes them.",
    ),
]
Aoi = Annotated[
    str,
    typer.Option(
        "--aoi",
        metavar="F",
        rich_help_panel=_PART,
        show_default="the whole scene",
        help="Make what lies in the polygons of this vector file (GeoPackage, GeoJSON, ...); elsewhere products have no data, and "
        "tiles are not run.",
    ),
]
Anchor = Annotated[
    settings.Anchor,
    typer.Option(
        "--anchor",
        rich_help_panel=_PART,
        help="What tiles are counted from: the raster's corner; or the projected grid, so that overlapping scenes of one grid "
        "(crops, neighbouring Sentinel-2 tiles of a zone) agree bit for bit where both have full context.",
    ),
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME",
        autocompletion=_complete.models,
        rich_help_panel=_MODEL,
        envvar="TMTOOL_MODEL",
        help="TerraMind's size: base, large, small or tiny (their tokenizers are the same); or demo, a small model in the "
        "package that takes S2L2A, S1GRD, S1RTC or DEM and makes S2L2A, S1GRD, S1RTC, LULC or NDVI.",
    ),
]
EncoderModel = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME",
        autocompletion=_complete.models,
        rich_help_panel=_MODEL,
        envvar="TMTOOL_MODEL",
        help="TerraMind's size: base, large, small or tiny; v01-base; demo, a small model in the package; or an encoder of "
        "Sentinel-2 alone: prithvi-eo-v1-100, prithvi-eo-v2-300 (also tiny-tl, 100-tl, 300-tl, 600, 600-tl), clay-v1 or "
        "clay-v1.5. `tmtool models list` says what each takes.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="DIR|random",
        rich_help_panel=_MODEL,
        envvar="TMTOOL_WEIGHTS",
        show_default="the Hugging Face hub and its cache",
        help="Folder with the hub's weight files, or 'random' to try the pipeline: its output means nothing.",
    ),
]
Offline = Annotated[
    bool, typer.Option("--offline", rich_help_panel=_MODEL, envvar="TMTOOL_OFFLINE", help="Never use the network.")
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEV",
        rich_help_panel=_MODEL,
        envvar="TMTOOL_DEVICE",
        help="auto, cpu, cuda, cuda:N or mps; several GPUs with commas: cuda:0,cuda:1 share the batches of each scene.",
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="P",
        rich_help_panel=_MODEL,
        envvar="TMTOOL_PRECISION",
        help="auto, fp32, bf16 or fp16. auto is bf16 where the hardware has it, else fp32.",
    ),
]
TokenPrecision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="P",
        rich_help_panel=_MODEL,
        envvar="TMTOOL_PRECISION",
        help="auto, fp32, bf16 or fp16. auto encodes in fp32, as rounding flips tokens, and decodes in bf16 where the "
        "hardware has it.",
    ),
]
Compile = Annotated[
    settings.Compile,
    typer.Option(
        "--compile",
        rich_help_panel=_MODEL,
        envvar="TMTOOL_COMPILE",
        help="Compile the networks with torch.compile, which takes a minute or more at the start and needs a C++ compiler "
        "(on CUDA, Triton). auto is off: on CPUs it gains 3 to 5 %, on CUDA it has not been measured.",
    ),
]
BatchSize = Annotated[
    str,
    typer.Option(
        "--batch-size",
        metavar="N",
        rich_help_panel=_MODEL,
        envvar="TMTOOL_BATCH_SIZE",
        help="Tiles per batch, or auto.",
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        metavar="SIZE",
        rich_help_panel=_MODEL,
        envvar="TMTOOL_MAX_MEMORY",
        show_default="what is free, or a cgroup's limit",
        help="Limit on the host's memory, such as 8G or 1.5GiB: the batch size is chosen to fit, by an estimate.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed",
        rich_help_panel=_SAMPLING,
        envvar="TMTOOL_SEED",
        help="The same seed gives the same pixels, however the scene is divided or run.",
    ),
]
TopP = Annotated[
    float,
    typer.Option(
        "--top-p",
        rich_help_panel=_SAMPLING,
        help="Sample from the most likely tokens that make up this probability; 0 is no limit.",
    ),
]
TopK = Annotated[
    int, typer.Option("--top-k", rich_help_panel=_SAMPLING, help="Sample from the K most likely tokens; 0 is no limit.")
]
Temperature = Annotated[
    float,
    typer.Option(
        "--temperature",
        rich_help_panel=_SAMPLING,
        help="Sampling temperature: above 1 varies more, 0 takes the most likely token.",
    ),
]
DecodingSteps = Annotated[
    int,
    typer.Option(
        "--decoding-steps",
        rich_help_panel=_SAMPLING,
        help="Steps in which a modality's tokens are sampled; each sees the tokens sampled before.",
    ),
]
Timesteps = Annotated[
    int | None,
    typer.Option(
        "--timesteps",
        rich_help_panel=_SAMPLING,
        show_default="10; of dpm 4",
        help="Diffusion steps that decode tokens to pixels: how often the decoder runs.",
    ),
]
SolverOption = Annotated[
    settings.Solver,
    typer.Option(
        "--solver",
        rich_help_panel=_SAMPLING,
        help="What takes those steps: ddim, as TerraTorch; or dpm, DPM-Solver++ of second order, which needs 4 of them to come "
        "nearer to the decoder's own limit than ddim with 10.",
    ),
]
ClipSigma = Annotated[
    float | None,
    typer.Option(
        "--clip-sigma",
        metavar="K",
        rich_help_panel=_SAMPLING,
        show_default="no clipping",
        help="Clip decoded values to K standard deviations around the mean; TerraTorch uses 1.",
    ),
]
Level = Annotated[
    str,
    typer.Option(
        "--level",
        metavar="MODALITIES",
        rich_help_panel=TILES,
        show_default="none",
        help="Bring the tiles of these outputs (DEM, S1GRD, S1RTC, NDVI) to one level: a constant is added to each, found by least squares "
        "over all overlaps.",
    ),
]
LevelTo = Annotated[
    str,
    typer.Option(
        "--level-to",
        metavar="RASTER",
        rich_help_panel=TILES,
        show_default="none",
        help="Bring the tiles of --level near this raster too, as dem_30m.tif; it is warped to the scene's grid.",
    ),
]
Samples = Annotated[
    int,
    typer.Option(
        "--samples",
        metavar="N",
        rich_help_panel=_SAMPLING,
        help="Make N draws, of seeds S to S+N-1, and write their mean, with the standard deviation in {stem}_{MODALITY}_std.tif; of "
        "LULC the likeliest class of the mean probability, with LULC_prob and LULC_entropy.",
    ),
]
Crop = Annotated[
    int | None,
    typer.Option(
        "--crop",
        metavar="PX",
        show_default=str(Tiling.crop),
        rich_help_panel=TILES,
        envvar="TMTOOL_CROP",
        help="Side of a tile, a multiple of the model's patch (16).",
    ),
]
PatchCrop = Annotated[
    int | None,
    typer.Option(
        "--crop",
        metavar="PX",
        show_default=f"{Tiling.crop}; Prithvi 224",
        rich_help_panel=TILES,
        envvar="TMTOOL_CROP",
        help="Side of a tile, a multiple of the model's patch (16; of Prithvi 600M 14, of Clay 8).",
    ),
]
Stride = Annotated[
    int | None,
    typer.Option(
        "--stride",
        metavar="PX",
        show_default="192",
        rich_help_panel=TILES,
        envvar="TMTOOL_STRIDE",
        help="Distance between tiles, at most crop - 2*delta.",
    ),
]
Delta = Annotated[
    int | None,
    typer.Option(
        "--delta",
        metavar="PX",
        show_default="8",
        rich_help_panel=TILES,
        envvar="TMTOOL_DELTA",
        help="Margin of each tile that is discarded.",
    ),
]
PatchDelta = Annotated[
    int | None,
    typer.Option(
        "--delta",
        metavar="PX",
        show_default="one patch",
        rich_help_panel=TILES,
        envvar="TMTOOL_PATCH_DELTA",
        help="Margin of each tile that is discarded, a multiple of the patch so that patches stay on one grid.",
    ),
]
PatchStride = Annotated[
    int | None,
    typer.Option(
        "--stride",
        metavar="PX",
        show_default="192; Prithvi 600M 196, Clay 240",
        rich_help_panel=TILES,
        envvar="TMTOOL_STRIDE",
        help="Distance between tiles, a multiple of the patch, at most crop - 2*delta.",
    ),
]
Layer = Annotated[
    str,
    typer.Option(
        "--layer",
        metavar="N,...",
        rich_help_panel=_EMBEDDING,
        help="Encoder layers, one product each: counted from 0 (to 11 for base, 23 for large), or from the end as -1, -2, ... "
        "The last one is taken after the encoder's final norm.",
    ),
]
Merge = Annotated[
    settings.Merge,
    typer.Option(
        "--merge",
        rich_help_panel=_EMBEDDING,
        help="How the vectors of several modalities are merged into one; dict: one product each, `{stem}_embed_{MODALITY}`.",
    ),
]
Bands = Annotated[
    list[str] | None,
    typer.Option(
        "--bands",
        metavar="MOD=BAND,...",
        rich_help_panel=_EMBEDDING,
        help="Take only these of a modality's bands, by TerraTorch's names (BLUE,...) or B02,...; once for each modality. "
        "The raster may hold all of them or these alone. Not with --tim.",
    ),
]
Tim = Annotated[
    str,
    typer.Option(
        "--tim",
        metavar="MOD,...",
        autocompletion=_complete.outputs,
        rich_help_panel=_EMBEDDING,
        show_default="none",
        help="Thinking in modalities: imagine these first and embed them too. Not with --bands or --merge dict.",
    ),
]
Coords = Annotated[
    bool,
    typer.Option(
        "--coords",
        rich_help_panel=_EMBEDDING,
        help="Give the model each tile's longitude and latitude; needs a CRS. Not for demo and Prithvi without -tl.",
    ),
]
Dates = Annotated[
    list[str] | None,
    typer.Option(
        "--date",
        metavar="DATE",
        rich_help_panel=_EMBEDDING,
        show_default="the file's tags",
        help="When the input was taken, as 2024-06-01 or with its time in UTC; once for each --in. Prithvi -TL and Clay take it.",
    ),
]
CheckpointFile = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        metavar="F",
        rich_help_panel=_MODEL,
        help="A fine-tuned TerraMind backbone of --model's size: TerraTorch's Lightning checkpoint or a state dict.",
    ),
]
Normalize = Annotated[
    settings.Normalize, typer.Option("--normalize", rich_help_panel=_EMBEDDING, help="Scale vectors to unit length.")
]
Dtype = Annotated[
    settings.Dtype,
    typer.Option(
        "--dtype",
        rich_help_panel=_EMBEDDING,
        help="Number type of the product. int8 is value / scale, with each band's scale in the file; with --normalize l2 "
        "it is AlphaEarth's code q, value = sign(q) (q / 127.5)^2. -128 is nodata.",
    ),
]
FileFormat = Annotated[
    settings.FileFormat,
    typer.Option(
        "--format",
        rich_help_panel=_EMBEDDING,
        help="File format of the product; majortom is GeoParquet with the columns of Major TOM's embeddings.",
    ),
]
RasterFormat = Annotated[
    settings.RasterFormat,
    typer.Option("--format", rich_help_panel=IO, help="File format of the products."),
]
GenerateFormat = Annotated[
    str,
    typer.Option(
        "--format",
        metavar="NAME",
        rich_help_panel=IO,
        show_default="cog, and geojson of coords and caption",
        help="File format: cog or zarr of rasters, geojson or geoparquet of coords and caption. A product that it does not fit keeps "
        "its default.",
    ),
]
Pool = Annotated[
    settings.Pool,
    typer.Option(
        "--pool",
        rich_help_panel=_EMBEDDING,
        help="One vector per patch, or the mean over each tile (a cell of --stride px) or over the scene.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        rich_help_panel=_RUN,
        help="Do all checks of a run and list what it would do, without loading a model or fetching weights.",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", rich_help_panel=_RUN, help="Print one JSON object per scene instead of paths.")
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume/--no-resume",
        rich_help_panel=_RUN,
        envvar="TMTOOL_RESUME",
        help="Resume a scene where an earlier run was interrupted, or start it from the beginning.",
    ),
]
Stale = Annotated[
    settings.Stale,
    typer.Option(
        "--stale",
        rich_help_panel=_RUN,
        envvar="TMTOOL_STALE",
        help="What to do with existing products that were made with other parameters, weights or inputs.",
    ),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="C",
        rich_help_panel=_MODEL,
        envvar="TMTOOL_CLUSTER",
        help="Compute on Dask workers: local:N processes, local-cuda (one per GPU), tcp://host:8786 or a scheduler file.",
    ),
]
FailFast = Annotated[
    bool, typer.Option("--fail-fast", rich_help_panel=_RUN, help="Stop at the first scene that fails.")
]
Retries = Annotated[
    int,
    typer.Option(
        "--retries",
        metavar="N",
        min=0,
        rich_help_panel=_RUN,
        help="Retry a scene up to N times after a read or write error.",
    ),
]
Report = Annotated[
    str | None,
    typer.Option(
        "--report",
        metavar="F",
        rich_help_panel=_RUN,
        help="Write the outcome of every scene to this JSON file, or s3://bucket/report.json.",
    ),
]
LogFormat = Annotated[
    Literal["text", "json"],
    typer.Option(
        "--log-format",
        rich_help_panel=_RUN,
        envvar="TMTOOL_LOG_FORMAT",
        help="Format of standard error and --log-file.",
    ),
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", rich_help_panel=_RUN, help="Log only warnings and errors.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", rich_help_panel=_RUN, help="Log more detail.")]
LogFile = Annotated[
    Path | None, typer.Option("--log-file", metavar="F", rich_help_panel=_RUN, help="Also append the log to this file.")
]


def layers(text: str) -> tuple[int, ...]:
    """Return the numbers of a comma-separated option."""
    try:
        return tuple(int(word) for word in split(text))
    except ValueError:
        raise errors.UsageError(f"--layer {text}: give numbers, such as -1 or 2,5,8,11.") from None


def split(names: str) -> tuple[str, ...]:
    """Split a comma-separated option."""
    return tuple(name.strip() for name in names.split(",") if name.strip())


def batch_size(text: str) -> int | None:
    """Return the number, or None for auto."""
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise errors.UsageError(f"--batch-size {text}: give a number or auto.") from None


def size(text: str | None) -> int | None:
    """Return the bytes of --max-memory, or None."""
    from tmtool.models.memory import parse_size

    return parse_size(text, "--max-memory") if text else None


@dataclass(frozen=True, eq=False, repr=False)
class ReadingOptions:
    """How inputs are read, and which part of them."""

    s2_offset: S2Offset = None
    unit: UnitOption = None
    lulc_codes: LulcCodes = Reading.lulc_codes
    grid: GridOption = Reading.grid
    resampling: Resampling = Reading.resampling
    min_overlap: MinOverlap = Reading.min_overlap
    mask: MaskOption = None
    sign: Sign = ""
    bbox: Bbox = Extent.bbox
    window: WindowOption = Extent.window
    aoi: Aoi = Extent.aoi
    anchor: Anchor = Extent.anchor

    def reading(self) -> Reading:
        """Return how inputs are read. Raises `UsageError`."""
        from tmtool.source import units_of
        from tmtool.source.deliveries.stac import set_sign

        if self.sign:
            set_sign(self.sign)
        masks = tuple(name for text in self.mask or () for name in split(text))
        return Reading(
            self.s2_offset,
            units_of(self.unit or ()),
            self.lulc_codes,
            self.grid,
            self.resampling,
            self.min_overlap,
            masks,
        )

    def extent(self) -> Extent:
        """Return which part of a scene is made."""
        return Extent(self.bbox, self.window, self.aoi, self.anchor)


@dataclass(frozen=True, eq=False, repr=False)
class ListingOptions(ReadingOptions):
    """Where inputs are listed, which of them are taken, and how they are read."""

    inputs: Inputs = None
    recursive: Recursive = False
    pattern: Pattern = None
    files_from: FilesFrom = None
    null: Null = False
    shard: Shard = None


@dataclass(frozen=True, eq=False, repr=False)
class OutputOptions:
    """Where products go, and what happens to existing ones."""

    output_dir: OutputDir = "."
    scratch: Scratch = None
    overwrite: Overwrite = False
    stale: Stale = Policy.stale
    resume: Resume = True
    preview: PreviewOption = False
    stac: StacOption = False


@dataclass(frozen=True, eq=False, repr=False)
class ModelOptions:
    """Which model runs, where and how."""

    model: Model = RunSettings.model
    weights: Weights = RunSettings.weights
    offline: Offline = RunSettings.offline
    device: Device = RunSettings.device
    precision: Precision = RunSettings.precision
    compile_: Compile = RunSettings.compile
    batch_size: BatchSize = "auto"
    max_memory: MaxMemory = None
    cluster: Cluster = Policy.cluster


@dataclass(frozen=True, eq=False, repr=False)
class TokenModelOptions(ModelOptions):
    """The same, where tokens are encoded."""

    precision: TokenPrecision = RunSettings.precision


@dataclass(frozen=True, eq=False, repr=False)
class EncoderModelOptions(ModelOptions):
    """The same, where any model that embeds can run."""

    model: EncoderModel = RunSettings.model


@dataclass(frozen=True, eq=False, repr=False)
class DrawingOptions:
    """How tokens are drawn."""

    seed: Seed = RunSettings.seed
    top_p: TopP = Sampling.top_p
    top_k: TopK = Sampling.top_k
    temperature: Temperature = Sampling.temperature


@dataclass(frozen=True, eq=False, repr=False)
class DecodingOptions:
    """How tokens are decoded."""

    solver: SolverOption = Sampling.solver
    timesteps: Timesteps = Sampling.timesteps
    clip_sigma: ClipSigma = Sampling.clip_sigma
    samples: Samples = Sampling.samples

    def sampling(self, **drawing: Any) -> Sampling:
        """Return these and how tokens are drawn."""
        return Sampling(
            timesteps=self.timesteps,
            clip_sigma=self.clip_sigma,
            solver=self.solver,
            samples=self.samples,
            **drawing,
        )


@dataclass(frozen=True, eq=False, repr=False)
class TileOptions:
    """The tiles of pixel products."""

    crop: Crop = None
    stride: Stride = None
    delta: Delta = None


@dataclass(frozen=True, eq=False, repr=False)
class PatchTileOptions:
    """The tiles of products on the patch grid."""

    crop: PatchCrop = None
    stride: PatchStride = None
    delta: PatchDelta = None


@dataclass(frozen=True, eq=False, repr=False)
class RunOptions:
    """How a run behaves and what it says."""

    dry_run: DryRun = Policy.dry_run
    json_: Json = False
    report: Report = None
    fail_fast: FailFast = Policy.fail_fast
    retries: Retries = Policy.retries


@dataclass(frozen=True, eq=False, repr=False)
class LogOptions:
    """What is logged, and where."""

    quiet: Quiet = False
    verbose: Verbose = False
    log_file: LogFile = None
    log_format: LogFormat = "text"


@dataclass(frozen=True, eq=False, repr=False)
class ComputeOptions:
    """Where and how a network runs; which it is, its command knows."""

    model: ClassVar[str] = "finetuned"
    weights: ClassVar[str | None] = None
    offline: ClassVar[bool] = True

    device: Device = RunSettings.device
    precision: Precision = RunSettings.precision
    compile_: Compile = RunSettings.compile
    batch_size: BatchSize = "auto"
    max_memory: MaxMemory = None
    cluster: Cluster = Policy.cluster


def job_of(
    task: "Task",
    reading: ReadingOptions,
    output: OutputOptions,
    model: ModelOptions | ComputeOptions,
    tiles: TileOptions | PatchTileOptions,
    seed: int = RunSettings.seed,
) -> "Job":
    """Return the job that the options of a command ask for."""
    from tmtool import models
    from tmtool.scene.job import Job

    entry, asked = models.find(model.model), {"crop": tiles.crop, "stride": tiles.stride, "delta": tiles.delta}
    return Job(
        task,
        model=model.model,
        weights=model.weights,
        offline=model.offline,
        reading=reading.reading(),
        extent=reading.extent(),
        tiling=Tiling.fitting(entry.patch, on_patch_grid=task.on_patch_grid, own=entry.tiling, **asked),
        seed=seed,
        batch_size=batch_size(model.batch_size),
        max_memory=size(model.max_memory),
        device=model.device,
        precision=model.precision,
        compile=model.compile_,
        overwrite=output.overwrite,
        resume=output.resume,
    )


def tiles_of(own: Any, asked: Any) -> TileOptions:
    """Return a task's own crop, stride and delta but for those that were asked for; None was not."""
    names = ("crop", "stride", "delta")
    return TileOptions(*(getattr(own if getattr(asked, name) is None else asked, name) for name in names))


def policy_of(run: RunOptions, output: OutputOptions, model: ModelOptions | ComputeOptions) -> Policy:
    """Return how a run behaves, by the options of a command."""
    return Policy(run.dry_run, output.stale, run.fail_fast, run.retries, run.report, model.cluster)


def modalities(names: str) -> tuple[str, ...]:
    """Return the names of modalities that can be made, of a comma-separated option."""
    from tmtool.modality import find

    return tuple(find(name, output=True).name for name in split(names))
