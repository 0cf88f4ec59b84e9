"""`tmtool models`, and fetching from a hub on 127.0.0.1 whose files have the real architecture at small width."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.hub import Hub, serving
from tmtool.modality import OUTPUTS
from tmtool.models import MODELS
from tmtool.models.weights import core_file, tokenizer_file

MAIN = (
    "import pytest; from tests import narrow; narrow.patch(pytest.MonkeyPatch()); from tmtool.cli import main; main()"
)
FILES = (core_file("tiny"), *(tokenizer_file(m) for m in OUTPUTS))


@pytest.fixture
def hub(weights_folder: Path) -> Iterator[Hub]:
    with serving({str(file): weights_folder / file.filename for file in FILES}) as server:
        yield server


@pytest.fixture
def command(hub: Hub, tmp_path: Path) -> Any:
    """Run tmtool, with a narrow TerraMind, in a process that knows only the local hub and an empty cache."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TMTOOL_"))}
    env |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_ETAG_TIMEOUT": "5",
    }

    def run(*args: object) -> subprocess.CompletedProcess[str]:
        main = ["-m", "tmtool"] if "fetch" in args else ["-c", MAIN]  # what builds no model needs no narrow one
        words = [sys.executable, *main, *(str(a) for a in args)]
        return subprocess.run(
            words, capture_output=True, text=True, check=False, env=env, cwd=Path(__file__).parents[1]
        )

    return run


def fetched(hub: Hub) -> set[str]:
    return {path.rpartition("/")[2] for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path}


def test_fetch_resume_verify_run_and_then_offline(command: Any, hub: Hub, make_raster: Any, tmp_path: Path) -> None:
    hub.cut_once_after = 25_000_000  # huggingface_hub keeps whole chunks of 10 MiB
    done = command("models", "fetch", "tiny", "--for", "generate", "--out", "LULC")
    assert done.returncode == 0, done.stderr
    assert "fetching ibm-esa-geospatial/TerraMind-1.0-tiny/TerraMind_v1_tiny.pt" in done.stderr
    assert [Path(line).name for line in done.stdout.split()] == ["TerraMind_v1_tiny.pt", "TerraMind_Tokenizer_LULC.pt"]
    assert fetched(hub) == {
        "TerraMind_v1_tiny.pt",
        "TerraMind_Tokenizer_LULC.pt",
    }  # and nothing that the job does not use
    assert hub.cut_once_after is None
    resumed = [int(wanted.removeprefix("bytes=").partition("-")[0]) for _, _, wanted in hub.requests if wanted]
    assert any(start >= 20 << 20 for start in resumed), hub.requests
    for line in done.stdout.split():
        name = Path(line).name
        served = next(p for p in hub.files.values() if p.name == name)
        assert Path(line).read_bytes() == served.read_bytes()

    seen = len(hub.requests)
    assert "tiny: complete, all 2 files load" in command("models", "verify", "tiny", "--out", "LULC").stderr
    raster = make_raster(np.random.default_rng(0).integers(1, 3000, (12, 40, 40)).astype(np.int16))
    args = ["generate", raster, "--out", "LULC", "--model", "tiny", "-o", tmp_path / "out", "--overwrite"]
    assert command(*args).returncode == 0
    assert len(hub.requests) == seen  # what is in the cache is not asked for again

    hub.status = dict.fromkeys(hub.files, 500)
    offline = command(*args, "--offline")
    assert offline.returncode == 0, offline.stderr
    assert len(hub.requests) == seen
    missing = command("generate", raster, "--out", "S1GRD", "--model", "tiny", "-o", tmp_path / "out", "--offline")
    assert missing.returncode == 2
    assert "TerraMind_Tokenizer_S1GRD.pt" in missing.stderr
    assert "hf download" in missing.stderr
    assert "TerraMind_v1_tiny.pt" not in missing.stderr
    assert len(hub.requests) == seen


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "the hub answered 404"),
        (401, "401 or 404.*HF_TOKEN"),
        (403, "Accept its terms"),
        (400, "answered with an error"),
    ],
)
def test_what_the_hub_refuses_is_said(command: Any, hub: Hub, status: int, message: str) -> None:
    import re

    hub.status[str(tokenizer_file("LULC"))] = status
    done = command("models", "fetch", "tiny", "--out", "LULC")
    assert done.returncode == 2
    assert re.search(message, done.stderr), done.stderr
    assert "TerraMind_Tokenizer_LULC.pt" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("status", [401, 403])
def test_closed_repositories_are_said_to_be(command: Any, hub: Hub, status: int) -> None:
    hub.status["FAST-EO/TerraMind-0.1-base/TerraMind_v01_base.pt"] = status
    done = command("models", "fetch", "v01-base", "--out", "caption")
    assert done.returncode == 2
    assert "FAST-EO/TerraMind-0.1-base/TerraMind_v01_base.pt" in done.stderr
    assert "Ask FAST-EO for access" in done.stderr
    assert "HF_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr


def test_html_in_place_of_a_file_is_refused(command: Any, hub: Hub, make_raster: Any, tmp_path: Path) -> None:
    page = tmp_path / "page"
    page.write_text("<!DOCTYPE html><html><body>Sign in to the network</body></html>")
    hub.files[str(tokenizer_file("LULC"))] = page
    assert command("models", "fetch", "tiny", "--out", "LULC").returncode == 0
    done = command("models", "verify", "tiny", "--out", "LULC")
    assert done.returncode == 2
    assert "TerraMind_Tokenizer_LULC.pt" in done.stderr
    assert "found a web page. Copy or fetch it again." in done.stderr


def test_a_file_of_another_size_is_recognised(narrow_terramind: Path, tmtool: Any, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "w"
    shutil.copytree(narrow_terramind, folder)
    path = folder / core_file("tiny").filename
    state = torch.load(path, weights_only=True)
    state = {k: torch.zeros(*v.shape[:-1], 768) if v.shape and v.shape[-1] == 64 else v for k, v in state.items()}
    torch.save(state, path)
    result = tmtool("models", "verify", "tiny", "--out", "LULC", "--weights", folder)
    assert result.exit_code == 2
    assert "The file holds TerraMind base" in result.stderr


def test_list_names_all_models_and_their_files(tmtool: Any) -> None:
    text = tmtool("models", "list").stdout
    for name in MODELS:
        assert f"\n{name}" in f"\n{text}"
    for word in ("Apache-2.0", "not here yet", "TerraMind_v1_large.pt", "demo_weights"):
        assert word in text


def test_path_prints_paths_or_what_is_missing(tmtool: Any, narrow_terramind: Path) -> None:
    result = tmtool("models", "path", "tiny", "--out", "NDVI", "--weights", narrow_terramind)
    assert result.stdout.split() == [
        str(narrow_terramind / f) for f in ("TerraMind_v1_tiny.pt", "TerraMind_Tokenizer_NDVI.pt")
    ]
    assert tmtool("models", "path", "huge").exit_code == 2
    assert "Did you mean" in tmtool("models", "path", "tiny", "--out", "NDVY").stderr


def test_verify_reads_every_tensor(tmtool: Any, narrow_terramind: Path) -> None:
    result = tmtool("models", "verify", "tiny", "--out", "S1GRD,LULC", "--weights", narrow_terramind)
    assert result.exit_code == 0, result.stderr
    assert "complete, all 3 files load" in result.stderr
    assert all(len(line.split()[0]) == 64 for line in result.stdout.splitlines())
