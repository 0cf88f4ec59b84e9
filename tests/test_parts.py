"""Parts of a scene, areas of interest, and tiles that are pinned to the grid: the same bits as in the whole."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine

from tests.conftest import ROOT, TRANSFORM
from tmtool.grid import OutputSpec, Window
from tmtool.settings import Tiling
from tmtool.tiles.plan import TilePlan

SAMPLE = ROOT / "samples" / "demo_scene.tif"
TILES = ("--crop", 96, "--stride", 48, "--precision", "fp32", "--batch-size", 4)
DEMO = ("--model", "demo", "--timesteps", 2)
SIZE = (300, 340)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, Affine]:
    """A part of the sample, its pixels and its affine."""
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    with rasterio.open(SAMPLE) as src:
        window = rasterio.windows.Window(40, 60, SIZE[1], SIZE[0])
        values, transform = src.read(window=window), src.window_transform(window)
        crop(path, values, transform, src.crs)
    return path, values, transform


def crop(path: Path, values: np.ndarray, transform: Affine, crs: Any, row: int = 0, col: int = 0, **size: int) -> Path:
    """Write a crop of some pixels."""
    part = values[:, row : row + size.get("height", SIZE[0]), col : col + size.get("width", SIZE[1])]
    profile = {"crs": crs, "transform": transform * Affine.translation(col, row), "dtype": part.dtype, "nodata": 0}
    with rasterio.open(
        path, "w", driver="GTiff", count=len(part), height=part.shape[1], width=part.shape[2], **profile
    ) as dst:
        dst.write(part)
    return path


def made(tmtool: Any, out: Path, *args: Any) -> dict[str, Any]:
    result = tmtool(*args, *TILES, "-o", out, "--json")
    assert result.exit_code == 0, result.stderr
    facts: dict[str, Any] = json.loads(result.stdout)
    return facts


def read(path: str | Path, window: Window | None = None) -> np.ndarray:
    with rasterio.open(path) as src:
        box = None if window is None else rasterio.windows.Window(window.col, window.row, window.width, window.height)
        values: np.ndarray = src.read(window=box)
    return values


@pytest.fixture(scope="module")
def whole(scene: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The products of the whole scene, by command and name."""
    from tmtool import embed, generate, reconstruct, tokenize

    how: Any = {"model": "demo", "crop": 96, "stride": 48, "precision": "fp32", "batch_size": 4}
    path = scene[0]
    generated = generate(path, ["LULC", "S1GRD"], timesteps=2, **how)
    tokens = tokenize(path, **how)
    return {
        "LULC": generated.LULC.to_numpy()[None],
        "S1GRD": generated.S1GRD.to_numpy(),
        "S2L2A_tokens": tokens.S2L2A_tokens.to_numpy()[None],
        "S2L2A_rec": reconstruct(path, timesteps=2, **how).S2L2A_rec.to_numpy(),
        "embed": embed(path, **how)["embed"].to_numpy(),
    }


@pytest.mark.parametrize("box", [(100, 70, 130, 90), (0, 0, 20, 10), (331, 290, 9, 10), (47, 3, 200, 290)])
def test_a_window_is_that_part_of_the_whole(
    tmtool: Any, scene: Any, whole: dict[str, np.ndarray], tmp_path: Path, box: tuple[int, ...]
) -> None:
    path, _, transform = scene
    col, row, width, height = box
    facts = made(tmtool, tmp_path, "generate", path, "--out", "LULC,S1GRD", *DEMO, "--window", ",".join(map(str, box)))
    for name in ("LULC", "S1GRD"):
        found = read(facts["products"][name])
        np.testing.assert_array_equal(found, whole[name][:, row : row + height, col : col + width])
        with rasterio.open(facts["products"][name]) as src:
            assert src.transform == transform * Affine.translation(col, row)
            said = json.loads(src.tags()["TMTOOL_PROVENANCE"])
            assert (said["read"], said["whole"]) == ({"part": list(box)}, list(whole["LULC"].shape[:0:-1]))
    assert facts["tiles"] <= 49


def test_cells_are_made_whole(tmtool: Any, scene: Any, whole: dict[str, np.ndarray], tmp_path: Path) -> None:
    path, _, transform = scene
    window = ("--window", "100,70,130,90")
    tokens = made(tmtool, tmp_path / "t", "tokenize", path, "--model", "demo", *window)["products"]["S2L2A_tokens"]
    vectors = made(tmtool, tmp_path / "e", "embed", path, "--model", "demo", *window)["products"]["embed"]
    for found, name in ((tokens, "S2L2A_tokens"), (vectors, "embed")):
        np.testing.assert_array_equal(read(found), whole[name][:, 4:10, 6:15])
        with rasterio.open(found) as src:
            assert src.transform == transform * Affine.translation(96, 64) * Affine.scale(16)
    rec = made(tmtool, tmp_path / "r", "reconstruct", path, *DEMO, *window)
    np.testing.assert_array_equal(read(rec["products"]["S2L2A_rec"]), whole["S2L2A_rec"][:, 70:160, 100:230])
    assert rec["measured"]
    again = made(tmtool, tmp_path / "again", "reconstruct", tokens, *DEMO)["products"]["S2L2A_rec"]
    with rasterio.open(again) as src:
        assert (src.shape, src.transform) == ((96, 144), transform * Affine.translation(96, 64))


def test_a_part_in_degrees_and_in_metres(tmtool: Any, scene: Any, tmp_path: Path) -> None:
    path, _, transform = scene
    with rasterio.open(path) as src:
        west, north = transform * (100, 70)
        east, south = transform * (230, 160)
        crs = src.crs
    box = f"{west},{south},{east},{north}@{crs.to_string()}"
    lons, lats = rasterio.warp.transform(crs, "EPSG:4326", [west + 5, east - 5], [north - 5, south + 5])
    for text in (box, f"{min(lons)},{min(lats)},{max(lons)},{max(lats)}"):
        facts = made(tmtool, tmp_path / text[:7], "tokenize", path, "--model", "demo", "--bbox", text)
        with rasterio.open(facts["products"]["S2L2A_tokens"]) as src:
            assert src.transform == transform * Affine.translation(96, 64) * Affine.scale(16)
            assert src.shape[1] == 9
            assert src.shape[0] in (6, 7)  # a box in degrees is a little larger in metres


def shapes(path: Path, transform: Affine, crs: str, *boxes: tuple[int, int, int, int]) -> Path:
    """Write triangles over boxes of pixels (col, row, width, height)."""
    rings = []
    for col, row, width, height in boxes:
        corners = [transform * at for at in ((col, row), (col + width, row), (col, row + height))]
        xs, ys = rasterio.warp.transform(crs, "EPSG:4326", *zip(*corners, strict=True))
        rings.append([*zip(xs, ys, strict=True), (xs[0], ys[0])])
    features = [
        {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [r]}} for r in rings
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def test_an_area_of_interest(tmtool: Any, scene: Any, whole: dict[str, np.ndarray], tmp_path: Path) -> None:
    path, _, transform = scene
    with rasterio.open(path) as src:
        crs = src.crs.to_string()
    aoi = shapes(tmp_path / "aoi.geojson", transform, crs, (20, 10, 70, 60), (250, 200, 60, 80))
    facts = made(tmtool, tmp_path / "out", "generate", path, "--out", "LULC,S1GRD", *DEMO, "--aoi", aoi)
    assert facts["empty_tiles"] > facts["tiles"] / 2
    with rasterio.open(facts["products"]["S1GRD"]) as src:
        found, valid = src.read(), src.read_masks(1) > 0
        col, row = (round(v) for v in ~transform * (src.transform.c, src.transform.f))
        assert (col, row) == (20, 10)
    inside = rasterio.features.geometry_mask(
        [f["geometry"] for f in _projected(aoi, crs)], valid.shape, src.transform, invert=True
    )
    had = whole["S1GRD"][:, row : row + valid.shape[0], col : col + valid.shape[1]]
    np.testing.assert_array_equal(valid, inside & np.isfinite(had[0]))
    np.testing.assert_array_equal(found[:, valid], had[:, valid])  # what lies around is seen all the same


def _projected(path: Path, crs: str) -> list[dict[str, Any]]:
    features: list[dict[str, Any]] = json.loads(path.read_text())["features"]
    return [f | {"geometry": rasterio.warp.transform_geom("EPSG:4326", crs, f["geometry"])} for f in features]


def test_a_small_area_costs_its_share(tmtool: Any, scene: Any, tmp_path: Path) -> None:
    path, _, transform = scene
    with rasterio.open(path) as src:
        crs = src.crs.to_string()
    aoi = shapes(tmp_path / "aoi.geojson", transform, crs, (100, 100, 60, 60))  # 1.8 % of the scene
    facts = made(tmtool, tmp_path / "out", "embed", path, "--model", "demo", "--aoi", aoi)
    assert facts["tiles"] - facts["empty_tiles"] <= 9  # of 77; a tile reaches beyond a small area


# --- Pinned to the grid ---


OVERLAPPING = {  # row, col, height, width
    "crops": {"a": (0, 0, 270, 290), "b": (37, 51, 263, 289)},
    "neighbours": {"a": (0, 0, 300, 290), "b": (0, 61, 300, 279)},
}


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (("generate", "--out", "LULC,S1GRD", *DEMO), "crops"),
        (("generate", "--out", "LULC,S1GRD", *DEMO), "neighbours"),
        (("embed", "--model", "demo"), "crops"),
    ],
)
def test_overlapping_scenes_agree_where_both_have_full_context(
    tmtool: Any, scene: Any, tmp_path: Path, command: tuple[Any, ...], kind: str
) -> None:
    _, values, transform = scene
    with rasterio.open(scene[0]) as src:
        crs = src.crs
    boxes = OVERLAPPING[kind]
    found: dict[str, list[tuple[np.ndarray, Affine]]] = {}
    for stem, (row, col, height, width) in boxes.items():
        path = crop(tmp_path / f"{stem}.tif", values, transform, crs, row, col, height=height, width=width)
        facts = made(tmtool, tmp_path / "out", *command, path, "--anchor", "grid")
        found[stem] = []
        for product in facts["products"].values():
            with rasterio.open(product) as src:
                found[stem].append((src.read(), src.transform))
                assert json.loads(src.tags()["TMTOOL_PROVENANCE"])["read"]["anchor"] == "grid"
    for (a, at_a), (b, at_b) in zip(found["a"], found["b"], strict=True):
        side = round(at_a.a / 10)
        (a_left, a_top), (b_left, b_top) = ((round(v / side) for v in ~transform * (t.c, t.f)) for t in (at_a, at_b))
        edge = -(-96 // side)  # a tile: beyond it all tiles lie in both crops
        top, left = max(a_top, b_top) + edge, max(a_left, b_left) + edge
        bottom = min(a_top + a.shape[1], b_top + b.shape[1]) - edge
        right = min(a_left + a.shape[2], b_left + b.shape[2]) - edge
        assert bottom - top >= 32 / side
        mine = a[:, top - a_top : bottom - a_top, left - a_left : right - a_left]
        theirs = b[:, top - b_top : bottom - b_top, left - b_left : right - b_left]
        np.testing.assert_array_equal(mine, theirs)
        assert np.isfinite(mine).any()
        assert mine.std() > 0


def test_pinned_products_keep_the_rasters_grid_or_whole_cells(tmtool: Any, scene: Any, tmp_path: Path) -> None:
    path, _, transform = scene
    args = (path, "--anchor", "grid")
    lulc = made(tmtool, tmp_path, "generate", *args, "--out", "LULC", *DEMO)["products"]["LULC"]
    with rasterio.open(lulc) as src:
        assert (src.transform, src.shape) == (transform, SIZE)
    tokens = made(tmtool, tmp_path, "tokenize", *args, "--model", "demo")["products"]["S2L2A_tokens"]
    with rasterio.open(tokens) as src:
        assert src.transform.c % 160 == 0
        assert src.transform.f % 160 == 0
        assert src.bounds.left <= transform.c < src.bounds.left + 160


def test_pinned_scenes_of_few_tiles_keep_the_batch(tmtool: Any, scene: Any, tmp_path: Path) -> None:
    """Else two extents would be computed with batches of other sizes, which round differently."""
    options = (
        "--window",
        "0,0,90,90",
        "--model",
        "demo",
        "--crop",
        96,
        "--stride",
        48,
        "--batch-size",
        64,
        "-o",
        tmp_path,
        "--json",
    )
    for extra, size in ((("--anchor", "grid"), 64), ((), 42)):
        facts = json.loads(tmtool("embed", scene[0], *options, *extra, "--stale", "redo").stdout)
        with rasterio.open(facts["products"]["embed"]) as src:
            assert json.loads(src.tags()["TMTOOL_PROVENANCE"])["batch_size"] == size


def test_pinning_needs_a_projected_grid(tmtool: Any, make_raster: Any, identity: str, tmp_path: Path) -> None:
    dem = np.arange(4096, dtype=np.float32).reshape(1, 64, 64)
    degrees = make_raster(dem, "deg.tif", crs="EPSG:4326", transform=Affine(1e-4, 0, 7, 0, -1e-4, 45))
    turned = make_raster(dem, "turned.tif", transform=TRANSFORM * Affine.rotation(10))
    nowhere = make_raster(dem, "nowhere.tif", crs=None)
    for path, text in ((degrees, "EPSG:4326"), (turned, "a rotated grid"), (nowhere, "no CRS")):
        result = tmtool("embed", path, "--in", "DEM", "--model", identity, "--anchor", "grid", "-o", tmp_path)
        assert result.exit_code == 2
        assert f"--anchor grid pins tiles to a projected grid, and this raster has {text}" in result.stderr


# --- Plans and misuse ---


def test_a_plans_part_has_the_wholes_tiles() -> None:
    whole = TilePlan((1000, 900), Tiling(256, 192, 16))
    part = TilePlan((1000, 900), Tiling(256, 192, 16), part=Window(330, 200, 210, 301))
    spec, pooled = OutputSpec("x", 1, 16), OutputSpec("x", 1, 16, pool="tile")
    snapped = part.snapped([spec])
    assert (snapped.rows, snapped.cols) == (range(320, 544), range(192, 512))
    assert part.snapped([pooled]).rows == range(192, 576)
    rows, cols = snapped.touching([spec])
    assert list(part.tiles(rows, cols)) == [t for t in whole.tiles() if t.tile_row in rows and t.tile_col in cols]
    for parts in range(1, 4):
        cuts = snapped.columns(parts)
        assert [c.start for c in cuts][1:] == [c.stop for c in cuts][:-1]
        assert (cuts[0].start, cuts[-1].stop) == (192, 512)
    for blocks in (snapped.row_blocks(4), snapped.even_blocks(2)):
        assert (blocks[0].start, blocks[-1].stop) == (320, 544)
        assert sum(map(len, blocks)) == 224


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--window", "1,2,3"), "--window 1,2,3: give COL,ROW,WIDTH,HEIGHT"),
        (("--window", "1,2,0,5"), "width and height must be at least 1"),
        (("--window", "900,2,5,5"), "--window 900,2,5,5 lies outside of it: columns 900 to 905"),
        (("--bbox", "1,2,3"), "--bbox 1,2,3: give WEST,SOUTH,EAST,NORTH in degrees"),
        (("--bbox", "1,2,3,4@EPSG:0"), "give WEST,SOUTH,EAST,NORTH"),
        (("--bbox", "3,2,1,4"), "west must be less than east"),
        (("--bbox", "10,20,11,21"), "lies outside of it"),
        (("--bbox", "10,20,11,21", "--window", "1,2,3,4"), "give one of them"),
        (("--aoi", "nowhere.gpkg"), "--aoi nowhere.gpkg: no such file"),
        (("--aoi", "points.geojson"), "expected polygons, found Point"),
        (("--aoi", "text.geojson"), "cannot be read as a vector file"),
    ],
)
def test_parts_that_cannot_be(
    tmtool: Any,
    make_raster: Any,
    identity: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: Any,
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    point = {"type": "Feature", "properties": {}, "geometry": {"type": "Point", "coordinates": [1, 2]}}
    Path("points.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [point]}))
    Path("text.geojson").write_text("no shapes")
    path = make_raster(np.arange(4096, dtype=np.float32).reshape(1, 64, 64))
    result = tmtool("embed", path, "--in", "DEM", "--model", identity, "-o", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert text in result.stderr
    assert not (tmp_path / "out").exists()


# --- On workers, resumed, from Python ---


def test_a_part_on_workers_and_lazily(tmtool: Any, scene: Any, whole: dict[str, np.ndarray], tmp_path: Path) -> None:
    from tmtool import generate

    path, _, transform = scene
    args = ("generate", path, "--out", "LULC,S1GRD", *DEMO, "--window", "100,20,130,270")
    facts = made(tmtool, tmp_path, *args, "--cluster", "local:2")
    # workers have one thread; this process has what earlier tests left it
    np.testing.assert_allclose(read(facts["products"]["S1GRD"]), whole["S1GRD"][:, 20:290, 100:230], atol=1e-4)
    how: Any = {"model": "demo", "crop": 96, "stride": 48, "precision": "fp32", "batch_size": 4, "timesteps": 2}
    lazy = generate(path, "LULC,S1GRD", window=(100, 20, 130, 270), blocks=3, **how)
    assert lazy.S1GRD.chunks is not None
    assert len(lazy.S1GRD.chunks[1]) >= 3
    assert lazy.rio.transform() == transform * Affine.translation(100, 20)
    np.testing.assert_array_equal(lazy.S1GRD.values, whole["S1GRD"][:, 20:290, 100:230])


def test_a_part_is_resumed(
    tmtool: Any, scene: Any, whole: dict[str, np.ndarray], tmp_path: Path, monkeypatch: Any
) -> None:
    from tmtool.files.journal import Journal

    path = scene[0]
    args = ("generate", path, "--out", "LULC,S1GRD", *DEMO, "--window", "100,20,130,270", *TILES, "-o", tmp_path)
    add, rows = Journal.add, []

    def stop(self: Journal, record: Any) -> None:
        add(self, record)
        rows.append(record.row)
        if len(rows) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        tmtool(*args)
    monkeypatch.setattr(Journal, "add", add)
    result = tmtool(*args, "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["from_row"] >= rows[1] > 20
    assert "resuming an earlier run from row" in result.stderr
    np.testing.assert_array_equal(read(facts["products"]["S1GRD"]), whole["S1GRD"][:, 20:290, 100:230])


def test_parts_side_by_side(
    tmtool: Any, scene: Any, whole: dict[str, np.ndarray], tmp_path: Path, monkeypatch: Any
) -> None:
    """Where memory is short the part is made in narrower ones."""
    from tmtool.scene.run import Runner

    fitting = Runner._fitting
    monkeypatch.setattr(
        Runner,
        "_fitting",
        lambda self, prepared, spec, batch, parts: (fitting(self, prepared, spec, batch, parts)[0], 3),
    )
    facts = made(tmtool, tmp_path, "reconstruct", scene[0], *DEMO, "--window", "60,20,250,200")
    np.testing.assert_array_equal(read(facts["products"]["S2L2A_rec"]), whole["S2L2A_rec"][:, 20:220, 60:310])
    assert facts["measured"]
