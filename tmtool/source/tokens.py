"""Token rasters that `tmtool tokenize` wrote, as sources."""

import os
from dataclasses import replace

from tmtool.errors import InputError
from tmtool.grid import PATCH, Grid
from tmtool.modality import MODALITIES, TOKEN_NODATA
from tmtool.source.opening import Source, opened, provenance


def token_source(path: str) -> Source | None:
    """Return the token raster at `path`, or None if it is something else.

    Raises `InputError` for one that is damaged, or that lacks the file that tells its pixels without data.
    """
    with opened(path) as src:
        made = provenance(src)
        if made.get("task") != "tokenize" or "codebook" not in made:
            return None
        grid = Grid(src.crs, src.transform, src.shape)
        whole = grid.finer(PATCH, (made["source"]["height"], made["source"]["width"]))
        if src.count != 1 or src.dtypes[0] != "uint16" or whole.coarser(PATCH) != grid:
            raise InputError(
                f"{path}: is no longer the token raster that tmtool wrote for {whole.shape[0]} x {whole.shape[1]} px; it "
                f"has {src.count} band(s) of {src.dtypes[0]}, {src.height} x {src.width}. Tokenize the raster again."
            )
        source = Source(
            path,
            MODALITIES[made["modality"]],
            "its tmtool provenance",
            whole,
            (1,),
            "uint16",
            float(TOKEN_NODATA),
            "token raster",
            False,
            src.block_shapes[0],
            0.0,
            "tokens",
            scale=PATCH,
            made=made,
        )
    beside = made["validity"] and os.path.join(os.path.dirname(path), made["validity"])
    return replace(source, validity=_validity(source, beside)) if beside else source


def _validity(tokens: Source, path: str) -> Source:
    try:
        with opened(path) as src:
            grid, block = Grid(src.crs, src.transform, src.shape), src.block_shapes[0]
    except InputError as error:
        raise InputError(
            f"{tokens.path}: its raster had pixels without data, which are told by {os.path.basename(path)}; that has to "
            f"lie beside it. {error}"
        ) from error
    if grid != tokens.grid:
        raise InputError(f"{path}: does not belong to {tokens.path}: it lies at {grid}, expected {tokens.grid}.")
    return replace(tokens, path=path, dtype="uint8", nodata=0.0, block=block, scale=1)
