"""`tmtool compare`."""

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

from tmtool.cli import _options as o
from tmtool.cli._compose import composed
from tmtool.cli._session import command
from tmtool.errors import EXIT_NOTHING_TO_DO, EXIT_SOME_FAILED, TmtoolError, UsageError
from tmtool.settings import Reading

_log = logging.getLogger("tmtool")

Generated = Annotated[
    Path, typer.Argument(metavar="GENERATED", help="A product, or a folder of them.", show_default=False)
]
Reference = Annotated[
    Path,
    typer.Argument(
        metavar="REFERENCE",
        help="What it is held against: a raster of the same, or a folder of rasters with the products' or their scenes' names.",
        show_default=False,
    ),
]
Warp = Annotated[bool, typer.Option("--warp", help="Warp the reference to the product's grid.")]
CompareIn = Annotated[
    str,
    typer.Option("--in", metavar="MOD", show_default="what the product says", help="What the product is."),
]
ErrorMap = Annotated[
    Path | None,
    typer.Option(
        "--error-map",
        metavar="F",
        show_default="none",
        help="Write the difference of each band, product minus reference, as a COG; of classes and tokens 1 where they differ.",
    ),
]


Zones = Annotated[
    str,
    typer.Option(
        "--zones",
        metavar="F",
        show_default="none",
        help="Say the same for each polygon of this vector file, in its order.",
    ),
]
Tiles = Annotated[
    bool,
    typer.Option(
        "--tiles",
        help="Say the same for each tile that the product was made of, of the pixels nearest to its centre; in text the worst ten.",
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option(
        "--plot",
        metavar="F",
        show_default="none",
        help="Draw a PNG: reference against product by band, or the confusion of classes.",
    ),
]


@composed
def compare(
    generated: Generated,
    reference: Reference,
    log: o.LogOptions,
    in_: CompareIn = "",
    warp: Warp = False,
    resampling: o.Resampling = Reading.resampling,
    unit: o.UnitOption = None,
    lulc_codes: o.LulcCodes = Reading.lulc_codes,
    s2_offset: o.S2Offset = None,
    error_map: ErrorMap = None,
    zones: Zones = "",
    tiles: Tiles = False,
    plot: Plot = None,
    json_: o.Json = False,
) -> None:
    """Say how well products agree with a reference, on the pixels that are valid in both.

    Bands: bias, MAE, RMSE, r, PSNR, SSIM, and the RMSE of the gradient. Classes: accuracy, mIoU, F1, kappa, each class, the
    confusion (--json). Tokens: the share of equal codes. Embeddings: the cosine.

    Example: tmtool compare out/Santiago_S1GRD.tif Santiago_s1.tif --warp

    Example: tmtool compare out/ truth/ --tiles --json
    """
    with command(log):
        from tmtool.pictures.plots import plot as draw
        from tmtool.products.agreement import text, worst_text
        from tmtool.scene.comparing import Also, paired
        from tmtool.scene.comparing import compare as held
        from tmtool.source import units_of

        how = Reading(s2_offset, units_of(unit or ()), lulc_codes, resampling=resampling)
        pairs = paired(generated, reference)
        for option, path in (("--error-map", error_map), ("--plot", plot)):
            if path and len(pairs) > 1:
                raise UsageError(f"{option} {path}: is one file, for one product; here are {len(pairs)}.")
        also, failed = Also(error_map, zones, tiles, joint=plot is not None), 0
        for product, other in pairs:
            try:
                found = held(str(product), str(other), how, modality=in_, warp=warp, also=also)
                if plot:
                    draw(plot, f"{product.stem} and {other.stem}", found.unit, found.found, found.joint)
            except TmtoolError as error:
                _log.error("%s", error)
                failed += 1
                continue
            if json_:
                said = {"product": found.product, "reference": found.reference, "kind": found.kind, **found.found}
                said |= ({"zones": found.zones} if zones else {}) | ({"tiles": found.tiles} if tiles else {})
                print(json.dumps(said), flush=True)
            else:
                print(f"{found.product}, {found.kind}: {text(found.found, found.unit)}", flush=True)
                for number, zone in enumerate(found.zones, 1):
                    print(f"zone {number}: {text(zone, found.unit)}", flush=True)
                if tiles:
                    print(worst_text(found.tiles, found.unit), flush=True)
        if failed:
            raise typer.Exit(EXIT_NOTHING_TO_DO if failed == len(pairs) else EXIT_SOME_FAILED)
