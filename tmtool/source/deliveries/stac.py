"""STAC: an item in a file or at a URL, an item of a collection of them, or of lines of JSON (ndjson)."""

import functools
import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit

from tmtool.errors import InputError
from tmtool.modality import MODALITIES, S2_NAMES
from tmtool.names import in_one_word, shown
from tmtool.source._delivery import Delivery, Flags, Layer

if TYPE_CHECKING:
    import pystac

SIGN = "TMTOOL_SIGN"
"""Environment variable with the command that signs links."""
_TIMEOUT_S = 60
_LINES = (".ndjson", ".jsonl")
_ENDINGS = (".json", ".geojson", *_LINES)
_RASTERS = (".tif", ".tiff", ".jp2", ".img", ".vrt", ".zarr", ".zip")
_HTTP = ("http://", "https://")
_COMMON = {
    **{"coastal": "B01", "blue": "B02", "green": "B03", "red": "B04"},
    **{"rededge1": "B05", "rededge2": "B06", "rededge3": "B07", "nir": "B08", "nir08": "B8A", "nir09": "B09"},
    **{"cirrus": "B10", "swir16": "B11", "swir22": "B12"},
    **{"rededge071": "B05", "rededge075": "B06", "rededge078": "B07"},
}
"""Keys of Earth Search's assets, which are common names too, and those of STAC 1.1."""
_NAMES = {**_COMMON, **{name.lower(): band for name, band in S2_NAMES.items()}, "vv": "VV", "vh": "VH"}
_HLS_L30 = {"B01": "B01", "B02": "B02", "B03": "B03", "B04": "B04", "B05": "B8A", "B06": "B11", "B07": "B12"}
_NATIVE = {
    **dict.fromkeys(("B02", "B03", "B04", "B08"), 10),
    **dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12"), 20),
    **dict.fromkeys(("B01", "B09", "B10"), 60),
}
"""Pixel sizes of Sentinel-2 in metres."""
_BAND = re.compile(r"B(0?[1-9]|1[0-2]|8A)(?:_(\d\d)m)?", re.I)
_ORDER = (*MODALITIES["S2L1C"].bands, "VV", "VH", "elevation")
_SCL = {"clouds": (8, 9), "shadow": (3,), "cirrus": (10,), "snow": (11,)}
_STORES = {"s3": "/vsis3/", "gs": "/vsigs/", "az": "/vsiaz/", "abfs": "/vsiaz/", "abfss": "/vsiaz/"}
_ZARR = re.compile(r"(.*?\.zarr)/(.+)", re.I)


@dataclass(frozen=True)
class _Source:
    """Where a band is: the asset, the band's number in it, and how far its size is from the native one."""

    asset: "pystac.Asset"
    number: int = 1
    rank: int = 0
    array: str = ""
    """Its name below the asset, where that is a Zarr group."""


def set_sign(command: str | None) -> None:
    """Set the command that signs links, as `TMTOOL_SIGN` does, here and in processes that are started later.

    It gets a URL on its standard input and prints the signed one. None leaves it as the environment has it, an empty one
    switches it off.
    """
    if command is not None:
        os.environ[SIGN] = command


def claims(path: str) -> bool:
    """Whether a path is that of items, or with `#ID` of one of several; of a URL by its name alone."""
    name = path.partition("#")[0]
    if name.startswith(_HTTP):
        route = urlsplit(name).path.lower()
        return route.endswith(_ENDINGS) or ("/items/" in route and not route.endswith(_RASTERS))
    return name.lower().endswith(_ENDINGS) and os.path.isfile(name) and _holds_items(name)


def _holds_items(name: str) -> bool:
    try:
        text = _file(name, os.stat(name).st_mtime_ns)
        return "stac_version" in text and any(map(_is_item, _entries(name, text)))
    except (ValueError, OSError, RecursionError):
        return False


def items(path: str) -> list[tuple[str, str]]:
    """Return the id of each item, and the path that `read` takes for it. Raises `InputError`."""
    name, _, wanted = in_one_word(path).partition("#")
    found = [str(item.get("id")) for item in _documents(name)]
    if twice := [i for i, times in Counter(found).items() if times > 1]:
        raise InputError(
            f"{name}: holds several items with the id {twice[0]}; expected an id each. Keep one of them, or write one file each."
        )
    ids = [i for i in found if wanted in ("", i)]
    return [(i, name if len(found) == 1 else f"{name}#{i}") for i in ids]


def read(path: str) -> Delivery:
    """Return the bands of an item, and what it says of them. Raises `InputError`."""
    import pystac

    path = in_one_word(path)
    name, _, wanted = path.partition("#")
    every = _documents(name)
    found = [item for item in every if wanted in ("", str(item.get("id")))]
    if len(found) != 1:
        ids = ", ".join([str(item.get("id")) for item in every[:3]] + ["..."] * (len(every) > 3))
        what = f"{len(found)} items" if found else f"no item {wanted}"
        raise InputError(f"{name}: holds {what}; name one as FILE#ID, of {ids}.")
    try:
        item = pystac.Item.from_dict(dict(found[0]), preserve_dict=True)
    except (pystac.STACError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: is no valid STAC item ({type(error).__name__}: {error}). Fetch it again, or see what `stac-validator` says."
        ) from error
    alone = len(every) == 1
    return replace(_delivery(path, item, _base(name, item, alone=alone)), item=_link(name, item, alone=alone))


def _base(name: str, item: "pystac.Item", *, alone: bool) -> str:
    """Return what relative links start from: the item's file; of one of several what the item says its file was."""
    said = None if alone else item.get_self_href()
    if said and (said.startswith("/") or "://" in said):
        return str(said)
    return name if "://" in name else os.path.abspath(name)


def _link(name: str, item: "pystac.Item", *, alone: bool) -> str:
    """Return a link to the item alone: what it says of itself, or its file; nothing for one of several that says nothing."""
    said = item.get_self_href() or ""
    return said if said.startswith(_HTTP) else _base(name, item, alone=True) if alone else ""


def _documents(name: str) -> Sequence[Mapping[str, Any]]:
    """Return the items in a file or at a URL. Raises `InputError` if there are none."""
    remote = name.startswith(_HTTP)
    try:
        text = _fetched(name) if remote else _file(name, os.stat(name).st_mtime_ns)
        found = [each for each in _entries(name, text) if _is_item(each)]
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: is no JSON ({type(error).__name__}: {error}); expected STAC items.") from error
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror}).") from error
    if not found:
        raise InputError(
            f"{name}: holds no STAC item; expected an Item, an ItemCollection (with stac_version in each feature), or lines of items. "
            "Of a Catalog or Collection name the items."
        )
    return found


def _is_item(document: Any) -> bool:
    return isinstance(document, dict) and document.get("type") == "Feature" and "stac_version" in document


@functools.lru_cache(maxsize=4)  # of many items each is asked for by itself
def _entries(name: str, text: str) -> list[Any]:
    """Return what a text holds: a document, its features, or a document a line. Raises `ValueError`."""
    if (urlsplit(name).path if "://" in name else name).lower().endswith(_LINES):
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    document = json.loads(text)
    if isinstance(document, dict) and document.get("type") == "FeatureCollection":
        features = document.get("features")
        return features if isinstance(features, list) else []
    return [document]


@functools.lru_cache(maxsize=4)
def _file(name: str, changed: int) -> str:
    with open(name, encoding="utf-8") as file:
        return file.read()


@functools.lru_cache(maxsize=4)
def _fetched(url: str) -> str:
    """Return the text at a URL. Raises `InputError`."""
    import http.client
    import urllib.error
    import urllib.request

    cure = "Check the link and what it needs to be opened, or download the item."
    try:
        request = urllib.request.Request(url, headers={"Accept": "application/geo+json, application/json"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        raise InputError(f"{url}: the server answers {error.code}; expected a STAC item. {cure}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:  # texts of these may hold the URL's secrets
        reason = getattr(error, "reason", None)
        why = getattr(reason, "strerror", None) or type(reason or error).__name__
        raise InputError(f"{url}: cannot be fetched ({why}). {cure}") from None


def _delivery(path: str, item: "pystac.Item", base: str) -> Delivery:
    chosen = _chosen(item)
    if not chosen:
        raise InputError(
            f"{path}: no asset of {item.id} is a band that tmtool knows; "
            f"it has {', '.join(list(item.assets)[:12]) or 'none'}. Expected B02, blue, vv, ..., or bands that say what they are."
        )
    modality = _modality(_collection(item), set(chosen))
    if modality:
        chosen = {band: source for band, source in chosen.items() if band in MODALITIES[modality].bands}
    _refuse_half_pair(path, item, chosen)
    gain, offset, why, nodata = _scale(path, item, chosen) if set(chosen) <= _NATIVE.keys() else (1.0, 0.0, "", None)
    crs, transform = _placed(path, item, chosen)
    about = item.properties
    tags = {
        "ACQUISITION_DATETIME": about.get("datetime") or about.get("start_datetime"),
        "PROCESSING_BASELINE": _baseline(item),
        "PLATFORM": about.get("platform"),
        "STAC_ITEM": item.id,
        "STAC_COLLECTION": item.collection_id,
    }
    return Delivery(
        path=path,
        kind=f"an item of {item.collection_id}" if item.collection_id else "a STAC item",
        layers=tuple(_layer(path, band, chosen[band], base) for band in sorted(chosen, key=_ORDER.index)),
        modality=modality,
        gain=gain,
        offset=offset,
        scale_why=why,
        nodata=nodata,
        power=modality == "S1RTC",
        tags={key: str(value) for key, value in tags.items() if value},
        flags=_flags(path, item, base) if set(chosen) <= _NATIVE.keys() else {},
        crs=crs,
        transform=transform,
    )


def _collection(item: "pystac.Item") -> str:
    return (item.collection_id or "").lower()


def _baseline(item: "pystac.Item") -> Any:
    keys = ("s2:processing_baseline", "processing:version", "sentinel:processing_baseline")
    return next((item.properties[key] for key in keys if item.properties.get(key)), None)


def _modality(collection: str, bands: set[str]) -> str | None:
    """Return what an item is of, by its collection and bands; None where the names of its bands have to tell."""
    for name in ("S2L1C", "S2L2A"):
        if re.search(rf"sentinel-(?:s?2).*{name[2:].lower()}", collection) and set(MODALITIES[name].bands) <= bands:
            return name
    if bands & {"VV", "VH"}:
        return "S1RTC" if "rtc" in collection else None
    return "DEM" if bands == {"elevation"} else None


def _refuse_half_pair(path: str, item: "pystac.Item", chosen: Mapping[str, _Source]) -> None:
    if len(pair := {"VV", "VH"} & set(chosen)) == 1:
        (missing,) = {"VV", "VH"} - pair
        raise InputError(
            f"{path}: {item.id} has {pair.pop()}, but {missing} is missing (assets: {', '.join(list(item.assets)[:12])}); "
            "a scene needs both. Take an item of dual polarisation."
        )


def _chosen(item: "pystac.Item") -> dict[str, _Source]:
    """Return where each band is that an item has, nearest to its native size."""
    found: dict[str, _Source] = {}
    for key, asset in item.assets.items():
        band, source = _band_of(item, key, asset)
        if band and (band not in found or source.rank < found[band].rank):
            found[band] = source
    return found or _stacked(item)


def _band_of(item: "pystac.Item", key: str, asset: "pystac.Asset") -> tuple[str | None, _Source]:
    """Return the band that an asset is, and where in it."""
    source = _Source(asset)
    if {"overview", "thumbnail", "metadata"} & set(asset.roles or ()) or key.endswith("-jp2"):
        return None, source
    if matched := _BAND.fullmatch(key):
        band = _numbered(item, matched[1])
        if band or not _is_landsat(item):
            native = _NATIVE.get(band or "", 0)
            return band, _Source(asset, rank=abs(int(matched[2] or native) - native))
    if key.lower() in _NAMES:
        return _as_landsat(item, _NAMES[key.lower()]), source
    if key in ("data", "elevation") and re.search("dem|elevation", _collection(item)):
        return "elevation", source
    return _described(item, asset), _Source(asset, rank=1)


def _is_hls(item: "pystac.Item", sensor: str) -> bool:
    return bool(re.match(rf"hls.*{sensor}", _collection(item)))


def _is_landsat(item: "pystac.Item") -> bool:
    said = f"{_collection(item)} {item.properties.get('platform', '')}".lower()
    return "landsat" in said and not _is_hls(item, "l30")


def _numbered(item: "pystac.Item", number: str) -> str | None:
    """Return the band of a number, which sensors count differently; None where it is none of Sentinel-2's."""
    band = f"B{number.upper():0>2}"
    if _is_landsat(item):
        return None
    if _is_hls(item, "l30"):
        return _HLS_L30.get(band)
    if _is_hls(item, "s30") and band == "B10":
        return None  # cirrus is no surface reflectance
    return band if band in _NATIVE else None


def _as_landsat(item: "pystac.Item", band: str) -> str:
    """Return the band of a common name: Landsat's nir is narrow."""
    return "B8A" if band == "B08" and (_is_landsat(item) or _is_hls(item, "l30")) else band


def _described(item: "pystac.Item", asset: "pystac.Asset") -> str | None:
    """Return the band that an asset says it is, by its only band's name or common name."""
    said = _bands(asset)
    return _band_said(item, said[0]) if len(said) == 1 else None


def _band_said(item: "pystac.Item", said: Mapping[str, Any]) -> str | None:
    """Return the band that a description means."""
    for word in (str(said.get(key) or "") for key in ("name", "eo:common_name", "common_name")):
        if matched := _BAND.fullmatch(word):
            if band := _numbered(item, matched[1]):
                return band
        elif word.lower() in _NAMES:
            return _as_landsat(item, _NAMES[word.lower()])
    return None


def _bands(asset: "pystac.Asset") -> list[dict[str, Any]]:
    """Return what an asset says of its bands, in the words of either version of STAC."""
    for key in ("bands", "eo:bands"):
        said = asset.extra_fields.get(key)
        if isinstance(said, list) and said:
            return [band if isinstance(band, dict) else {} for band in said]
    return []


def _stacked(item: "pystac.Item") -> dict[str, _Source]:
    """Return the bands of assets that hold several, by the order in which they list them: one raster, or Zarr groups."""
    every = {key: _in_stack(item, asset) for key, asset in item.assets.items()}
    groups: dict[str, _Source] = {}
    for found in every.values():
        for band, source in found.items():
            if source.array and (band not in groups or source.rank < groups[band].rank):
                groups[band] = source
    rasters = (found for found in every.values() if found and not any(s.array for s in found.values()))
    return groups or max(rasters, key=len, default={})


def _in_stack(item: "pystac.Item", asset: "pystac.Asset") -> dict[str, _Source]:
    """Return the bands of an asset that holds several; of pictures none."""
    said = _bands(asset)
    if len(said) < 2 or {"visual", "overview", "thumbnail"} & set(asset.roles or ()):
        return {}
    group = _ZARR.fullmatch(asset.href)
    size = re.search(r"/r(\d\d)m\b", asset.href) if group else None
    found: dict[str, _Source] = {}
    for number, each in enumerate(said, 1):
        if band := _band_said(item, each):
            rank = abs(int(size[1]) - _NATIVE.get(band, 0)) if size else 0
            found.setdefault(band, _Source(asset, number, rank, band.lower() if group else ""))
    return found


def _scale(path: str, item: "pystac.Item", chosen: Mapping[str, _Source]) -> tuple[float, float, str, float | None]:
    """Return gain and offset to DN of reflectance x 10 000, what says so, and nodata. Raises `InputError`."""
    said = {band: _said(source) for band, source in chosen.items()}
    nodata = _agreed(n for *_, n in said.values())
    if len({(scale, added) for scale, added, _ in said.values()}) > 1:
        some = ", ".join(f"{band} {scale} {added}" for band, (scale, added, _) in sorted(said.items()))
        raise InputError(
            f"{path}: the bands of {item.id} have several scales and offsets ({some}); expected one for all. "
            "Bring them to one first (gdal_translate -scale)."
        )
    scale, added, _ = next(iter(said.values()))
    gain = 1.0 if scale is None else round(scale * 10_000, 9)
    for key in ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied"):
        if item.properties.get(key) is True and "c1" not in _collection(item):
            return gain, 0.0, f"{key}: the offset is removed already", nodata
    if scale is not None:
        why = f"scale {scale:g} and offset {added or 0:g} of its assets"
        return gain, round(-(added or 0.0) * 10_000, 6) + 0.0, why, nodata
    if (baseline := _number(item.properties.get("s2:processing_baseline"))) is not None:
        why = f"its s2:processing_baseline {item.properties['s2:processing_baseline']}"
        return 1.0, 1000.0 if baseline >= 4 else 0.0, why, 0.0 if nodata is None else nodata
    return 1.0, 0.0, "", nodata


def _said(source: _Source) -> tuple[float | None, float | None, float | None]:
    """Return scale, offset and nodata of a band, in the words of either version of the raster extension; None if unsaid."""
    fields = source.asset.extra_fields
    listed: list[dict[str, Any]] = [fields]
    for key in ("bands", "raster:bands"):
        bands = fields.get(key)
        if isinstance(bands, list) and len(bands) >= source.number and isinstance(bands[source.number - 1], dict):
            listed.insert(0, bands[source.number - 1])

    def first(word: str) -> float | None:
        values = (_number(each.get(key)) for each in listed for key in (f"raster:{word}", word))
        return next((value for value in values if value is not None), None)

    scale = first("scale")
    return scale, first("offset") if scale is not None else None, first("nodata")


def _number(value: Any) -> float | None:
    """Return a number, also where it is text as `04.00`; None for anything else, NaN included."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if found == found else None  # noqa: PLR0124


def _agreed(values: Iterable[float | None]) -> float | None:
    """Return the value that all have; None, for which files are asked, where they differ."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _flags(path: str, item: "pystac.Item", base: str) -> dict[str, tuple[Flags, ...]]:
    """Return what the item's scene classification tells."""
    for key in ("scl", "SCL", "SCL_20m", "SCL_60m"):
        if key in item.assets:
            layer = _layer(path, "SCL", _Source(item.assets[key]), base)
            return {word: (Flags(layer, values),) for word, values in _SCL.items()}
    return {}


def _layer(path: str, band: str, source: _Source, base: str) -> Layer:
    href = source.asset.href
    if not ("://" in href or href.startswith("/")):
        href = urljoin(base, href) if base.startswith(_HTTP) else _beside(base, href)
    if (inside := _ZARR.fullmatch(href)) and not href.lower().endswith(".zip"):
        array = f"{inside[2].rstrip('/')}/{source.array}".rstrip("/")
        return Layer(band, f'ZARR:"{_gdal_name(path, inside[1])}":/{array}')
    return Layer(band, _gdal_name(path, _signed(path, href)), source.number)


def _beside(base: str, href: str) -> str:
    """Return a relative link from a file, or from an object of a store, such as `s3://bucket/item.json`."""
    scheme, separator, rest = base.rpartition("://")
    return f"{scheme}{separator}{os.path.normpath(os.path.join(os.path.dirname(rest), href))}"


def _gdal_name(path: str, href: str) -> str:
    """Return what GDAL opens a link by. Raises `InputError` for a store that it does not know."""
    scheme, separator, rest = href.partition("://")
    if not separator or href.startswith("/vsi"):
        return href
    if scheme == "file":
        return unquote(urlsplit(href).path)
    if scheme in ("http", "https"):
        return f"/vsicurl/{href}"
    if scheme not in _STORES:
        raise InputError(
            f"{path}: links to {shown(href)}; tmtool reads http, https, s3, gs and az, not {scheme}. Download it first."
        )
    container, slash, key = rest.partition("/")
    return f"{_STORES[scheme]}{container.partition('@')[0]}{slash}{key}"


def _signed(path: str, href: str) -> str:
    """Return a link as the command that signs has it, if there is one; links into Zarr cannot be signed. Raises `InputError`."""
    command = os.environ.get(SIGN, "").strip()
    return _signed_by(command, path, href) if command and href.startswith(_HTTP) else href


@functools.lru_cache(maxsize=4096)
def _signed_by(command: str, path: str, href: str) -> str:
    done = subprocess.run(command, shell=True, input=f"{href}\n", capture_output=True, text=True, check=False)
    found = done.stdout.strip()
    if done.returncode or not found.startswith(_HTTP) or len(found.split()) != 1:
        why = shown(done.stderr.strip()) or f"it ended with {done.returncode} and printed no single URL"
        raise InputError(
            f"{path}: --sign (or {SIGN}) could not sign {shown(href)}: {why}. It gets a URL on standard input and prints one."
        )
    return found


def _placed(path: str, item: "pystac.Item", chosen: Mapping[str, _Source]) -> tuple[Any, Any]:
    """Return CRS and affine of the finest band, of Zarr, where GDAL does not find them; else None. Raises `InputError`."""
    if not any(_ZARR.fullmatch(source.asset.href) for source in chosen.values()):
        return None, None
    from affine import Affine
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    fields = min((_projection(item, source) for source in chosen.values()), key=_pixel)
    code, affine = fields.get("proj:code") or fields.get("proj:epsg"), _affine(fields)
    if not code or not affine:
        raise InputError(
            f"{path}: {item.id} is Zarr and does not say where it lies; expected proj:code and proj:transform, or proj:bbox and "
            "proj:shape. Download the product (.zarr) and name that."
        )
    try:
        return CRS.from_user_input(code if isinstance(code, int) else str(code)), Affine(*affine)
    except CRSError as error:
        raise InputError(f"{path}: its CRS {code} is none that PROJ knows.") from error


def _projection(item: "pystac.Item", source: _Source) -> dict[str, Any]:
    own = source.asset.extra_fields
    return {k: v for fields in (item.properties, own) for k, v in fields.items() if k.startswith("proj:")}


def _affine(fields: Mapping[str, Any]) -> list[float] | None:
    if said := fields.get("proj:transform"):
        return [float(value) for value in said[:6]]
    if (box := fields.get("proj:bbox")) and (shape := fields.get("proj:shape")):
        return [(box[2] - box[0]) / shape[1], 0.0, box[0], 0.0, (box[1] - box[3]) / shape[0], box[3]]
    return None


def _pixel(fields: Mapping[str, Any]) -> float:
    affine = _affine(fields)
    return abs(affine[0] * affine[4]) if affine else float("inf")
