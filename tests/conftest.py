"""Fixtures that several files use."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # narrow models gain nothing from threads, and lose much on a busy machine

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT.parent / "shared" / "data" / "terramind_examples"
TRANSFORM = Affine(10, 0, 399_960, 0, -10, 6_300_040)


_LONG = ("test_unattended", "test_cluster", "test_out_of_memory", "test_memory", "test_api", "test_terramind")
"""Files that take long: they go first, so that all processes end at about one time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order files by how long they take; each runs in one process."""
    place = {name: i for i, name in enumerate(_LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(_LONG)))


@pytest.fixture(scope="session")
def examples() -> Path:
    """Real chips, one folder a modality."""
    if not EXAMPLES.is_dir():
        pytest.skip(f"the real example rasters are not at {EXAMPLES}")
    return EXAMPLES


@pytest.fixture
def make_raster(tmp_path: Path) -> Any:
    """Write an array `(C, H, W)` as a GeoTIFF in UTM 19S and return its path."""

    def make(values: np.ndarray, name: str = "scene.tif", names: list[str] | None = None, **profile: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        profile = {"crs": "EPSG:32719", "transform": TRANSFORM, "dtype": values.dtype} | profile
        count, height, width = values.shape
        with rasterio.open(path, "w", driver="GTiff", count=count, height=height, width=width, **profile) as dst:
            dst.write(values)
            for i, band in enumerate(names or []):
                dst.set_band_description(i + 1, band)
        return path

    return make


@pytest.fixture(scope="session")
def weights_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with narrow weights of every part, in the hub's names."""
    from tests import narrow

    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        narrow.patch(patch)
        narrow.write_weights(folder)
    return folder


@pytest.fixture
def narrow_terramind(monkeypatch: pytest.MonkeyPatch, weights_folder: Path) -> Path:
    """TerraMind tiny at a small width, registered as `tiny`; returns the folder of its weights."""
    from tests import narrow

    narrow.patch(monkeypatch)
    return weights_folder


@pytest.fixture
def identity() -> Any:
    """Name of a registered model that gives its input back; no torch needed."""
    from tests.simple_models import registered

    with registered() as name:
        yield name


@pytest.fixture
def tmtool() -> Any:
    """Run the command in this process; returns typer's result (exit_code, stdout, stderr)."""
    import typer
    from typer.testing import CliRunner

    from tmtool.cli import app

    def run(*args: object, stdin: str | None = None) -> Any:
        result = CliRunner().invoke(app, [str(a) for a in args], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        ended = result.exception and result.exception.__context__
        if (
            isinstance(ended, typer.Exit) and ended.__cause__
        ):  # an error that nobody foresaw, which the command has turned into one line
            raise ended.__cause__
        return result

    return run
