"""Units that rasters may be in, and how their values are brought to the modality's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tmtool.errors import UsageError
from tmtool.modality import Modality, find


@dataclass(frozen=True)
class Unit:
    """A value in the modality's unit is `gain` times the raster's; of linear `power`, 10 log10 of it."""

    gain: float = 1.0
    power: bool = False


_UNITS: Mapping[str, Mapping[str, Unit]] = {  # by the modality's own unit, which comes first
    "DN": {"dn": Unit(), "reflectance": Unit(10_000)},
    "dB": {"db": Unit(), "linear": Unit(power=True)},
    "m": {"m": Unit(), "feet": Unit(0.3048)},
}
_SAID = {"ft": "feet", "foot": "feet", "feet": "feet", "us survey foot": "feet", "us-ft": "feet"}
"""Units of bands that a file may declare, and what they are called here."""

CODES: Mapping[str, Mapping[int, int]] = {
    "terramind": {},
    "esri": {0: 0, 1: 1, 2: 2, 4: 3, 5: 4, 7: 5, 8: 6, 9: 7, 10: 8, 11: 9},
    "worldcover": {0: 0, 10: 2, 20: 9, 30: 9, 40: 4, 50: 5, 60: 6, 70: 7, 80: 1, 90: 3, 95: 3, 100: 9},
    "dynamicworld": {0: 1, 1: 2, 2: 9, 3: 3, 4: 4, 5: 9, 6: 5, 7: 6, 8: 7},
}
"""Which of TerraMind's classes stands for each code of other legends: Esri's land cover (2017 on), ESA's WorldCover, Google's
Dynamic World. Shrubs, grass, moss and lichen are rangeland; mangroves and wetland herbs are flooded vegetation."""


def table(codes: str) -> tuple[int, ...]:
    """Return the class for each code from 0 to 255, -1 where the legend has none; empty for TerraMind's own."""
    known = CODES[codes]
    return tuple(known.get(code, -1) for code in range(256)) if known else ()


def units_of(options: Sequence[str]) -> dict[str, str]:
    """Return the units that `--unit MOD=UNIT` says, by modality. Raises `UsageError`."""
    said = {}
    for text in options:
        name, equals, unit = text.partition("=")
        modality = find(name)
        known = _UNITS.get(modality.unit, {})
        if not equals or unit.lower() not in known:
            choices = " or ".join(known) or f"nothing but {modality.unit}"
            raise UsageError(f"--unit {text}: say --unit {modality.name}=UNIT; a raster of it may be in {choices}.")
        said[modality.name] = unit.lower()
    return said


def unit_of(
    modality: Modality, asked: Mapping[str, str], declared: Sequence[str | None], power: bool
) -> tuple[Unit, str]:
    """Return the unit of a raster of a modality, and what says so; nothing if it is the modality's own."""
    known = _UNITS.get(modality.unit, {})
    if name := asked.get(modality.name):
        return known[name], f"{name}, by --unit"
    if power and "linear" in known:
        return known["linear"], "linear, as such products are"
    names = {_SAID.get((text or "").strip().lower(), "") for text in declared}
    for unit in names & set(known) if len(names) == 1 else ():
        return known[unit], f"{unit}, as its bands say"
    return Unit(), ""
