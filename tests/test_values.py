"""Values that cannot be what they are taken for are refused, and what is far from the pretraining data is told."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling

import tmtool as package
from tests.conftest import ROOT, TRANSFORM
from tests.specs import moments_of
from tmtool.modality import MODALITIES
from tmtool.models import find
from tmtool.settings import Reading
from tmtool.source import Reader, inspect

SHAPE = (60, 50)


def like(name: str, scale: float = 1.0, shift: float = 0.0, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Values as the pretraining data has them, but for a scale and a shift."""
    m = MODALITIES[name]
    noise = np.random.default_rng(0).uniform(-0.6, 0.6, (len(m.bands), *shape))
    mean, std = (np.reshape(v, (-1, 1, 1)) for v in moments_of(name))
    return np.asarray((mean + std * noise) * scale + shift, np.float32)


def holed(values: np.ndarray, hole: float, rows: int = 5) -> np.ndarray:
    values[:, :rows] = hole
    return values


REFUSED = [
    ("S2L2A", (like("S2L2A") / 20).astype(np.uint8), "12 bands are uint8, which cannot hold S2L2A: expected DN"),
    ("S2L2A", like("S2L2A", shift=1e10), "are impossible; expected DN"),
    ("S2L2A", holed(like("S2L2A"), 1e10, 1), "values from .* to 1e\\+10 are impossible"),
    ("S2L2A", like("S2L2A", scale=-1), "are all below zero; expected DN"),
    ("S2L2A", like("S2L2A", scale=-1e-3), "are all below zero; expected DN"),
    ("S2L2A", holed(like("S2L2A"), -9999), "values of -9999 in 8.3 % of the sample.*gdal_edit.py -a_nodata -9999"),
    ("S1GRD", holed(like("S1GRD"), 1e10), "are impossible; expected calibrated backscatter in dB"),
    (
        "S1GRD",
        np.full((2, *SHAPE), 40, np.float32),
        "from 40 to 40 look like linear power; .*As dB they are impossible",
    ),
    ("S1RTC", like("S1RTC", shift=55), "As dB they are impossible; amplitudes have to be calibrated"),
    (
        "S1RTC",
        like("S1RTC", scale=0.1, shift=40) * np.array([1, -1])[:, None, None],
        "from -38.* \\(median of VV 38.9.*\\) are impossible",
    ),
    ("DEM", holed(like("DEM"), -32768).astype(np.int16), "values of -32768 .*metres.*-a_nodata -32768"),
    ("DEM", holed(like("DEM"), -9999), "DEM values of -9999"),
    ("DEM", like("DEM", shift=13_000), "are impossible; expected metres.*If they are feet, say --unit DEM=feet"),
    ("DEM", like("DEM", shift=1e10), "are impossible; expected metres.*unit and scale"),
    ("NDVI", like("DEM"), "NDVI lies in -1..1.*DEM.*--in DEM"),
]


@pytest.mark.parametrize(("name", "values", "message"), REFUSED, ids=[f"{r[0]}-{i}" for i, r in enumerate(REFUSED)])
def test_what_cannot_be_is_refused(
    tmtool: Any, identity: str, make_raster: Any, tmp_path: Path, name: str, values: np.ndarray, message: str
) -> None:
    path = make_raster(values.astype(np.float32) if values.dtype == np.float64 else values)
    asked = (path, "--in", name)
    for command in (
        ("generate", *asked, "--out", "LULC", "--model", identity, "-o", tmp_path / "out"),
        ("generate", *asked, "--out", "LULC", "--model", identity, "-o", tmp_path / "out", "--dry-run"),
        ("info", *asked, "--out", "LULC"),
    ):
        result = tmtool(*command)
        assert (result.exit_code, result.stdout) == (2, "")
        assert str(path) in result.stderr
        assert re.search(message, " ".join(result.stderr.split()))
    assert not (tmp_path / "out").exists()


WARNED = [
    ("DEM", like("DEM", shift=4000), r"median: elevation 46\d\d.*, expected 670.665 \+- 951.272"),
    ("S1GRD", like("S1GRD", shift=23), r"median: VV 10\.\d*, expected -12.599 \+- 5.195"),
    ("S2L2A", like("S2L2A", scale=0.02), r"hardly vary \(standard deviation: B01 .*, expected about 2106.76; .*B12 "),
    (
        "DEM",
        np.zeros((1, *SHAPE), np.float32),
        r"hardly vary \(standard deviation: elevation 0, expected about 951.272",
    ),
]


@pytest.mark.parametrize(("name", "values", "message"), WARNED, ids=[f"{w[0]}-{i}" for i, w in enumerate(WARNED)])
def test_what_is_far_off_is_told_and_runs(
    tmtool: Any, identity: str, make_raster: Any, tmp_path: Path, name: str, values: np.ndarray, message: str
) -> None:
    path = make_raster(values)
    result = tmtool("generate", path, "--in", name, "--out", "LULC", "--model", identity, "-o", tmp_path, "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert re.search(message, result.stderr)
    assert str(path) in result.stderr
    assert re.search(message, tmtool("info", path, "--in", name, "--out", "S1RTC").stdout)


def test_bands_that_are_as_expected_are_not_named(make_raster: Any) -> None:
    values = like("S2L2A")
    values[3] = 30_000
    median, flat = inspect(str(make_raster(values)), trained_on=find("base").moments).warnings
    assert "B04 30000, expected 1853.91 +- 2134.14)" in median
    assert "B04 0, expected about 2134.14)" in flat
    assert not any(band in median + flat for band in ("B03", "B05"))


def test_what_is_empty_does_not_count(make_raster: Any) -> None:
    values = holed(like("DEM"), -32768).astype(np.int16)
    source = inspect(str(make_raster(values, nodata=-32768)), MODALITIES["DEM"])
    assert source.warnings == ()
    assert source.values[0].low > -1000
    path = make_raster(holed(like("DEM"), 1e10), "masked.tif")
    mask = np.full(SHAPE, 255, np.uint8)
    mask[:5] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dst:
        dst.write_mask(mask)
    assert inspect(str(path), MODALITIES["DEM"]).values[0].high < 3000
    nothing = inspect(str(make_raster(np.zeros((12, *SHAPE), np.int16), "nothing.tif")))
    assert (nothing.values, nothing.warnings) == ((), ())


def test_offsets_are_removed_before(make_raster: Any) -> None:
    path = str(make_raster(like("S2L2A", shift=1000)))
    plain, shifted = (inspect(path, None, Reading(s2_offset=offset)).values[0].median for offset in (0, 1000))
    assert plain - shifted == pytest.approx(1000, abs=0.01)


def test_info_prints_a_line_a_band(tmtool: Any, make_raster: Any) -> None:
    values = like("S1GRD")
    values[0, 0, 0] = -50
    path = make_raster(values)
    (facts,) = map(json.loads, tmtool("info", path, "--in", "S1GRD", "--out", "LULC", "--json").stdout.splitlines())
    assert [band["band"] for band in facts["values"]] == ["VV", "VH"]
    for band, found, (mean, std) in zip(facts["values"], values, ((-12.599, 5.195), (-20.293, 5.89)), strict=True):
        expected = {"low": found.min(), "median": np.median(found), "high": found.max(), "std": found.std()}
        assert {key: band[key] for key in expected} == pytest.approx(expected, rel=1e-4)
        assert (band["expected_mean"], band["expected_std"]) == (mean, std)
    lines = tmtool("info", path, "--in", "S1GRD", "--out", "LULC").stdout.splitlines()
    (head,) = (i for i, line in enumerate(lines) if line.startswith("  values"))
    assert lines[head].split() == ["values", "sample", "lowest", "median", "highest", "std", "expected", "std"]
    assert [line.split()[0] for line in lines[head + 1 : head + 3]] == ["VV", "VH"]
    assert lines[head + 1].split()[1::5] == ["-50", "5.195"]


def test_classes_are_not_held_against_statistics(tmtool: Any, make_raster: Any) -> None:
    path = make_raster(np.full((1, *SHAPE), 9, np.uint8))
    (facts,) = map(json.loads, tmtool("info", path, "--in", "LULC", "--out", "DEM", "--json").stdout.splitlines())
    assert facts["warnings"] == []
    assert facts["values"] == [
        {"band": "class", "low": 9, "median": 9, "high": 9, "std": 0, "expected_mean": None, "expected_std": None}
    ]


# --- what is read for it ---------------------------------------------------------------------------------------------


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Sizes of the windows that are read."""
    read, sizes = Reader.read, []

    def counted(self: Reader, window: Any) -> Any:
        sizes.append((window.height, window.width))
        return read(self, window)

    monkeypatch.setattr(Reader, "read", counted)
    return sizes


def test_a_few_windows_are_read(make_raster: Any, windows: list[tuple[int, int]]) -> None:
    path = make_raster(like("DEM", shape=(900, 1100)), tiled=True, blockxsize=256, blockysize=256)
    inspect(str(path), MODALITIES["DEM"])
    assert windows == [(128, 128)] * 5


def test_an_overview_shows_what_windows_miss(make_raster: Any, windows: list[tuple[int, int]]) -> None:
    values = like("DEM", shape=(1200, 1200))
    values[:, 300:420, :100] = -30_000  # beside the windows
    path = make_raster(values)
    assert inspect(str(path), MODALITIES["DEM"]).warnings == ()
    with rasterio.open(path, "r+") as dst:
        dst.build_overviews([2, 4, 8, 16], Resampling.average)
    windows.clear()
    with pytest.raises(package.errors.InputError, match="-30000 to .* are impossible"):
        inspect(str(path), MODALITIES["DEM"])
    assert windows == [(75, 75)] + [(128, 128)] * 3


def test_classes_are_not_read_from_overviews(make_raster: Any) -> None:
    path = make_raster(np.random.default_rng(0).choice([1, 8], (1, 600, 600)).astype(np.float32))
    with rasterio.open(path, "r+") as dst:
        dst.build_overviews([2, 4], Resampling.average)
    assert inspect(str(path), MODALITIES["LULC"]).values[0].high == 8


def test_damaged_overviews_are_left_alone(make_raster: Any) -> None:
    path = make_raster(like("DEM", shape=(600, 600)))
    with rasterio.Env(TIFF_USE_OVR=True, COMPRESS_OVERVIEW="DEFLATE"), rasterio.open(path, "r+") as dst:
        dst.build_overviews([2, 4], Resampling.average)
    beside = path.with_name(path.name + ".ovr")
    whole = beside.read_bytes()
    beside.write_bytes(whole[:1000] + b"\xff" * (len(whole) - 1000))
    with rasterio.open(path) as src:
        assert src.overviews(1) == [2, 4]
        with rasterio.open(path, overview_level=1) as small, pytest.raises(rasterio.errors.RasterioIOError):
            small.read()
    assert len(inspect(str(path), MODALITIES["DEM"]).values) == 1


def test_lazy_arrays_are_held_to_it_by_small_windows(identity: str) -> None:
    import dask.array
    import xarray

    computed = []

    def block(block_info: Any = None) -> np.ndarray:
        computed.append(block_info[None]["chunk-location"])
        return np.full((1, 100, 100), 12_000, np.float32)

    lazy = dask.array.map_blocks(
        block, chunks=((1,), (100,) * 20, (100,) * 20), dtype=np.float32, meta=np.empty((0, 0, 0))
    )
    x, y = (TRANSFORM * (i + 0.5, i + 0.5) for i in (0, 1))
    axes = {"y": x[1] + (y[1] - x[1]) * np.arange(2000), "x": x[0] + (y[0] - x[0]) * np.arange(2000)}
    array = xarray.DataArray(lazy, dims=("band", "y", "x"), coords=axes, name="heights")
    with pytest.raises(package.errors.InputError, match="DataArray 'heights': DEM values .* are impossible"):
        package.generate({"DEM": array}, "LULC", model=identity)
    assert 0 < len(set(computed)) <= 12


# --- what is right passes without a word -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["S2L2A", "S2L1C", "RGB", "S1GRD", "S1RTC", "DEM", "NDVI"])
def test_values_like_the_pretraining_data_pass(make_raster: Any, name: str) -> None:
    assert inspect(str(make_raster(like(name))), MODALITIES[name]).warnings == ()


@pytest.mark.parametrize("folder", ["S2L2A", "S2L1C", "S2RGB", "S1RTC", "DEM", "LULC", "NDVI"])
def test_real_chips_pass(tmtool: Any, examples: Path, folder: str) -> None:
    out = "S1GRD" if folder != "S1GRD" else "DEM"
    paths = sorted((examples / folder).glob("*.tif"))
    for path in paths:
        result = tmtool("info", path, "--in", folder, "--out", out, "--json")
        assert (result.exit_code, result.stderr) == (0, "")
        assert json.loads(result.stdout)["warnings"] == []
    assert len(paths) == 3


def test_the_sample_passes(tmtool: Any) -> None:
    result = tmtool("info", ROOT / "samples" / "demo_scene.tif", "--json")
    assert (result.exit_code, result.stderr, json.loads(result.stdout)["warnings"]) == (0, "", [])
