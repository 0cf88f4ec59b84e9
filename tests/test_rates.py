"""Times of this machine come first: by its cores and instructions, and as the last such run measured; the demo model says what it takes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tmtool.batch import rates
from tmtool.models import MODELS
from tmtool.scene.job import DEVICE_CLASSES, Job
from tmtool.tasks import Generate, Tokenize

SAMPLE = Path(__file__).parents[1] / "samples" / "demo_scene.tif"
JOB = Job(Generate(("S1GRD",)))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is known of earlier runs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tmtool" / "rates.json"


@pytest.fixture
def raster(make_raster: Any) -> Path:
    path: Path = make_raster(np.random.default_rng(0).integers(1, 3000, (12, 300, 300)).astype(np.int16))
    return path


def seconds(result: Any) -> dict[str, float]:
    assert result.exit_code == 0, result.stderr
    found: dict[str, float] = json.loads(result.stdout)["seconds"]
    return found


def test_info_gives_the_times_of_this_machine_first(tmtool: Any, raster: Path) -> None:
    found = seconds(tmtool("info", raster, "--json"))
    first, *others = found
    assert first == f"this machine, estimated: {rates.this_machine(JOB)[0]}"
    assert others == list(DEVICE_CLASSES)
    text = tmtool("info", raster).stdout
    assert text.index("this machine, estimated") < text.index("laptop CPU")


def test_after_a_run_info_gives_what_it_measured(
    tmtool: Any, raster: Path, identity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMTOOL_OUTPUT_DIR", str(tmp_path / "out"))
    run = tmtool("generate", raster, "--out", "S1GRD", "--model", identity, "--json")
    took = json.loads(run.stdout)
    assert took["tiles"] == 4
    info = ("info", raster, "--out", "S1GRD", "--model", identity, "--json")
    found = seconds(tmtool(*info))
    first = next(iter(found))
    assert first.startswith(f"this machine, as measured by 4 tiles into {tmp_path / 'out'} on 2")
    assert found[first] == pytest.approx(took["seconds"], rel=0.05, abs=1e-3)
    planned = tmtool("generate", raster, "--out", "S1GRD", "--model", identity, "--overwrite", "--dry-run")
    assert "as measured by 4 tiles" in planned.stderr
    # others are not of this kind
    assert "measured" not in next(iter(seconds(tmtool("info", raster, "--json"))))
    skipped = tmtool("generate", raster, "--out", "S1GRD", "--model", identity)
    assert "done before" in skipped.stderr
    assert seconds(tmtool(*info)) == found


@pytest.mark.parametrize("content", ["", "{", "[]", '{"generate by base on x": {"speed": 3}}'])
def test_what_is_known_may_be_damaged(tmtool: Any, raster: Path, cache: Path, content: str) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(content)
    assert "measured" not in next(iter(seconds(tmtool("info", raster, "--json"))))


@pytest.mark.parametrize(
    ("flags", "asked", "name", "rate"),
    [
        ({"amx_bf16", "avx512_bf16", "avx512f", "avx2"}, "auto", "4 cores with AMX, bf16", 1.6),
        ({"avx512_bf16", "avx512f", "avx2"}, "auto", "4 cores with AVX512-BF16, bf16", 1.24),
        ({"avx512_bf16", "avx512f", "avx2"}, "fp32", "4 cores with AVX512, fp32", 0.66),
        ({"avx2"}, "auto", "4 cores with AVX2, fp32", 0.268),
        (set(), "auto", "4 cores, fp32", 0.268),
    ],
)
def test_processors(monkeypatch: pytest.MonkeyPatch, flags: set[str], asked: str, name: str, rate: float) -> None:
    monkeypatch.setattr(rates, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(rates, "cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert rates.this_machine(replace(JOB, device="cpu", precision=asked)) == (name, pytest.approx(rate))
    tokenize = rates.this_machine(Job(Tokenize(), device="cpu"))[0]
    assert tokenize.endswith("fp32")  # what auto means there


@pytest.mark.parametrize(
    ("model", "words"),
    [("NVIDIA H100 80GB HBM3", "bf16"), ("NVIDIA A100-SXM4-40GB", "bf16"), ("Tesla T4", "fp32"), ("NVIDIA L4", "bf16")],
)
def test_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str, words: str) -> None:
    card = tmp_path / "gpus" / "0000:17:00.0"
    card.mkdir(parents=True)
    (card / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 229\n")
    monkeypatch.setattr(rates, "GPUS_FOLDER", tmp_path / "gpus")
    monkeypatch.setattr(rates, "version", lambda package: "2.6.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert rates.this_machine(JOB)[0] == f"{model}, {words}"
    assert "core" in rates.this_machine(replace(JOB, device="cpu"))[0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "core" in rates.this_machine(JOB)[0]


def test_info_imports_no_torch() -> None:
    script = (
        f"import sys; from tmtool.cli import app; app(['info', {str(SAMPLE)!r}], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | {"PYTHONWARNINGS": "ignore"})


def test_the_demo_model_says_what_it_takes_and_what_it_makes(tmtool: Any) -> None:
    demo = MODELS["demo"]
    text = " ".join(tmtool("generate", "--help").stdout.replace("│", " ").split())
    takes, makes = ", ".join(demo.inputs[:-1]), ", ".join(demo.outputs[:-1])
    assert f"takes {takes} or {demo.inputs[-1]} and makes {makes} or {demo.outputs[-1]}." in text
    listed = tmtool("models", "list").stdout
    assert f"inputs {' '.join(demo.inputs)}\n" in listed
    assert f"outputs {' '.join(demo.outputs)}\n" in listed
