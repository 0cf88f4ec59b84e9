"""Files of one band each, as Landsat, HLS, Sentinel and Earth Engine exports name them: `{band}` stands for the name in a path."""

import glob
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tmtool.errors import InputError
from tmtool.modality import MODALITIES
from tmtool.source._delivery import Delivery, Layer

FIELD = "{band}"

_S2 = {
    "B1": "B01",
    **{f"B{i}": f"B{i:02}" for i in range(1, 13)},
    **{f"B{i:02}": f"B{i:02}" for i in range(1, 13)},
    "B8A": "B8A",
}
_OLI = {"B1": "B01", "B2": "B02", "B3": "B03", "B4": "B04", "B5": "B8A", "B6": "B11", "B7": "B12"}
_TM = {"B1": "B02", "B2": "B03", "B3": "B04", "B4": "B8A", "B5": "B11", "B7": "B12"}
_RADAR = {"VV": "VV", "VH": "VH"}


@dataclass(frozen=True)
class _Convention:
    """How a kind of product names its files.

    `name` matches a file's name without ending, with the group `band`. A value in the modality's unit is `raw * gain - offset`.
    """

    kind: str
    name: str
    bands: Mapping[str, str]
    modality: str | None = None
    gain: float = 1.0
    offset: float = 0.0
    scale_why: str = ""
    nodata: float | None = None
    power: bool = False


_LANDSAT = {
    "gain": 0.275,
    "offset": 2000.0,
    "nodata": 0.0,
    "scale_why": "Landsat Collection 2's surface reflectance, DN x 0.0000275 - 0.2",
}
_KNOWN = (
    _Convention("Landsat 8-9 surface reflectance", r"L[CO]0[89]_L2S[PR]_.*_SR_(?P<band>B[1-7])", _OLI, **_LANDSAT),  # type: ignore[arg-type]
    _Convention("Landsat 4-7 surface reflectance", r"L[TE]0[457]_L2S[PR]_.*_SR_(?P<band>B[1-57])", _TM, **_LANDSAT),  # type: ignore[arg-type]
    _Convention(
        "HLS L30",
        r"HLS\.L30\..*\.(?P<band>B0[1-7])",
        {f"B0{k[1:]}": v for k, v in _OLI.items()},
        scale_why="HLS, reflectance x 10 000",
    ),
    _Convention("HLS S30", r"HLS\.S30\..*\.(?P<band>B\d[\dA])", _S2, scale_why="HLS, reflectance x 10 000"),
    _Convention("Sentinel-1 RTC of OPERA", r"OPERA_L2_RTC-S1_.*_(?P<band>VV|VH)", _RADAR, "S1RTC", power=True),
    _Convention(
        "Sentinel-1 RTC of ASF HyP3",
        r"S1[A-D]_.*_RTC\d+_[GS]_.p.{4}_\w{4}_(?P<band>VV|VH)",
        _RADAR,
        "S1RTC",
        power=True,
    ),
    _Convention("Sentinel-1 RTC of ASF HyP3", r"S1[A-D]_.*_RTC\d+_[GS]_.d.{4}_\w{4}_(?P<band>VV|VH)", _RADAR, "S1RTC"),
    _Convention("Sentinel-1 RTC of the Planetary Computer", r"iw-(?P<band>vv|vh)\.rtc", _RADAR, "S1RTC", power=True),
    _Convention("Sentinel-2 bands", r"(?:.*_)?(?P<band>B\d[\dA])(?:_\d\dm)?", _S2),
    _Convention("bands", r".*[._-](?P<band>B\d[\dA]?)", _S2),
    _Convention("radar bands", r".*[._-](?P<band>VV|VH|vv|vh)", _RADAR),
)
_AMPLITUDE = re.compile(r"S1[A-D]_.*_RTC\d+_[GS]_.a.{4}_\w{4}_(?:VV|VH)")
_DATES = (
    (re.compile(r"HLS\..*?\.(\d{4})(\d{3})T(\d{6})"), "julian"),
    (re.compile(r"L[CTEO]0\d_\w{4}_\d{6}_(\d{8})_"), "plain"),
    (re.compile(r"(?:OPERA_L2_RTC-S1_[^_]+_|S1[A-D]_[A-Z0-9]{2}_|_)(\d{8}T\d{6})"), "plain"),
)


def claims(path: str) -> bool:
    """Whether a path has the field {band}."""
    return FIELD in path and not os.path.exists(path)


def read(path: str) -> Delivery:
    """Return the bands that a path with {band} stands for, in order. Raises `InputError`."""
    found = glob.glob("*".join(glob.escape(part) for part in path.split(FIELD)))
    if not found:
        raise InputError(f"{path}: matches no file.")
    known, convention = _known(found)
    if not known or convention is None:
        raise InputError(
            f"{path}: no name of its {len(found)} files says which band it is ({os.path.basename(sorted(found)[0])}, ...); expected "
            "names that end in B02, B8A, VV, ... as Sentinel, Landsat, HLS and Earth Engine have them."
        )
    layers = tuple(Layer(band, known[band]) for band in sorted(known, key=_order))
    if set(known) & set(_RADAR) and (missing := sorted(set(_RADAR) - set(known))):
        raise InputError(f"{path}: {missing[0]} is missing beside {', '.join(known)}; a scene needs both VV and VH.")
    date = _date(os.path.basename(path))
    return Delivery(
        path=path,
        kind=convention.kind,
        layers=layers,
        modality=convention.modality,
        gain=convention.gain,
        offset=convention.offset,
        scale_why=convention.scale_why,
        power=convention.power,
        nodata=convention.nodata,
        tags={"ACQUISITION_DATE": date} if date else {},
    )


def _known(paths: Sequence[str]) -> tuple[dict[str, str], _Convention | None]:
    """Return the files that are bands, by band, and the convention that they follow; the finest of several sizes."""
    for path in paths:
        if _AMPLITUDE.fullmatch(_bare(path)):
            raise InputError(
                f"{path}: holds amplitude; expected power or dB. Ask HyP3 for scale power or decibel, or square it (gdal_calc)."
            )
    for convention in _KNOWN:
        matched = {path: found for path in paths if (found := re.fullmatch(convention.name, _bare(path)))}
        bands: dict[str, str] = {}
        for path in sorted(matched):  # of B02_10m and B02_20m the first
            band = convention.bands.get(matched[path]["band"].upper())
            if band:
                bands.setdefault(band, path)
        if bands:
            return bands, convention
    return {}, None


def _bare(path: str) -> str:
    """Return a file's name without its ending."""
    return re.sub(r"\.(tiff?|jp2|img|vrt)\Z", "", os.path.basename(path), flags=re.I)


def _order(band: str) -> int:
    every = [*MODALITIES["S2L1C"].bands, *_RADAR]
    return every.index(band)


def _date(name: str) -> str | None:
    """Return when an image was taken, as its name has it."""
    for pattern, kind in _DATES:
        if found := pattern.search(name):
            if kind == "julian":
                from datetime import datetime

                return datetime.strptime("".join(found.groups()), "%Y%j%H%M%S").isoformat()
            return found[1]
    return None


def grouped(paths: Sequence[str]) -> list[str]:
    """Return listed rasters, those that are bands of one scene as one path with {band}, where the first of them was.

    Only by their names, and only where at least two of them name different bands of one convention.
    """
    groups: defaultdict[str, dict[str, str]] = defaultdict(dict)
    of: dict[str, str] = {}
    for path in paths:
        pattern, band = _pattern(path)
        if pattern and band not in groups[pattern]:
            groups[pattern][band] = path
            of[path] = pattern
    listed: dict[str, None] = {}
    beside = {_scene(pattern) for pattern, bands in groups.items() if len(bands) > 1}
    for path in paths:
        pattern = of.get(path, "")
        if len(groups.get(pattern, ())) > 1:
            listed[pattern] = None
        elif _scene(path) not in beside:
            listed[path] = None
    return list(listed)


def _pattern(path: str) -> tuple[str, str]:
    """Return a band file's path with {band}, and its band; nothing for other files."""
    folder, name = os.path.split(path)
    bare = _bare(path)
    for convention in _KNOWN:
        found = re.fullmatch(convention.name, bare)
        band = convention.bands.get(found["band"].upper()) if found else None
        if found and band:
            start, stop = found.span("band")
            if convention.kind == "Sentinel-2 bands":
                stop = len(bare)  # its pixel size, of which bands have several
            return os.path.join(folder, f"{name[:start]}{FIELD}{name[stop:]}"), band
    return "", ""


_SIDE = re.compile(
    r"(?:[._-](?:\{band\}|mask|inc_map(?:_ell)?|ls_map|dem|area|rgb|TCI|AOT|WVP|SCL|QA\w*|SR_\w+|ST_\w+|Fmask|S[AZ]A|V[AZ]A)(?:_\d\dm)?)\Z"
)


def _scene(path: str) -> str:
    """Return what the files of one scene share: their path without what says which of its files they are."""
    return os.path.join(os.path.dirname(path), _SIDE.sub("", _bare(path)))
