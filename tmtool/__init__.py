"""tmtool: run the TerraMind foundation models over geospatial rasters of any size, from the command line or from Python."""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tmtool.names import clean_record

if TYPE_CHECKING:
    from tmtool.api import embed, generate, predict, reconstruct, tokenize
    from tmtool.api import open_raster as open
    from tmtool.batch import Listing, Policy, list_scenes, run_batch
    from tmtool.scene.job import Job

__version__ = "0.1.0"
__all__ = [
    "Job",
    "Listing",
    "Policy",
    "embed",
    "generate",
    "list_scenes",
    "open",
    "predict",
    "reconstruct",
    "run_batch",
    "tokenize",
]

_WHERE = {
    **dict.fromkeys(("embed", "generate", "predict", "reconstruct", "tokenize"), "tmtool.api"),
    **dict.fromkeys(("Listing", "Policy", "list_scenes", "run_batch"), "tmtool.batch"),
    "Job": "tmtool.scene.job",
    "open": "tmtool.api",
}
_CALLED = {"open": "open_raster"}
"""Names there, where another one suits better."""

logging.getLogger("tmtool").addFilter(clean_record)


def __getattr__(name: str) -> Any:
    """Import what is public when it is asked for: xarray and torch are heavy."""
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), _CALLED.get(name, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
