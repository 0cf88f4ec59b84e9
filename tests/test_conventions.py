"""Zarr stores by the conventions that they name: schemas, overviews, embeddings and rasters of pixels; and `emb` of STAC."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401
import xarray
from affine import Affine
from rasterio.crs import CRS

from tests import stac_check
from tests.conftest import TRANSFORM
from tests.zarr_check import errors, nodes
from tmtool import __version__
from tmtool.errors import ProductError
from tmtool.files.cog import COG
from tmtool.files.writer import About, Format, Layout, ProductWriter
from tmtool.files.zarr import ZARR
from tmtool.grid import Cells, Grid, at
from tmtool.modality import LULC_CLASSES, MODALITIES
from tmtool.models.weights import model_uri
from tmtool.provenance import Provenance
from tmtool.tasks import geoemb

UTM = CRS.from_epsg(32719)
OWN = CRS.from_proj4("+proj=laea +lat_0=-33 +lon_0=-70 +ellps=GRS80 +units=m")  # of no authority
CLASSES = Layout(("class",), "uint8", 0, classes=LULC_CLASSES, resampling="mode")
DECIBELS = Layout(("VV", "VH"), "float32", float("nan"), unit="dB")
DIGITAL = Layout(("B02", "B03", "B04"), "uint16", 0, unit="DN", scale=0.0001)
TOKENS = Layout(("token",), "uint16", 65_535, resampling="nearest", ids=True)


def rows(layout: Layout, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Random values `(bands, H, W)` and validity with a hole."""
    rng = np.random.default_rng(3)
    valid = np.ones(shape, bool)
    valid[: shape[0] // 3, : shape[1] // 4] = False
    coarse = rng.integers(1, 10, (len(layout.bands), -(-shape[0] // 9), -(-shape[1] // 9)))
    values = np.kron(coarse, np.ones((9, 9)))[:, : shape[0], : shape[1]]
    noise = rng.normal(size=values.shape) if layout.dtype == "float32" else rng.integers(0, 2, values.shape)
    return np.minimum(values + noise, 9).astype(layout.dtype), valid


def write(path: Path, grid: Grid, layout: Layout, format: Format, about: About | None = None) -> Path:
    values, valid = rows(layout, grid.shape)
    writer = ProductWriter(path, grid, layout, format)
    writer.create()
    try:
        for row in range(0, grid.shape[0], 64):
            writer.write(row, values[:, row : row + 64], valid[row : row + 64])
        writer.build({"TMTOOL_PROVENANCE": "{}"}, about or About("values"))
        return writer.commit()
    finally:
        writer.discard()


def attributes(store: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((store / "zarr.json").read_text())["attributes"]
    return found


# Where arrays lie


@pytest.mark.parametrize(
    "grid",
    [
        Grid(UTM, TRANSFORM, (40, 30)),
        Grid(UTM, Affine(9.7, 2.1, 400_000.1, 2.3, -9.6, 6_000_000.3), (540, 8)),
        Grid(OWN, Affine(160.1, 0, -300_000.7, 0, 160.1, 12_345.6), (4, 3)),
        Grid(None, Affine.identity(), (6, 3)),
    ],
    ids=["utm", "rotated-with-overviews", "no-authority", "nowhere"],
)
def test_stores_follow_the_conventions_that_they_name(tmp_path: Path, grid: Grid) -> None:
    path = write(tmp_path / "a.zarr", grid, DECIBELS, ZARR)
    assert errors(path) == []
    said = dict(nodes(path))
    names = [convention["name"] for convention in said["."]["attributes"]["zarr_conventions"]]
    large = max(grid.shape) > 512
    assert names == [*(["proj"] if grid.crs else []), "spatial", *(["multiscales"] if large else [])]
    array = said["values"]
    assert array["dimension_names"] == ["band", *array["attributes"]["spatial:dimensions"]]
    assert Affine(*array["attributes"]["spatial:transform"]) == grid.transform
    assert tuple(array["attributes"]["spatial:shape"]) == grid.shape
    code, wkt = (array["attributes"].get(f"proj:{key}") for key in ("code", "wkt2"))
    assert (code is not None) + (wkt is not None) == (grid.crs is not None)
    assert grid.crs is None or CRS.from_user_input(code or wkt) == grid.crs
    xs, ys = at(grid.transform, [0, grid.shape[1]] * 2, np.repeat([0, grid.shape[0]], 2))
    box = [xs.min(), ys.min(), xs.max(), ys.max()]
    np.testing.assert_allclose(said["."]["attributes"]["spatial:bbox"], box, rtol=1e-12)


def test_a_wrong_attribute_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", Grid(UTM, TRANSFORM, (6, 5)), CLASSES, ZARR)
    said = json.loads((path / "zarr.json").read_text())
    del said["attributes"]["proj:code"]
    said["attributes"]["spatial:shape"] = [6, 0]
    (path / "zarr.json").write_text(json.dumps(said))
    assert [line.split(":")[1].strip() for line in errors(path)] == ["proj", "spatial"]


@pytest.mark.parametrize("layout", [DECIBELS, CLASSES, DIGITAL, TOKENS], ids=["float32", "classes", "uint16", "ids"])
def test_overviews_are_those_of_a_cog(tmp_path: Path, layout: Layout) -> None:
    grid = Grid(UTM, TRANSFORM, (1040, 520))
    path = write(tmp_path / "a.zarr", grid, layout, ZARR)
    cog = write(tmp_path / "a.tif", grid, layout, COG)
    said = attributes(path)["multiscales"]
    assert said["resampling_method"] == layout.resampling
    assert [level["asset"] for level in said["layout"]] == ["values", "ovr_2x/values", "ovr_4x/values"]
    for i, level in enumerate(said["layout"]):
        known = {"overview_level": i - 1} if i else {}
        with rasterio.open(cog, **known) as src:
            group = level["asset"].rpartition("/")[0] or None
            with xarray.open_zarr(path, group=group, mask_and_scale=False) as found:
                np.testing.assert_array_equal(found["values"], src.read())
                np.testing.assert_array_equal(found["values"].rio.nodata, src.nodata)
                assert found["values"].rio.crs == src.crs
                assert found["values"].rio.transform().almost_equals(src.transform, 1e-9)
            assert level["spatial:transform"] == list(src.transform)[:6]
            assert tuple(level["spatial:shape"]) == src.shape
        assert level["transform"]["scale"] == ([1, 2, 2] if i else [1, 1, 1])
    assert {where for where, node in nodes(path) if node["node_type"] == "group"} == {".", "ovr_2x", "ovr_4x"}


def test_overviews_of_odd_sizes_have_the_same_outline(tmp_path: Path) -> None:
    grid = Grid(UTM, TRANSFORM, (515, 1027))
    path = write(tmp_path / "a.zarr", grid, CLASSES, ZARR)
    size = np.array([1.0, 1.0])
    for level in attributes(path)["multiscales"]["layout"]:
        height, width = level["spatial:shape"]
        there = Affine(*level["spatial:transform"])
        np.testing.assert_allclose(at(there, width, height), at(grid.transform, 1027, 515), rtol=1e-15)
        size *= level["transform"]["scale"][1:]
        np.testing.assert_allclose([-there.e, there.a], 10 * size)
    assert (height, width) == (129, 257)


def test_empty_chunks_are_not_stored(tmp_path: Path) -> None:
    grid = Grid(UTM, TRANSFORM, (1600, 2100))  # a chunk and more is a hole
    path = write(tmp_path / "a.zarr", grid, CLASSES, ZARR)
    stored = {
        p.relative_to(path / "values" / "c").as_posix() for p in (path / "values" / "c").rglob("*") if p.is_file()
    }
    assert stored == {f"0/{row}/{col}" for row in range(4) for col in range(5)} - {"0/0/0"}
    with xarray.open_zarr(path, mask_and_scale=False) as found:
        assert (found["values"][:, :512, :512] == 0).all()


# Rasters of pixels


def s2(height: int = 150, width: int = 170) -> np.ndarray:
    """Sentinel-2 with a hole."""
    values = np.random.default_rng(0).integers(200, 3000, (12, height, width)).astype(np.int16)
    values[:, :20, :30] = 0
    return values


def test_generated_rasters_are_those_of_cogs(tmtool: Any, identity: str, make_raster: Any, tmp_path: Path) -> None:
    path = make_raster(s2(), nodata=0)
    for kind in ("cog", "zarr"):
        args = ("--out", "S1GRD,LULC,S2L2A", "--model", identity, "-o", tmp_path / kind, "--format", kind)
        assert tmtool("generate", path, *args).exit_code == 0
    for name in ("S1GRD", "LULC", "S2L2A"):
        modality, store = MODALITIES[name], tmp_path / "zarr" / f"scene_{name}.zarr"
        assert errors(store) == []
        with rasterio.open(tmp_path / "cog" / f"scene_{name}.tif") as src:
            with xarray.open_zarr(store, mask_and_scale=False) as stored:
                values = stored[name]
                np.testing.assert_array_equal(values, src.read())
                assert values.dtype == src.dtypes[0]
                assert (values.rio.crs, values.rio.transform()) == (src.crs, src.transform)
                np.testing.assert_array_equal(values.rio.nodata, src.nodata)
                assert values.attrs.get("units", "") == ("" if modality.classes else modality.unit)
                assert values.attrs.get("scale_factor", 1) == modality.scale
                assert values["band"].values.tolist() == list(modality.bands)
            made = json.loads(src.tags()["TMTOOL_PROVENANCE"])
        with xarray.open_zarr(store) as decoded:
            assert json.loads(decoded.attrs["TMTOOL_PROVENANCE"])["sampling"] == made["sampling"]
            assert np.isnan(decoded[name].values[:, :20, :30]).all()  # the hole
            assert name != "S2L2A" or float(decoded[name].max()) < 1  # reflectance
    with xarray.open_zarr(tmp_path / "zarr" / "scene_LULC.zarr", mask_and_scale=False) as found:
        said = found["LULC"].attrs
    names, colours = zip(*LULC_CLASSES, strict=True)
    assert said["flag_values"] == [*range(10)]
    assert said["flag_meanings"].split()[3:8:4] == ["flooded_vegetation", "snow_ice"]
    assert said["flag_colors"].split() == [*colours]
    assert said["class_names"] == [*names]
    again = tmtool("generate", path, *args, "--json")
    assert json.loads(again.stdout)["status"] == "skipped"


def test_what_stands_beside_a_mean_is_zarr_too(tmtool: Any, make_raster: Any, tmp_path: Path) -> None:
    path = make_raster(s2(30, 40), nodata=0)
    args = (
        "--out",
        "LULC,NDVI",
        "--model",
        "demo",
        "--samples",
        "2",
        "--timesteps",
        "1",
        "--format",
        "zarr",
        "-o",
        tmp_path / "out",
    )
    assert tmtool("generate", path, *args, "--stac").exit_code == 0
    names = {"LULC": 1, "LULC_prob": 10, "LULC_entropy": 1, "NDVI": 1, "NDVI_std": 1}
    for name, bands in names.items():
        with xarray.open_zarr(tmp_path / "out" / f"scene_{name}.zarr") as found:
            assert found[name].shape == (bands, 30, 40)
    item = json.loads((tmp_path / "out" / "scene.json").read_text())
    assert stac_check.errors(item) == []
    assert {asset["type"] for asset in item["assets"].values()} == {"application/vnd.zarr; version=3"}
    classes = item["assets"]["LULC"]["classification:classes"]
    assert [(c["title"], f"#{c['color_hint']}") for c in classes] == [*LULC_CLASSES]
    assert item["assets"]["LULC_prob"]["bands"][1]["name"] == "water"


def test_reconstructions_as_zarr(tmtool: Any, make_raster: Any, tmp_path: Path) -> None:
    path = make_raster(s2(40, 50), nodata=0)
    for kind in ("cog", "zarr"):
        args = ("reconstruct", path, "--model", "demo", "--timesteps", "1", "--format", kind, "-o", tmp_path / kind)
        assert tmtool(*args).exit_code == 0
    store = xarray.open_zarr(tmp_path / "zarr" / "scene_S2L2A_rec.zarr", mask_and_scale=False)
    with rasterio.open(tmp_path / "cog" / "scene_S2L2A_rec.tif") as src, store as found:
        np.testing.assert_array_equal(found["S2L2A_rec"], src.read())


def test_a_damaged_store_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", Grid(UTM, TRANSFORM, (40, 30)), DECIBELS, ZARR)
    assert ZARR.tags(path)["TMTOOL_PROVENANCE"] == "{}"
    chunk = path / "values" / "c" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(ProductError, match="a.zarr: is damaged"):
        ZARR.tags(path)
    (path / "zarr.json").write_text("{")
    for look in (ZARR.tags, ZARR.look):
        assert look is not None
        with pytest.raises(ProductError, match="a.zarr: is damaged"):
            look(path)


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (("compare", "a.zarr", "b.tif"), "a.zarr: compare reads GeoTIFF, not Zarr; make it with --format cog"),
        (("compare", "b.tif", "a.zarr"), "a.zarr: compare reads GeoTIFF, not Zarr; make it with --format cog"),
        (("preview", "a.zarr"), "a.zarr: preview shows rasters in GeoTIFF, not .zarr"),
        (
            ("generate", "a.zarr", "--out", "LULC", "--model", "demo"),
            "a.zarr: is Zarr, of which only ESA's Sentinel-2 products (EOPF) are read",
        ),
    ],
)
def test_who_reads_no_zarr_says_so(
    tmtool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], error: str
) -> None:
    monkeypatch.chdir(tmp_path)
    grid = Grid(UTM, TRANSFORM, (6, 5))
    write(Path("a.zarr"), grid, CLASSES, ZARR)
    write(Path("b.tif"), grid, CLASSES, COG)
    result = tmtool(*command)
    assert result.exit_code == 2
    assert error in " ".join(result.stderr.split())


# Embeddings


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), {"geoemb:data_type": "float32", "geoemb:chip_layout": [[16, 16], [16, 16]]}),
        (("--pool", "tile", "--crop", "96", "--stride", "48"), {"geoemb:chip_layout": [[64, 64], [48, 48]]}),
        (
            ("--pool", "scene", "--dtype", "float16"),
            {"geoemb:data_type": "float16", "geoemb:chip_layout": [[150, 170]] * 2},
        ),
        (
            ("--dtype", "int8"),
            {
                "geoemb:data_type": "int8",
                "geoemb:quantization": {
                    **{"method": "per_dimension_scale", "original_dtype": "float32", "quantized_dtype": "int8"},
                    "scale": {"type": "array", "array_name": "scale"},
                },
            },
        ),
        (
            ("--dtype", "int8", "--normalize", "l2"),
            {
                "geoemb:quantization": {
                    **{"method": "signed_square_root", "original_dtype": "float32", "quantized_dtype": "int8"}
                }
            },
        ),
    ],
    ids=["patch", "tile", "scene", "int8", "int8-l2"],
)
def test_embeddings_say_what_the_convention_asks(
    tmtool: Any, make_raster: Any, tmp_path: Path, options: tuple[str, ...], expected: Mapping[str, Any]
) -> None:
    path = make_raster(s2(), nodata=0)
    assert tmtool("embed", path, "--model", "demo", "-o", tmp_path / "out", "--format", "zarr", *options).exit_code == 0
    store = tmp_path / "out" / "scene_embed.zarr"
    assert errors(store) == []
    said = attributes(store)
    assert [c["name"] for c in said["zarr_conventions"]] == ["geoemb:", "proj", "spatial"]
    known = {
        **{"geoemb:type": "chip", "geoemb:dimensions": 128, "geoemb:gsd": 10},
        "geoemb:model": f"pkg:pypi/tmtool@{__version__}",
        "geoemb:source_data": ["https://sentiwiki.copernicus.eu/web/s2-products"],
        "geoemb:build_version": f"tmtool {__version__}",
    }
    layout = said["geoemb:chip_layout"]
    assert layout["layout_type"] == "regular_grid"
    said["geoemb:chip_layout"] = [layout["chip_size"], layout["stride"]]
    assert said.items() >= (known | dict(expected)).items()
    assert ("geoemb:quantization" in said) == ("geoemb:quantization" in expected)
    with xarray.open_zarr(store, mask_and_scale=False) as found:
        assert str(found["embedding"].dtype) == said["geoemb:data_type"]
        assert len(found["band"]) == 128
        assert ("scale" in found) == ("scale" in said.get("geoemb:quantization", {}))


@pytest.mark.parametrize(
    ("weights", "uri"),
    [
        (
            {"ibm-esa-geospatial/TerraMind-1.0-base/TerraMind_v1_base.pt": "ab"},
            "https://huggingface.co/ibm-esa-geospatial/TerraMind-1.0-base",
        ),
        ({"org/model/a.pt": "ab", "best.ckpt": "00" * 32}, "ni:///sha-256;AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
        ({"tmtool/core.safetensors": "ab"}, "pkg:pypi/tmtool@0.1.0"),
        ("random", "pkg:pypi/tmtool@0.1.0#random-weights"),
    ],
)
def test_what_refers_to_a_model(weights: Any, uri: str) -> None:
    assert model_uri(weights, "0.1.0") == uri


def test_what_refers_to_inputs() -> None:
    inputs = {"S2L2A@1": "a.tif", "S2L2A@2": "b.tif", "S1GRD": "c.tif", "DEM": "my dem.tif", "LULC": "l.tif"}
    items = {"S2L2A@2": "https://user:secret@h/items/b?sig=secret", "LULC": "/data/l.json"}
    made = Provenance("embed", "base", inputs=inputs, details={"items": items})
    found = geoemb.attributes(made, DECIBELS, Cells())
    assert found["geoemb:source_data"] == [
        "https://sentiwiki.copernicus.eu/web/s2-products",
        "https://h/items/b",
        "https://sentiwiki.copernicus.eu/web/s1-products",
        "file:my%20dem.tif",
        "file:l.tif",
    ]
    assert "geoemb:gsd" not in found


@pytest.mark.parametrize("kind", ["cog", "zarr", "geoparquet", "majortom"])
def test_an_item_of_embeddings_follows_emb(tmtool: Any, make_raster: Any, tmp_path: Path, kind: str) -> None:
    path, out = make_raster(s2(60, 70), nodata=0), tmp_path / "out"
    args = ("embed", path, "--model", "demo", "-o", out, "--format", kind, "--dtype", "int8", "--stac")
    assert tmtool(*args).exit_code == 0
    item = json.loads((out / "scene.json").read_text())
    assert stac_check.errors(item) == []
    assert "https://stac-extensions.github.io/embeddings/v0.0.1/schema.json" in item["stac_extensions"]
    assert set(item["assets"]) == {"embeddings"}
    said = item["properties"]["emb:quantization"]
    assert (said["method"], said["original_dtype"], said["quantized_dtype"]) == (
        "per_dimension_scale",
        "float32",
        "int8",
    )
    assert len(said["scale"]) == 128
    assert 0 < min(said["scale"]) < max(said["scale"]) < 1
    how = item["properties"]["emb:runtime_parameters"]
    assert (how["crop"], how["stride"], how["embedding"]["pool"]) == (256, 192, "patch")
    links = {link["rel"]: link["href"] for link in item["links"]}
    assert links["emb:model"] == links["derived_from"] == "./models/model-demo.json"
    assert "emb:source-data" not in links  # the input has no item


def test_major_toms_columns_need_degrees(tmtool: Any, make_raster: Any) -> None:
    path = make_raster(s2(40, 50), crs=None)
    result = tmtool("embed", path, "--model", "demo", "--format", "majortom")
    assert result.exit_code == 2
    assert "has no CRS, which --format majortom needs" in " ".join(result.stderr.split())
