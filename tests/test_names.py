"""Products are named like their inputs, with any character that a file's name can hold; what cannot be is told."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import rasterio
import xarray

VALUES = np.random.default_rng(0).integers(1, 3000, (12, 40, 40)).astype(np.int16)
ODD = [
    "50% of 'it'",
    "%20%s%d",
    'a"b"',
    "NETCDF:a:b",
    "[x]{y}*",
    "<a>|&;#$~`",
    "k=v,w!@^",
    "é漢",
    "http:a",
    "back\\slash",
]


@pytest.mark.parametrize("name", ODD)
def test_a_name_is_kept_in_every_format(
    tmtool: Any, identity: str, make_raster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = make_raster(VALUES)
    path = path.rename(path.with_name(f"{name}.tif"))
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")  # where a product's path begins with its name, which might look like a driver's
    for args in (("generate", "--out", "LULC"), *(("embed", "--format", f) for f in ("zarr", "geoparquet"))):
        for status in ("done", "skipped"):
            result = tmtool(*args, path, "--model", identity, "--json")
            assert result.exit_code == 0, result.stderr
            assert json.loads(result.stdout)["status"] == status
            assert "which file names should not contain" not in result.stderr
    names = [f"{name}_LULC.tif", f"{name}_LULC.tif.aux.xml", f"{name}_embed.zarr", f"{name}_embed.parquet"]
    assert sorted(os.listdir()) == sorted(names)
    with rasterio.open(Path(names[0]).absolute()) as src:
        assert src.read(1).shape == (40, 40)
        assert src.tags(1)["CLASS_1"] == "water"
    assert xarray.open_zarr(Path(names[2]).absolute()).embedding.shape == (4, 3, 3)
    assert pyarrow.parquet.read_table(Path(names[3]).absolute()).num_rows == 9


@pytest.mark.parametrize(
    ("name", "stem", "told"),
    [
        ("two\nlines", "two_lines", r"'\n'"),
        ("bell\x07\x1b[1m", "bell__[1m", r"'\x07' '\x1b'"),
        ("a\u2028b", "a_b", "u2028"),
    ],
)
def test_what_no_name_should_hold_is_replaced_and_told(
    tmtool: Any, identity: str, make_raster: Any, tmp_path: Path, name: str, stem: str, told: str
) -> None:
    path = make_raster(VALUES)
    path = path.rename(path.with_name(f"{name}.tif"))
    result = tmtool("generate", path, "--out", "S1GRD", "--model", identity, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{tmp_path / 'out' / stem}_S1GRD.tif\n"
    assert f"products are named {stem}_..." in result.stderr
    assert told in result.stderr


def test_parts_of_a_file_are_named_without_gdals_syntax(
    tmtool: Any, identity: str, make_raster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_raster(VALUES)
    monkeypatch.chdir(path.parent)
    result = tmtool("generate", f"GTIFF_DIR:1:{path.name}", "--out", "S1GRD", "--model", identity, "-o", "out")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "out/GTIFF_DIR_1_scene_S1GRD.tif\n"
    assert "with _ in place of ':'" in result.stderr


def test_the_bar_shows_names_as_they_are() -> None:
    import io

    from rich.console import Console

    from tmtool.scene.progress import RichReporter

    screen = io.StringIO()
    with RichReporter(Console(file=screen, force_terminal=True, width=120)) as reporter:
        reporter.begin("a[bold]b[/x]", 2)
        reporter.advance(1)
        reporter.phase("writing")
    assert "a[bold]b[/x]" in screen.getvalue()
