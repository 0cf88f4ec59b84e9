"""Files of one band each, as Landsat, HLS, Sentinel and Earth Engine exports name them: `{band}` stands for the name in a path."""

import glob
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from tmtool.dates import parsed
from tmtool.errors import InputError
from tmtool.modality import MODALITIES
from tmtool.source._delivery import Delivery, Layer

FIELD = "{band}"

_S2 = {f"B{i}": f"B{i:02}" for i in range(1, 13)} | {f"B{i:02}": f"B{i:02}" for i in range(1, 13)} | {"B8A": "B8A"}
_OLI = {"B1": "B01", "B2": "B02", "B3": "B03", "B4": "B04", "B5": "B8A", "B6": "B11", "B7": "B12"}
_TM = {"B1": "B02", "B2": "B03", "B3": "B04", "B4": "B8A", "B5": "B11", "B7": "B12"}
_RADAR = {"VV": "VV", "VH": "VH"}
_RTC_SIDE = "(?:mask|inc_map(?:_ell)?|ls_map|dem|area|rgb)"
_ORDER = (*MODALITIES["S2L1C"].bands, *_RADAR)


@dataclass(frozen=True, eq=False)
class _Convention:
    """How a kind of product names its files.

    `name` matches the name of a band's file without ending, with the groups `scene`, what a scene's files share, and `band`;
    `side` the names of files beside them that are no bands. A value in the modality's unit is `raw * gain - offset`.
    """

    kind: str
    name: str
    bands: Mapping[str, str]
    side: str
    modality: str | None = None
    gain: float = 1.0
    offset: float = 0.0
    scale_why: str = ""
    nodata: float | None = None
    power: bool = False
    refused: str = ""
    """Why such files cannot be taken, and the cure."""
    loose: bool = False
    """Whether other files could have such names by chance."""


@dataclass(frozen=True)
class _Band:
    """What a file's name says of it; `pattern` is its path with {band}."""

    path: str
    band: str
    scene: str
    size: int
    written: str
    pattern: str
    convention: _Convention

    @property
    def key(self) -> tuple[str, str, str]:
        """What the files of its scene share."""
        return os.path.dirname(self.path), self.scene, self.convention.kind


def _landsat(kind: str, scene: str, bands: Mapping[str, str]) -> _Convention:
    return _Convention(
        kind,
        rf"(?P<scene>{scene}_L2S[PR]_.+?)_SR_(?P<band>B[1-7])",
        bands,
        rf"(?P<scene>{scene}_L2S[PR]_.+?)_(?:QA_\w+|ST_\w+|SR_QA_AEROSOL|SR_CLOUD_QA|SR_ATMOS_OPACITY)",
        gain=0.275,
        offset=2000.0,
        nodata=0.0,
        scale_why="Landsat Collection 2's surface reflectance, DN x 0.0000275 - 0.2",
    )


def _hls(sensor: str, bands: Mapping[str, str], others: str) -> _Convention:
    scene = rf"(?P<scene>HLS\.{sensor}\..+?)"
    return _Convention(
        f"HLS {sensor}",
        rf"{scene}\.(?P<band>B\d[\dA])",
        bands,
        rf"{scene}\.(?:Fmask|[SV][AZ]A|{others})",
        scale_why="HLS, reflectance x 10 000",
    )


def _hyp3(unit: str) -> _Convention:
    scene = rf"(?P<scene>S1[A-D]_.+?_RTC\d+_[GS]_\w{unit}\w{{4}}_\w{{4}})"
    side = f"{scene}_{_RTC_SIDE}"
    return _Convention("Sentinel-1 RTC of ASF HyP3", rf"{scene}_(?P<band>VV|VH)", _RADAR, side, "S1RTC")


_LANDSAT_OR_HLS = r"(?!.*(?:\bL[CTEMO]0?\d|_L[CTEMO]0?\d|LANDSAT|\bHLS))"
"""Whose band numbers are not Sentinel-2's."""
_S2_SIDE = r"(?:SCL|TCI|AOT|WVP|PVI|QA\d\d|MSK_\w+?)(?:_\d\dm)?"
_KNOWN = (
    _landsat("Landsat 8-9 surface reflectance", "L[CO]0[89]", _OLI),
    _landsat("Landsat 4-7 surface reflectance", "L[TE]0[457]", _TM),
    _hls("L30", {f"B0{k[1:]}": v for k, v in _OLI.items()}, "B09|B1[01]"),
    _hls("S30", {k: v for k, v in _S2.items() if v != "B10"}, "B10"),  # cirrus is no surface reflectance
    _Convention(
        "Sentinel-1 RTC of OPERA",
        r"(?P<scene>OPERA_L2_RTC-S1_.+?)_(?P<band>VV|VH)",
        _RADAR,
        rf"(?P<scene>OPERA_L2_RTC-S1_.+?)_{_RTC_SIDE}",
        "S1RTC",
        power=True,
    ),
    replace(_hyp3("p"), power=True),
    _hyp3("d"),
    replace(
        _hyp3("a"),
        refused="holds amplitude; expected power or dB. Order the product again with scale power, or square them (gdal_calc).",
    ),
    _Convention(
        "Sentinel-1 RTC of the Planetary Computer",
        r"(?P<scene>iw)-(?P<band>vv|vh)\.rtc",
        _RADAR,
        r"(?P<scene>iw)-(?:hh|hv)\.rtc",
        "S1RTC",
        power=True,
    ),
    _Convention(
        "Sentinel-2 bands",
        rf"{_LANDSAT_OR_HLS}(?:(?P<scene>.*)[._-])?(?P<band>B(?:0[1-9]|1[0-2]|8A|[1-9]))(?P<size>_[126]0m)?",
        _S2,
        rf"(?:(?P<scene>.*?)[._-])?{_S2_SIDE}",
        loose=True,
    ),
    _Convention("Sentinel-1 bands", r"(?P<scene>.*)[._-](?P<band>VV|VH)", _RADAR, r"(?P<scene>.*)[._-]angle"),
)
_TOKEN = re.compile(r"(?:SR_)?(?:B\d[\dA]?|VV|VH)(?:_\d\dm)?", re.I)
"""What {band} stands for, if for a band's name alone."""
_OTHER_TOKEN = re.compile(r"(?:(?P<scene>.*)[._-])?[A-Z]\d[\dA-Z]?")
"""What bands' names look like, but also those of tiles: A01, B01, B13."""
_ENDING = re.compile(r"\.(?:tiff?|jp2|img|vrt)\Z", re.I)
_DATES = (
    re.compile(r"HLS\..*?\.(?P<julian>\d{7}T\d{6})"),
    re.compile(r"L[CTEO]0\d_\w{4}_\d{6}_(?P<plain>\d{8})_", re.I),
    re.compile(r"(?:OPERA_L2_RTC-S1_[^_]+_|S1[A-D]_[A-Z0-9]{2}_|_)(?P<plain>\d{8}T\d{6})"),
)


def claims(path: str) -> bool:
    """Whether a path has the field {band}."""
    return FIELD in path and not os.path.exists(path)


def read(path: str) -> Delivery:
    """Return the bands that a path with {band} stands for, in order. Raises `InputError`."""
    found = _matching(path)
    if not found:
        raise InputError(
            f"{path}: matches no file; expected files of this machine, with their bands' names in place of {FIELD}. Check the path."
        )
    bands = _chosen(path, found)
    convention = next(iter(bands.values())).convention
    if convention.refused:
        raise InputError(f"{path}: {convention.refused}")
    if convention.bands is _RADAR and (missing := [b for b in _RADAR if b not in bands]):
        raise InputError(
            f"{path}: {missing[0]} is missing beside {', '.join(bands)}; a scene needs both VV and VH. Put it beside the other."
        )
    layers = tuple(Layer(band, bands[band].path) for band in sorted(bands, key=_ORDER.index))
    date = _date(os.path.basename(layers[0].path))
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


def _matching(path: str) -> list[str]:
    """Return the files that a path stands for; those where {band} is a band's name alone, if there are any."""
    parts = path.split(FIELD)
    found = sorted(glob.glob("*".join(map(glob.escape, parts))))
    fields = re.compile("([^/]*)".join(map(re.escape, parts)), re.S)
    matched = {each: fields.fullmatch(each) for each in found}
    alone = [each for each, m in matched.items() if m and all(map(_TOKEN.fullmatch, m.groups()))]
    return alone or found


def _chosen(path: str, files: Sequence[str]) -> dict[str, _Band]:
    """Return the file of each band, the finest of several. Raises `InputError` unless all are of one scene."""
    known = sorted(filter(None, map(_told, files)), key=lambda each: each.size)
    if not known:
        raise _unknown(path, files)
    chosen: dict[str, _Band] = {}
    for each in known:
        if (each.scene, each.convention) != (known[0].scene, known[0].convention):
            raise InputError(
                f"{path}: stands for several scenes ({_named(known[0])} and {_named(each)}); expected one. "
                f"Write more of the name before {FIELD}."
            )
        other = chosen.setdefault(each.band, each)
        if other is not each and other.size == each.size:
            raise InputError(
                f"{path}: has {each.band} twice, in {_named(other)} and {_named(each)}. Move one out of the way."
            )
    return chosen


def _unknown(path: str, files: Sequence[str]) -> InputError:
    first = os.path.basename(files[0])
    if re.match(r"L[CTEMO]0\d_L1", first, re.I):
        return InputError(f"{path}: is Landsat Level-1; expected surface reflectance. Download Level-2 (L2SP, SR_B4).")
    return InputError(
        f"{path}: no name of its {len(files)} files says which band it is ({first}, ...); expected names that end in B02, B8A, "
        "VV, ... as Sentinel, Landsat Collection 2, HLS and Earth Engine have them. Rename them so."
    )


def _named(each: _Band) -> str:
    return os.path.basename(each.path)


def _bare(path: str) -> str:
    """Return a file's name without its ending."""
    return _ENDING.sub("", os.path.basename(path))


def _told(path: str) -> _Band | None:
    """Return what a file's name says, by the first convention that it follows; None where it is no band."""
    folder, name = os.path.split(path)
    bare = _bare(path)
    for convention in _KNOWN:
        found = re.fullmatch(convention.name, bare, re.I)
        band = convention.bands.get(found["band"].upper()) if found else None
        if found and band:
            size = found.groupdict().get("size") or ""
            start, stop = found.start("band"), found.end("band") + len(size)
            pattern = os.path.join(folder, f"{name[:start]}{FIELD}{name[stop:]}")
            written = found["band"].upper() if start == 0 or name[start - 1] != "." else f".{found['band'].upper()}"
            return _Band(path, band, found["scene"] or "", int(size[1:3] or 0), written, pattern, convention)
    return None


def _date(name: str) -> str | None:
    """Return when an image was taken, as its name has it."""
    for pattern in _DATES:
        if not (found := pattern.search(name)):
            continue
        if "julian" not in found.groupdict():
            return found["plain"] if parsed(found["plain"]) else None
        try:
            return datetime.strptime(found["julian"], "%Y%jT%H%M%S").isoformat()
        except ValueError:
            return None
    return None


def grouped(paths: Sequence[str]) -> list[str]:
    """Return listed rasters, those that are bands of one scene as one path with {band}, where the first of them was.

    Only by their names, and only where they leave no doubt. Masks and the like that a product has beside its bands are
    part of it.
    """
    local = {path for path in paths if "://" not in path and not path.startswith("/vsi") and FIELD not in path}
    told = {path: each for path in paths if path in local and (each := _told(path))}
    groups: defaultdict[str, list[_Band]] = defaultdict(list)
    for each in told.values():
        groups[each.pattern].append(each)
    doubtful = {_beside(path) for path in local if path not in told} - {None}
    sure = {pattern for pattern, bands in groups.items() if _is_sure(bands, doubtful)}
    keys = {each.key for pattern in sure for each in groups[pattern]}
    listed: dict[str, None] = {}
    for path in paths:
        if path in told and told[path].pattern in sure:
            listed[told[path].pattern] = None
        elif path not in local or not _sides(path) & keys:
            listed[path] = None
    return list(listed)


def _is_sure(bands: Sequence[_Band], doubtful: set[tuple[str, str] | None]) -> bool:
    """Whether files of one name but for the band are a scene's, beyond doubt."""
    if len({each.band for each in bands}) < 2 or len({each.convention for each in bands}) > 1:
        return False
    if not bands[0].convention.loose:
        return True
    written = {each.written for each in bands}
    short = any(len(each) < 3 and each[0] != "." for each in written)  # B4, which also names tiles
    return (os.path.dirname(bands[0].path), bands[0].scene) not in doubtful and (
        not short or bool(written & {"B8A", "B11", "B12"})
    )


def _beside(path: str) -> tuple[str, str] | None:
    """Return folder and scene of a file whose name ends as a band's, but is none: A01, B13."""
    found = _OTHER_TOKEN.fullmatch(_bare(path))
    return (os.path.dirname(path), found["scene"] or "") if found else None


def _sides(path: str) -> set[tuple[str, str, str]]:
    """Return which scenes a file may lie beside that is no band of them."""
    bare = _bare(path)
    found = ((c.kind, re.fullmatch(c.side, bare, re.I)) for c in _KNOWN)
    return {(os.path.dirname(path), m["scene"] or "", kind) for kind, m in found if m}
