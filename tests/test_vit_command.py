"""`embed` with Prithvi and Clay, from the command line to the product, by narrow weights laid out as the hub's."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

import tmtool as api
from tests.conftest import TRANSFORM
from tests.specs import spec_of
from tests.test_vit import narrowed
from tmtool import models
from tmtool.modality import S2_BANDS, S2_NAMES
from tmtool.models.vit import _network as vit
from tmtool.models.vit.facts import Facts

CLAY, PRITHVI = "clay-v1.5", "prithvi-eo-v2-600-tl"
SHAPES: Mapping[str, Any] = {
    PRITHVI: {"image": 70, "tiling": (56, 28, 14)},
    CLAY: {"tiling": (48, 32, 8)},
}
NAMES = {band: name for name, band in S2_NAMES.items()}


def filled(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a state dict of noise of moderate size."""
    generator = torch.Generator().manual_seed(7)
    return {k: torch.randn(v.shape, generator=generator) * 0.1 for k, v in network.state_dict().items()}


def write_weights(facts: Facts, folder: Path, *, flat: bool) -> Path:
    """Write what the hub has of a model, beside what training needed besides; return the file."""
    place = folder if flat else folder / facts.file.repo.rpartition("/")[2]
    path = place / (Path(facts.file.filename).name if flat else facts.file.filename)
    path.parent.mkdir(parents=True, exist_ok=True)
    if facts.wavelengths:
        state = {f"model.encoder.{k}": v for k, v in filled(vit.Clay(facts)).items()}
        torch.save({"state_dict": state | {"model.decoder.mask_patch": torch.ones(3)}, "epoch": 7}, path)
    else:
        state = {f"encoder.{k}": v for k, v in filled(vit.Prithvi(facts)).items()}
        torch.save(state | {"decoder.mask_token": torch.ones(1), "encoder.pos_embed": torch.zeros(1)}, path)
    return path


@pytest.fixture
def prithvi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Facts, Path]:
    """Prithvi 600M at a small width, and the folder of its weights."""
    facts = narrowed(monkeypatch, PRITHVI, **SHAPES[PRITHVI])
    write_weights(facts, tmp_path / "weights", flat=True)
    return facts, tmp_path / "weights"


def scene(height: int, width: int) -> np.ndarray:
    """Return digital numbers of all twelve bands, uint16; rows 0 to 27 of columns 28 to 55 are empty."""
    values = np.random.default_rng(2).integers(1, 4000, (12, height, width)).astype(np.uint16)
    values[:, :28, 28:56] = 0
    return values


def cells_of(patch: int) -> Affine:
    """Return the affine of a product whose cells are `patch` px of the raster's 10 m."""
    return Affine(10 * patch, 0, TRANSFORM.c, 0, -10 * patch, TRANSFORM.f)


def picked(values: np.ndarray, bands: tuple[str, ...]) -> np.ndarray:
    return values[[S2_BANDS.index(band) for band in bands]]


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize(("name", "side"), [(PRITHVI, 56), (CLAY, 48)])
def test_a_chips_product_is_what_the_network_says(
    tmtool: Any, make_raster: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, side: int, flat: bool
) -> None:
    facts = narrowed(monkeypatch, name, **SHAPES[name])
    file, chip = write_weights(facts, tmp_path / "w", flat=flat), scene(side, side)
    raster = make_raster(chip, nodata=0)
    common = ("--model", name, "--weights", tmp_path / "w", "-o", tmp_path / "out")
    done = tmtool("embed", raster, "--precision", "fp32", *common)
    assert done.exit_code == 0, done.stderr

    spec = spec_of(name, "embed", ("S2L2A",), files={facts.file: file}, bands={"S2L2A": facts.bands})
    pixels = picked(chip, facts.bands).astype(np.float32)
    filled_in = np.where((chip == 0).all(axis=0), np.array(facts.mean, np.float32)[:, None, None], pixels)
    embedder: Any = models.build(spec)
    expected = embedder.vectors(filled_in[None], [facts.depth - 1])[facts.depth - 1][0, 0].numpy()
    with rasterio.open(tmp_path / "out" / "scene_embed.tif") as product:
        found = product.read()
        assert product.transform == cells_of(facts.patch)
        assert (product.count, *product.shape) == (facts.dim, side // facts.patch, side // facts.patch)
    empty = np.isnan(found).all(axis=0)
    cells = chip.any(axis=0).reshape(side // facts.patch, facts.patch, side // facts.patch, facts.patch)
    np.testing.assert_array_equal(empty, ~cells.any(axis=(1, 3)))  # patches without a pixel that has data
    assert empty.any()
    np.testing.assert_allclose(found[:, ~empty], expected[:, ~empty], rtol=1e-5, atol=1e-5)
    assert tmtool("models", "verify", name, "--for", "embed", "--weights", tmp_path / "w").exit_code == 0
    where = tmtool("models", "path", name, "--for", "embed", "--weights", tmp_path / "w")
    assert where.stdout.strip() == str(file)


def test_a_larger_scene_is_tiled_as_suits_the_model(
    tmtool: Any, make_raster: Any, prithvi: tuple[Facts, Path], tmp_path: Path
) -> None:
    facts, folder = prithvi
    raster = make_raster(scene(100, 150), nodata=0)
    args = ("--model", PRITHVI, "--weights", folder, "-o", tmp_path, "--precision", "fp32")
    assert tmtool("embed", raster, *args).exit_code == 0
    with rasterio.open(tmp_path / "scene_embed.tif") as product:
        whole = product.read()
        assert product.shape == (8, 11)
        assert product.transform == cells_of(14)
        made = json.loads(product.tags()["TMTOOL_PROVENANCE"])
    assert tuple(made["tiling"][key] for key in ("crop", "stride", "delta")) == facts.tiling
    assert made["bands"] == {"S2L2A": list(facts.bands)}
    assert np.isnan(whole[:, :2, 2:4]).all()
    assert np.isfinite(np.delete(whole.reshape(facts.dim, -1), [2, 3, 13, 14], axis=1)).all()
    same = api.embed(raster, model=PRITHVI, weights=folder, precision="fp32").embed.to_numpy()
    np.testing.assert_array_equal(same, whole)
    assert tmtool("embed", raster, *args, "--overwrite", "--stride", "14", "--coords").exit_code == 0
    with rasterio.open(tmp_path / "scene_embed.tif") as product:
        again = json.loads(product.tags()["TMTOOL_PROVENANCE"])
        assert again["tiling"] == {"crop": 56, "stride": 14, "delta": 14}
        assert not np.allclose(product.read(), whole, equal_nan=True)


def test_bands_are_found_by_name_or_place(
    tmtool: Any, make_raster: Any, prithvi: tuple[Facts, Path], tmp_path: Path
) -> None:
    (facts, folder), values = prithvi, scene(56, 56)
    mixed, few = list(np.random.default_rng(1).permutation(S2_BANDS)), list(facts.bands)
    rasters = {
        "six": (picked(values, facts.bands), None),
        "six_named": (picked(values, tuple(few[::-1])), [NAMES[band] for band in few[::-1]]),
        "twelve": (values, None),
        "twelve_named": (picked(values, tuple(mixed)), mixed),
        "eight_named": (picked(values, (*few[3:], "B01", "B09", *few[:3])), [*few[3:], "B01", "B09", *few[:3]]),
    }
    made = []
    for name, (bands, names) in rasters.items():
        raster = make_raster(bands, f"{name}.tif", names, nodata=0)
        for said in ([raster], ["--in", "S2L2A", raster], ["--in", f"S2L2A={raster}"]):
            done = tmtool("embed", *said, "--model", PRITHVI, "--weights", folder, "-o", tmp_path, "--overwrite")
            assert done.exit_code == 0, done.stderr
            with rasterio.open(tmp_path / f"{name}_embed.tif") as product:
                made.append(product.read())
    for other in made[1:]:
        np.testing.assert_array_equal(other, made[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tim", "LULC"], f"--tim: --model {PRITHVI} cannot make LULC; it makes nothing but embeddings"),
        (["--bands", "S2L2A=RED,GREEN"], "takes the bands B02 B03 B04 B8A B11 B12 of S2L2A, all of them; leave out"),
        (["--crop", "256"], "--crop 256 is not a multiple of 14, the model's patch size. Try --crop 252"),
        (["--crop", "84", "--stride", "16"], "Products on the patch grid need multiples of 14, got --stride 16"),
        (["--layer", "3"], f"--layer 3: --model {PRITHVI} has layers 0 to 2"),
        (["--checkpoint", __file__], f"--checkpoint: --model {PRITHVI} takes none"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    tmtool: Any, make_raster: Any, prithvi: tuple[Facts, Path], tmp_path: Path, options: list[str], message: str
) -> None:
    raster = make_raster(scene(56, 56), nodata=0)
    done = tmtool("embed", raster, "--model", PRITHVI, "--weights", prithvi[1], "-o", tmp_path / "out", *options)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["B02", "B03", "B04", "B08", "B11", "B12"], "B8A missing"),
        ([None] * 5, "fits no modality (6: B02 B03 B04 B8A B11 B12 of S2L2A, 12: S2L2A"),
        ([None] * 13, f"is S2L1C, which --model {PRITHVI} does not take (S2L2A)"),
    ],
)
def test_rasters_of_other_bands_are_refused(
    tmtool: Any, make_raster: Any, prithvi: tuple[Facts, Path], tmp_path: Path, names: list[Any], message: str
) -> None:
    values = np.random.default_rng(2).integers(1, 4000, (len(names), 56, 56)).astype(np.uint16)
    raster = make_raster(values, names=names if names[0] else None)
    done = tmtool("embed", raster, "--model", PRITHVI, "--weights", prithvi[1], "-o", tmp_path)
    assert done.exit_code != 0
    assert message in done.stderr


def test_one_date_and_no_place_where_none_is_taken(
    tmtool: Any, make_raster: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    narrowed(monkeypatch, "prithvi-eo-v2-300")
    narrowed(monkeypatch, CLAY, **SHAPES[CLAY])
    raster = make_raster(scene(64, 64), nodata=0)
    common = ("--weights", "random", "-o", tmp_path)
    twice = tmtool("embed", "--in", f"S2L2A={raster}", "--in", f"S2L2A={raster}", "--model", CLAY, *common)
    assert "embed takes one raster of each modality, of one date" in twice.stderr
    placed = tmtool("embed", raster, "--coords", "--model", "prithvi-eo-v2-300", *common)
    assert "--coords: --model prithvi-eo-v2-300 takes no coordinates" in placed.stderr
    assert (twice.exit_code, placed.exit_code) == (2, 2)


@pytest.mark.parametrize("task", [("generate", "--out", "LULC"), ("tokenize",), ("reconstruct",)])
def test_other_tasks_are_refused_by_name(tmtool: Any, make_raster: Any, tmp_path: Path, task: tuple[str, ...]) -> None:
    raster = make_raster(scene(64, 64), nodata=0)
    done = tmtool(*task, raster, "--model", "prithvi-eo-v2-300", "--weights", "random", "-o", tmp_path)
    assert done.exit_code == 2
    assert f"--model prithvi-eo-v2-300: Prithvi-EO 2.0 300M cannot {task[0]}" in done.stderr
    asked = tmtool("models", "path", "prithvi-eo-v2-300", "--for", task[0])
    assert f"--for {task[0]}: Prithvi-EO 2.0 300M cannot {task[0]}. Choose --for embed." in asked.stderr


def test_pixels_are_held_against_those_of_the_pretraining(
    tmtool: Any, make_raster: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("prithvi-eo-v2-300", CLAY):
        narrowed(monkeypatch, name)
    raster = make_raster(scene(64, 64), nodata=0)
    for name, warned in (("prithvi-eo-v2-300", True), (CLAY, False)):
        done = tmtool("embed", raster, "--model", name, "--weights", "random", "-o", tmp_path / name)
        assert (
            "pixels are 10 m, the model was trained at 30 m: --grid utm@30m brings them to that" in done.stderr
        ) is warned


def test_models_begin_with_terramind(tmtool: Any) -> None:
    rows = json.loads(tmtool("models", "list", "--json").stdout)
    names = [row["model"] for row in rows]
    assert names[:4] == ["base", "large", "small", "tiny"]
    row = rows[names.index("prithvi-eo-v2-300")]
    assert (row["tasks"], row["bands"]) == (["embed"], {"S2L2A": ["B02", "B03", "B04", "B8A", "B11", "B12"]})
    text = tmtool("models", "list").stdout
    assert "inputs S2L2A (B02 B03 B04 B8A B11 B12)" in text


def test_of_a_fine_tuned_task_there_is_nothing_to_fetch(tmtool: Any) -> None:
    done = tmtool("models", "fetch", "finetuned", "--for", "predict")
    assert done.exit_code == 2
    assert "its weights are your own" in done.stderr


def dated(make_raster: Any, folder: Path, values: np.ndarray, name: str, **tags: str) -> Path:
    path = make_raster(values, nodata=0).rename(folder / f"{name}.tif")
    with rasterio.open(path, "r+") as dst:
        dst.update_tags(**tags)
    return path


def test_several_dates_are_one_input_with_a_time_axis(
    tmtool: Any, make_raster: Any, prithvi: tuple[Facts, Path], tmp_path: Path
) -> None:
    facts, weights = prithvi
    days = ("2024-03-01", "2024-06-15", "2024-09-30")
    chips = [np.random.default_rng(i).integers(1, 4000, (12, 56, 56)).astype(np.uint16) for i in range(3)]
    rasters = [
        dated(make_raster, tmp_path, chip, f"t{i}", SENSING_TIME=f"{day}T10:00:00Z")
        for i, (chip, day) in enumerate(zip(chips, days, strict=True))
    ]
    ins = [word for path in rasters for word in ("--in", f"S2L2A={path}")]
    common = ("--model", PRITHVI, "--weights", weights, "--precision", "fp32", "-o", tmp_path / "out")
    file = next(weights.rglob("*.pt"))
    spec = spec_of(PRITHVI, "embed", ("S2L2A",), files={facts.file: file}, bands={"S2L2A": facts.bands})
    values = np.stack([picked(chip, facts.bands) for chip in chips], axis=1).astype(np.float32)[None]
    embedder: Any = models.build(spec)

    def product(*args: Any) -> tuple[np.ndarray, Any]:
        done = tmtool("embed", *ins, *common, "--overwrite", *args)
        assert done.exit_code == 0, done.stderr
        with rasterio.open(tmp_path / "out" / "t0_embed.tif") as src:
            return src.read(), json.loads(src.tags()["TMTOOL_PROVENANCE"])

    last = facts.depth - 1
    told = np.array([days], "datetime64[D]")
    expected = embedder.vectors(values, [last], told)[last][0].numpy()  # (T, D, h, w)
    found, made = product("--merge", "concat")
    assert found.shape[0] == 3 * facts.dim
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=1e-5, atol=1e-5)
    assert made["dates"] == [f"{day}T10:00:00" for day in days]
    assert list(made["inputs"]) == ["S2L2A@1", "S2L2A@2", "S2L2A@3"]
    np.testing.assert_allclose(product()[0], expected.mean(axis=0), rtol=1e-5, atol=1e-5)
    others = ("2023-01-01", "2023-02-01", "2023-03-01")
    found, made = product(*(word for day in others for word in ("--date", day)))
    expected = embedder.vectors(values, [last], np.array([others], "datetime64[D]"))[last][0].numpy()
    np.testing.assert_allclose(found, expected.mean(axis=0), rtol=1e-5, atol=1e-5)
    assert made["dates"] == list(others)
    from_python = api.embed(
        {"S2L2A": rasters}, model=PRITHVI, weights=weights, precision="fp32", date=others, batch_size=made["batch_size"]
    )
    np.testing.assert_array_equal(from_python["embed"].values, found)
    again = tmtool("embed", *ins, *common, *(word for day in others for word in ("--date", day)), "--json")
    assert json.loads(again.stdout)["status"] == "skipped"
    other = tmtool("embed", *ins, *common)
    assert other.exit_code == 2
    assert "dates" in other.stderr
    for args, message in (
        (("--date", "2023-01-01"), "1 for 3 dates of a scene"),
        (("--date", "June", *["--date", "2023-01-01"] * 2), "--date June: give a date"),
        (("--in", f"S2L2A={rasters[0]}", "--in", f"S2L2A={rasters[1]}"), "takes up to 4 dates of a place, found 5"),
    ):
        done = tmtool("embed", *ins, *common, *args)
        assert done.exit_code == 2
        assert message in done.stderr


def test_dates_that_a_model_does_not_take(
    tmtool: Any, make_raster: Any, prithvi: tuple[Facts, Path], tmp_path: Path
) -> None:
    _, weights = prithvi
    raster = make_raster(scene(56, 56), nodata=0)
    done = tmtool("embed", raster, "--model", "demo", "--date", "2024-06-01", "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert "--model demo takes no dates" in done.stderr
    done = tmtool(
        "embed", "--in", f"S2L2A={raster}", "--in", f"S2L2A={raster}", "--model", "demo", "-o", tmp_path / "out"
    )
    assert done.exit_code == 2
    done = tmtool("embed", raster, "--model", PRITHVI, "--weights", weights, "-o", tmp_path / "out")
    assert done.exit_code == 0
    assert "its date is not known, and the model is told none: --date says it" in done.stderr
