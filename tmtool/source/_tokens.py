"""Token rasters that `tmtool tokenize` wrote, or `tmtool.tokenize` returned, as sources."""

import os
from dataclasses import replace
from typing import Any

from tmtool.errors import InputError
from tmtool.modality import MODALITIES, TOKEN_NODATA, TOKEN_PX
from tmtool.source._arrays import described_array
from tmtool.source._opening import Description, Source, described
from tmtool.source.deliveries import is_delivery

_TOKENS = "tokenize"
"""The task that token rasters are products of."""


def token_source(raster: Any) -> Source | None:
    """Return a token raster as a source, or None if `raster` is something else.

    It is the path of one, or the `xarray.Dataset` of the tokens and their validity. Raises `InputError` for one that is
    damaged, or that lacks the mask of its pixels without data.
    """
    if isinstance(raster, str) and is_delivery(raster):
        return None
    found = described(raster, points=True) if isinstance(raster, str) else described_array(_tokens_of(raster))
    made = found.made
    if made is None or made.task != _TOKENS or "codebook" not in made.details:
        return None
    grid, count, dtype = found.grid, len(found.dtypes), found.dtypes[0]
    whole = grid.finer(TOKEN_PX, (made.details["source"]["height"], made.details["source"]["width"]))
    if count != 1 or dtype != "uint16" or whole.coarser(TOKEN_PX) != grid:
        raise InputError(
            f"{found.path}: is no longer the token raster that tmtool wrote for {whole.shape[0]} x {whole.shape[1]} px; it "
            f"has {count} band(s) of {dtype}, {grid.shape[0]} x {grid.shape[1]}. Tokenize the raster again."
        )
    source = Source(
        found.path,
        MODALITIES[made.modality],
        "its tmtool provenance",
        whole,
        (1,),
        "uint16",
        float(TOKEN_NODATA),
        "token raster",
        False,
        found.blocks[0],
        0.0,
        "tokens",
        scale=TOKEN_PX,
        made=made,
        array=found.array,
    )
    return replace(source, validity=_validity(source, raster)) if made.validity else source


def _tokens_of(raster: Any) -> Any:
    """Return the tokens among the variables of a Dataset; anything else is returned unchanged."""
    variables = getattr(raster, "data_vars", {})
    return next((raster[name] for name in variables if str(name).endswith("_tokens")), raster)


def _validity(tokens: Source, raster: Any) -> Source:
    """Return the source that marks which pixels of a token raster hold data: the file, or the variable, beside it."""
    found = _file_beside(tokens, raster) if isinstance(raster, str) else _variable_beside(tokens, raster)
    if found.grid != tokens.grid:
        raise InputError(
            f"{found.path}: does not belong to {tokens.path}: it lies at {found.grid}, expected {tokens.grid}."
        )
    return replace(
        tokens, path=found.path, dtype="uint8", nodata=0.0, block=found.blocks[0], scale=1, array=found.array
    )


def _file_beside(tokens: Source, path: str) -> Description:
    name = (tokens.made and tokens.made.validity) or ""
    try:
        return described(os.path.join(os.path.dirname(path), name))
    except InputError as error:
        raise InputError(
            f"{tokens.path}: its raster had pixels without data, which {name} marks; that file has to be beside it. {error}"
        ) from error


def _variable_beside(tokens: Source, raster: Any) -> Description:
    name = f"{tokens.modality.name}_valid"
    if name not in getattr(raster, "data_vars", ()):
        raise InputError(
            f"{tokens.path}: comes without {name}, which marks the pixels without data: give the whole Dataset that "
            "tokenize returned."
        )
    return described_array(raster[name])
