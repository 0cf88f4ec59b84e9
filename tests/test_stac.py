"""STAC items: which assets are bands, what their values mean, how links are opened and signed."""

import functools
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import zarr

from tmtool.dates import acquired
from tmtool.errors import InputError
from tmtool.modality import MODALITIES
from tmtool.source import deliveries
from tmtool.source.deliveries import stac

Json = dict[str, Any]
SECRET = "SECRETZq7"
L2A = MODALITIES["S2L2A"].bands
EARTH = {
    **{"coastal": "B01", "blue": "B02", "green": "B03", "red": "B04", "rededge1": "B05", "rededge2": "B06"},
    **{"rededge3": "B07", "nir": "B08", "nir08": "B8A", "nir09": "B09", "swir16": "B11", "swir22": "B12"},
}


def item(assets: Json, collection: str | None = None, name: str = "x", **properties: Any) -> Json:
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": collection,
        "geometry": None,
        "links": [],
        "properties": {"datetime": "2022-06-01T14:37:31.024000Z"} | properties,
        "assets": assets,
    }


def collection_of(*found: Json) -> Json:
    return {"type": "FeatureCollection", "features": list(found)}


def earth_search(applied: bool | None, offset: float = -0.1, collection: str = "sentinel-2-l2a") -> Json:
    url = "https://sentinel-cogs.s3.us-west-2.amazonaws.com/sentinel-s2-l2a-cogs/19/H/CC"
    raster = [{"nodata": 0, "data_type": "uint16", "scale": 0.0001, "offset": offset}]
    assets: Json = {
        "thumbnail": {"href": f"{url}/preview.jpg", "roles": ["thumbnail"]},
        "visual": {
            "href": f"{url}/TCI.tif",
            "eo:bands": [{"name": "red"}, {"name": "green"}, {"name": "blue"}],
            "roles": ["visual"],
        },
        "scl": {"href": f"{url}/SCL.tif", "raster:bands": [{"nodata": 0}], "roles": ["data", "reflectance"]},
        "aot": {"href": f"{url}/AOT.tif", "raster:bands": [{"scale": 0.001, "offset": 0}]},
    }
    for key, band in reversed(EARTH.items()):
        described = {"eo:bands": [{"name": key, "common_name": key}], "raster:bands": raster}
        assets[f"{key}-jp2"] = {"href": f"s3://sentinel-s2-l2a/tiles/19/H/CC/{band}.jp2"} | described
        assets[key] = {"href": f"{url}/{band}.tif"} | described
    said = {} if applied is None else {"earthsearch:boa_offset_applied": applied}
    return item(assets, collection, "S2B_19HCC", platform="sentinel-2b", **{"s2:processing_baseline": "04.00"} | said)


def planetary(baseline: str | None) -> Json:
    url = "https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/19"
    assets = {
        b: {"href": f"{url}/{b}_10m.tif", "eo:bands": [{"name": b}]} for b in (*reversed(L2A), "SCL", "AOT", "WVP")
    }
    assets["visual"] = {"href": f"{url}/TCI_10m.tif", "eo:bands": [{"name": b} for b in ("B04", "B03", "B02")]}
    return item(assets, "sentinel-2-l2a", **({"s2:processing_baseline": baseline} if baseline else {}))


def cdse() -> Json:
    sizes = {
        "10m": ["B02", "B03", "B04", "B08"],
        "20m": [b for b in L2A if b not in ("B08", "B09")],
        "60m": [b for b in L2A if b != "B08"],
    }
    assets = {
        f"{band}_{size}": {
            "href": f"s3://eodata/Sentinel-2/T19HCC_{band}_{size}.jp2",
            "bands": [{"name": band}],
            "raster:scale": 0.0001,
            "raster:offset": -0.1,
            "nodata": 0,
        }
        for size in reversed(sizes)
        for band in sizes[size]
    }
    assets["SCL_20m"] = {"href": "s3://eodata/Sentinel-2/T19HCC_SCL_20m.jp2"}
    return item(assets, "sentinel-2-l2a", **{"processing:version": "05.11", "platform": "sentinel-2a"})


def eopf(*, groups: bool) -> Json:
    url = "https://objects.eodc.eu/cpm/S2B_MSIL2A.zarr"
    sizes = {
        "10m": ["b02", "b03", "b04", "b08"],
        "20m": [b.lower() for b in L2A if b not in ("B08", "B09")],
        "60m": ["b01", "b09"],
    }
    if groups:
        assets = {
            f"SR_{size}": {
                "href": f"{url}/measurements/reflectance/r{size}",
                "bands": [{"name": b} for b in bands],
                "roles": ["dataset"],
            }
            for size, bands in reversed(sizes.items())
        }
        placed = {"proj:transform": [10, 0, 300000, 0, -10, 6300040]}
        assets["SR_10m"] |= placed
    else:
        native = {"B01": "60m", "B09": "60m", **dict.fromkeys(("B02", "B03", "B04", "B08"), "10m")}
        assets = {
            f"{b}_{native.get(b, '20m')}": {
                "href": f"{url}/measurements/reflectance/r{native.get(b, '20m')}/{b.lower()}",
                "proj:bbox": [300000, 6190240, 409800, 6300040],
                "proj:shape": [10980 // (int(native.get(b, "20m")[:2]) // 10)] * 2,
            }
            for b in L2A
        }
        assets["SR_10m"] = {"href": f"{url}/measurements/reflectance/r10m", "bands": [{"name": "b02"}, {"name": "b03"}]}
    assets["SCL_20m"] = {"href": f"{url}/conditions/mask/l2a_classification/r20m/scl"}
    return item(assets, "sentinel-2-l2a", **{"proj:code": "EPSG:32719"})


def landsat() -> Json:
    url = "https://landsateuwest.blob.core.windows.net/landsat-c2/LC08"
    keys = {"blue": 2, "green": 3, "red": 4, "nir08": 5, "swir16": 6, "swir22": 7}
    raster = [{"nodata": 0, "scale": 2.75e-05, "offset": -0.2}]
    assets: Json = {key: {"href": f"{url}_SR_B{i}.TIF", "raster:bands": raster} for key, i in keys.items()}
    assets["lwir11"] = {
        "href": f"{url}_ST_B10.TIF",
        "raster:bands": [{"scale": 0.00341802, "offset": 149.0}],
        "eo:bands": [{"name": "TIRS_B10"}],
    }
    return item(assets, "landsat-c2-l2", platform="landsat-8")


def radar(*keys: str, collection: str = "sentinel-1-rtc") -> Json:
    url = "https://sentinel1euwestrtc.blob.core.windows.net/sentinel1-grd-rtc"
    return item({k: {"href": f"{url}/iw-{k}.rtc.tiff", "raster:bands": [{"nodata": -32768}]} for k in keys}, collection)


def written(where: Path, document: Any, name: str = "item.json") -> str:
    (where / name).write_text(document if isinstance(document, str) else json.dumps(document))
    return str(where / name)


def read(where: Path, document: Any) -> Any:
    return stac.read(written(where, document))


def names(delivery: Any) -> dict[str, str]:
    return {layer.name: layer.path.rpartition("/")[2] for layer in delivery.layers}


@pytest.fixture(autouse=True)
def _unsigned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(stac.SIGN, raising=False)


@pytest.mark.parametrize(
    ("applied", "offset", "collection", "expected", "why"),
    [
        (True, -0.1, "sentinel-2-l2a", 0, "boa_offset_applied"),  # the trap: said twice, taken off already
        (False, -0.1, "sentinel-2-l2a", 1000, "offset -0.1"),
        (False, 0, "sentinel-2-l2a", 0, "offset 0"),
        (None, -0.1, "sentinel-2-c1-l2a", 1000, "offset -0.1"),
    ],
)
def test_earth_search(
    tmp_path: Path, applied: bool | None, offset: float, collection: str, expected: float, why: str
) -> None:
    delivery = read(tmp_path, earth_search(applied, offset, collection))
    assert names(delivery) == {band: f"{band}.tif" for band in L2A}
    assert all(layer.path.startswith("/vsicurl/https://sentinel-cogs") for layer in delivery.layers)
    assert (delivery.modality, delivery.gain, delivery.offset, delivery.nodata) == ("S2L2A", 1, expected, 0)
    assert why in delivery.scale_why
    assert {k: f[0].values for k, f in delivery.flags.items()} == {
        "clouds": (8, 9),
        "shadow": (3,),
        "cirrus": (10,),
        "snow": (11,),
    }
    assert delivery.flags["snow"][0].layer.path.endswith("/SCL.tif")
    assert acquired(delivery.tags)[0] == "2022-06-01T14:37:31"
    assert {k: v for k, v in delivery.tags.items() if "DATE" not in k} == {
        "PROCESSING_BASELINE": "04.00",
        "PLATFORM": "sentinel-2b",
        "STAC_ITEM": "S2B_19HCC",
        "STAC_COLLECTION": collection,
    }


@pytest.mark.parametrize(
    ("baseline", "offset"), [("04.00", 1000), ("05.11", 1000), ("03.01", 0), ("99.99", 1000), (None, 0), ("odd", 0)]
)
def test_planetary_computer(tmp_path: Path, baseline: str | None, offset: float) -> None:
    delivery = read(tmp_path, planetary(baseline))
    assert names(delivery) == {band: f"{band}_10m.tif" for band in L2A}
    assert (delivery.modality, delivery.gain, delivery.offset) == ("S2L2A", 1, offset)
    assert bool(delivery.scale_why) == (baseline not in (None, "odd"))  # else the files are asked
    assert delivery.flags["clouds"][0].layer.path.endswith("SCL_10m.tif")


def test_cdse_has_each_band_at_its_native_size(tmp_path: Path) -> None:
    delivery = read(tmp_path, cdse())
    size = dict.fromkeys(L2A, 20) | dict.fromkeys(("B02", "B03", "B04", "B08"), 10) | {"B01": 60, "B09": 60}
    assert names(delivery) == {b: f"T19HCC_{b}_{size[b]}m.jp2" for b in L2A}
    assert delivery.layers[0].path.startswith("/vsis3/eodata/")
    assert (delivery.gain, delivery.offset, delivery.nodata, delivery.tags["PROCESSING_BASELINE"]) == (
        1,
        1000,
        0,
        "05.11",
    )
    assert set(delivery.flags) == {"clouds", "shadow", "cirrus", "snow"}


@pytest.mark.parametrize("groups", [True, False])
def test_eopf_links_into_zarr(tmp_path: Path, groups: bool) -> None:
    delivery = read(tmp_path, eopf(groups=groups))
    root = 'ZARR:"/vsicurl/https://objects.eodc.eu/cpm/S2B_MSIL2A.zarr":/'
    paths = {layer.name: layer.path for layer in delivery.layers}
    assert tuple(paths) == L2A
    for band, size in (("B02", 10), ("B05", 20), ("B09", 60), ("B01", 60)):
        assert paths[band] == f"{root}measurements/reflectance/r{size}m/{band.lower()}"
    assert {layer.band for layer in delivery.layers} == {1}
    assert delivery.flags["snow"][0].layer.path == f"{root}conditions/mask/l2a_classification/r20m/scl"
    assert delivery.crs.to_epsg() == 32719
    assert tuple(delivery.transform)[:6] == (10, 0, 300000, 0, -10, 6300040)


def test_zarr_on_disk_opens(tmp_path: Path) -> None:
    root = zarr.open_group(tmp_path / "p.zarr", mode="w", zarr_format=2)
    group = root.create_group("measurements/reflectance/r10m")
    for value, name in enumerate(("b02", "b03"), 5):
        group.create_array(name, data=np.full((4, 6), value, "uint16"), chunks=(4, 6))
    placed = {"proj:transform": [10, 0, 0, 0, -10, 0], "bands": [{"name": "b02"}, {"name": "b03"}]}
    found = item({"SR_10m": {"href": "./p.zarr/measurements/reflectance/r10m"} | placed}, **{"proj:code": "EPSG:32719"})
    values = []
    for layer in read(tmp_path, found).layers:
        with rasterio.open(layer.path) as src:
            values.append((layer.name, int(src.read(layer.band).max()), src.shape))
    assert values == [("B02", 5, (4, 6)), ("B03", 6, (4, 6))]


def test_zarr_that_does_not_say_where_it_lies(tmp_path: Path) -> None:
    found = eopf(groups=True)
    del found["properties"]["proj:code"]
    with pytest.raises(InputError, match=r"proj:code and proj:transform.*Download"):
        read(tmp_path, found)


def test_landsat_is_brought_to_dn(tmp_path: Path) -> None:
    delivery = read(tmp_path, landsat())
    bands = {"B02": 2, "B03": 3, "B04": 4, "B8A": 5, "B11": 6, "B12": 7}
    assert names(delivery) == {band: f"LC08_SR_B{i}.TIF" for band, i in bands.items()}
    assert (delivery.modality, delivery.gain, delivery.offset, delivery.nodata) == (None, 0.275, 2000, 0)


def test_landsats_numbers_are_not_sentinels(tmp_path: Path) -> None:
    common = {"B4": "red", "B5": "nir", "B8": "pan", "B10": "lwir11"}
    assets = {k: {"href": f"/d/{k}.TIF", "eo:bands": [{"name": k, "common_name": c}]} for k, c in common.items()}
    assert names(read(tmp_path, item(assets, "landsat-8-l1-c1"))) == {"B04": "B4.TIF", "B8A": "B5.TIF"}


@pytest.mark.parametrize(
    ("collection", "expected"),
    [
        ("HLSL30_2.0", {"B04": "B04", "B8A": "B05", "B11": "B06", "B12": "B07"}),
        ("hls2-l30", {"B04": "B04", "B8A": "B05", "B11": "B06", "B12": "B07"}),
        ("HLSS30_2.0", {"B04": "B04", "B05": "B05", "B06": "B06", "B07": "B07", "B09": "B09", "B11": "B11"}),
    ],
)
def test_hls_has_two_sensors(tmp_path: Path, collection: str, expected: dict[str, str]) -> None:
    keys = ("B11", "B10", "B09", "B04", "B05", "B06", "B07", "Fmask")  # thermal B11 of L30 first
    found = item({k: {"href": f"https://h/{k}.tif"} for k in keys}, collection, platform="landsat-8")
    if "S30" in collection:
        found["properties"]["platform"] = "sentinel-2a"
    assert names(read(tmp_path, found)) == {band: f"{key}.tif" for band, key in expected.items()}


def test_radar(tmp_path: Path) -> None:
    delivery = read(tmp_path, radar("vh", "vv"))
    assert names(delivery) == {"VV": "iw-vv.rtc.tiff", "VH": "iw-vh.rtc.tiff"}
    assert (delivery.modality, delivery.power, delivery.gain, delivery.flags) == ("S1RTC", True, 1, {})
    detected = read(tmp_path, radar("vh", "vv", collection="sentinel-1-grd"))
    assert (detected.modality, detected.power) == (None, False)


@pytest.mark.parametrize(("keys", "missing"), [(("vv",), "VH"), (("vh", "hh"), "VV")])
def test_half_a_radar_pair_is_refused(tmp_path: Path, keys: tuple[str, ...], missing: str) -> None:
    with pytest.raises(InputError, match=f"{missing} is missing"):
        read(tmp_path, radar(*keys))


def test_heights(tmp_path: Path) -> None:
    found = item({"data": {"href": "https://h/dem.tif"}}, "cop-dem-glo-30")
    delivery = read(tmp_path, found)
    assert (names(delivery), delivery.modality) == ({"elevation": "dem.tif"}, "DEM")
    with pytest.raises(InputError, match="no asset of x is a band"):
        read(tmp_path, found | {"collection": "esa-worldcover"})


@pytest.mark.parametrize("key", ["bands", "eo:bands"])
def test_one_asset_with_many_bands(tmp_path: Path, key: str) -> None:
    listed = list(reversed(L2A))
    described = [{"name": b, "raster:scale": 0.0001, "raster:offset": 0, "nodata": 0} for b in listed]
    found = item(
        {
            "visual": {"href": "rgb.tif", key: [{"name": b} for b in ("B04", "B03", "B02")], "roles": ["visual"]},
            "all": {"href": "all.tif", key: described},
        },
        "sentinel-2-l2a",
    )
    delivery = read(tmp_path, found)
    assert [(layer.name, layer.band) for layer in delivery.layers] == [(b, 12 - i) for i, b in enumerate(L2A)]
    assert {layer.path for layer in delivery.layers} == {str(tmp_path / "all.tif")}
    assert delivery.modality == "S2L2A"


def test_assets_by_what_they_say(tmp_path: Path) -> None:
    said: list[Json] = [
        {"eo:bands": [{"name": "B8A"}]},
        {"eo:bands": [{"name": "R", "common_name": "red"}]},
        {"bands": [{"name": "G", "eo:common_name": "green"}]},
        {"bands": [{"name": "rededge071"}]},
    ]
    found = item({f"a{i}": {"href": f"{i}.tif"} | each for i, each in enumerate(said)})
    assert names(read(tmp_path, found)) == {"B03": "2.tif", "B04": "1.tif", "B05": "3.tif", "B8A": "0.tif"}


def test_bands_that_the_modality_lacks_are_left_out(tmp_path: Path) -> None:
    found = planetary("05.00")
    found["assets"]["B10"] = {"href": "https://h/B10.tif"}
    assert "B10" not in names(read(tmp_path, found))
    found["collection"] = "sentinel-2-l1c"
    delivery = read(tmp_path, found)
    assert (delivery.modality, len(delivery.layers), delivery.offset) == ("S2L1C", 13, 1000)


def test_scales_must_agree(tmp_path: Path) -> None:
    found = earth_search(False)
    found["assets"]["red"]["raster:bands"] = [{"scale": 0.0001, "offset": 0}]
    with pytest.raises(InputError, match=r"several scales and offsets .*B04 0.0001 0"):
        read(tmp_path, found)


@pytest.mark.parametrize(
    ("href", "expected"),
    [
        ("https://h/a.tif?x=1", "/vsicurl/https://h/a.tif?x=1"),
        ("http://h/a.tif", "/vsicurl/http://h/a.tif"),
        ("s3://b/k/a.tif", "/vsis3/b/k/a.tif"),
        ("gs://b/a.tif", "/vsigs/b/a.tif"),
        ("az://c/a.tif", "/vsiaz/c/a.tif"),
        ("abfs://c@account.dfs.core.windows.net/k/a.tif", "/vsiaz/c/k/a.tif"),
        ("/d/a.tif", "/d/a.tif"),
        ("/vsis3/b/a.tif", "/vsis3/b/a.tif"),
        ("file:///d/a%20b.tif", "/d/a b.tif"),
        ("./a.tif", "{here}/a.tif"),
        ("../a.tif", "{above}/a.tif"),
    ],
)
def test_links_to_gdals_names(tmp_path: Path, href: str, expected: str) -> None:
    (layer,) = read(tmp_path, item({"B02": {"href": href}})).layers
    assert layer.path == expected.format(here=tmp_path, above=tmp_path.parent)


def test_relative_links_of_a_collections_items(tmp_path: Path) -> None:
    found = [item({"B02": {"href": "./a.tif"}}, name=n) for n in ("a", "b", "c")]
    for document, link in zip(found, ("https://h/i/b.json?t=1", "s3://k/i/b.json"), strict=False):
        document["links"] = [{"rel": "self", "href": link}]
    path = written(tmp_path, collection_of(*found))
    got = [stac.read(p).layers[0].path for _, p in stac.items(path)]
    assert got == ["/vsicurl/https://h/i/a.tif", "/vsis3/k/i/a.tif", str(tmp_path / "a.tif")]


def test_other_stores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="reads http, .*, not ftp") as error:
        read(tmp_path, item({"B02": {"href": f"ftp://u:{SECRET}@h/a.tif"}}))
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("name", ["all.json", "all.geojson", "all.ndjson", "all.JSONL"])
def test_items_of_a_collection(tmp_path: Path, name: str) -> None:
    found = [item({"B02": {"href": f"{i}.tif"}}, name=i) for i in ("a", "b")]
    lines = "\n".join(map(json.dumps, found)) + "\n\n"
    path = written(tmp_path, lines if name.lower().endswith(stac._LINES) else collection_of(*found), name)
    assert stac.claims(path)
    assert stac.claims(f"{path}#b")
    assert (
        stac.items(path)
        == [("a", f"{path}#a"), ("b", f"{path}#b")]
        == [*zip("ab", deliveries.collected(path), strict=True)]
    )
    assert stac.items(f"{path}#b") == [("b", f"{path}#b")]
    assert names(stac.read(f"{path}#b")) == {"B02": "b.tif"}
    with pytest.raises(InputError, match="2 items; name one as FILE#ID, of a, b"):
        stac.read(path)
    with pytest.raises(InputError, match="no item z; .* of a, b"):
        stac.read(f"{path}#z")


def test_one_item_needs_no_id(tmp_path: Path) -> None:
    path = written(tmp_path, collection_of(item({"B02": {"href": "a.tif"}})))
    assert stac.items(path) == [("x", path)]
    assert names(stac.read(path)) == {"B02": "a.tif"}


def test_ids_must_differ(tmp_path: Path) -> None:
    path = written(tmp_path, collection_of(item({}), item({})))
    with pytest.raises(InputError, match="several items with the id x"):
        stac.items(path)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{", "is no JSON"),
        ({"type": "Catalog", "stac_version": "1.0.0", "id": "c"}, "holds no STAC item"),
        (
            {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": None, "properties": {}}]},
            "holds no STAC",
        ),
        ({"type": "FeatureCollection", "features": None}, "holds no STAC item"),
        ({"type": "Feature", "stac_version": "1.0.0"}, "no valid STAC item"),
        (item({}) | {"assets": []}, "no valid STAC item"),
        (item({}), "it has none"),
    ],
)
def test_what_is_no_item_is_refused(tmp_path: Path, document: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(tmp_path, document)


@pytest.mark.parametrize(
    ("name", "document", "expected"),
    [
        ("a.json", item({}), True),
        ("a.geojson", collection_of(item({})), True),
        (
            "aoi.geojson",
            {"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {"n": "stac_version"}}]},
            False,
        ),
        ("a.json", {"type": "Collection", "stac_version": "1.0.0"}, False),
        ("a.json", "not JSON", False),
        ("a.json", "[" * 200_000 + '"stac_version"', False),
        ("a.tif", item({}), False),
    ],
)
def test_claims_files(tmp_path: Path, name: str, document: Any, expected: bool) -> None:
    assert stac.claims(written(tmp_path, document, name)) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://h/collections/c/items/HLS.T19.v2.0", True),
        ("https://h/a.json?sig=1", True),
        ("https://h/a.geojson#x", True),
        ("https://h/a.tif", False),
        ("https://h/items/a.tif?sig=1", False),
        ("/vsicurl/https://h/a.json", False),
        ("absent.json", False),
    ],
)
def test_claims_links_by_name(url: str, expected: bool) -> None:
    assert stac.claims(url) == expected


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(tmp_path))) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_items_at_links(tmp_path: Path, server: str) -> None:
    (tmp_path / "i").mkdir()
    written(tmp_path / "i", item({"B02": {"href": "../b/a.tif"}}))
    delivery = stac.read(f"{server}/i/item.json?sig={SECRET}")
    assert delivery.layers[0].path == f"/vsicurl/{server}/b/a.tif"


def test_links_that_fail_show_no_secrets(server: str) -> None:
    for url, words in (
        (f"{server}/none.json", "answers 404"),
        ("http://127.0.0.1:1/a.json", "cannot be fetched"),
        ("http://127.0.0.1:x/a.json", "cannot be fetched"),
        ("http://127.0.0.1:1/a b.json", "cannot be fetched"),
    ):
        with pytest.raises(InputError, match=words) as error:
            stac.read(f"{url}?sig={SECRET}")
        assert SECRET not in str(error.value)


def test_links_are_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(stac.SIGN, "sed 's/$/?sig=1/'")
    found = item({"B02": {"href": "https://h/a.tif"}, "B03": {"href": "s3://b/a.tif"}, "B04": {"href": "a.tif"}})
    found["assets"]["SCL"] = {"href": "https://h/s.tif"}
    delivery = read(tmp_path, found)
    assert [layer.path for layer in delivery.layers] == [
        "/vsicurl/https://h/a.tif?sig=1",
        "/vsis3/b/a.tif",
        str(tmp_path / "a.tif"),
    ]
    assert delivery.flags["snow"][0].layer.path == "/vsicurl/https://h/s.tif?sig=1"
    stac.set_sign("sed 's/$/?sig=2/'")
    assert read(tmp_path, found).layers[0].path.endswith("?sig=2")
    stac.set_sign(None)
    assert read(tmp_path, found).layers[0].path.endswith("?sig=2")
    stac.set_sign("")
    assert read(tmp_path, found).layers[0].path.endswith("a.tif")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("echo no luck with https://h/a.tif?sig=" + SECRET + " >&2; exit 3", "no luck"),
        (f"TOKEN={SECRET} false", "ended with 1"),
        ("cat >/dev/null; echo not-a-link", "no single URL"),
        ("cat; echo https://h/second", "no single URL"),
    ],
)
def test_signing_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, words: str) -> None:
    monkeypatch.setenv(stac.SIGN, command)
    with pytest.raises(InputError, match=words) as error:
        read(tmp_path, item({"B02": {"href": f"https://h/a.tif?key={SECRET}"}}))
    assert SECRET not in str(error.value)
    assert stac.SIGN in str(error.value)


def test_files_open(tmp_path: Path) -> None:
    for i, name in enumerate(("a", "b"), 3):
        with rasterio.open(tmp_path / f"{name}.tif", "w", "GTiff", 4, 4, 1, dtype="uint16", crs="EPSG:32719") as dst:
            dst.write(np.full((1, 4, 4), i, "uint16"))
    path = written(tmp_path, item({"nir": {"href": "b.tif"}, "red": {"href": "./a.tif"}}))
    delivery = deliveries.delivery_of(path)
    assert delivery is not None
    values = []
    for layer in delivery.layers:
        with rasterio.open(layer.path) as src:
            values.append((layer.name, int(src.read(layer.band).max())))
    assert values == [("B04", 3), ("B08", 4)]


def test_pystac_is_imported_only_for_items() -> None:
    script = "import sys, tmtool.source.deliveries as d; d.is_delivery('a.tif'); print('pystac' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
