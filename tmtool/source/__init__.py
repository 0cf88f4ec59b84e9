"""Input rasters: what a file or an array is, whether it can be used, and its pixels and validity window by window."""

from tmtool.source._grids import centres, check_one_grid, pixel_size_m
from tmtool.source._held import Held
from tmtool.source._inspection import band_names, inspect
from tmtool.source._opening import Source, opened
from tmtool.source._reader import Reader, set_block_cache
from tmtool.source._tokens import token_source
from tmtool.source._values import BandValues

__all__ = [
    "BandValues",
    "Held",
    "Reader",
    "Source",
    "centres",
    "band_names",
    "check_one_grid",
    "inspect",
    "opened",
    "pixel_size_m",
    "set_block_cache",
    "token_source",
]
