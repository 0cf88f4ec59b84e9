"""Prithvi-EO 1.0 and 2.0 (IBM/NASA), as encoders: six bands of HLS at up to four dates, patches of 16 or 14 px.

Facts are those of terratorch's `prithvi_vit`, to which a test holds them. Prithvi learned of Harmonized Landsat and
Sentinel-2 at 30 m, whose Sentinel-2 bands are those here. As a masked autoencoder it predicts only patches that it does not
see: what its decoder says of visible ones was never trained, so there is no `reconstruct` by it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tmtool.models.vit.facts import Facts
from tmtool.models.weights import WeightFile, read_state

if TYPE_CHECKING:
    from torch import Tensor

    from tmtool.models import ModelSpec
    from tmtool.models.vit._network import VitEmbedder

BANDS = ("B02", "B03", "B04", "B8A", "B11", "B12")
_V1 = ((775.0, 1081.0, 1229.0, 2497.0, 2204.0, 1611.0), (1282.0, 1270.0, 1399.0, 1368.0, 1292.0, 1155.0))
_V2 = ((1087.0, 1342.0, 1433.0, 2734.0, 1958.0, 1363.0), (2248.0, 2179.0, 2178.0, 1850.0, 1242.0, 1049.0))
_ORGANISATION = "ibm-nasa-geospatial"


def _facts(name: str, size: str, shape: tuple[int, int, int], parameters_m: float, megabytes: int) -> Facts:
    """Return the facts of a model: `size` as the hub spells it, `shape` its width, depth and heads."""
    version, tl = ("1" if "-v1-" in name else "2"), name.endswith("-tl")
    patch = 14 if size.startswith("600M") else 16
    mean, std = _V1 if version == "1" else _V2
    dim, depth, heads = shape
    return Facts(
        name=name,
        title=f"Prithvi-EO {version}.0 {size}",
        registry=name.replace("-", "_"),
        file=WeightFile(
            f"{_ORGANISATION}/Prithvi-EO-{version}.0-{size}",
            f"Prithvi_EO_V{version}_{size.replace('-', '_')}.pt",
            megabytes,
        ),
        dim=dim,
        depth=depth,
        heads=heads,
        patch=patch,
        image=224,
        tiling=(224, 224 - 2 * patch, patch),
        bands=BANDS,
        mean=mean,
        std=std,
        parameters_m=parameters_m,
        dates=3 if version == "1" else 4,
        pixel_m=30.0,
        time=tl,
        place=tl,
    )


MODELS = {
    facts.name: facts
    for facts in (
        _facts("prithvi-eo-v1-100", "100M", (768, 12, 12), 86.2, 454),
        _facts("prithvi-eo-v2-tiny-tl", "tiny-TL", (192, 12, 3), 5.6, 128),
        _facts("prithvi-eo-v2-100-tl", "100M-TL", (768, 12, 12), 86.2, 455),
        _facts("prithvi-eo-v2-300", "300M", (1024, 24, 16), 303.9, 1327),
        _facts("prithvi-eo-v2-300-tl", "300M-TL", (1024, 24, 16), 303.9, 1327),
        _facts("prithvi-eo-v2-600", "600M", (1280, 32, 16), 631.2, 2638),
        _facts("prithvi-eo-v2-600-tl", "600M-TL", (1280, 32, 16), 631.2, 2638),
    )
}


def encoder_tensors(state: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Return an autoencoder's tensors that are its encoder's, by the encoder's names.

    The hub's files of 2.0 put `encoder.` before those names, that of 1.0 nothing. Position codes are recomputed, as
    terratorch does: they depend on the number of dates.
    """
    own = {key.removeprefix("encoder."): value for key, value in state.items() if not _is_decoders(key)}
    own.pop("pos_embed", None)
    return own


def _is_decoders(key: str) -> bool:
    return key.startswith("decoder") or key == "mask_token"


def build(spec: "ModelSpec") -> "VitEmbedder":
    """Build the encoder that `spec` names, load its weights, and put it on its device."""
    from tmtool.models.vit._network import Prithvi, VitEmbedder, filled

    facts = MODELS[spec.name]
    return VitEmbedder(filled(Prithvi, facts, spec, lambda path: encoder_tensors(read_state(path))), spec)
