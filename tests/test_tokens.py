"""`tmtool tokenize` and `tmtool reconstruct` from the command line: grids, holes, agreement of both ways, messages."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rio_cogeo.cogeo import cog_validate

from tests.conftest import TRANSFORM
from tmtool.modality import MODALITIES, OUTPUTS

SIZES = [(511, 237), (100, 100), (16, 16), (5, 700), (224, 224), (256, 400), (257, 256)]
SKEWED = Affine(10, 1.5, 399_963.3, -1.5, -10, 6_300_041.7)


def dem(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 3000, (1, height, width)).astype(np.int16)


def cells(values: np.ndarray, size: int = 16) -> np.ndarray:
    """Means of 16 x 16 px blocks, the last ones reflected at the border."""
    height, width = (-(-n // size) * size for n in values.shape)
    padded = np.pad(values.astype(np.float64), [(0, height - values.shape[0]), (0, width - values.shape[1])], "reflect")
    return padded.reshape(height // size, size, width // size, size).mean(axis=(1, 3))


def read(path: Path) -> tuple[np.ndarray, Any]:
    with rasterio.open(path) as src:
        return src.read(), src.profile | {"bounds": src.bounds, "tags": src.tags()}


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("transform", [TRANSFORM, SKEWED])
def test_tokens_lie_on_the_patch_grid(
    tmtool: Any, make_raster: Any, identity: str, tmp_path: Path, shape: tuple[int, int], transform: Affine
) -> None:
    values = dem(*shape)
    path = make_raster(values, transform=transform)
    result = tmtool("tokenize", path, "--in", "DEM", "--model", identity, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    target = tmp_path / "out" / "scene_DEM_tokens.tif"
    assert result.stdout.split() == [str(target)]
    assert [p.name for p in target.parent.iterdir()] == [target.name]
    tokens, profile = read(target)
    np.testing.assert_array_equal(tokens[0], np.rint(cells(values[0])))
    assert profile["dtype"] == "uint16"
    assert profile["nodata"] == 65535
    assert profile["transform"] == Affine(
        *(v * 16 for v in transform[:2]), transform.c, *(v * 16 for v in transform[3:5]), transform.f
    )
    if transform == TRANSFORM:
        with rasterio.open(path) as src:
            inside, outside = src.bounds, profile["bounds"]
        assert outside.left == inside.left
        assert outside.top == inside.top
        assert outside.right >= inside.right > outside.right - 160
        assert outside.bottom <= inside.bottom < outside.bottom + 160
    assert cog_validate(target, strict=True, quiet=True)[0]
    made = json.loads(profile["tags"]["TMTOOL_PROVENANCE"])
    assert made["modality"] == "DEM"
    assert made["codebook"] == "8-8-8-6-5"
    assert made["source"] == {"height": shape[0], "width": shape[1]}
    assert made["tiling"] == {"crop": 256, "stride": 192, "delta": 16}
    assert made["validity"] is None


def test_the_summary_says_what_the_tokens_hold(tmtool: Any, make_raster: Any, identity: str, tmp_path: Path) -> None:
    path = make_raster(dem(320, 320))
    args = ("tokenize", path, "--in", "DEM", "--model", identity, "-o", tmp_path / "out", "--overwrite")
    assert "400 cells, " in tmtool(*args).stderr
    facts = json.loads(tmtool(*args, "--json").stdout)["measured"]["DEM_tokens"]
    assert facts["cells"] == 400
    assert facts["codebook"] == 15_360
    assert 100 < facts["codes_used"] <= 400
    assert 1 < facts["perplexity"] <= facts["codes_used"]
    assert facts["ratio"] == pytest.approx(16 / facts["bits_per_pixel"])


def hole_test_raster() -> np.ndarray:
    values = dem(600, 700)
    values[0, 200:333, 100:290] = -9999
    values[0, 400, 500] = -9999
    return values


def test_holes_touch_only_their_own_cells(tmtool: Any, make_raster: Any, identity: str, tmp_path: Path) -> None:
    whole, holed = dem(600, 700), hole_test_raster()
    out = tmp_path / "out"
    for name, values in (("whole", whole), ("holed", holed)):
        path = make_raster(values, f"{name}.tif", nodata=-9999)
        assert tmtool("tokenize", path, "--in", "DEM", "--model", identity, "-o", out).exit_code == 0
    (before, _), (after, profile) = read(out / "whole_DEM_tokens.tif"), read(out / "holed_DEM_tokens.tif")
    blocks = np.pad(holed[0] == -9999, [(0, 8), (0, 4)], "reflect").reshape(38, 16, 44, 16)
    all_gone, some_gone = blocks.all(axis=(1, 3)), blocks.any(axis=(1, 3))
    assert all_gone.any()
    assert (after[0][all_gone] == 65535).all()
    assert (after[0][~all_gone] < 15_360).all()
    np.testing.assert_array_equal(after[0][~some_gone], before[0][~some_gone])
    assert json.loads(profile["tags"]["TMTOOL_PROVENANCE"])["validity"] == "holed_DEM_valid.tif"
    valid, valid_profile = read(out / "holed_DEM_valid.tif")
    np.testing.assert_array_equal(valid[0] == 1, holed[0] != -9999)
    assert valid_profile["transform"] == TRANSFORM
    assert not (out / "whole_DEM_valid.tif").exists()


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("shape", [(511, 237), (100, 90), (600, 700)])
def test_both_ways_of_reconstructing_agree(
    tmtool: Any, make_raster: Any, identity: str, tmp_path: Path, shape: tuple[int, int], holes: bool
) -> None:
    values = dem(*shape)
    if holes:
        values[0, 20:57, 31:90] = -9999
    path = make_raster(values, nodata=-9999, transform=SKEWED)
    run = ("--model", identity, "-o")
    assert tmtool("tokenize", path, "--in", "DEM", *run, tmp_path / "tokens").exit_code == 0
    direct = tmtool("reconstruct", path, "--in", "DEM", *run, tmp_path / "direct")
    assert direct.exit_code == 0, direct.stderr
    decoded = tmtool("reconstruct", tmp_path / "tokens" / "scene_DEM_tokens.tif", *run, tmp_path / "decoded")
    assert decoded.exit_code == 0, decoded.stderr
    name = "scene_DEM_rec.tif"
    assert decoded.stdout.split() == [str(tmp_path / "decoded" / name)]
    (a, profile), (b, other) = read(tmp_path / "direct" / name), read(tmp_path / "decoded" / name)
    np.testing.assert_array_equal(a, b)
    assert profile["transform"] == other["transform"] == SKEWED
    assert profile["crs"] == other["crs"]
    assert a.shape == (1, *shape)
    np.testing.assert_array_equal(np.isnan(a[0]), values[0] == -9999)
    assert "MAE m" in direct.stderr
    assert "MAE" not in decoded.stderr


def test_a_reconstruction_is_compared_with_its_input(
    tmtool: Any, make_raster: Any, identity: str, tmp_path: Path
) -> None:
    values = dem(300, 400)
    values[0, 5:50, 7:60] = -9999
    path = make_raster(values, nodata=-9999)
    result = tmtool("reconstruct", path, "--in", "DEM", "--model", identity, "-o", tmp_path / "out", "--json")
    facts = json.loads(result.stdout)["measured"]["DEM_rec"]
    made, _ = read(tmp_path / "out" / "scene_DEM_rec.tif")
    valid = values[0] != -9999
    error = made[0][valid] - values[0][valid]
    assert facts["pixels"] == valid.sum()
    assert facts["bands"]["elevation"]["mae"] == pytest.approx(abs(error).mean(), rel=1e-5)
    assert facts["bands"]["elevation"]["rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-5)


def test_all_nodata_in_all_nodata_out(tmtool: Any, make_raster: Any, identity: str, tmp_path: Path) -> None:
    path = make_raster(np.full((1, 300, 300), -9999, np.int16), nodata=-9999)
    for command, name in (("tokenize", "scene_DEM_tokens.tif"), ("reconstruct", "scene_DEM_rec.tif")):
        result = tmtool(command, path, "--in", "DEM", "--model", identity, "-o", tmp_path)
        assert result.exit_code == 0, result.stderr
        assert "all nodata" in result.stderr
        values, _ = read(tmp_path / name)
        assert np.isnan(values).all() if command == "reconstruct" else (values == 65535).all()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--stride", 100), "multiples of 16, got --stride 100"),
        (("--delta", 8), "multiples of 16, got --delta 8"),
        (("--in", "RGB"), "RGB is an input-only|RGB, which has no tokenizer|needs 3"),
        (("--in", "nonsense"), "Unknown modality"),
    ],
)
@pytest.mark.parametrize("command", ["tokenize", "reconstruct"])
def test_what_cannot_work_is_refused_before_a_model_loads(
    tmtool: Any, make_raster: Any, identity: str, tmp_path: Path, command: str, args: tuple[Any, ...], message: str
) -> None:
    path = make_raster(dem(64, 64))
    result = tmtool(
        command, path, *(() if "--in" in args else ("--in", "DEM")), "--model", identity, "-o", tmp_path, *args
    )
    assert result.exit_code == 2
    assert re.search(message, result.stderr), result.stderr


def test_a_token_raster_is_only_for_reconstruct(tmtool: Any, make_raster: Any, identity: str, tmp_path: Path) -> None:
    path = make_raster(dem(64, 64))
    assert tmtool("tokenize", path, "--in", "DEM", "--model", identity, "-o", tmp_path).exit_code == 0
    for command in (("embed",), ("tokenize",), ("generate", "--out", "LULC")):
        result = tmtool(*command, tmp_path / "scene_DEM_tokens.tif", "--model", identity, "-o", tmp_path / "x")
        assert result.exit_code == 2
        assert "holds tokens that tmtool tokenize made; use tmtool reconstruct" in result.stderr


def test_a_token_raster_needs_its_validity(tmtool: Any, make_raster: Any, identity: str, tmp_path: Path) -> None:
    path = make_raster(hole_test_raster(), nodata=-9999)
    assert tmtool("tokenize", path, "--in", "DEM", "--model", identity, "-o", tmp_path).exit_code == 0
    (tmp_path / "scene_DEM_valid.tif").unlink()
    result = tmtool("reconstruct", tmp_path / "scene_DEM_tokens.tif", "--model", identity, "-o", tmp_path / "x")
    assert result.exit_code == 2
    assert "which scene_DEM_valid.tif marks; that file has to be beside it" in result.stderr


def test_a_changed_token_raster_is_refused(tmtool: Any, make_raster: Any, identity: str, tmp_path: Path) -> None:
    path = make_raster(dem(256, 256))
    assert tmtool("tokenize", path, "--in", "DEM", "--model", identity, "-o", tmp_path).exit_code == 0
    tokens, profile = read(tmp_path / "scene_DEM_tokens.tif")
    cut = make_raster(tokens[:, :10], "cut.tif", dtype="uint16", nodata=65535, transform=profile["transform"])
    with rasterio.open(cut, "r+") as dst:
        dst.update_tags(**profile["tags"])
    result = tmtool("reconstruct", cut, "--model", identity, "-o", tmp_path / "x")
    assert result.exit_code == 2
    assert "is no longer the token raster that tmtool wrote for 256 x 256 px" in result.stderr


def test_a_run_without_holes_removes_an_older_validity(
    tmtool: Any, make_raster: Any, identity: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for values in (hole_test_raster(), dem(600, 700)):
        path = make_raster(values, nodata=-9999)
        assert tmtool("tokenize", path, "--in", "DEM", "--model", identity, "-o", out, "--overwrite").exit_code == 0
    assert [p.name for p in out.iterdir()] == ["scene_DEM_tokens.tif"]


def test_tokens_of_another_tokenizer_are_refused(
    tmtool: Any, make_raster: Any, narrow_terramind: Path, tmp_path: Path
) -> None:
    path = make_raster(dem(64, 64))
    run = ("--in", "DEM", "--model", "tiny", "--weights", narrow_terramind, "-o", tmp_path)
    assert tmtool("tokenize", path, *run).exit_code == 0
    other = ("--model", "tiny", "--weights", "random", "-o", tmp_path / "x")
    result = tmtool("reconstruct", tmp_path / "scene_DEM_tokens.tif", *other)
    assert result.exit_code == 2
    assert "made by another tokenizer" in result.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("modality", OUTPUTS)
def test_real_chips_through_the_real_architecture(
    tmtool: Any, examples: Path, narrow_terramind: Path, tmp_path: Path, modality: str
) -> None:
    folder = examples / ("S1RTC" if modality == "S1GRD" else modality)
    chip = sorted(folder.iterdir())[0]
    run = ("--model", "tiny", "--weights", narrow_terramind, "--precision", "fp32", "-o")
    result = tmtool("tokenize", chip, "--in", modality, *run, tmp_path)
    assert result.exit_code == 0, result.stderr
    tokens, _ = read(tmp_path / f"{chip.stem}_{modality}_tokens.tif")
    assert tokens.shape == (1, 14, 14)
    assert tokens.max() < MODALITIES[modality].vocabulary
    steps = ("--timesteps", 2)
    direct = tmtool("reconstruct", chip, "--in", modality, *steps, *run, tmp_path / "direct")
    assert direct.exit_code == 0, direct.stderr
    decoded = tmtool("reconstruct", tmp_path / f"{chip.stem}_{modality}_tokens.tif", *steps, *run, tmp_path / "decoded")
    assert decoded.exit_code == 0, decoded.stderr
    name = f"{chip.stem}_{modality}_rec.tif"
    (a, _), (b, _) = read(tmp_path / "direct" / name), read(tmp_path / "decoded" / name)
    np.testing.assert_array_equal(a, b)


def test_a_hole_changes_only_what_tiles_with_it_own(
    tmtool: Any, make_raster: Any, narrow_terramind: Path, tmp_path: Path
) -> None:
    """With the real architecture, whose every token depends on its whole tile: NaN must not spread, nor leave its tiles."""
    whole = np.random.default_rng(0).normal(-12, 4, (2, 240, 900)).astype(np.float32)
    holed = whole.copy()
    holed[1, 90:110, 40:60] = np.nan
    out = tmp_path / "out"
    for name, values in (("whole", whole), ("holed", holed)):
        path = make_raster(values, f"{name}.tif")
        run = ("--in", "S1GRD", "--model", "tiny", "--weights", narrow_terramind, "-o", out)
        assert tmtool("tokenize", path, *run).exit_code == 0
    (before, _), (after, _) = read(out / "whole_S1GRD_tokens.tif"), read(out / "holed_S1GRD_tokens.tif")
    assert (after < 15_360).all()  # no patch is empty
    changed = np.flatnonzero((before[0] != after[0]).any(axis=0))
    first_without = -(-(60 + 16) // 192)  # tiles begin at -16 + 192 i
    border = (
        192 * first_without - 16 + 256 + 192 * (first_without - 1) - 16
    ) // 2  # half-way between the tiles' centres
    assert len(changed) > 0
    assert changed.max() * 16 < border + 16
