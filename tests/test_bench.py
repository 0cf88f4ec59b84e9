"""`tmtool bench`: what its figures mean, which combination it names, what it refuses, and rows that say why they are empty."""

import itertools
import json
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from tests.conftest import ROOT
from tests.simple_models import FAILURES
from tmtool.bench import measure, run
from tmtool.bench._energy import meter_of
from tmtool.bench._process import Ended, in_own_process
from tmtool.bench.choice import best
from tmtool.bench.measure import Effort, Failed, Figures, Trial
from tmtool.bench.run import Outcome
from tmtool.cli import _figures
from tmtool.cli import bench as command
from tmtool.models.quality import Likeness, Reference
from tmtool.scene.job import Job, Scene, prepare
from tmtool.settings import Sampling
from tmtool.tasks import Generate

PX = 32
DEMO = ("--model", "demo", "--device", "cpu", "--tiles", 1, "--rounds", 2)


@pytest.fixture(scope="module")
def chip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of the sample that is one small tile."""
    path = tmp_path_factory.mktemp("bench") / "chip.tif"
    with rasterio.open(ROOT / "samples" / "demo_scene.tif") as src:
        part = Window(200, 200, PX, PX)
        profile = {
            "driver": "GTiff",
            "count": src.count,
            "dtype": src.dtypes[0],
            "crs": src.crs,
            "height": PX,
            "width": PX,
        }
        with rasterio.open(path, "w", transform=src.window_transform(part), **profile) as dst:
            dst.write(src.read(window=part))
            dst.descriptions = src.descriptions
    return path


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure in this process, which has imported what takes long, and look for ceilings briefly."""
    monkeypatch.setattr(run, "in_own_process", lambda function, *args: function(*args))
    monkeypatch.setattr(measure, "_CEILING_S", 0.02)


def trial_of(path: Path, model: str = "demo", line: str = "tmtool", **job: Any) -> Trial:
    sampling = Sampling(**{key: job.pop(key) for key in ("solver", "timesteps") if key in job})
    made = Job(Generate(("S1GRD", "LULC"), sampling), model, **{"device": "cpu", "precision": "fp32"} | job)
    return Trial(made, prepare(made, Scene(((None, str(path)),), "chip", Path()), writes=False), line)


@pytest.fixture(scope="module")
def limit(chip: Path) -> Reference:
    """The limit on the chip, of fewer steps: 500 take seconds."""
    from tmtool.models import quality

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality, "LIMIT_STEPS", 200)
        found = measure.measure_limit(trial_of(chip))
    assert not isinstance(found, Failed), found
    return found


@pytest.mark.usefixtures("here")
def test_figures_mean_what_they_say(tmtool: Any, chip: Path, limit: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "measure_limit", lambda trial: limit)
    result = tmtool("bench", chip, *DEMO, "--precision", "fp32", "--json")
    assert result.exit_code == 0, result.stderr
    (line,) = result.stdout.splitlines()
    found = json.loads(line)
    assert (found["task"], found["outputs"], found["tiles"], found["rounds"]) == ("generate", ["S1GRD", "LULC"], 1, 2)
    assert found["inputs"] == {"S2L2A": str(chip)}
    rows = {(row["solver"], row["timesteps"]): row for row in found["combinations"]}
    assert list(rows) == [("ddim", 10), ("dpm", 4)]
    for row in rows.values():
        assert row["status"] == "done"
        assert (row["tile_px"], row["step_px"]) == (PX, PX)
        assert len(row["rounds_s"]) == 2
        assert row["tile_s"] == median(row["rounds_s"]) > 0
        assert row["tiles_per_s"] == 1 / row["tile_s"]
        assert row["mpx_per_s"] == pytest.approx(PX**2 / 1e6 / row["tile_s"])
        assert row["times_floor"] == pytest.approx(row["tile_s"] / row["floor_s"])
        assert min(row["load_s"], row["first_forward_s"], *row["ceiling_tflops"].values()) > 0
        assert row["weights_bytes"] == 4 * row["parameters"] > 4e6
        assert row["host_peak_bytes"] > 200e6
        assert row["device_peak_bytes"] is None
        assert row["precision"] == "fp32"
        assert row["command"].startswith(f"tmtool generate {chip} --out S1GRD,LULC --model demo --device cpu")
    ddim, dpm = rows.values()
    step = (ddim["tflop_per_tile"] - dpm["tflop_per_tile"]) / 6
    assert 0.5 < 10 * step / ddim["tflop_per_tile"] < 1  # the rest is the transformer's and land cover's
    far, near = ddim["quality"]["S1GRD"], dpm["quality"]["S1GRD"]
    assert 0.1 < far["spread"] < 2
    assert 0 < near["distance"] < far["distance"] / 2 < 0.1
    assert near["distance"] == near["end_to_end"]  # as the tokens are the same
    assert near["tokens"] == far["tokens"] == 1
    assert dpm["quality"]["LULC"] == {"classes": 1, "end_to_end": 1, "tokens": 1}
    assert found["machine"].split(", ")[1].endswith("cores")
    (use,) = found["use"]
    assert use["model"] == "demo"
    assert "--solver dpm" in use["command"]
    assert "nowhere farther" in use["because"]


def test_the_limit_is_at_no_distance_from_itself(chip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tmtool import models
    from tmtool.models import quality
    from tmtool.scene.blocks import Models

    trial = trial_of(chip, precision="auto", solver="dpm")
    spec = quality.limit_of(Models(trial.job).spec(trial.inputs))
    sampling = spec.request.sampling
    assert (sampling.solver, sampling.steps, spec.compute.precision) == ("ddim", 500, "fp32")
    monkeypatch.setattr(quality, "LIMIT_STEPS", 40)  # else it takes seconds, twice
    limit = measure.measure_limit(trial)
    spec = quality.limit_of(spec)
    found = quality.judged(models.build(spec), spec, measure._batch(trial, measure._tiles(trial, 1), 1), limit)
    assert (found["S1GRD"].distance, found["S1GRD"].tokens, found["LULC"].classes) == (0, 1, 1)
    spec = quality.sampled(spec, timesteps=30)
    found = quality.judged(models.build(spec), spec, measure._batch(trial, measure._tiles(trial, 1), 1), limit)
    assert 0 < found["S1GRD"].distance < 0.01


def test_other_tokens_are_told_apart_from_other_pixels() -> None:
    """A model that draws other tokens than its limit is at no distance from it where both decode the same ones."""
    from types import SimpleNamespace

    from tests.specs import spec_of
    from tmtool.models.quality import Reference, judged

    class Model:
        device = "cpu"

        def draw(self, embedded: Any, cells: Any) -> Any:
            import torch

            return {"DEM": torch.tensor([[[0, 1], [2, 9]]])}

        def __call__(self, batch: Any) -> Any:
            return {"DEM": self.draw(None, None)["DEM"].numpy()[:, None].astype(np.float32)}

    tokens = np.array([[[0, 1], [2, 3]]])
    limit = Reference({"DEM": tokens}, {"DEM": tokens[:, None].astype(np.float32)})
    spec = spec_of("base", "generate", ("S2L2A",), ("DEM",))
    (found,) = judged(Model(), spec, SimpleNamespace(), limit).values()  # type: ignore[arg-type]
    assert (found.distance, found.tokens) == (0, 0.75)
    assert found.end_to_end == pytest.approx(6 / 4 / 951.272)


@pytest.mark.usefixtures("here")
def test_one_that_cannot_run_says_why_and_the_others_run(tmtool: Any, chip: Path) -> None:
    args = ("--precision", "fp16,fp32", "--solver", "dpm", "--timesteps", 1, "--no-quality")
    result = tmtool("bench", chip, *DEMO, *args)
    assert result.exit_code == 1, result.stderr
    head, _, failed, done, *notes = result.stdout.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, failed, done)]
    assert cells[0][:5] == ["model", "precision", "solver", "batch", "load, s"]
    assert cells[1][:5] == ["demo", "fp16", "dpm 1", "auto", ""]
    assert cells[1][-1] == "--precision fp16 needs a CUDA device, not cpu. Use bf16 or fp32."
    assert cells[2][:4] == ["demo", "fp32", "dpm 1", "1"]
    assert all(cells[2][4:-1])
    assert notes[-1].startswith(f"tmtool generate {chip} --out S1GRD,LULC --model demo")
    assert notes[-1].endswith("--solver dpm --timesteps 1")
    assert "quality was not measured" in notes[-2]
    assert "1 of 2: demo, fp16, dpm 1, batch auto ..." in result.stderr


def test_each_is_measured_in_a_process_of_its_own(tmtool: Any, chip: Path, tmp_path: Path) -> None:
    args = ("--model", "tiny", "--weights", tmp_path, "--device", "cpu", "--solver", "dpm", "--no-quality", "--json")
    result = tmtool("bench", chip, *args)
    assert result.exit_code == 2
    (row,) = json.loads(result.stdout)["combinations"]
    assert row["status"] == "failed"
    assert "TerraMind_v1_tiny.pt" in row["error"]


@pytest.mark.usefixtures("here")
def test_a_batch_without_room_says_so(tmtool: Any, chip: Path, identity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FAILURES["room"] = 2
    args = ("bench", chip, "--model", identity, "--out", "S1GRD", "--device", "cpu", "--batch-size")
    result = tmtool(*args, "1,4", "--json")
    assert result.exit_code == 1, result.stderr
    first, second, third, _ = json.loads(result.stdout)["combinations"]
    assert (first["status"], second["status"]) == ("done", "failed")
    assert "the device is out of memory (CUDA out of memory" in second["error"]
    assert first["times_floor"] is None  # it computes nothing with torch
    assert (third["solver"], third["status"]) == ("dpm", "done")
    monkeypatch.setattr(measure, "limit_bytes", lambda: (1_600_000_000, "a test"))
    result = tmtool(*args, 4096, "--no-quality", "--json")
    assert result.exit_code == 2
    assert "4096 tiles a batch have no room: 1.6 GB may be used (a test)" in result.stdout


@pytest.mark.usefixtures("here")
def test_quality_is_judged_once_for_all_sizes_of_batches(
    tmtool: Any, chip: Path, identity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = []
    monkeypatch.setattr(measure, "judged", lambda *args: judged.append(args) or {"DEM": Likeness(distance=0.25)})
    args = (
        "--model",
        identity,
        "--out",
        "DEM",
        "--device",
        "cpu",
        "--solver",
        "ddim",
        "--batch-size",
        "1,2,3",
        "--json",
    )
    rows = json.loads(tmtool("bench", chip, *args).stdout)["combinations"]
    assert len(judged) == 1
    assert [row["quality"] for row in rows] == [{"DEM": {"distance": 0.25}}] * 3


@pytest.mark.usefixtures("here")
def test_backbones(tmtool: Any, chip: Path, identity: str) -> None:
    result = tmtool("bench", chip, *DEMO, "--task", "embed", "--model", f"demo,{identity}", "--precision", "fp32")
    assert result.exit_code == 0, result.stderr
    head, _, demo, other, *notes = result.stdout.splitlines()
    cells = dict(zip(*([cell.strip() for cell in line.strip("|").split("|")] for line in (head, demo)), strict=True))
    assert "solver" not in cells
    assert cells["embed cosine"] == "1.000000"
    assert float(cells["weights, M"]) == pytest.approx(float(cells["weights, MB"]) / 4, rel=0.01)
    assert f"| {identity}" in other
    lines = [line for line in notes if line.startswith("tmtool ")]
    wanted = "tmtool embed {} --model {} --device cpu --precision fp32"
    assert lines == [wanted.format(chip, name) for name in ("demo", identity)]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--precision", "fp99"), "--precision fp99: choose from auto, fp32"),
        (("--precision", ","), "--precision: names nothing"),
        (("--solver", "ddim,euler"), "--solver euler: choose from ddim, dpm"),
        (("--timesteps", "4,x"), "--timesteps x: give whole numbers"),
        (("--timesteps", "0"), "--timesteps 0 is out of range"),
        (("--batch-size", "many"), "--batch-size many"),
        (("--batch-size", "1,0"), "--batch-size 0 must be at least 1"),
        (("--device", "gpu"), "--device gpu: give one"),
        (("--device", "cuda:0,cuda:1"), "give one"),
        (("--model", "demo,huge"), "Unknown model 'huge'"),
        (("--model", "prithvi-eo-v2-300"), "cannot generate"),
        (("--out", "RGB"), "RGB"),
        (("--crop", "100"), "--crop 100"),
        (("--task", "embed", "--solver", "dpm"), "embed runs no diffusion here"),
        (("--out", "LULC", "--timesteps", "3"), "runs no diffusion here"),
        (("--task", "embed", "--out", "LULC"), "--out LULC: embed makes no modalities"),
        (("--plot", "nowhere/plot.png"), "there is no such folder"),
        (("--in", "DEM=nowhere.tif"), "nowhere.tif"),
    ],
)
def test_bad_values_end_before_anything_runs(
    tmtool: Any, chip: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr(run, "in_own_process", lambda *_: pytest.fail("something ran"))
    inputs = () if "--in" in args else (chip,)
    result = tmtool("bench", *inputs, *(() if "--model" in args else ("--model", "demo")), *args)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_what_would_be_run(tmtool: Any, chip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "in_own_process", lambda *_: pytest.fail("something ran"))
    result = tmtool("bench", chip, *DEMO, "--precision", "fp32,fp16", "--timesteps", "3,8", "--dry-run")
    assert result.exit_code == 1
    rows = [line.split("|")[1:5] for line in result.stdout.splitlines()[2:]]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["demo", precision, f"{solver} {steps}", "auto"]
        for precision, solver, steps in itertools.product(("fp32", "fp16"), ("ddim", "dpm"), (3, 8))
    ]
    assert result.stdout.count("needs a CUDA device") == 4


def test_the_line_to_use_has_the_options_that_were_given(tmtool: Any, chip: Path) -> None:
    named = ("--in", f"S2L2A={chip}", "--out", "NDVI,LULC")
    own = (
        "--batch-size",
        "2",
        "--solver",
        "dpm",
        "--seed",
        "3",
        "--stride",
        "200",
        "--min-overlap",
        "0.1",
        "--window",
        "0,0,16,16",
    )
    result = tmtool("bench", *named, *own, "--model", "demo", "--dry-run", "--json")
    assert result.exit_code == 0, result.stderr
    (row,) = json.loads(result.stdout)["combinations"]
    words = shlex.split(row["command"])
    assert words[:6] == ["tmtool", "generate", *named]
    assert sorted(words[6:]) == sorted(("--model", "demo", *own))


def test_without_an_input_the_sample_is_taken(tmtool: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    result = tmtool("bench", "--model", "demo", "--dry-run", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["inputs"] == {"S2L2A": str(ROOT / command.SAMPLE)}
    monkeypatch.setattr(command, "SAMPLE", Path("nowhere.tif"))
    result = tmtool("bench", "--model", "demo", "--dry-run")
    assert result.exit_code == 2
    assert "INPUT: name a raster" in result.stderr


FOUND = Figures(
    *("a machine", "cpu", "fp32", "fp32", 1, 1.0, 1.0, (2.0, 4.0, 3.0), 0.04, 10, 40, 10**9, None, None, None),
    *(0.1, {"products": 0.1, "convolutions": 0.1}, 1.0),
)


def outcomes(path: Path, **quality: float) -> list[Outcome]:
    """The defaults, and one that is twice as fast and has these likenesses."""
    near = Likeness(distance=0.02, tokens=0.9)
    usual = replace(FOUND, quality={"S1GRD": near})
    other = replace(FOUND, rounds_s=(1.5,), quality={"S1GRD": replace(near, **quality)})
    return [Outcome(trial_of(path), usual), Outcome(trial_of(path, solver="dpm"), other)]


@pytest.mark.parametrize(
    ("quality", "chosen"),
    [({}, "dpm"), ({"distance": 0.01}, "dpm"), ({"distance": 0.03}, "ddim"), ({"tokens": 0.8}, "ddim")],
)
def test_the_fastest_that_is_not_worse_is_chosen(chip: Path, quality: dict[str, float], chosen: str) -> None:
    choice = best(outcomes(chip, **quality))
    assert choice is not None
    assert choice.outcome.trial.job.task.sampling.solver == chosen


def test_what_nothing_is_held_against_is_told(chip: Path) -> None:
    usual, other = outcomes(chip, distance=9.0)
    choice = best([other])
    assert choice is not None
    assert "the defaults are not among them" in choice.because
    assert best([Outcome(usual.trial, Failed("no room"))]) is None


def test_a_plot_is_a_picture(chip: Path, tmp_path: Path) -> None:
    from PIL import Image

    for name, some in (
        ("quality.png", outcomes(chip)),
        ("memory.png", [Outcome(trial_of(chip), FOUND)]),
        ("none.png", []),
    ):
        _figures.draw(tmp_path / name, some)
        assert min(Image.open(tmp_path / name).size) > 300


def test_a_process_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    assert in_own_process(os.getpid) != os.getpid()
    in_own_process(print, "a library says something")
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "a library says something\n")
    with pytest.raises(Ended, match="abort ended with status -6"):
        in_own_process(os.abort)
    assert run._apart(os.abort).why == "the system ended its process, as it does when memory runs out"


def test_energy_of_processors(tmp_path: Path) -> None:
    assert meter_of("cpu", tmp_path) is None
    assert meter_of("mps") is None
    zones = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:1": "package-1", "intel-rapl:2": "psys"}
    for zone, name in zones.items():
        (tmp_path / zone).mkdir()
        for file, value in (("name", name), ("energy_uj", 5_000_000), ("max_energy_range_uj", 9_999_999)):
            (tmp_path / zone / file).write_text(f"{value}\n")
    meter = meter_of("cpu", tmp_path)
    assert meter is not None
    assert (meter.source, meter.joules()) == ("RAPL", 0)
    for zone in zones:
        (tmp_path / zone / "energy_uj").write_text("7000000\n")
    assert meter.joules() == 4  # of two packages; a zone of one is in it
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("1000000\n")
    assert meter.joules() == 8  # it began again at zero
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert meter_of("cpu", tmp_path) is None


NVML = """
class NVMLError(Exception): pass
spent = [1000, 4000]
def nvmlInit(): pass
def nvmlDeviceGetHandleByUUID(uuid): return uuid
def nvmlDeviceGetTotalEnergyConsumption(gpu):
    if gpu != "GPU-1": raise NVMLError("not supported")
    return spent.pop(0)
"""


@pytest.fixture
def nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "pynvml.py").write_text(NVML)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("pynvml", None)


@pytest.mark.usefixtures("nvml")
def test_energy_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from tmtool.models import measures

    monkeypatch.setattr(measures, "device_uuid", {"cuda:0": "GPU-1", "cuda:1": "GPU-2"}.get)
    meter = meter_of("cuda:0")
    assert meter is not None
    assert (meter.source, meter.joules()) == ("NVML", 3.0)
    assert meter_of("cuda:1") is None


def test_arithmetic_is_counted_as_it_is_done() -> None:
    import torch

    from tmtool.models._onednn import use_onednn
    from tmtool.models.device import Compute
    from tmtool.models.measures import Arithmetic, Ceiling, ceiling_of, counted

    linear, conv = torch.nn.Linear(32, 16), torch.nn.Conv2d(3, 5, 3, padding=1)
    use_onednn(linear, Compute("cpu", "fp32"))
    with torch.inference_mode():
        found = counted(lambda: (linear(torch.randn(64, 32)), conv(torch.randn(1, 3, 8, 8))))
    work = Arithmetic(2 * 64 * 32 * 16 / 1e12, 2 * 3 * 5 * 9 * 64 / 1e12)
    assert found == work
    assert Ceiling(2e-6, 4e-6).seconds(work) == pytest.approx(work.products / 2e-6 + work.convolutions / 4e-6)
    assert ceiling_of(Compute("cpu", "no dtype")) is None


def test_tiles_are_those_in_the_middle_with_data(make_raster: Any, identity: str) -> None:
    values = np.random.default_rng(0).integers(1, 3000, (12, 300, 300)).astype(np.int16)
    values[:, 100:200, 100:200] = 0
    trial = trial_of(make_raster(values, nodata=0), identity)
    small = replace(trial.prepared.plan, tiling=type(trial.prepared.plan.tiling)(64, 48, 8))
    trial = replace(trial, prepared=replace(trial.prepared, plan=small))
    tiles = measure._tiles(trial, 3)
    assert len(tiles) == 3
    assert all(tile.pixels for tile in tiles)
    everything = measure._tiles(trial, 1000)
    assert len(everything) == len(trial.prepared.tiles_in_use()) - 1  # one is empty
    batch = measure._batch(trial, tiles, 5, first=2)
    assert batch.rows.tolist() == [tiles[i].tile.row for i in (2, 0, 1, 2, 0)]


def test_rounds_are_whole_batches(chip: Path, identity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_CEILING_S", 0.01)
    found = measure.measure(trial_of(chip, identity, batch_size=2), Effort(tiles=3, rounds=4), None)
    assert isinstance(found, Figures), found
    assert (found.batch_size, len(found.rounds_s), found.quality) == (2, 4, {})
