"""Whether values are plausible: a sample of each band is compared with the pretraining data."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from tmtool.errors import InputError
from tmtool.grid import FloatArray
from tmtool.modality import MODALITIES, Modality

Moments = tuple[Sequence[float], Sequence[float]]
"""Means and standard deviations of a modality's bands, in its unit."""

_FAR = 4
"""Standard deviations from the mean beyond which a band's median is far off."""
_FLAT = 1 / 50
"""Share of the pretraining standard deviation below which a band hardly varies."""
_FLAT_BY_NATURE = ("elevation", "B10")
"""Plains and clear skies hardly vary: the pretraining spread of these bands is that between places, not within one."""
_FILLS = (-9999.0, -32767.0, -32768.0)
"""Values that often stand for no data."""
_MASKS = (1.0, 255.0, 32767.0, 65535.0)
"""Values that masks often have where there is data; elsewhere they are 0."""


@dataclass(frozen=True)
class BandValues:
    """A band's valid values in a sample, in the modality's unit, offset removed; `spread` is their standard deviation.

    `expected` is (mean, standard deviation) of the pretraining data, None where values are classes.
    """

    band: str
    low: float
    median: float
    high: float
    spread: float
    expected: tuple[float, float] | None


@dataclass(frozen=True)
class _Limits:
    """(lowest, highest) of a pixel, and of the median of a band; and the expected values in words."""

    pixel: tuple[float, float]
    median: tuple[float, float]
    takes: str


_LIMITS = {  # by unit
    "DN": _Limits((-5_000, 65_535), (-5_000, 65_535), "DN (reflectance x 10 000), most of them from 0 to 10 000"),
    "reflectance": _Limits((-0.5, 6.5), (-0.5, 6.5), "reflectance, most of it from 0 to 1"),
    "0-255": _Limits((0, 255), (0, 255), "0-255"),
    "dB": _Limits(  # a corner reflector may reach 40 dB, but never half of a scene
        (-200, 60), (-60, 20), "calibrated backscatter in dB, 10*log10(sigma0 or gamma0), most of it from -40 to 10"
    ),
    "m": _Limits((-11_000, 9_000), (-11_000, 9_000), "metres; on Earth they lie from -11 000 to 9 000"),
    "class": _Limits((0, 9), (0, 9), "classes 0-9"),
    "1": _Limits((-1.5, 1.5), (-1.5, 1.5), "-1..1"),
}


def _limits(modality: Modality) -> _Limits:
    """Return the limits of a modality's unit; there are none where nothing is known of it."""
    anything = (-np.inf, np.inf)
    return _LIMITS.get(modality.unit, _Limits(anything, anything, f"finite values in {modality.unit}"))


def measured(sample: FloatArray, bands: Sequence[str], expected: Moments | None) -> tuple[BandValues, ...]:
    """Return what a sample `(C, n)` of valid values holds, an entry a band; none if there is no value."""
    if sample.size == 0:
        return ()
    known = zip(*expected, strict=True) if expected else repeat(None)
    return tuple(
        BandValues(
            band=band,
            low=float(of_band.min()),
            median=float(np.median(of_band)),
            high=float(of_band.max()),
            spread=float(of_band.std()),
            expected=own,
        )
        for band, of_band, own in zip(bands, sample.astype(np.float64), known, strict=False)
    )


def far_off(values: Sequence[BandValues]) -> Iterator[str]:
    """Yield a warning for bands whose median, and one for bands whose spread, is far from the pretraining data's."""
    known = [(v, *v.expected) for v in values if v.expected]
    off = [(v, mean, std) for v, mean, std in known if abs(v.median - mean) > _FAR * std]
    flat = [
        (v, std) for v, _, std in known if v.spread < _FLAT * std and (v.spread == 0 or v.band not in _FLAT_BY_NATURE)
    ]
    if off:
        each = "; ".join(f"{v.band} {v.median:.6g}, expected {mean:.6g} +- {std:.6g}" for v, mean, std in off)
        yield f"values are far from those of the pretraining data (median: {each}); check their unit, scale and offset"
    if flat:
        each = "; ".join(f"{v.band} {v.spread:.3g}, expected about {std:.6g}" for v, std in flat)
        yield f"values hardly vary (standard deviation: {each}); water may look so, and so does a wrong unit or scale"


def refuse_dtype(path: str, modality: Modality, dtype: str) -> None:
    """Raise `InputError` for a type that cannot hold a modality's values."""
    if modality.is_optical and np.dtype(dtype).itemsize == 1:
        raise InputError(
            f"{path}: its {len(modality.bands)} bands are {dtype}, which cannot hold {modality.name}: expected "
            f"{_limits(modality).takes}, usually as uint16. Give the product that was not scaled to 8 bits, or "
            "its red, green and blue: gdal_translate -b 4 -b 3 -b 2, and --in RGB."
        )


def refuse_values(path: str, modality: Modality, bands: Sequence[int], sample: FloatArray, offset: float) -> None:
    """Raise `InputError` if a sample `(C, n)` holds what cannot be values of a modality.

    `bands` are the numbers of its bands in the raster, `offset` was subtracted.
    """
    if sample.size == 0:
        return
    low, high = float(sample.min()), float(sample.max())
    where = f"{path}: {modality.name} values from {low:.6g} to {high:.6g}"
    _refuse_fills(path, modality, sample, offset)
    _refuse_units(where, modality, sample, offset)
    if modality.is_optical:
        _refuse_mask(f"{path}: band {bands[-1]}, taken for {modality.bands[-1]} of {modality.name},", sample, offset)
        if high < 0:
            said = f" after --s2-offset or the file's offset of {offset:g} was subtracted" if offset else ""
            raise InputError(f"{where} are all below zero{said}; expected {_LIMITS['DN'].takes}.")
    if not _possible(modality, sample):
        raise InputError(
            f"{where}{_odd_medians(modality, sample)} are impossible; expected {_limits(modality).takes}."
            f"{_cure(modality, sample)}"
        )


def _refuse_units(where: str, modality: Modality, sample: FloatArray, offset: float) -> None:
    """Refuse values in a known wrong unit, and say how to convert them."""
    low, high = float(sample.min()), float(sample.max())
    if modality.is_radar and low >= 0:
        above = float(np.median(sample)) > _LIMITS["dB"].median[1]
        raise InputError(
            f"{where} look like linear power; TerraMind takes dB. Say --unit {modality.name}=linear to have them converted."
            f"{' As dB they are impossible; amplitudes have to be calibrated first.' if above else ''}"
        )
    if modality.is_optical and 0 <= high + offset <= 2:
        raise InputError(
            f"{where} look like reflectance; TerraMind takes DN (reflectance x 10 000). Say --unit {modality.name}=reflectance."
        )
    if modality.name == "RGB" and (low < 0 or high > 255):
        raise InputError(f"{where}, but RGB takes 0-255. Scale it first (gdal_translate -ot Byte -scale).")
    if modality.classes and (low < 0 or high >= len(modality.classes) or (sample % 1).any()):
        raise InputError(
            f"{where}, but LULC takes classes 0-{len(modality.classes) - 1} (1 water, 2 trees, 3 flooded vegetation, 4 crops, "
            "5 built area, 6 bare ground, 7 snow/ice, 8 clouds, 9 rangeland). "
            "Of other legends say --lulc-codes esri (1 2 4 5 7 8 9 10 11), worldcover (10 20 ... 100) or dynamicworld (0-8)."
        )
    if modality.name == "NDVI" and (low < -1.5 or high > 1.5):
        raise InputError(f"{where}, but NDVI lies in -1..1. Divide by its scale first.{_fitting(modality, sample)}")


def _refuse_fills(path: str, modality: Modality, sample: FloatArray, offset: float) -> None:
    """Refuse impossible values that are a usual nodata value which is not declared."""
    for fill in _FILLS:
        at = sample == np.float32(fill - offset)
        if at.any():
            raise InputError(
                f"{path}: {modality.name} values of {fill:g} in {100 * at.mean():.2g} % of the sample; expected "
                f"{_limits(modality).takes}. If it stands for no data, declare it: gdal_edit.py -a_nodata {fill:g} "
                "FILE, or array.rio.write_nodata in Python."
            )


def _refuse_mask(what: str, sample: FloatArray, offset: float) -> None:
    """Refuse a last band that looks like a mask: only 0 and one mask value, where the other bands hold more values."""
    last, top = sample[-1] + np.float32(offset), float(sample[-1].max()) + offset
    if top in _MASKS and not (sample == sample[-1]).all() and ((last == 0) | (last == top)).all():
        raise InputError(
            f"{what} holds nothing but {top:g} and 0, as a mask does. If it is one, say so: "
            "gdal_edit.py -colorinterp_N alpha FILE with the band's number as N; of an array, call the band alpha."
        )


def _possible(modality: Modality, sample: FloatArray) -> bool:
    """Whether a sample lies within what pixels, and what medians of bands, of a modality can be."""
    low, high = _limits(modality).pixel
    inside = low <= sample.min() and sample.max() <= high and not _odd_medians(modality, sample)
    return bool(inside) and not (modality.classes and (sample % 1).any())


def _odd_medians(modality: Modality, sample: FloatArray) -> str:
    """Return the medians of bands that lie beyond what they can be, in brackets."""
    limits = _limits(modality)
    lowest, highest = limits.median
    if limits.median == limits.pixel:  # then the pixels have shown it
        return ""
    pairs = zip(modality.bands, np.median(sample, axis=1), strict=True)
    odd = [f"{band} {median:.6g}" for band, median in pairs if not lowest <= median <= highest]
    return f" (median of {', '.join(odd)})" if odd else ""


def _cure(modality: Modality, sample: FloatArray) -> str:
    """Return the likely cause of impossible values, and the cure."""
    high, fits = float(sample.max()), _fitting(modality, sample)
    if fits:
        return fits
    if modality.unit == "m" and _LIMITS["m"].pixel[1] < high <= 29_100:  # Everest's height in feet
        return f" If they are feet, say --unit {modality.name}=feet."
    return " Check their unit and scale, and whether the file lacks a nodata declaration."


def _fitting(modality: Modality, sample: FloatArray) -> str:
    """Return which modalities of as many bands the values would fit."""
    fits = [
        m.name
        for m in MODALITIES.values()
        if m.unit != modality.unit and len(m.bands) == len(sample) and _possible(m, sample)
    ]
    return f" If they are {' or '.join(fits)}, which they would fit, say --in {fits[0]}." if fits else ""
