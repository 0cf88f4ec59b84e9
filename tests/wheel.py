"""The wheel in dist/, installed alone into a fresh environment outside the checkout: what is in it, and every command. `make wheel`.

It runs beside what the base installation has: the distributions that the wheel requires, and those that these require, are linked from the
environment of the tests. What only an extra brings is not there.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import venv
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import tmtool
from tests.conftest import ROOT
from tests.test_documented import commands

SAMPLES = ROOT / "samples"
SCENE = str(SAMPLES / "demo_scene.tif")
SITE = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
PART = (SCENE, "--model", "demo", "--window", "0,0,64,64", "-o", "out")

DRIVER = """
import json, sys
from importlib.metadata import version
import tmtool, tmtool.cli
for args in json.load(sys.stdin):
    sys.argv = ["tmtool", *args]
    try:
        tmtool.cli.main()
    except SystemExit as end:
        if end.code:
            sys.exit(f"tmtool {' '.join(args)}: status {end.code}")
    print("DONE", *args, flush=True)
print("WHERE", tmtool.__file__, version("tmtool"))
"""


@pytest.fixture(scope="module")
def wheel() -> Path:
    """The one wheel that `make wheel` has built."""
    (path,) = (ROOT / "dist").glob("*.whl")
    return path


def required(names: Iterable[str], extras: Sequence[str], found: dict[str, Distribution]) -> dict[str, Distribution]:
    """Add to `found` what these requirements are met by here, and what those require, by canonical name."""
    for requirement in map(Requirement, names):
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        name = canonicalize_name(requirement.name)
        try:
            there = distribution(name)
        except PackageNotFoundError:  # such as CUDA's, where torch came without
            continue
        if name not in found or requirement.extras:
            found[name] = there
            required(there.requires or (), sorted(requirement.extras), found)
    return found


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel, and with links to the distributions of the base installation."""
    folder = tmp_path_factory.mktemp("wheel") / "env"
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True)
    site = folder / SITE
    (own,) = Distribution.discover(name="tmtool", path=[str(site)])
    for there in required(own.requires or (), (), {}).values():
        for top in {file.parts[0] for file in there.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(there.locate_file(top))))
    return folder


def run(environment: Path, *command: str, stdin: str | None = None) -> str:
    """Run a program of the environment in the folder beside it, and return its standard output."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "TMTOOL_", "OMP_"))}
    done = subprocess.run(
        [str(environment / "bin" / command[0]), *command[1:]],
        input=stdin,
        cwd=environment.parent,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_wheel_holds_the_package_and_its_data_alone(wheel: Path) -> None:
    held = {name for name in ZipFile(wheel).namelist() if not name.endswith("/")}
    kept = [path for path in (ROOT / "tmtool").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    package = {str(path.relative_to(ROOT)) for path in kept if path.name != "ol.entry.js"}  # what ol.js is bundled from
    info = f"tmtool-{tmtool.__version__}.dist-info"
    rest = {name.removeprefix(f"{info}/") for name in held - package}
    licences = {"licenses/LICENSE", "licenses/tmtool/pictures/page/ol.LICENSE"}
    assert package <= held
    assert rest == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", *licences}


def test_the_demo_runs_as_make_runs_it(environment: Path) -> None:
    recipe = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (line,) = re.findall(r"^\.venv/bin/(tmtool .*)$", recipe.replace("\\\n", " "), re.M)
    args = [arg.replace("samples/", f"{SAMPLES}/") for arg in shlex.split(line)]
    printed = run(environment, *args).split()
    assert printed == [f"out/demo_scene_{name}.tif" for name in ("LULC", "NDVI", "S1GRD")]
    assert all((environment.parent / path).is_file() for path in printed)


def test_every_command_runs(environment: Path) -> None:
    work: Mapping[str, Sequence[str]] = {
        "info": (SCENE, "--model", "demo", "--out", "LULC"),
        "generate": (*PART, "--out", "LULC", "--overwrite"),
        "tokenize": PART,
        "reconstruct": ("out/demo_scene_S2L2A_tokens.tif", "--model", "demo", "-o", "out"),
        "embed": (*PART, "--format", "zarr"),
        "predict": (
            *(SCENE, "--config", str(SAMPLES / "water.yaml"), "--checkpoint", str(SAMPLES / "water.ckpt")),
            *("--window", "0,0,64,64", "-o", "out"),
        ),
        "preview": ("out", "--html", "out/page.html"),
        "compare": ("out/demo_scene_LULC.tif", "out/demo_scene_LULC.tif"),
        "stac": ("out",),
        "bench": (SCENE, "--model", "demo", "--dry-run"),
        "models list": (),
        "models path": ("demo", "--out", "LULC"),
        "models verify": ("demo", "--out", "LULC"),
        "models fetch": ("demo", "--out", "LULC"),
    }
    paths = {path.removeprefix("tmtool").strip(): command for path, command in commands()}
    groups = {path for path, command in paths.items() if getattr(command, "commands", None)}
    assert set(work) == set(paths) - groups
    lines = [[*path.split(), "--help"] for path in paths] + [[*path.split(), *args] for path, args in work.items()]
    printed = run(environment, "python", "-c", DRIVER, stdin=json.dumps(lines))
    assert re.findall(r"^DONE (.*)$", printed, re.M) == [" ".join(line) for line in lines]
    assert f"WHERE {environment / SITE / 'tmtool' / '__init__.py'} {tmtool.__version__}" in printed
    assert (environment.parent / "out" / "page.html").is_file()


def test_what_an_extra_brings_is_asked_for(environment: Path) -> None:
    """The environment is the base installation's: it has no Dask scheduler, and says which extra has."""
    script = (
        "import tmtool.batch._cluster as c\ntry:\n    c.check_address('local:1')\nexcept Exception as e:\n    print(e)"
    )
    assert "pip install 'tmtool[cluster]'" in run(environment, "python", "-c", script)
