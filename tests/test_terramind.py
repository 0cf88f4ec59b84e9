"""The TerraMind adapter against terratorch's own forward, at small width, in fp32."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from terratorch.tasks.tiled_inference import get_input_chips, tiled_inference
from torch.utils._python_dispatch import TorchDispatchMode

from tests import narrow, specs
from tmtool import models
from tmtool.grid import OutputSpec, TileBatch
from tmtool.modality import MODALITIES, OUTPUTS
from tmtool.models import ModelSpec, Sampling
from tmtool.models import _noise as noise
from tmtool.models import _parts as parts
from tmtool.models.device import Compute
from tmtool.models.terramind.architecture import terramind_register as register
from tmtool.models.terramind.architecture import unet_layers
from tmtool.models.terramind.generator import Generator
from tmtool.models.weights import core_file, tokenizer_file
from tmtool.tiles.batches import Feed
from tmtool.tiles.engine import Engine
from tmtool.tiles.plan import TilePlan, Tiling

GREEDY = Sampling(temperature=0, timesteps=4, clip_sigma=1)
SEED = 3


def spec_of(folder: Path, inputs: list[str], outputs: list[str], **kwargs: Any) -> ModelSpec:
    files = {core_file("tiny"): folder / core_file("tiny").filename}
    files |= {tokenizer_file(m): folder / tokenizer_file(m).filename for m in OUTPUTS}
    settings = {"sampling": GREEDY} | kwargs
    return specs.spec_of("tiny", "generate", tuple(inputs), tuple(outputs), seed=SEED, files=files, **settings)


def adapter(spec: ModelSpec) -> Generator:
    return models.build(spec)  # type: ignore[return-value]


def plausible(modality: str, height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    m = MODALITIES[modality]
    if m.classes:
        return rng.integers(1, 10, (1, height, width)).astype(np.float32)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in specs.moments_of(modality))
    return (mean + std * rng.normal(size=(len(m.bands), height, width))).astype(np.float32)


def batch_of(pixels: dict[str, np.ndarray], origins: list[tuple[int, int]]) -> TileBatch:
    rows, cols = zip(*origins, strict=True)
    return TileBatch(pixels, np.array(rows, np.int64), np.array(cols, np.int64))


class InjectedNoise:
    """Stands in for torch.randn inside terratorch: gives each tile the noise that tmtool gives it."""

    def __init__(self, outputs: list[str], tiles: list[tuple[int, int]], size: int) -> None:
        diffused = [m for m in outputs if not MODALITIES[m].classes]
        self.calls = [(m, row, col) for row, col in tiles for m in diffused]
        self.size = size

    def __call__(self, shape: Any, generator: Any = None) -> torch.Tensor:
        modality, row, col = self.calls.pop(0)
        key = noise.key_of(SEED, modality, "diffusion")
        drawn = noise.normal(key, torch.tensor([row]), torch.tensor([col]), shape[1], self.size, self.size)
        assert drawn.shape == tuple(shape)
        return drawn


def std_of(name: str) -> np.ndarray:
    return np.array(specs.moments_of(name)[1], np.float32)[:, None, None]


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (["S2L2A"], ["S1GRD", "LULC", "NDVI", "DEM", "S1RTC"]),
        (["S1GRD"], ["LULC", "S2L2A"]),
        (["S2L1C"], ["DEM"]),
        (["RGB"], ["NDVI"]),
        (["LULC"], ["S1RTC", "NDVI"]),
        (["NDVI"], ["LULC"]),
        (["DEM", "S1RTC"], ["S2L2A", "LULC"]),
    ],
)
@pytest.mark.parametrize("size", [224, 256])
def test_one_tile_equals_terratorch(
    narrow_terramind: Path, monkeypatch: pytest.MonkeyPatch, inputs: list[str], outputs: list[str], size: int
) -> None:
    pixels = {m: plausible(m, size, size)[None] for m in inputs}
    mine = adapter(spec_of(narrow_terramind, inputs, outputs))(batch_of(pixels, [(16, 32)]))
    reference = narrow.reference(inputs, outputs, narrow_terramind, temps=0.0, timesteps=4)
    monkeypatch.setattr(torch, "randn", InjectedNoise(outputs, [(16, 32)], size))
    with torch.no_grad():
        theirs = reference({m: torch.from_numpy(v) for m, v in pixels.items()})
    assert list(mine) == outputs
    for name in outputs:
        scale = std_of(name) if not MODALITIES[name].classes else 1.0
        expected = theirs[name].numpy()
        assert expected.std() > 1e-3 * np.mean(scale)  # the comparison is not one of constants
        np.testing.assert_allclose(mine[name] / scale, expected / scale, atol=1e-4, rtol=0)


def test_raster_equals_tiled_inference(narrow_terramind: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    height, width, crop, stride, delta = 208, 304, 128, 96, 8  # the last tiles end with the raster
    outputs = list(OUTPUTS)
    raster = plausible("S2L2A", height, width)
    plan = TilePlan((height, width), Tiling(crop, stride, delta))
    specs = [OutputSpec(m, MODALITIES[m].channels) for m in outputs]
    feed = Feed(
        lambda w: (raster[:, w.row : w.row + w.height, w.col : w.col + w.width], np.ones((w.height, w.width), bool)),
        (0,) * 12,
    )
    engine = Engine(plan, specs, {"S2L2A": feed}, [adapter(spec_of(narrow_terramind, ["S2L2A"], outputs))], batch=2)
    mine = {s.name: np.zeros((s.channels, height, width), np.float32) for s in specs}
    for spec, strip in engine.strips():
        mine[spec.name][:, strip.row : strip.row + strip.values.shape[1]] = strip.values

    padded = torch.zeros(1, 1, height, width)
    chips = get_input_chips(padded, crop, stride, crop, stride, delta, True, "reflect")
    tiles = [(c.input_coords[0].start - 2 * delta, c.input_coords[1].start - 2 * delta) for c in chips]
    assert len(tiles) == len(plan)
    reference = narrow.reference(["S2L2A"], outputs, narrow_terramind, temps=0.0, timesteps=4)
    monkeypatch.setattr(torch, "randn", InjectedNoise(outputs, tiles, crop))
    joined = tiled_inference(
        lambda x: torch.cat(list(reference({"S2L2A": x}).values()), dim=1),
        torch.from_numpy(raster)[None],
        crop=crop,
        stride=stride,
        delta=delta,
        batch_size=1,
    )[0].numpy()
    for spec in specs:
        expected, joined = joined[: spec.channels], joined[spec.channels :]
        scale = std_of(spec.name) if not MODALITIES[spec.name].classes else 1.0
        np.testing.assert_allclose(mine[spec.name] / scale, expected / scale, atol=1e-4, rtol=0)


def test_offset_equals_terratorchs_and_leaves_its_table(
    narrow_terramind: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = plausible("S2L2A", 224, 224)[None] + 1000
    before = {k: list(v) for k, v in register.v1_pretraining_mean.items()}
    mine = adapter(spec_of(narrow_terramind, ["S2L2A"], ["NDVI"]))(batch_of({"S2L2A": raw - 1000}, [(0, 0)]))["NDVI"]
    assert {k: list(v) for k, v in register.v1_pretraining_mean.items()} == before
    monkeypatch.setattr(register, "v1_pretraining_mean", dict(before))  # terratorch adds to its own table
    reference = narrow.reference(
        ["S2L2A"], ["NDVI"], narrow_terramind, temps=0.0, timesteps=4, offset={"S2L2A": 1000.0}
    )
    monkeypatch.setattr(torch, "randn", InjectedNoise(["NDVI"], [(0, 0)], 224))
    with torch.no_grad():
        theirs = reference({"S2L2A": torch.from_numpy(raw)})["NDVI"].numpy()
    np.testing.assert_allclose(mine, theirs, atol=1e-4 * 0.322, rtol=0)


@pytest.mark.parametrize(
    "sampling", [GREEDY, replace(GREEDY, temperature=1.0), replace(GREEDY, temperature=1.0, decoding_steps=4)]
)
def test_batch_place_changes_nothing_and_batch_size_little(narrow_terramind: Path, sampling: Sampling) -> None:
    outputs = ["S1GRD", "LULC"]
    model = adapter(spec_of(narrow_terramind, ["S2L2A"], outputs, sampling=sampling))
    tiles = [plausible("S2L2A", 224, 224, seed) for seed in range(3)]
    origins = [(0, 0), (192, 0), (0, 192)]
    forward = model(batch_of({"S2L2A": np.stack(tiles)}, origins))
    backward = model(batch_of({"S2L2A": np.stack(tiles[::-1])}, origins[::-1]))
    for name in outputs:
        np.testing.assert_array_equal(forward[name], backward[name][::-1])
    alone = [model(batch_of({"S2L2A": t[None]}, [o])) for t, o in zip(tiles, origins, strict=True)]
    close = np.mean(
        [np.abs(a["S1GRD"][0] - f) <= 1e-2 * std_of("S1GRD") for a, f in zip(alone, forward["S1GRD"], strict=True)]
    )
    assert close >= 0.999
    same = np.mean([a["LULC"][0].argmax(0) == f.argmax(0) for a, f in zip(alone, forward["LULC"], strict=True)])
    assert same >= 0.999


@pytest.mark.parametrize("most", [1, 2, 64])
def test_decoders_take_parts_of_a_batch(narrow_terramind: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    outputs = ["S1GRD", "LULC"]
    tiles = np.stack([plausible("S2L2A", 224, 224, seed) for seed in range(3)])
    batch = batch_of({"S2L2A": tiles}, [(0, 0), (192, 0), (0, 192)])
    model = adapter(spec_of(narrow_terramind, ["S2L2A"], outputs))
    whole = model(batch)
    monkeypatch.setattr(model, "decoder_batch", most)
    seen = []
    model.tokenizers["S1GRD"].decoder.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    parts = model(batch)
    assert set(seen) == {min(most, 3)}  # one shape, also where the batch is no multiple of it
    assert len(seen) == GREEDY.timesteps * -(-3 // min(most, 3))
    for name in outputs:
        scale = std_of(name) if not MODALITIES[name].classes else 1.0
        np.testing.assert_allclose(parts[name] / scale, whole[name] / scale, atol=1e-3, rtol=0)


@pytest.mark.parametrize("inputs", [["S2L2A"], ["NDVI", "DEM"]])
def test_nothing_in_a_tile_waits_for_the_device_but_the_count_of_codes(
    narrow_terramind: Path, inputs: list[str]
) -> None:
    """Told on the CPU by what is dispatched: numbers taken from tensors, and tensors made of arrays or numbers."""
    seen: list[str] = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.__name__)
            return func(*args, **(kwargs or {}))

    model = adapter(spec_of(narrow_terramind, inputs, ["S1GRD", "LULC"], sampling=Sampling(timesteps=3)))
    batch = batch_of({m: plausible(m, 224, 224)[None] for m in inputs}, [(0, 0)])
    with Watching():
        model(batch)
    assert len(seen) > 500
    assert not [name for name in seen if "local_scalar" in name or "nonzero" in name or "masked_select" in name]
    assert sum("lift_fresh" in name for name in seen) == len(inputs) + 2  # the pixels, the tiles' rows and columns


def test_blocks_and_runs_give_the_same_bits(narrow_terramind: Path) -> None:
    raster = plausible("S2L2A", 260, 160)
    sampling = replace(GREEDY, temperature=1.0, clip_sigma=None)
    model = adapter(spec_of(narrow_terramind, ["S2L2A"], ["S1GRD", "LULC"], sampling=sampling))
    specs = [OutputSpec("S1GRD", 2), OutputSpec("LULC", 10)]
    plan = TilePlan((260, 160), Tiling(112, 64, 8))
    feed = Feed(
        lambda w: (raster[:, w.row : w.row + w.height, w.col : w.col + w.width], np.ones((w.height, w.width), bool)),
        (0,) * 12,
    )

    def run(*cuts: int) -> dict[str, np.ndarray]:
        parts: dict[str, list[np.ndarray]] = {"S1GRD": [], "LULC": []}
        for a, b in zip(cuts, cuts[1:], strict=False):
            for spec, strip in Engine(plan, specs, {"S2L2A": feed}, [model], batch=3).strips(range(a, b)):
                parts[spec.name].append(strip.values)
        return {name: np.concatenate(strips, axis=1) for name, strips in parts.items()}

    whole, blocks = run(0, 260), run(0, 35, 170, 260)
    for name in whole:
        np.testing.assert_array_equal(whole[name], blocks[name])


def test_overlapping_tiles_draw_the_same_tokens_where_the_model_agrees() -> None:
    """With the same logits in every cell, a cell's token depends on its place alone."""
    from tmtool.models._inputs import CellGrid
    from tmtool.models.terramind.generator import _draw

    logits = torch.randn(1, 256, 500, generator=torch.Generator().manual_seed(0))
    logits = logits[:, :1].expand(1, 256, 500)
    drawn = {}
    for origin in (-8, 184):
        cells = CellGrid(torch.tensor([origin]), torch.tensor([origin]), 256, torch.device("cpu"))
        drawn[origin] = _draw(logits, Sampling(), cells, None, (1, 2)).reshape(16, 16)
    assert torch.equal(drawn[-8][12:, 12:], drawn[184][:4, :4])
    assert len(drawn[-8].unique()) > 10


def test_seed_and_steps_change_the_result_and_are_repeatable(narrow_terramind: Path) -> None:
    pixels = {"S2L2A": plausible("S2L2A", 224, 224)[None]}

    def run(seed: int, sampling: Sampling) -> np.ndarray:
        spec = replace(spec_of(narrow_terramind, ["S2L2A"], ["DEM"], sampling=sampling), seed=seed)
        return adapter(spec)(batch_of(pixels, [(0, 0)]))["DEM"]

    base = Sampling(timesteps=4)
    np.testing.assert_array_equal(run(0, base), run(0, base))
    for other in (run(1, base), run(0, replace(base, decoding_steps=5)), run(0, replace(base, temperature=0))):
        assert np.isfinite(other).all()
        assert np.abs(other - run(0, base)).max() > 1


def test_bf16_stays_close_to_fp32(narrow_terramind: Path) -> None:
    pixels = {"S2L2A": plausible("S2L2A", 224, 224)[None]}
    spec = spec_of(narrow_terramind, ["S2L2A"], ["S1GRD", "LULC"])
    exact = adapter(spec)(batch_of(pixels, [(0, 0)]))
    rough = adapter(replace(spec, compute=Compute("cpu", "bf16")))(batch_of(pixels, [(0, 0)]))
    assert (exact["LULC"].argmax(1) == rough["LULC"].argmax(1)).mean() > 0.5
    assert np.abs(exact["S1GRD"] - rough["S1GRD"]).mean() < 0.5 * std_of("S1GRD").mean()


@pytest.mark.parametrize("shape", [(1, 64, 32, 32), (2, 64, 9, 20), (1, 64, 77)])
def test_group_norms_take_bfloat16_as_it_comes(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    plain = unet_layers.GroupNorm32(32, shape[1]).requires_grad_(False)
    plain.weight.normal_(1, 0.3)
    plain.bias.normal_()
    other = deepcopy(plain)
    parts.place(other, Compute("cpu", "bf16"))
    assert type(other) is parts.BF16GroupNorm
    x = torch.randn(shape).to(torch.bfloat16) * 3 + 1
    if x.ndim == 4:
        x = x.to(memory_format=torch.channels_last)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected, found = plain(x), other(x)
    assert (found.dtype, found.stride()) == (expected.dtype, expected.stride())
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=2**-7)  # a rounding of the output
    assert (found == expected).float().mean() > 0.98  # sums in float32, in another order


@pytest.mark.parametrize("compute", [Compute(), Compute("cuda:0", "bf16"), Compute("cpu", "bf16", compiled=True)])
def test_group_norms_are_terratorchs_elsewhere(compute: Compute, monkeypatch: pytest.MonkeyPatch) -> None:
    part = unet_layers.GroupNorm32(32, 64)
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, device: module)
    parts.place(part, compute)
    assert type(part) is unet_layers.GroupNorm32


def test_only_what_generation_uses_is_built(narrow_terramind: Path) -> None:
    model = adapter(spec_of(narrow_terramind, ["S2L2A"], ["S1GRD", "LULC"]))
    assert set(model.core.encoder_embeddings) == {"untok_sen2l2a@224", "tok_sen1grd@224"}
    assert set(model.core.decoder_embeddings) == {"tok_sen1grd@224", "tok_lulc@224"}
    for tokenizer in model.tokenizers.values():
        assert not any(name.startswith(("encoder", "quant_proj")) for name in tokenizer.state_dict())
    through = adapter(spec_of(narrow_terramind, ["NDVI"], ["LULC"])).tokenizers["NDVI"]
    assert not any(name.startswith("decoder") for name in through.state_dict())


def test_random_weights_give_lively_finite_output(narrow_terramind: Path) -> None:
    spec = replace(spec_of(narrow_terramind, ["S2L2A"], ["S1GRD", "LULC"]), files=None)
    pixels = {"S2L2A": plausible("S2L2A", 224, 224)[None]}
    first, again = (adapter(spec)(batch_of(pixels, [(0, 0)])) for _ in range(2))
    for name, values in first.items():
        assert np.isfinite(values).all()
        assert values.std() > 0
        np.testing.assert_array_equal(values, again[name])


def test_tables_equal_terratorchs() -> None:
    for modality in MODALITIES.values():
        for key in filter(None, (modality.raw_key, modality.token_key)):
            if modality.classes:
                continue
            mean, std = specs.moments_of(modality.name)
            assert list(mean) == pytest.approx(register.v1_pretraining_mean[key], abs=1e-9)
            assert list(std) == pytest.approx(register.v1_pretraining_std[key], abs=1e-9)
    for size in ("base", "large", "small", "tiny"):
        theirs = register.pretrained_weights[f"terramind_v1_{size}"]
        assert (core_file(size).repo, core_file(size).filename) == (theirs["hf_hub_id"], theirs["hf_hub_filename"])


def test_tokenizer_files_are_terratorchs() -> None:
    from terratorch.models.backbones.terramind.tokenizer import tokenizer_register

    for modality in OUTPUTS:
        theirs = tokenizer_register.pretrained_weights[f"terramind_v1_tokenizer_{modality.lower()}"]
        mine = tokenizer_file(modality)
        assert (mine.repo, mine.filename) == (theirs["hf_hub_id"], theirs["hf_hub_filename"])
