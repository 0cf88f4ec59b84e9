"""Clay v1 and v1.5 (Clay Foundation), as encoders of Sentinel-2: ten bands, one date, patches of 8 px.

Clay makes its patch embedding of the bands' wavelengths. Means, standard deviations, wavelengths and the size of a pixel are
those of `sentinel-2-l2a` in Clay's own `configs/metadata.yaml`, which terratorch asks its users for.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from tmtool.models.vit.facts import Facts
from tmtool.models.weights import WeightFile, checkpoint_state

if TYPE_CHECKING:
    from torch import Tensor

    from tmtool.models import ModelSpec
    from tmtool.models.vit._network import VitEmbedder

_ENCODER = "model.encoder."

_V15 = Facts(
    name="clay-v1.5",
    title="Clay 1.5",
    registry="clay_v15",
    file=WeightFile("made-with-clay/Clay", "v1.5/clay-v1.5.ckpt", 5160),
    dim=1024,
    depth=24,
    heads=16,
    patch=8,
    image=256,
    tiling=(256, 240, 8),
    bands=("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"),
    mean=(1105.0, 1355.0, 1552.0, 1887.0, 2422.0, 2630.0, 2743.0, 2785.0, 2388.0, 1835.0),
    std=(1809.0, 1757.0, 1888.0, 1870.0, 1732.0, 1697.0, 1742.0, 1648.0, 1470.0, 1379.0),
    parameters_m=311.4,
    time=True,
    place=True,
    wavelengths=(0.493, 0.56, 0.665, 0.704, 0.74, 0.783, 0.842, 0.865, 1.61, 2.19),
    gsd=10.0,
)

MODELS = {
    "clay-v1": replace(
        _V15,
        name="clay-v1",
        title="Clay 1.0",
        registry="clay_v1_base",
        file=WeightFile("made-with-clay/Clay-legacy", "v1/clay-v1-base.ckpt", 1730),
        dim=768,
        depth=12,
        heads=12,
        parameters_m=92.1,
    ),
    "clay-v1.5": _V15,
}


def encoder_tensors(state: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Return the encoder's tensors of Clay's training module, which holds a decoder and a teacher besides."""
    return {key.removeprefix(_ENCODER): value for key, value in state.items() if key.startswith(_ENCODER)}


def build(spec: "ModelSpec") -> "VitEmbedder":
    """Build the encoder that `spec` names, load its weights, and put it on its device."""
    from tmtool.models.vit._network import Clay, VitEmbedder, filled

    facts = MODELS[spec.name]
    return VitEmbedder(filled(Clay, facts, spec, lambda path: encoder_tensors(checkpoint_state(path))), spec)
