"""Pictures of products: each kind as it should look, transparent where there is no data, with a legend of the right colours."""

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image

from tests.conftest import ROOT, TRANSFORM
from tmtool.modality import LULC_CLASSES
from tmtool.pictures import _drawing as drawing
from tmtool.pictures._sheet import Panel, Sheet
from tmtool.provenance import Provenance

SAMPLE = ROOT / "samples" / "demo_scene.tif"
EDGE = 12


def product(
    path: Path, values: np.ndarray, made: Provenance | None = None, nodata: float | None = None, **profile: Any
) -> Path:
    place = {"crs": "EPSG:32719", "transform": TRANSFORM, "dtype": values.dtype, "nodata": nodata} | profile
    count, height, width = values.shape
    with rasterio.open(path, "w", driver="GTiff", count=count, height=height, width=width, **place) as dst:
        dst.write(values)
        if made:
            dst.update_tags(**made.tags())
    return path


def made(modality: str, task: str = "generate", **details: Any) -> Provenance:
    return Provenance(task, "demo").with_details(modality=modality, **details)


def panel(path: Path, height: int, width: int) -> np.ndarray:
    """Return the picture's pixels, `(H, W, 4)`."""
    with Image.open(path) as image:
        assert image.mode == "RGBA"
        pixels = np.asarray(image)
    top = _top(pixels.shape[1])
    return pixels[top : top + height, EDGE : EDGE + width]


def _top(width: int) -> int:
    size = max(13, min(18, (width - 2 * EDGE) // 40))
    return round(1.6 * size) + EDGE


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Products of all commands of a part of the sample."""
    from typer.testing import CliRunner

    from tmtool.cli import app

    out = tmp_path_factory.mktemp("products")
    part = ["--window", "500,400,200,200", "-o", str(out)]
    demo = ["--model", "demo"]
    task = ["--config", str(SAMPLE.with_name("water.yaml")), "--checkpoint", str(SAMPLE.with_name("water.ckpt"))]
    for args in (
        ["generate", "--out", "S2L2A,S1GRD,LULC,NDVI", "--solver", "dpm", *demo],
        ["tokenize", *demo],
        ["reconstruct", *demo, "--solver", "dpm"],
        ["embed", "--layer", "1,-1", *demo],
        ["predict", *task, "--probabilities"],
    ):
        result = CliRunner().invoke(app, [args[0], str(SAMPLE), *args[1:], *part])
        assert result.exit_code == 0, result.stderr
    return out


def test_every_kind_of_product_has_a_picture(tmtool: Any, products: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(products, folder)
    result = tmtool("preview", folder, "--size", 400)
    assert result.exit_code == 0, result.stderr
    names = {Path(line).stem for line in result.stdout.split()}
    kinds = (
        "S2L2A",
        "S1GRD",
        "LULC",
        "NDVI",
        "S2L2A_tokens",
        "S2L2A_rec",
        "embed_layer1",
        "embed_layer2",
        "pred",
        "prob",
    )
    assert names == {f"demo_scene_{kind}" for kind in kinds}
    for line in result.stdout.split():
        with rasterio.open(Path(line).with_suffix(".tif")) as src:
            valid = src.read_masks(1) > 0
        times = 400 // max(valid.shape)
        shown = panel(Path(line), times * valid.shape[0], times * valid.shape[1])
        np.testing.assert_array_equal(shown[..., 3] > 0, valid.repeat(times, 0).repeat(times, 1), line)
        assert not valid.all()
        assert shown[shown[..., 3] > 0][:, :3].std() > 5, line
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("about", "bands", "dtype", "low", "high", "west", "east"),
    [
        (made("DEM"), 1, "float32", 0, 100, drawing.HEIGHT_RAMP[0], drawing.HEIGHT_RAMP[-1]),
        (made("NDVI"), 1, "float32", -0.2, 0.9, drawing.NDVI_RAMP[0], drawing.NDVI_RAMP[-1]),
        (made("S1RTC"), 2, "float32", -40, 0, "#000000", "#ffffff"),
        (made("S2L1C"), 13, "uint16", 1, 3000, "#000000", "#ffffff"),
        (made("", "predict", kind="regression"), 1, "float32", 1, 100, drawing.VIRIDIS[0], drawing.VIRIDIS[-1]),
    ],
)
def test_kinds_that_the_demo_model_does_not_make(
    tmtool: Any,
    tmp_path: Path,
    about: Provenance,
    bands: int,
    dtype: str,
    low: float,
    high: float,
    west: str,
    east: str,
) -> None:
    """Values rise from west to east over what each kind shows; a hole is transparent."""
    values = np.broadcast_to(np.linspace(low, high, 64), (bands, 40, 64)).astype(dtype)
    if bands == 2:
        values[1] = -40 + (values[0] + 40) * 0.6  # VV / VH rises from 0 to 16 dB
    hole = np.zeros((40, 64), bool)
    hole[5:9, 20:30] = True
    nodata = np.nan if dtype == "float32" else 0
    values[:, hole] = nodata
    path = product(tmp_path / "x.tif", values, about, nodata)
    result = tmtool("preview", path, "--size", 64)
    assert result.exit_code == 0, result.stderr
    shown = panel(path.with_suffix(".png"), 40, 64)
    np.testing.assert_array_equal(shown[..., 3] == 0, hole)
    expected = np.round(255 * np.stack([drawing.rgb(west), drawing.rgb(east)]))
    if bands == 2:
        expected[1, 1] = round(255 * (16 / 27) ** 0.8)  # VH of -16 dB, between -32 and -5
    np.testing.assert_allclose(shown[20, [0, -1], :3], expected, atol=12)  # slopes are shaded


def test_classes_have_their_colours_and_a_legend(tmtool: Any, products: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(products / "demo_scene_LULC.tif", tmp_path / "lulc.tif"))
    assert tmtool("preview", path).exit_code == 0
    with rasterio.open(path) as src:
        values = src.read(1)
    times = 1024 // max(values.shape)
    shown = panel(path.with_suffix(".png"), times * len(values), times * values.shape[1])
    for c in np.unique(values[values > 0]):
        colour = [int(LULC_CLASSES[c][1][i : i + 2], 16) for i in (1, 3, 5)]
        assert (shown[::times, ::times][values == c][:, :3] == colour).all()
    with Image.open(path.with_suffix(".png")) as image:
        below = np.asarray(image)[-100:, :, :3].reshape(-1, 3)
    there = {tuple(int(LULC_CLASSES[c][1][i : i + 2], 16) for i in (1, 3, 5)) for c in np.unique(values[values > 0])}
    assert there <= set(map(tuple, below.tolist()))


def test_size_and_part(tmtool: Any, tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (1, 300, 500)).astype(np.float32)
    path = product(tmp_path / "x_NDVI.tif", values, made("NDVI"), np.nan)
    for size, shape in ((250, (150, 250)), (1200, (600, 1000))):
        assert tmtool("preview", path, "--size", size).exit_code == 0
        with Image.open(path.with_suffix(".png")) as image:
            assert image.width == shape[1] + 2 * EDGE
            assert shape[0] < image.height < shape[0] + 140
    west, north = TRANSFORM * (100, 50)
    box = f"{west},{north - 1000},{west + 2000},{north}@EPSG:32719"
    assert tmtool("preview", path, "--size", 200, "--bbox", box).exit_code == 0
    with Image.open(path.with_suffix(".png")) as image:
        assert image.width == 200 + 2 * EDGE


def test_beside_the_input(tmtool: Any, products: Path, tmp_path: Path) -> None:
    for name in ("LULC", "embed_layer2"):
        path = Path(shutil.copy(products / f"demo_scene_{name}.tif", tmp_path))
        result = tmtool("preview", path, "--with", SAMPLE, "--size", 200)
        assert result.exit_code == 0, result.stderr
        with Image.open(path.with_suffix(".png")) as image:
            pixels = np.asarray(image)
        side = (pixels.shape[1] - 3 * EDGE) // 2
        top = _top(side + 2 * EDGE)
        left = pixels[top : top + side, EDGE : EDGE + side, :3]
        assert left.std() > 20  # at the input's own pixels, though the product is on patches
        assert len(np.unique(left[:16, :16].reshape(-1, 3), axis=0)) > 50


def test_tiles_are_drawn_by_how_far_they_disagree(tmtool: Any, products: Path, tmp_path: Path) -> None:
    from tmtool.tiles.seams import parse_tile_map

    path = tmp_path / "scene_S1GRD.tif"
    shutil.copy(products / "demo_scene_S1GRD.tif", path)
    with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dst:
        dst.update_tags(TMTOOL_SEAMS="")
    result = tmtool("preview", path, "--tiles", "--size", 200)
    assert result.exit_code == 2
    assert "does not say how far its tiles disagree" in result.stderr
    cells = np.array([[0, 1], [2, np.nan]], "<f2")
    said = {"rows": 2, "cols": 2, "top": -20, "left": 0, "step": 120, "unit": "std",
            "values": base64.b64encode(cells.tobytes()).decode()}  # fmt: skip
    with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dst:
        dst.update_tags(TMTOOL_SEAMS=json.dumps(said))
        assert parse_tile_map(dst.tags()) is not None
    assert tmtool("preview", path, "--size", 200).exit_code == 0
    plain = panel(path.with_suffix(".png"), 200, 200)
    assert tmtool("preview", path, "--tiles", "--size", 200).exit_code == 0
    shown = panel(path.with_suffix(".png"), 200, 200)
    darker = -shown[..., :3].astype(int).sum(axis=-1)
    assert darker[:100, :120].mean() < darker[:100, 121:].mean() < darker[101:, :120].mean()
    np.testing.assert_array_equal(shown[101:, 121:], plain[101:, 121:])
    assert (shown[100, :, :3] < 50).all(), "a line between the rows of tiles"


def test_spread_and_probabilities_of_draws(tmtool: Any, tmp_path: Path) -> None:
    from tmtool.pictures.product import Look, drawn, read_at

    spread = np.stack([np.full((40, 60), 2.0), np.linspace(0, 4, 2400).reshape(40, 60)]).astype(np.float32)
    path = product(tmp_path / "a_S1GRD_std.tif", spread, made("S1GRD", measure="std", samples=4))
    colours, legend = drawn(read_at(path, Look(64)), path, {})
    assert (legend.text, legend.low) == ("standard deviation, mean of 2 bands", "0")
    assert legend.high.endswith(" dB")
    assert colours[0, 0, 1] < colours[-1, -1, 1]
    share = np.zeros((10, 8, 8), np.float32)
    share[1] = 1
    path = product(tmp_path / "a_LULC_prob.tif", share, made("LULC", measure="prob", samples=4))
    colours, legend = drawn(read_at(path, Look(64)), path, {})
    np.testing.assert_allclose(colours[0, 0], drawing.rgb(LULC_CLASSES[1][1]))
    assert [colour for _, colour in legend.entries] == [colour for _, colour in LULC_CLASSES]
    path = product(tmp_path / "a_LULC_entropy.tif", share[:1] + 1, made("LULC", measure="entropy", samples=4))
    assert drawn(read_at(path, Look(64)), path, {})[1].text == "entropy"


def test_embeddings_together_have_the_same_axes(tmtool: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mix, shown = rng.normal(size=(20, 3)), []
    for i, shift in enumerate((0, 3)):
        values = np.einsum("dk,khw->dhw", mix, rng.normal(size=(3, 30, 30)) + shift).astype(np.float32)
        product(tmp_path / f"{i}_embed.tif", values, made("", "embed", layer=2), np.nan)
    for options in ((), ("--together",)):
        assert tmtool("preview", tmp_path, "--size", 30, *options).exit_code == 0
        shown.append([panel(tmp_path / f"{i}_embed.png", 30, 30)[..., :3].mean() for i in (0, 1)])
    (alone, other), (a, b) = shown
    assert abs(alone - other) < 12
    assert abs(a - b) > 25


def test_colours_of_each_kind() -> None:
    valid = np.ones((8, 8), bool)
    rising = np.linspace(0, 1, 64).reshape(1, 8, 8)
    colours, legend = drawing.index(rising, valid)
    assert legend.low == "-0.2"
    assert colours[-1, -1] == pytest.approx(drawing.rgb(drawing.NDVI_RAMP[-1]))
    colours, _ = drawing.radar(np.stack([np.full((8, 8), -30.0), np.full((8, 8), -40.0)]), valid)
    assert colours[..., :2].max() == 0
    bright = np.repeat(rising * 1000, 3, axis=0)
    bright[:, 0, :3] = 20_000  # a cloud
    colours, _ = drawing.true_colour(bright, valid)
    assert np.median(colours) > 0.25
    slope, _ = drawing.terrain(np.repeat(np.arange(8.0)[None, :, None], 8, axis=2), valid, 10)
    lit, _ = drawing.terrain(np.repeat(np.arange(8.0)[None, ::-1, None], 8, axis=2), valid, 10)
    assert slope[3].mean() > lit[4].mean()  # a slope that rises to the south faces the light
    level = drawing.terrain(np.full((1, 8, 8), 5.0), valid, 10)[0]
    hole = valid & (np.arange(8) < 5)
    shown, _ = drawing.terrain(np.where(hole, 5.0, -9999)[None], hole, 10)
    np.testing.assert_allclose(shown[hole], level[hole])  # no cliff beside a hole
    found, legend = drawing.probabilities(
        np.stack([1 - rising[0], rising[0]]), valid, ["land", "water"], drawing.PALETTE
    )
    assert legend.text == "probability of water"
    assert found[-1, -1] == pytest.approx(drawing.rgb(drawing.VIRIDIS[-1]))
    nothing = np.zeros((8, 8), bool)
    for made_ in (drawing.true_colour(bright, nothing), drawing.quantity(rising, nothing, "x")):
        assert np.isfinite(made_[0]).all()
    few = drawing.components_of(np.ones((5, 0)))
    assert np.isfinite(drawing.components(np.ones((5, 8, 8)), nothing, few)[0]).all()


def test_north_and_scale_only_where_they_are_known(tmp_path: Path) -> None:
    flat = Panel(np.full((60, 400, 3), 0.5), np.ones((60, 400), bool), drawing.Legend("text"))
    placed, nowhere = Sheet("t", (flat,), 10.0, True).image(), Sheet("t", (flat,)).image()
    assert placed.size == nowhere.size
    bottom = [np.asarray(image)[-24:, :, :3] for image in (placed, nowhere)]
    assert (bottom[0] != 255).any()
    assert (bottom[1] == 255).all()
    Sheet("a very long title " * 20, (flat,)).save(tmp_path / "x.png")
    assert (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("args", "text", "status"),
    [
        (("nowhere.tif",), "nowhere.tif: no such file", 2),
        (("x.zarr",), "preview shows rasters in GeoTIFF, not .zarr", 2),
        (("empty",), "empty: holds no product of tmtool in GeoTIFF", 2),
        (("good.tif", "--size", 4), "--size 4 is out of range", 2),
        (("good.tif", "--bbox", "10,20,11,21"), "--bbox 10,20,11,21 lies outside of it", 2),
        (("good.tif", "nowhere.tif"), "nowhere.tif: no such file", 1),
        (("good.tif", "--with", "nowhere.tif"), "nowhere.tif: no such file", 2),
    ],
)
def test_what_cannot_be_shown(
    tmtool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[Any, ...], text: str, status: int
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    product(Path("good.tif"), np.ones((1, 20, 30), np.float32))
    product(Path("empty/foreign.tif"), np.ones((1, 20, 30), np.float32))
    result = tmtool("preview", *args)
    assert result.exit_code == status
    assert text in result.stderr


def test_a_product_without_georeference(tmtool: Any, tmp_path: Path) -> None:
    path = product(
        tmp_path / "x.tif", np.arange(600, dtype=np.float32).reshape(1, 20, 30), crs=None, transform=Affine.identity()
    )
    assert tmtool("preview", path).exit_code == 0
    turned = product(
        tmp_path / "turned.tif",
        np.arange(600, dtype=np.float32).reshape(1, 20, 30),
        transform=TRANSFORM * Affine.rotation(20),
    )
    result = tmtool("preview", turned)
    assert result.stdout.strip() == str(turned.with_suffix(".png"))
    assert json.dumps(result.stderr) == '""'


def test_a_run_draws_what_it_made(tmtool: Any, tmp_path: Path) -> None:
    args = ("generate", SAMPLE, "--out", "LULC,NDVI", "--model", "demo", "--solver", "dpm", "--window", "0,0,96,96")
    result = tmtool(*args, "-o", tmp_path, "--preview", "--json", "--report", tmp_path / "report.json")
    assert result.exit_code == 0, result.stderr
    wanted = [str(tmp_path / f"demo_scene_{name}.png") for name in ("LULC", "NDVI")]
    assert json.loads(result.stdout)["pictures"] == wanted
    assert json.loads((tmp_path / "report.json").read_text())["scenes"][0]["pictures"] == wanted
    assert all(Path(path).exists() for path in wanted)
