"""Sentinel-2 products as ESA has delivered them since 2015: `.SAFE` folders and zips of them, L1C and L2A."""

import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from tmtool.errors import InputError
from tmtool.modality import MODALITIES
from tmtool.source._delivery import Delivery, Flags, Layer

_METADATA = re.compile(r"MTD_MSI(L1C|L2A)\.xml\Z")
_NATIVE = {  # metres
    **dict.fromkeys(("B02", "B03", "B04", "B08"), 10),
    **dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12"), 20),
    **dict.fromkeys(("B01", "B09", "B10"), 60),
}
_BAND_IDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
_SCL = {"clouds": (8, 9), "shadow": (3,), "cirrus": (10,), "snow": (11,)}
_CLASSI = {"clouds": 1, "cirrus": 2, "snow": 3}
"""Bands of MSK_CLASSI_B00."""


@dataclass(frozen=True)
class _Files:
    """The files of a product, in a folder or a zip: their names below `root`, which begins what GDAL opens."""

    root: str
    names: Sequence[str]
    archive: str = ""

    def text(self, name: str) -> bytes:
        """Return a file's bytes."""
        if not self.archive:
            with open(os.path.join(self.root, name), "rb") as file:
                return file.read()
        with zipfile.ZipFile(self.archive) as archive:
            return archive.read(self._inside(name))

    def _inside(self, name: str) -> str:
        return f"{self.root.removeprefix(f'/vsizip/{self.archive}/')}/{name}".lstrip("/")

    def path(self, name: str) -> str:
        """Return what GDAL opens."""
        return f"{self.root}/{name}"


def claims(path: str) -> bool:
    """Whether a path is that of a SAFE folder, of its metadata, or of a zip of one."""
    name = os.path.basename(path.rstrip("/"))
    if _METADATA.search(name) or (name.upper().endswith(".SAFE") and os.path.isdir(path)):
        return True
    if not name.lower().endswith(".zip") or not os.path.isfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(".SAFE/" in member for member in archive.namelist()[:20])
    except (zipfile.BadZipFile, OSError):
        return False


def read(path: str) -> Delivery:
    """Return a Sentinel-2 product's bands at 10, 20 and 60 m, and what its metadata says of them. Raises `InputError`."""
    path = os.path.dirname(path) or "." if _METADATA.search(path) else path.rstrip("/")
    files = _files(path)
    _refuse_radar(path, files)
    found = [name for name in files.names if _METADATA.fullmatch(name)]
    if not found:
        raise InputError(
            f"{path}: has no MTD_MSIL1C.xml or MTD_MSIL2A.xml, so it is no whole Sentinel-2 product; download or unpack it again."
        )
    (name,), level = found[:1], found[0][7:10]
    try:
        text = files.text(name)
        if b"<!DOCTYPE" in text:
            raise InputError(f"{path}: its {name} declares a document type, which ESA's do not; it is not read.")
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise InputError(f"{path}: its {name} is damaged ({error}); download the product again.") from error
    return _product(path, files, name, level, root)


def _files(path: str) -> _Files:
    if os.path.isdir(path):
        names = [
            os.path.relpath(os.path.join(folder, name), path) for folder, _, inside in os.walk(path) for name in inside
        ]
        return _Files(os.path.abspath(path), sorted(names))
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file.")
    archive = os.path.abspath(path)
    with zipfile.ZipFile(path) as opened:
        members = opened.namelist()
    top = next(member[: member.index(".SAFE/") + 5] for member in members if ".SAFE/" in member)
    names = [member[len(top) + 1 :] for member in members if member.startswith(f"{top}/") and not member.endswith("/")]
    return _Files(f"/vsizip/{archive}/{top}", sorted(names), archive)


def _refuse_radar(path: str, files: _Files) -> None:
    if re.match(r"S1[A-D]_", os.path.basename(path)) or any(n.startswith("measurement/s1") for n in files.names):
        raise InputError(
            f"{path}: is a Sentinel-1 SAFE, which is neither calibrated nor placed on a grid. Get it terrain-corrected: S1RTC of "
            "ASF HyP3, OPERA or the Planetary Computer; or process it (SNAP, pyroSAR) to sigma0 in dB and say --in S1GRD."
        )


def _texts(root: ET.Element, name: str) -> Iterator[tuple[Mapping[str, str], str]]:
    """Yield attributes and text of the elements of a name, in any namespace."""
    for element in root.iter():
        if element.tag.rpartition("}")[2] == name:
            yield element.attrib, (element.text or "").strip()


def _text(root: ET.Element, *names: str) -> str:
    return next((text for name in names for _, text in _texts(root, name)), "")


def _product(path: str, files: _Files, name: str, level: str, root: ET.Element) -> Delivery:
    modality = MODALITIES[f"S2{level}"]
    images = [text for _, text in _texts(root, "IMAGE_FILE")]
    if len({image.split("/")[1] for image in images if image.count("/") > 1}) > 1:
        raise InputError(f"{path}: holds several tiles, as products did until 2016; give one with one tile.")
    layers = tuple(Layer(band, files.path(_image(path, files, images, band))) for band in modality.bands)
    gain, offset, why = _scale(path, name, level, root, modality.bands)
    tags = {
        "PRODUCT_START_TIME": _text(root, "PRODUCT_START_TIME"),
        "DATATAKE_1_DATATAKE_SENSING_START": _text(root, "DATATAKE_SENSING_START"),
        "PROCESSING_BASELINE": _text(root, "PROCESSING_BASELINE"),
        "SPACECRAFT": _text(root, "SPACECRAFT_NAME"),
        "PRODUCT_URI": _text(root, "PRODUCT_URI"),
    }
    return Delivery(
        path=path,
        kind=f"a Sentinel-2 {level} product",
        layers=layers,
        modality=modality.name,
        gain=gain,
        offset=offset,
        scale_why=why,
        nodata=0.0,
        tags={key: value for key, value in tags.items() if value},
        flags=_flags(files, level),
    )


def _image(path: str, files: _Files, images: Sequence[str], band: str) -> str:
    """Return a band's file: at its own pixel size, else the finest there is."""
    sizes = sorted({_NATIVE[band], 10, 20, 60}, key=lambda size: (size != _NATIVE[band], size))
    endings = [*(f"_{band}_{size}m" for size in sizes), f"_{band}"]
    for ending in endings:
        for image in images:
            for suffix in (".jp2", ".tif"):
                if image.endswith(ending) and f"{image}{suffix}" in files.names:
                    return f"{image}{suffix}"
    listed = any(image.endswith(ending) for ending in endings for image in images)
    why = "its file is missing; the download is not complete" if listed else "its metadata lists no such band"
    raise InputError(f"{path}: has no {band}: {why}.")


def _scale(path: str, name: str, level: str, root: ET.Element, bands: Sequence[str]) -> tuple[float, float, str]:
    """Return gain and offset to DN of reflectance x 10 000, and where they are said."""
    start = "BOA" if level == "L2A" else "RADIO"
    quantification = _text(root, "BOA_QUANTIFICATION_VALUE", "QUANTIFICATION_VALUE") or "10000"
    said = {_BAND_IDS[int(about["band_id"])]: float(text) for about, text in _texts(root, f"{start}_ADD_OFFSET")}
    offsets = {said.get(band, 0.0) for band in bands}
    if len(offsets) > 1:
        raise InputError(
            f"{path}: its {name} has several {start}_ADD_OFFSET ({sorted(offsets)}); tmtool takes one for all bands."
        )
    gain, added = 10_000 / float(quantification), offsets.pop()
    why = f"{start}_ADD_OFFSET {added:g}" if said else f"no {start}_ADD_OFFSET, as before baseline 04.00,"
    return gain, -added * gain + 0.0, f"{why} and QUANTIFICATION_VALUE {quantification} in its {name}"


def _flags(files: _Files, level: str) -> dict[str, tuple[Flags, ...]]:
    """Return what the product's own mask tells."""
    if level == "L2A":
        scl = next((name for name in files.names if re.search(r"_SCL_20m\.jp2\Z", name)), None)
        return {word: (Flags(Layer("SCL", files.path(scl)), values),) for word, values in _SCL.items()} if scl else {}
    mask = next((name for name in files.names if name.endswith("MSK_CLASSI_B00.jp2")), None)
    return {w: (Flags(Layer("CLASSI", files.path(mask), band), (1,)),) for w, band in _CLASSI.items()} if mask else {}
