"""An alpha band is validity, never data: what such rasters are taken for, and which of their pixels count."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp

import tmtool as package
from tests.conftest import TRANSFORM
from tmtool.modality import S2_BANDS

SHAPE = (70, 60)
EMPTY = np.s_[:20, :30]
TYPES = ("uint8", "uint16", "int16", "float32")


def pixels(count: int, dtype: str) -> np.ndarray:
    """Random bands and a last one that is 0 where EMPTY; where it is, the others hold data too."""
    high = 250 if dtype == "uint8" else 3000
    values = np.random.default_rng(0).integers(1, high, (count + 1, *SHAPE)).astype(dtype)
    values[-1] = 255
    values[-1][EMPTY] = 0
    return values


@pytest.fixture
def with_alpha(tmp_path: Path) -> Any:
    """Write bands, of which those given are marked as alpha, and return the path."""

    def make(values: np.ndarray, alpha: int | None = None, name: str = "scene.tif", **profile: Any) -> Path:
        path, count = tmp_path / name, len(values)
        where = {"crs": "EPSG:32719", "transform": TRANSFORM, "height": SHAPE[0], "width": SHAPE[1]}
        profile = {"driver": "GTiff", "count": count, "dtype": values.dtype} | where | profile
        with rasterio.open(path, "w", **profile) as dst:
            marks = [*dst.colorinterp]
            marks[(alpha or count) - 1] = ColorInterp.alpha
            dst.colorinterp = marks  # before the pixels, or GDAL leaves it out of the file
            dst.write(values)
        return path

    return make


def facts(tmtool: Any, path: Path, *options: str) -> dict[str, Any]:
    result = tmtool("info", path, "--json", *options)
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(result.stdout))


def valid_in(path: Path) -> np.ndarray:
    with rasterio.open(path) as src:
        return np.asarray(src.dataset_mask() > 0)


def expected() -> np.ndarray:
    valid = np.ones(SHAPE, bool)
    valid[EMPTY] = False
    return valid


@pytest.mark.parametrize("dtype", TYPES[1:])
def test_twelve_bands_and_alpha_are_s2l2a(
    tmtool: Any, identity: str, with_alpha: Any, tmp_path: Path, dtype: str
) -> None:
    path = with_alpha(pixels(12, dtype))
    found = facts(tmtool, path, "--out", "S1GRD")
    assert (found["modality"], found["because"], found["alpha"]) == ("S2L2A", "its 12 bands", 13)
    assert found["bands"] == dict(zip(S2_BANDS, range(1, 13), strict=True))
    result = tmtool("generate", path, "--out", "S1GRD", "--model", identity, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    np.testing.assert_array_equal(valid_in(tmp_path / "out" / "scene_S1GRD.tif"), expected())


def test_info_says_what_alpha_is_for(tmtool: Any, with_alpha: Any, make_raster: Any) -> None:
    assert (
        "  alpha         band 13; pixels where it is 0 are empty\n"
        in tmtool("info", with_alpha(pixels(12, "uint16"))).stdout
    )
    plain = make_raster(pixels(11, "uint16"), "plain.tif")
    assert "alpha" not in tmtool("info", plain).stdout


@pytest.mark.parametrize(
    ("count", "modality", "dtype", "low", "high"),
    [
        (3, "RGB", "uint8", 1, 250),
        (3, "RGB", "uint16", 1, 250),
        (2, "S1GRD", "float32", -25, -5),
        (2, "S1RTC", "int16", -25, -5),
        (1, "DEM", "int16", 100, 900),
        (1, "DEM", "float32", 100, 900),
        (1, "LULC", "uint8", 1, 9),
    ],
)
def test_other_modalities_and_alpha(
    tmtool: Any,
    identity: str,
    with_alpha: Any,
    tmp_path: Path,
    count: int,
    modality: str,
    dtype: str,
    low: int,
    high: int,
) -> None:
    values = pixels(count, dtype)
    values[:-1] = np.random.default_rng(1).integers(low, high, (count, *SHAPE))
    path = with_alpha(values)
    asked = () if dtype == "uint8" and count == 3 else ("--in", modality)
    found = facts(tmtool, path, "--out", "DEM", *asked)
    assert (found["modality"], list(found["bands"].values())) == (modality, list(range(1, count + 1)))
    assert found["alpha"] == count + 1
    result = tmtool("generate", path, *asked, "--out", "DEM", "--model", identity, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    np.testing.assert_array_equal(valid_in(tmp_path / "out" / "scene_DEM.tif"), expected())


def test_alpha_is_not_counted_where_the_modality_is_asked_for(tmtool: Any, with_alpha: Any) -> None:
    path = with_alpha(pixels(12, "uint16"))
    assert facts(tmtool, path, "--in", "S2L2A")["alpha"] == 13
    result = tmtool("info", path, "--in", "S2L1C")
    assert result.exit_code == 2
    assert "has 12 bands beside alpha, but S2L1C needs 13" in result.stderr
    result = tmtool("info", with_alpha(pixels(1, "uint8"), name="one.tif"))
    assert result.exit_code == 2
    assert "has 1 band, which does not say what it is" in result.stderr


def test_alpha_and_nodata_both_make_pixels_empty(tmtool: Any, identity: str, with_alpha: Any, tmp_path: Path) -> None:
    values = pixels(12, "uint16")
    values[5, 60, 50] = 0
    path = with_alpha(values, nodata=0)
    valid = expected()
    valid[60, 50] = False
    result = tmtool("generate", path, "--out", "S1GRD", "--model", identity, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    np.testing.assert_array_equal(valid_in(tmp_path / "out" / "scene_S1GRD.tif"), valid)


@pytest.mark.parametrize("inside", [True, False])
def test_masks_of_their_own_count_beside_alpha(
    tmtool: Any, identity: str, with_alpha: Any, tmp_path: Path, inside: bool
) -> None:
    path = with_alpha(pixels(12, "uint16"))
    valid = expected()
    mask = np.full(SHAPE, 255, np.uint8)
    mask[60:] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside), rasterio.open(path, "r+") as dst:
        dst.write_mask(mask)
    assert path.with_name("scene.tif.msk").exists() is not inside
    valid[60:] = False
    result = tmtool("generate", path, "--out", "S1GRD", "--model", identity, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    np.testing.assert_array_equal(valid_in(tmp_path / "out" / "scene_S1GRD.tif"), valid)


def test_alpha_before_data_is_refused_with_the_cure(tmtool: Any, with_alpha: Any) -> None:
    result = tmtool("info", with_alpha(pixels(12, "uint16"), alpha=2))
    assert result.exit_code == 2
    assert "band 2 of 13 is marked as alpha, which is expected last" in result.stderr
    assert "gdal_edit.py -colorinterp_2 undefined -colorinterp_13 alpha" in result.stderr


def test_a_band_of_sentinel_2_is_data_whatever_it_is_marked_as(tmtool: Any, with_alpha: Any) -> None:
    path = with_alpha(pixels(11, "uint16")[:12] + np.uint16(7), alpha=2)
    with rasterio.open(path, "r+") as dst:
        dst.descriptions = S2_BANDS
    found = facts(tmtool, path)
    assert (found["modality"], found["bands"]["B02"], found["alpha"]) == ("S2L2A", 2, None)


def test_a_mask_that_is_not_marked_is_refused_with_the_cure(tmtool: Any, make_raster: Any) -> None:
    result = tmtool("info", make_raster(pixels(12, "uint16")))
    assert result.exit_code == 2
    assert "band 13, taken for B12 of S2L1C, holds nothing but 255 and 0" in result.stderr
    assert "gdal_edit.py -colorinterp_N alpha" in result.stderr


@pytest.mark.parametrize("chunks", [None, {"band": 13, "y": 32, "x": 32}])
def test_a_band_of_an_array_called_alpha_is_validity(identity: str, make_raster: Any, chunks: Any) -> None:
    import rioxarray

    array = rioxarray.open_rasterio(make_raster(pixels(12, "uint16")), chunks=chunks)
    array.attrs["long_name"] = (*(f"layer {i}" for i in range(12)), "alpha")
    found = package.generate(array, "S1GRD", model=identity)
    np.testing.assert_array_equal(np.isfinite(found.S1GRD.to_numpy()).all(axis=0), expected())
