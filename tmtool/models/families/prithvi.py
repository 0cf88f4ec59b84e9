"""Prithvi-EO 1.0 and 2.0, as encoders of six bands of Sentinel-2."""

from tmtool.models.facts import VitEntry
from tmtool.models.prithvi import MODELS
from tmtool.models.registry import register

for _facts in MODELS.values():
    register(_facts.name, VitEntry.of(_facts, "tmtool.models.prithvi"))
