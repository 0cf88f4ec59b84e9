"""Clay v1 and v1.5, as encoders of ten bands of Sentinel-2."""

from tmtool.models.clay import MODELS
from tmtool.models.facts import VitEntry
from tmtool.models.registry import register

for _facts in MODELS.values():
    register(_facts.name, VitEntry.of(_facts, "tmtool.models.clay"))
