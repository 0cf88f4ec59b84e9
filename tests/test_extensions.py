"""What a stranger adds works from one place: a modality, a backbone, a format, a task, a command. Recipes that run."""

import importlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import rasterio
import typer
from affine import Affine

from tests.conftest import TRANSFORM
from tmtool.batch import Listing, list_scenes, run_batch
from tmtool.cli import app
from tmtool.files.writer import Layout
from tmtool.grid import OutputSpec, TileBatch
from tmtool.modality import MODALITIES, Modality
from tmtool.models import MODELS, ModelEntry, ModelSpec, Request, TileModel, families
from tmtool.models.registry import load_families
from tmtool.products.product import Product
from tmtool.provenance import Provenance, parse
from tmtool.scene.job import Job
from tmtool.tasks import TASKS, Task, generate

VALUES = np.random.default_rng(0).integers(200, 3000, (12, 300, 150)).astype(np.int16)


def made(path: Path) -> Provenance:
    with rasterio.open(path) as src:
        found = parse(src.tags())
    assert found is not None
    return found


# A modality: an entry of MODALITIES, and a model that takes it

THERMAL = Modality("TIRS", ("T10", "T11"), "K", raw_key="untok_tirs@224")


class Thermometer(ModelEntry):
    """Says NDVI of temperatures: as far from 273 K as they are, over 100 K."""

    statistics: ClassVar[Mapping[str, Mapping[str, tuple[float, float]]]] = {
        "TIRS": {"T10": (290.0, 10.0), "T11": (289.0, 10.0)}
    }

    def build(self, spec: ModelSpec) -> TileModel:
        return lambda batch: {"NDVI": (batch.pixels["TIRS"][:, :1] - 273) / 100}


def test_a_modality(tmtool: Any, make_raster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODALITIES, "TIRS", THERMAL)
    monkeypatch.setitem(MODELS, "thermal", Thermometer("a thermometer", __name__, ("TIRS",), ("NDVI",)))
    kelvin = np.random.default_rng(1).normal(290, 5, (2, 300, 150)).astype(np.float32)
    kelvin[:, :20, :30] = -1
    path = make_raster(kelvin, nodata=-1)
    args = ("generate", path, "--out", "NDVI", "--model", "thermal", "-o", tmp_path / "out")
    unsaid = tmtool(*args)
    assert "would fit S1GRD or S1RTC or TIRS" in unsaid.stderr
    result = tmtool(*args, "--in", "tirs")
    assert result.exit_code == 0, result.stderr
    with rasterio.open(tmp_path / "out" / "scene_NDVI.tif") as src:
        found = src.read(1)
    expected = np.where(kelvin[0] < 0, np.nan, (kelvin[0] - 273) / 100)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert made(tmp_path / "out" / "scene_NDVI.tif").inputs == {"TIRS": "scene.tif"}
    assert "TIRS" not in MODELS["base"].inputs
    refused = tmtool(*args, "--in", "TIRS", "--model", "base", "--weights", "random")
    assert "is TIRS, which --model base does not take" in refused.stderr


# A family of backbones: one file in models/families, which registers itself when it is imported

BACKBONE = '''
"""A backbone with patches of its own, two bands and their statistics: the mean of each patch, standardised."""

import numpy as np

from tmtool.models.entry import ModelEntry
from tmtool.models.registry import register
from tmtool.models.requests import Embedding


class Toy(ModelEntry):
    statistics = {"S2L2A": {"B04": (1000.0, 500.0), "B03": (800.0, 400.0)}}

    def build(self, spec):
        mean, std = (np.array(v)[None, :, None, None] for v in self.moments(spec.modality("S2L2A")))
        names = [output.name for output in self.embeddings(spec.request, spec.inputs)]

        def model(batch):
            x, p = (batch.pixels["S2L2A"] - mean) / std, self.patch
            b, c, h, w = x.shape
            return dict.fromkeys(names, x.reshape(b, c, h // p, p, w // p, p).mean(axis=(3, 5)).astype(np.float32))

        return model


register("toy", Toy("a toy", __name__, ("S2L2A",), requests=(Embedding,), patch=PATCH, dim=2, depth=1))
'''


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Put a file among the families, and take it away again."""

    def add(text: str) -> None:
        (tmp_path / "families").mkdir()
        (tmp_path / "families" / "toy.py").write_text(text)
        monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path / "families")])
        importlib.invalidate_caches()
        load_families()

    yield add
    MODELS.pop("toy", None)
    sys.modules.pop("tmtool.models.families.toy", None)


@pytest.mark.parametrize("patch", [14, 8])
def test_a_family_of_backbones(tmtool: Any, make_raster: Any, tmp_path: Path, family: Any, patch: int) -> None:
    family(BACKBONE.replace("PATCH", str(patch)))
    args = ("--model", "toy", "--bands", "S2L2A=RED,GREEN", "-o", tmp_path / "out")
    result = tmtool("embed", make_raster(VALUES), *args)
    assert result.exit_code == 0, result.stderr
    with rasterio.open(tmp_path / "out" / "scene_embed.tif") as src:
        found, transform = src.read(), src.transform
    rows, cols = 300 // patch, 150 // patch
    assert transform == TRANSFORM * Affine.scale(patch)
    assert found.shape == (2, -(-300 // patch), -(-150 // patch))
    blocks = VALUES[[3, 2], : rows * patch, : cols * patch].reshape(2, rows, patch, cols, patch).mean(axis=(2, 4))
    standard = (blocks - np.array([1000, 800])[:, None, None]) / np.array([500, 400])[:, None, None]
    np.testing.assert_allclose(found[:, :rows, :cols], standard, rtol=1e-4, atol=1e-5)
    refused = tmtool("generate", make_raster(VALUES), "--out", "LULC", "--model", "toy", "-o", tmp_path)
    assert "a toy cannot generate" in refused.stderr


# A format for generate: one file with a Format, one line at the task

FORMAT = '''
"""Rasters as lines of JSON: the tags, then a line a row."""

import json

from tmtool.files.writer import Format


def convert(work, path):
    with path.open("w") as file:
        print(json.dumps(dict(work.tags)), file=file)
        for _, values, _ in work.rows():
            for row in values[0].tolist():
                print(json.dumps(row), file=file)


def tags(path):
    with path.open() as file:
        return json.loads(file.readline())


LINES = Format(".jsonl", convert, tags)
'''


def test_a_format(
    tmtool: Any, identity: str, make_raster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lines_format.py").write_text(FORMAT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(generate.RASTERS, "lines", importlib.import_module("lines_format").LINES)
    args = ("generate", make_raster(VALUES), "--out", "DEM", "--model", identity, "-o", tmp_path / "out", "--json")
    for status in ("done", "skipped"):
        result = tmtool(*args, "--format", "lines")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["status"] == status
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["scene_DEM.jsonl"]
    tags, *rows = (tmp_path / "out" / "scene_DEM.jsonl").read_text().splitlines()
    said = parse(json.loads(tags))
    assert said is not None
    assert said.task == "generate"
    np.testing.assert_allclose([json.loads(row) for row in rows], VALUES[0], rtol=1e-6)
    refused = tmtool(*args, "--format", "png")
    assert "--format png: DEM can be written as cog, zarr, lines." in refused.stderr


# A task with its model, run from Python as the command would run it


@dataclass(frozen=True)
class Doubling(Request):
    """What the task asks the model for."""


@dataclass(frozen=True)
class Double(Task):
    """Make each pixel's first band twice as large, `times` over."""

    name: ClassVar[str] = "double"
    asks: ClassVar[type[Request]] = Doubling
    on_patch_grid: ClassVar[bool] = False

    times: int = 1

    @classmethod
    def suffixes(cls) -> str:
        return "double"

    def request(self, inputs: Sequence[str]) -> Request:
        return Doubling()

    def products(self, spec: ModelSpec, entry: ModelEntry) -> tuple[Product, ...]:
        layout = Layout(("double",), "float32", float("nan"))
        return (Product("double", spec.inputs[0], OutputSpec("double", 1), layout, lambda strip: strip.values),)

    def details(self, spec: ModelSpec, grid: Any) -> Mapping[str, Any]:
        return {"times": self.times}


class Stopped(BaseException):
    """What a signal raises: no error, so that what was begun is left for a later run."""


class Doubler(ModelEntry):
    """Stops at the batch `stop_at`, as on a signal."""

    stop_at: ClassVar[int] = 0
    calls: ClassVar[int] = 0

    def build(self, spec: ModelSpec) -> TileModel:
        def model(batch: TileBatch) -> dict[str, np.ndarray]:
            Doubler.calls += 1
            if Doubler.calls == Doubler.stop_at:
                raise Stopped
            return {"double": batch.pixels["DEM"] * 2}

        return model


def test_a_task(make_raster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "double", Double)
    monkeypatch.setitem(MODELS, "doubler", Doubler("a doubler", __name__, ("DEM",), requests=(Doubling,)))
    elevation = np.random.default_rng(2).normal(500, 50, (1, 1500, 60)).astype(np.float32)
    folder = make_raster(elevation, "in/scene.tif").parent
    job = Job(Double(), model="doubler", batch_size=1)
    scenes = list_scenes(Listing([str(folder)]), folder, ["DEM"])
    monkeypatch.setattr(Doubler, "stop_at", 6)
    with pytest.raises(Stopped):
        run_batch(job, scenes)
    assert not (folder / "scene_double.tif").exists()
    first, second = (run_batch(job, scenes).outcomes[0] for _ in range(2))
    assert (first.status, second.status) == ("done", "skipped")
    assert first.result is not None
    assert first.result.from_row > 0
    with rasterio.open(folder / "scene_double.tif") as src:
        np.testing.assert_allclose(src.read(), elevation * 2, rtol=1e-5)
    said = made(folder / "scene_double.tif")
    assert (said.task, said.model, said.details["times"]) == ("double", "doubler", 1)
    assert [s.path for s in list_scenes(Listing([str(folder)]), folder)] == [s.path for s in scenes]
    stale = run_batch(Job(Double(times=2), model="doubler"), scenes).outcomes[0]
    assert "times: was 1, is 2" in str(stale.error)
    with pytest.raises(Exception, match="a doubler cannot generate"):
        Job(generate.Generate(("LULC",)), model="doubler").check()


# A command that only reads products


def makers(paths: list[Path]) -> None:
    """Print what made each product, a line each."""
    for path in paths:
        with rasterio.open(path) as src:
            said = parse(src.tags())
        what = f"{said.task} {said.model} {','.join(said.outputs)}" if said else "no product of tmtool"
        typer.echo(f"{path.name} {what}")


@pytest.fixture
def makers_command() -> Iterator[None]:
    app.command("makers")(makers)
    yield
    app.registered_commands.pop()


@pytest.mark.usefixtures("makers_command")
def test_a_command(tmtool: Any, identity: str, make_raster: Any, tmp_path: Path) -> None:
    path = make_raster(VALUES[:, :40, :40])
    assert tmtool("generate", path, "--out", "LULC,S1GRD", "--model", identity, "-o", tmp_path / "out").exit_code == 0
    result = tmtool("makers", tmp_path / "out" / "scene_LULC.tif", path)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == [
        "scene_LULC.tif generate identity LULC,S1GRD",
        "scene.tif no product of tmtool",
    ]
    assert "makers" in tmtool("--help").stdout
