"""What the system refuses ends in a line and a status: every command, at every limit, without a traceback."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

ROOT = Path(__file__).parents[1]
full = pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs a system with the device /dev/full")

PLANNED = "--model demo -o out --dry-run"
COMMANDS = {
    "help": "--help",
    "info": "info scene.tif --model demo",
    "models list": "models list",
    "models path": "models path demo",
    "models verify": "models verify demo",
    "generate": f"generate scene.tif --out LULC {PLANNED}",
    "tokenize": f"tokenize scene.tif {PLANNED}",
    "reconstruct": f"reconstruct scene.tif {PLANNED}",
    "embed": f"embed scene.tif {PLANNED}",
}
RUN = "generate scene.tif --out LULC --model demo -o out"


@pytest.fixture
def shell(make_raster: Any, tmp_path: Path) -> Any:
    """Run a line of bash in which `tmtool` is the command, beside `scene.tif`; no traceback may come of it."""
    make_raster(np.random.default_rng(0).integers(1, 3000, (12, 40, 40)).astype(np.int16))
    python = tmp_path / "bin" / "tmtool"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tmtool "$@"\n')
    python.chmod(0o755)

    def run(line: str) -> "subprocess.CompletedProcess[str]":
        path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
        env = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, errors="replace", cwd=tmp_path, env=env, timeout=120
        )
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        assert "Exception ignored" not in done.stderr, done.stderr
        return done

    return run


def errors_in(text: str) -> Sequence[str]:
    return [line for line in text.splitlines() if not line.startswith("Warning: ")]


@full
@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_behind_standard_output(shell: Any, command: str) -> None:
    done = shell(f"tmtool {COMMANDS[command]} -q > /dev/full" if "dry-run" in COMMANDS[command] else
                 f"tmtool {COMMANDS[command]} > /dev/full")  # fmt: skip
    assert done.returncode == 1
    assert len(errors_in(done.stderr)) == 1
    assert "standard output cannot be written to (No space left on device)" in done.stderr


@full
def test_products_are_whole_when_their_names_cannot_be_told(shell: Any, tmp_path: Path) -> None:
    done = shell(f"tmtool {RUN} -q > /dev/full")
    assert (done.returncode, len(errors_in(done.stderr))) == (1, 1)
    assert [p.name for p in (tmp_path / "out").iterdir() if not p.name.endswith(".aux.xml")] == ["scene_LULC.tif"]
    with rasterio.open(tmp_path / "out" / "scene_LULC.tif") as src:
        assert src.read(1).any()
    again = shell(f"tmtool {RUN} --json")
    assert json.loads(again.stdout)["status"] == "skipped"


@pytest.mark.parametrize("command", ["info", "models list", "generate"])
def test_a_reader_that_has_gone(shell: Any, command: str) -> None:
    done = shell(f"tmtool {COMMANDS[command]} | head -0; exit ${{PIPESTATUS[0]}}")
    assert done.returncode in (0, 1)  # 0 if all was written before it went
    assert not [line for line in done.stderr.splitlines() if "Error" in line]


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("tmtool info scene.tif >&-", 0),
        ("tmtool info none.tif 2>&-", 2),
        (f"tmtool {COMMANDS['generate']} >&- 2>&- <&-", 0),
        pytest.param("tmtool info none.tif 2> /dev/full", 2, marks=full),
        pytest.param(f"tmtool {COMMANDS['embed']} -v 2> /dev/full", 0, marks=full),
        pytest.param("tmtool no-such-command 2> /dev/full", 2, marks=full),
    ],
)
def test_streams_that_lead_nowhere(shell: Any, line: str, status: int) -> None:
    assert shell(line).returncode == status


@pytest.mark.parametrize("command", ["generate", "tokenize", "reconstruct", "embed", "models verify"])
def test_too_little_address_space_for_torch(shell: Any, command: str) -> None:
    done = shell(f"ulimit -v 500000; tmtool {COMMANDS[command].replace('--dry-run', '-q')}")
    assert done.returncode == 2
    assert len(errors_in(done.stderr)) == 1
    assert "Error: ulimit -v allows 0.5 GB, and torch's libraries alone take" in done.stderr


def test_too_little_address_space_to_start(shell: Any) -> None:
    done = shell("ulimit -v 200000; tmtool info scene.tif")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ulimit -v allows 0.20 GB of address space; looking at rasters takes")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        # a limit on the size of files
        ("ulimit -f 0; tmtool info scene.tif > text", 1, "standard output cannot be written to (File too large)"),
        (
            f"ulimit -f 0; tmtool {COMMANDS['tokenize']} --report r.json",
            2,
            "--report r.json: cannot be written (File too",
        ),
        pytest.param(
            f"tmtool {COMMANDS['tokenize']} --log-file /dev/full",
            0,
            "--log-file /dev/full: cannot be written",
            marks=full,
        ),
        # few open files
        ("ulimit -n 12; tmtool info scene.tif", 0, ""),
        (f"ulimit -n 12; tmtool {COMMANDS['embed']}", 0, ""),
        # folders
        (f"tmtool {COMMANDS['generate'].replace('-o out', '-o /proc/none')}", 2, "Error: /proc/none: "),
        ("env -u HOME TMPDIR=/none tmtool models list", 0, ""),
        # names that are no UTF-8, and another locale
        (r"cp scene.tif $'b\xff.tif'; LC_ALL=C tmtool info $'b\xff.tif'", 2, "GDAL takes names in UTF-8 only"),
        (
            r"cp scene.tif $'b\xff.tif'; LC_ALL=C.UTF-8 tmtool tokenize . --model demo --dry-run --log-file l",
            1,
            "UTF-8 only",
        ),
        (r"tmtool tokenize scene.tif --model demo --dry-run -o $'o\xff'", 2, "GDAL takes names in UTF-8 only"),
        (r"tmtool tokenize scene.tif --model demo --dry-run --report $'r\xff'", 0, ""),
        ("cp scene.tif é.tif; PYTHONIOENCODING=ascii tmtool info é.tif", 0, ""),
        ("cp scene.tif é.tif; PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 LC_ALL=C tmtool info é.tif", 2, "UTF-8 only"),
    ],
)
def test_other_limits(shell: Any, line: str, status: int, words: str) -> None:
    done = shell(line)
    assert done.returncode == status, done.stderr
    assert words in done.stderr


def test_a_run_with_nothing_to_spare(shell: Any, tmp_path: Path) -> None:
    """Without a home and a folder for what is temporary; and with too few files for torch, which is told."""
    done = shell(f"ulimit -n 6; {sys.executable} -m tmtool {RUN} -q")
    assert done.returncode in (1, 2)
    assert "Too many open files" in done.stderr
    done = shell(f"env -u HOME TMPDIR=/none LC_ALL=C tmtool {RUN}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "scene_LULC.tif").exists()


def test_an_error_that_nobody_foresaw(tmp_path: Path, make_raster: Any) -> None:
    """One line without -v; the traceback is in the log file, and with -v on standard error."""
    path = make_raster(np.random.default_rng(0).integers(1, 3000, (12, 40, 40)).astype(np.int16))
    script = (
        "import tmtool.cli._scenes as scenes\n"
        "from tmtool.cli import main\n"
        "def broken(*_): raise ZeroDivisionError('one / none')\n"
        "scenes.list_scenes = broken\n"
        "main()"
    )
    command = [sys.executable, "-c", script, "tokenize", str(path), "--log-file", str(tmp_path / "log")]
    plain = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert plain.returncode == 1
    assert plain.stderr == (
        "Error: internal error, ZeroDivisionError: one / none. Please report it, with what -v shows.\n"
    )
    assert "Traceback" in (tmp_path / "log").read_text()
    verbose = subprocess.run([*command, "-v"], capture_output=True, text=True, cwd=ROOT)
    assert verbose.returncode == 1
    assert "Traceback" in verbose.stderr
    said = subprocess.run([*command, "-v", "--log-format", "json"], capture_output=True, text=True, cwd=ROOT)
    assert "Traceback" in json.loads(said.stderr)["traceback"]
