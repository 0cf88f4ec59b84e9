"""Input rasters: what a file or an array is, whether it can be used, and its pixels and validity window by window."""

from tmtool.source._align import check_reading, footprint, grid_of, masked, on_grid, same_grid
from tmtool.source._extent import Place, placed
from tmtool.source._grids import centres, pixel_size_m
from tmtool.source._held import Held
from tmtool.source._inspection import band_names, describe, inspect
from tmtool.source._masks import ShapeMask
from tmtool.source._opening import Source, opened
from tmtool.source._reader import Reader, set_block_cache
from tmtool.source._sample import valid_share
from tmtool.source._tokens import token_source
from tmtool.source._units import units_of
from tmtool.source._values import BandValues
from tmtool.source._vectors import shapes_of
from tmtool.source._vrt import absolute

__all__ = [
    "BandValues",
    "Held",
    "Place",
    "Reader",
    "ShapeMask",
    "Source",
    "absolute",
    "band_names",
    "centres",
    "describe",
    "check_reading",
    "footprint",
    "grid_of",
    "inspect",
    "masked",
    "on_grid",
    "opened",
    "pixel_size_m",
    "placed",
    "same_grid",
    "set_block_cache",
    "shapes_of",
    "token_source",
    "units_of",
    "valid_share",
]
