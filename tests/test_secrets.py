"""User, password and query of a URL never reach what is written: messages, logs, JSON, reports, names, tags."""

import json
import logging
import os
import subprocess
import sys
import traceback
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import rasterio

from tests.test_generate import s2
from tests.web import MARK, PASSWORD, QUERY, USER, served
from tmtool.names import base, cleaned, in_one_word, shown

ROOT = Path(__file__).parents[1]
FORMS = {
    "plain": "http://{login}@{host}/{name}?{query}",
    "vsicurl": "/vsicurl/http://{login}@{host}/{name}?{query}",
    "options": "/vsicurl?url={quoted}&max_retry=0",
    "archive": "/vsizip/{{/vsicurl/http://{login}@{host}/{name}.zip?{query}}}/{name}",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rasters: a good one, one with a damaged corner, one cut off, one of other bands; the good one also in an archive."""
    folder = tmp_path_factory.mktemp("web")
    for name, values in (("my scene.tif", s2(700, 560)), ("odd.tif", s2(40, 40)[:5])):
        count, height, width = values.shape
        profile = {"dtype": values.dtype, "count": count, "height": height, "width": width, "crs": "EPSG:32719"}
        tiles = {"tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "deflate", "interleave": "pixel"}
        affine = rasterio.Affine(10, 0, 399_960, 0, -10, 6_300_040)
        with rasterio.open(folder / name, "w", driver="GTiff", transform=affine, **profile, **tiles) as dst:
            dst.write(values)
    good = folder / "my scene.tif"
    with rasterio.open(good) as src:
        corner = int(src.get_tag_item("BLOCK_OFFSET_4_0", "TIFF", bidx=1))
    data = bytearray(good.read_bytes())
    data[corner : corner + 400] = bytes(400)
    (folder / "damaged.tif").write_bytes(data)
    (folder / "cut.tif").write_bytes(data[:90_000])
    with zipfile.ZipFile(folder / "my scene.tif.zip", "w") as archive:
        archive.write(good, good.name)
    return folder


@pytest.fixture(scope="module")
def host(folder: Path) -> Iterator[str]:
    with served(folder) as host:
        yield host


def address(host: str, form: str, name: str) -> str:
    login, name = f"{USER}:{PASSWORD}", name.replace(" ", "%20")
    quoted = quote(f"http://{login}@{host}/{name}?{QUERY}", safe="")
    path = FORMS[form].format(login=login, host=host, name=name, query=QUERY, quoted=quoted)
    return path.replace("}/my%20scene", "}/my scene")  # in an archive names are as they are


def written(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        yield f"name {path.name}", str(path).encode()
        if path.is_file():
            yield path.name, path.read_bytes()


def assert_nothing_secret(*texts: str, out: Path | None = None) -> None:
    for text in texts:
        assert MARK not in text, text
    for what, data in written(out) if out else ():
        assert MARK.encode() not in data, what


ALL = ("--json", "-v", "--report", "r.json", "--log-file", "l.txt")


@pytest.mark.parametrize("form", FORMS)
def test_a_raster_on_the_web(
    tmtool: Any, host: str, identity: str, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    args = ("generate", address(host, form, "my scene.tif"), "--out", "S1GRD", "--model", identity, *ALL)
    result = tmtool(*args)
    assert result.exit_code == 0, result.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"my scene_S1GRD.tif", "r.json", "l.txt"}
    assert_nothing_secret(result.stdout, result.stderr, out=tmp_path)
    for facts in (json.loads(result.stdout), json.loads((tmp_path / "r.json").read_text())["scenes"][0]):
        assert host in facts["inputs"]["S2L2A"]
        assert base(facts["inputs"]["S2L2A"]) == "my scene.tif"
    assert f"{host}/my%20scene.tif" in result.stderr
    with rasterio.open("my scene_S1GRD.tif") as src:
        assert json.loads(src.tags()["TMTOOL_PROVENANCE"])["inputs"] == {"S2L2A": "my scene.tif"}
        assert_nothing_secret(str(src.tags()), *(str(src.tags(i)) for i in src.indexes))
    again = tmtool(*args)
    assert json.loads(again.stdout)["status"] == "skipped"
    assert_nothing_secret(again.stdout, again.stderr, out=tmp_path)


def test_a_blank_in_a_name_does_not_uncover_the_query(
    tmtool: Any, host: str, identity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = address(host, "vsicurl", "my scene.tif").replace("%20", " ")
    result = tmtool("generate", "--in", f"S2L2A={path}", "--out", "S1GRD", "--model", identity, *ALL)
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "my scene_S1GRD.tif").exists()
    assert_nothing_secret(result.stdout, result.stderr, out=tmp_path)


@pytest.mark.parametrize("form", ["plain", "vsicurl", "options"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.tif", "GDAL cannot open it"),
        ("odd.tif", "has 5 bands"),
        ("cut.tif", "damaged or truncated"),
        ("damaged.tif", "damaged or truncated"),
    ],
)
def test_a_raster_that_cannot_be_used(
    tmtool: Any,
    host: str,
    identity: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    name: str,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = address(host, form, name)
    result = tmtool("generate", path, "--out", "S1GRD", "--model", identity, "--retries", "1", *ALL)
    assert result.exit_code in (1, 2)
    assert words in result.stderr
    assert f"{host}/{name}" in result.stderr
    assert f"{host}/{name}" in json.loads((tmp_path / "r.json").read_text())["scenes"][0]["error"]["message"]
    assert_nothing_secret(result.stdout, result.stderr, out=tmp_path)
    info = tmtool("info", path)
    assert_nothing_secret(info.stdout, info.stderr)


def test_info(tmtool: Any, host: str) -> None:
    for form in FORMS:
        for options in ((), ("--json",)):
            result = tmtool("info", address(host, form, "my scene.tif"), *options)
            assert result.exit_code == 0
            assert host in result.stdout
            assert_nothing_secret(result.stdout, result.stderr)


@pytest.mark.parametrize("kind", ["zarr", "geoparquet"])
def test_other_formats(
    tmtool: Any, host: str, identity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = tmtool("embed", address(host, "plain", "my scene.tif"), "--model", identity, "--format", kind, *ALL)
    assert result.exit_code == 0, result.stderr
    assert_nothing_secret(result.stdout, result.stderr, out=tmp_path)


def test_python(host: str, identity: str) -> None:
    import tmtool
    from tmtool.errors import InputError, ReadError

    records: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(self.format(record))

    listener = Listener()
    logging.getLogger("tmtool").addHandler(listener)
    try:
        made = tmtool.generate(address(host, "vsicurl", "my scene.tif"), "S1GRD", model=identity)
        assert json.loads(made.S1GRD.attrs["TMTOOL_PROVENANCE"])["inputs"] == {"S2L2A": "my scene.tif"}
        assert_nothing_secret(str(made.attrs), str(made.S1GRD.attrs), repr(made), repr(made.S1GRD.data.dask))
        with pytest.raises(InputError) as absent:
            tmtool.generate(address(host, "vsicurl", "none.tif"), "S1GRD", model=identity)
        with pytest.raises(ReadError) as damaged:
            tmtool.generate(address(host, "vsicurl", "damaged.tif"), "S1GRD", model=identity).compute()
        logging.getLogger("tmtool").warning("%s: warned", address(host, "plain", "my scene.tif"))
    finally:
        logging.getLogger("tmtool").removeHandler(listener)
    assert records
    assert_nothing_secret(*records, *("".join(traceback.format_exception(e.value)) for e in (absent, damaged)))


def test_a_process_of_its_own_and_its_workers(host: str, tmp_path: Path) -> None:
    """What GDAL, Dask and Python write themselves goes past the log."""
    command = [sys.executable, "-m", "tmtool", "generate", "--out", "LULC", "--model", "demo", "--cluster", "local:1"]
    paths = [address(host, form, name) for form, name in (("plain", "my scene.tif"), ("vsicurl", "damaged.tif"))]
    done = subprocess.run(
        [*command, *paths, address(host, "options", "none.tif"), *ALL],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert sorted(json.loads(line)["status"] for line in done.stdout.splitlines()) == ["done", "failed", "invalid"]
    assert "on worker" in done.stderr
    assert_nothing_secret(done.stdout, done.stderr, out=tmp_path)


def test_a_command_line_that_is_wrong(tmp_path: Path) -> None:
    url = f"https://{USER}:{PASSWORD}@host/a/long/name/which/is/broken/into/several/lines/x.tif?{QUERY}"
    for args in ([url], ["models", url], ["models", "list", url], ["info", "--crop", url]):
        done = subprocess.run([sys.executable, "-m", "tmtool", *args], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 2
        unbroken = done.stderr.replace("\n", "").replace(" ", "").replace("│", "")
        assert "host/a/long" in unbroken or "--crop" in args  # whose message quotes no value
        assert_nothing_secret(done.stdout, unbroken)


S = "https://h/x.tif"
NAMES = [
    ("https://u:p@h/x.tif?sig=1", S, "x.tif"),
    ("https://token@h/x.tif#part", S, "x.tif"),
    ("/vsicurl/https://u:p@h:8080/c/x.tif?sv=a&sig=b/c==", "/vsicurl/https://h:8080/c/x.tif", "x.tif"),
    ("/vsicurl?url=https%3A%2F%2Fu%3Ap%40h%2Fx.tif%3Fsig%3D1&header.Authorization=k", f"/vsicurl/{S}", "x.tif"),
    ("/vsicurl?header.Authorization=k", "/vsicurl", "vsicurl"),
    ("/vsizip//vsicurl/https://u:p@h/x.zip?sig=1", "/vsizip//vsicurl/https://h/x.zip", "x.zip"),
    ("/vsizip/{/vsicurl/https://h/x.zip?sig=1}/in/y.tif", "/vsizip/{/vsicurl/https://h/x.zip}/in/y.tif", "y.tif"),
    ("zip:///vsicurl/https://u:p@h/x.tif?y", "zip:///vsicurl/https://h/x.tif", "x.tif"),
    ("s3://KEY:SECRET@b/k/x.tif?versionId=1", "s3://b/k/x.tif", "x.tif"),
    ("/vsis3/b/x.tif?X-Amz-Signature=1", "/vsis3/b/x.tif", "x.tif"),
    ("https://user:pa/ss?word@h/x.tif", S, "x.tif"),
    ("https://h:80/a@b.tif?q=1@2", "https://h:80/a@b.tif", "a@b.tif"),
    ("https://h/o/folder%2Fmy%20scene.tif?alt=media", "https://h/o/folder%2Fmy%20scene.tif", "my scene.tif"),
    # nothing secret
    ("/vsis3/bucket/key.tif", "/vsis3/bucket/key.tif", "key.tif"),
    ("/data/what?.tif", "/data/what?.tif", "what?.tif"),
    ("/vsizip/a?b.zip/x.tif", "/vsizip/a?b.zip/x.tif", "x.tif"),
    ("tcp://head:8786", "tcp://head:8786", "head:8786"),
]


@pytest.mark.parametrize(("path", "told", "name"), NAMES)
def test_names(path: str, told: str, name: str) -> None:
    assert shown(path) == told
    assert base(path) == name
    for text in ("{}: no such file.", "Error: '{}' ({}).", 'a "{}", b', "see {}"):
        assert shown(text.format(path, path)) == text.format(told, told)
    assert cleaned({path: [path, 1, (path,)]}) == {told: [told, 1, [told]]}
    said = json.dumps({"path": f'X:"{path}":y', "next": path})
    assert json.loads(shown(said)) == {"path": f'X:"{told}":y', "next": told}


def test_blanks() -> None:
    assert in_one_word("https://h/my scene.tif?a b") == "https://h/my%20scene.tif?a%20b"
    assert in_one_word("/data/my scene.tif") == "/data/my scene.tif"
    assert shown(np.str_("plain")) == "plain"
