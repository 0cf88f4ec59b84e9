"""What a raster is, and whether it can be used: from its metadata and a few small windows."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tmtool.dates import acquired
from tmtool.errors import InputError
from tmtool.modality import MODALITIES, S2_NAMES, Modality
from tmtool.settings import Reading
from tmtool.source._arrays import described_array
from tmtool.source._assembly import assembled
from tmtool.source._grids import size_warnings
from tmtool.source._opening import Description, Source
from tmtool.source._sample import sampled
from tmtool.source._units import table, unit_of
from tmtool.source._values import Moments, far_off, measured, refuse_dtype, refuse_values

_BY_COUNT = {12: "S2L2A", 13: "S2L1C"}
"""What so many bands without names are."""

_PLATFORMS = ("PLATFORM", "SPACECRAFT", "DATATAKE_1_SPACECRAFT_NAME", "SPACECRAFT_ID")
"""Tags that name the satellite, in order of preference: those of deliveries, of GDAL's drivers, of Landsat."""

_NO_INPUT = {
    "tokenize": "tokens that tmtool tokenize made; use tmtool reconstruct",
    "embed": "embeddings that tmtool embed made, which are not an input",
}
"""What products of some tasks hold, which are not pixels."""


def inspect(
    raster: Any,
    modality: Modality | None = None,
    how: Reading | None = None,
    trained_on: Callable[[Modality], Moments] | None = None,
    used: Mapping[str, Modality] | None = None,
    pixel_m: float = 10.0,
) -> Source:
    """Look at a raster, a path, an `xarray.DataArray` or the description of one, taking it for `modality` or finding out what it is.

    `how` says what the metadata does not. Reads metadata and a few small windows, whose values are held against what the
    model was `trained_on`: pixels of `pixel_m`. `used` has the modalities, by name, of which only some bands are used, with
    just these. Raises `InputError` for whatever would make a run fail or mean nothing.
    """
    how = how or Reading()
    found = describe(raster, how)
    made = found.made.task if found.made else ""
    if made in _NO_INPUT:
        raise InputError(f"{found.path}: holds {_NO_INPUT[made]}.")
    modality, modality_why, bands = _identify(found, modality, used or {})
    gain, offset, offset_why = _scale(found, modality, how.s2_offset)
    unit, unit_why = unit_of(
        modality, how.unit, [found.units[i - 1] for i in bands] if found.units else (), found.power
    )
    dtype = found.dtypes[bands[0] - 1]
    if np.dtype(dtype).kind == "c":
        raise InputError(
            f"{found.path}: values are complex ({dtype}); tmtool takes real values such as backscatter in dB."
        )
    nodata, nodata_why = _nodata(found, modality, bands)
    date, date_why = acquired(found.tags)
    source = Source(
        path=found.path,
        modality=modality,
        modality_why=modality_why,
        grid=found.grid,
        bands=bands,
        dtype=dtype,
        nodata=nodata,
        nodata_why=nodata_why,
        mask_band=found.mask_bands[bands[0] - 1],
        block=found.blocks[bands[0] - 1],
        offset=offset,
        offset_why=offset_why,
        gain=gain * unit.gain,
        power=unit.power,
        unit_why=unit_why,
        codes=table(how.lulc_codes) if modality.classes else (),
        warnings=() if how.grid else tuple(size_warnings(found.grid, pixel_m)),
        vrt=found.vrt,
        points=found.points,
        delivery=found.delivery,
        baseline=found.tags.get("PROCESSING_BASELINE"),
        platform=_platform(found.tags),
        array=found.array,
        date=date,
        date_why=date_why,
        pixel_m=pixel_m,
        alpha=next((i for i, alpha in enumerate(found.alpha, 1) if alpha and i not in bands), None),
    )
    if found.array and found.array.lazy and found.made:  # tmtool's own values are as they should be once computed
        return source
    return _with_values(source, trained_on)


def _platform(tags: Mapping[str, str]) -> str | None:
    """Return the satellite that tags name; the first of those that products, drivers of GDAL and STAC use."""
    name = next((tags[key] for key in _PLATFORMS if tags.get(key)), None)
    return name.strip().lower().replace("_", "-").replace(" ", "-") if name else None


def describe(raster: Any, how: Reading) -> Description:
    """Return the metadata of a raster: a path, an `xarray.DataArray`, or what this returned before. Raises `InputError`."""
    if isinstance(raster, Description):
        return raster
    if not isinstance(raster, str):
        return described_array(raster)
    return assembled(raster, how.resampling, points=bool(how.grid))


def _with_values(source: Source, trained_on: Callable[[Modality], Moments] | None) -> Source:
    """Return the source with what a sample of its values holds, and warnings of it; raises `InputError` for impossible ones."""
    path, modality = source.path, source.modality
    refuse_dtype(path, modality, source.dtype)
    sample = sampled(source)
    refuse_values(path, modality, source.bands, sample, source.offset)
    values = measured(sample, modality.bands, None if modality.classes or not trained_on else trained_on(modality))
    return replace(source, values=values, warnings=(*source.warnings, *far_off(values)))


def _identify(
    found: Description, asked: Modality | None, used: Mapping[str, Modality]
) -> tuple[Modality, str, tuple[int, ...]]:
    """Return the modality, why it is that, and the numbers of its bands in its own order."""
    path = found.path
    data = _data_bands(found)
    named = {_band_name(name): i for i in data if (name := found.names[i - 1])}
    if asked is None:
        modality, why = _guess(found, len(data), set(named), used.values())
        modality = used.get(modality.name, modality)
    else:
        modality, why = asked, f"--in; it is {found.delivery.kind}" if found.delivery else "--in"
    whole = MODALITIES.get(modality.name, modality)
    if len(modality.bands) < len(whole.bands) == len(data) and not set(named) & set(
        whole.bands
    ):  # some of a whole stack
        return modality, why, tuple(data[whole.bands.index(band)] for band in modality.bands)
    if set(modality.bands) <= set(named):
        if asked is None and not found.delivery and "band names" not in why and "provenance" not in why:
            why += " and band names"
        return modality, why, tuple(named[band] for band in modality.bands)
    if len(data) != len(modality.bands):
        beside = " beside alpha" if len(data) < len(found.alpha) else ""
        raise InputError(
            f"{path}: has {_bands(len(data))}{beside}, but {modality.name} needs {len(modality.bands)} "
            f"({' '.join(modality.bands)}). {_fitting(len(data))}"
        )
    known = set(S2_NAMES.values())
    if modality.is_optical and len(named) == len(data) and set(named) <= known:
        missing = [band for band in modality.bands if band not in named]
        raise InputError(
            f"{path}: its bands are named {' '.join(named)}, but {modality.name} needs {' '.join(modality.bands)}; "
            f"{', '.join(missing)} missing. Stack the right bands, or remove the names if they are wrong."
        )
    return modality, why, tuple(data)


def band_names(found: Description) -> tuple[str | None, ...]:
    """Return the names of a raster's bands, alpha left out, as tmtool has them; None where one has none."""
    names = [found.names[i - 1] for i in _data_bands(found)]
    return tuple(_band_name(name) if name else None for name in names)


def _data_bands(found: Description) -> list[int]:
    """Return the numbers of the bands that are not alpha; a band named as one of Sentinel-2's is data, whatever it is marked as."""
    known = set(S2_NAMES.values())
    alpha = [i for i, a in enumerate(found.alpha, 1) if a and _band_name(found.names[i - 1] or "") not in known]
    data = [i for i in range(1, len(found.alpha) + 1) if i not in alpha]
    if alpha and data and alpha[0] < data[-1] and not any(found.names[i - 1] for i in data):
        raise InputError(
            f"{found.path}: band {alpha[0]} of {len(found.alpha)} is marked as alpha, which is expected last (GDAL's ALPHA=YES "
            f"marks band 2 of a stack). Say which band it is: gdal_edit.py -colorinterp_{alpha[0]} undefined "
            f"-colorinterp_{len(found.alpha)} alpha FILE, the latter if the last one is alpha."
        )
    return data


def _band_name(description: str) -> str:
    name = description.strip().upper()
    name = S2_NAMES.get(name, name)
    return f"B0{name[1]}" if len(name) == 2 and name[0] == "B" and name[1].isdigit() else name


def _guess(found: Description, count: int, names: set[str], used: Collection[Modality]) -> tuple[Modality, str]:
    said = {found.made.modality: "its tmtool provenance"} if found.made else {}
    said |= {found.delivery.modality or "": f"it is {found.delivery.kind}"} if found.delivery else {}
    for name in said:
        if name in MODALITIES:
            return MODALITIES[name], said[name]
    for modality in (MODALITIES["S2L1C"], MODALITIES["S2L2A"]):  # L1C first: its bands include L2A's
        if set(modality.bands) <= names:
            return modality, "its band names"
    for modality in used:
        if set(modality.bands) <= names:
            return modality, "its band names"
        if len(modality.bands) == count:
            return modality, f"its {_bands(count)}"
    if count in _BY_COUNT:
        return MODALITIES[_BY_COUNT[count]], f"its {count} bands"
    if count == len(MODALITIES["RGB"].bands):
        return _rgb(found)
    raise _of_no_modality(found.path, count, used)


def _rgb(found: Description) -> tuple[Modality, str]:
    dtypes = set(found.dtypes[:3])
    if dtypes == {"uint8"}:
        return MODALITIES["RGB"], "its 3 bands of uint8"
    raise InputError(
        f"{found.path}: has 3 bands of {', '.join(sorted(dtypes))}; RGB takes values 0-255 as uint8. "
        "Say --in RGB if that is what they hold."
    )


def _of_no_modality(path: str, count: int, used: Collection[Modality]) -> InputError:
    if count in (1, 2):
        return InputError(f"{path}: has {_bands(count)}, which does not say what it is. {_fitting(count)}")
    some = "".join(f"{len(m.bands)}: {' '.join(m.bands)} of {m.name}, " for m in used)
    return InputError(
        f"{path}: has {_bands(count)}, which fits no modality ({some}12: S2L2A, 13: S2L1C, 3: RGB, 2: S1GRD or S1RTC)."
    )


def _bands(count: int) -> str:
    return "1 band" if count == 1 else f"{count} bands"


def _fitting(count: int) -> str:
    fits = [m.name for m in MODALITIES.values() if len(m.bands) == count]
    if not fits:
        return f"{_bands(count).capitalize()} fit no modality."
    return f"{_bands(count).capitalize()} would fit {' or '.join(fits)}: say --in {fits[0]}{' (or another)' if fits[1:] else ''}."


def _scale(found: Description, modality: Modality, asked: float | None) -> tuple[float, float, str]:
    """Return the gain and the offset of a raster's values, and what the offset is known by."""
    delivery = found.delivery
    gain = delivery.gain if delivery else 1.0
    if not modality.is_optical:
        return gain, delivery.offset if delivery else 0.0, "not Sentinel-2"
    if asked is not None:
        return gain, float(asked), "--s2-offset"
    if delivery and delivery.scale_why:
        return gain, delivery.offset, delivery.scale_why
    said = {float(v) for k, v in found.tags.items() if "ADD_OFFSET" in k.upper() and _is_number(v)}
    if len(said) == 1:
        return gain, -said.pop() + 0.0, "the file's ADD_OFFSET metadata"
    scaled = {round(o / s) for s, o in zip(found.scales, found.offsets, strict=True) if s not in (0, 1) and o}
    if len(scaled) == 1:
        return gain, -float(scaled.pop()), "the file's band scale and offset"
    return gain, 0.0, "nothing in the file says otherwise"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _nodata(found: Description, modality: Modality, bands: Sequence[int]) -> tuple[float | None, str]:
    value = found.nodata[bands[0] - 1]
    if value is not None:
        return float(value), "declared in the file"
    if modality.is_optical:
        return None, "none declared; pixels that are 0 in every band are empty (Sentinel-2's own convention)"
    return None, "none declared"
