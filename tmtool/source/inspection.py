"""What a raster is, and whether it can be used: from its metadata and a few small windows."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tmtool.errors import InputError, ReadError
from tmtool.grid import FloatArray, Grid, Window
from tmtool.modality import MODALITIES, S2_NAMES, Modality
from tmtool.source.arrays import described_array
from tmtool.source.grids import pixel_size_m
from tmtool.source.opening import Description, Source, described
from tmtool.source.reader import Reader

_EXPECTED_PIXEL_M = (8.0, 12.0)

_NO_INPUT = {
    "tokenize": "tokens that tmtool tokenize made; tmtool reconstruct takes it",
    "embed": "embeddings that tmtool embed made; it is no input",
}
"""What products of some tasks hold, which are not pixels."""


def inspect(raster: Any, modality: Modality | None = None, s2_offset: float | None = None) -> Source:
    """Look at a raster, a path or an `xarray.DataArray`, taking it for `modality` or finding out what it is.

    Reads metadata and a few small windows. Raises `InputError` for whatever would make a run fail or mean nothing.
    """
    found = described(raster) if isinstance(raster, str) else described_array(raster)
    made = found.made.task if found.made else ""
    if made in _NO_INPUT:
        raise InputError(f"{found.path}: holds {_NO_INPUT[made]}.")
    modality, modality_why, bands = _identify(found, modality)
    offset, offset_why = _offset(found, modality, s2_offset)
    dtype = found.dtypes[bands[0] - 1]
    if np.dtype(dtype).kind == "c":
        raise InputError(
            f"{found.path}: values are complex ({dtype}); tmtool takes real values such as backscatter in dB."
        )
    nodata, nodata_why = _nodata(found, modality, bands)
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
        warnings=tuple(_pixel_size_warnings(found.grid)),
        array=found.array,
    )
    if not (found.array and found.array.lazy and found.made):  # tmtool's own values are as they should be once computed
        _check_values(source)
    return source


def _identify(found: Description, asked: Modality | None) -> tuple[Modality, str, tuple[int, ...]]:
    """Return the modality, why it is that, and the numbers of its bands in its own order."""
    path = found.path
    data = [i for i, alpha in enumerate(found.alpha, 1) if not alpha]
    named = {_band_name(name): i for i in data if (name := found.names[i - 1])}
    if asked is None:
        modality, why = _guess(found, len(data), set(named))
    else:
        modality, why = asked, "--in"
    whole = MODALITIES[modality.name]
    if len(modality.bands) < len(whole.bands) == len(data) and not named:  # a whole stack, of which some are used
        return modality, why, tuple(data[whole.bands.index(band)] for band in modality.bands)
    if set(modality.bands) <= set(named):
        if asked is None and "band names" not in why and "provenance" not in why:
            why += " and band names"
        return modality, why, tuple(named[band] for band in modality.bands)
    if len(data) != len(modality.bands):
        raise InputError(
            f"{path}: has {_bands(len(data))}, but {modality.name} needs {len(modality.bands)} "
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


def _band_name(description: str) -> str:
    name = description.strip().upper()
    name = S2_NAMES.get(name, name)
    return f"B0{name[1]}" if len(name) == 2 and name[0] == "B" and name[1].isdigit() else name


def _guess(found: Description, count: int, names: set[str]) -> tuple[Modality, str]:
    path = found.path
    if found.made and found.made.modality in MODALITIES:
        return MODALITIES[found.made.modality], "its tmtool provenance"
    for modality in (MODALITIES["S2L1C"], MODALITIES["S2L2A"]):  # L1C first: its bands include L2A's
        if set(modality.bands) <= names:
            return modality, "its band names"
    by_count = {12: "S2L2A", 13: "S2L1C"}
    if count in by_count:
        return MODALITIES[by_count[count]], f"its {count} bands"
    if count == 3:
        dtypes = set(found.dtypes[:3])
        if dtypes == {"uint8"}:
            return MODALITIES["RGB"], "its 3 bands of uint8"
        raise InputError(
            f"{path}: has 3 bands of {', '.join(sorted(dtypes))}; RGB takes values 0-255 as uint8. Say --in RGB if that is what they hold."
        )
    if count in (1, 2):
        raise InputError(f"{path}: has {_bands(count)}, which does not say what it is. {_fitting(count)}")
    raise InputError(
        f"{path}: has {_bands(count)}, which fits no modality (12: S2L2A, 13: S2L1C, 3: RGB, 2: S1GRD or S1RTC)."
    )


def _bands(count: int) -> str:
    return "1 band" if count == 1 else f"{count} bands"


def _fitting(count: int) -> str:
    fits = [m.name for m in MODALITIES.values() if len(m.bands) == count]
    if not fits:
        return f"{_bands(count).capitalize()} fit no modality."
    return f"{_bands(count).capitalize()} would fit {' or '.join(fits)}: say --in {fits[0]}{' (or another)' if fits[1:] else ''}."


def _offset(found: Description, modality: Modality, asked: float | None) -> tuple[float, str]:
    """Return what was added to the DN, and where that is known from."""
    if not modality.is_optical:
        return 0.0, "not Sentinel-2"
    if asked is not None:
        return float(asked), "--s2-offset"
    said = {float(v) for k, v in found.tags.items() if "ADD_OFFSET" in k.upper() and _is_number(v)}
    if len(said) == 1:
        return -said.pop() + 0.0, "the file's ADD_OFFSET metadata"
    scaled = {round(o / s) for s, o in zip(found.scales, found.offsets, strict=True) if s not in (0, 1) and o}
    if len(scaled) == 1:
        return -float(scaled.pop()), "the file's band scale and offset"
    return 0.0, "nothing in the file says otherwise"


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


def _pixel_size_warnings(grid: Grid) -> Iterator[str]:
    size = pixel_size_m(grid)
    low, high = _EXPECTED_PIXEL_M
    if size is not None and not low <= size <= high:
        yield f"pixels are {size:.3g} m, TerraMind was trained at 10 m: resample first (gdalwarp -tr 10 10) for results that mean something"
    if grid.crs is None:
        yield "has no georeferencing; neither will its products"


def _check_values(source: Source) -> None:
    """Look at a few windows spread over the raster and refuse units that the model was not trained on."""
    sample = _sample(source)
    if sample.size == 0:
        return
    low, high, modality = float(sample.min()), float(sample.max()), source.modality
    where = f"{source.path}: {modality.name} values from {low:.6g} to {high:.6g}"
    if modality.is_radar and low >= 0:
        raise InputError(f"{where} look like linear power; TerraMind takes dB. Convert with 10*log10(x).")
    if modality.is_optical and high + source.offset <= 2:
        raise InputError(
            f"{where} look like reflectance; TerraMind takes DN (reflectance x 10 000). Multiply by 10 000."
        )
    if modality.name == "RGB" and (low < 0 or high > 255):
        raise InputError(f"{where}, but RGB takes 0-255. Scale it first (gdal_translate -ot Byte -scale).")
    if modality.classes and (low < 0 or high >= len(modality.classes) or (sample % 1).any()):
        raise InputError(
            f"{where}, but LULC takes classes 0-{len(modality.classes) - 1} (1 water, 2 trees, 3 flooded vegetation, 4 crops, "
            "5 built area, 6 bare ground, 7 snow/ice, 8 clouds, 9 rangeland). Remap other codes (Esri's are 1 2 4 5 7 8 9 10 11)."
        )
    if modality.name == "NDVI" and (low < -1.5 or high > 1.5):
        raise InputError(f"{where}, but NDVI lies in -1..1. Divide by its scale first.")


def _sample(source: Source, wanted: int = 3, side: int = 128) -> FloatArray:
    """Valid values of the first few windows that hold any, from a 5 x 5 lattice over the raster."""
    height, width = source.grid.shape
    found: list[FloatArray] = []
    with Reader(source) as reader:
        for k in (12, 6, 18, 8, 16, *range(25)):  # the middle first
            row, col = (round((n - min(side, n)) * i / 4) for n, i in zip((height, width), divmod(k, 5), strict=True))
            window = Window(row, col, min(side, height), min(side, width))
            try:
                pixels, valid = reader.read(window)
            except ReadError as error:
                raise InputError(str(error)) from error
            if valid.any():
                found.append(pixels[:, valid].ravel())
            if len(found) == wanted:
                break
    return np.concatenate(found) if found else np.empty(0, np.float32)
