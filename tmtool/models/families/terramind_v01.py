"""TerraMind 0.1 (base only), as terratorch 1.2.11 has it; a test holds its facts equal to terratorch's tables.

It was pretrained on SSL4EO-S12 v1.1, apart from TerraMind 1.0: S2L2A enters as pixels, S1GRD, DEM and LULC as tokens only,
and land use is in the nine classes of Dynamic World. There are no S1RTC, S2L1C, RGB and NDVI. Its repositories are closed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from tmtool.modality import MODALITIES, S2_BANDS, Modality
from tmtool.models.entry import ModelSpec
from tmtool.models.families.terramind import V1_STATISTICS, TerraMind, sequences_of, tokenizers_of
from tmtool.models.registry import register
from tmtool.models.weights import WeightFile, coords_file

_ORGANISATION = "FAST-EO"
_ACCESS = (
    "TerraMind 0.1 is not public. Ask FAST-EO for access (https://huggingface.co/FAST-EO), and set HF_TOKEN to a token of "
    "the account that has it."
)
_TOKENIZER_MB = {"S2L2A": 1157, "S1GRD": 1146, "DEM": 1145, "LULC": 736}

DYNAMIC_WORLD_CLASSES = (
    ("water", "#419BDF"),
    ("trees", "#397D49"),
    ("grass", "#88B053"),
    ("flooded vegetation", "#7A87C6"),
    ("crops", "#E49635"),
    ("shrub and scrub", "#DFC35A"),
    ("built area", "#C4281B"),
    ("bare ground", "#A59B8F"),
    ("snow/ice", "#B39FE1"),
)

_S2_MEAN = (
    *(794.311, 925.161, 1183.128, 1338.041, 1667.254, 2233.633),
    *(2460.96, 2555.569, 2619.542, 2703.298, 2406.497, 1841.645),
)
_S2_STD = (
    *(1164.883, 1205.586, 1223.713, 1399.638, 1403.298, 1378.513),
    *(1434.924, 1491.141, 1454.089, 1660.395, 1473.248, 1365.080),
)

V01_STATISTICS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "S2L2A": dict(zip(S2_BANDS, zip(_S2_MEAN, _S2_STD, strict=True), strict=True)),
    "S1GRD": V1_STATISTICS["S1GRD"],
    "DEM": {"elevation": (435.726, 560.326)},
}
"""Its pretraining means and standard deviations: `v01_pretraining_mean` and `v01_pretraining_std` of terratorch."""

V01_MODALITIES: Mapping[str, Modality] = {
    "S2L2A": MODALITIES["S2L2A"],
    "S1GRD": replace(MODALITIES["S1GRD"], raw_key=None),
    "DEM": replace(MODALITIES["DEM"], raw_key=None),
    "LULC": replace(MODALITIES["LULC"], nodata=255, classes=DYNAMIC_WORLD_CLASSES),  # class 0 is water, not nodata
}


def core_file() -> WeightFile:
    """Return the file of the encoder-decoder."""
    return WeightFile(
        f"{_ORGANISATION}/TerraMind-0.1-base", "TerraMind_v01_base.pt", 1331, "encoder_embeddings.", _ACCESS
    )


def tokenizer_file(modality: str) -> WeightFile:
    """Return the file of a modality's tokenizer."""
    name = f"{_ORGANISATION}/TerraMind-v0.1-Tokenizer-{modality}"
    return WeightFile(name, f"TerraMind_v01_Tokenizer_{modality}.pt", _TOKENIZER_MB[modality], "quant_proj.", _ACCESS)


def caption_file() -> WeightFile:
    """Return the file of the vocabulary of captions."""
    return WeightFile(f"{_ORGANISATION}/TerraMind-v0.1-Tokenizer-Text", "config.json", 1, access=_ACCESS)


@dataclass(frozen=True)
class TerraMindV01(TerraMind):
    """TerraMind 0.1. Its coordinates are TerraMind 1.0's."""

    version: ClassVar[str] = "v01"
    statistics: ClassVar[Mapping[str, Mapping[str, tuple[float, float]]]] = V01_STATISTICS
    modalities: ClassVar[Mapping[str, Modality]] = V01_MODALITIES

    def files(self, spec: ModelSpec) -> tuple[WeightFile, ...]:
        """Return the core's file, those of the tokenizers in use, and those of vocabularies."""
        core = (core_file(),) if spec.request.by_core and not spec.request.checkpoint else ()
        tokenizers = (tokenizer_file(m) for m in tokenizers_of(spec))
        return (*core, *tokenizers, *(self.vocabulary_file(m) for m in sequences_of(spec)))

    def vocabulary_file(self, sequence: str) -> WeightFile:
        """Return the file of the words of a sequence."""
        return caption_file() if sequence == "caption" else coords_file()


register(
    "v01-base",
    TerraMindV01(
        title="TerraMind 0.1 base",
        module="tmtool.models.terramind.build",
        inputs=tuple(V01_MODALITIES),
        outputs=tuple(V01_MODALITIES),
        sequences=("coords", "caption"),
        size="base",
        parameters_m=229.0,
    ),
)
