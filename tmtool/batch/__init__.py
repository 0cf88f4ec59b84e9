"""Many scenes: list them, claim them, run those that are not done, on this machine or a cluster, and report."""

from tmtool.batch._listing import Listing, bands_of, is_product, list_scenes
from tmtool.batch._outcome import Outcome, Tally
from tmtool.batch._place import Folder, place_of
from tmtool.batch._run import run_batch
from tmtool.settings import Policy

__all__ = [
    "Folder",
    "Listing",
    "Outcome",
    "Policy",
    "Tally",
    "bands_of",
    "is_product",
    "list_scenes",
    "place_of",
    "run_batch",
]
