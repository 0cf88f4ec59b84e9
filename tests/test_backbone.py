"""Tokens and embeddings against terratorch's own, at small width, in fp32; checkpoints of fine-tuned backbones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import narrow, specs
from tests.test_terramind import GREEDY, SEED, batch_of, plausible
from tmtool import models
from tmtool.errors import WeightsError
from tmtool.grid import TileBatch
from tmtool.modality import MODALITIES, OUTPUTS
from tmtool.models.weights import coords_file, core_file, local_file, read_checkpoint, tokenizer_file

TERRATORCH_BANDS = {"S2L1C": ["BLUE", "RED", "SWIR_1"]}


def files(folder: Path) -> dict[Any, Path]:
    named = (core_file("tiny"), coords_file(), *(tokenizer_file(m) for m in OUTPUTS))
    return {file: folder / file.filename for file in named}


def embedding_of(
    folder: Path, pixels: dict[str, np.ndarray], tim: tuple[str, ...] = (), lonlat: Any = None, **kwargs: Any
) -> dict[str, np.ndarray]:
    own = {key: kwargs.pop(key) for key in ("files", "bands") if key in kwargs}
    settings = {"sampling": GREEDY, "files": files(folder)} | own
    spec = specs.spec_of("tiny", "embed", tuple(pixels), tim, seed=SEED, request=kwargs, **settings)
    batch = batch_of(pixels, [(16, 32)] * len(next(iter(pixels.values()))))
    return models.build(spec)(replace(batch, lonlat=lonlat))  # type: ignore[return-value]


def standardised(name: str, values: np.ndarray, bands: list[int] | None = None) -> torch.Tensor:
    m = MODALITIES[name]
    if m.classes:
        return torch.from_numpy(values)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in specs.moments_of(name))
    return torch.from_numpy((values - mean) / std)


def on_grid(x: torch.Tensor) -> np.ndarray:
    side = int(x.shape[1] ** 0.5)
    return x.transpose(1, 2).unflatten(2, (side, side)).numpy()


INPUT_MIXES = [["S2L2A"], ["S1GRD", "DEM"], ["RGB", "LULC"], ["NDVI"], ["S2L1C", "S1RTC", "DEM"]]


@pytest.mark.parametrize("inputs", INPUT_MIXES)
@pytest.mark.parametrize("size", [224, 256])
@pytest.mark.parametrize("merge", ["mean", "max", "concat", "dict"])
def test_embeddings_equal_terratorchs(narrow_terramind: Path, inputs: list[str], size: int, merge: Any) -> None:
    pixels = {m: np.stack([plausible(m, size, size, s) for s in (0, 1)]) for m in inputs}
    mine = embedding_of(narrow_terramind, pixels, layers=(0, -1), merge=merge)
    reference = narrow.reference_backbone(inputs, narrow_terramind, merge_method=merge)
    with torch.no_grad():
        theirs = reference({m: standardised(m, v) for m, v in pixels.items()})
    expected = {}
    for i, layer in enumerate(theirs):
        for m in inputs if merge == "dict" else [""]:
            expected[f"embed_layer{i}{'_' + m if m else ''}"] = on_grid(layer[m] if m else layer)
    assert set(mine) == set(expected)
    for name, values in expected.items():
        assert values.std() > 0.1
        np.testing.assert_allclose(mine[name], values, atol=1e-5 * values.std(), rtol=1e-5)  # sums in another order


@pytest.mark.parametrize("merge", ["mean", "max", "concat"])
def test_thinking_in_modalities_equals_terratorchs(narrow_terramind: Path, merge: Any) -> None:
    inputs = ["S2L2A", "DEM"]
    pixels = {m: plausible(m, 224, 224)[None] for m in inputs}
    mine = embedding_of(narrow_terramind, pixels, tim=("LULC", "NDVI"), merge=merge)
    reference = narrow.reference_backbone(
        inputs, narrow_terramind, tim=True, merge_method=merge, tim_modalities=["LULC", "NDVI"], tim_temps=0.0
    )
    with torch.no_grad():
        theirs = reference({m: standardised(m, v) for m, v in pixels.items()})[-1]
    np.testing.assert_allclose(mine["embed"], on_grid(theirs), atol=1e-5, rtol=1e-5)


def test_a_subset_of_bands_equals_terratorchs(narrow_terramind: Path) -> None:
    chosen = MODALITIES["S2L1C"].subset(TERRATORCH_BANDS["S2L1C"]).bands
    assert chosen == ("B02", "B04", "B11")
    index = [MODALITIES["S2L1C"].bands.index(band) for band in chosen]
    whole = plausible("S2L1C", 224, 224)[None]
    mine = embedding_of(narrow_terramind, {"S2L1C": whole[:, index]}, bands={"S2L1C": chosen})
    reference = narrow.reference_backbone(["S2L1C"], narrow_terramind, bands=TERRATORCH_BANDS)
    with torch.no_grad():
        theirs = reference({"S2L1C": standardised("S2L1C", whole)[:, index]})[-1]
    np.testing.assert_allclose(mine["embed"], on_grid(theirs), atol=1e-5, rtol=1e-5)


def test_coordinates_equal_terratorchs(narrow_terramind: Path) -> None:
    pixels = {"S2L2A": np.stack([plausible("S2L2A", 224, 224, s) for s in (0, 1)])}
    lonlat = np.array([[-70.61, -33.42], [12.13, 48.38]])
    mine = embedding_of(narrow_terramind, pixels, lonlat=lonlat, coords=True)
    reference = narrow.reference_backbone(["S2L2A", "coords"], narrow_terramind)
    with torch.no_grad():
        theirs = reference({"S2L2A": standardised("S2L2A", pixels["S2L2A"]), "coords": torch.from_numpy(lonlat)})[-1]
    np.testing.assert_allclose(mine["embed"], on_grid(theirs), atol=1e-5, rtol=1e-5)
    without = embedding_of(narrow_terramind, pixels)["embed"]
    assert abs(without - mine["embed"]).max() > 1e-3


@pytest.mark.parametrize("modality", OUTPUTS)
@pytest.mark.parametrize("size", [224, 256])
def test_tokens_equal_terratorchs(narrow_terramind: Path, modality: str, size: int) -> None:
    pixels = plausible(modality, size, size)[None]
    spec = specs.spec_of("tiny", "tokenize", (modality,), files=files(narrow_terramind))
    mine = models.build(spec)(batch_of({modality: pixels}, [(0, 0)]))[modality]
    with torch.no_grad():
        theirs = narrow.reference_tokenizer(modality, narrow_terramind).encode(standardised(modality, pixels))[-1]
    assert len(np.unique(mine)) > 20
    np.testing.assert_array_equal(mine[:, 0], theirs.numpy())


def tuned(folder: Path, path: Path, begin: str, change: float = 0.5, **kwargs: Any) -> dict[str, torch.Tensor]:
    """Write a checkpoint of a backbone whose last norm was changed, as terratorch's tasks do; return its state dict."""
    model = narrow.reference_backbone(["S2L2A"], folder, **kwargs)
    with torch.no_grad():
        model.encoder_norm.weight.mul_(change)
    state = {f"{begin}{key}": value for key, value in model.state_dict().items() if not key.startswith("tokenizer")}
    state["model.head.weight"] = torch.zeros(3)
    torch.save({"state_dict": state, "hyper_parameters": {"where": path.parent}, "epoch": 3} if begin else state, path)
    return state


@pytest.mark.parametrize("begin", ["", "model.encoder.", "model.encoder._timm_module."])
def test_a_fine_tuned_backbone_is_used(narrow_terramind: Path, tmp_path: Path, begin: str) -> None:
    path = tmp_path / "tuned.ckpt"
    tuned(narrow_terramind, path, begin)
    pixels = {"S2L2A": plausible("S2L2A", 224, 224)[None]}
    plain = embedding_of(narrow_terramind, pixels)["embed"]
    mine = embedding_of(narrow_terramind, pixels, files={local_file(path): path}, checkpoint=path)["embed"]
    np.testing.assert_allclose(mine, plain * 0.5, atol=1e-5)


def test_a_checkpoint_may_hold_a_subset_of_bands(narrow_terramind: Path, tmp_path: Path) -> None:
    path = tmp_path / "tuned.ckpt"
    tuned(narrow_terramind, path, "model.encoder.", bands={"S2L2A": ["RED", "GREEN"]})
    index = [3, 2]
    pixels = plausible("S2L2A", 224, 224)[None][:, index]
    kwargs: Any = {"bands": {"S2L2A": ("B04", "B03")}}
    mine = embedding_of(narrow_terramind, {"S2L2A": pixels}, files={}, checkpoint=path, **kwargs)["embed"]
    plain = embedding_of(narrow_terramind, {"S2L2A": pixels}, **kwargs)["embed"]
    np.testing.assert_allclose(mine, plain * 0.5, atol=1e-5)


def test_a_tuned_backbone_that_imagines(narrow_terramind: Path, tmp_path: Path) -> None:
    path = tmp_path / "tuned.ckpt"
    tuned(narrow_terramind, path, "model.encoder.", tim=True, tim_modalities=["LULC"])
    pixels = {"S2L2A": plausible("S2L2A", 224, 224)[None]}
    plain = embedding_of(narrow_terramind, pixels, tim=("LULC",))["embed"]
    mine = embedding_of(narrow_terramind, pixels, tim=("LULC",), files={}, checkpoint=path)["embed"]
    np.testing.assert_allclose(mine, plain * 0.5, atol=1e-5)


def test_a_checkpoint_that_does_not_cover_the_encoder(narrow_terramind: Path, tmp_path: Path) -> None:
    path = tmp_path / "tuned.ckpt"
    state = tuned(narrow_terramind, path, "model.encoder.")
    pixels = {"S2L2A": plausible("S2L2A", 224, 224)[None]}
    gone = next(key for key in state if ".encoder.1." in key)
    torch.save({key: value for key, value in state.items() if key != gone}, path)
    with pytest.raises(WeightsError, match=f"{gone.removeprefix('model.encoder.')} is missing"):
        embedding_of(narrow_terramind, pixels, files={}, checkpoint=path)
    torch.save({"head.weight": torch.zeros(2)}, path)
    with pytest.raises(WeightsError, match="expected the encoder of one TerraMind backbone.*not at all"):
        read_checkpoint(path)
    path.write_text("<html>")
    with pytest.raises(WeightsError, match="found a web page"):
        read_checkpoint(path)


RAN: list[str] = []


class Spiteful:
    """A class whose unpickling would do something."""

    def __reduce__(self) -> Any:
        return _run, ("code",)


def _run(what: str) -> str:
    RAN.append(what)
    return what


def test_a_checkpoint_runs_nothing(narrow_terramind: Path, tmp_path: Path) -> None:
    path = tmp_path / "tuned.ckpt"
    state = tuned(narrow_terramind, path, "model.encoder.")
    torch.save({"state_dict": state, "callbacks": Spiteful()}, path)
    assert read_checkpoint(path).backbone
    assert not RAN
    torch.load(path, weights_only=False)
    assert RAN  # it would have


def test_positions_do_not_matter_to_tokens(narrow_terramind: Path) -> None:
    spec = specs.spec_of("tiny", "tokenize", ("DEM",), files=files(narrow_terramind))
    model, pixels = models.build(spec), plausible("DEM", 224, 224)[None]
    first, second = (model(TileBatch({"DEM": pixels}, at, at))["DEM"] for at in (np.array([0]), np.array([160])))
    np.testing.assert_array_equal(first, second)
