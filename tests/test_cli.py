"""Help is quick because nothing heavy is imported; `info` says what a raster is; imports point down only."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PACKAGE = Path(__file__).parents[1] / "tmtool"
HEAVY = {"torch", "terratorch", "rasterio", "numpy", "xarray", "dask", "huggingface_hub", "diffusers"}


@pytest.mark.parametrize(
    "args", [["--help"], ["generate", "--help"], ["bench", "--help"], ["info", "--help"], ["--version"], []]
)
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    script = (
        "import sys\nfrom tmtool.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('MODULES', *sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.rpartition("MODULES")[2].split())
    assert "typer" in loaded
    assert not loaded & HEAVY


def test_help_has_an_example_and_all_shared_options(tmtool: Any) -> None:
    text = tmtool("generate", "--help").stdout
    for word in ("Example", "--out", "--in", "--seed", "--crop", "--weights", "--precision", "--json", "--dry-run"):
        assert word in text


def test_info_says_what_and_why(tmtool: Any, make_raster: Any) -> None:
    values = np.random.default_rng(0).integers(1, 3000, (12, 900, 900)).astype(np.int16)
    values[:, :, 400:] = 0
    path = make_raster(values, nodata=0)
    text = tmtool("info", path).stdout
    for word in ("S2L2A", "12 bands", "EPSG:32719", "25 (5 x 5)", "empty", "memory", "disk", "H200"):
        assert word in text
    facts = json.loads(tmtool("info", path, "--json").stdout)
    assert facts["tiles"] == 25
    assert facts["empty_share"] == pytest.approx(10 / 25)
    assert facts["disk_bytes"] > 900 * 900 * 9
    assert facts["bands"]["B8A"] == 9
    seconds = facts["seconds"]
    assert seconds["laptop CPU, 8 cores, fp32"] > 100 * seconds["data-centre GPU (H100, H200), bf16"] > 0


def test_info_of_a_bad_raster(tmtool: Any, tmp_path: Path) -> None:
    result = tmtool("info", tmp_path / "none.tif")
    assert result.exit_code == 2
    assert "no such file" in result.stderr


def test_log_file(tmtool: Any, tmp_path: Path, make_raster: Any, identity: str) -> None:
    path = make_raster(np.full((12, 40, 40), 5, np.int16) + 50 * np.arange(40, dtype=np.int16))
    log = tmp_path / "run.log"
    result = tmtool("generate", path, "--out", "S1GRD", "--model", identity, "-o", tmp_path, "-q", "--log-file", log)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "1 tiles (0 empty)" in log.read_text()


LAYERS = [
    {"cli", "api"},
    {"batch", "bench"},
    {"scene"},
    {"pictures", "catalog"},
    {"tasks"},
    {"tiles"},
    {"models"},
    {"products"},
    {"source"},
    {"files"},
    {"compat"},
    {"modality", "grid", "dates", "errors", "names", "limits", "settings", "provenance"},
]


def imports(path: Path) -> set[str]:
    """All modules that a file imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def place(module: str) -> int | None:
    parts = module.split(".")
    if parts[0] != "tmtool" or len(parts) < 2:
        return None
    return next((i for i, layer in enumerate(LAYERS) if parts[1] in layer), None)


OPEN = {"cli", "source.deliveries", "tasks", "models.families"}
"""Where files are added by those who extend tmtool: a file there has a plain name."""


def test_modules_of_one_room_have_an_underscore() -> None:
    names = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    used = {name: imports(path) for name, path in names.items()}
    for name, path in names.items():
        room, _, module = name.rpartition(".")
        if not room or module.startswith("__"):
            continue
        users = [n for n, found in used.items() if any(f"{m}.".startswith(f"tmtool.{name}.") for m in found)]
        outside = [n for n in users if not n.startswith(f"{room}.")]
        if module.startswith("_"):
            assert not outside, f"{path.name} is used by {outside}"
        elif room not in OPEN and name not in {"models.entry", "models.registry", "models.demo"}:  # of models.__all__
            assert outside, f"{name} is of its room only"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down_only(path: Path) -> None:
    here = ".".join(("tmtool", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    mine = place(here)
    if mine is None:
        return
    for module in imports(path):
        other = place(module)
        same_package = module.split(".")[1:2] == here.split(".")[1:2]
        foundation = mine == other == len(LAYERS) - 1
        assert other is None or other > mine or same_package or foundation, f"{here} imports {module}"
        assert not here.startswith("tmtool.compat") or other is None or module.startswith("tmtool.errors"), module
        top = module.partition(".")[0]
        assert top != "typer" or here.startswith("tmtool.cli")
        assert top != "rich" or here.startswith("tmtool.cli") or here == "tmtool.scene.progress"
        assert top != "terratorch" or here.startswith("tmtool.models.")
        assert top != "torch" or here.split(".")[1] in {"models", "device", "noise", "compat"}
