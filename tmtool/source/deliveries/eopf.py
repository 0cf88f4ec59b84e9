"""Sentinel-2 products in ESA's EOPF format: Zarr groups with bands at 10, 20 and 60 m, in a folder or a zip, L1C and L2A."""

import os
import zipfile
from collections.abc import Mapping
from typing import Any

import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioIOError

from tmtool.errors import InputError
from tmtool.modality import MODALITIES
from tmtool.source._delivery import Delivery, Flags, Layer

_BANDS = "measurements/reflectance"
_SIZES = ("r10m", "r20m", "r60m")
_NATIVE = {  # L2A has bands at coarser sizes too, and B01 at a finer one
    **dict.fromkeys(("B02", "B03", "B04", "B08"), "r10m"),
    **dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12"), "r20m"),
    **dict.fromkeys(("B01", "B09", "B10"), "r60m"),
}
_SCL = "conditions/mask/l2a_classification/r20m/scl"
_CLASSI = "conditions/mask/l1c_classification/r60m/b00"
_CLASSES = {"clouds": (8, 9), "shadow": (3,), "cirrus": (10,), "snow": (11,)}
_BITS = {"OPAQUE": "clouds", "CIRRUS": "cirrus", "SNOW_ICE": "snow"}
"""Meanings of the bits of L1C's mask."""


def claims(path: str) -> bool:
    """Whether a path is that of an EOPF product of Sentinel-2; products of tmtool are Zarr too."""
    name = path.rstrip("/").lower()
    if name.endswith(".zarr"):
        return os.path.isdir(os.path.join(path, _BANDS))
    if not name.endswith(".zip") or not os.path.isfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return _top(archive) is not None
    except (zipfile.BadZipFile, OSError):
        return False


def _top(archive: zipfile.ZipFile) -> str | None:
    """Return the folder of a zip that holds the product, "" for its root; None where there is no product."""
    for member in archive.namelist():
        if f"{_BANDS}/" in member:
            return member[: member.index(_BANDS)].rstrip("/")
    return None


def read(path: str) -> Delivery:
    """Return an EOPF product's bands, and what its metadata says of them. Raises `InputError`."""
    path = path.rstrip("/")
    try:
        root, name = _opened(path)
        return _product(path, root, name)
    except (FileNotFoundError, ValueError) as error:  # no metadata; no JSON
        raise InputError(
            f"{path}: its Zarr metadata is missing or damaged ({error}); download the product again."
        ) from error


def _product(path: str, root: Any, name: str) -> Delivery:
    about = _about(root)
    level = (
        "L2A"
        if _SCL in root or "L2A" in str(about.get("product:type", about.get("processing:level", ""))).upper()
        else "L1C"
    )
    modality = MODALITIES[f"S2{level}"]
    places = {band: _place(path, root, band) for band in modality.bands}
    gain, offset = _scale(path, {band: root[place] for band, place in places.items()})
    first = min(places.values())  # by the name of its group, r10m
    finest = root[first]
    _refuse_unreadable(path, root, f'ZARR:"{name}":/{first}')
    date = about.get("datetime") or about.get("start_datetime")
    baseline = about.get("processing:version") or about.get("s2:processing_baseline")
    tags = {"ACQUISITIONDATETIME": date, "PROCESSING_BASELINE": baseline, "SPACECRAFT": about.get("platform")}
    return Delivery(
        path=path,
        kind=f"a Sentinel-2 {level} EOPF product",
        layers=tuple(Layer(band, f'ZARR:"{name}":/{place}') for band, place in places.items()),
        modality=modality.name,
        gain=gain,
        offset=offset,
        scale_why=f"scale_factor {gain / 10_000:g} and add_offset {-offset / 10_000:g} of its bands",
        nodata=0.0,
        tags={key: str(value) for key, value in tags.items() if value},
        flags=_flags(root, name),
        crs=_crs(path, finest, about, root),
        transform=_transform(path, root, finest, first),
        shape=finest.shape,
    )


def _opened(path: str) -> tuple[Any, str]:
    """Return the product's root group, and what GDAL calls it."""
    import zarr

    if os.path.isdir(path):
        return zarr.open_group(path, mode="r"), os.path.abspath(path)
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file.")
    with zipfile.ZipFile(path) as archive:
        top = _top(archive) or ""
    store = zarr.storage.ZipStore(path, mode="r")
    where = f"/vsizip/{os.path.abspath(path)}"
    return zarr.open_group(store, mode="r", path=top), f"{where}/{top}" if top else where


def _refuse_unreadable(path: str, root: Any, opens: str) -> None:
    """Raise `InputError` for Zarr v3 where GDAL cannot read it."""
    if root.metadata.zarr_format == 2:
        return
    try:
        rasterio.open(opens).close()
    except RasterioIOError as error:
        raise InputError(
            f"{path}: is Zarr v3, which GDAL {rasterio.__gdal_version__} does not read ({error}); expected v2. Get the product as v2."
        ) from error


def _about(root: Any) -> Mapping[str, Any]:
    """Return the properties of the product's STAC metadata."""
    discovery = root.attrs.get("stac_discovery") or {}
    found: Mapping[str, Any] = discovery.get("properties") or {}
    return found


def _place(path: str, root: Any, band: str) -> str:
    """Return where a band lies: at its own size, else the finest there is."""
    name = band.lower()
    for size in (_NATIVE[band], *_SIZES):
        if f"{_BANDS}/{size}/{name}" in root:
            return f"{_BANDS}/{size}/{name}"
    raise InputError(f"{path}: has no {band} in {_BANDS}; the product is not whole. Download it again.")


def _scale(path: str, bands: Mapping[str, Any]) -> tuple[float, float]:
    """Return gain and offset to DN of reflectance x 10 000."""
    if unsaid := [band for band, array in bands.items() if not _said(array, "scale_factor")]:
        raise InputError(
            f"{path}: its {' '.join(unsaid)} have no scale_factor; expected 0.0001, as ESA's products have it, with add_offset. "
            "Get the product from ESA."
        )
    found = {(float(_said(a, "scale_factor")), float(_said(a, "add_offset", 0.0))) for a in bands.values()}
    if len(found) > 1:
        raise InputError(
            f"{path}: its bands have several scales and offsets ({sorted(found)}); tmtool takes one for all."
        )
    scale, added = found.pop()
    return round(scale * 10_000, 9), round(-added * 10_000, 6) + 0.0


def _said(array: Any, key: str, usual: Any = None) -> Any:
    """Return an attribute of an array, which EOPF may hold apart."""
    return array.attrs.get(key, (array.attrs.get("_eopf_attrs") or {}).get(key, usual))


def _crs(path: str, array: Any, about: Mapping[str, Any], root: Any) -> CRS:
    other = root.attrs.get("other_metadata") or {}
    for code in (
        _said(array, "proj:epsg"),
        _said(array, "proj:code"),
        about.get("proj:epsg"),
        about.get("proj:code"),
        other.get("horizontal_CRS_code"),
    ):
        if code:
            try:
                return CRS.from_user_input(code if isinstance(code, int) else str(code))
            except CRSError as error:
                raise InputError(f"{path}: its CRS {code} is none that PROJ knows.") from error
    raise InputError(f"{path}: its metadata has no CRS (proj:epsg, proj:code or horizontal_CRS_code).")


def _transform(path: str, root: Any, array: Any, place: str) -> Affine:
    """Return the affine of the 10 m bands: as their metadata has it, or from the coordinates of their pixels' centres."""
    if said := _said(array, "proj:transform"):
        return Affine(*said[:6])
    folder = place.rpartition("/")[0]
    try:
        x, y = (root[f"{folder}/{axis}"][:2].astype(float) for axis in ("x", "y"))
    except KeyError as error:
        raise InputError(f"{path}: {place} has no place: neither proj:transform nor coordinates x and y.") from error
    (x0, x1), (y0, y1) = x, y
    return Affine(x1 - x0, 0, x0 - (x1 - x0) / 2, 0, y1 - y0, y0 - (y1 - y0) / 2)


def _flags(root: Any, name: str) -> dict[str, tuple[Flags, ...]]:
    """Return what the product's own mask tells."""
    if _SCL in root:
        layer = Layer("SCL", f'ZARR:"{name}":/{_SCL}')
        return {word: (Flags(layer, values),) for word, values in _CLASSES.items()}
    if _CLASSI not in root:
        return {}
    array, layer = root[_CLASSI], Layer("CLASSI", f'ZARR:"{name}":/{_CLASSI}')
    meanings, masks = _said(array, "flag_meanings", ""), _said(array, "flag_masks", ())
    meanings = meanings.split() if isinstance(meanings, str) else meanings  # ESA writes a list, CF has words
    bits = {_BITS[m.upper()]: int(bit) for m, bit in zip(meanings, masks, strict=False) if m.upper() in _BITS}
    return {word: (Flags(layer, tuple(v for v in range(2 * max(masks)) if v & bit)),) for word, bit in bits.items()}
