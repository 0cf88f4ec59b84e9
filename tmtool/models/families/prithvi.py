"""Prithvi-EO 1.0 and 2.0, as encoders of six bands of Sentinel-2."""

from tmtool.models.registry import register
from tmtool.models.vit.facts import VitEntry
from tmtool.models.vit.prithvi import MODELS

for _facts in MODELS.values():
    register(_facts.name, VitEntry.of(_facts, "tmtool.models.vit.prithvi"))
