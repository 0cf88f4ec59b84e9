"""Rasters as they come: what a file is, whether it can be used, and its pixels and validity window by window."""

from tmtool.source.grids import centres, check_one_grid, pixel_size_m
from tmtool.source.inspection import inspect
from tmtool.source.opening import Source, opened, provenance
from tmtool.source.reader import Reader, set_block_cache
from tmtool.source.tokens import token_source

__all__ = [
    "Reader",
    "Source",
    "centres",
    "check_one_grid",
    "inspect",
    "opened",
    "pixel_size_m",
    "provenance",
    "set_block_cache",
    "token_source",
]
