"""Products as they are delivered: SAFE, EOPF, files of one band, STAC items; read to the pixels of a reference."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine

from tests import deliveries as made
from tests.deliveries import CORNER, SHAPE, grown, item, write
from tmtool.batch import Listing, list_scenes
from tmtool.errors import InputError, UsageError
from tmtool.grid import Window
from tmtool.modality import MODALITIES
from tmtool.settings import Reading
from tmtool.source import Reader, Source, inspect, masked
from tmtool.source.deliveries import bands, delivery_of, stac


def whole(source: Source) -> tuple[np.ndarray, np.ndarray]:
    with Reader(source) as reader:
        return reader.read(Window(0, 0, *source.grid.shape))


def assert_read(source: Source, product: made.Made, offset: float = 1000) -> None:
    """The pixels are the reference's, at 10 m and in order; empty ones are not valid. Windows are parts of them."""
    assert (source.grid.crs.to_string(), source.grid.transform, source.grid.shape) == (made.CRS, CORNER, SHAPE)
    values, valid = whole(source)
    expected = product.stack(offset)
    empty = (expected == -offset).any(axis=0)
    np.testing.assert_array_equal(valid, ~empty)
    np.testing.assert_array_equal(values[:, valid], expected[:, valid])
    with Reader(source) as reader:
        for window in (Window(3, 5, 64, 64), Window(57, 101, 33, 47)):
            found, _ = reader.read(window)
            at = (slice(window.row, window.row + window.height), slice(window.col, window.col + window.width))
            np.testing.assert_array_equal(found, values[:, *at])


# --- SAFE ---


@pytest.mark.parametrize("level", ["L2A", "L1C"])
@pytest.mark.parametrize("how", ["folder", "zip", "metadata"])
def test_a_safe_product(tmp_path: Path, level: str, how: str) -> None:
    product = made.safe(tmp_path, level)
    path = product.path
    if how == "zip":
        path = made.zipped(product.path)
        shutil.rmtree(product.path)
    if how == "metadata":
        path = product.path / f"MTD_MSI{level}.xml"
    source = inspect(str(path))
    assert source.modality.name == f"S2{level}"
    assert source.modality_why == f"it is a Sentinel-2 {level} product"
    start = "BOA" if level == "L2A" else "RADIO"
    assert source.offset_why == f"{start}_ADD_OFFSET -1000 and QUANTIFICATION_VALUE 10000 in its MTD_MSI{level}.xml"
    assert (source.date, source.baseline) == ("2024-02-03T14:37:29", "05.09")
    assert_read(source, product)


def test_a_product_before_offsets(tmp_path: Path) -> None:
    product = made.safe(tmp_path, baseline="03.01", offset=None)
    source = inspect(str(product.path))
    assert (source.offset, source.baseline) == (0, "03.01")
    assert_read(source, product, offset=0)


def test_coarser_bands_can_be_smoothed(tmp_path: Path) -> None:
    product = made.safe(tmp_path)
    near, _ = whole(inspect(str(product.path)))
    smooth, _ = whole(inspect(str(product.path), None, Reading(resampling="bilinear")))
    assert np.array_equal(near[1], smooth[1])  # B02, at 10 m
    assert not np.array_equal(near[4], smooth[4])
    inside = smooth[4][20:-20, 20:-20]
    assert abs(inside.mean() - near[4][20:-20, 20:-20].mean()) < 60


@pytest.mark.parametrize("level", ["L2A", "L1C"])
@pytest.mark.parametrize("kind", ["safe", "eopf"])
def test_its_own_mask_leaves_pixels_out(tmp_path: Path, level: str, kind: str) -> None:
    product = getattr(made, kind)(tmp_path, level)
    source = inspect(str(product.path))
    _, plain = whole(source)
    words = {"clouds": (8, 9), "shadow": (3,), "cirrus": (10,), "snow": (11,)}
    for word, values in words.items():
        if level == "L2A":
            out = grown(np.isin(product.mask, values), 20)
        elif word == "shadow":
            with pytest.raises(
                InputError, match="--mask shadow: it is a Sentinel-2 L1C .*its mask tells clouds, cirrus, snow"
            ):
                masked(source, source.grid, ["shadow"])
            continue
        else:
            bit = ("clouds", "cirrus", "snow").index(word)
            out = grown(product.mask[bit] if kind == "safe" else (product.mask >> bit) & 1, 60) > 0
        _, valid = whole(masked(source, source.grid, [word]))
        np.testing.assert_array_equal(valid, plain & ~out)
        assert out.any()
    _, valid = whole(masked(source, source.grid, ["clouds", "snow"]))
    assert valid.sum() < plain.sum()


def test_what_is_no_whole_product_is_refused(tmp_path: Path) -> None:
    product = made.safe(tmp_path)
    metadata = product.path / "MTD_MSIL2A.xml"
    text = metadata.read_text()
    (b08,) = product.path.rglob("*_B08_10m.jp2")
    b08.rename(tmp_path / "away.jp2")
    with pytest.raises(InputError, match="has no B08: its file is missing; the download is not complete"):
        inspect(str(product.path))
    metadata.write_text(text.replace('band_id="3">-1000', 'band_id="3">-900'))
    (tmp_path / "away.jp2").rename(b08)
    with pytest.raises(InputError, match="several BOA_ADD_OFFSET"):
        inspect(str(product.path))
    metadata.write_text(text[:900])
    with pytest.raises(InputError, match="MTD_MSIL2A.xml is damaged"):
        inspect(str(product.path))
    metadata.write_text(text.replace("?>", "?><!DOCTYPE a [<!ENTITY x 'y'>]>", 1))
    with pytest.raises(InputError, match="declares a document type"):
        inspect(str(product.path))
    metadata.unlink()
    with pytest.raises(InputError, match=r"has no MTD_MSIL1C.xml or MTD_MSIL2A.xml"):
        inspect(str(product.path))


def test_a_radar_safe_is_refused_with_what_to_do(tmp_path: Path) -> None:
    root = tmp_path / "S1A_IW_GRDH_1SDV_20240203T101112_20240203T101137_052382_065593_1234.SAFE"
    (root / "measurement").mkdir(parents=True)
    (root / "manifest.safe").write_text("<xfdu/>")
    with pytest.raises(InputError, match="neither calibrated nor placed on a grid. Get it terrain-corrected: S1RTC"):
        inspect(str(root))


def test_a_safe_from_the_command_line(tmtool: Any, identity: str, tmp_path: Path) -> None:
    product = made.safe(tmp_path / "in")
    args = ("--model", identity, "-o", tmp_path / "out", "--json")
    result = tmtool("embed", tmp_path / "in", *args, "--mask", "clouds")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    (path,) = facts["products"].values()
    assert Path(path).name == f"{product.path.stem}_embed.tif"
    with rasterio.open(path) as src:
        told = json.loads(src.tags()["TMTOOL_PROVENANCE"])
    assert told["offsets"] == {"S2L2A": 1000}
    assert told["baselines"] == {"S2L2A": "05.09"}
    assert told["acquired"] == {"S2L2A": "2024-02-03T14:37:29"}
    assert told["read"] == {"mask": ["clouds"]}
    assert tmtool("embed", product.path, *args, "--mask", "clouds").stdout.count('"skipped"') == 1
    (b08,) = product.path.rglob("*_B08_10m.jp2")
    b08.touch()
    result = tmtool("embed", product.path, *args, "--mask", "clouds")
    assert "made differently: input_states" in result.stderr  # a changed band is a changed input


# --- EOPF ---


@pytest.mark.parametrize("level", ["L2A", "L1C"])
@pytest.mark.parametrize("how", ["folder", "zip", "zip without folder", "plain"])
def test_an_eopf_product(tmp_path: Path, level: str, how: str) -> None:
    product = made.eopf(tmp_path, level, consolidated=how != "plain", affine=how != "plain")
    path = product.path
    if how.startswith("zip"):
        path = made.zipped(product.path, top=how == "zip")
        shutil.rmtree(product.path)
    source = inspect(str(path))
    assert source.modality.name == f"S2{level}"
    assert source.offset_why == "scale_factor 0.0001 and add_offset -0.1 of its bands"
    assert (source.date, source.baseline) == ("2025-02-03T14:37:29", "05.11")
    assert_read(source, product)


def test_other_zarr_is_not_claimed(tmp_path: Path) -> None:
    import zarr

    zarr.open_group(tmp_path / "x.zarr", mode="w")
    assert delivery_of(str(tmp_path / "x.zarr")) is None
    product = made.eopf(tmp_path)
    shutil.rmtree(product.path / "measurements/reflectance/r20m/b05")
    (product.path / ".zmetadata").unlink()
    with pytest.raises(InputError, match="has no B05 in measurements/reflectance"):
        inspect(str(product.path))


# --- Files of one band ---

NAMES = {
    "sentinel": "T19HCC_20240203T143729_{}_10m.jp2",
    "hls": "HLS.S30.T19HCC.2024034T143729.v2.0.{}.tif",
    "earth engine": "download.{}.tif",
    "alone": "{}.tif",
}


@pytest.mark.parametrize("kind", NAMES)
def test_bands_are_put_in_order_by_name(tmp_path: Path, kind: str) -> None:
    order = ("B03", "B12", "B01", "B8A", "B02", "B04", "B05", "B09", "B06", "B07", "B08", "B11")
    rng = np.random.default_rng(0)
    found = {band: rng.integers(200, 4000, (30, 40)).astype(np.uint16) for band in order}
    name = NAMES[kind]
    short = (lambda b: b.replace("B0", "B")) if kind == "earth engine" else (lambda b: b)
    for band, values in found.items():
        write(tmp_path / name.format(short(band)), values, 10, "GTiff" if name.endswith("tif") else "JP2OpenJPEG")
    write(tmp_path / name.format("SCL" if kind != "hls" else "Fmask"), np.ones((30, 40), np.uint8), 10, "GTiff")
    source = inspect(str(tmp_path / name.format("{band}").replace("_10m", "")))
    assert source.modality.name == "S2L2A"
    values, _ = whole(source)
    np.testing.assert_array_equal(values, np.stack([found[b] for b in MODALITIES["S2L2A"].bands]).astype(np.float32))
    if kind != "alone":
        (scene,) = list_scenes(Listing([str(tmp_path)]), Path("out"))
        assert "{band}" in scene.path
        assert scene.stem in ("T19HCC_20240203T143729", "HLS.S30.T19HCC.2024034T143729.v2.0", "download")


def test_landsat_is_brought_to_dn(tmp_path: Path) -> None:
    name = "LC09_L2SP_233083_20240203_20240205_02_T1_SR_{}.TIF"
    stored = {f"B{i}": np.full((20, 30), 8000 + 100 * i, np.uint16) for i in range(1, 8)}
    for band, values in stored.items():
        write(tmp_path / name.format(band), values, 30, "GTiff")
    delivery = delivery_of(str(tmp_path / name.format("{band}")))
    assert delivery is not None
    assert [layer.name for layer in delivery.layers] == ["B01", "B02", "B03", "B04", "B8A", "B11", "B12"]
    assert delivery.tags == {"ACQUISITION_DATE": "20240203"}
    six = MODALITIES["S2L2A"].subset(["BLUE", "GREEN", "RED", "NIR_NARROW", "SWIR_1", "SWIR_2"])
    source = inspect(str(tmp_path / name.format("{band}")), six)
    assert source.date == "2024-02-03"
    values, _ = whole(source)
    expected = [(stored[f"B{i}"] * 0.0000275 - 0.2) * 10_000 for i in range(2, 8)]
    np.testing.assert_allclose(values, np.stack(expected), atol=0.01)


RTC = {
    "OPERA": "OPERA_L2_RTC-S1_T069-147174-IW2_20240203T101112Z_20240204T000000Z_S1A_30_v1.0_{}.tif",
    "HyP3": "S1A_IW_20240203T101112_DVP_RTC20_G_gpuned_1A2B_{}.tif",
    "Planetary Computer": "iw-{}.rtc.tiff",
}


@pytest.mark.parametrize("kind", RTC)
def test_radar_pairs_in_linear_power(tmp_path: Path, kind: str) -> None:
    power = np.random.default_rng(0).uniform(0.01, 0.4, (2, 40, 50)).astype(np.float32)
    nodata = {"OPERA": np.nan, "HyP3": 0, "Planetary Computer": -32768}[kind]
    power[:, :10, :5] = nodata
    case = str.lower if kind == "Planetary Computer" else str
    for band, values in zip(("VV", "VH"), power, strict=True):
        write(tmp_path / RTC[kind].format(case(band)), values, 20, "GTiff", nodata=nodata)
    for side in ("mask", "inc_map") if kind != "Planetary Computer" else ():
        write(tmp_path / RTC[kind].format(side), np.ones((40, 50), np.uint8), 20, "GTiff")
    (scene,) = list_scenes(Listing([str(tmp_path)]), Path("out"))
    source = inspect(scene.path)
    assert (source.modality.name, source.unit_why) == ("S1RTC", "linear, as such products are")
    values, valid = whole(source)
    assert valid.sum() == 1950
    np.testing.assert_allclose(values[:, valid], 10 * np.log10(power[:, valid]), atol=1e-4)
    (tmp_path / RTC[kind].format(case("VH"))).unlink()
    with pytest.raises(InputError, match="VH is missing beside VV; a scene needs both"):
        inspect(scene.path)


def test_amplitude_is_refused(tmp_path: Path) -> None:
    for band in ("VV", "VH"):
        write(
            tmp_path / f"S1A_IW_20240203T101112_DVP_RTC20_G_gauned_1A2B_{band}.tif",
            np.ones((9, 9), np.float32),
            20,
            "GTiff",
        )
    with pytest.raises(InputError, match="holds amplitude; expected power or dB"):
        inspect(str(tmp_path / "S1A_IW_20240203T101112_DVP_RTC20_G_gauned_1A2B_{band}.tif"))


def test_only_bands_of_one_scene_are_grouped() -> None:
    a, b = "in/T19HCC_20240203T143729_B02_10m.jp2", "in/T19HCC_20240203T143729_B03_10m.jp2"
    c = "in/T19HCC_20240208T143729_B02_10m.jp2"
    scl, plain = "in/T19HCC_20240203T143729_SCL_20m.jp2", "in/Santiago.tif"
    assert bands.grouped([a, b, c, scl, plain]) == ["in/T19HCC_20240203T143729_{band}.jp2", c, plain]
    assert bands.grouped(["x/scene_A.tif", "x/scene_B.tif"]) == ["x/scene_A.tif", "x/scene_B.tif"]
    assert bands.grouped(["x/a_VV.tif", "y/a_VH.tif"]) == ["x/a_VV.tif", "y/a_VH.tif"]
    assert bands.grouped(["x/chip_2.tif", "x/chip_3.tif"]) == ["x/chip_2.tif", "x/chip_3.tif"]


def test_bands_that_no_name_tells(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\{band\}.tif: matches no file"):
        inspect(str(tmp_path / "x_{band}.tif"))
    write(tmp_path / "x_one.tif", np.ones((9, 9), np.uint16), 10, "GTiff")
    with pytest.raises(InputError, match="no name of its 1 files says which band it is"):
        inspect(str(tmp_path / "x_{band}.tif"))
    write(tmp_path / "z_B02.tif", np.ones((9, 9), np.uint16), 10, "GTiff")
    write(tmp_path / "z_B03.tif", np.ones((9, 9), np.uint16), 10, "GTiff", crs="EPSG:32718")
    with pytest.raises(InputError, match="its band B03 has EPSG:32718, B02 has EPSG:32719; expected one CRS"):
        inspect(str(tmp_path / "z_{band}.tif"))


# --- STAC ---


def saved(path: Path, document: Any) -> str:
    path.write_text(json.dumps(document))
    return str(path)


def test_an_items_bands(tmp_path: Path) -> None:
    _, product = item(tmp_path)
    source = inspect(str(product.path))
    assert (source.modality.name, source.modality_why) == ("S2L2A", "it is an item of sentinel-2-c1-l2a")
    assert source.offset_why == "scale 0.0001 and offset -0.1 of its assets"
    assert (source.date, source.baseline) == ("2024-02-03T14:47:02", "05.10")
    assert_read(source, product)
    _, valid = whole(masked(source, source.grid, ["clouds"]))
    assert not valid[grown(np.isin(product.mask, (8, 9)), 20)].any()


def test_an_offset_that_was_applied_is_not_applied_again(tmp_path: Path) -> None:
    document, product = item(tmp_path, "sentinel-2-l2a", **{"earthsearch:boa_offset_applied": True})
    source = inspect(str(product.path))
    assert (source.offset, source.gain) == (0, 1)
    assert "removed already" in source.offset_why
    document["properties"]["earthsearch:boa_offset_applied"] = False
    assert inspect(saved(tmp_path / "other.json", document)).offset == 1000


def test_names_of_other_catalogues(tmp_path: Path) -> None:
    document, product = item(tmp_path)
    keys = dict(zip([k for k in document["assets"] if "-" not in k][1:13], MODALITIES["S2L2A"].bands, strict=True))
    planetary = copy.deepcopy(document) | {"collection": "sentinel-2-l2a"}
    planetary["assets"] = {keys[k]: {"href": a["href"]} for k, a in document["assets"].items() if k in keys}
    found = inspect(saved(tmp_path / "planetary.json", planetary))
    assert found.offset_why == "its s2:processing_baseline 05.10"
    assert_read(found, product)
    planetary["properties"]["s2:processing_baseline"] = "03.00"
    assert inspect(saved(tmp_path / "old.json", planetary)).offset == 0
    cdse = copy.deepcopy(planetary)
    said = {"raster:scale": 0.0001, "raster:offset": -0.1, "nodata": 0}
    cdse["assets"] = {
        f"{b}_{made.SIZES[b]}m": a | {"bands": [{"name": b}]} | said for b, a in planetary["assets"].items()
    }
    cdse["assets"]["B02_20m"] = {"href": "./SCL.tif"} | said  # coarser
    found = inspect(saved(tmp_path / "cdse.json", cdse))
    assert found.offset_why == "scale 0.0001 and offset -0.1 of its assets"
    assert_read(found, product)
    common = copy.deepcopy(planetary)
    common["assets"] = {
        f"x{i}": a | {"eo:bands": [{"name": b}]} for i, (b, a) in enumerate(planetary["assets"].items())
    }
    common["properties"]["s2:processing_baseline"] = "05.10"
    assert_read(inspect(saved(tmp_path / "common.json", common)), product)


def test_an_item_that_links_into_zarr(tmp_path: Path) -> None:
    product = made.eopf(tmp_path)
    document, _ = item(tmp_path)
    said = {"raster:scale": 0.0001, "raster:offset": -0.1, "nodata": 0}
    linked = copy.deepcopy(document) | {"collection": "sentinel-2-l2a"}
    linked["properties"] |= {"proj:code": made.CRS}
    linked["assets"] = {
        f"{band}_{size}m": {
            "href": f"./{product.path.name}/measurements/reflectance/r{size}m/{band.lower()}",
            "proj:transform": [*(CORNER * Affine.scale(size / 10))[:6]],
            "bands": [{"name": band}],
            **said,
        }
        for band, size in ((b, made.SIZES[b]) for b in MODALITIES["S2L2A"].bands)
    }
    assert_read(inspect(saved(tmp_path / "linked.json", linked)), product)


def test_radar_and_terrain_items(tmp_path: Path) -> None:
    document, _ = item(tmp_path)
    power = np.random.default_rng(0).uniform(0.01, 0.4, (2, 40, 50)).astype(np.float32)
    for band, values in zip(("vv", "vh"), power, strict=True):
        write(tmp_path / f"{band}.tif", values, 10, "GTiff", nodata=-32768)
    radar = document | {"collection": "sentinel-1-rtc", "assets": {b: {"href": f"./{b}.tif"} for b in ("vh", "vv")}}
    source = inspect(saved(tmp_path / "radar.json", radar))
    assert (source.modality.name, source.power) == ("S1RTC", True)
    np.testing.assert_allclose(whole(source)[0], 10 * np.log10(power), atol=1e-4)
    write(tmp_path / "dem.tif", np.arange(2000, dtype=np.float32).reshape(1, 40, 50), 10, "GTiff")
    terrain = document | {"collection": "cop-dem-glo-30", "assets": {"data": {"href": "./dem.tif"}}}
    assert inspect(saved(tmp_path / "dem.json", terrain)).modality.name == "DEM"


def test_several_items(tmtool: Any, identity: str, tmp_path: Path) -> None:
    document, _ = item(tmp_path)
    two = [document, document | {"id": "second"}]
    collection = saved(tmp_path / "items.json", {"type": "FeatureCollection", "features": two})
    lines = tmp_path / "items.ndjson"
    lines.write_text("\n".join(map(json.dumps, two)))
    for path in (collection, str(lines)):
        assert [i for i, _ in stac.items(path)] == ["S2B_T19HCC_20240203", "second"]
        with pytest.raises(InputError, match="holds 2 items; name one as"):
            inspect(path)
        result = tmtool("embed", path, "--model", identity, "-o", tmp_path / "out", "--overwrite")
        assert result.exit_code == 0, result.stderr
        names = [Path(p).name for p in result.stdout.split()]
        assert names == ["S2B_T19HCC_20240203_embed.tif", "second_embed.tif"]
    with pytest.raises(InputError, match="holds no item third"):
        inspect(f"{lines}#third")
    twice = saved(tmp_path / "twice.json", {"type": "FeatureCollection", "features": [document, document]})
    assert "several items with the id" in tmtool("embed", twice, "--model", identity).stderr


def test_items_that_cannot_be(tmp_path: Path) -> None:
    document, _ = item(tmp_path)
    plain = saved(tmp_path / "plain.geojson", {"type": "FeatureCollection", "features": []})
    assert delivery_of(plain) is None
    nothing = document | {"assets": {"a": {"href": "./a.pdf"}}}
    with pytest.raises(InputError, match="no asset of S2B_T19HCC_20240203 is a band that tmtool knows; it has a"):
        inspect(saved(tmp_path / "nothing.json", nothing))
    odd = copy.deepcopy(document)
    odd["assets"]["red"]["raster:bands"][0]["offset"] = 0
    with pytest.raises(InputError, match="several scales and offsets"):
        inspect(saved(tmp_path / "odd.json", odd))
    ftp = copy.deepcopy(document)
    ftp["assets"]["red"]["href"] = "ftp://host/B04.tif"
    with pytest.raises(InputError, match="tmtool reads http, https, s3, gs and az, not ftp"):
        inspect(saved(tmp_path / "ftp.json", ftp))
    broken = {k: v for k, v in document.items() if k != "properties"}
    with pytest.raises(InputError, match="is no valid STAC item"):
        inspect(saved(tmp_path / "broken.json", broken))


# --- Batches of several modalities ---


def folders(tmp_path: Path) -> Path:
    """TerraMesh's layout: a folder a modality, one name a place."""
    rng = np.random.default_rng(0)
    for stem in ("Valencia", "Santiago", "Oslo"):
        write(tmp_path / f"S2L2A/{stem}.tif", rng.integers(500, 3000, (12, 32, 32)).astype(np.uint16), 10, "GTiff")
        if stem != "Oslo":
            write(tmp_path / f"S1RTC/{stem}.tif", rng.normal(-12, 3, (2, 32, 32)).astype(np.float32), 10, "GTiff")
    for date in ("20240301", "20240105"):
        write(tmp_path / f"dates/Santiago_{date}.tif", rng.normal(-12, 3, (2, 32, 32)).astype(np.float32), 10, "GTiff")
    return tmp_path


@pytest.mark.parametrize(
    ("s2", "s1"),
    [
        ("S2L2A", "S1RTC"),
        ("S2L2A/{stem}.tif", "S1RTC/{stem}*.tif"),
        ("S2L2A", "S1RTC/{stem}.tif"),
        ("S2L2A/{stem}.*", "S1RTC"),
    ],
)
def test_folders_and_patterns_pair_scenes(tmtool: Any, identity: str, tmp_path: Path, s2: str, s1: str) -> None:
    root = folders(tmp_path)
    args = ("--in", f"S2L2A={root / s2}", "--in", f"S1RTC={root / s1}", "--model", identity, "-o", tmp_path / "out")
    result = tmtool("embed", *args)
    assert result.exit_code == 1
    assert [Path(p).name for p in result.stdout.split()] == ["Santiago_embed.tif", "Valencia_embed.tif"]
    assert "S1RTC/Oslo" in result.stderr
    assert "matches no file" in result.stderr or "Oslo.tif: no such file" in result.stderr


def test_dates_are_in_order(tmp_path: Path) -> None:
    root = folders(tmp_path)
    asked = [f"S2L2A={root}/S2L2A/Santiago.tif", f"S1RTC={root}/dates/Santiago_{{date}}.tif"]
    (scene,) = list_scenes(Listing(), Path("out"), asked)
    assert [Path(path).name for _, path in scene.inputs] == [
        "Santiago.tif",
        "Santiago_20240105.tif",
        "Santiago_20240301.tif",
    ]
    many = list_scenes(
        Listing(), Path("out"), [f"S2L2A={root}/S2L2A/{{stem}}.tif", f"S1RTC={root}/dates/{{stem}}_{{date}}.tif"]
    )
    assert [(s.stem, len(s.inputs)) for s in many] == [("Oslo", 2), ("Santiago", 3), ("Valencia", 2)]


def test_a_partner_of_several_bands(tmp_path: Path) -> None:
    for stem in ("a", "b"):
        write(tmp_path / f"s2/{stem}.tif", np.full((12, 9, 9), 900, np.uint16), 10, "GTiff")
        for band in ("VV", "VH"):
            write(tmp_path / f"s1/{stem}_{band}.tif", np.ones((9, 9), np.float32), 10, "GTiff")
    asked = [f"S2L2A={tmp_path}/s2/{{stem}}.tif", f"S1GRD={tmp_path}/s1/{{stem}}_{{band}}.tif"]
    scenes = list_scenes(Listing(), Path("out"), asked)
    assert [s.inputs[1][1] for s in scenes] == [f"{tmp_path}/s1/a_{{band}}.tif", f"{tmp_path}/s1/b_{{band}}.tif"]


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (["S2L2A={root}/S2L2A/{{place}}.tif"], "unknown field {place}; fields are {stem}, {date} and {band}"),
        (["S2L2A={root}/none/{{stem}}.tif"], "matches no file"),
        (["S2L2A={root}/S2L2A/Oslo.tif", "S1RTC={root}/S1RTC"], "is a folder, but the first --in names one scene"),
        (["S2L2A={root}/S2L2A/Oslo.tif", "S1RTC={root}/S1RTC/{{stem}}.tif"], "the first --in has no {stem}"),
        (["S2L2A={root}/S2L2A/{{stem}}.tif", "S1RTC={root}/dates/{{stem}}*.tif"], "matches 2 files of one scene"),
    ],
)
def test_patterns_that_cannot_be(tmp_path: Path, asked: list[str], error: str) -> None:
    root = folders(tmp_path)
    with pytest.raises((UsageError, InputError)) as caught:
        list_scenes(Listing(), Path("out"), [text.format(root=root) for text in asked])
    assert error in str(caught.value)


# --- As a model sees it ---


def test_open_gives_what_a_model_sees(tmp_path: Path) -> None:
    import tmtool

    product = made.safe(tmp_path)
    array = tmtool.open(product.path, mask="clouds", window=(30, 20, 90, 80))
    assert array.dims == ("band", "y", "x")
    assert array.chunks is not None
    assert list(array.band.values) == list(MODALITIES["S2L2A"].bands)
    assert (array.rio.crs.to_string(), array.rio.transform()) == (made.CRS, CORNER * Affine.translation(30, 20))
    assert array.attrs["acquired"] == "2024-02-03T14:37:29"
    assert array.attrs["offset"].startswith("1000 (BOA_ADD_OFFSET")
    clouds = grown(np.isin(product.mask, (8, 9)), 20)[20:100, 30:120]
    expected = np.where(clouds, np.nan, product.stack()[:, 20:100, 30:120])
    np.testing.assert_array_equal(array.compute().values, expected.astype(np.float32))
    power = np.full((2, 100, 120), 0.1, np.float32)
    write(tmp_path / "s1.tif", power, 20, "GTiff", nodata=0)
    radar = tmtool.open(tmp_path / "s1.tif", "S1RTC", unit={"S1RTC": "linear"}, grid=str(product.path / _b02(product)))
    assert radar.shape == (2, *SHAPE)
    np.testing.assert_allclose(radar.values, -10, atol=1e-4)
    assert radar.attrs["read"] == "bilinear from EPSG:32719, 20 m"
    again = tmtool.open(array.compute(), "S2L2A", s2_offset=0)
    assert again.chunks is None
    np.testing.assert_array_equal(
        again.values, np.where(np.isnan(expected).any(0), np.nan, expected).astype(np.float32)
    )
    with pytest.raises(UsageError, match="^window 1,2: give COL,ROW"):
        tmtool.open(product.path, window="1,2")
    with pytest.raises(InputError, match="array.rio.reproject_match"):
        tmtool.open(array.compute(), "S2L2A", grid="EPSG:3857@10m")


def _b02(product: made.Made) -> Path:
    return next(product.path.rglob("*_B02_10m.jp2")).relative_to(product.path)
