"""What is read of Sentinel-2 SAFE products: which files, their scale, masks and tags; and what is refused."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio

from tests import deliveries as made
from tmtool.errors import InputError
from tmtool.modality import MODALITIES
from tmtool.source._delivery import Delivery, Flags
from tmtool.source.deliveries.safe import claims, read

RADAR = "S1A_IW_GRDH_1SDV_20240203T101112_20240203T101137_052382_065593_1234"


def opened(path: str, band: int = 1) -> np.ndarray:
    with rasterio.open(path) as src:
        values: np.ndarray = src.read(band)
        return values


def assert_holds(delivery: Delivery, product: made.Made) -> None:
    """The layers are the bands in order, at their own pixel size, and hold their values."""
    assert [layer.name for layer in delivery.layers] == list(product.bands)
    for layer in delivery.layers:
        np.testing.assert_array_equal(opened(layer.path, layer.band), product.bands[layer.name])
        with rasterio.open(layer.path) as src:
            assert (src.crs.to_string(), src.res[0]) == (made.CRS, made.SIZES[layer.name])


def edited(product: made.Made, *changes: tuple[str, str], level: str = "L2A") -> str:
    """Change a product's metadata; return the product's path."""
    metadata = product.path / f"MTD_MSI{level}.xml"
    text = metadata.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    metadata.write_text(text)
    return str(product.path)


@pytest.mark.parametrize("level", ["L2A", "L1C"])
def test_bands_scale_and_tags(tmp_path: Path, level: str) -> None:
    product = made.safe(tmp_path, level)
    found = read(str(product.path))
    assert (found.modality, found.gain, found.offset, found.nodata) == (f"S2{level}", 1, 1000, 0)
    assert found.tags == {
        "PRODUCT_START_TIME": "2024-02-03T14:37:29.024Z",
        "DATATAKE_1_DATATAKE_SENSING_START": "2024-02-03T14:37:29.024Z",
        "PROCESSING_BASELINE": "05.09",
        "SPACECRAFT": "Sentinel-2B",
        "PRODUCT_URI": product.path.name,
    }
    assert list(product.bands) == list(MODALITIES[f"S2{level}"].bands)
    assert_holds(found, product)


@pytest.mark.parametrize("top", [True, False])
def test_a_zip_with_and_without_its_folder(tmp_path: Path, top: bool) -> None:
    product = made.safe(tmp_path)
    path = made.zipped(product.path, top=top)
    assert claims(str(path))
    found = read(str(path))
    assert found.layers[0].path.startswith(f"/vsizip/{path}/{product.path.name if top else 'GRANULE'}/")
    assert_holds(found, product)


def test_masks_of_l2a_are_classes(tmp_path: Path) -> None:
    product = made.safe(tmp_path)
    flags = read(str(product.path)).flags
    assert {word: f.values for word, (f,) in flags.items()} == {
        "clouds": (8, 9),
        "shadow": (3,),
        "cirrus": (10,),
        "snow": (11,),
    }
    np.testing.assert_array_equal(opened(flags["clouds"][0].layer.path), product.mask)
    (scl,) = product.path.rglob("*_SCL_20m.jp2")
    scl.unlink()
    assert read(str(product.path)).flags == {}
    made.write(Path(str(scl).replace("20m", "60m")), product.mask[::3, ::3], 60)
    assert read(str(product.path)).flags["snow"][0].layer.path.endswith("_SCL_60m.jp2")


def test_masks_of_l1c_are_bands_of_one_file(tmp_path: Path) -> None:
    product = made.safe(tmp_path, "L1C")
    flags = read(str(product.path)).flags
    assert list(flags) == ["clouds", "cirrus", "snow"]
    for (flag,), mask in zip(flags.values(), product.mask, strict=True):
        assert isinstance(flag, Flags)
        np.testing.assert_array_equal(np.isin(opened(flag.layer.path, flag.layer.band), flag.values), mask == 1)
    next(product.path.rglob("MSK_CLASSI_B00.jp2")).unlink()  # before baseline 04.00: GML
    assert read(str(product.path)).flags == {}


@pytest.mark.parametrize(
    ("quantification", "offset", "gain", "taken_off"),
    [("10000", -1000, 1.0, 1000), ("1000", -100, 10.0, 1000), ("10000", None, 1.0, 0), ("20000", 0, 0.5, 0)],
)
def test_the_scale_is_that_of_its_metadata(
    tmp_path: Path, quantification: str, offset: int | None, gain: float, taken_off: float
) -> None:
    found = read(edited(made.safe(tmp_path, offset=offset), (">10000</BOA", f">{quantification}</BOA")))
    assert (found.gain, found.offset) == (gain, taken_off)
    assert f"QUANTIFICATION_VALUE {quantification} in its MTD_MSIL2A.xml" in found.scale_why
    assert ("no BOA_ADD_OFFSET, as before baseline 04.00" in found.scale_why) == (offset is None)


def test_names_of_products_made_until_2018(tmp_path: Path) -> None:
    product = made.safe(tmp_path, baseline="02.06", offset=None)
    path = edited(
        product,
        ("IMAGE_FILE>", "IMAGE_FILE_2A>"),
        ("PRODUCT_URI>", "PRODUCT_URI_2A>"),
        ("<BOA_QUANT", "<L2A_BOA_QUANT"),
        (">10000</BOA_QUANT", ">1000</L2A_BOA_QUANT"),
    )
    found = read(path)
    assert (found.gain, found.tags["PRODUCT_URI"]) == (10, product.path.name)
    assert_holds(found, product)


def test_a_product_without_a_bands_own_size(tmp_path: Path) -> None:
    product = made.safe(tmp_path)
    (b02,) = product.path.rglob("*_B02_10m.jp2")
    line = f"<IMAGE_FILE>{b02.relative_to(product.path).with_suffix('')}</IMAGE_FILE>"
    b02.unlink()
    with pytest.raises(InputError, match=r"has no B02: its file is missing; .* Expected GRANULE.*_B02_10m\.jp2"):
        read(str(product.path))  # B02 at 20 m is there, but is not what was asked for
    assert read(edited(product, (line, ""))).layers[1].path.endswith("_B02_20m.jp2")


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ('band_id="3">-1000', 'band_id="3">-900', r"several BOA_ADD_OFFSET \(\[-1000.0, -900.0\]\)"),
        ('band_id="3">-1000', 'band_id="3">many', "make no sense"),
        ('band_id="3"', 'band_id="33"', "expected a number for each band_id from 0 to 12"),
        ('band_id="3"', 'id="3"', "make no sense"),
        (">10000</BOA", ">0</BOA", "make no sense"),
        ("</n1:Level", "</n2:Level", r"its MTD_MSIL2A.xml is damaged .*; download the product again"),
        ("_B04_10m<", "_B14_10m<", "has no B04: its metadata lists no such band"),
        ("GRANULE/L2A_T19HCC_A036103_20240203T144656/IMG_DATA/R60m", "GRANULE/other/IMG_DATA/R60m", "several tiles"),
        ('standalone="no"?>', "?><!DOCTYPE a [<!ENTITY x 'y'>]>", "declares a document type"),
    ],
)
def test_metadata_that_cannot_be(tmp_path: Path, old: str, new: str, error: str) -> None:
    path = edited(made.safe(tmp_path), (old, new))
    with pytest.raises(InputError, match=error) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_damaged_zip_and_one_of_two_products(tmp_path: Path) -> None:
    product = made.safe(tmp_path / "a")
    path = made.zipped(product.path)
    raw = bytearray(path.read_bytes())
    at = raw.find(b"PRODUCT_URI")
    raw[at : at + 4] = b"xxxx"
    path.write_bytes(raw)
    with pytest.raises(InputError, match="its MTD_MSIL2A.xml is damaged"):
        read(str(path))
    two = tmp_path / "two.zip"
    with zipfile.ZipFile(two, "w") as archive:
        for name in ("S2A.SAFE", "S2B.SAFE"):
            archive.write(product.path / "MTD_MSIL2A.xml", f"{name}/MTD_MSIL2A.xml")
    with pytest.raises(InputError, match="holds 2 products; expected one. Unpack it"):
        read(str(two))


def _folder(root: Path) -> Path:
    (root / "measurement").mkdir(parents=True)
    (root / "measurement/s1a-iw-grd-vv-20240203t101112-20240203t101137-052382-065593-001.tiff").touch()
    (root / "manifest.safe").write_text("<xfdu/>")
    return root


@pytest.mark.parametrize(
    "make",
    [
        lambda root: _folder(root / f"{RADAR}.SAFE"),
        lambda root: _folder(root / RADAR),
        lambda root: _folder(root / "renamed.SAFE"),
        lambda root: made.zipped(_folder(root / f"{RADAR}.SAFE")),
    ],
    ids=["folder", "folder without ending", "renamed", "zip"],
)
def test_radar_is_claimed_and_refused(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = str(make(tmp_path))
    assert claims(path)
    with pytest.raises(InputError, match="neither calibrated nor placed on a grid.*S1RTC.*--in S1GRD"):
        read(path)


def test_what_is_claimed(tmp_path: Path) -> None:
    product = made.safe(tmp_path)
    for path in (f"{product.path}", f"{product.path}/", f"{product.path}/MTD_MSIL2A.xml"):
        assert claims(path)
        assert read(path).path == str(product.path)
    (tmp_path / "text.zip").write_text("no zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.tif", b"")
    (tmp_path / f"{RADAR}_rtc").mkdir()
    others = ("text.zip", "other.zip", "none.zip", "none.SAFE", f"{RADAR}_rtc", "a.tif", "MTD_TL.xml")
    assert not any(claims(str(tmp_path / name)) for name in others)
