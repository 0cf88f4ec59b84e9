"""`tmtool preview --html`: one file that asks for nothing, whose values are the products' own, and which is used by all."""

import base64
import hashlib
import io
import json
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import typer
from affine import Affine
from PIL import Image
from rasterio.enums import Resampling
from typer.testing import CliRunner

from tests.browser import started
from tests.conftest import ROOT, TRANSFORM
from tests.simple_models import FAILURES, registered
from tests.test_generate import s2
from tests.test_preview import made, product
from tests.web import MARK, PASSWORD, QUERY, USER
from tmtool.cli import app
from tmtool.errors import ReadError
from tmtool.pictures._packed import packed, picked

HOSTILE = '"><img src=x onerror="window.hacked=1"><script>window.hacked=1<&amp;'
RED, BLUE = (225, 87, 89), (0, 0, 255)


def preview(*args: object) -> Any:
    result = CliRunner().invoke(app, ["preview", *map(str, args)])
    if isinstance(result.exception, Exception) and not isinstance(result.exception, SystemExit | typer.Exit):
        raise result.exception
    return result


class Parts(HTMLParser):
    """The elements of a page: their attributes, and the text of each that has an id."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append((json.dumps(self.tags[-1][1]) if self.tags else "", data))

    def scripts(self, kind: str | None) -> list[str]:
        """Return the texts of script elements of a type."""
        texts, own = [], iter(re.findall(r"<script[^>]*>(.*?)</script>", self.rawdata_all, re.S))
        for tag, attrs in self.tags:
            if tag == "script":
                text = next(own)
                texts += [text] if attrs.get("type") == kind else []
        return texts

    def feed(self, data: str) -> None:
        self.rawdata_all = data
        super().feed(data)
        self.close()

    @property
    def facts(self) -> list[dict[str, Any]]:
        return json.loads(self.data("facts"))

    def data(self, name: str) -> str:
        found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', self.rawdata_all, re.S)
        assert found, name
        return found[1]

    def values(self, layer: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Return the values `(C, h, w)` that a layer holds, and their validity."""
        return unpacked(
            json.loads(self.data(f"data-{layer['key']}"))["values"], layer["type"], len(layer["bands"]), layer["shape"]
        )


def unpacked(text: str, kind: str, bands: int, shape: Any) -> tuple[np.ndarray, np.ndarray]:
    """Do what `unpacked` of page.js does."""
    held = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    size, count = np.dtype(kind).itemsize, bands * shape[0] * shape[1]
    words = np.ascontiguousarray(held[: count * size].reshape(size, count).T).view(f"u{size}").reshape(bands, *shape)
    values = np.add.accumulate(words, axis=-1, dtype=words.dtype).view(kind)
    return values, held[count * size :].reshape(shape) > 0


# ---- what lies in it ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of 300 x 500 px: an input, a product with overviews by means, classes, and tokens on coarser cells."""
    folder = tmp_path_factory.mktemp("folder")
    rng = np.random.default_rng(0)
    product(folder / "x.tif", rng.integers(1, 9000, (12, 300, 500)).astype(np.uint16))
    said = made("NDVI").with_details()
    state = {
        "inputs": {"S2L2A": "x.tif"},
        "input_states": {"S2L2A": f"{(folder / 'x.tif').stat().st_size} bytes, changed 1"},
    }
    values = rng.normal(size=(1, 300, 500)).astype(np.float32)
    values[:, 100:200, 300:] = np.nan
    (folder / "out").mkdir()
    path = product(
        folder / "out" / "x_NDVI.tif",
        values,
        type(said)(**{**vars(said), **state}),
        np.nan,
        tiled=True,
        blockxsize=128,
        blockysize=128,
    )
    with rasterio.open(path, "r+") as dst:
        dst.build_overviews([2, 4], Resampling.average)
    path = product(folder / "out" / "x_LULC.tif", rng.integers(0, 10, (1, 300, 500)).astype(np.uint8), made("LULC"), 0)
    with rasterio.open(path, "r+") as dst:
        dst.update_tags(1, **{f"CLASS_{i}": f"class {i}" if i < 9 else HOSTILE for i in range(10)})
    cells = rng.integers(0, 15_360, (1, 19, 32)).astype(np.uint16)
    product(
        folder / "out" / "x_S2L2A_tokens.tif",
        cells,
        made("S2L2A", "tokenize", codebook="8-8-8-6-5"),
        65535,
        transform=TRANSFORM * Affine.scale(16),
    )
    return folder


def test_values_are_those_of_true_pixels(folder: Path, tmp_path: Path) -> None:
    result = preview(folder / "out", "--html", tmp_path / "page.html", "--size", 90)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{tmp_path / 'page.html'}\n", "")
    assert not list(folder.rglob("*.png"))
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    page = Parts(tmp_path / "page.html")
    (scene,) = page.facts
    assert scene["name"] == "x"
    assert [layer["name"] for layer in scene["layers"]] == ["input S2L2A: x.tif", "x_LULC", "x_NDVI", "x_S2L2A_tokens"]
    for layer in scene["layers"]:
        path = folder / "x.tif" if layer["input"] else folder / "out" / f"{layer['name']}.tif"
        row, col, height, width = layer["part"]
        rows, cols = picked(layer["shape"][0], row, height), picked(layer["shape"][1], col, width)
        with rasterio.open(path, overview_level=None) as src:
            assert (height, width) == src.shape
            wanted, valid = src.read()[:, rows][:, :, cols], src.read_masks(1)[rows][:, cols] > 0
        found, there = page.values(layer)
        np.testing.assert_array_equal(there, valid)
        np.testing.assert_array_equal(np.where(there, found, 0), np.where(valid, wanted, 0))
        assert layer["shape"] == ([19, 32] if "tokens" in layer["name"] else [54, 90])
    assert scene["layers"][3]["box"] == [0, 0, 512, 304]
    assert scene["layers"][3]["names"] == {}


def test_a_part_and_an_input_on_another_grid(folder: Path, tmp_path: Path) -> None:
    """A part is counted in pixels of the file; an input in degrees is warped to it, in values of its own."""
    rng = np.random.default_rng(1)
    with rasterio.open(folder / "out" / "x_NDVI.tif") as src:
        west, south, east, north = rasterio.warp.transform_bounds(src.crs, "EPSG:4326", *src.bounds)
    own = rng.integers(1, 9000, (12, 60, 90)).astype(np.uint16)
    place = Affine((east - west) / 90, 0, west, 0, (south - north) / 60, north)
    other = product(tmp_path / "degrees.tif", own, crs="EPSG:4326", transform=place)
    west, north = TRANSFORM * (100, 50)
    box = f"{west},{north - 1000},{west + 2000},{north}@EPSG:32719"
    result = preview(
        folder / "out" / "x_NDVI.tif", "--html", tmp_path / "p.html", "--with", other, "--bbox", box, "--size", 200
    )
    assert result.exit_code == 0, result.stderr
    page = Parts(tmp_path / "p.html")
    warped, ndvi = page.facts[0]["layers"]
    assert ndvi["part"] == [50, 100, 100, 200]
    assert ndvi["box"] == [100, 50, 300, 150]
    with rasterio.open(folder / "out" / "x_NDVI.tif") as src:
        wanted = src.read(window=((50, 150), (100, 300)))
    found, valid = page.values(ndvi)
    np.testing.assert_array_equal(found, np.where(valid, wanted, 0))
    assert "EPSG:4326" in warped["warped"]
    assert warped["box"] == pytest.approx(ndvi["box"])
    found, valid = page.values(warped)
    pixels = {tuple(pixel) for pixel in own.reshape(12, -1).T.tolist()}
    assert valid.mean() > 0.9
    assert {tuple(pixel) for pixel in found[:, valid].T.tolist()} <= pixels
    assert len(np.unique(found[0][valid])) > 200


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "float32", "float64"])
def test_packing_loses_nothing(kind: str) -> None:
    rng = np.random.default_rng(2)
    bits = rng.integers(0, 256, (2, 5, 7 * np.dtype(kind).itemsize), np.uint8).view(kind)
    values = np.where(np.isfinite(bits), bits, bits.dtype.type(0))
    valid = rng.random((5, 7)) > 0.3
    name, text = packed(values, valid)
    found, there = unpacked(text, name, 2, (5, 7))
    assert name == kind
    np.testing.assert_array_equal(there, valid)
    assert found[:, valid].tobytes() == values[:, valid].tobytes()
    assert packed(np.array([[[1.0, 300.0]]], np.float32), np.ones((1, 2), bool))[0] == "int16"
    assert packed(np.array([[[-0.0, 300.0]]], np.float32), np.ones((1, 2), bool))[0] == "float32"


def test_it_asks_for_nothing_and_runs_its_own_scripts_only(folder: Path, tmp_path: Path) -> None:
    preview(folder / "out", "--html", tmp_path / "page.html", "--size", 32)
    page = Parts(tmp_path / "page.html")
    for tag, attrs in page.tags:
        for name in ("src", "href", "action", "data", "srcset"):
            assert (attrs.get(name) or "data:").startswith("data:"), (tag, attrs)
        assert not any(name.startswith("on") or name == "style" for name in attrs), (tag, attrs)
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    own = page.scripts(None)
    assert len(own) == 2
    for text in own:
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert "OpenLayers Contributors" in own[0]
    assert "Redistributions in binary form must reproduce" in own[0]
    patterns = re.search(r'"tmtool.pictures" = \[(.*)\]', (ROOT / "pyproject.toml").read_text())
    assert patterns is not None
    shipped = {
        path.name
        for pattern in re.findall(r'"(.*?)"', patterns[1])
        for path in (ROOT / "tmtool/pictures").glob(pattern)
    }
    assert shipped == {"ol.js", "ol.LICENSE", "page.css", "page.html", "page.js"}


def test_names_and_texts_are_inert_and_without_secrets(tmp_path: Path) -> None:
    name = f"{HOSTILE.replace('/', '')}"
    said = made("NDVI", note=HOSTILE)
    said = type(said)(**{**vars(said), "inputs": {"S2L2A": f"{HOSTILE}.tif"}})
    path = product(tmp_path / f"{name}_NDVI.tif", np.ones((1, 20, 30), np.float32), said)
    with rasterio.open(path, "r+") as dst:
        dst.set_band_description(1, "</script><script>window.hacked=1</script>")
    secret = f"/vsicurl/https://{USER}:{PASSWORD}@host/scene.tif?{QUERY}"
    scenes = [
        {
            "status": HOSTILE,
            "inputs": {"S2L2A": f"{secret}.tif"},
            "products": {"NDVI": str(path)},
            "warnings": [f"{secret}: {HOSTILE}"],
        },
        {"status": "failed", "inputs": [secret], "products": {}, "error": {"message": f"{secret}: {HOSTILE}"}},
    ]
    (tmp_path / "r.json").write_text(json.dumps({"scenes": scenes}))
    result = preview(path, "--html", tmp_path / "page.html", "--report", tmp_path / "r.json")
    assert result.exit_code == 0, result.stderr
    page = Parts(tmp_path / "page.html")
    assert [tag for tag, _ in page.tags].count("script") == 4  # facts, one layer, the map and the page's own
    assert {attrs.get("src", "data:")[:5] for tag, attrs in page.tags if tag == "img"} == {"data:"}
    assert not any(attrs.get("onerror") for _, attrs in page.tags)
    assert MARK not in page.rawdata_all
    assert page.rawdata_all.count("https://host/scene.tif") == 2  # in the note and in the error
    assert page.facts[0]["layers"][0]["name"] == f"{name}_NDVI"
    texts = "".join(text for _, text in page.texts)
    assert f"The input {HOSTILE}.tif was not found" in texts


def test_metrics_of_the_report_and_provenance(folder: Path, tmp_path: Path) -> None:
    bands = {"NDVI": {"mae": 0.12345678, "psnr": None}}
    scene = {"status": "done", "inputs": {"S2L2A": "/elsewhere/x.tif"}, "products": {"NDVI": "/elsewhere/x_NDVI.tif"}}
    (tmp_path / "r.json").write_text(
        json.dumps({"scenes": [scene | {"measured": {"NDVI": {"pixels": 4711, "bands": bands}}}]})
    )
    result = preview(folder / "out", "--html", tmp_path / "page.html", "--report", tmp_path / "r.json", "--size", 32)
    assert result.exit_code == 0, result.stderr
    page = Parts(tmp_path / "page.html")
    assert len(page.facts) == 1  # by its name: the folder was moved, and the others lie beside it
    about = re.search(r'id="about-0-2".*?</section>', page.rawdata_all, re.S)
    assert about is not None
    for words in (
        "<dd>4711</dd>",
        "<td>0.1235</td><td>–</td>",
        "<dt>task</dt><dd>generate</dd>",
        "<dt>modality</dt><dd>NDVI</dd>",
    ):
        assert words in about[0]
    other = re.search(r'id="about-0-1".*?</section>', page.rawdata_all, re.S)
    assert other is not None
    assert "No report has metrics of it" in other[0]


def test_an_input_that_changed_is_not_shown(folder: Path, tmp_path: Path) -> None:
    for name in ("x_NDVI.tif", "x_LULC.tif"):
        (tmp_path / name).write_bytes((folder / "out" / name).read_bytes())
    product(tmp_path / "x.tif", np.ones((12, 300, 500), np.uint8))
    assert preview(tmp_path, "--html", tmp_path / "page.html", "--size", 32).exit_code == 0
    page = Parts(tmp_path / "page.html")
    assert [layer["name"] for layer in page.facts[0]["layers"]] == ["x_LULC", "x_NDVI"]
    assert "The input x.tif was not found beside the product" in page.rawdata_all


def test_grids_that_cannot_be_laid_over_each_other(tmp_path: Path) -> None:
    ones = np.ones((1, 20, 30), np.float32)
    product(tmp_path / "x_NDVI.tif", ones, made("NDVI"), transform=TRANSFORM * Affine.rotation(20))
    product(tmp_path / "x_DEM.tif", ones, made("DEM"))
    product(tmp_path / "y_DEM.tif", ones, made("DEM"), crs=None, transform=Affine.identity())
    assert preview(tmp_path, "--html", tmp_path / "page.html").exit_code == 0
    x, y = Parts(tmp_path / "page.html").facts
    assert [layer["name"] for layer in x["layers"]] == ["x_DEM"]
    assert y["crs"] == ""
    assert "x_NDVI lies on another grid than x_DEM" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("args", "text", "status"),
    [
        (
            ("good.tif", "--html", "other.tif"),
            "--html other.tif: give the name of the page to write, ending in .html",
            2,
        ),
        (("good.tif", "--html", "folder.html"), "--html folder.html: give the name of the page", 2),
        (("good.tif", "--html", "nowhere/page.html"), "nowhere/page.html: cannot be written (No such file", 2),
        (("good.tif", "--report", "r.json"), "--report r.json: is for a page; give --html PAGE.html too", 2),
        (
            ("good.tif", "--html", "page.html", "--report", "none.json"),
            "--report none.json: cannot be read (No such",
            2,
        ),
        (("good.tif", "--html", "page.html", "--report", "good.tif"), "--report good.tif: is no report of a run", 2),
        (("good.tif", "--html", "page.html", "--report", "list.json"), "--report list.json: is no report of a run", 2),
        (("empty", "--html", "page.html"), "empty: holds no product of tmtool in GeoTIFF", 2),
        (("cut.tif", "--html", "page.html"), "cut.tif: is damaged or truncated", 2),
        (("complex.tif", "--html", "page.html"), "complex.tif: values are complex (complex64)", 2),
        (("cut.tif", "good.tif", "--html", "page.html"), "cut.tif: is damaged or truncated", 1),
    ],
)
def test_what_makes_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], text: str, status: int
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "folder.html"):
        Path(name).mkdir()
    product(Path("good.tif"), np.ones((1, 20, 30), np.float32))
    product(Path("complex.tif"), np.ones((1, 20, 30), np.complex64))
    product(Path("cut.tif"), np.random.default_rng(0).random((1, 200, 300)).astype(np.float32))
    Path("cut.tif").write_bytes(Path("cut.tif").read_bytes()[:90_000])
    Path("list.json").write_text('{"scenes": [{"status": "done"}]}')
    good = Path("good.tif").read_bytes()
    result = preview(*args)
    assert result.exit_code == status
    assert text in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2
    assert Path("good.tif").read_bytes() == good
    assert {p.name for p in tmp_path.glob("*page*")} == ({"page.html"} if status == 1 else set())
    if status == 1:
        assert "cut.tif: is damaged or truncated" in Path("page.html").read_text()
        assert [len(scene["layers"]) for scene in Parts(Path("page.html")).facts] == [0, 1]


# ---- how it is used ----


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with started() as browser:
        yield browser


class Tab:
    """A page in a tab of the browser, and all that it asked for but what lies in it."""

    def __init__(self, browser: Any, path: Path, width: int = 1200, scheme: str = "light") -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.asked: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.goto(path.as_uri())
        self.uri = path.as_uri()

    def __enter__(self) -> "Tab":
        return self

    def __exit__(self, *error: object) -> None:
        if not error[0]:
            assert self.errors == []
            assert [url for url in self.asked if not url.startswith("data:")] == [self.uri]
        self.page.close()

    def at(self, across: float, down: float) -> tuple[float, float]:
        """Return where on the screen a share of the map's width and height lies."""
        box = self.page.locator("#stage").bounding_box()
        return box["x"] + across * box["width"], box["y"] + down * box["height"]

    def colour(self, across: float, down: float) -> tuple[int, ...]:
        """Return the colour of the map at a share of its width and height."""
        x, y = self.at(across, down)
        shot = self.page.screenshot(clip={"x": x, "y": y, "width": 1, "height": 1})
        return Image.open(io.BytesIO(shot)).convert("RGB").getpixel((0, 0))

    def shows(self, colour: tuple[int, ...], across: float, down: float = 0.5) -> bool:
        """Whether the map gets a colour at a share of its width and height, within rounding."""
        return eventually(lambda: max(abs(np.subtract(self.colour(across, down), colour))) <= 1)

    def readings(self) -> list[tuple[str, str, dict[str, str]]]:
        """Return name, place and values of the layers under the pointer, once they are unpacked."""
        script = """() => [...document.querySelectorAll("#readings section")].map((part) => [
            part.querySelector("h3").textContent, part.querySelector("p").textContent,
            Object.fromEntries([...part.querySelectorAll("dl div")].map((pair) => [...pair.children].map((c) => c.textContent)))])"""
        found: list[Any] = []

        def unpacked() -> bool:
            found[:] = self.page.evaluate(script)
            return bool(found) and all(values for _, _, values in found)

        assert eventually(unpacked), found
        return [tuple(one) for one in found]


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether something holds within ten seconds: a browser draws and unpacks when it can."""
    end = time.monotonic() + 10
    while not (done := holds()) and time.monotonic() < end:
        time.sleep(0.03)
    return done


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of an input that is blue everywhere, and a class that is red everywhere."""
    folder = tmp_path_factory.mktemp("plain")
    values = np.full((12, 120, 200), 1000, np.uint16)
    values[1] = 10_000
    values[1, 0, :50] = 9000
    product(folder / "s.tif", values)
    path = product(folder / "s_LULC.tif", np.full((1, 120, 200), 3, np.uint8), made("LULC"), 0)
    with rasterio.open(path, "r+") as dst:
        dst.write_colormap(1, dict.fromkeys(range(10), (*RED, 255)))
    assert preview(folder / "s_LULC.tif", "--html", folder / "page.html", "--with", folder / "s.tif").exit_code == 0
    return folder / "page.html"


def test_the_swipe_moves_by_pointer_and_by_keys(browser: Any, plain: Path) -> None:
    with Tab(browser, plain) as tab:
        handle = tab.page.get_by_role("slider", name="Swipe")
        assert tab.shows(BLUE, 0.4)
        assert tab.shows(RED, 0.6)
        tab.page.mouse.move(*tab.at(0.5, 0.3))
        tab.page.mouse.down()
        tab.page.mouse.move(*tab.at(0.3, 0.35), steps=3)
        tab.page.mouse.up()
        assert handle.get_attribute("aria-valuenow") == "30"
        assert tab.shows(RED, 0.4)
        assert tab.shows(BLUE, 0.2)
        tab.page.mouse.move(*tab.at(0.8, 0.5))  # let go of, it stays
        assert handle.get_attribute("aria-valuenow") == "30"
        for key, there in (
            ("ArrowRight", 31),
            ("ArrowLeft", 30),
            ("Shift+ArrowLeft", 20),
            ("PageUp", 30),
            ("End", 100),
            ("Home", 0),
            ("ArrowLeft", 0),
        ):
            handle.press(key)
            assert int(handle.get_attribute("aria-valuenow")) == there, key
        assert tab.shows(RED, 0.2)
        handle.press("End")
        assert tab.shows(BLUE, 0.8)
        assert "s_LULC on the right" in handle.get_attribute("aria-valuetext")
        handle.press("Home")
        tab.page.get_by_label("Opacity of the right").press("Home")
        assert tab.shows(BLUE, 0.6)
        tab.page.locator("#left").select_option("s_LULC")
        assert tab.shows(RED, 0.6)


PLACES = ((0.31, 0.2), (0.5, 0.5), (0.62, 0.81), (0.66, 0.45))


@pytest.mark.parametrize(("size", "places"), [(90, PLACES), (1024, PLACES[2:])])
def test_the_value_under_the_pointer_is_the_files(
    browser: Any, folder: Path, tmp_path: Path, size: int, places: Any
) -> None:
    assert preview(folder / "out", "--html", tmp_path / "page.html", "--size", size).exit_code == 0
    with Tab(browser, tmp_path / "page.html") as tab:
        width, height = (tab.page.locator("#stage").bounding_box()[side] for side in ("width", "height"))
        scale = max(
            500 / (width - 10), 300 / (height - 10)
        )  # px of the scene for one of the screen, less border and padding
        seen = set()
        for name in ("x_NDVI", "x_LULC", "x_S2L2A_tokens"):
            tab.page.locator("#right").select_option(name)
            for across, down in places:
                tab.page.mouse.move(*tab.at(across, down))
                (left, below, bands), (right, where, values) = tab.readings()
                assert (left, right) == ("input S2L2A: x.tif", name)
                row, col, x, y = (float(word) for word in re.findall(r"-?\d+(?:\.\d+)?", where.split("(")[0]))
                with rasterio.open(folder / "out" / f"{name}.tif") as src:
                    assert src.xy(row, col) == (x, y)
                    value, valid = (array[int(row), int(col)] for array in (src.read(1), src.read_masks(1)))
                    cell = src.transform.a / 10
                ((_, said),) = values.items()
                seen.add(name if valid else "no data")
                if not valid:
                    assert said == "no data"
                else:
                    word, _, rest = said.partition(" ")
                    assert src.dtypes[0] == "uint16" or rest == {
                        "x_LULC": f"class {value}" if value < 9 else HOSTILE
                    }.get(name, "")
                    assert np.dtype(src.dtypes[0]).type(word) == value
                there = 250 + (across - 0.5) * width * scale, 150 + (down - 0.5) * height * scale
                coarse = max(cell, 500 / size) + scale
                assert abs((col + 0.5) * cell - there[0]) < coarse
                assert abs((row + 0.5) * cell - there[1]) < coarse
                row, col = (int(word) for word in re.findall(r"\d+", below)[:2])
                with rasterio.open(folder / "x.tif") as src:
                    assert [int(text.split()[0]) for text in bands.values()] == src.read()[:, row, col].tolist()
        assert seen == {"x_NDVI", "x_LULC", "x_S2L2A_tokens", "no data"}


def test_numbers_of_all_types(browser: Any, tmp_path: Path) -> None:
    """Each is a scene of its own, as nothing says what it is; alone, a raster is swiped with itself."""
    kinds = ("float64", "int16", "int64", "int8", "uint32")
    rng, wanted = np.random.default_rng(3), {}
    for kind in kinds:
        values = rng.integers(-(2**63), 2**63 - 1, (1, 20, 30)).astype(np.int64).view("u8").astype(kind)
        values = rng.normal(size=(1, 20, 30)) * 1e-9 if kind == "float64" else values
        product(tmp_path / f"{kind}.tif", values)
        wanted[kind] = values[0]
    paths = [tmp_path / f"{kind}.tif" for kind in kinds]
    assert preview(*paths, "--html", tmp_path / "page.html").exit_code == 0
    with Tab(browser, tmp_path / "page.html") as tab:
        for kind in kinds:
            tab.page.get_by_role("button", name=kind, exact=True).click()
            tab.page.mouse.move(*tab.at(0.45, 0.4))
            ((name, where, values),) = tab.readings()
            assert name == kind
            row, col = (int(word) for word in re.findall(r"\d+", where)[:2])
            read = float if kind == "float64" else int
            assert read(values["band 1"]) == wanted[kind][row, col]


def test_the_map_is_read_by_keys(browser: Any, folder: Path, tmp_path: Path) -> None:
    assert preview(folder / "out", "--html", tmp_path / "page.html", "--size", 100).exit_code == 0
    with Tab(browser, tmp_path / "page.html") as tab:
        tab.page.locator("#left").focus()
        order = []
        for _ in range(9):
            order.append(tab.page.evaluate("document.activeElement.id"))
            tab.page.keyboard.press("Tab")
        assert order[:8] == ["left", "right", "opacity", "nearer", "farther", "whole", "map", "handle"]
        tab.page.locator("#nearer").press("Enter")
        tab.page.locator("#map").press("ArrowRight")
        spoken = tab.page.locator("[aria-live=polite]")
        assert eventually(lambda: "x_LULC, row" in spoken.text_content())
        assert tab.page.locator("#cross").is_visible()

        def column() -> int:
            return int(re.findall(r"\d+", tab.readings()[0][1])[1])

        before = column()
        tab.page.locator("#map").press("ArrowRight")
        assert eventually(lambda: column() > before)
        tab.page.mouse.move(*tab.at(0.4, 0.4))
        assert not tab.page.locator("#cross").is_visible()


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of six scenes that ran, of which one failed."""
    folder = tmp_path_factory.mktemp("six")
    for i in range(6):
        product(folder / f"{i}.tif", s2(40, 40 + i))
    FAILURES.update({"raise": ReadError("the last scene is damaged"), "at": 6})
    with registered() as name:
        args = [
            "generate",
            str(folder),
            "--out",
            "S1GRD",
            "--model",
            name,
            "-o",
            str(folder / "out"),
            "--report",
            str(folder / "r.json"),
        ]
        result = CliRunner().invoke(app, args)
        assert result.exit_code == 1, result.stderr
    return folder


def test_six_scenes_are_listed_with_their_states(browser: Any, six: Path) -> None:
    assert preview(six / "out", "--html", six / "page.html", "--report", six / "r.json").exit_code == 0
    with Tab(browser, six / "page.html") as tab:
        entries = tab.page.get_by_role("navigation", name="Scenes").get_by_role("listitem").all()
        found = {e.locator(".name").text_content(): e.locator(".state").text_content() for e in entries}
        wanted = {base: scene["status"] for base, scene in reported(six).items()}
        assert found == wanted
        assert sorted(found.values()).count("done") == 5
        bad = tab.page.get_by_role("listitem").filter(has_text="5.tif")
        assert reported(six)["5.tif"]["error"]["message"] in bad.text_content()
        assert bad.get_by_role("button").count() == 0
        assert tab.page.locator("#counts").text_content().startswith("5 done, 1 failed")
        button = tab.page.get_by_role("button", name="4.tif")
        button.press("Enter")
        assert button.get_attribute("aria-current") == "true"
        assert [o.text_content() for o in tab.page.locator("#right option").all()] == ["input S2L2A: 4.tif", "4_S1GRD"]
        tab.page.mouse.move(*tab.at(0.5, 0.4))
        (left, _, _), (right, _, values) = tab.readings()
        assert (left, right) == ("input S2L2A: 4.tif", "4_S1GRD")
        assert values["VV"].endswith(" dB")


def reported(six: Path) -> dict[str, Any]:
    scenes = json.loads((six / "r.json").read_text())["scenes"]
    inputs = (s["inputs"] for s in scenes)
    names = [Path((i if isinstance(i, list) else list(i.values()))[0]).name for i in inputs]
    return dict(zip(names, scenes, strict=True))


def test_a_hostile_name_does_nothing(browser: Any, tmp_path: Path) -> None:
    name = HOSTILE.replace("/", "")
    for suffix in ("NDVI", "LULC"):
        path = product(tmp_path / f"{name}_{suffix}.tif", np.ones((1, 20, 30), np.uint8), made(suffix, note=HOSTILE))
        with rasterio.open(path, "r+") as dst:
            dst.set_band_description(1, HOSTILE)
            dst.update_tags(1, CLASS_0="no", CLASS_1=HOSTILE)
    assert preview(tmp_path, "--html", tmp_path / f"{HOSTILE[:9]}.html").exit_code == 0
    with Tab(browser, tmp_path / f"{HOSTILE[:9]}.html") as tab:
        tab.page.mouse.move(*tab.at(0.5, 0.4))
        _, (layer, _, values) = tab.readings()
        assert layer == f"{name}_NDVI"
        assert values == {HOSTILE: f"1 {HOSTILE}"}
        assert eventually(lambda: HOSTILE in tab.page.locator("#spoken").text_content())
        assert tab.page.evaluate("window.hacked") is None


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const parse = (text) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const under = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  return [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() && !e.closest("svg") &&
      [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())).map((e) => {
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(under(e))];
    return [e.tagName + "." + e.className, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_and_a_narrow_window_is_enough(browser: Any, six: Path, scheme: str) -> None:
    assert preview(six / "out", "--html", six / "page.html", "--report", six / "r.json").exit_code == 0
    with Tab(browser, six / "page.html", width=340, scheme=scheme) as tab:
        tab.page.mouse.move(*tab.at(0.4, 0.4))
        tab.readings()
        found = tab.page.evaluate(CONTRAST)
        assert len(found) > 40
        assert {name for name, ratio in found if ratio < 4.5} == set()
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 340
        dark = tab.page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark == (scheme == "dark")
