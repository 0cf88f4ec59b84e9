"""What is read of ESA's EOPF Zarr: which arrays, their scale, place, masks and tags; and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import zarr
from rasterio.errors import RasterioIOError

from tests import deliveries as made
from tmtool.errors import InputError
from tmtool.source._delivery import Delivery
from tmtool.source.deliveries.eopf import claims, read

BANDS = "measurements/reflectance"


def opened(path: str) -> np.ndarray:
    with rasterio.open(path) as src:
        values: np.ndarray = src.read(1)
        return values


def assert_holds(delivery: Delivery, product: made.Made) -> None:
    """The layers are the bands in order, at their own pixel size, and hold their values."""
    assert [layer.name for layer in delivery.layers] == list(product.bands)
    for layer in delivery.layers:
        np.testing.assert_array_equal(opened(layer.path), product.bands[layer.name])


def plain(folder: Path, level: str = "L2A", *, affine: bool = True) -> tuple[made.Made, Any]:
    """Make a product without consolidated metadata; return it, and its group to change."""
    product = made.eopf(folder, level, consolidated=False, affine=affine)
    return product, zarr.open_group(product.path, mode="r+")


@pytest.mark.parametrize("level", ["L2A", "L1C"])
@pytest.mark.parametrize("how", ["folder", "zip", "zip without folder"])
def test_bands_scale_place_and_tags(tmp_path: Path, level: str, how: str) -> None:
    product = made.eopf(tmp_path, level)
    path = product.path if how == "folder" else made.zipped(product.path, top=how == "zip")
    assert claims(str(path))
    found = read(f"{path}/" if how == "folder" else str(path))
    assert (found.path, found.modality) == (str(path), f"S2{level}")
    assert (found.gain, found.offset, found.nodata) == (1, 1000, 0)  # to the bit: no float dust
    assert (found.crs.to_string(), found.transform, found.shape) == (made.CRS, made.CORNER, made.SHAPE)
    assert found.tags == {
        "ACQUISITIONDATETIME": "2025-02-03T14:37:29.024000Z",
        "PROCESSING_BASELINE": "05.11",
        "SPACECRAFT": "sentinel-2b",
    }
    assert_holds(found, product)


def test_bands_are_taken_at_their_own_size(tmp_path: Path) -> None:
    product = made.eopf(tmp_path)
    assert (product.path / BANDS / "r20m/b01").is_dir()
    places = {layer.name: layer.path.rpartition(":/")[2] for layer in read(str(product.path)).layers}
    assert places == {band: f"{BANDS}/r{made.SIZES[band]}m/{band.lower()}" for band in product.bands}
    shutil.rmtree(product.path / BANDS / "r60m/b01")
    (product.path / ".zmetadata").unlink()
    assert read(str(product.path)).layers[0].path.endswith("/r20m/b01")


def test_masks_of_l2a_are_classes(tmp_path: Path) -> None:
    product = made.eopf(tmp_path)
    flags = read(str(product.path)).flags
    assert [(word, f.values) for word, (f,) in flags.items()] == [
        ("clouds", (8, 9)),
        ("shadow", (3,)),
        ("cirrus", (10,)),
        ("snow", (11,)),
    ]
    np.testing.assert_array_equal(opened(flags["clouds"][0].layer.path), product.mask)


@pytest.mark.parametrize("meanings", [["OPAQUE", "CIRRUS", "SNOW_ICE"], "opaque cirrus snow_ice"])
def test_masks_of_l1c_are_bits(tmp_path: Path, meanings: object) -> None:
    product, root = plain(tmp_path, "L1C")
    array = root["conditions/mask/l1c_classification/r60m/b00"]
    array.attrs["flag_meanings"] = meanings
    flags = read(str(product.path)).flags
    assert list(flags) == ["clouds", "cirrus", "snow"]
    for bit, (flag,) in enumerate(flags.values()):
        found = np.isin(opened(flag.layer.path), flag.values)
        np.testing.assert_array_equal(found, (product.mask >> bit) & 1)
        assert found.any()
    del array.attrs["flag_masks"]
    assert read(str(product.path)).flags == {}


def test_scale_that_eopf_holds_apart(tmp_path: Path) -> None:
    product, root = plain(tmp_path)
    for band, size in made.SIZES.items():
        if band != "B10":
            array = root[f"{BANDS}/r{size}m/{band.lower()}"]
            array.attrs["_eopf_attrs"] = {"scale_factor": 2e-4, "add_offset": -0.2}
            del array.attrs["scale_factor"], array.attrs["add_offset"]
    found = read(str(product.path))
    assert (found.gain, found.offset) == (2, 2000)


@pytest.mark.parametrize("code", ["array", "proj:epsg", "proj:code", "horizontal_CRS_code"])
def test_the_place_by_what_there_is(tmp_path: Path, code: str) -> None:
    product, root = plain(tmp_path, affine=code == "array")
    about = dict(root.attrs["stac_discovery"])
    properties = {k: v for k, v in about["properties"].items() if k != "proj:epsg"}
    if code != "array":
        del root[f"{BANDS}/r10m/b02"].attrs["proj:epsg"]
        properties |= {"proj:epsg": {code: 32719}, "proj:code": {code: made.CRS}}.get(code, {})
        root.attrs["stac_discovery"] = about | {"properties": properties}
    if code != "horizontal_CRS_code":
        root.attrs["other_metadata"] = {}
    found = read(str(product.path))
    assert (found.crs.to_string(), found.transform) == (made.CRS, made.CORNER)


def _no_crs(root: Any, path: Path) -> None:
    root.attrs.update({"stac_discovery": {"properties": {"product:type": "S02MSIL2A"}}, "other_metadata": {}})
    del root[f"{BANDS}/r10m/b02"].attrs["proj:epsg"]


def _no_place(root: Any, path: Path) -> None:
    shutil.rmtree(path / BANDS / "r10m/x")


def _no_scale(root: Any, path: Path) -> None:
    array = root[f"{BANDS}/r20m/b05"]
    array.attrs["_eopf_attrs"] = {}
    del array.attrs["scale_factor"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda _, path: shutil.rmtree(path / BANDS / "r20m/b05"), "has no B05 in measurements/reflectance"),
        (lambda root, _: root[f"{BANDS}/r20m/b05"].attrs.update(add_offset=0.0), "several scales and offsets"),
        (_no_scale, "its B05 have no scale_factor; expected 0.0001"),
        (_no_crs, r"has no CRS \(proj:epsg, proj:code or horizontal_CRS_code\)"),
        (lambda root, _: root[f"{BANDS}/r10m/b02"].attrs.update({"proj:epsg": 1}), "CRS 1 is none that PROJ knows"),
        (_no_place, "has no place: neither proj:transform nor coordinates"),
        (lambda _, path: (path / ".zgroup").write_text('{"zarr'), "Zarr metadata is missing or damaged"),
        (lambda _, path: (path / ".zgroup").unlink(), "Zarr metadata is missing or damaged"),
        (lambda _, path: (path / BANDS / "r10m/b02/.zarray").write_text("{"), "download the product again"),
    ],
)
def test_what_is_no_whole_product(tmp_path: Path, change: Callable[[Any, Path], object], error: str) -> None:
    product, root = plain(tmp_path, affine=False)
    change(root, product.path)
    with pytest.raises(InputError, match=error) as caught:
        read(str(product.path))
    assert str(caught.value).startswith(f"{product.path}: ")


def test_zarr_v3_is_read_where_gdal_can(tmp_path: Path) -> None:
    product, old = plain(tmp_path / "v2")
    new = zarr.open_group(tmp_path / "v3.zarr", mode="w", zarr_format=3)
    new.attrs.update(dict(old.attrs))
    for name, member in old.members(max_depth=None):
        if isinstance(member, zarr.Array):
            new.create_array(name, data=member[:]).attrs.update(dict(member.attrs))
    path = str(tmp_path / "v3.zarr")
    assert claims(path)
    if not _opens(f'ZARR:"{path}":/{BANDS}/r10m/b02'):  # as 3.10 does not
        with pytest.raises(InputError, match="is Zarr v3, which GDAL .* does not read .*expected v2"):
            read(path)
        return
    assert_holds(read(path), product)


def _opens(name: str) -> bool:
    try:
        rasterio.open(name).close()
    except RasterioIOError:
        return False
    return True


def test_what_is_claimed(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "own.zarr", mode="w").create_array("embedding", data=np.zeros((2, 2)))
    (tmp_path / "text.zip").write_text("no zip")
    made.zipped(tmp_path / "own.zarr")
    others = ("own.zarr", "own.zarr.zip", "text.zip", "none.zarr", "none.zarr.zip", "a.tif")
    assert not any(claims(str(tmp_path / name)) for name in others)
