"""What is used of others' private parts lies in one place, and tmtool works without each of them. torch's: test_onednn."""

import ast
import ctypes
import logging
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio._env
import torch

import tmtool.compat.libc
import tmtool.compat.rasterio
from tests.conftest import ROOT
from tmtool.compat import terratorch
from tmtool.compat.cpython import interrupt
from tmtool.compat.libc import keep_freed_memory
from tmtool.compat.rasterio import resize_block_cache
from tmtool.compat.torch import compiler_errors
from tmtool.errors import WeightsError
from tmtool.grid import Window
from tmtool.models import _parts as parts
from tmtool.models import demo
from tmtool.source import Reader, inspect, set_block_cache
from tmtool.tiles._lanes import Lanes

PACKAGE = ROOT / "tmtool"


@pytest.fixture(autouse=True)
def _heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let caplog hear tmtool's log, which a command that ran before keeps to itself."""
    monkeypatch.setattr(logging.getLogger("tmtool"), "propagate", True)


def imported(node: ast.AST) -> list[tuple[str, str]]:
    """Return what an import statement of another package imports, and what it is called then."""
    if isinstance(node, ast.Import):
        named = [(alias.name, alias) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        named = [(f"{node.module}.{alias.name}", alias) for alias in node.names]
    else:
        return []
    return [
        (name, alias.asname or alias.name.partition(".")[0])
        for name, alias in named
        if name.partition(".")[0] != "tmtool"
    ]


def private_parts(tree: ast.AST) -> Iterator[str]:
    """Yield what a module uses of others' names with an underscore, and of ctypes."""
    found = [names for node in ast.walk(tree) for names in imported(node)]
    for name, _ in found:
        first, *below = name.split(".")
        if first == "ctypes" or any(part.startswith("_") and part != "__future__" for part in below):
            yield name
    others = {called for _, called in found}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
            root: Any = node
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in others and ast.unparse(node) != "os._exit":  # a documented one
                yield ast.unparse(node)


def test_private_parts_of_others_are_used_in_one_place() -> None:
    found = {
        path.relative_to(PACKAGE): parts
        for path in sorted(PACKAGE.rglob("*.py"))
        if (parts := sorted(set(private_parts(ast.parse(path.read_text())))))
    }
    assert {path.name for path in found} == {"cpython.py", "libc.py", "rasterio.py", "torch.py"}
    assert {path.parent.name for path in found} == {"compat"}, found
    assert "torch.ops.mkldnn._linear_pointwise" in found[Path("compat/torch.py")]
    assert "rasterio._env.set_gdal_config" in found[Path("compat/rasterio.py")]


def test_without_exceptions_in_threads_leaving_waits_for_the_call(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ctypes, "pythonapi", SimpleNamespace())
    begun, done = threading.Event(), []

    def call(item: int) -> int:
        begun.set()
        time.sleep(0.2)
        done.append(item)
        return item

    with caplog.at_level(logging.DEBUG, "tmtool"), Lanes([call]) as lanes:
        lanes.put(0)
        lanes.put(1)
        assert begun.wait(10)
    assert done == [0]  # which would be dropped otherwise; the next one is not begun either way
    assert [record.message for record in caplog.records] == [
        "lane-0: waiting until its call ends; this Python cannot interrupt it"
    ]
    assert not [t for t in threading.enumerate() if t.name.startswith("lane-")]


def test_nothing_is_sent_into_a_thread_that_is_not_there() -> None:
    thread = threading.Thread(target=int)
    assert not interrupt(thread, KeyboardInterrupt)
    thread.start()
    thread.join()
    assert not interrupt(thread, KeyboardInterrupt)


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Stand for the C library, without anything in it, on a worker of Dask's."""
    library = SimpleNamespace()
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    monkeypatch.setattr(ctypes.util, "find_library", {"c": "libc.so"}.get)
    monkeypatch.setattr(ctypes, "CDLL", {"libc.so": library}.get)
    keep_freed_memory.cache_clear()
    yield library
    keep_freed_memory.cache_clear()


def test_malloc_is_told_once_where_dask_told_it_otherwise(
    libc: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    libc.mallopt = lambda *args: told.append(args)
    assert keep_freed_memory()
    assert keep_freed_memory()
    assert told == [(-3, 32 << 20), (-1, 64 << 20)]
    keep_freed_memory.cache_clear()
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_")
    assert not keep_freed_memory()
    assert len(told) == 2


@pytest.mark.parametrize("found", ["libc.so", None])
def test_without_mallopt_memory_is_left_as_it_is(
    libc: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, found: str | None
) -> None:
    monkeypatch.setattr(ctypes.util, "find_library", {"c": found}.get)
    with caplog.at_level(logging.DEBUG, "tmtool"):
        assert not keep_freed_memory()
        assert not keep_freed_memory()
    assert [record.message for record in caplog.records] == [
        "MALLOC_TRIM_THRESHOLD_ is left as it is: the C library has no mallopt"
    ]


@pytest.fixture
def block_cache() -> Iterator[Any]:
    """Return what tells the size of GDAL's block cache, which is as before afterwards."""

    def size() -> int:
        return int(rasterio._env.get_gdal_config("GDAL_CACHEMAX"))

    before, set_gdal_config = size(), rasterio._env.set_gdal_config
    tmtool.compat.rasterio._setter.cache_clear()
    yield size
    tmtool.compat.rasterio._setter.cache_clear()
    set_gdal_config("GDAL_CACHEMAX", before)


def test_without_rasterios_setter_the_block_cache_stays_and_pixels_are_the_same(
    make_raster: Any, block_cache: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    values = np.random.default_rng(0).integers(1, 3000, (12, 40, 50)).astype(np.int16)
    source = inspect(str(make_raster(values)))

    def read() -> np.ndarray:
        with Reader(source) as reader:
            return reader.read(Window(3, 4, 20, 30))[0]

    assert resize_block_cache(100 << 20)
    assert block_cache() == 100 << 20
    assert set_block_cache([source], 256) == block_cache() == 64 << 20
    expected = read()

    monkeypatch.delattr(rasterio._env, "set_gdal_config")
    tmtool.compat.rasterio._setter.cache_clear()
    with caplog.at_level(logging.DEBUG, "tmtool"):
        assert not resize_block_cache(100 << 20)
        set_block_cache([source], 256)
    assert block_cache() == 64 << 20
    (line,) = [record.message for record in caplog.records]
    assert line.startswith("GDAL's block cache stays as large as it is: cannot import name 'set_gdal_config'")
    np.testing.assert_array_equal(read(), expected)


def test_without_dynamos_exception_an_error_of_the_compiler_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise TorchDynamoException("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: broken)
    assert compiler_errors() == (TorchDynamoException,)
    monkeypatch.setitem(sys.modules, "torch._dynamo.exc", ModuleType("torch._dynamo.exc"))
    assert compiler_errors() == ()
    module = torch.nn.Module()
    module.encoder = torch.nn.Linear(2, 2)
    parts.compile_networks(module)
    with pytest.raises(TorchDynamoException, match="No working"):
        module.encoder(torch.zeros(1, 2))


@pytest.mark.parametrize("own", [None, lambda steps, dim: torch.zeros(len(steps), dim)])
def test_another_embedding_of_timesteps_is_left_as_it_is(own: Any, caplog: pytest.LogCaptureFixture) -> None:
    unet = SimpleNamespace() if own is None else SimpleNamespace(timestep_embedding=own)
    with caplog.at_level(logging.DEBUG, "tmtool"):
        assert not terratorch.embed_without_waiting(unet)
    assert getattr(unet, "timestep_embedding", None) is own
    assert len(caplog.records) == 1


def test_the_known_embedding_of_timesteps_is_replaced() -> None:
    """That both have the same bits in a U-Net is shown by test_architecture, which has terratorch whole beside it."""
    assert demo.unet.timestep_embedding.__module__ == "tmtool.compat.terratorch"


@pytest.mark.parametrize("modality", ["LULC", "NDVI"])
def test_without_networks_by_name_the_demo_model_says_so(monkeypatch: pytest.MonkeyPatch, modality: str) -> None:
    names = SimpleNamespace(vit_b_enc=None)
    monkeypatch.setattr(demo.vqvae, "vit_models", names)  # another place than where they are entered
    with pytest.raises(
        WeightsError, match=r"'vit_demo_enc'\)\. Install a version that pyproject.toml of tmtool admits"
    ):
        demo.build_tokenizer(modality)


def test_other_errors_of_a_network_are_left_as_they_are() -> None:
    with (
        pytest.raises(AttributeError, match="something else"),
        terratorch.networks_by_name({ModuleType("m"): {"net": int}}),
    ):
        raise AttributeError("something else")
