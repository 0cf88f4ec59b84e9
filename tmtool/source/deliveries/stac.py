"""STAC: an item in a file or at a URL, an item of a collection of them, or of lines of JSON (ndjson)."""

import functools
import json
import os
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tmtool.errors import InputError
from tmtool.modality import MODALITIES, S2_NAMES
from tmtool.names import shown
from tmtool.source._delivery import Delivery, Flags, Layer

if TYPE_CHECKING:
    import pystac

SIGN = "TMTOOL_SIGN"
"""Environment variable with the command that signs links."""
_TIMEOUT_S = 60
_ENDINGS = (".json", ".geojson", ".ndjson", ".jsonl")
_EARTH_SEARCH = {
    **{"coastal": "B01", "blue": "B02", "green": "B03", "red": "B04", "rededge1": "B05", "rededge2": "B06"},
    **{
        "rededge3": "B07",
        "nir": "B08",
        "nir08": "B8A",
        "nir09": "B09",
        "cirrus": "B10",
        "swir16": "B11",
        "swir22": "B12",
    },
    **{"rededge071": "B05", "rededge075": "B06", "rededge078": "B07", "nir_narrow": "B8A"},
}
"""Asset keys of Earth Search and the Planetary Computer's Landsat, and common names."""
_HLS_L30 = {"B01": "B01", "B02": "B02", "B03": "B03", "B04": "B04", "B05": "B8A", "B06": "B11", "B07": "B12"}
_ALIKE = {"vv": "VV", "vh": "VH", "data": "elevation", "elevation": "elevation"}
_SCL = {"clouds": (8, 9), "shadow": (3,), "cirrus": (10,), "snow": (11,)}
_BAND = re.compile(r"B(\d[\dA]?)(?:_(\d\d)m)?", re.I)
_STORES = {
    "s3": "/vsis3/",
    "gs": "/vsigs/",
    "az": "/vsiaz/",
    "abfs": "/vsiaz/",
    "http": "/vsicurl/http://",
    "https": "/vsicurl/https://",
}


def claims(path: str) -> bool:
    """Whether a path is that of items, or with `#ID` of one of several; of a URL by its name alone."""
    name = path.partition("#")[0]
    if name.startswith(("http://", "https://")):
        route = urlsplit(name).path
        return route.endswith(_ENDINGS) or "/items/" in route
    return name.lower().endswith(_ENDINGS) and os.path.isfile(name) and bool(_documents(name, strict=False))


def items(path: str) -> list[tuple[str, str]]:
    """Return the id of each item, and the path of it alone. Raises `InputError`."""
    found = _documents(path)
    ids = [str(item.get("id")) for item in found]
    if twice := {i for i in ids if ids.count(i) > 1}:
        raise InputError(f"{path}: holds several items with the id {min(twice)}.")
    return [(i, path if len(ids) == 1 else f"{path}#{i}") for i in ids]


def read(path: str) -> Delivery:
    """Return the bands of an item, and what it says of them. Raises `InputError`."""
    import pystac

    name, _, wanted = path.partition("#")
    found = [item for item in _documents(name) if not wanted or str(item.get("id")) == wanted]
    if len(found) != 1:
        what = f"no item {wanted}" if wanted else f"{len(found)} items; name one as {name}#ID"
        raise InputError(f"{path}: holds {what}.")
    try:
        item = pystac.Item.from_dict(dict(found[0]), href=_absolute(name), preserve_dict=True)
    except (pystac.STACError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: is no valid STAC item ({error!r}).") from error
    return _delivery(path, item)


def _absolute(name: str) -> str:
    return name if "://" in name else os.path.abspath(name)


def _documents(name: str, *, strict: bool = True) -> Sequence[Mapping[str, Any]]:
    """Return the items in a file or at a URL. Raises `InputError` if there are none and `strict` asks for some."""
    remote = "://" in name
    try:
        text = _fetched(name) if remote else _file(name, os.stat(name).st_mtime_ns)
        found = (
            _items(json.loads(text))
            if not _lines(name)
            else [json.loads(line) for line in text.splitlines() if line.strip()]
        )
    except (ValueError, OSError) as error:
        if strict:
            raise InputError(
                f"{name}: cannot be read as STAC ({error})."
            ) from None  # the text of URLs may hold secrets
        return []
    found = [
        item for item in found if isinstance(item, dict) and item.get("type") == "Feature" and "stac_version" in item
    ]
    if not found and strict:
        raise InputError(f"{name}: holds no STAC item; expected an Item, an ItemCollection or a line of JSON for each.")
    return found


def _lines(name: str) -> bool:
    return (
        urlsplit(name).path.endswith((".ndjson", ".jsonl")) if "://" in name else name.endswith((".ndjson", ".jsonl"))
    )


def _items(document: Any) -> list[Any]:
    if isinstance(document, dict) and document.get("type") == "FeatureCollection":
        return list(document.get("features") or [])
    return [document]


@functools.lru_cache(maxsize=4)
def _file(name: str, changed: int) -> str:
    with open(name, encoding="utf-8") as file:
        return file.read()


@functools.lru_cache(maxsize=4)
def _fetched(name: str) -> str:
    try:
        with urllib.request.urlopen(_signed(name), timeout=_TIMEOUT_S) as answer:  # noqa: S310
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        raise InputError(f"{shown(name)}: the server answers {error.code} ({error.reason}).") from None
    except urllib.error.URLError as error:
        raise InputError(f"{shown(name)}: cannot be fetched ({error.reason}).") from None


def _delivery(path: str, item: "pystac.Item") -> Delivery:
    chosen = _chosen(item)
    collection = (item.collection_id or "").lower()
    if not chosen:
        raise InputError(
            f"{path}: no asset of {item.id} is a band that tmtool knows; it has {', '.join(list(item.assets)[:12])}."
        )
    modality = _modality(collection, set(chosen))
    layers = tuple(Layer(band, _gdal_name(asset), number) for band, (asset, number) in _in_order(chosen).items())
    optical = modality is None or MODALITIES[modality].is_optical
    gain, offset, why, nodata = _scale(path, item, chosen) if optical else (1.0, 0.0, "", None)
    about = item.properties
    tags = {
        "ACQUISITIONDATETIME": about.get("datetime") or about.get("start_datetime"),
        "PROCESSING_BASELINE": _baseline(item),
        "PLATFORM": about.get("platform"),
        "STAC_ITEM": item.id,
        "STAC_COLLECTION": item.collection_id,
    }
    return Delivery(
        path=path,
        kind=f"an item of {item.collection_id}" if item.collection_id else "a STAC item",
        layers=layers,
        modality=modality,
        gain=gain,
        offset=offset,
        scale_why=why,
        nodata=nodata,
        power=modality == "S1RTC",
        tags={key: str(value) for key, value in tags.items() if value},
        flags=_flags(item),
    )


def _baseline(item: "pystac.Item") -> Any:
    for key in ("s2:processing_baseline", "processing:version", "earthsearch:processing_baseline"):
        if key in item.properties:
            return item.properties[key]
    return None


def _modality(collection: str, bands: set[str]) -> str | None:
    """Return what an item is of, by its collection and bands; None where the names of its bands have to tell."""
    for name in ("S2L1C", "S2L2A"):
        if name[2:].lower() in collection and "sentinel-2" in collection and set(MODALITIES[name].bands) <= bands:
            return name
    if bands == {"VV", "VH"}:
        return "S1RTC" if "rtc" in collection else None
    return "DEM" if bands == {"elevation"} else None


def _chosen(item: "pystac.Item") -> "dict[str, tuple[pystac.Asset, int]]":
    """Return the asset, and the number of the band in it, of each band that an item has; the finest where there are several."""
    table = _HLS_L30 if (item.collection_id or "").upper().startswith("HLSL30") else None
    found: dict[str, tuple[pystac.Asset, int]] = {}
    sizes: dict[str, int] = {}
    for key, asset in item.assets.items():
        band, size = _band_of(key, asset, table)
        if band and (band not in found or size < sizes[band]):
            found[band], sizes[band] = (asset, 1), size
    return found or _stacked(item)


_NATIVE = {"B05": 20, "B06": 20, "B07": 20, "B8A": 20, "B11": 20, "B12": 20, "B01": 60, "B09": 60, "B10": 60}


def _band_of(key: str, asset: "pystac.Asset", table: Mapping[str, str] | None) -> tuple[str | None, int]:
    """Return the band that an asset is, and how good it is: least is best."""
    roles = asset.roles or []
    if {"overview", "thumbnail", "metadata"} & set(roles) or key.endswith("-jp2"):
        return None, 0
    if matched := _BAND.fullmatch(key):
        number = matched[1].upper()
        band = f"B{number:0>2}"
        band = (table or {}).get(band, band) if table else band
        size = int(matched[2] or 0)
        return (band if band in S2_NAMES.values() else None), 0 if size in (0, _NATIVE.get(band, 10)) else size
    name = key.lower()
    if name in _EARTH_SEARCH or name in _ALIKE:
        return _EARTH_SEARCH.get(name) or _ALIKE.get(name), 0
    return _named(asset), 1


def _named(asset: "pystac.Asset") -> str | None:
    """Return the band that an asset says it is, by its only band's name or common name."""
    described = _bands(asset)
    words = [described[0].get(k) for k in ("name", "eo:common_name", "common_name")] if len(described) == 1 else []
    for said in filter(None, words):
        if matched := _BAND.fullmatch(str(said)):
            return f"B{matched[1].upper():0>2}"
        if band := (_EARTH_SEARCH | _ALIKE).get(str(said).lower()):
            return band
    return None


def _bands(asset: "pystac.Asset") -> list[dict[str, Any]]:
    """Return what an asset says of its bands, in the words of either version of the extensions."""
    for key in ("bands", "eo:bands"):
        if isinstance(asset.extra_fields.get(key), list):
            return list(asset.extra_fields[key])
    return []


def _stacked(item: "pystac.Item") -> "dict[str, tuple[pystac.Asset, int]]":
    """Return the bands of the first asset that holds several, by the order in which it lists them."""
    for asset in item.assets.values():
        names = [
            str(band.get("name") or band.get("eo:common_name") or band.get("common_name")) for band in _bands(asset)
        ]
        known = {**_EARTH_SEARCH, **_ALIKE, **{b.lower(): b for b in S2_NAMES.values()}}
        found = {known[n.lower()]: (asset, i) for i, n in enumerate(names, 1) if n.lower() in known}
        if len(found) > 1:
            return found
    return {}


def _in_order(chosen: "Mapping[str, tuple[pystac.Asset, int]]") -> "dict[str, tuple[pystac.Asset, int]]":
    every = [*MODALITIES["S2L1C"].bands, "VV", "VH", "elevation"]
    return {band: chosen[band] for band in sorted(chosen, key=every.index)}


def _scale(
    path: str, item: "pystac.Item", chosen: "Mapping[str, tuple[pystac.Asset, int]]"
) -> tuple[float, float, str, float | None]:
    """Return gain and offset to DN of reflectance x 10 000, where they are said, and nodata."""
    said = {_of_asset(asset, number) for asset, number in chosen.values()}
    scales = {(scale, added) for scale, added, _ in said}
    nodata = next(iter({n for *_, n in said}), None)
    if len(scales) > 1:
        raise InputError(f"{path}: the bands of {item.id} have several scales and offsets; tmtool takes one for all.")
    scale, added = scales.pop()
    if item.properties.get("earthsearch:boa_offset_applied") is True:
        return 1.0, 0.0, "earthsearch:boa_offset_applied: the offset is removed already", nodata
    if scale is not None:
        gain, offset = round(scale * 10_000, 9), round(-(added or 0.0) * 10_000, 6) + 0.0
        return gain, offset, f"scale {scale:g} and offset {added or 0:g} of its assets", nodata
    baseline = item.properties.get("s2:processing_baseline")
    if baseline:
        late = float(baseline) >= 4
        return 1.0, 1000.0 if late else 0.0, f"its s2:processing_baseline {baseline}", 0.0 if nodata is None else nodata
    return 1.0, 0.0, "", nodata


def _of_asset(asset: "pystac.Asset", number: int) -> tuple[float | None, float | None, float | None]:
    """Return scale, offset and nodata of a band, None where they are not said."""
    fields = asset.extra_fields
    listed = fields.get("raster:bands") or fields.get("bands") or []
    band = listed[number - 1] if len(listed) >= number else {}
    found = [
        band.get(key, band.get(f"raster:{key}", fields.get(f"raster:{key}", fields.get(key))))
        for key in ("scale", "offset", "nodata")
    ]
    scale, offset, nodata = (None if value is None or isinstance(value, str) else float(value) for value in found)
    return scale, offset, nodata


def _flags(item: "pystac.Item") -> dict[str, tuple[Flags, ...]]:
    """Return what the item's scene classification tells."""
    for key in ("scl", "SCL", "SCL_20m"):
        if key in item.assets:
            layer = Layer("SCL", _gdal_name(item.assets[key]))
            return {word: (Flags(layer, values),) for word, values in _SCL.items()}
    return {}


def _gdal_name(asset: "pystac.Asset") -> str:
    """Return what GDAL opens an asset by, signed if a command for that is given."""
    href = asset.get_absolute_href() or asset.href
    scheme, separator, rest = href.partition("://")
    if not separator:
        return href
    if scheme == "file":
        return rest
    if scheme in ("http", "https"):
        scheme, _, rest = _signed(href).partition("://")
    if scheme not in _STORES:
        raise InputError(f"{shown(href)}: tmtool reads http, https, s3, gs and az, not {scheme}.")
    return f"{_STORES[scheme]}{rest}"


@functools.lru_cache(maxsize=4096)
def _signed_by(command: str, href: str) -> str:
    done = subprocess.run(command, shell=True, input=f"{href}\n", capture_output=True, text=True, check=False)  # noqa: S602
    found = done.stdout.strip()
    if done.returncode or "://" not in found:
        why = shown(done.stderr.strip()) or f"it ended with {done.returncode} and printed no URL"
        raise InputError(f"--sign {command.split()[0]}: could not sign {shown(href)}: {why}")
    return found


def _signed(href: str) -> str:
    command = os.environ.get(SIGN)
    return _signed_by(command, href) if command else href
