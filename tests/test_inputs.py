"""What is taken as input: files, folders, globs and lists, in a stable order, without what tmtool wrote itself."""

import io
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from tmtool.batch import _listing as inputs
from tmtool.batch._listing import Listing, list_scenes
from tmtool.errors import InputError, UsageError
from tmtool.provenance import PROVENANCE_TAG

OUT = Path("out")
PIXELS = np.ones((1, 4, 4), np.uint8)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder `data`, named so from the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    return Path("data")


@pytest.fixture
def written(make_raster: Any) -> Any:
    """Write a raster that carries the tag of a product."""

    def write(path: Path, task: str = "generate", values: np.ndarray = PIXELS, **said: Any) -> str:
        make_raster(values, str(path))
        tag(path, {"task": task} | said)
        return str(path)

    return write


def tag(path: Path, said: Any) -> None:
    with rasterio.open(path, "r+") as dst:
        dst.update_tags(**{PROVENANCE_TAG: json.dumps(said)})


def touch(folder: Path, *names: str) -> list[str]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [str(folder / name) for name in names]


def paths(*arguments: object, **options: Any) -> list[str]:
    return [scene.path for scene in list_scenes(Listing([str(a) for a in arguments], **options), OUT)]


def on_stdin(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


# --- folders and globs -----------------------------------------------------------------------------------------------


def test_a_folder_gives_its_rasters_sorted(data: Path) -> None:
    touch(data, "b.tif", "a.jp2", "C.TIFF", "notes.txt", "a.tif.aux.xml", "e.parquet", "below/d.tif", "z.zarr/0.tif")
    assert paths(data) == ["data/C.TIFF", "data/a.jp2", "data/b.tif"]
    assert {scene.folder for scene in list_scenes(Listing([f"./{data}/"]), OUT)} == {OUT}


def test_folders_inside_are_mirrored(data: Path) -> None:
    touch(data, "b.tif", "2024/05/a.tif", "2024/a.tif", "2025/a.tif", "2025/c.zarr/0.tif", ".tmtool-w/a.tif")
    found = list_scenes(Listing([str(data)], recursive=True), OUT)
    assert [(s.path, s.folder) for s in found] == [
        ("data/2024/05/a.tif", OUT / "2024" / "05"),
        ("data/2024/a.tif", OUT / "2024"),
        ("data/2025/a.tif", OUT / "2025"),
        ("data/b.tif", OUT),
    ]
    os.chdir(data)
    assert [(s.path, s.folder) for s in list_scenes(Listing(["."], recursive=True), OUT)][0] == (
        "2024/05/a.tif",
        OUT / "2024" / "05",
    )


def test_a_pattern_chooses_names_of_folders(data: Path) -> None:
    files = touch(data, "a_10m.jp2", "a_20m.jp2", "b_10m.dat", "x/c_10m.tif", "x/d.tif")
    assert paths(data, pattern="*_10m.*", recursive=True) == ["data/a_10m.jp2", "data/b_10m.dat", "data/x/c_10m.tif"]
    assert paths(data, files[1], pattern="*.dat") == ["data/b_10m.dat", files[1]]
    touch(data, "a_10m.jp2.aux.xml", "a_10m.jp2.ovr", ".tmtool-a.work.tif")
    assert paths(data, pattern="*") == ["data/a_10m.jp2", "data/a_20m.jp2", "data/b_10m.dat"]


def test_globs_are_sorted_and_take_files_only(data: Path) -> None:
    touch(data, "b.tif", "a.tif", "x/c.tif", "a.tif.aux.xml", "a.tif.ovr")
    assert paths("data/*") == ["data/a.tif", "data/b.tif"]
    assert paths("data/**/*.tif") == ["data/a.tif", "data/b.tif", "data/x/c.tif"]
    touch(data, "odd[1].tif")
    assert paths("data/odd[1].tif") == ["data/odd[1].tif"]  # a file of this name comes before what it would match


def test_what_holds_nothing_is_named(data: Path) -> None:
    touch(data, "x/a.tif")
    with pytest.raises(InputError, match=r"data: holds no raster \(\*\.tif .*--recursive"):
        paths(data)
    with pytest.raises(InputError, match=r"data: holds no raster \(\*\.jp2\)\.$"):
        paths(data, pattern="*.jp2", recursive=True)
    with pytest.raises(InputError, match="matches no file"):
        paths("data/*")


def test_a_folder_that_cannot_be_listed_is_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(data, "a.tif", "x/a.tif")
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if path.endswith("x"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may list a folder whatever its mode
    with pytest.raises(InputError, match=r"data/x: this folder cannot be listed \(Permission denied\)"):
        paths(data, recursive=True)


def test_a_file_named_twice_counts_once_where_it_comes_first(data: Path) -> None:
    _, b = touch(data, "x/a.tif", "x/b.tif")
    found = list_scenes(Listing([f"./{b}", str(Path(b).absolute()), "data/x", str(data)], recursive=True), OUT)
    assert [(s.path, s.folder) for s in found] == [("./data/x/b.tif", OUT), ("data/x/a.tif", OUT)]


def test_arguments_keep_their_order(data: Path) -> None:
    touch(data, "x/b.tif", "x/a.tif", "c.tif")
    Path("list").write_text("/vsicurl/https://host/d.tif?k=v\n")
    assert paths("data/c.tif", "data/x/*", files_from="list") == [
        "data/c.tif",
        "data/x/a.tif",
        "data/x/b.tif",
        "/vsicurl/https://host/d.tif?k=v",
    ]


def test_one_target_for_two_inputs_is_refused(data: Path) -> None:
    touch(data, "x/a.tif", "y/a.tif")
    with pytest.raises(UsageError, match="would both write out/a_.*--recursive"):
        paths("data/*/a.tif")
    assert len(paths(data, recursive=True)) == 2


# --- what tmtool wrote -----------------------------------------------------------------------------------------------

PRODUCTS = (
    "a_S1GRD.tif",
    "a_LULC.TIF",
    "a_DEM_rec.tif",
    "a_S2L2A_valid.tif",
    "a_embed.tif",
    "a_embed_layer3_S1RTC.tif",
)


def test_products_are_not_taken_of_folders_and_globs(
    data: Path, written: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(data, "a.tif", ".tmtool-a_DEM-1.work.tif", "a_LULC.TIF.aux.xml")
    made = [written(data / name) for name in (*PRODUCTS, "a_S2L2A_tokens.tif")]
    monkeypatch.setattr(logging.getLogger("tmtool"), "propagate", True)
    with caplog.at_level(logging.DEBUG, "tmtool"):
        assert paths(data) == ["data/a.tif"]
    assert {r.getMessage() for r in caplog.records if "Not taken" in r.getMessage()} == {
        f"Not taken as input: {len(made) + 1} products, work files and sidecars in folders and globs."
    }
    assert paths("data/*") == ["data/a.tif"]
    assert paths(*made) == made  # named one by one, as a shell's glob does


def test_names_like_products_without_the_tag_are_taken(
    data: Path, make_raster: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in PRODUCTS[:3]:
        make_raster(PIXELS, str(data / name))
    (data / "b_S1GRD.tif").write_bytes(b"damaged")
    (data / "c_S1GRD.tif").symlink_to("nowhere")
    assert [Path(p).name for p in paths(data)] == [*sorted(PRODUCTS[:3]), "b_S1GRD.tif", "c_S1GRD.tif"]
    assert capfd.readouterr() == ("", "")


def test_other_names_are_not_opened(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(data, *(f"tile_{i:04d}_S2L2A_10m.tif" for i in range(1000)), "S1GRD.tif", "a_S2L1C.tif", "a_LULC.jp2")
    monkeypatch.setattr(inputs, "opened", lambda path: pytest.fail(f"{path} was opened"))
    assert len(paths(data)) == 1003


def test_a_folder_of_products_alone_says_so(data: Path, written: Any) -> None:
    written(data / "a_LULC.tif")
    for argument in ("data", "data/*"):
        with pytest.raises(InputError, match=r"nothing but tmtool's own products.*\(1\).*name each file"):
            paths(argument)


def test_token_rasters_are_input_of_reconstruct_alone(data: Path, written: Any) -> None:
    touch(data, "b.tif")
    written(data / "a_S1GRD_tokens.tif", "tokenize", codebook="x")
    written(data / "a_S1GRD_valid.tif", "validity")
    written(data / "a_LULC.tif")
    tag(Path(written(data / "c_LULC.tif")), ["no object"])
    assert paths(data, tokens=True) == ["data/a_S1GRD_tokens.tif", "data/b.tif"]
    assert paths(data) == ["data/b.tif"]


# --- lists -----------------------------------------------------------------------------------------------------------


def test_lists_name_files_folders_and_globs(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(data, "a.tif", "x/b.tif", "y/c.tif")
    text = "\n  data/a.tif \r\n\ndata/x\ndata/y/*\n"
    expected = ["data/a.tif", "data/x/b.tif", "data/y/c.tif"]
    Path("list").write_text(text)
    assert paths(files_from="list") == expected
    for listing in (Listing(["-"]), Listing(files_from="-")):
        on_stdin(monkeypatch, text)
        assert [scene.path for scene in list_scenes(listing, OUT)] == expected


def test_lists_separated_by_nul_hold_any_name(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = touch(data, " b and c.tif", "two\nlines.tif", "é_LULC.tif\n.tif", " x/a.tif")
    on_stdin(monkeypatch, "\0".join([*names, "", "data/ x"]) + "\0")
    found = list_scenes(Listing(["-"], null=True), OUT)
    assert [scene.path for scene in found] == names
    assert [scene.stem for scene in found][:2] == [" b and c", "two_lines"]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("\n \n", UsageError, "the list is empty"),
        ("a.tif\0b.tif\0", UsageError, "--files-from list: holds NUL characters.*add -0"),
        ("a.tif\n-\n", UsageError, "--files-from list: holds the entry -;"),
        (None, InputError, r"--files-from list: cannot be read \(No such file"),
    ],
)
def test_lists_that_cannot_be_used(data: Path, text: str | None, error: type[Exception], message: str) -> None:
    if text is not None:
        Path("list").write_text(text)
    with pytest.raises(error, match=message):
        paths(files_from="list")


def test_nothing_is_an_error() -> None:
    with pytest.raises(UsageError, match="No input: give INPUT"):
        list_scenes(Listing(), OUT)


def test_rasters_of_one_scene_go_without_a_list(data: Path) -> None:
    pairs = ["S2L2A=s2.tif", "DEM=dem.tif"]
    (scene,) = list_scenes(Listing(), OUT, pairs)
    assert ([(m and m.name, path) for m, path in scene.inputs], scene.stem) == (
        [("S2L2A", "s2.tif"), ("DEM", "dem.tif")],
        "s2",
    )
    for listing in (Listing(["a.tif"]), Listing(files_from="list")):
        with pytest.raises(UsageError, match="no INPUT"):
            list_scenes(listing, OUT, pairs)


# --- shards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2, 3, 10])
def test_shards_partition_the_list(data: Path, jobs: int) -> None:
    touch(data, *(f"{i}.tif" for i in range(10)))
    parts = [paths(data, shard=f"{k}/{jobs}") for k in range(1, jobs + 1)]
    assert sorted(sum(parts, [])) == paths(data)
    assert parts[-1] == paths(data)[jobs - 1 :: jobs]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("shard", ["0/8", "9/8", "1/0", "3", "1/", "-1/2", "1/2/3", "a/b", "", "1 / 2"])
def test_a_shard_that_is_none(data: Path, shard: str) -> None:
    with pytest.raises(UsageError, match=r"--shard .*: give K/N.*--shard 2/8"):
        paths(data, shard=shard)


def test_an_empty_shard_is_no_error_but_an_empty_list_is(data: Path) -> None:
    touch(data, "a.tif")
    assert paths(data, shard="2/2") == []
    Path("list").write_text("")
    with pytest.raises(UsageError, match="list is empty"):
        paths(files_from="list", shard="2/2")


# --- the commands ----------------------------------------------------------------------------------------------------


def s2(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 3000, (12, 40, 40)).astype(np.int16)


def planned(result: Any, folder: Path | str) -> list[str]:
    assert result.exit_code == 0, result.stderr
    return [os.path.relpath(line, folder) for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    ("command", "suffix"),
    [
        (["generate", "--out", "S1GRD"], "S1GRD"),
        (["tokenize"], "S2L2A_tokens"),
        (["reconstruct"], "S2L2A_rec"),
        (["embed"], "embed"),
    ],
)
def test_every_command_takes_the_options(
    tmtool: Any, identity: str, make_raster: Any, data: Path, command: Sequence[str], suffix: str
) -> None:
    for name in ("a.tif", "x/a.tif", "x/b.tif", "x/other.tif"):
        make_raster(s2(), str(data / name))
    Path("list").write_text("data\0data/x/other.tif\0")
    options = ["--recursive", "--pattern", "[ab].tif", "--files-from", "list", "--shard", "1/2"]
    result = tmtool(*command, *options, "-0", "-o", "out", "--model", identity, "--dry-run")
    assert planned(result, "out") == [f"a_{suffix}.tif", f"x/b_{suffix}.tif"]
    options[-1] = "2/2"
    result = tmtool(*command, *options, "--null", "-o", "out", "--model", identity, "--dry-run")
    assert planned(result, "out") == [f"x/a_{suffix}.tif", f"other_{suffix}.tif"]


def test_the_output_folder_may_lie_in_the_input_folder(
    tmtool: Any, identity: str, make_raster: Any, data: Path
) -> None:
    for name in ("a.tif", "x/b.tif"):
        make_raster(s2(), str(data / name))
    args = ("generate", data, "--recursive", "--out", "S1GRD,LULC", "--model", identity, "-o", data / "out")
    expected = [f"{scene}_{m}.tif" for scene in ("a", "x/b") for m in ("S1GRD", "LULC")]
    assert planned(tmtool(*args), data / "out") == expected
    assert planned(tmtool(*args, "--overwrite"), data / "out") == expected
    again = tmtool(*args, "--overwrite", "--dry-run", "--verbose")
    assert "4 products, work files and sidecars" in again.stderr


def test_reconstruct_of_a_folder_of_tokens(
    tmtool: Any, identity: str, make_raster: Any, written: Any, data: Path
) -> None:
    said = {"modality": "S2L2A", "codebook": "8-8-8-6-5", "source": {"height": 64, "width": 48}, "validity": None}
    said |= {"weights": {}, "model": identity}
    codes = np.zeros((1, 4, 3), np.uint16)
    for name in ("a", "x/b"):
        written(data / f"{name}_S2L2A_tokens.tif", "tokenize", codes, **said)
    written(data / "a_S2L2A_rec.tif", "reconstruct")
    result = tmtool("reconstruct", data, "--recursive", "-o", "out", "--model", identity, "--dry-run")
    assert planned(result, "out") == ["a_S2L2A_rec.tif", "x/b_S2L2A_rec.tif"]
    result = tmtool("tokenize", data, "--recursive", "-o", "out", "--model", identity, "--dry-run")
    assert result.exit_code == 2
    assert "nothing but tmtool's own products" in result.stderr


def test_an_empty_shard_ends_well(tmtool: Any, identity: str, make_raster: Any, data: Path) -> None:
    path = make_raster(s2())
    result = tmtool("generate", path, "--out", "S1GRD", "--model", identity, "--shard", "2/3", "-o", "out")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "--shard 2/3: nothing to do" in result.stderr
    result = tmtool("generate", path, "--out", "S1GRD", "--model", identity, "--shard", "3/2")
    assert result.exit_code == 2
    assert "--shard 3/2: give K/N" in result.stderr


def test_lists_arrive_on_standard_input(tmtool: Any, identity: str, make_raster: Any, data: Path) -> None:
    names = [str(make_raster(s2(), str(data / name))) for name in ("a b.tif", "c\nd.tif")]
    args = ("tokenize", "--model", identity, "-o", "out", "--dry-run")
    result = tmtool(*args, "-0", "-", stdin="\0".join(names))
    assert planned(result, "out") == ["a b_S2L2A_tokens.tif", "c_d_S2L2A_tokens.tif"]
    result = tmtool(*args, "--files-from", "-", stdin=f"\n{names[0]}\n")
    assert planned(result, "out") == ["a b_S2L2A_tokens.tif"]


@pytest.mark.parametrize("folder", ["hdfs://host/products", "/vsis3/bucket/products", "https://host/x"])
def test_what_is_no_output_folder(tmtool: Any, make_raster: Any, identity: str, folder: str) -> None:
    result = tmtool(
        "generate", make_raster(np.full((12, 40, 40), 5, np.int16)), "--out", "LULC", "--model", identity, "-o", folder
    )
    assert result.exit_code == 2
    assert "--output-dir" in result.stderr
    assert "s3://bucket/prefix" in result.stderr
    assert not Path(folder.split("/")[0] or "/vsis3").exists()
