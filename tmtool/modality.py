"""The modalities: bands, unit, classes, codebook, and how each is written.

Facts that depend on the model, such as pretraining statistics, belong to the model's entry.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tmtool.errors import UsageError

S2_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
S2_NAMES = {  # terratorch's band names, which stacked rasters often carry
    "COASTAL_AEROSOL": "B01",
    "BLUE": "B02",
    "GREEN": "B03",
    "RED": "B04",
    "RED_EDGE_1": "B05",
    "RED_EDGE_2": "B06",
    "RED_EDGE_3": "B07",
    "NIR_BROAD": "B08",
    "NIR_NARROW": "B8A",
    "WATER_VAPOR": "B09",
    "CIRRUS": "B10",
    "SWIR_1": "B11",
    "SWIR_2": "B12",
}

_BAND_ALIASES = (("RED", "R"), ("GREEN", "G"), ("BLUE", "B"), ("DEM", "ELEVATION"))
TOKEN_NODATA = 65_535
TOKEN_PX = 16
"""Side of what one token stands for, in source px: the patch of TerraMind's tokenizers."""

LULC_CLASSES = (
    ("no data", "#000000"),
    ("water", "#3171AD"),
    ("trees", "#469C76"),
    ("flooded vegetation", "#83CA70"),
    ("crops", "#EAE159"),
    ("built area", "#C07CB8"),
    ("bare ground", "#C19368"),
    ("snow/ice", "#6FB2E4"),
    ("clouds", "#F1F1F1"),
    ("rangeland", "#C66526"),
)


@dataclass(frozen=True)
class Modality:
    """One kind of raster that TerraMind knows.

    `raw_key` is the model's key for pixels as they are, `token_key`
    the one for tokens of the modality's tokenizer; either may be absent. `dtype`, `nodata`, `scale` and `valid_range`
    describe the product. `classes` holds (name, colour) of each class where the values are classes.
    """

    name: str
    bands: tuple[str, ...]
    unit: str
    raw_key: str | None = None
    token_key: str | None = None
    dtype: str = "float32"
    nodata: float = float("nan")
    scale: float = 1.0
    valid_range: tuple[float, float] | None = None
    classes: tuple[tuple[str, str], ...] = ()
    codebook: str = ""
    page: str = ""
    """Where its publisher describes it, if there is one alone."""

    @property
    def channels(self) -> int:
        """Channels of the model's output: one a band, or one a class."""
        return len(self.classes) or len(self.bands)

    def subset(self, names: Sequence[str]) -> "Modality":
        """Return the modality with these bands only, in this order; raises `UsageError` for one that it does not have.

        Bands are known by tmtool's and by TerraTorch's names.
        """
        own = {band.upper(): i for i, band in enumerate(self.bands)}
        own |= {other: own[band] for other, band in (*S2_NAMES.items(), *_BAND_ALIASES) if band in own}
        index = [own.get(name.strip().upper()) for name in names]
        if unknown := [name for name, i in zip(names, index, strict=True) if i is None]:
            raise UsageError(f"{self.name} has no band {', '.join(unknown)}; it has {' '.join(self.bands)}.")
        chosen = [i for i in index if i is not None]
        if len(set(chosen)) < len(chosen) or not chosen or self.raw_key is None:
            why = "is taken as tokens, whole" if self.raw_key is None else "needs each band once"
            raise UsageError(f"--bands {self.name}={','.join(names)}: {self.name} {why}.")
        return replace(self, bands=tuple(self.bands[i] for i in chosen))

    @property
    def levels(self) -> tuple[int, ...]:
        """Levels of each digit of the tokenizer's codebook."""
        return tuple(int(level) for level in self.codebook.split("-")) if self.codebook else ()

    @property
    def vocabulary(self) -> int:
        """Number of codes of the tokenizer."""
        return math.prod(self.levels)

    @property
    def middle_token(self) -> int:
        """The code in the middle of the codebook, which stands in for cells without data."""
        token, base = 0, 1
        for level in self.levels:
            token, base = token + level // 2 * base, base * level
        return token

    @property
    def is_optical(self) -> bool:
        """Whether values are Sentinel-2 digital numbers (DN = reflectance x 10 000)."""
        return self.unit == "DN"

    @property
    def is_radar(self) -> bool:
        """Whether values are Sentinel-1 backscatter in dB."""
        return self.unit == "dB"


_FSQ_16K = "8-8-8-6-5"
_SENTINEL_1, _SENTINEL_2 = (f"https://sentiwiki.copernicus.eu/web/s{i}-products" for i in (1, 2))

_ALL = (
    Modality(
        "S2L2A",
        S2_BANDS,
        "DN",
        raw_key="untok_sen2l2a@224",
        token_key="tok_sen2l2a@224",
        dtype="uint16",
        nodata=0,
        scale=0.0001,
        valid_range=(1, 65535),
        codebook=_FSQ_16K,
        page=_SENTINEL_2,
    ),
    Modality(
        "S2L1C",
        (*S2_BANDS[:10], "B10", *S2_BANDS[10:]),
        "DN",
        raw_key="untok_sen2l1c@224",
        page=_SENTINEL_2,
    ),
    Modality(
        "RGB",
        ("R", "G", "B"),
        "0-255",
        raw_key="untok_sen2rgb@224",
    ),
    Modality(
        "S1GRD",
        ("VV", "VH"),
        "dB",
        raw_key="untok_sen1grd@224",
        token_key="tok_sen1grd@224",
        codebook=_FSQ_16K,
        page=_SENTINEL_1,
    ),
    Modality(
        "S1RTC",
        ("VV", "VH"),
        "dB",
        raw_key="untok_sen1rtc@224",
        token_key="tok_sen1rtc@224",
        codebook=_FSQ_16K,
        page=_SENTINEL_1,
    ),
    Modality(
        "DEM",
        ("elevation",),
        "m",
        raw_key="untok_dem@224",
        token_key="tok_dem@224",
        codebook=_FSQ_16K,
    ),
    Modality(
        "LULC",
        ("class",),
        "class",
        token_key="tok_lulc@224",
        dtype="uint8",
        nodata=0,
        classes=LULC_CLASSES,
        codebook="7-5-5-5-5",
    ),
    Modality(
        "NDVI",
        ("NDVI",),
        "1",
        token_key="tok_ndvi@224",
        valid_range=(-1.0, 1.0),
        codebook=_FSQ_16K,
    ),
)

MODALITIES: dict[str, Modality] = {m.name: m for m in _ALL}
INPUTS: tuple[str, ...] = tuple(MODALITIES)
OUTPUTS: tuple[str, ...] = tuple(m.name for m in _ALL if m.token_key)
_ALIASES = {"S2RGB": "RGB", "S1": "S1GRD", "S2": "S2L2A", "LANDCOVER": "LULC"}


def find(name: str, *, output: bool = False) -> Modality:
    """Return the modality called `name` (any case; `-` and `_` are ignored).

    Raises `UsageError` with the nearest name if there is none, and with `output` if it can only be an input.
    """
    key = name.strip().upper().replace("-", "").replace("_", "")
    key = _ALIASES.get(key, key)
    if key not in MODALITIES:
        import difflib

        choices = [m.name for m in MODALITIES.values() if m.token_key or not output]
        near = difflib.get_close_matches(key, choices, n=1, cutoff=0.4)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UsageError(f"Unknown modality {name!r}. {hint}Choose from {', '.join(choices)}.")
    if output and not MODALITIES[key].token_key:
        raise UsageError(
            f"{key} is an input-only modality: TerraMind has no tokenizer for it, so it cannot be generated. "
            f"Choose outputs from {', '.join(OUTPUTS)}."
        )
    return MODALITIES[key]
