"""STAC of products: items that validate and say what the files do, catalogs that readers open, nothing lost on the way."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
from affine import Affine

from tests.conftest import TRANSFORM
from tests.stac_check import errors
from tmtool import catalog
from tmtool.catalog import _folder, _models, _products, _scene
from tmtool.catalog._products import Found
from tmtool.errors import InputError, OutputError, ProductError
from tmtool.files.cog import COG
from tmtool.files.facts import Facts
from tmtool.files.geojson import PLACES
from tmtool.files.sayings import PLACE_BANDS
from tmtool.files.writer import Layout, ProductWriter
from tmtool.grid import Grid
from tmtool.modality import LULC_CLASSES, MODALITIES, S2_BANDS
from tmtool.models import MODELS
from tmtool.provenance import Provenance
from tmtool.tasks import TASKS

Json = dict[str, Any]
SECRET = "SECRETZq7"
CRS = rasterio.crs.CRS.from_epsg(32719)


def s2(height: int = 150, width: int = 170, seed: int = 0) -> np.ndarray:
    """Sentinel-2 with a hole."""
    values = np.random.default_rng(seed).integers(200, 3000, (12, height, width)).astype(np.int16)
    values[:, :20, :30] = 0
    return values


def document(path: Path) -> Json:
    found: Json = json.loads(path.read_text())
    return found


def valid(path: Path) -> Json:
    """Return a document that validates."""
    found = document(path)
    assert errors(found) == []
    return found


def product(
    folder: Path,
    name: str,
    task: str = "generate",
    values: np.ndarray | None = None,
    transform: Affine = TRANSFORM,
    crs: Any = CRS,
    **said: Any,
) -> Path:
    """Write a product of one band, as a run would; a `class` where its values are bytes."""
    values = np.arange(1, 601, dtype=np.float32).reshape(1, 20, 30) if values is None else values
    classes = LULC_CLASSES if values.dtype == np.uint8 else ()
    nodata = 0 if classes else float("nan")
    layout = Layout(("class" if classes else "value",), str(values.dtype), nodata, classes=classes)
    folder.mkdir(parents=True, exist_ok=True)
    writer = ProductWriter(folder / name, Grid(crs, transform, values.shape[1:]), layout, COG)
    writer.create()
    writer.write(0, values, np.ones(values.shape[1:], bool))
    made = Provenance(
        task, **{"model": "demo", "version": "0.1.0", "weights": {"tmtool/core.safetensors": "ab"}} | said
    )
    writer.build(made.tags())
    writer.commit()
    writer.discard()
    return folder / name


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


# The item of a scene


def test_one_item_lists_what_several_commands_made(tmtool: Any, identity: str, make_raster: Any, out: Path) -> None:
    path = make_raster(s2(), nodata=0)
    embed = ("embed", path, "--format")
    commands: list[tuple[Any, ...]] = [
        ("generate", path, "--out", "LULC,S1GRD,S2L2A", "--preview"),
        ("tokenize", path),
        ("reconstruct", out / "scene_S2L2A_tokens.tif"),
        *((*embed, kind) for kind in ("cog", "zarr", "geoparquet")),
    ]
    for args in commands:
        result = tmtool(*args, "--model", identity, "-o", out, "--stac", "--json")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["item"] == str(out / "scene.json")
    item = valid(out / "scene.json")
    assert set(item["assets"]) == {
        *("LULC", "S1GRD", "S2L2A", "LULC_thumbnail", "S1GRD_thumbnail", "S2L2A_thumbnail"),
        *("S2L2A_tokens", "S2L2A_valid", "S2L2A_rec", "embeddings", "embeddings_zarr", "embeddings_parquet"),
    }
    for key, asset in item["assets"].items():
        assert (out / asset["href"]).exists(), key
        role, media = (
            ("thumbnail", "image/png") if key.endswith("thumbnail") else ("data", "image/tiff; application=geotiff")
        )
        role = "data-mask" if key == "S2L2A_valid" else role
        media = {"zarr": "application/vnd.zarr", "parquet": "application/vnd.apache.parquet"}.get(key[11:], media)
        assert asset["roles"] == [role]
        assert asset["type"].startswith(media)
    with_size = {"S2L2A_tokens": 160, "embeddings": 160, "embeddings_zarr": 160, "LULC": 10, "S2L2A_rec": 10}
    assert {key: item["assets"][key]["raster:spatial_resolution"] for key in with_size} == with_size
    assert [band["name"] for band in item["assets"]["embeddings_zarr"]["bands"]] == ["0000", "0001", "0002", "0003"]
    table = item["assets"]["embeddings_parquet"]
    assert table["table:row_count"] == 10 * 11 - 1  # a cell lies in the hole
    assert {"name": "geometry", "type": "binary"} in table["table:columns"]
    again = tmtool("embed", path, "--model", identity, "-o", out, "--stac", "--json")
    assert (json.loads(again.stdout)["status"], document(out / "scene.json")) == ("skipped", item)
    assert sorted(p.name for p in out.iterdir() if p.name.startswith(".")) == []


def test_an_item_says_what_the_file_does(tmtool: Any, identity: str, make_raster: Any, out: Path) -> None:
    path = make_raster(s2(), nodata=0)
    args = ("generate", path, "--out", "LULC,S1GRD,S2L2A", "--model", identity, "-o", out, "--stac")
    assert tmtool(*args).exit_code == 0
    item = valid(out / "scene.json")
    for name, modality in ((m, MODALITIES[m]) for m in ("LULC", "S1GRD", "S2L2A")):
        asset = item["assets"][name]
        with rasterio.open(out / f"scene_{name}.tif") as src:
            values = src.read(masked=True)
            assert asset["proj:transform"] == list(src.transform)[:6]
            assert asset["proj:shape"] == list(src.shape)
            assert (asset["data_type"], asset["proj:code"]) == (src.dtypes[0], "EPSG:32719")
            assert asset["nodata"] == ("nan" if np.isnan(src.nodata) else src.nodata)
        assert [band["name"] for band in asset["bands"]] == list(modality.bands)
        for band, pixels in zip(asset["bands"], values, strict=True):
            if modality.classes:
                assert "statistics" not in band
                continue
            found = band["statistics"]
            expected = (pixels.min(), pixels.max(), pixels.mean(dtype=np.float64), pixels.std(dtype=np.float64))
            np.testing.assert_allclose(
                [found[n] for n in ("minimum", "maximum", "mean", "stddev")], expected, rtol=1e-5
            )
    assert [band["unit"] for band in item["assets"]["S1GRD"]["bands"]] == ["dB", "dB"]
    assert {band["raster:scale"] for band in item["assets"]["S2L2A"]["bands"]} == {0.0001}
    classes = item["assets"]["LULC"]["classification:classes"]
    assert [(c["value"], c["title"], f"#{c['color_hint']}") for c in classes] == [
        (i, name, colour) for i, (name, colour) in enumerate(LULC_CLASSES)
    ]
    assert [c["value"] for c in classes if c.get("nodata")] == [0]
    said = item["properties"]
    assert (said["processing:level"], said["proj:code"]) == ("L4", "EPSG:32719")
    assert {"tmtool", "torch", "rasterio"} <= set(said["processing:software"])
    assert said["processing:lineage"].startswith("tmtool generate: identity")
    assert "from S2L2A scene.tif; seed 0" in said["processing:lineage"]
    west, south, east, north = item["bbox"]
    with rasterio.open(path) as src:
        expected_box = rasterio.warp.transform_bounds(src.crs, "EPSG:4326", *src.bounds, densify_pts=21)
    np.testing.assert_allclose((west, south, east, north), expected_box, atol=2e-6)


def test_what_rio_stac_says_is_the_same(out: Path) -> None:
    from rio_stac import create_stac_item

    path = product(out, "a_NDVI.tif")
    catalog.write_item(out, "a", out)
    ours = valid(out / "a.json")
    theirs = create_stac_item(str(path), with_proj=True, with_raster=True).to_dict()
    asset, said = ours["assets"]["NDVI"], theirs["properties"]
    assert asset["proj:code"] == said.get("proj:code", f"EPSG:{said.get('proj:epsg')}")
    assert asset["proj:shape"] == said["proj:shape"]
    assert asset["proj:transform"] == said["proj:transform"][:6]
    (band,), (other,) = asset["bands"], theirs["assets"]["asset"]["raster:bands"]
    np.testing.assert_allclose(
        [band["statistics"][n] for n in ("minimum", "maximum", "mean", "stddev")],
        [other["statistics"][n] for n in ("minimum", "maximum", "mean", "stddev")],
    )
    np.testing.assert_allclose(ours["bbox"], theirs["bbox"], atol=1e-6)


@pytest.mark.parametrize(
    ("acquired", "expected"),
    [
        ({"S2L2A": "2024-06-01T10:30:05"}, ("2024-06-01T10:30:05Z", None, None)),
        ({"S2L2A": "2024-06-01"}, (None, "2024-06-01T00:00:00Z", "2024-06-01T23:59:59Z")),
        (
            {"S2L2A@1": "2024-06-01T10:30:05", "S2L2A@2": "2024-07-02"},
            (None, "2024-06-01T10:30:05Z", "2024-07-02T23:59:59Z"),
        ),
        ({}, ("2001-09-09T01:46:40Z", None, None)),
    ],
)
def test_dates_are_the_inputs_or_said_to_be_the_processings(
    out: Path, acquired: dict[str, str], expected: tuple[str | None, ...]
) -> None:
    path = product(out, "a_NDVI.tif", details={"acquired": acquired})
    os.utime(path, (10**9, 10**9))
    catalog.write_item(out, "a", out)
    said = valid(out / "a.json")["properties"]
    assert (said["datetime"], said.get("start_datetime"), said.get("end_datetime")) == expected
    assert said["tmtool:datetime_of"] == ("acquisition" if acquired else "processing")
    assert said["processing:datetime"] == "2001-09-09T01:46:40Z"


def of_bands(folder: Path, link: str = "") -> Path:
    """Write a STAC item of Sentinel-2, a file a band; `link` is what it says its own place is."""
    folder.mkdir()
    assets = {}
    for band, values in zip(S2_BANDS, s2(40, 60), strict=True):
        profile = {"crs": CRS, "transform": TRANSFORM, "dtype": "int16", "nodata": 0}
        with rasterio.open(folder / f"{band}.tif", "w", "GTiff", 60, 40, 1, **profile) as dst:
            dst.write(values, 1)
        assets[band] = {"href": f"./{band}.tif"}
    found: Json = {"type": "Feature", "stac_version": "1.1.0", "id": "S2B_19HCC", "collection": "sentinel-2-l2a"}
    found |= {"geometry": None, "assets": assets, "links": [{"rel": "self", "href": link}] if link else []}
    found["properties"] = {"datetime": "2024-06-01T14:37:31Z", "platform": "Sentinel-2B"}
    (folder / "S2B.json").write_text(json.dumps(found))
    return folder / "S2B.json"


@pytest.mark.parametrize("link", ["", f"https://user:{SECRET}@h/collections/c/items/S2B?sig={SECRET}"])
def test_what_the_inputs_item_says_is_carried_over(
    tmtool: Any, identity: str, tmp_path: Path, out: Path, link: str
) -> None:
    source = of_bands(tmp_path / "in", link)
    assert tmtool("generate", source, "--out", "LULC", "--model", identity, "-o", out, "--stac").exit_code == 0
    for _ in range(2):
        item = valid(out / "S2B.json")
        said = item["properties"]
        assert (said["datetime"], said["platform"]) == ("2024-06-01T14:37:31Z", "sentinel-2b")
        assert said["tmtool:datetime_of"] == "acquisition"
        links = [each["href"] for each in item["links"] if each["rel"] == "derived_from" and "mlm:name" not in each]
        assert links == [link and "https://h/collections/c/items/S2B" or "../in/S2B.json"]
        assert SECRET not in (out / "S2B.json").read_text()
        with rasterio.open(out / "S2B_LULC.tif") as src:
            assert SECRET not in str(src.tags())
        assert tmtool("stac", out).exit_code == 0  # which knows no more than the product
    if not link:
        shutil.rmtree(tmp_path / "in")
        assert tmtool("stac", out).exit_code == 0
        assert "in/S2B.json" not in (out / "S2B.json").read_text()


def test_an_input_item_is_never_replaced(tmtool: Any, identity: str, tmp_path: Path) -> None:
    source = of_bands(tmp_path / "in")
    before = source.read_text()
    result = tmtool("generate", source, "--out", "LULC", "--model", identity, "-o", source.parent, "--stac")
    assert result.exit_code == 2
    assert "S2B.json: exists and is no item of a scene that tmtool wrote" in result.stderr
    assert source.read_text() == before
    assert not (source.parent / "S2B_LULC.tif").exists()


def test_an_item_that_cannot_be_written_loses_no_product(
    tmtool: Any, identity: str, make_raster: Any, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_raster(s2(), nodata=0)
    full = OSError(28, "No space left on device")

    def refuse(*_: Any, **__: Any) -> None:
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", refuse)
        result = tmtool("generate", path, "--out", "LULC", "--model", identity, "-o", out, "--stac")
    assert result.exit_code == 1
    assert result.stdout.strip() == str(out / "scene_LULC.tif")
    assert "its products are complete, but no STAC item lists them" in result.stderr
    assert "No space left on device" in result.stderr
    assert {p.name for p in out.iterdir()} >= {"scene_LULC.tif"}
    assert not list(out.glob("*.json")) + list(out.glob(".tmtool-*"))
    assert tmtool("generate", path, "--out", "LULC", "--model", identity, "-o", out, "--stac").exit_code == 0
    assert set(valid(out / "scene.json")["assets"]) == {"LULC"}


def test_a_product_that_another_process_adds_meanwhile_is_listed(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    product(out, "a_NDVI.tif")
    late = iter(["a_DEM.tif"])

    def written(path: Path, document: Json, kind: str) -> None:
        for name in late:
            product(out, name)
        write(path, document, kind)

    write = _scene.write
    monkeypatch.setattr(_scene, "write", written)
    catalog.write_item(out, "a", out)
    assert set(valid(out / "a.json")["assets"]) == {"NDVI", "DEM"}
    monkeypatch.setattr(_scene, "write", write)
    monkeypatch.setattr(_folder, "write", written)
    late = iter(["a_S1GRD.tif", "b_NDVI.tif"])
    made = catalog.refresh(out)
    assert [path.name for path in made.items] == ["a.json", "b.json"]
    assert set(valid(out / "a.json")["assets"]) == {"NDVI", "DEM", "S1GRD"}
    assert {link["href"] for link in valid(out / "catalog.json")["links"]} >= {"./a.json", "./b.json"}


def test_a_damaged_product_of_another_command_is_told(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    product(out, "a_NDVI.tif")
    cut = product(out, "a_DEM.tif")
    cut.write_bytes(cut.read_bytes()[:200])
    catalog.write_item(out, "a", out)
    assert set(valid(out / "a.json")["assets"]) == {"NDVI"}
    assert "a.json: lacks a product" in caplog.text
    (out / "a_NDVI.tif").unlink()
    with pytest.raises(ProductError, match="a_DEM.tif: is damaged"):
        catalog.write_item(out, "a", out)


def test_where_a_raster_has_no_crs_nothing_is_said_of_the_globe(out: Path) -> None:
    product(out, "a_NDVI.tif", crs=None, transform=Affine.identity())
    catalog.write_item(out, "a", out)
    item = valid(out / "a.json")
    assert (item["geometry"], item.get("bbox")) == (None, None)
    assert item["assets"]["NDVI"]["proj:code"] is None


@pytest.mark.parametrize(
    ("crs", "transform", "code"),
    [
        ("EPSG:32719", Affine(10, 2, 399_960, 2, -10, 6_300_040), "EPSG:32719"),
        ("ESRI:102017", Affine(10, 0, 0, 0, -10, 0), "ESRI:102017"),
        ("+proj=laea +lat_0=-33 +lon_0=-70 +ellps=GRS80", Affine(10, 0, 0, 0, -10, 0), None),
        ("EPSG:32701", Affine(1000, 0, 160_000, 0, -1000, 8_000_000), "EPSG:32701"),  # across the antimeridian
    ],
)
def test_other_grids(out: Path, crs: str, transform: Affine, code: str | None) -> None:
    product(out, "a_NDVI.tif", crs=rasterio.crs.CRS.from_user_input(crs), transform=transform)
    catalog.write_item(out, "a", out)
    item = valid(out / "a.json")
    asset = item["assets"]["NDVI"]
    assert (asset["proj:code"], "proj:wkt2" in asset) == (code, code is None)
    assert asset["proj:transform"] == list(transform)[:6]
    west, _, east, _ = item["bbox"]
    assert (west > east) == (item["geometry"]["type"] == "MultiPolygon") == (crs == "EPSG:32701")


@pytest.mark.parametrize("name", ["50% of 'it'", "[x]{y}*", "é漢", "http:a", "a_LULC_b", "embed_pred"])
def test_a_scene_may_have_any_name(out: Path, name: str) -> None:
    product(out, f"{name}_NDVI.tif")
    product(out, f"{name}_embed_layer1.tif", "embed")
    catalog.refresh(out)
    item = valid(out / f"{name}.json")
    assert (item["id"], set(item["assets"])) == (name, {"NDVI", "embeddings_layer1"})
    (found,) = pystac.Catalog.from_file(str(out / "catalog.json")).get_items()
    assert Path(found.assets["NDVI"].get_absolute_href()).exists()


# Catalogs


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")  # of odc-geo
def test_a_catalog_that_readers_open_from_anywhere(
    tmtool: Any, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import odc.stac

    classes = np.random.default_rng(0).integers(1, 10, (1, 20, 30)).astype(np.uint8)
    right = TRANSFORM * Affine.translation(30, 0)
    product(out, "a_LULC.tif", values=classes)
    product(out, "b_LULC.tif", values=classes[:, ::-1], transform=right)
    product(out, "b_NDVI.tif", transform=right)
    result = tmtool("stac", out)
    assert (result.exit_code, result.stdout.strip()) == (0, str(out / "catalog.json"))
    for path in out.rglob("*.json"):
        valid(path)
        assert str(tmp_path) not in path.read_text()
    moved = out.rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = pystac.Catalog.from_file(str(moved / "catalog.json"))
    assert [item.id for item in found.get_items()] == ["a", "b"]
    assert [item.id for child in found.get_children() for item in child.get_items()] == ["model-demo"]
    for item in found.get_items():
        assert item.get_root().get_self_href() == str(moved / "catalog.json")
        (model,) = (pystac.Item.from_file(link.get_absolute_href()) for link in item.get_links("derived_from"))
        assert model.id == "model-demo"
    loaded = odc.stac.load(list(found.get_items()), bands=["LULC"], groupby=lambda *_: "all").LULC[0]
    expected = np.concatenate([classes[0], classes[0, ::-1]], axis=1)
    np.testing.assert_array_equal(loaded, expected)
    assert (loaded.dtype, loaded.nodata, loaded.odc.crs.epsg) == (np.uint8, 0, 32719)
    assert loaded.odc.transform == TRANSFORM

    listed = json.loads(tmtool("stac", moved, "--json").stdout)
    (tmp_path / "items.json").write_text(json.dumps(listed))
    with rasterio.open(f'STACIT:"{tmp_path}/items.json":asset=LULC') as src:
        np.testing.assert_array_equal(src.read(1), expected)
        assert (src.transform, src.crs.to_epsg(), src.nodata) == (TRANSFORM, 32719, 0)
    monkeypatch.chdir(moved)  # GDAL takes relative links from the folder that it runs in
    with rasterio.open('STACIT:"b.json":asset=NDVI') as src:
        assert src.read(1)[0, 0] == 1


def test_a_refresh_follows_the_products(tmtool: Any, out: Path) -> None:
    product(out, "a_NDVI.tif")
    product(out, "b_NDVI.tif", model="base", weights={"ibm-esa-geospatial/x/y.pt": "cd"})
    (out / "notes.json").write_text("{}")
    assert tmtool("stac", out).exit_code == 0
    assert {p.name for p in out.rglob("*.json")} == {
        *("a.json", "b.json", "catalog.json", "model-base.json", "model-demo.json", "notes.json"),
    }
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.json")}
    assert tmtool("stac", out).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.json")} == before
    product(out, "a_DEM.tif")
    catalog.write_item(out, "a", out)
    assert {link["rel"] for link in valid(out / "a.json")["links"]} == {"root", "parent", "derived_from"}
    (out / "b_NDVI.tif").unlink()
    assert tmtool("stac", out).exit_code == 0
    assert {p.name for p in out.rglob("*.json")} == {"a.json", "catalog.json", "model-demo.json", "notes.json"}
    for path in out.glob("a_*.tif"):
        path.unlink()
    assert tmtool("stac", out).exit_code == 0
    assert [each["rel"] for each in valid(out / "catalog.json")["links"]] == ["root"]
    assert {p.name for p in out.iterdir()} == {"catalog.json", "notes.json"}


def test_subfolders_are_catalogs_of_their_own(tmtool: Any, out: Path) -> None:
    product(out / "2024" / "june", "a_NDVI.tif")
    product(out / "2023", "b_NDVI.tif")
    product(out / "models", "c_NDVI.tif")
    (out / "empty").mkdir()
    refused = tmtool("stac", out)
    assert refused.exit_code == 2
    assert "holds no product of tmtool. --recursive also searches" in refused.stderr
    assert tmtool("stac", out, "--recursive").exit_code == 0
    for path in out.rglob("*.json"):
        valid(path)
    root = pystac.Catalog.from_file(str(out / "catalog.json"))
    assert [child.id for child in root.get_children()] == ["2023", "2024", "models"]
    assert {item.id for item in root.get_items(recursive=True)} == {"a", "b", "c", "model-demo"}
    (inner,) = [item for item in root.get_items(recursive=True) if item.id == "a"]
    assert inner.get_root().get_self_href() == str(out / "catalog.json")
    assert inner.get_single_link("derived_from").get_absolute_href() == str(out / "models" / "model-demo.json")
    shutil.rmtree(out / "2024" / "june")
    assert tmtool("stac", out, "--recursive").exit_code == 0
    assert not (out / "2024" / "catalog.json").exists()
    assert [child.id for child in pystac.Catalog.from_file(str(out / "catalog.json")).get_children()] == [
        "2023",
        "models",
    ]


def test_a_runs_folders_share_the_models(
    tmtool: Any, identity: str, make_raster: Any, tmp_path: Path, out: Path
) -> None:
    make_raster(s2(40, 60), "in/a.tif", nodata=0)
    make_raster(s2(40, 60), "in/sub/b.tif", nodata=0)
    args = ("generate", tmp_path / "in", "--recursive", "--out", "DEM", "--model", identity, "-o", out, "--stac")
    assert tmtool(*args).exit_code == 0
    inside = {p.relative_to(out).as_posix(): valid(p) for p in out.rglob("*.json")}
    assert set(inside) == {"a.json", "sub/b.json", "models/model-identity.json"}
    assert inside["sub/b.json"]["links"][0]["href"] == "../models/model-identity.json"


def test_what_is_wrong_is_told_and_the_rest_is_listed(tmtool: Any, out: Path) -> None:
    product(out, "a_NDVI.tif")
    cut = product(out, "b_NDVI.tif")
    cut.write_bytes(cut.read_bytes()[:200])
    product(out, "c_NDVI.tif")
    (out / "c.json").write_text('{"type": "Feature"}')
    result = tmtool("stac", out)
    assert result.exit_code == 1
    assert "b_NDVI.tif: is damaged" in result.stderr
    assert "c.json: exists and is no item of a scene" in result.stderr
    assert [item.id for item in pystac.Catalog.from_file(str(out / "catalog.json")).get_items()] == ["a"]
    assert document(out / "c.json") == {"type": "Feature"}


@pytest.mark.parametrize(
    ("name", "words"), [("none", "is no folder"), ("empty", "holds no product"), ("foreign", "is no catalog")]
)
def test_folders_that_are_refused(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    product(tmp_path / "foreign", "a_NDVI.tif")
    (tmp_path / "foreign" / "catalog.json").write_text('{"type": "Catalog", "id": "mine"}')
    with pytest.raises((InputError, OutputError), match=words):
        catalog.refresh(tmp_path / name)
    assert not list((tmp_path / name).glob("a.json"))


def test_documents_are_no_inputs(tmtool: Any, identity: str, make_raster: Any, tmp_path: Path) -> None:
    make_raster(s2(40, 60), "in/a.tif", nodata=0)
    there = ("--out", "DEM", "--model", identity, "-o", tmp_path / "in", "--stac")
    for args in ((tmp_path / "in" / "*",), (tmp_path / "in", "--pattern", "*")):
        result = tmtool("generate", *args, *there, "--json")
        assert result.exit_code == 0, result.stderr
        assert len(result.stdout.splitlines()) == 1
        assert tmtool("stac", tmp_path / "in").exit_code == 0


# Models


def described(model: str, task: str, weights: Any, **details: Any) -> Found:
    made = Provenance(task, model, weights=weights, details=details)
    facts = Facts({}, classes=(("land", "#B0B0B0"), ("clouds & haze", "#D93636")))
    return Found(Path("a_pred.tif"), made, "a", "pred", "", facts, datetime(2024, 1, 1, tzinfo=UTC))


def models() -> Iterator[Found]:
    for name, entry in MODELS.items():
        task = next(task.name for task in TASKS.values() if task.can_be_done_by(entry))
        if task != "predict":
            yield described(name, task, {"a/b.pt": "ab" * 32})
    yield described("base", "embed", {"best.ckpt": "cd" * 32})
    used = {"S2L2A": {"bands": ["B02", "B03"], "statistics": "the config"}}
    yield described("finetuned", "predict", {"best.ckpt": "ef" * 32}, kind="segmentation", used=used)


@pytest.mark.parametrize("found", list(models()), ids=lambda found: f"{found.made.model}-{found.made.task}")
def test_the_item_of_a_model(tmp_path: Path, found: Found) -> None:
    (path,) = _models.write_items(tmp_path, [found])
    item, made, entry = valid(path), found.made, MODELS[found.made.model]
    said = item["properties"]
    files = [asset for asset in item["assets"].values() if "mlm:model" in asset["roles"]]
    assert files
    own = next((digest for name, digest in made.weights.items() if "/" not in name), "")
    assert said.get("license") == (None if own else entry.licence)
    if own:
        assert (path.stem, files[0]["file:checksum"]) == (f"model-{made.model}-{own[:8]}", f"1220{own}")
    inputs = {each["name"]: each for each in said["mlm:input"]}
    assert set(inputs) == set(made.details.get("used", entry.inputs))
    outputs = {each["name"]: each for each in said["mlm:output"]}
    if "pred" in outputs:
        assert outputs["pred"]["tasks"] == ["semantic-segmentation"]
        assert outputs["pred"]["result"]["shape"] == [-1, 2, 256, 256]
        assert [c["name"] for c in outputs["pred"]["classification:classes"]] == ["land", "clouds_haze"]
        return
    means, stds = entry.moments(replace(MODALITIES["S2L2A"], bands=tuple(inputs["S2L2A"]["bands"])))
    scaling = inputs["S2L2A"]["value_scaling"]
    assert [(each["mean"], each["stddev"]) for each in scaling] == list(zip(means, stds, strict=True))
    side = (entry.tiling or (256,))[0]
    assert outputs["embeddings"]["result"]["shape"] == [-1, entry.dim, side // entry.patch, side // entry.patch]
    assert set(entry.outputs) <= set(outputs)


def test_random_weights_are_no_model(out: Path) -> None:
    product(out, "a_NDVI.tif", model="base", weights="random", warning="RANDOM WEIGHTS: the products mean nothing.")
    catalog.refresh(out)
    item = valid(out / "a.json")
    assert item["properties"]["description"].startswith("RANDOM WEIGHTS")
    assert "derived_from" not in {link["rel"] for link in item["links"]}
    assert not (out / "models").exists()


# The check itself


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (("properties", "datetime"), None),
        (("properties", "processing:datetime"), "yesterday"),
        (("assets", "LULC", "proj:shape"), [1]),
        (("assets", "LULC", "raster:sampling"), "line"),
        (("assets", "LULC", "classification:classes"), [{"value": 1}]),
        (("assets", "LULC", "nodata"), "none"),
        (("assets", "LULC", "href"), None),
    ],
)
def test_what_does_not_validate_is_seen(out: Path, field: tuple[str, ...], value: Any) -> None:
    product(out, "a_LULC.tif", values=np.full((1, 20, 30), 3, np.uint8) + np.arange(30, dtype=np.uint8) % 5)
    catalog.write_item(out, "a", out)
    item = valid(out / "a.json")
    inner = item
    for key in field[:-1]:
        inner = inner[key]
    inner[field[-1]] = value
    assert errors(item)
    model = document(out / "models" / "model-demo.json")
    del model["properties"]["mlm:input"]
    assert errors(model)


def test_names_are_parted_by_the_task(tmp_path: Path) -> None:
    for name, task, expected in (
        ("a_S2L2A_tokens.tif", "tokenize", ("a", "S2L2A_tokens")),
        ("a_b_LULC.tif", "generate", ("a_b", "LULC")),
        ("a_embed_embed_layer3.tif", "embed", ("a_embed", "embed_layer3")),
    ):
        found = _products.looked_at(product(tmp_path, name, task))
        assert found is not None
        assert (found.stem, found.suffix) == expected
    assert _products.looked_at(product(tmp_path, "a_renamed_NDVI.tif", "embed")) is None


@pytest.mark.parametrize("container", ["geojson", "geoparquet"])
def test_places_alone(out: Path, container: str) -> None:
    out.mkdir()
    grid, format = Grid(CRS, TRANSFORM * Affine.scale(192), (2, 3)), PLACES[container]
    writer = ProductWriter(
        out / f"a_coords{format.ending}", grid, Layout(PLACE_BANDS, "float64", float("nan"), ids=True), format
    )
    writer.create()
    writer.write(0, np.ones((3, 2, 3)), np.ones((2, 3), bool))
    writer.build(Provenance("generate", "base", weights={"a/b.pt": "ab"}).tags())
    writer.commit()
    writer.discard()
    catalog.write_item(out, "a", out)
    item = valid(out / "a.json")
    (asset,) = item["assets"].values()
    assert asset["type"] == format.media_type
    assert asset.get("table:row_count") == (6 if container == "geoparquet" else None)
    expected = rasterio.warp.transform_bounds(CRS, "EPSG:4326", *rasterio.transform.array_bounds(2, 3, grid.transform))
    np.testing.assert_allclose(item["bbox"], expected, atol=1e-4)
