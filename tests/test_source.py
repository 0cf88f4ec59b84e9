"""What a raster is taken for, which ones are refused, and what reading gives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint

from tmtool.errors import InputError, ReadError
from tmtool.grid import Window
from tmtool.modality import MODALITIES, S2_BANDS, S2_NAMES
from tmtool.settings import Reading
from tmtool.source import Reader, inspect, pixel_size_m


def dn(bands: int = 12, height: int = 40, width: int = 50) -> np.ndarray:
    return np.random.default_rng(0).integers(100, 5000, (bands, height, width)).astype(np.int16)


def db(bands: int = 2) -> np.ndarray:
    return np.random.default_rng(0).normal(-12, 4, (bands, 40, 50)).astype(np.float32)


def read(path: Path, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
    source = inspect(str(path), **kwargs)
    with Reader(source) as reader:
        return reader.read(Window(0, 0, *source.grid.shape))


@pytest.mark.parametrize(("count", "name"), [(12, "S2L2A"), (13, "S2L1C")])
def test_band_count_says_what_sentinel_2_is(make_raster: Any, count: int, name: str) -> None:
    source = inspect(str(make_raster(dn(count))))
    assert source.modality.name == name
    assert str(count) in source.modality_why


def test_three_bands_of_uint8_are_rgb_and_alpha_does_not_count(make_raster: Any) -> None:
    values = np.random.default_rng(0).integers(1, 255, (4, 40, 50)).astype(np.uint8)
    values[3] = 255
    values[3, :10] = 0
    path = make_raster(values, photometric="rgb", alpha="yes")
    source = inspect(str(path))
    assert (source.modality.name, source.bands) == ("RGB", (1, 2, 3))
    _, valid = read(path)
    assert not valid[:10].any()
    assert valid[10:].all()


def test_names_decide_and_put_bands_in_order(make_raster: Any) -> None:
    shuffled = list(S2_BANDS[::-1])
    values = dn()
    source = inspect(str(make_raster(values, names=shuffled)))
    assert source.modality.name == "S2L2A"
    assert source.bands == tuple(range(12, 0, -1))
    names = {v: k for k, v in S2_NAMES.items()}
    pixels, _ = read(make_raster(values, "named.tif", names=[names[b] for b in shuffled]))
    np.testing.assert_array_equal(pixels, values[::-1])


def test_more_bands_than_needed_are_fine_if_named(make_raster: Any) -> None:
    source = inspect(str(make_raster(dn(14), names=["SCL", *S2_BANDS, "CLD"])))
    assert source.modality.name == "S2L2A"
    assert source.bands == tuple(range(2, 14))
    l1c = [*S2_BANDS[:10], "B10", *S2_BANDS[10:]]
    assert inspect(str(make_raster(dn(13), "l1c.tif", names=l1c))).modality.name == "S2L1C"
    assert inspect(str(make_raster(dn(13), "l1c2.tif", names=l1c)), MODALITIES["S2L2A"]).bands == (
        *range(1, 11),
        12,
        13,
    )


@pytest.mark.parametrize(
    ("bands", "kwargs", "message"),
    [
        (dn(5), {}, "has 5 bands, which fits no modality"),
        (dn(1), {}, "1 band would fit DEM or LULC or NDVI: say --in DEM"),
        (db(), {}, "2 bands would fit S1GRD or S1RTC: say --in"),
        (dn(3), {}, "3 bands of int16; RGB takes values 0-255 as uint8"),
        (dn(13), {"modality": MODALITIES["S2L2A"]}, "has 13 bands, but S2L2A needs 12 .*13 bands would fit S2L1C"),
        (dn(12) / np.float32(10_000), {}, "look like reflectance; TerraMind takes DN"),
        (10 ** (db() / 10), {"modality": MODALITIES["S1GRD"]}, "look like linear power; TerraMind takes dB"),
        (db().astype(np.complex64), {"modality": MODALITIES["S1GRD"]}, "values are complex"),
        (dn(1), {"modality": MODALITIES["LULC"]}, "LULC takes classes 0-9 .*--lulc-codes esri"),
        (dn(1), {"modality": MODALITIES["NDVI"]}, "NDVI lies in -1..1"),
        (dn(3), {"modality": MODALITIES["RGB"]}, "RGB takes 0-255"),
    ],
)
def test_what_cannot_be_used_is_refused(make_raster: Any, bands: np.ndarray, kwargs: Any, message: str) -> None:
    path = make_raster(bands)
    with pytest.raises(InputError, match=message) as caught:
        inspect(str(path), **kwargs)
    assert str(path) in str(caught.value)


def test_names_of_other_bands_are_refused(make_raster: Any) -> None:
    names = [*S2_BANDS[:9], "B10", "B11", "B12"]
    with pytest.raises(InputError, match="B09 missing"):
        inspect(str(make_raster(dn(), names=names)))


def test_files_that_are_no_rasters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        inspect(str(tmp_path / "nowhere.tif"))
    with pytest.raises(InputError, match="is a folder"):
        inspect(str(tmp_path))
    text = tmp_path / "text.tif"
    text.write_text("hello")
    with pytest.raises(InputError, match="GDAL cannot open it"):
        inspect(str(text))


def test_ground_control_points_only_are_refused_with_the_cure(tmp_path: Path) -> None:
    path = tmp_path / "gcp.tif"
    gcps = [
        GroundControlPoint(r, c, 500_000 + 10 * c, 6_000_000 - 10 * r) for r, c in ((0, 0), (0, 49), (39, 0), (39, 49))
    ]
    with rasterio.open(path, "w", driver="GTiff", count=2, height=40, width=50, dtype="float32") as dst:
        dst.write(db())
        dst.gcps = (gcps, "EPSG:32719")
    with pytest.raises(InputError, match="ground control points only.*--grid utm@10m"):
        inspect(str(path), MODALITIES["S1GRD"])


@pytest.mark.parametrize("nodata", [-9999.0, float("nan")])
def test_nodata_in_any_band_makes_a_pixel_invalid(make_raster: Any, nodata: float) -> None:
    values = db()
    values[1, 3, 4] = nodata
    values[0, 5, 6] = np.nan
    values[0, 7, 8] = np.inf
    _, valid = read(make_raster(values, nodata=nodata), modality=MODALITIES["S1GRD"])
    assert sorted(zip(*np.nonzero(~valid), strict=True)) == [(3, 4), (5, 6), (7, 8)]


def test_sentinel_2_is_empty_where_all_bands_are_zero_if_nothing_is_declared(make_raster: Any) -> None:
    values = dn()
    values[:, 2, 3] = 0
    values[4, 5, 6] = 0
    _, valid = read(make_raster(values))
    assert sorted(zip(*np.nonzero(~valid), strict=True)) == [(2, 3)]
    _, valid = read(make_raster(values, "declared.tif", nodata=0))
    assert sorted(zip(*np.nonzero(~valid), strict=True)) == [(2, 3), (5, 6)]


def test_internal_masks_are_honoured(make_raster: Any) -> None:
    path = make_raster(dn())
    mask = np.full((40, 50), 255, np.uint8)
    mask[:7] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dst:
        dst.write_mask(mask)
    assert read(path)[1].sum() == 33 * 50


def test_offset_comes_from_the_option_then_the_file_then_nowhere(make_raster: Any) -> None:
    values = dn()
    path = make_raster(values)
    assert (inspect(str(path)).offset, inspect(str(path), None, Reading(s2_offset=1000)).offset) == (0, 1000)
    with rasterio.open(path, "r+") as dst:
        dst.update_tags(BOA_ADD_OFFSET="-1000")
    source = inspect(str(path))
    assert source.offset == 1000
    assert "metadata" in source.offset_why
    pixels, _ = read(path)
    np.testing.assert_array_equal(pixels, values.astype(np.float32) - 1000)
    assert inspect(str(path), None, Reading(s2_offset=0)).offset == 0
    scaled = make_raster(values, "scaled.tif")
    with rasterio.open(scaled, "r+") as dst:
        dst.scales, dst.offsets = [0.0001] * 12, [-0.1] * 12
    assert inspect(str(scaled)).offset == 1000


def test_nodata_is_tested_before_the_offset(make_raster: Any) -> None:
    values = dn()
    values[:, 0, 0] = 0
    values[:, 1, 1] = 1000
    _, valid = read(make_raster(values, nodata=0), how=Reading(s2_offset=1000))
    assert not valid[0, 0]
    assert valid[1, 1]


def test_pixel_size_is_warned_about(make_raster: Any) -> None:
    coarse = inspect(str(make_raster(dn(), transform=Affine(30, 0, 0, 0, -30, 0))))
    assert "30 m" in coarse.warnings[0]
    degrees = inspect(str(make_raster(dn(), "deg.tif", crs="EPSG:4326", transform=Affine(9e-5, 0, -70, 0, -9e-5, -33))))
    assert degrees.warnings == ()
    assert pixel_size_m(degrees.grid) == pytest.approx(9.2, abs=0.3)
    nowhere = inspect(str(make_raster(dn(), "none.tif", crs=None, transform=Affine.identity())))
    assert "no georeferencing" in nowhere.warnings[0]


def test_truncated_files_are_found(make_raster: Any) -> None:
    path = make_raster(dn(12, 700, 700), blockysize=16, compress="deflate")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="truncated|cannot open"):
        inspect(str(path))


def test_damage_outside_the_sample_is_found_while_reading(make_raster: Any) -> None:
    path = make_raster(
        dn(12, 700, 700), tiled=True, blockxsize=128, blockysize=128, compress="deflate", interleave="pixel"
    )
    source = inspect(str(path))
    with rasterio.open(path) as src:
        offset = int(src.tags(1, ns="TIFF")["BLOCK_OFFSET_1_0"]) if src.tags(1, ns="TIFF") else None
        offset = offset or int(src.get_tag_item("BLOCK_OFFSET_1_0", "TIFF", bidx=1))
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 64)
    with Reader(source) as reader, pytest.raises(ReadError, match="damaged or truncated"):
        reader.read(Window(0, 0, 700, 700))


def test_real_chips_are_understood(examples: Path) -> None:
    for folder, asked in [
        ("S2L2A", None),
        ("S2L1C", None),
        ("S2RGB", None),
        ("S1RTC", "S1RTC"),
        ("DEM", "DEM"),
        ("LULC", "LULC"),
    ]:
        for path in sorted((examples / folder).glob("*.tif")):
            source = inspect(str(path), MODALITIES[asked] if asked else None)
            assert source.grid.shape == (224, 224)
            assert source.warnings == ()
