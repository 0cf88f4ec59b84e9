"""Products held against references: numpy's and scikit-learn's figures on whole arrays, whatever the shape and the holes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image

from tests.conftest import TRANSFORM
from tests.test_preview import made, product
from tmtool.errors import ReadError
from tmtool.modality import LULC_CLASSES, MODALITIES
from tmtool.products.agreement import Classes, Codes, Quantities, Vectors, text
from tmtool.products.metrics import Comparison

S1 = MODALITIES["S1GRD"]
STDS = (4.0, 5.0)


def strips(agreement: Any, values: np.ndarray, reference: np.ndarray, valid: np.ndarray, height: int) -> dict[str, Any]:
    for row in range(0, len(valid), height):
        part = slice(row, row + height)
        agreement.add(values[:, part], reference[:, part], valid[part])
    found: dict[str, Any] = agreement.result()
    return found


@pytest.mark.parametrize(("height", "width"), [(60, 33), (1, 40), (40, 1), (7, 7), (200, 50)])
@pytest.mark.parametrize("strip", [1, 16, 1000])
def test_bands_are_numpys_on_the_whole(height: int, width: int, strip: int) -> None:
    rng = np.random.default_rng(height)
    reference = rng.normal(-12, 4, (2, height, width)).astype(np.float32)
    values = (reference * 0.8 - 1 + rng.normal(0, 1, reference.shape)).astype(np.float32)
    valid = rng.random((height, width)) > 0.2
    valid[0, 0] = True
    values[:, ~valid], reference[:, ~valid] = np.nan, -9999
    found = strips(Quantities(S1, width, STDS), values, reference, valid, strip)
    assert found["pixels"] == valid.sum()
    for i, band in enumerate(("VV", "VH")):
        x, y = values[i][valid].astype(np.float64), reference[i][valid].astype(np.float64)
        one = found["bands"][band]
        assert one["bias"] == pytest.approx((x - y).mean(), abs=1e-9)
        assert one["mae"] == pytest.approx(np.abs(x - y).mean(), rel=1e-9)
        assert one["rmse"] == pytest.approx(np.sqrt(np.square(x - y).mean()), rel=1e-9)
        assert one["r"] == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-9)
        d = np.where(valid, values[i].astype(np.float64) - reference[i], np.nan)
        steps = np.concatenate([np.diff(d, axis=0).ravel(), np.diff(d, axis=1).ravel()])
        steps = steps[np.isfinite(steps)]
        assert one["gradient_rmse"] == pytest.approx(np.sqrt(np.square(steps).mean()), rel=1e-9)
    comparison = Comparison(S1, width, STDS)
    comparison.add(reference, values, valid)
    comparison.finish()
    for band, errors in comparison.result()["bands"].items():  # reconstruct's figures
        for key in ("psnr", "ssim"):
            assert found["bands"][band][key] == (None if errors[key] is None else pytest.approx(errors[key], rel=1e-9))


def test_a_raster_against_itself_and_the_other_way_round() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(-12, 4, (2, 2, 50, 40)).astype(np.float32)
    valid = np.ones((50, 40), bool)
    same = strips(Quantities(S1, 40, STDS), a, a, valid, 16)["bands"]["VV"]
    assert (same["bias"], same["rmse"], same["psnr"], same["gradient_rmse"]) == (0, 0, None, 0)
    assert (same["r"], same["ssim"]) == pytest.approx((1, 1))
    there, back = (strips(Quantities(S1, 40, STDS), *pair, valid, 16)["bands"]["VV"] for pair in ((a, b), (b, a)))
    assert there["bias"] == pytest.approx(-back["bias"], rel=1e-9)
    assert {k: there[k] for k in ("mae", "rmse", "r", "ssim")} == pytest.approx(
        {k: back[k] for k in ("mae", "rmse", "r", "ssim")}
    )
    shifted = strips(Quantities(S1, 40, STDS), a + 3, a, valid, 16)["bands"]["VV"]
    assert shifted["bias"] == pytest.approx(3, abs=1e-5)
    assert shifted["gradient_rmse"] < 1e-5


def test_classes_are_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    true = rng.choice([0, 1, 2, 4, 5], (1, 60, 50), p=[0.1, 0.4, 0.3, 0.1, 0.1]).astype(np.uint8)
    found = np.where(rng.random(true.shape) < 0.7, true, rng.choice([1, 2, 3, 4], true.shape)).astype(np.uint8)
    valid = rng.random((60, 50)) > 0.1
    said = strips(Classes("LULC", [name for name, _ in LULC_CLASSES], first=1), found, true, valid, 13)
    scored = valid & (true[0] > 0)
    x, y = found[0][scored], true[0][scored]
    assert said["pixels"] == scored.sum()
    assert said["accuracy"] == pytest.approx(metrics.accuracy_score(y, x))
    assert said["kappa"] == pytest.approx(metrics.cohen_kappa_score(y, x))
    assert said["f1"] == pytest.approx(metrics.f1_score(y, x, average="macro"))
    assert said["miou"] == pytest.approx(metrics.jaccard_score(y, x, average="macro"))
    names = [LULC_CLASSES[c][0] for c in (1, 2, 3, 4, 5)]
    assert list(said["classes"]) == names
    np.testing.assert_array_equal(
        [[said["confusion"][a][b] for b in names] for a in names],
        metrics.confusion_matrix(y, x, labels=[1, 2, 3, 4, 5]),
    )
    assert said["classes"]["flooded vegetation"]["recall"] is None
    same = strips(Classes("x", ["a", "b"]), x[None, None] % 2, x[None, None] % 2, np.ones((1, len(x)), bool), 1)
    assert (same["accuracy"], same["miou"], same["kappa"]) == (1, 1, 1)


def test_what_is_no_class_is_no_class() -> None:
    known, strange = np.full((1, 4, 4), 1, np.uint8), np.full((1, 4, 4), 77, np.uint8)
    for pair in ((strange, known), (known, strange)):
        with pytest.raises(ReadError, match="x: found class 77 while comparing it, but classes are 0-1"):
            Classes("x", ["a", "b"]).add(*pair, np.ones((4, 4), bool))


def test_codes_and_vectors() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, (2, 1, 20, 30))
    valid = rng.random((20, 30)) > 0.3
    assert strips(Codes(), a, b, valid, 7) == {"cells": valid.sum(), "agreement": (a == b)[0][valid].mean()}
    x, y = rng.normal(size=(2, 8, 20, 30))
    said = strips(Vectors(), x, y, valid, 7)
    cosine = ((x * y).sum(0) / np.linalg.norm(x, axis=0) / np.linalg.norm(y, axis=0))[valid]
    assert (said["cosine"], said["least_cosine"]) == pytest.approx((cosine.mean(), cosine.min()))
    assert strips(Vectors(), x, 2 * x, valid, 7)["least_cosine"] == pytest.approx(1)
    for empty in (Quantities(S1, 30, STDS), Classes("x", ["a", "b"]), Codes(), Vectors()):
        said = strips(empty, x[:2].astype(np.float32), y[:2].astype(np.float32), np.zeros((20, 30), bool), 7)
        assert "-" in text(said)


# --- From the command line ---


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a, b = rng.normal(-12, 4, (2, 2, 90, 70)).astype(np.float32)
    a[:, :10, :10] = np.nan
    paths = product(tmp_path / "x_S1GRD.tif", a, made("S1GRD"), np.nan), product(tmp_path / "x.tif", b)
    return *paths, a, b


def test_a_product_and_its_reference(tmtool: Any, pair: Any, tmp_path: Path) -> None:
    generated, reference, a, b = pair
    result = tmtool("compare", generated, reference, "--json", "--error-map", tmp_path / "error.tif")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    valid = np.isfinite(a[0])
    assert (said["kind"], said["pixels"]) == ("S1GRD", valid.sum())
    assert said["bands"]["VH"]["bias"] == pytest.approx(float((a - b)[1][valid].astype(np.float64).mean()), abs=1e-6)
    with rasterio.open(tmp_path / "error.tif") as src:
        assert src.descriptions == ("VV", "VH")
        np.testing.assert_allclose(src.read()[:, valid], (a - b)[:, valid], atol=1e-5)
        np.testing.assert_array_equal(src.read_masks(1) > 0, valid)
    assert not list(tmp_path.glob(".tmtool*"))
    lines = tmtool("compare", generated, reference).stdout.splitlines()
    assert lines[1].split()[:6] == ["band", "bias", "dB", "MAE", "dB", "RMSE"]
    assert len(lines) == 4


def test_another_grid_and_unit(tmtool: Any, pair: Any, tmp_path: Path) -> None:
    generated, _, _, b = pair
    power = 10 ** (b / 10)
    coarse = product(tmp_path / "power.tif", power[:, ::2, ::2], transform=TRANSFORM * Affine.scale(2))
    result = tmtool("compare", generated, coarse, "--unit", "S1GRD=linear")
    assert result.exit_code == 2
    assert "lies on another grid than" in result.stderr
    assert "--warp brings it there" in result.stderr
    result = tmtool("compare", generated, coarse, "--unit", "S1GRD=linear", "--warp", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["pixels"] > 5000


def test_classes_tokens_and_embeddings(tmtool: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lulc = rng.integers(1, 5, (1, 40, 50)).astype(np.uint8)
    a = product(tmp_path / "a_LULC.tif", lulc, made("LULC"), 0)
    esri = np.array([0, 1, 2, 4, 5], np.uint8)[lulc]
    b = product(tmp_path / "esri.tif", esri)
    said = json.loads(tmtool("compare", a, b, "--lulc-codes", "esri", "--json").stdout)
    assert (said["kind"], said["accuracy"], said["kappa"]) == ("LULC", 1, 1)
    assert "accuracy 1.000, mIoU 1.000" in tmtool("compare", a, b, "--lulc-codes", "esri").stdout
    tokens = made("S2L2A", "tokenize", codebook="8-8-8-6-5")
    a, b = (
        product(tmp_path / f"{n}_tokens.tif", v, tokens)
        for n, v in (("a", lulc.astype(np.uint16)), ("b", esri.astype(np.uint16)))
    )
    said = json.loads(tmtool("compare", a, b, "--json", "--error-map", tmp_path / "differs.tif").stdout)
    assert said["agreement"] == pytest.approx((lulc == esri).mean())
    with rasterio.open(tmp_path / "differs.tif") as src:
        np.testing.assert_array_equal(src.read(1), (lulc != esri)[0])
    vectors = rng.normal(size=(6, 40, 50)).astype(np.float32)
    a, b = (product(tmp_path / f"{n}_embed.tif", v, made("", "embed")) for n, v in (("a", vectors), ("b", -vectors)))
    assert "mean cosine -1.0000" in tmtool("compare", a, b).stdout


def test_folders_are_paired_by_name(tmtool: Any, pair: Any, tmp_path: Path) -> None:
    generated, reference, _, _ = pair
    out, truth = tmp_path / "out", tmp_path / "truth"
    out.mkdir(), truth.mkdir()
    for stem in ("a", "b", "alone"):
        shutil.copy(generated, out / f"{stem}_S1GRD.tif")
    shutil.copy(reference, truth / "a.tif")
    shutil.copy(reference, truth / "b_S1GRD.tif")
    result = tmtool("compare", out, truth, "--json")
    assert result.exit_code == 0, result.stderr
    assert [Path(json.loads(line)["product"]).name for line in result.stdout.splitlines()] == [
        "a_S1GRD.tif",
        "b_S1GRD.tif",
    ]
    assert "--error-map x.tif: is one file" in tmtool("compare", out, truth, "--error-map", "x.tif").stderr


@pytest.mark.parametrize(
    ("args", "text_"),
    [
        (("nowhere.tif", "x.tif"), "nowhere.tif: no such file"),
        (("x_S1GRD.tif", "nowhere.tif"), "nowhere.tif: no such file"),
        (("x.tif", "x.tif"), "x.tif: does not say which modality it is"),
        ((".", "x.tif"), "is a file, but . is a folder"),
        ((".", "empty"), "holds no raster that is named as one of"),
    ],
)
def test_what_cannot_be_compared(
    tmtool: Any, pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, str], text_: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    result = tmtool("compare", *args)
    assert result.exit_code == 2
    assert text_ in result.stderr


def test_zones_and_plots(tmtool: Any, pair: Any, tmp_path: Path) -> None:
    generated, reference, a, b = pair
    west, north = TRANSFORM * (20, 30)
    rings = [
        [[west, north], [west + 300, north], [west + 300, north - 400], [west, north - 400], [west, north]],
        [[west + 4e5, north], [west + 5e5, north], [west + 5e5, north - 400], [west + 4e5, north]],
    ]
    features = [
        {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [r]}} for r in rings
    ]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32719"}}
    zones = tmp_path / "zones.geojson"
    zones.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
    result = tmtool("compare", generated, reference, "--zones", zones, "--plot", tmp_path / "plot.png", "--json")
    assert result.exit_code == 0, result.stderr
    first, far = json.loads(result.stdout)["zones"]
    inside = (slice(None), slice(30, 70), slice(20, 50))
    assert first["pixels"] == 1200
    assert first["bands"]["VV"]["rmse"] == pytest.approx(
        np.sqrt(np.square((a - b)[inside][0].astype(np.float64)).mean()), rel=1e-6
    )
    assert far["pixels"] == 0
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width > 500
        assert np.asarray(image)[..., :3].std() > 20
    assert "zone 1: 1200 pixels" in tmtool("compare", generated, reference, "--zones", zones).stdout
    lulc = np.random.default_rng(0).integers(1, 5, (1, 40, 50)).astype(np.uint8)
    classes = product(tmp_path / "a_LULC.tif", lulc, made("LULC"), 0)
    assert tmtool("compare", classes, classes, "--plot", tmp_path / "confusion.png").exit_code == 0
    assert (tmp_path / "confusion.png").stat().st_size > 5000
    vectors = product(tmp_path / "a_embed.tif", np.ones((6, 40, 50), np.float32), made("", "embed"))
    result = tmtool("compare", vectors, vectors, "--plot", tmp_path / "no.png")
    assert result.exit_code == 2
    assert "tokens and embeddings have no plot" in result.stderr
    assert "--zones nowhere.gpkg: no such file" in tmtool("compare", classes, classes, "--zones", "nowhere.gpkg").stderr


def numpys(x: np.ndarray, y: np.ndarray, valid: np.ndarray) -> dict[str, float | None]:
    """The figures of a band `(h, w)`, on the whole of it in float64; None where there are none."""
    x, y, d = x.astype(np.float64), y.astype(np.float64), np.where(valid, x.astype(np.float64) - y, np.nan)
    steps = np.concatenate([np.diff(d, axis=0).ravel(), np.diff(d, axis=1).ravel()])
    steps, d = steps[np.isfinite(steps)], d[valid]
    varies = valid.sum() > 1 and x[valid].std() > 0
    return {
        "bias": d.mean() if d.size else None,
        "mae": np.abs(d).mean() if d.size else None,
        "rmse": np.sqrt(np.square(d).mean()) if d.size else None,
        "r": np.corrcoef(x[valid], y[valid])[0, 1] if varies else None,
        "gradient_rmse": np.sqrt(np.square(steps).mean()) if steps.size else None,
    }


def nearest(n: int, tiling: dict[str, int], whole: int, start: int = 0) -> np.ndarray:
    """The tile whose centre is nearest to each of n pixels from `start`; the earlier one where two are."""
    crop, stride, delta = tiling["crop"], tiling["stride"], tiling["delta"]
    count = max(1, -(-(whole - (crop - 2 * delta)) // stride) + 1)
    centres = np.arange(count) * stride - delta + crop / 2
    found: np.ndarray = abs(np.arange(start, start + n)[:, None] + 0.5 - centres).argmin(axis=1)
    return found


@pytest.mark.parametrize(
    ("shape", "tiling"),
    [
        ((300, 131), {"crop": 64, "stride": 48, "delta": 8}),
        ((1, 200), {"crop": 64, "stride": 33, "delta": 3}),
        ((257, 65), {"crop": 64, "stride": 64, "delta": 0}),
        ((40, 50), {"crop": 64, "stride": 48, "delta": 8}),  # one tile
    ],
)
def test_tiles_are_numpys_on_their_windows(tmtool: Any, tmp_path: Path, shape: Any, tiling: dict[str, int]) -> None:
    rng = np.random.default_rng(1)
    y = rng.normal(-12, 4, (2, *shape)).astype(np.float32)
    x = (0.8 * y - 1 + rng.normal(0, 1, y.shape)).astype(np.float32)
    x[:, rng.random(shape) < 0.2] = np.nan
    x[:, 100:150, 90:] = np.nan  # whole tiles
    generated = product(tmp_path / "x_S1GRD.tif", x, replace(made("S1GRD"), tiling=tiling), np.nan)
    result = tmtool("compare", generated, product(tmp_path / "x.tif", y), "--tiles", "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    single = max(shape) <= tiling["crop"]
    rows, cols = ([0] * n if single else nearest(n, tiling, n) for n in shape)
    owner = np.stack(np.broadcast_arrays(np.array(rows)[:, None], np.array(cols)))
    counted = np.zeros(shape, int)
    for tile in said["tiles"]:
        col, row, width, height = tile["window"]
        here = (slice(row, row + height), slice(col, col + width))
        counted[here] += 1
        assert (owner[:, *here] == np.array([tile["tile_row"], tile["tile_col"]])[:, None, None]).all()
        valid = np.isfinite(x[0][here])
        assert tile["pixels"] == valid.sum()
        for i, band in enumerate(("VV", "VH")):
            for name, value in numpys(x[i][here], y[i][here], valid).items():
                assert tile["bands"][band][name] == (
                    None if value is None else pytest.approx(value, rel=1e-9, abs=1e-9)
                )
    assert (counted == 1).all()
    order = [(tile["tile_row"], tile["tile_col"]) for tile in said["tiles"]]
    assert order == sorted(order)
    assert sum(tile["pixels"] for tile in said["tiles"]) == said["pixels"]
    lines = tmtool("compare", generated, tmp_path / "x.tif", "--tiles").stdout.splitlines()[4:]
    known = [tile for tile in said["tiles"] if tile["pixels"]]
    worst = max(known, key=lambda tile: sum(band["rmse"] for band in tile["bands"].values()))
    assert lines[0].startswith(f"{len(order)} tiles, {len(known)} with pixels that are valid in both; worst by RMSE")
    assert lines[2].startswith(f"{worst['tile_row']}, {worst['tile_col']} ")
    assert len(lines) == 2 + min(len(known), 10)


def test_tiles_of_parts_cells_and_classes(tmtool: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tiling = {"crop": 96, "stride": 48, "delta": 16}
    codes = rng.integers(0, 3, (2, 1, 9, 11)).astype(np.uint16)
    details = {"codebook": "8-8-8-6-5", "whole": [400, 300]}
    tokens = replace(made("S2L2A", "tokenize", **details), tiling=tiling, read={"part": [96, 48, 176, 144]})
    a, b = (product(tmp_path / f"{n}_tokens.tif", v, tokens) for n, v in zip("ab", codes, strict=True))
    tiles = json.loads(tmtool("compare", a, b, "--tiles", "--json").stdout)["tiles"]
    rows, cols = (nearest(16 * n, tiling, whole, start)[7::16] for n, whole, start in ((9, 300, 48), (11, 400, 96)))
    assert {(t["tile_row"], t["tile_col"]) for t in tiles} == {(i, j) for i in rows for j in cols}
    for tile in tiles:
        mine = (rows == tile["tile_row"])[:, None] & (cols == tile["tile_col"])
        assert (tile["cells"], tile["window"][2] * tile["window"][3]) == (mine.sum(), mine.sum())
        assert tile["agreement"] == pytest.approx((codes[0] == codes[1])[0][mine].mean(), abs=1e-12)
    lulc = rng.integers(1, 4, (1, 90, 70)).astype(np.uint8)
    pinned = replace(made("LULC", whole=[80, 100]), tiling=tiling, read={"anchor": "grid", "part": [10, 10, 70, 90]})
    path = product(tmp_path / "a_LULC.tif", lulc, pinned, 0)
    worse = lulc.copy()
    worse[:, 60:70, :30] = 4  # in the second tile row, which begins at 56 - 10
    lines = tmtool("compare", path, product(tmp_path / "b_LULC.tif", worse), "--tiles").stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if "worst by accuracy" in line)
    assert lines[first + 2].split()[:4] == ["1,", "0", "0,46,46,44", "2024"]


@pytest.mark.parametrize(
    ("about", "text_"),
    [
        ({}, "does not say which tiles it was made of; --tiles needs a product of tmtool"),
        ({"tiling": {"crop": 64, "stride": 0, "delta": 0}}, "does not say which tiles it was made of"),
        ({"read": {"part": [0, 0, 9, 9]}}, "has 40 x 50 px, but was made with 9 x 9"),
        ({"task": "embed", "details": {"embedding": {"pool": "tile"}}}, "has no pixels of which a tile holds several"),
        ({"task": "predict", "details": {"kind": "classification", "modality": "S1GRD"}}, "has no pixels of which"),
    ],
)
def test_what_has_no_tiles(tmtool: Any, tmp_path: Path, about: dict[str, Any], text_: str) -> None:
    tiling = {"crop": 64, "stride": 48, "delta": 8} if about else {}
    said = replace(made("S1GRD"), **({"tiling": tiling} | about))
    path = product(tmp_path / "x_S1GRD.tif", np.full((2, 40, 50), -12, np.float32), said)
    result = tmtool("compare", path, path, "--tiles")
    assert result.exit_code == 2
    assert text_ in result.stderr


def test_plots_need_no_matplotlib_until_asked() -> None:
    import subprocess
    import sys

    script = "import sys, tmtool.cli.compare, tmtool.pictures.plots, tmtool.scene.comparing; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
