"""Networks through torch.compile: the same to within rounding, said in the products, and an error that has the cure."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

from tests import narrow
from tests.test_terramind import GREEDY, adapter, batch_of, plausible, spec_of, std_of
from tmtool.errors import DeviceError
from tmtool.models.device import Compute, resolve

COMPILED = Compute("cpu", "fp32", compiled=True)


def _one_level(**kwargs: Any) -> Any:
    return narrow.unet.PatchedUNetCondCat(
        patch_size=4, model_channels=32, num_res_blocks=1, attention_resolutions=[], channel_mult=(1,), **kwargs
    )


def test_compiled_networks_give_the_same_to_within_rounding(
    narrow_terramind: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("torch.compile needs a C++ compiler on a CPU, and there is none")
    from torch._dynamo.utils import counters

    counters.clear()
    spec = spec_of(narrow_terramind, ["S2L2A"], ["S1GRD"], sampling=replace(GREEDY, timesteps=2))
    spec = replace(spec, files=None)
    monkeypatch.setattr(narrow.unet, "unet_patched", _one_level)  # each further one takes a quarter of a minute
    batch = batch_of({"S2L2A": plausible("S2L2A", 224, 224)[None]}, [(0, 0)])
    eager = adapter(spec)(batch)["S1GRD"]
    compiled = adapter(replace(spec, compute=COMPILED))(batch)["S1GRD"]
    assert not np.array_equal(compiled, eager)  # or nothing was compiled
    np.testing.assert_allclose(compiled / std_of("S1GRD"), eager / std_of("S1GRD"), atol=1e-3, rtol=0)
    # a block of the encoder and one of the decoder stand for all, and one U-Net for all timesteps
    assert counters["stats"]["unique_graphs"] == 3
    assert not counters["graph_break"]


def test_the_error_has_the_cure(narrow_terramind: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise TorchDynamoException("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: broken)
    model = adapter(replace(spec_of(narrow_terramind, ["S2L2A"], ["S1GRD"]), compute=COMPILED))
    with pytest.raises(DeviceError, match=r"No working C\+\+ compiler found\). Use --compile off"):
        model(batch_of({"S2L2A": plausible("S2L2A", 224, 224)[None]}, [(0, 0)]))


def test_auto_is_off() -> None:
    assert [resolve("cpu", "fp32", asked).compiled for asked in ("auto", "on", "off")] == [False, True, False]


def test_products_say_it_and_are_others(tmtool: Any, make_raster: Any, identity: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(1, 3000, (12, 40, 40)).astype(np.int16)
    options = ["generate", make_raster(values), "--out", "S1GRD", "--model", identity, "-o", tmp_path]
    assert tmtool(*options).exit_code == 0
    other = tmtool(*options, "--compile", "on")
    assert other.exit_code == 2
    assert "compiled: was null, is true" in other.stderr
    assert tmtool(*options, "--compile", "on", "--overwrite").exit_code == 0
    with rasterio.open(tmp_path / "scene_S1GRD.tif") as src:
        assert json.loads(src.tags()["TMTOOL_PROVENANCE"])["compiled"] is True
