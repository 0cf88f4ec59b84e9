"""Weight files: found where users have them, loaded completely or refused."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.specs import spec_of
from tmtool.errors import WeightsError
from tmtool.models import find
from tmtool.models.weights import _persistently, core_file, digest, load_strictly, locate, read_state, tokenizer_file

FILES = (core_file("base"), tokenizer_file("LULC"))


class Tied(nn.Module):
    """Two names for one tensor, a buffer, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("table", torch.zeros(5))
        self.last = nn.Linear(4, 2)


def state() -> dict[str, torch.Tensor]:
    return {k: torch.randn_like(v) for k, v in Tied().state_dict().items()}


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_a_job_needs_only_its_own_tokenizers() -> None:
    def files(task: str, inputs: tuple[str, ...], outputs: tuple[str, ...] = (), **kwargs: Any) -> set[str]:
        spec = spec_of("tiny", task, inputs, outputs, request=kwargs)
        names = {file.filename for file in find("tiny").files(spec)}
        return {name.removeprefix("TerraMind_").removesuffix(".pt") for name in names}

    both = {"v1_tiny", "Tokenizer_S1GRD", "Tokenizer_LULC"}
    assert files("generate", ("S2L2A",), ("S1GRD", "LULC")) == both
    assert files("generate", ("NDVI",), ("LULC",)) == {"v1_tiny", "Tokenizer_NDVI", "Tokenizer_LULC"}
    assert files("tokenize", ("S2L2A",)) == {"Tokenizer_S2L2A"}
    assert files("reconstruct", ("LULC",), ("LULC",)) == {"Tokenizer_LULC"}
    assert files("embed", ("S2L2A", "LULC")) == {"v1_tiny", "Tokenizer_LULC"}
    assert files("embed", ("S2L2A",), ("LULC",)) == {"v1_tiny"}  # imagined modalities stay tokens
    assert files("embed", ("DEM",), coords=True) == {"v1_tiny", "config.json"}
    assert files("embed", ("DEM",), checkpoint=Path("tuned.ckpt")) == set()


@pytest.mark.parametrize(
    "places",
    [
        ("TerraMind_v1_base.pt", "TerraMind_Tokenizer_LULC.safetensors"),
        ("TerraMind-1.0-base/TerraMind_v1_base.pt", "TerraMind-1.0-Tokenizer-LULC/TerraMind_Tokenizer_LULC.pt"),
        (
            "ibm-esa-geospatial/TerraMind-1.0-base/TerraMind_v1_base.safetensors",
            "models--ibm-esa-geospatial--TerraMind-1.0-Tokenizer-LULC/snapshots/abc/TerraMind_Tokenizer_LULC.pt",
        ),
    ],
)
def test_folders_as_users_have_them(tmp_path: Path, places: tuple[str, str]) -> None:
    paths = [touch(tmp_path / place) for place in places]
    assert list(locate(FILES, str(tmp_path), offline=False).values()) == paths


def test_what_is_missing_in_a_folder_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "TerraMind_v1_base.pt")
    with pytest.raises(WeightsError, match="TerraMind-1.0-Tokenizer-LULC/TerraMind_Tokenizer_LULC.pt") as caught:
        locate(FILES, str(tmp_path), offline=False)
    assert "TerraMind_v1_base.pt" not in str(caught.value)


def test_the_hub_cache_is_used_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "a" * 40
    for file in FILES:
        repo = tmp_path / f"models--{file.repo.replace('/', '--')}"
        touch(repo / "snapshots" / commit / file.filename)
        touch(repo / "refs" / "main").write_text(commit)
    import huggingface_hub.file_download as download

    monkeypatch.setattr(download.constants, "HF_HUB_CACHE", str(tmp_path))
    found = locate(FILES, None, offline=True)
    assert {p.name for p in found.values()} == {f.filename for f in FILES}


def test_loading_fills_everything_and_keeps_ties(tmp_path: Path) -> None:
    module, given = Tied(), state()
    load_strictly(module, given, tmp_path / "x.pt")
    assert module.second.weight is module.first.weight
    assert torch.equal(module.second.weight, given["second.weight"])
    assert torch.equal(module.table, given["table"])


def test_one_name_of_a_tied_tensor_is_enough(tmp_path: Path) -> None:
    module, given = Tied(), state()
    del given["second.weight"]
    load_strictly(module, given, tmp_path / "x.pt")
    assert torch.equal(module.second.weight, given["first.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"last.bias": None}, "last.bias is missing"),
        ({"table": None}, "table is missing"),
        ({"last.weight": torch.zeros(2, 5)}, r"last.weight has shape \[2, 5\], expected \[2, 4\]"),
        ({"last.weight": torch.zeros(2, 4, dtype=torch.int64)}, "has dtype torch.int64"),
        ({"first.weight": None, "second.weight": None}, "first.weight is missing"),
        ({"last.norm.weight": torch.zeros(2)}, "last.norm.weight is not in the model"),
        ({"last.bias": torch.tensor([1.0, float("nan")])}, "last.bias holds NaN"),
        ({"table": torch.full((5,), float("inf"))}, "table holds NaN or infinite"),
    ],
)
def test_partly_matching_weights_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    given = {k: v for k, v in (state() | change).items() if v is not None}
    with pytest.raises(WeightsError, match=message) as caught:
        load_strictly(Tied(), given, tmp_path / "x.pt")
    assert str(tmp_path / "x.pt") in str(caught.value)


def test_unused_keys_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("tmtool"), "propagate", True)
    with caplog.at_level(logging.DEBUG, "tmtool.weights"):
        extra = {"decoder.extra": torch.zeros(1), "encoder.known": torch.zeros(1)}
        load_strictly(Tied(), state() | extra, tmp_path / "x.pt", spare=("encoder.",))
    assert "1 unknown keys: decoder.extra" in caplog.text


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_both_formats_are_read_and_damage_is_noticed(tmp_path: Path, suffix: str) -> None:
    path, given = tmp_path / f"w{suffix}", {"a": torch.arange(1000.0)}
    torch.save(given, path) if suffix == ".pt" else save_file(given, path)
    assert torch.equal(read_state(path)["a"], given["a"])
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="truncated"):
        read_state(path)
    path.write_text("<!DOCTYPE html><html>Not found</html>")
    with pytest.raises(WeightsError, match="found a web page|found something else"):
        read_state(path)


def test_foreign_pickles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"model": Tied()}, path)
    with pytest.raises(WeightsError, match=r"'model' is an object of tests.test_weights.Tied"):
        read_state(path)
    torch.save({"epoch": 3, "weights": {"a": torch.zeros(1)}}, path)
    with pytest.raises(WeightsError, match="'epoch' is a value of type int"):
        read_state(path)


def test_a_connection_that_breaks_is_taken_up() -> None:
    from huggingface_hub.errors import EntryNotFoundError

    broken: list[Exception] = [ConnectionResetError("reset by peer"), TimeoutError()]

    def download() -> str:
        if broken:
            raise broken.pop()
        return "path"

    assert _persistently(download) == "path"
    broken = [ConnectionResetError("the first"), TimeoutError(), OSError("the last one told")]
    broken.reverse()
    with pytest.raises(OSError, match="the last one told"):
        _persistently(download)
    broken = [EntryNotFoundError("no such file")]
    with pytest.raises(EntryNotFoundError):  # an answer, which would be the same again
        _persistently(download)


def test_digests_are_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "w.pt"
    path.write_bytes(b"abc")
    first = digest(path)
    assert first == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("computed again"))
    assert digest(path) == first
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path.write_bytes(b"abcd")
    assert digest(path) != first


def test_narrow_model_refuses_weights_with_a_hole(
    tmp_path: Path, narrow_terramind: Path, tmtool: Any, make_raster: Any
) -> None:
    import shutil

    import numpy as np

    folder = tmp_path / "weights"
    shutil.copytree(narrow_terramind, folder)
    path = folder / "TerraMind_Tokenizer_LULC.pt"
    given = torch.load(path, weights_only=True)
    del given["post_quant_proj.bias"]
    torch.save(given, path)
    raster = make_raster(np.random.default_rng(0).integers(1, 3000, (12, 40, 40)).astype(np.int16))
    result = tmtool("generate", raster, "--out", "LULC", "--model", "tiny", "--weights", folder, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "post_quant_proj.bias is missing" in result.stderr
    assert list((tmp_path / "out").iterdir()) == []
