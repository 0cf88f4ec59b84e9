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
_RADAR = re.compile(r"S1[A-D]_")
_NATIVE = {  # metres
    **dict.fromkeys(("B02", "B03", "B04", "B08"), 10),
    **dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12"), 20),
    **dict.fromkeys(("B01", "B09", "B10"), 60),
}
_BAND_IDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
_IMAGES = ("IMAGE_FILE", "IMAGE_FILE_2A")
"""Elements that list files. What ends in 2A, or begins with L2A, is of L2A products made until 2018."""
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
        return f"{self.root.removeprefix(f'/vsizip/{self.archive}')}/{name}".lstrip("/")

    def path(self, name: str) -> str:
        """Return what GDAL opens."""
        return f"{self.root}/{name}"


def claims(path: str) -> bool:
    """Whether a path is that of a SAFE folder, of its metadata, or of a zip of one; radar too, which `read` refuses."""
    name = os.path.basename(path.rstrip("/"))
    if _METADATA.fullmatch(name) or (name.upper().endswith(".SAFE") and os.path.isdir(path)):
        return True
    if _RADAR.match(name) and os.path.isfile(os.path.join(path, "manifest.safe")):
        return True
    if not name.lower().endswith(".zip") or not os.path.isfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return bool(_tops(archive.namelist()))
    except (zipfile.BadZipFile, OSError):
        return False


def _tops(members: Sequence[str]) -> list[str]:
    """Return the folders of a zip's members that hold a product, "" for the zip itself."""
    below = {member[: member.index(".SAFE/") + 5] for member in members if ".SAFE/" in member}
    plain = {os.path.dirname(member) for member in members if _METADATA.fullmatch(os.path.basename(member))}
    return sorted(below or plain)


def read(path: str) -> Delivery:
    """Return a Sentinel-2 product's bands at 10, 20 and 60 m, and what its metadata says of them. Raises `InputError`."""
    path = os.path.dirname(path) or "." if _METADATA.fullmatch(os.path.basename(path)) else path.rstrip("/")
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
        return _product(path, files, name, level, root)
    except (ET.ParseError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: its {name} is damaged ({error}); download the product again.") from error


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
    top, *others = _tops(members)
    if others:
        raise InputError(
            f"{path}: holds {len(others) + 1} products; expected one. Unpack it, and name one .SAFE folder."
        )
    start = f"{top}/" if top else ""
    names = [member[len(start) :] for member in members if member.startswith(start) and not member.endswith("/")]
    return _Files(f"/vsizip/{archive}/{top}".rstrip("/"), sorted(names), archive)


def _refuse_radar(path: str, files: _Files) -> None:
    if _RADAR.match(os.path.basename(path)) or any(n.startswith("measurement/s1") for n in files.names):
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
    images = [text for key in _IMAGES for _, text in _texts(root, key)]
    if len({image.split("/")[1] for image in images if image.count("/") > 1}) > 1:
        raise InputError(f"{path}: holds several tiles, as products did until 2016; give one with one tile.")
    layers = tuple(Layer(band, files.path(_image(path, files, images, band))) for band in modality.bands)
    gain, offset, why = _scale(path, name, level, root, modality.bands)
    tags = {
        "PRODUCT_START_TIME": _text(root, "PRODUCT_START_TIME"),
        "DATATAKE_1_DATATAKE_SENSING_START": _text(root, "DATATAKE_SENSING_START"),
        "PROCESSING_BASELINE": _text(root, "PROCESSING_BASELINE"),
        "SPACECRAFT": _text(root, "SPACECRAFT_NAME"),
        "PRODUCT_URI": _text(root, "PRODUCT_URI", "PRODUCT_URI_2A"),
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
    """Return a band's file: at its own pixel size, else the finest that the product was made with."""
    sizes = sorted((10, 20, 60), key=lambda size: (size != _NATIVE[band], size))
    endings = (*(f"_{band}_{size}m" for size in sizes), f"_{band}")
    listed = next((image for ending in endings for image in images if image.endswith(ending)), None)
    if listed is None:
        raise InputError(f"{path}: has no {band}: its metadata lists no such band. Get the whole product.")
    for name in (f"{listed}.jp2", f"{listed}.tif"):
        if name in files.names:
            return name
    raise InputError(
        f"{path}: has no {band}: its file is missing; the download is not complete. Expected {listed}.jp2; download it again."
    )


def _scale(path: str, name: str, level: str, root: ET.Element, bands: Sequence[str]) -> tuple[float, float, str]:
    """Return gain and offset to DN of reflectance x 10 000, and where they are said."""
    start = "BOA" if level == "L2A" else "RADIO"
    values = ("BOA_QUANTIFICATION_VALUE", "L2A_BOA_QUANTIFICATION_VALUE", "QUANTIFICATION_VALUE")
    quantification = _text(root, *values) or "10000"
    try:
        gain = 10_000 / float(quantification)
        said = {_BAND_IDS[int(about["band_id"])]: float(text) for about, text in _texts(root, f"{start}_ADD_OFFSET")}
    except (ValueError, KeyError, IndexError, ZeroDivisionError) as error:
        raise InputError(
            f"{path}: the {start}_ADD_OFFSET or QUANTIFICATION_VALUE of its {name} make no sense ({error!r}); expected a number "
            "for each band_id from 0 to 12. Download the product again."
        ) from error
    offsets = {said.get(band, 0.0) for band in bands}
    if len(offsets) > 1:
        raise InputError(
            f"{path}: its {name} has several {start}_ADD_OFFSET ({sorted(offsets)}); tmtool takes one for all bands."
        )
    added = offsets.pop()
    why = f"{start}_ADD_OFFSET {added:g}" if said else f"no {start}_ADD_OFFSET, as before baseline 04.00,"
    return gain, -added * gain + 0.0, f"{why} and QUANTIFICATION_VALUE {quantification} in its {name}"


def _flags(files: _Files, level: str) -> dict[str, tuple[Flags, ...]]:
    """Return what the product's own mask tells."""
    if level == "L2A":
        scl = next((name for name in sorted(files.names) if re.search(r"_SCL_[26]0m\.jp2\Z", name)), None)  # 20 m first
        return {word: (Flags(Layer("SCL", files.path(scl)), values),) for word, values in _SCL.items()} if scl else {}
    mask = next((name for name in files.names if name.endswith("MSK_CLASSI_B00.jp2")), None)
    return {w: (Flags(Layer("CLASSI", files.path(mask), band), (1,)),) for w, band in _CLASSI.items()} if mask else {}
