"""Rasters and STAC items on a web server: read in ranges, each about once; retried where it breaks off, and nothing half-done left."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from tests.deliveries import CORNER, CRS, item
from tests.ranges import asked, served


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy; GDAL waits a moment only."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.05")


def big(path: Path, shape: tuple[int, int] = (512, 512)) -> np.ndarray:
    """Write a tiled raster whose blocks do not compress."""
    values = np.random.default_rng(0).integers(500, 3000, (12, *shape)).astype(np.uint16)
    profile = {
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "interleave": "band",
        "crs": CRS,
        "transform": CORNER,
    }
    with rasterio.open(
        path, "w", driver="GTiff", count=12, height=shape[0], width=shape[1], dtype="uint16", **profile
    ) as dst:
        dst.write(values)
    return values


def test_each_range_is_asked_for_about_once(tmtool: Any, identity: str, tmp_path: Path) -> None:
    folder, log = tmp_path / "www", tmp_path / "log"
    folder.mkdir()
    document, _ = item(folder)
    for i, asset in enumerate(k for k in document["assets"] if "eo:bands" in document["assets"][k]):
        band = Path(document["assets"][asset]["href"]).stem
        values = np.random.default_rng(i).integers(1200, 5000, (512, 768)).astype(np.uint16)
        profile = {"tiled": True, "blockxsize": 128, "blockysize": 128, "crs": CRS, "transform": CORNER}
        with rasterio.open(
            folder / f"{band}.tif", "w", driver="GTiff", count=1, height=512, width=768, dtype="uint16", **profile
        ) as dst:
            dst.write(values, 1)
    with served(folder, log) as url:
        args = ("--model", identity, "-o", tmp_path / "out", "--crop", 128, "--stride", 96)
        result = tmtool("embed", f"{url}/item.json", *args)
    assert result.exit_code == 0, result.stderr
    assert Path(result.stdout.strip()).name == "S2B_T19HCC_20240203_embed.tif" or "item" in result.stdout
    found = asked(log)
    for name in ("B02.tif", "B8A.tif", "B12.tif"):
        size = (folder / name).stat().st_size
        total = sum(len(span) for span in found[name])
        assert total < 1.6 * size, (name, total / size)  # a sample was read before
        assert max(found[name].count(span) for span in found[name]) <= 2
    assert "SCL.tif" not in found


def test_links_are_signed(tmtool: Any, identity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "www"
    folder.mkdir()
    document, _ = item(folder)
    monkeypatch.delenv("TMTOOL_SIGN", raising=False)
    with served(folder, tmp_path / "log") as url:
        for asset in document["assets"].values():
            asset["href"] = asset["href"].replace("./", f"{url}/")
        (tmp_path / "item.json").write_text(json.dumps(document))
        args = ("embed", tmp_path / "item.json", "--model", identity, "-o", tmp_path / "out")
        result = tmtool(*args, "--sign", "sed 's/$/?signed=yes/'")
        assert result.exit_code == 0, result.stderr
        assert "signed=yes" not in result.stderr
        assert b"signed=yes" not in Path(result.stdout.strip()).read_bytes()
        result = tmtool(*args, "--overwrite", "--sign", "echo no key >&2; exit 3")
    assert result.exit_code == 2
    assert "could not sign http://127.0.0.1" in result.stderr
    assert "no key" in result.stderr
    os.environ.pop("TMTOOL_SIGN", None)


def test_a_busy_server_is_asked_again(tmtool: Any, identity: str, tmp_path: Path) -> None:
    folder = tmp_path / "www"
    folder.mkdir()
    big(folder / "busy.tif", (64, 64))
    with served(folder, tmp_path / "log", "busy:2") as url:
        result = tmtool("embed", f"/vsicurl/{url}/busy.tif", "--model", identity, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(("cuts", "retries", "status"), [("cut:-1", 1, 1), ("cut:2", 3, 0)])
def test_what_breaks_off_is_retried_then_failed(
    tmtool: Any, identity: str, tmp_path: Path, cuts: str, retries: int, status: int
) -> None:
    folder = tmp_path / "www"
    folder.mkdir()
    big(folder / "scene.tif")
    with served(folder, tmp_path / "log", cuts) as url:
        path = f"/vsicurl/{url}/scene.tif"
        result = tmtool("embed", path, "--model", identity, "-o", tmp_path / "out", "--retries", retries)
    assert result.exit_code in ((1, 2) if status else (0,)), result.stderr
    left = [p.name for p in (tmp_path / "out").rglob("*")] if (tmp_path / "out").exists() else []
    assert left == ([] if status else ["scene_embed.tif"])
    if status:
        assert "is damaged or truncated; reading rows" in result.stderr


@pytest.mark.parametrize(("route", "text"), [("nowhere.json", "the server answers 404"), ("page.json", "is no JSON")])
def test_items_that_cannot_be_fetched(tmtool: Any, identity: str, tmp_path: Path, route: str, text: str) -> None:
    folder = tmp_path / "www"
    folder.mkdir()
    (folder / "page.json").write_text("<html>")
    with served(folder, tmp_path / "log") as url:
        result = tmtool("embed", f"{url}/{route}", "--model", identity, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert text in result.stderr
