"""Object stores as output: whole products only, cut connections, claims, what lies beside, what is refused."""

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.io import MemoryFile

from tests.objects import Bucket, Proxy, serving
from tests.test_generate import s2
from tests.test_unattended import start, tiles_until
from tmtool.batch import _place, _store_claims
from tmtool.batch._claims import ClaimLost
from tmtool.batch._store_claims import claim_in, owner_in
from tmtool.errors import StoreError, UsageError
from tmtool.files import store
from tmtool.files.store import Changed, Store

pytest.importorskip("obstore")
boto3 = pytest.importorskip("boto3")


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, int]]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with serving() as address:
        yield address


@pytest.fixture
def proxy(server: tuple[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Proxy]:
    """What stands before the server, where the library's own variables point to."""
    proxy = Proxy(server)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    said = {"ACCESS_KEY_ID": "KEY", "SECRET_ACCESS_KEY": "SECRET", "REGION": "us-east-1", "ENDPOINT_URL": proxy.url}
    for name, value in said.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("TMTOOL_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr(store, "_RETRY", {"max_retries": 1, "retry_timeout": timedelta(seconds=5)})
    yield proxy
    proxy.close()


@pytest.fixture
def bucket(server: tuple[str, int], proxy: Proxy, request: pytest.FixtureRequest) -> Bucket:
    client = boto3.client("s3", endpoint_url="http://{}:{}".format(*server), region_name="us-east-1")
    return Bucket(client, f"bucket-{abs(hash(request.node.name))}")


@pytest.fixture
def scenes(make_raster: Any, tmp_path: Path) -> Path:
    for i in range(6):
        make_raster(s2(40, 40), f"in/s{i}.tif")
    return tmp_path / "in"


def statuses(result: Any) -> list[str]:
    return [json.loads(line)["status"] for line in result.stdout.splitlines()]


def made(scratch: Path) -> list[str]:
    return sorted(path.name for path in scratch.rglob("*") if path.is_file())


def order_of_writes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list to which keys are added as they are written, but for those of work files."""
    order: list[str] = []
    for name in ("_put_file", "write"):
        plain = getattr(Store, name)

        def noted(self: Store, key: str, *rest: Any, plain: Any = plain) -> Any:
            if ".tmtool-" not in key:
                order.append(key)
            return plain(self, key, *rest)

        monkeypatch.setattr(Store, name, noted)
    return order


class Watch:
    """Looks at a bucket all the time: every product that is listed can be read whole."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket, self.seen, self.wrong, self._end = bucket, set[str](), list[str](), threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(0.1):
            for key in self.bucket.listed():
                if key.endswith(".tif") and key not in self.seen:
                    self.seen.add(key)
                    try:
                        with MemoryFile(self.bucket.read(key)) as file, file.open() as src:
                            assert src.read().shape == (2, 40, 40)
                    except (rasterio.RasterioIOError, AssertionError) as error:
                        self.wrong.append(f"{key}: {error}")


def test_a_connection_that_is_cut(
    tmtool: Any,
    scenes: Path,
    identity: str,
    proxy: Proxy,
    bucket: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = f"s3://{bucket.name}/a/products"
    args = ("generate", scenes, "--out", "S1GRD", "--model", identity, "-o", url, "--json")
    monkeypatch.setattr(_place, "claim_in", partial(claim_in, patience_s=1.0))  # this process will be alive
    proxy.cut_at = 3
    with Watch(bucket) as watch:
        broken = tmtool(*args)
        assert broken.exit_code == 1, broken.stderr
        assert statuses(broken)[:3] == ["done", "done", "failed"]
        assert f"{url}/s2_S1GRD.tif" in broken.stderr
        assert "SECRET" not in broken.stderr
        sent = [f"a/products/s{i}_S1GRD.tif" for i in range(6)]
        assert [key for key in bucket.listed() if key.endswith(".tif")] == sent[:2]
        assert "s2_S1GRD.tif" in made(tmp_path / "scratch")
        proxy.mend()
        whole = tmtool(*args)
    assert whole.exit_code == 0, whole.stderr
    said = [json.loads(line) for line in whole.stdout.splitlines()]
    assert sorted(one["status"] for one in said) == ["done"] * 4 + ["skipped"] * 2
    third = next(one for one in said if one["products"]["S1GRD"] == f"{url}/s2_S1GRD.tif")
    assert third["why"] == "made before, sent now"  # and not computed again
    assert bucket.listed() == sent
    assert (watch.wrong, made(tmp_path / "scratch")) == ([], [])
    assert bucket.client.head_object(Bucket=bucket.name, Key=sent[0])["ContentType"] == "image/tiff"
    assert proxy.without_checksum == 0
    monkeypatch.setattr(_place, "_MANY", 3)
    assert set(statuses(tmtool(*args))) == {"skipped"}  # by a listing


def test_the_store_says_how_products_were_made(
    tmtool: Any, make_raster: Any, identity: str, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("generate", make_raster(s2(40, 40)), "--out", "LULC", "--model", identity, "--json")
    out = ("-o", f"s3://{bucket.name}")
    assert statuses(tmtool(*args, *out, "--dry-run")) == ["planned"]
    assert bucket.listed() == []
    assert not (tmp_path / "scratch").exists()
    monkeypatch.setattr(_place, "_ABOUT_BYTES", 10)  # as with many weights
    assert statuses(tmtool(*args, *out)) == ["done"]
    assert bucket.listed() == ["scene_LULC.tif", "scene_LULC.tif.aux.xml"]
    head = bucket.client.head_object(Bucket=bucket.name, Key="scene_LULC.tif")
    assert head["Metadata"] == {}
    assert statuses(tmtool(*args, *out)) == ["skipped"]  # by the product itself
    monkeypatch.undo()
    monkeypatch.setenv("TMTOOL_SCRATCH", str(tmp_path / "scratch"))


def test_products_that_were_made_otherwise(
    tmtool: Any, make_raster: Any, identity: str, bucket: Bucket, tmp_path: Path
) -> None:
    args = ("generate", make_raster(s2(40, 40)), "--out", "S1GRD", "--model", identity, "--json")
    out = ("-o", f"s3://{bucket.name}/p")
    assert statuses(tmtool(*args, *out)) == ["done"]
    other = tmtool(*args, *out, "--seed", 1)
    assert other.exit_code == 2
    assert f"s3://{bucket.name}/p/scene_S1GRD.tif exists and was made differently: seed: was 0, is 1" in other.stderr
    assert statuses(tmtool(*args, *out, "--seed", 1, "--stale", "keep")) == ["kept"]
    assert statuses(tmtool(*args, *out, "--seed", 1, "--stale", "redo")) == ["done"]
    assert statuses(tmtool(*args, *out, "--seed", 1)) == ["skipped"]
    bucket.write("p/scene_S1GRD.tif", make_raster(s2(40, 40), "other.tif").read_bytes())
    assert "was not made by tmtool" in tmtool(*args, *out).stderr
    bucket.write("p/scene_S1GRD.tif", b"II*\0nothing")
    assert "incomplete or damaged" in tmtool(*args, *out).stderr
    assert statuses(tmtool(*args, *out, "--overwrite")) == ["done"]


def test_what_lies_beside_goes_first(
    tmtool: Any, make_raster: Any, identity: str, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = order_of_writes(monkeypatch)
    url, path = f"s3://{bucket.name}", make_raster(s2(40, 40))
    args = ("generate", path, "--out", "S1GRD,LULC", "--model", identity, "-o", url, "--preview", "--stac", "--json")
    result = tmtool(*args, "--report", f"{url}/runs/last.json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["item"] == f"{url}/scene.json"
    assert said["pictures"] == [f"{url}/scene_S1GRD.png", f"{url}/scene_LULC.png"]
    assert json.loads(bucket.read("runs/last.json"))["scenes"] == [said]
    assert order[0] == order.pop() == "last.json"  # before the run, and after it
    assert order[-3:] == ["scene_S1GRD.tif", "scene_LULC.tif.aux.xml", "scene_LULC.tif"]
    assert set(order[1:-3]) == {"scene_S1GRD.png", "scene_LULC.png", f"models/model-{identity}.json", "scene.json"}
    assert sorted(bucket.listed()) == sorted([*order[1:], "runs/last.json"])
    item = json.loads(bucket.read("scene.json"))
    assert {asset["href"] for asset in item["assets"].values()} >= {"./scene_S1GRD.tif", "./scene_LULC.tif"}
    assert statuses(tmtool("tokenize", *args[1:2], *args[4:])) == ["done"]
    both = json.loads(bucket.read("scene.json"))
    assert both["assets"].keys() > item["assets"].keys()
    assert both["id"] == "scene"
    bucket.write("scene.json", b'{"mine": 1}')
    refused = tmtool("embed", *args[1:2], *args[4:])
    assert (refused.exit_code, bucket.read("scene.json")) == (1, b'{"mine": 1}')
    assert f"{url}/scene.json: exists and is no item of tmtool" in refused.stderr


def test_a_zarr_store_has_its_metadata_last(
    tmtool: Any, make_raster: Any, identity: str, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = order_of_writes(monkeypatch)
    values = s2(96, 96)
    values[:, :40, :40] = 0
    args = ("embed", make_raster(values, nodata=0), "--format", "zarr", "--model", identity, "--json")
    out = ("-o", f"s3://{bucket.name}/z")
    assert statuses(tmtool(*args, *out)) == ["done"]
    assert order[-1] == "scene_embed.zarr/zarr.json"
    before = set(bucket.listed())
    assert len(before) > 5
    assert statuses(tmtool(*args, *out)) == ["skipped"]
    bucket.write("z/scene_embed.zarr/old/c/0", b"of an older product")
    assert statuses(tmtool(*args, *out, "--overwrite")) == ["done"]
    assert set(bucket.listed()) == before
    monkeypatch.setattr(_place, "_ABOUT", "nothing")
    assert statuses(tmtool(*args, *out)) == ["skipped"]  # by what was fetched


def test_two_processes_share_a_store(tmtool: Any, scenes: Path, identity: str, bucket: Bucket) -> None:
    args = ("generate", scenes, "--out", "S1GRD", "--model", identity, "-o", f"s3://{bucket.name}", "--json")
    other = start(*args, pause=0.2)
    tiles_until(other, 1)
    here = tmtool(*args)
    there, errors = other.communicate()
    assert (here.exit_code, other.returncode) == (0, 0), here.stderr + errors
    ended = [[json.loads(line) for line in out.splitlines()] for out in (here.stdout, there)]
    done = [[one["products"]["S1GRD"] for one in said if one["status"] == "done"] for said in ended]
    assert all(done)  # each has its share
    assert sorted(done[0] + done[1]) == [f"s3://{bucket.name}/s{i}_S1GRD.tif" for i in range(6)]
    assert {one["status"] for said in ended for one in said} <= {"done", "skipped"}
    assert bucket.listed() == [f"s{i}_S1GRD.tif" for i in range(6)]


def test_claims(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = Store(f"s3://{bucket.name}/p")
    first = claim_in(objects, "c")
    assert first is not None
    assert claim_in(objects, "c") is None
    assert str(os.getpid()) in (owner_in(objects, "c") or "")
    first.check()
    with ThreadPoolExecutor(4) as pool:  # as the heart and those who ask may do at once
        assert all(pool.map(lambda _: first.beat(), range(12)))
    now = objects.now()
    monkeypatch.setattr(Store, "now", lambda self: now + 119)
    assert claim_in(objects, "c") is None
    monkeypatch.setattr(Store, "now", lambda self: now + 130)  # silent for long
    racing = [_store_claims.StoreClaim(objects, "c", 120.0) for _ in range(2)]
    seen = objects.look("c")
    assert seen is not None
    assert [one.take(seen.version) for one in racing] == [True, False]
    with pytest.raises(ClaimLost, match=f"s3://{bucket.name}/p/c: this claim was taken over by"):
        first.check()
    first.release()
    assert owner_in(objects, "c")  # which is no more the first one's to remove
    racing[0].release()
    assert owner_in(objects, "c") is None
    bucket.write("p/c", b"no claim")
    last = claim_in(objects, "c")
    assert last is not None
    last.release()


def test_what_a_dead_process_claimed_is_free(bucket: Bucket) -> None:
    ended = subprocess.Popen(["true"])
    objects = Store(f"s3://{bucket.name}")
    alive = _store_claims.StoreClaim(objects, "c", 120.0)
    for pid, free in ((os.getpid(), False), (ended.pid if ended.wait() == 0 else 0, True)):
        bucket.write("c", json.dumps(json.loads(alive.record) | {"pid": pid}).encode())
        taken = claim_in(objects, "c")
        assert (taken is not None) == free
        if taken:
            taken.release()


def test_objects(bucket: Bucket, tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = Store(f"s3://{bucket.name}/p/")
    assert objects.look("a") is None
    first = objects.write("a", b"1", {})
    with pytest.raises(Changed):
        objects.write("a", b"2", {})
    second = objects.write("a", b"2", first)
    with pytest.raises(Changed):
        objects.write("a", b"3", first)
    assert objects.write("a", b"3", second)
    monkeypatch.setattr(store, "_PART_BYTES", 5 << 20)
    content = np.random.default_rng(0).bytes(11 << 20)
    (tmp_path / "large.bin").write_bytes(content)
    objects.put("x/large.bin", tmp_path / "large.bin", {"said": "it"})
    seen = objects.look("x/large.bin")
    assert seen is not None
    assert (seen.size, seen.about["said"], seen.version["e_tag"][-3:]) == (len(content), "it", '-3"')
    objects.fetch("x/large.bin", tmp_path / "copy.bin")
    assert (tmp_path / "copy.bin").read_bytes() == content
    assert objects.keys() == ["a", "x/large.bin"]
    objects.delete("a")
    objects.delete("a")
    with pytest.raises(StoreError, match=r"s3://no-bucket/x: .*bucket does not exist"):
        Store("s3://no-bucket").write("x", b"")
    proxy.close()
    with pytest.raises(StoreError, match=f"s3://{bucket.name}/p/a: "):
        objects.look("a")


REFUSED = {
    "s3://KEY:SECRET@bucket/x": "credentials and options come from the environment",
    "s3://bucket/x?token=SECRET": "credentials and options come from the environment",
    "s3://": "expected s3://bucket/prefix",
    "/vsis3/bucket/SECRETS": "s3://bucket/prefix",
    "https://user:SECRET@host/x": "is neither a folder nor an object store",
}


@pytest.mark.parametrize("url", REFUSED)
def test_names_that_are_refused(tmtool: Any, make_raster: Any, identity: str, url: str) -> None:
    path = make_raster(s2(40, 40))
    result = tmtool("generate", path, "--out", "LULC", "--model", identity, "-o", url)
    assert result.exit_code == 2
    assert REFUSED[url] in result.stderr
    assert "SECRET" not in result.stderr.replace("SECRETS", "")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"AWS_PROFILE": "none"}, r"s3://bucket: The config profile \(none\)"),
        ({}, "no credentials are found; set AWS_"),
    ],
)
def test_without_credentials(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message):
        Store("s3://bucket")


def test_without_obstore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(UsageError, match=r"pip install 'tmtool\[cloud\]'"):
        Store("gs://bucket")
