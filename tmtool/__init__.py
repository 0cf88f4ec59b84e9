"""tmtool: run the TerraMind foundation models over geospatial rasters of any size, from the command line or from Python."""

import logging
from typing import TYPE_CHECKING, Any

from tmtool.names import clean_record

if TYPE_CHECKING:
    from tmtool.api import embed, generate, reconstruct, tokenize

__version__ = "0.1.0"
__all__ = ["embed", "generate", "reconstruct", "tokenize"]

logging.getLogger("tmtool").addFilter(clean_record)


def __getattr__(name: str) -> Any:
    """Import the functions when they are asked for: xarray and torch are heavy."""
    if name in __all__:
        from tmtool import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
