"""Clay v1 and v1.5, as encoders of ten bands of Sentinel-2."""

from tmtool.models.registry import register
from tmtool.models.vit.clay import MODELS
from tmtool.models.vit.facts import VitEntry

for _facts in MODELS.values():
    register(_facts.name, VitEntry.of(_facts, "tmtool.models.vit.clay"))
