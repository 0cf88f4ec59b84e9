"""Out of memory on the device: smaller batches, the same result. On the host: batches that fit, or a refusal that says how much."""

import gc
import json
import logging
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import rasterio

from tests.conftest import ROOT
from tests.simple_models import FAILURES, BlockMean, Coordinates, Noisy, OutOfMemoryError
from tests.specs import spec_of
from tests.test_engine import run, scene
from tmtool import models
from tmtool.errors import EXIT_SOME_FAILED, OutOfMemory, UsageError
from tmtool.grid import OutputSpec, TileBatch
from tmtool.models import ModelSpec, device, host_bytes
from tmtool.models.device import Compute
from tmtool.models.memory import BackOff, fit, is_out_of_memory, limit_bytes, loading, parse_size, part
from tmtool.scene.job import Prepared
from tmtool.tiles.plan import Tiling

GB = 10**9
TILING = Tiling(64, 48, 4)


class Small:
    """A device with room for batches of at most `room` tiles."""

    def __init__(self, model: Any, room: int) -> None:
        self.model, self.room = model, room
        self.sizes: list[int] = []

    def __call__(self, batch: TileBatch) -> Mapping[str, np.ndarray]:
        self.sizes.append(len(batch.rows))
        if len(batch.rows) > self.room:
            raise OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB."
            )
        found: Mapping[str, np.ndarray] = self.model(batch)
        return found


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """Return what was warned of up to now."""
    monkeypatch.setattr(logging.getLogger("tmtool"), "propagate", True)
    with caplog.at_level(logging.WARNING, "tmtool"):
        yield lambda: [r.getMessage() for r in caplog.records]


def batch_of(count: int) -> TileBatch:
    """A batch of tiles that are all different."""
    pixels = np.random.default_rng(count).normal(size=(count, 2, 32, 32)).astype(np.float32)
    places = np.arange(count, dtype=np.int64) * 48
    return TileBatch({"any": pixels}, places, places[::-1].copy(), np.stack([places, -places], 1).astype(float))


@pytest.mark.parametrize(
    ("model", "spec"),
    [
        (Noisy(), OutputSpec("x", 1)),
        (Coordinates(), OutputSpec("x", 2)),
        (BlockMean(), OutputSpec("x", 1, scale=16, stitch="own")),
    ],
)
@pytest.mark.parametrize(
    ("batch", "room", "sizes"), [(8, 3, [8, 4, 2]), (5, 2, [5, 2]), (7, 1, [7, 3, 1]), (4, 4, [4])]
)
def test_a_scene_comes_out_the_same(
    warnings: Any, model: Any, spec: OutputSpec, batch: int, room: int, sizes: list[int]
) -> None:
    raster = scene((130, 300))
    tiling = Tiling(64, 32, 16) if spec.scale > 1 else TILING
    small = Small(model, room)
    tamed = BackOff(small, batch)
    values, valid = run(raster, tiling, tamed, spec, batch=batch)
    np.testing.assert_array_equal(values, run(raster, tiling, model, spec, batch=batch)[0])
    assert valid.all()
    assert small.sizes[: len(sizes)] == sizes
    assert set(small.sizes[len(sizes) :]) == {sizes[-1]}  # remembered, and of one shape
    assert tamed.size == sizes[-1]
    said = warnings()
    assert len(said) == len(sizes) - 1
    for text, before, after in zip(said, sizes[:-1], sizes[1:], strict=True):
        assert f"with {before} tiles per batch (CUDA out of memory)" in text
        assert f"Continuing with {after}" in text


def test_the_size_is_remembered_for_the_next_scene(warnings: Any) -> None:
    small = Small(Noisy(), 2)
    tamed = BackOff(small, 8)
    run(scene((100, 100)), TILING, tamed, batch=8)
    small.sizes.clear()
    for batch in (8, 2, 1, 5):
        values, _ = run(scene((130, 200), seed=batch), TILING, tamed, batch=batch)
        expected, _ = run(scene((130, 200), seed=batch), TILING, Noisy(), batch=batch)
        np.testing.assert_array_equal(values, expected)
    assert set(small.sizes) == {1, 2}
    assert len(warnings()) == 2


@pytest.mark.parametrize("count", range(1, 12))
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_batches_of_any_length(count: int, size: int) -> None:
    batch = batch_of(count)
    small = Small(lambda b: {"x": b.pixels["any"], "where": b.lonlat, "rows": b.rows, "cols": b.cols}, size)
    found = BackOff(small, size)(batch)
    for name, expected in (
        ("x", batch.pixels["any"]), ("where", batch.lonlat), ("rows", batch.rows), ("cols", batch.cols)
    ):  # fmt: skip
        np.testing.assert_array_equal(found[name], expected)
    assert set(small.sizes) == {min(size, count)}
    assert len(small.sizes) == -(-count // size)


def test_a_batch_that_fits_is_passed_on_as_it_is() -> None:
    batch = batch_of(3)
    seen: list[TileBatch] = []
    BackOff(lambda b: seen.append(b) or {"x": b.rows})(batch)  # type: ignore[func-returns-value]
    assert seen[0] is batch


def test_parts_are_padded_by_their_last_tile() -> None:
    batch = batch_of(5)
    found = part(batch, 3, 5, 4)
    assert found.rows.tolist() == batch.rows[[3, 4, 4, 4]].tolist()
    np.testing.assert_array_equal(found.pixels["any"], batch.pixels["any"][[3, 4, 4, 4]])
    assert found.lonlat is not None
    assert found.lonlat.shape == (4, 2)


def test_one_tile_that_does_not_fit_is_an_error(warnings: Any) -> None:
    small = Small(Noisy(), 0)
    with pytest.raises(OutOfMemory, match=r"no room for one tile \(CUDA out of memory\).*--crop.*--device") as raised:
        BackOff(small, 4)(batch_of(4))
    assert raised.value.exit_code == EXIT_SOME_FAILED
    assert raised.value.__context__ is None  # which would hold the failed call's tensors
    assert small.sizes == [4, 2, 1]
    assert len(warnings()) == 2


def test_nothing_of_the_failed_call_is_held() -> None:
    class Tensor:
        pass

    held: list[weakref.ref[Tensor]] = []

    def model(batch: TileBatch) -> Mapping[str, np.ndarray]:
        activations = Tensor()
        assert not any(ref() for ref in held)
        held.append(weakref.ref(activations))
        if len(batch.rows) > 1:
            raise OutOfMemoryError("CUDA out of memory.")
        return {"x": batch.rows}

    gc.disable()
    try:
        BackOff(model, 8)(batch_of(8))
    finally:
        gc.enable()
    assert len(held) == 3 + 8


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OutOfMemoryError("anything"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8.9 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("CUDA out of memory"), False),
        (MemoryError("Unable to allocate 2 GiB"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected

    def model(batch: TileBatch) -> Mapping[str, np.ndarray]:
        if len(batch.rows) > 1:
            raise error
        return {"x": batch.rows}

    if expected:
        assert BackOff(model, 4)(batch_of(4))["x"].tolist() == [0, 48, 96, 144]
    else:
        with pytest.raises(type(error)) as raised:
            BackOff(model, 4)(batch_of(4))
        assert raised.value is error


def test_torchs_own_error_counts() -> None:
    torch = pytest.importorskip("torch")
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory."))


def test_what_torch_keeps_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    emptied: list[str] = []
    for name in ("cuda", "mps"):
        monkeypatch.setattr(getattr(torch, name), "empty_cache", lambda name=name: emptied.append(name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    BackOff(Small(Noisy(), 2), 4)(batch_of(4))
    assert emptied == ["cuda", "mps"]
    monkeypatch.delitem(sys.modules, "torch")
    BackOff(Small(Noisy(), 2), 4)(batch_of(4))
    assert emptied == ["cuda", "mps"]


def test_a_model_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(OutOfMemory, match=r"no room for --model large \(CUDA out of memory\)"), loading("large"):
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
    with pytest.raises(KeyError), loading("large"):
        raise KeyError
    with loading("large"):
        pass


def test_tokens_and_classes_of_the_demo_model() -> None:
    with rasterio.open(ROOT / "samples" / "demo_scene.tif") as src:
        pixels = src.read().astype(np.float32)
    places = np.array([0, 64, 128, 192, 100])
    tiles = np.stack([np.roll(pixels, (-p, -p), (1, 2))[:, :256, :256] for p in places])
    batch = TileBatch({"S2L2A": tiles}, places, places)
    tokenizer = models.build(demo("tokenize", ()))
    generator = models.build(demo("generate", ("LULC",)))
    for room in (2, 1):
        tokens, small = tokenizer(batch)["S2L2A"], BackOff(Small(tokenizer, room), 5)
        assert (small(batch)["S2L2A"] == tokens).mean() > 0.999
        assert small.size == room
    logits = generator(batch)["LULC"]
    found = BackOff(Small(generator, 2), 5)(batch)["LULC"]
    assert (found.argmax(1) == logits.argmax(1)).mean() > 0.999


def demo(task: str, outputs: tuple[str, ...]) -> ModelSpec:
    spec = spec_of("demo", task, ("S2L2A",), outputs)
    files = models.find("demo").files(spec)
    return replace(spec, files={f: p for f in files if (p := f.packaged)})


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8G", 8 * GB), ("8GB", 8 * GB), ("800MB", 800_000_000), ("1.5GiB", 3 * 2**29), ("1.5gib", 3 * 2**29),
        (" 64 KiB ", 65_536), ("2T", 2000 * GB), ("12345B", 12_345), ("7.5M", 7_500_000),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, "--max-memory") == size


@pytest.mark.parametrize("text", ["", "8", "G", "8X", "-8G", "8 G B", "8iB", "nan", "0G", "1e9B", "8,5G", "0.1B"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match=r"--max-memory .*with its unit, such as 8G"):
        parse_size(text, "--max-memory")


@pytest.mark.parametrize("command", ["generate", "tokenize", "reconstruct", "embed"])
def test_the_option_is_checked_first(tmtool: Any, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = ["--out", "LULC"] if command == "generate" else []
    result = tmtool(command, "absent.tif", *out, "--max-memory", "lots")
    assert result.exit_code == 2
    assert "--max-memory lots: give a size with its unit" in result.stderr
    monkeypatch.setenv("TMTOOL_MAX_MEMORY", "plenty")
    assert "--max-memory plenty" in tmtool(command, "absent.tif", *out).stderr


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a machine of files: 16 GiB available, 1 GiB held by this process, resource limits as given."""
    limits: dict[str, int] = {}
    resource = pytest.importorskip("resource")
    names = {resource.RLIMIT_AS: "as", resource.RLIMIT_DATA: "data"}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limits.get(names[which], resource.RLIM_INFINITY), 0))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=16 << 30))

    def make(files: Mapping[str, object] = {}, **asked: int) -> Path:
        limits.update(asked)
        status = (
            "Name:\tpython\nVmSize:\t 6291456 kB\nVmRSS:\t 2097152 kB\nVmData:\t 4194304 kB\nRssAnon:\t 1048576 kB\n"
        )
        for name, text in {"proc/self/status": status, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return tmp_path

    return make


def test_what_is_free_and_what_is_held_already(machine: Any) -> None:
    assert limit_bytes(None, machine()) == (17 << 30, "the memory that is free")


def test_what_was_asked_for(machine: Any) -> None:
    assert limit_bytes(8 * GB, machine()) == (8 * GB, "--max-memory")
    assert limit_bytes(800 * GB, machine())[1] == "the memory that is free"


V2 = "sys/fs/cgroup/"
V1 = "sys/fs/cgroup/memory/"


@pytest.mark.parametrize(
    ("listing", "files", "expected"),
    [
        ("0::/a/b", {V2 + "a/b/memory.max": 4 << 30, V2 + "a/memory.max": 8 << 30}, (4 << 30, V2 + "a/b/memory.max")),
        ("0::/a/b", {V2 + "a/b/memory.max": "max", V2 + "a/memory.max": 8 << 30}, (8 << 30, V2 + "a/memory.max")),
        ("0::/a", {V2 + "a/memory.max": 8 << 30, V2 + "a/memory.high": 6 << 30}, (6 << 30, V2 + "a/memory.high")),
        ("0::/", {V2 + "memory.max": 2 << 30}, (2 << 30, V2 + "memory.max")),
        ("0::/of/the/host", {V2 + "memory.max": 2 << 30}, (2 << 30, V2 + "memory.max")),
        ("0::/a", {V2 + "a/memory.max": "max", V2 + "other/memory.max": 1 << 30}, None),
        (
            "5:devices:/d\n4:cpu,memory:/job/1",
            {V1 + "job/1/memory.limit_in_bytes": 2**63 - 4096, V1 + "job/memory.limit_in_bytes": 3 << 30},
            (3 << 30, V1 + "job/memory.limit_in_bytes"),
        ),
        ("5:devices:/job", {V1 + "job/memory.limit_in_bytes": 3 << 30}, None),
        ("4:memory:/", {V1 + "memory.limit_in_bytes": 9223372036854771712}, None),
        ("4:memory:/docker/1\n0::/", {V1 + "memory.limit_in_bytes": 1 << 30}, (1 << 30, V1 + "memory.limit_in_bytes")),
    ],
)
def test_the_limits_of_control_groups(machine: Any, listing: str, files: dict[str, object], expected: Any) -> None:
    root = machine({"proc/self/cgroup": listing, **files})
    said = (expected[0], f"the limit in /{expected[1]}") if expected else (17 << 30, "the memory that is free")
    assert limit_bytes(None, root) == said


def test_the_process_s_own_limits(machine: Any) -> None:
    assert limit_bytes(None, machine(**{"as": 10 << 30})) == (
        6 << 30,
        "ulimit -v of 10.8 GB",
    )  # 4 GiB are only reserved
    assert limit_bytes(None, machine(data=5 << 30)) == (2 << 30, "ulimit -d of 5.4 GB")
    assert limit_bytes(None, machine(**{"as": 1 << 30}))[0] == 0


def test_a_system_without_proc(tmp_path: Path) -> None:
    assert limit_bytes(None, tmp_path)[0] > 10**8
    assert limit_bytes(3 * GB, tmp_path) == (3 * GB, "--max-memory")


def test_this_machine_says_something() -> None:
    size, why = limit_bytes()
    assert 10**8 < size < 10**14
    assert why


def test_batches_that_fit() -> None:
    def fits(allowed: float, batch: int = 8) -> int:
        return fit((int(allowed * GB), "--max-memory"), 2 * GB, 3 * GB, GB // 2, batch)

    assert [fits(a) for a in (5.5, 5.9, 6.0, 8.9, 9.0, 100)] == [1, 1, 2, 7, 8, 8]
    assert fits(100, batch=1) == 1


def test_what_does_not_fit_is_refused_with_what_it_takes() -> None:
    streaming, model, tile = 320_000_000, 2_910_000_000, 295_000_000
    words = (
        r"about 3\.6 GB are needed with one tile per batch \(3\.0 GB for the model and its libraries, 0\.3 GB for the tile, "
        r"0\.4 GB for streaming the scene\), and 3\.5 GB may be used \(--max-memory\)\. Use a smaller --model or --crop"
    )
    with pytest.raises(OutOfMemory, match=words):
        fit((3_500_000_000, "--max-memory"), streaming, model, tile, 4)
    assert fit((parse_size("3.6GB", "--max-memory"), "--max-memory"), streaming, model, tile, 4) == 1


def needs(name: str, task: str, outputs: tuple[str, ...] = (), size: int = 256, **kwargs: Any) -> tuple[int, int]:
    compute = Compute(kwargs.pop("device", "cpu"), kwargs.pop("precision", "fp32"))
    spec = spec_of(name, task, kwargs.pop("inputs", ("S2L2A",)), outputs, compute=compute, **kwargs)
    return host_bytes([spec], size)


def test_estimates_of_a_model_s_memory() -> None:
    files: Any = {"some": "where"}
    two = ("S1GRD", "LULC")
    base, tile = needs("base", "generate", two, files=files)
    assert base + tile > 3.5e9  # measured
    assert base + tile < 4.2e9
    assert base + 4 * tile > 4.2e9  # measured
    half, half_tile = needs("base", "generate", two, files=files, precision="bf16")
    assert 2.4e9 < half + half_tile < 3.0e9
    assert half + 4 * half_tile > 2.9e9  # measured
    assert needs("base", "generate", two, precision="bf16") == (base, tile)  # random weights begin in float32
    large, _ = needs("large", "generate", two, files=files)
    assert 5.7e9 < large < 7.2e9
    for task, peak in (("tokenize", 1.3e9), ("embed", 1.24e9)):
        assert peak < sum(needs("base", task, files=files)) < 1.4 * peak
    assert needs("base", "embed", ("DEM",))[0] > needs("base", "embed")[0] + 5e8  # what imagines it
    assert needs("base", "generate", ("LULC",), inputs=("S2L2A", "NDVI"))[0] > needs("base", "generate", ("LULC",))[0]
    assert needs("demo", "generate", two, files=files)[0] < 1.6e9


def test_estimates_of_a_tile_s_memory() -> None:
    _, tile = needs("base", "generate", ("S1GRD",))
    assert needs("base", "generate", ("S1GRD",), size=512)[1] == pytest.approx(4 * tile)
    _, on_cuda = needs("base", "generate", ("S1GRD",), device="cuda:0")
    assert on_cuda == 4 * 12 * 256**2 * 4  # pixels only
    encoder = spec_of("base", "tokenize", ("S2L2A",))
    decoder = spec_of("base", "reconstruct", ("S2L2A",), ("S2L2A",))
    both, (first, _), (second, _) = (host_bytes(specs, 256) for specs in ([decoder, encoder], [encoder], [decoder]))
    assert max(first, second) < both[0] < first + second  # the libraries once


@pytest.mark.parametrize(
    ("total", "free", "reserved", "tiles", "decoded"),
    [
        (6.4, 6.0, 0, 4, 2),
        (15.8, 15.3, 0, 16, 8),
        (25.3, 24.6, 0, 32, 64),  # 24 GB cards: idle, CUDA's own share does not make them smaller ones
        (25.3, 10.0, 0, 16, 64),
        (25.3, 10.0, 14.3, 32, 64),  # what this process holds is its own
        (85.0, 84.0, 0, 64, 64),
        (85.0, 3.0, 0, 4, 64),
    ],
)
def test_the_batch_of_a_gpu_follows_what_is_free_and_its_decoders_what_it_is(
    monkeypatch: pytest.MonkeyPatch, total: float, free: float, reserved: float, tiles: int, decoded: int
) -> None:
    torch = pytest.importorskip("torch")
    properties = SimpleNamespace(total_memory=int(total * GB))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda which: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda which: (int(free * GB), int(total * GB)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda which: int(reserved * GB))
    device._batch_size.cache_clear()
    try:
        assert device.batch_size(Compute("cuda:0")) == tiles
        assert device.decoder_batch("cuda:0") == decoded
    finally:
        device._batch_size.cache_clear()


def s2(make_raster: Any, name: str, seed: int = 0, shape: tuple[int, int] = (600, 700)) -> Path:
    path: Path = make_raster(np.random.default_rng(seed).integers(1, 3000, (12, *shape)).astype(np.int16), name)
    return path


def made(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    with rasterio.open(path) as src:
        return src.read(), json.loads(src.tags()["TMTOOL_PROVENANCE"])


def test_a_run_goes_on_with_smaller_batches_and_records_it(
    tmtool: Any, make_raster: Any, identity: str, tmp_path: Path
) -> None:
    scenes = [s2(make_raster, f"{name}.tif", seed) for seed, name in enumerate("abc")]
    options = ("--out", "S1GRD,LULC", "--model", identity, "--batch-size", 8, "-o")
    assert tmtool("generate", *scenes, *options, tmp_path / "plain").exit_code == 0
    FAILURES["room"] = 3
    result = tmtool("generate", *scenes, *options, tmp_path / "small")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("out of memory") == 2 * 2  # twice, each with the device's own words
    assert "Continuing with 4" in result.stderr
    assert "Continuing with 2" in result.stderr
    assert "instead of" not in result.stderr
    for scene_name in "abc":
        for product in ("S1GRD", "LULC"):
            values, said = made(tmp_path / "small" / f"{scene_name}_{product}.tif")
            expected, before = made(tmp_path / "plain" / f"{scene_name}_{product}.tif")
            np.testing.assert_array_equal(values, expected)
            assert (before["batch_size"], said["batch_size"]) == (8, 2)


def test_reconstruct_goes_on_too(tmtool: Any, make_raster: Any, identity: str, tmp_path: Path) -> None:
    path = s2(make_raster, "a.tif")
    options = ("--model", identity, "--batch-size", 4, "-o")
    assert tmtool("reconstruct", path, *options, tmp_path / "plain").exit_code == 0
    FAILURES["room"] = 1
    result = tmtool("reconstruct", path, *options, tmp_path / "small")
    assert result.exit_code == 0, result.stderr
    (name,) = (p.name for p in (tmp_path / "plain").glob("*.tif"))
    values, said = made(tmp_path / "small" / name)
    np.testing.assert_array_equal(values, made(tmp_path / "plain" / name)[0])
    assert said["batch_size"] == 1


def test_a_scene_for_which_one_tile_is_too_much_fails_alone(
    tmtool: Any, make_raster: Any, identity: str, tmp_path: Path
) -> None:
    FAILURES["room"] = 0
    result = tmtool("generate", s2(make_raster, "a.tif"), "--out", "S1GRD", "--model", identity, "-o", tmp_path / "out")
    assert result.exit_code == EXIT_SOME_FAILED
    assert "no room for one tile" in result.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_max_memory_makes_batches_smaller_or_is_refused(
    tmtool: Any, make_raster: Any, identity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "host_bytes", lambda specs, size: (1 * GB, GB // 2))
    path = s2(make_raster, "a.tif")
    options = ("--out", "S1GRD", "--model", identity, "--batch-size", 4, "-o", tmp_path / "out")
    result = tmtool("generate", path, *options, "--max-memory", "1.3G")
    assert result.exit_code == EXIT_SOME_FAILED
    assert "Not enough memory: about 1." in result.stderr
    assert "1.3 GB may be used (--max-memory)" in result.stderr
    result = tmtool("generate", path, *options, "--max-memory", "2.5G")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("2 tiles per batch instead of 4: 2.5 GB may be used (--max-memory)") == 1
    assert made(tmp_path / "out" / "a_S1GRD.tif")[1]["batch_size"] == 2


PARTED = [("generate", "--out", "S1GRD,LULC"), ("tokenize",), ("reconstruct",), ("embed", "--pool", "tile"), ("embed",)]


@pytest.mark.parametrize("command", PARTED, ids=" ".join)
def test_a_scene_too_wide_for_memory_is_made_in_parts(
    tmtool: Any, make_raster: Any, identity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any
) -> None:
    monkeypatch.setattr(models, "host_bytes", lambda specs, size: (0, 0))
    monkeypatch.setattr(Prepared, "memory_bytes", lambda self, parts=1: GB // parts)
    path = s2(make_raster, "a.tif", shape=(600, 3000))
    with rasterio.open(path, "r+") as dst:
        dst.nodata = 0
        dst.write(np.zeros((12, 200, 900), np.int16), window=rasterio.windows.Window(700, 100, 900, 200))
    options = (*command, path, "--model", identity, "--json", "-o")
    plain = tmtool(*options, tmp_path / "plain")
    parts = tmtool(*options, tmp_path / "parts", "--max-memory", "400MB")
    assert parts.exit_code == plain.exit_code == 0, parts.stderr
    assert "made in 3 parts side by side: 0.4 GB may be used (--max-memory)" in parts.stderr
    assert "side by side" not in plain.stderr
    names = sorted(p.name for p in (tmp_path / "plain").glob("*.tif"))
    assert sorted(p.name for p in (tmp_path / "parts").glob("*.tif")) == names
    for name in names:
        values, said = made(tmp_path / "parts" / name)
        expected, before = made(tmp_path / "plain" / name)
        np.testing.assert_array_equal(values, expected)
        assert said.get("validity") == before.get("validity")
    measured, expected = (json.loads(r.stdout)["measured"] for r in (parts, plain))
    assert json.dumps(measured) == json.dumps(expected) or command[0] == "reconstruct"
    if command[0] == "reconstruct":
        for band, figures in expected["S2L2A_rec"]["bands"].items():
            assert measured["S2L2A_rec"]["bands"][band] == pytest.approx(figures, rel=1e-9)
