"""A dry run ends as the run would: the same status and message; it builds no model, fetches nothing and leaves nothing."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.hub import Hub, serving
from tests.test_cluster import free_port, process, worker
from tmtool.models.weights import core_file, tokenizer_file

ROOT = Path(__file__).parents[1]
FILES = (core_file("tiny"), tokenizer_file("LULC"))


@pytest.fixture
def scene(make_raster: Any) -> Path:
    values = np.random.default_rng(0).integers(1, 3000, (12, 40, 40)).astype(np.int16)
    path: Path = make_raster(values)
    return path


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def said(result: Any) -> str:
    """Return what was said about it, without the announcement of the demo model."""
    lines: list[str] = result.stderr.splitlines()
    return "\n".join(line for line in lines if "DEMONSTRATION" not in line)


WRONG = [
    (["--device", "tpu"], 2, "--device tpu: not available here. Choose from"),
    (["--device", "cuda:99"], 2, "--device cuda:99: this machine has"),
    (["--device", "cpu", "--precision", "int3"], 2, "--precision int3: choose from auto, fp32, bf16, fp16."),
    (["--device", "cpu", "--precision", "fp16"], 2, "--precision fp16 needs a CUDA device"),
    (["--model", "tiny", "--weights", "{tmp}/nope"], 2, "nope: no such folder"),
    (["--model", "tiny", "--weights", "{tmp}/half"], 2, "TerraMind_Tokenizer_LULC.pt"),
    (["--model", "tiny", "--offline"], 2, "nothing is fetched in this run"),
    (["--device", "cpu", "--compile", "on"], 2, "--compile on: needs a C++ compiler, and no-compiler is not here"),
    (["--max-memory", "100M"], 1, "0.1 GB may be used"),
    (["--report", "{tmp}/half"], 2, "--report {tmp}/half: cannot be written (Is a directory)"),
    (["--report", "{tmp}/file/report.json"], 2, "--report {tmp}/file/report.json: cannot be written"),
    (["--log-file", "{tmp}/half"], 2, "--log-file {tmp}/half: cannot be written (Is a directory)"),
    (["--output-dir", "{tmp}/file/out"], 2, "{tmp}/file/out: cannot be written to"),
    (["--cluster", "local:0"], 2, "--cluster local:0: give local:N"),
    (["--cluster", "local:2", "--device", "tpu"], 2, "--device tpu: not available here. Choose from"),
]


@pytest.mark.parametrize(("options", "status", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_found_as_by_the_run(
    tmtool: Any,
    scene: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    status: int,
    message: str,
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "TerraMind_v1_tiny.pt").touch()
    monkeypatch.setenv("CXX", "no-compiler")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    before = everything(tmp_path)
    args = ["generate", scene, "--out", "LULC", "--model", "demo", "-o", tmp_path / "out"]
    args += [option.format(tmp=tmp_path) for option in options]
    dry = tmtool(*args, "--dry-run")
    assert dry.exit_code == status, dry.stderr
    assert message.format(tmp=tmp_path) in dry.stderr
    assert everything(tmp_path) == before
    run = tmtool(*args)
    assert (run.exit_code, said(run)) == (status, said(dry))


def test_local_cuda_without_a_gpu(tmtool: Any, scene: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    args = ("generate", scene, "--out", "LULC", "--model", "demo", "--cluster", "local-cuda")
    dry, run = tmtool(*args, "--dry-run"), tmtool(*args)
    assert dry.exit_code == run.exit_code == 2
    assert "local-cuda: this machine has no CUDA device" in dry.stderr
    assert said(dry) == said(run)


def test_a_checkpoint_that_is_not_there(tmtool: Any, scene: Path, tmp_path: Path) -> None:
    args = ("embed", scene, "--model", "tiny", "--checkpoint", tmp_path / "none.ckpt", "-o", tmp_path)
    dry, run = tmtool(*args, "--dry-run"), tmtool(*args)
    assert dry.exit_code == run.exit_code == 2
    assert said(dry) == said(run)
    assert "none.ckpt: no such file" in dry.stderr


def test_a_report_is_written_and_nothing_else(tmtool: Any, scene: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    args = ("generate", scene, "--out", "LULC", "--model", "demo", "-o", tmp_path / "out", "--cluster", "local:2")
    result = tmtool(*args, "--report", report, "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert json.loads(report.read_text())["counts"] == {"planned": 1}
    assert everything(tmp_path) == ["report.json", "scene.tif"]


# --- weights on the hub ----------------------------------------------------------------------------------------------


@pytest.fixture
def hub(weights_folder: Path) -> Iterator[Hub]:
    with serving({str(file): weights_folder / file.filename for file in FILES}) as server:
        yield server


@pytest.fixture
def dry(hub: Hub, scene: Path, tmp_path: Path) -> Any:
    """Make a dry run in a process that knows only the local hub and an empty cache."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TMTOOL_"))}
    env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}

    def run(**more: str) -> "subprocess.CompletedProcess[str]":
        words = [
            sys.executable,
            "-m",
            "tmtool",
            "generate",
            str(scene),
            "--out",
            "LULC",
            "--model",
            "tiny",
            "--dry-run",
        ]
        return subprocess.run(
            [*words, "-o", str(tmp_path / "out")], capture_output=True, text=True, env=env | more, cwd=ROOT
        )

    return run


def test_weights_that_would_be_fetched_are_told_and_not_fetched(dry: Any, hub: Hub, tmp_path: Path) -> None:
    before = everything(tmp_path)
    done = dry()
    assert done.returncode == 0, done.stderr
    for file in FILES:
        assert f"the run would fetch {file} (about {file.megabytes} MB) from the hub" in done.stderr
    assert done.stdout == f"{tmp_path / 'out' / 'scene_LULC.tif'}\n"
    assert {method for method, path, _ in hub.requests if "/resolve/" in path} == {"HEAD"}
    assert everything(tmp_path) == before


def test_a_hub_that_refuses_or_is_not_there(dry: Any, hub: Hub) -> None:
    hub.status[str(FILES[0])] = 403
    done = dry()
    assert done.returncode == 2
    assert "the hub asks for permission" in done.stderr
    done = dry(HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "the hub cannot be reached" in done.stderr


# --- clusters elsewhere ----------------------------------------------------------------------------------------------


def test_a_scheduler_that_does_not_answer(
    tmtool: Any, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tmtool.batch._cluster._CONNECT_S", 0.5)
    args = ("generate", scene, "--out", "LULC", "--model", "demo", "-o", tmp_path / "out")
    with socket.socket() as deaf:  # takes connections and says nothing
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        address = f"tcp://127.0.0.1:{deaf.getsockname()[1]}"
        result = tmtool(*args, "--cluster", address, "--dry-run")
    assert result.exit_code == 2
    assert f"--cluster {address}: no scheduler with a worker answers there" in result.stderr
    assert everything(tmp_path) == ["scene.tif"]


def test_a_file_that_is_no_scheduler_file(tmtool: Any, scene: Path) -> None:
    args = ("generate", scene, "--out", "LULC", "--model", "demo", "--cluster", Path(__file__))
    dry, run = tmtool(*args, "--dry-run"), tmtool(*args)
    assert dry.exit_code == run.exit_code == 2
    assert "is no scheduler file" in dry.stderr
    assert said(dry) == said(run)


def test_a_scheduler_with_and_without_a_worker(
    tmtool: Any, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tmtool.batch._cluster._FIRST_WORKER_S", 1.0)
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    args = ("generate", scene, "--out", "LULC", "--model", "demo", "-o", tmp_path / "out", "--cluster", address)
    with process("dask", "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"):
        result = tmtool(*args, "--dry-run")
        assert result.exit_code == 2
        assert "no scheduler with a worker answers there" in result.stderr
        monkeypatch.setattr("tmtool.batch._cluster._FIRST_WORKER_S", 60.0)
        with worker(address):
            result = tmtool(*args, "--dry-run")
            assert result.exit_code == 0, result.stderr
            assert "cluster: 1 worker" in result.stderr
            result = tmtool(*args, "--device", "tpu", "--dry-run")
            assert result.exit_code == 2
            assert "worker tcp://" in result.stderr
            assert "--device tpu: not available here" in result.stderr
    assert everything(tmp_path) == ["scene.tif"]
