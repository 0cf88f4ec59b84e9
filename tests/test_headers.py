"""A damaged or foreign file of weights is found by its header: before the first tile, without torch, and told with its cure."""

import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import ROOT
from tmtool.errors import WeightsError
from tmtool.models._headers import check_header
from tmtool.models.weights import core_file, read_state, tokenizer_file
from tmtool.scene.blocks import Models
from tmtool.scene.job import Job
from tmtool.tasks import Embed

RAN: list[str] = []


class Spiteful:
    """A class whose unpickling would do something."""

    def __reduce__(self) -> Any:
        return _run, ("code",)


def _run(what: str) -> str:
    RAN.append(what)
    return what


def saved(path: Path) -> Path:
    """Write three tensors, of which two share their values and one has two bytes a value."""
    whole = torch.arange(5000.0)
    state = {"a.weight": whole, "a.part": whole[10:20], "b": torch.nn.Parameter(torch.ones(3, 2).half())}
    torch.save(state, path) if path.suffix == ".pt" else save_file({k: v.clone() for k, v in state.items()}, path)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_names_and_shapes_are_told(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"w{suffix}")
    assert check_header(path) == {"a.weight": (5000,), "a.part": (10,), "b": (3, 2)}
    assert set(read_state(path)) == {"a.weight", "a.part", "b"}


def test_a_module_s_own_state_and_tensors_with_attributes_are_read(tmp_path: Path) -> None:
    state = torch.nn.Linear(3, 4).state_dict()
    state["marked"] = torch.zeros(2, dtype=torch.uint16)
    state["marked"].note = "an attribute"  # type: ignore[attr-defined]
    torch.save(state, tmp_path / "w.pt")
    assert check_header(tmp_path / "w.pt") == {"weight": (4, 3), "bias": (4,), "marked": (2,)}


def test_a_header_is_read_without_torch_and_without_tensors(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt")
    code = (
        "import sys, pathlib; from tmtool.models._headers import check_header;"
        f"assert len(check_header(pathlib.Path({str(path)!r}))) == 3; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def hollow(path: Path) -> None:
    """Take bytes out of the middle."""
    whole = path.read_bytes()
    path.write_bytes(whole[:9000] + whole[9600:])


def scrambled(path: Path) -> None:
    """Change the beginning of what the header is in."""
    whole = path.read_bytes()
    at = 100 if path.suffix == ".pt" else 9
    path.write_bytes(whole[:at] + b"\xff" * 40 + whole[at + 40 :])


def replaced(content: bytes) -> Callable[[Path], None]:
    return lambda path: None if path.write_bytes(content) else None


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (cut, "truncated"),
        (hollow, "damaged"),
        (scrambled, "damaged|something else"),
        (replaced(b""), "an empty file"),
        (replaced(b"<!DOCTYPE html><html>Sign in to the network</html>"), "a web page"),
        (replaced(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"), "Git LFS.*git lfs pull"),
        (replaced(bytes(range(64, 128))), "something else .*@ABC"),
        (replaced(b"abc"), "something else"),
    ],
)
def test_damage_is_found(tmp_path: Path, suffix: str, damage: Callable[[Path], None], found: str) -> None:
    path = saved(tmp_path / f"w{suffix}")
    damage(path)
    with pytest.raises(WeightsError, match=found) as caught:
        check_header(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: expected ")
    assert "again" in text or "git lfs pull" in text


def test_a_file_of_the_other_kind_is_named(tmp_path: Path) -> None:
    for suffix, other in ((".pt", ".safetensors"), (".safetensors", ".pt")):
        path = saved(tmp_path / f"w{suffix}").rename(tmp_path / f"wrong{other}")
        with pytest.raises(WeightsError, match=f"a name that ends in {suffix}"):
            check_header(path)


def test_an_old_file_of_torch_and_a_bare_pickle(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.zeros(1)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match=r"before 1.6 wrote. Load it and torch.save it again"):
        check_header(path)
    path.write_bytes(pickle.dumps({"a": Spiteful()}))
    with pytest.raises(WeightsError, match="a pickle alone"):
        check_header(path)
    assert not RAN


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"model": Spiteful()}, "whose 'model' is an object of tests.test_headers._run"),
        (Spiteful(), "found an object of tests.test_headers._run"),
        ({"hook": RAN.append}, "whose 'hook' is an object of"),
        ([torch.zeros(1)], "a value of type list"),
        ({"epoch": 3, "state_dict": {"a": torch.zeros(1)}}, "whose 'epoch' is a value of type int"),
    ],
)
def test_a_foreign_pickle_is_named_and_not_run(tmp_path: Path, content: Any, found: str) -> None:
    path = tmp_path / "w.pt"
    torch.save(content, path)
    for look in (check_header, read_state):
        with pytest.raises(WeightsError, match=found) as caught:
            look(path)
        assert "Save the model's state_dict() " in str(caught.value)
        assert "weights_only" not in str(caught.value)
    assert not RAN


def test_an_archive_without_what_its_tensors_need(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt")
    with zipfile.ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/data/0")}
    for change, found in ((kept, "0 of the 20,000 bytes of a.weight"), ({"a.txt": b""}, r"other files \(a.txt\)")):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in change.items():
                archive.writestr(name, content)
        with pytest.raises(WeightsError, match=found):
            check_header(path)


def test_a_safetensors_header_that_is_no_header(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [2]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(WeightsError, match="header is damaged"):
        check_header(path)


def test_a_file_is_looked_at_once(narrow_terramind: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []
    monkeypatch.setattr("tmtool.models.weights.check_header", lambda path, *_, **__: seen.append(path) or kept[path])
    job = Job(Embed(coords=True), model="tiny", weights=str(narrow_terramind))
    names = (core_file("tiny").filename, "config.json")
    kept = {narrow_terramind / name: check_header(narrow_terramind / name) for name in names}
    models = Models(job)
    for _ in range(3):
        models.files(job.spec(("S2L2A",)))
    assert seen == list(kept)


@pytest.fixture
def run(narrow_terramind: Path, tmp_path: Path, tmtool: Any, make_raster: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command on a small scene with weights that `change` was done to; returns the message. No model is built."""
    monkeypatch.setattr("tmtool.models.build", lambda spec: pytest.fail("a model was built"))
    raster = make_raster(np.random.default_rng(0).integers(1, 3000, (12, 40, 40)).astype(np.int16))
    folder = tmp_path / "weights"
    folder.mkdir()

    def run(change: Callable[[Path], None], *args: object) -> str:
        for path in narrow_terramind.iterdir():
            if not (folder / path.name).exists():
                (folder / path.name).symlink_to(path)
        change(folder)
        out = tmp_path / "out"
        result = tmtool(*args[:1], raster, *args[1:], "--model", "tiny", "--weights", folder, "-o", out)
        assert result.exit_code == 2, result.stderr
        assert not out.exists() or not any(out.iterdir())
        assert "weights_only" not in result.stderr
        return " ".join(result.stderr.split())

    return run


def test_a_run_finds_damage_before_the_first_tile(run: Any) -> None:
    def truncated(folder: Path) -> None:
        path = folder / tokenizer_file("LULC").filename
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[: len(content) // 2])

    told = run(truncated, "generate", "--out", "LULC")
    assert "TerraMind_Tokenizer_LULC.pt: expected a state dict in a zip archive, as torch.save writes it, found" in told
    assert "it is truncated. Fetch it again: hf download ibm-esa-geospatial/TerraMind-1.0-Tokenizer-LULC" in told


def test_a_run_finds_another_part_or_size_before_the_first_tile(run: Any, narrow_terramind: Path) -> None:
    name, other = core_file("tiny").filename, tokenizer_file("LULC").filename

    def swapped(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(narrow_terramind / other)

    told = run(swapped, "embed")
    assert f"{name}: expected {name} (tensors with names such as encoder_embeddings....), found a file of other" in told

    def wide(folder: Path) -> None:
        (folder / name).unlink()
        torch.save({"encoder_embeddings.x": torch.zeros(1), "encoder_norm.weight": torch.ones(768)}, folder / name)

    assert "The file holds TerraMind base, but the model in use is of width 64: choose it with" in run(wide, "embed")


def test_a_run_finds_a_wrong_vocabulary_of_coordinates(run: Any) -> None:
    def page(folder: Path) -> None:
        (folder / "config.json").unlink()
        (folder / "config.json").write_text("<html>")

    assert "config.json: expected a JSON file, found a web page" in run(page, "embed", "--coords")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "tuned.ckpt: expected a state dict in a zip archive, as torch.save writes it, found an empty file"),
        ({"state_dict": {"head.weight": torch.zeros(2)}}, "expected the encoder of one TerraMind backbone"),
        ({"state_dict": Spiteful()}, "found one whose state_dict is an object of"),
        ({"state_dict": {"m.encoder_norm.weight": torch.ones(384)}, "hyper": Spiteful()}, "holds TerraMind small"),
    ],
)
def test_a_run_finds_a_wrong_checkpoint_before_the_first_tile(
    run: Any, tmp_path: Path, content: Any, found: str
) -> None:
    path = tmp_path / "tuned.ckpt"
    path.write_bytes(b"") if content is None else torch.save(content, path)
    assert found in run(lambda _: None, "embed", "--checkpoint", path)
    assert not RAN
