"""Prithvi and Clay: terratorch's numbers layer by layer, from files laid out as the hub's, which fit exactly or are refused."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.specs import spec_of
from tests.terratorch_files import backbone_module, prithvi_tables
from tmtool import models
from tmtool.errors import UsageError, WeightsError
from tmtool.grid import TileBatch
from tmtool.modality import S2_NAMES
from tmtool.models import ModelSpec
from tmtool.models.device import Compute
from tmtool.models.vit import _network as vit
from tmtool.models.vit import clay, prithvi
from tmtool.models.vit.facts import Facts, VitEntry

TABLES = {"prithvi": prithvi, "clay": clay}
EVERY = [*prithvi.MODELS.values(), *clay.MODELS.values()]
LONLAT = np.array([[-70.6, -33.4], [12.5, 78.2]])


@pytest.fixture(scope="module")
def mae() -> Any:
    return backbone_module("prithvi_mae")


def narrowed(monkeypatch: pytest.MonkeyPatch, name: str, **changes: Any) -> Facts:
    """Register a model at a small width."""
    family = name.partition("-")[0]
    shape = {"dim": 64, "depth": 3, "heads": 2} | ({"image": 64} if family == "prithvi" else {})
    facts = replace(TABLES[family].MODELS[name], **(shape | changes))
    monkeypatch.setitem(TABLES[family].MODELS, name, facts)
    monkeypatch.setitem(models.MODELS, name, VitEntry.of(facts, f"tmtool.models.vit.{family}"))
    return facts


def job(facts: Facts, path: Path | None, precision: str = "fp32", **options: Any) -> ModelSpec:
    files = {facts.file: path} if path else None
    bands = {"S2L2A": facts.bands}
    compute = Compute("cpu", precision)
    return spec_of(facts.name, "embed", ("S2L2A",), compute=compute, files=files, bands=bands, request=options)


def pixels(facts: Facts, size: int, dates: int = 1) -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.uniform(0, 6000, (2, len(facts.bands), dates, size, size)).astype(np.float32)


def standardised(facts: Facts, values: np.ndarray) -> Tensor:
    mean, std = (torch.tensor(v)[None, :, None, None, None] for v in (facts.mean, facts.std))
    return (torch.from_numpy(values) - mean) / std


def seeded(module: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter noise, biases and norms too, so that none can be left out unseen."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return module.eval()


# --- Prithvi ---


def theirs(mae: Any, facts: Facts, dates: int = 1) -> Any:
    """Return terratorch's autoencoder of these facts."""
    return seeded(
        mae.PrithviMAE(
            img_size=facts.image,
            patch_size=(1, facts.patch, facts.patch),
            num_frames=dates,
            in_chans=6,
            embed_dim=facts.dim,
            depth=facts.depth,
            num_heads=facts.heads,
            decoder_embed_dim=32,
            decoder_depth=1,
            decoder_num_heads=2,
            coords_encoding=[word for word, on in (("time", facts.time), ("location", facts.place)) if on],
            coords_scale_learn=True,
        )
    )


def hub_file(folder: Path, facts: Facts, state: Mapping[str, Tensor]) -> Path:
    path = folder / Path(facts.file.filename).name
    torch.save(dict(state), path)
    return path


@pytest.mark.parametrize(
    ("name", "size", "dates"),
    [
        ("prithvi-eo-v2-300-tl", 64, 1),
        ("prithvi-eo-v2-300-tl", 96, 3),
        ("prithvi-eo-v2-600", 70, 2),
        ("prithvi-eo-v2-600-tl", 56, 1),
    ],
)
@torch.inference_mode()
def test_prithvi_is_terratorchs_layer_by_layer(
    mae: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, size: int, dates: int
) -> None:
    facts = narrowed(monkeypatch, name, image=70 if "600" in name else 64)
    model = theirs(mae, facts, dates)
    state = model.state_dict() | {"encoder.pos_embed": torch.zeros(1, 9, facts.dim)}  # of other dates, and not used
    embedder = prithvi.build(job(facts, hub_file(tmp_path, facts, state)))
    when = np.array([["2018-01-01", "2020-12-31", "2024-07-14"], ["2021-03-02"] * 3], "datetime64[D]")[:, :dates]
    numbers = [[(d.year, d.timetuple().tm_yday - 1) for d in row] for row in when.astype(object)]
    values, side = pixels(facts, size, dates), size // facts.patch
    for given in (False, True):
        time, place = (
            (torch.tensor(numbers).float(), torch.tensor(LONLAT[:, ::-1].copy()).float()) if given else [None] * 2
        )
        expected = model.forward_features(standardised(facts, values), time, place)
        found = embedder.vectors(values, range(facts.depth), *((when, LONLAT) if given else ()))
        # as terratorch lays tokens out for decoders: dates follow each other
        maps = model.encoder.prepare_features_for_image_model(expected)
        assert list(found) == [0, 1, 2]
        for i, layer in found.items():
            assert layer.shape == (2, dates, facts.dim, side, side)
            torch.testing.assert_close(layer.flatten(1, 2), maps[i], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_dates_and_places_matter_where_the_model_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    tl, plain = (narrowed(monkeypatch, f"prithvi-eo-v2-300{end}") for end in ("-tl", ""))
    when = np.array([["2018-01-01"], ["2020-12-31"]], "datetime64[s]")
    for facts, matters in ((tl, True), (plain, False)):
        embedder, values = prithvi.build(job(facts, None)), pixels(facts, 32)
        bare = embedder.vectors(values, [2])[2]
        assert torch.equal(embedder.vectors(values, [2], dates=np.full((2, 1), "NaT", "datetime64[s]"))[2], bare)
        assert torch.equal(embedder.vectors(values, [2], when)[2], bare) is not matters
        assert torch.equal(embedder.vectors(values, [2], None, LONLAT)[2], bare) is not matters


@torch.inference_mode()
def test_the_file_of_prithvi_1_names_nothing_encoder(mae: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    facts = narrowed(monkeypatch, "prithvi-eo-v1-100")
    model = theirs(mae, facts)
    state = {k.removeprefix("encoder.").removeprefix("decoder."): v for k, v in model.state_dict().items()}
    assert {"mask_token", "decoder_embed.weight", "cls_token", "blocks.0.norm1.bias"} <= set(state)
    values = pixels(facts, 64)
    found = prithvi.build(job(facts, hub_file(tmp_path, facts, state))).vectors(values[:, :, 0], [1, 2])
    expected = model.forward_features(standardised(facts, values)[:, :, 0])
    for i, layer in found.items():
        torch.testing.assert_close(layer[:, 0].flatten(2), expected[i][:, 1:].transpose(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.blocks.1.mlp.fc1.bias": None}, "blocks.1.mlp.fc1.bias is missing"),
        ({"encoder.norm.weight": torch.ones(63)}, r"norm.weight has shape \[63\], expected \[64\]"),
        ({"encoder.blocks.3.norm1.weight": torch.ones(64)}, "blocks.3.norm1.weight is not in the model"),
        (
            {"encoder.vpt_prompt_embeddings.0": torch.ones(1)},
            "1 tensors that .* does not have: vpt_prompt_embeddings.0",
        ),
        ({"encoder.temporal_embed_enc.scale": torch.ones(1)}, "temporal_embed_enc.scale. Choose .* with --model"),
        ({"encoder.norm.bias": torch.full((64,), torch.nan)}, "norm.bias holds NaN"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    mae: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    facts = narrowed(monkeypatch, "prithvi-eo-v2-300")
    state = {k: v for k, v in (theirs(mae, facts).state_dict() | change).items() if v is not None}
    with pytest.raises(WeightsError, match=message):
        prithvi.build(job(facts, hub_file(tmp_path, facts, state)))


def test_facts_of_prithvi_are_terratorchs() -> None:
    shapes, files = prithvi_tables()
    assert {facts.registry for facts in prithvi.MODELS.values()} == set(files)
    for facts in prithvi.MODELS.values():
        shape, file = shapes[facts.registry], files[facts.registry]
        assert (facts.dim, facts.depth, facts.heads) == (shape["embed_dim"], shape["depth"], shape["num_heads"])
        assert [1, facts.patch, facts.patch] == shape["patch_size"]
        assert (facts.image, list(facts.mean), list(facts.std)) == (shape["img_size"], shape["mean"], shape["std"])
        assert list(facts.bands) == [S2_NAMES[band] for band in shape["bands"]]
        assert [w for w, on in (("time", facts.time), ("location", facts.place)) if on] == shape["coords_encoding"]
        assert (facts.file.repo, facts.file.filename) == (file["hf_hub_id"], file["hf_hub_filename"])
        assert shape["mlp_ratio"] == 4


# --- Clay ---


@pytest.fixture(scope="module")
def clay_modules() -> dict[str, Any]:
    parts = [f"clay_v15.{part}" for part in ("utils", "backbone", "factory")]
    return {
        "clay-v1": backbone_module("clay_v1.modules", "clay_v1.utils"),
        "clay-v1.5": backbone_module("clay_v15.model", *parts),
    }


def clay_layers(module: Any, facts: Facts, size: int) -> tuple[Any, Any]:
    """Return terratorch's encoder, and a function that gives all layers' tokens: only v1 gives more than the last."""
    shape = {"patch_size": 8, "dim": facts.dim, "depth": facts.depth, "heads": facts.heads, "mlp_ratio": 4}
    shape["dim_head"] = facts.dim // facts.heads
    if facts.name == "clay-v1":
        encoder = seeded(module.EmbeddingEncoder(img_size=size, **shape))
        return encoder, encoder
    encoder = seeded(module.Encoder(mask_ratio=0.0, shuffle=False, **shape))
    entered: list[Tensor] = []
    for attention, _ in list(encoder.transformer.layers)[1:]:
        attention.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))

    def layers(cube: dict[str, Any]) -> list[Tensor]:
        entered.clear()
        last = encoder(cube)[0]
        return [*entered, last]

    return encoder, layers


def clay_time(date: datetime, hour: bool = True) -> list[float]:
    """Do what Clay's own `normalize_timestamp` does."""
    week, hours = (2 * np.pi * share for share in (date.isocalendar().week / 52, date.hour / 24))
    return [np.sin(week), np.cos(week), *([np.sin(hours), np.cos(hours)] if hour else [0, 0])]


def clay_checkpoint(folder: Path, facts: Facts, encoder: Any) -> Path:
    """Write what Clay's trainer writes: the encoder among others, and what else a trainer keeps."""
    state = {f"model.encoder.{k}": v for k, v in encoder.state_dict().items()}
    others = {"model.decoder.mask_patch": torch.ones(3), "model.teacher.cls_token": torch.ones(2)}
    path = folder / Path(facts.file.filename).name
    torch.save({"state_dict": state | others, "epoch": 7, "hyper_parameters": {"model_size": "large"}}, path)
    return path


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")  # of terratorch's own class
@pytest.mark.parametrize("name", ["clay-v1", "clay-v1.5"])
@torch.inference_mode()
def test_clay_is_terratorchs_layer_by_layer(
    clay_modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    facts = narrowed(monkeypatch, name)
    encoder, layers = clay_layers(clay_modules[name], facts, 40)
    embedder = clay.build(job(facts, clay_checkpoint(tmp_path, facts, encoder)))
    assert not hasattr(embedder.network, "patch_embedding")  # what makes kernels is not kept
    when, values = np.array([["2024-12-30T14:40:19"], ["2021-01-03T09:05:00"]], "datetime64[s]"), pixels(facts, 40)
    lat, lon = np.deg2rad(LONLAT[:, 1]), np.deg2rad(LONLAT[:, 0])
    known = {
        "time": torch.tensor([clay_time(d[0]) for d in when.astype(object)]).float(),
        "latlon": torch.tensor(np.stack([np.sin(lat), np.cos(lat), np.sin(lon), np.cos(lon)], 1)).float(),
    }
    for given in (False, True):
        cube = known if given else {key: torch.zeros(2, 4) for key in known}
        cube |= {
            "pixels": standardised(facts, values)[:, :, 0],
            "gsd": torch.tensor(10),
            "waves": torch.tensor(facts.wavelengths),
        }
        found = embedder.vectors(values, range(3), *((when, LONLAT) if given else ()))
        for layer, expected in zip(found.values(), layers(cube), strict=True):
            assert layer.shape == (2, 1, facts.dim, 5, 5)
            torch.testing.assert_close(layer[:, 0].flatten(2), expected[:, 1:].transpose(1, 2), rtol=1e-5, atol=1e-5)


def test_clay_is_told_week_and_hour_as_it_was_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    network = vit.Clay(narrowed(monkeypatch, "clay-v1.5"))
    days = [datetime(2015, 12, 20, 10) + timedelta(days=i, hours=i) for i in range(0, 4000, 3)]
    stamps = np.array([[d] for d in days], "datetime64[s]")
    code = network.circumstances(stamps, None)
    assert code is not None
    np.testing.assert_allclose(code[:, 0, -8:-4], [clay_time(d) for d in days], atol=1e-6)
    assert not code[..., -4:].any()
    assert not code[..., :-8].any()
    undated = network.circumstances(stamps.astype("datetime64[D]"), None)
    assert undated is not None
    np.testing.assert_allclose(undated[:, 0, -8:-4], [clay_time(d, hour=False) for d in days], atol=1e-6)


def test_a_checkpoint_without_clays_encoder_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    facts = narrowed(monkeypatch, "clay-v1.5")
    torch.save({"state_dict": {"encoder.cls_token": torch.ones(1, 1, 64)}}, tmp_path / "clay.ckpt")
    with pytest.raises(WeightsError, match=r"clay.ckpt: does not cover .*\n  cls_token is missing"):
        clay.build(job(facts, tmp_path / "clay.ckpt"))


# --- both ---


@pytest.mark.parametrize("facts", EVERY, ids=lambda facts: facts.name)
def test_size_and_cost_are_as_counted(facts: Facts) -> None:
    with torch.device("meta"):
        network = (vit.Clay if facts.wavelengths else vit.Prithvi)(facts)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert round(count / 1e6, 1) == facts.parameters_m
    assert {len(facts.bands)} == {len(v) for v in (facts.mean, facts.std, facts.wavelengths or facts.bands)}
    crop, stride, delta = facts.tiling
    assert not any(v % facts.patch for v in facts.tiling)
    assert stride <= crop - 2 * delta
    facts.check(crop, facts.bands, facts.dates)


@pytest.mark.parametrize(("name", "dates"), [("prithvi-eo-v2-600", 3), ("clay-v1.5", 1)])
def test_arithmetic_is_as_counted(name: str, dates: int) -> None:
    facts = TABLES[name.partition("-")[0]].MODELS[name]
    with torch.device("meta"), torch.no_grad():
        network = (vit.Clay if facts.wavelengths else vit.Prithvi)(facts)
        network.settle()
        tile = torch.empty(1, len(facts.bands), dates, 224, 224)
        with FlopCounterMode(display=False) as counter:
            network(tile, [facts.depth - 1])
    assert facts.tflop_per_tile(224, dates) * 1e12 == pytest.approx(counter.get_total_flops(), rel=1e-3)


@pytest.mark.parametrize("name", ["prithvi-eo-v2-300-tl", "clay-v1.5"])
def test_random_weights_give_finite_vectors(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    facts = narrowed(monkeypatch, name)
    embedder = TABLES[name.partition("-")[0]].build(job(facts, None))
    found = embedder.vectors(pixels(facts, 80), [2])[2]
    assert torch.isfinite(found).all()
    assert found.std(dim=(3, 4)).min() > 1e-3  # patches differ


@pytest.mark.parametrize("name", ["prithvi-eo-v2-100-tl", "clay-v1.5"])
def test_bf16_is_near_fp32(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    facts = narrowed(monkeypatch, name)
    build = TABLES[name.partition("-")[0]].build
    values = pixels(facts, 64)
    exact, near = (
        build(job(facts, None, precision)).vectors(values, [0, 2], None, LONLAT) for precision in ("fp32", "bf16")
    )
    for i in exact:
        assert near[i].dtype == torch.float32
        assert not torch.equal(near[i], exact[i])
        assert torch.cosine_similarity(near[i], exact[i], dim=2).min() > 0.99


def test_a_batch_gives_a_product_a_layer_with_dates_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = narrowed(monkeypatch, "prithvi-eo-v2-300-tl")
    values, rows = pixels(facts, 64, 2), np.zeros(2, np.int64)
    batch = TileBatch(
        {f"S2L2A {date}": values[:, :, date] for date in range(2)},
        rows,
        rows,
        LONLAT,
        np.array([["2020-01-01", "2020-06-01"]] * 2, "datetime64[D]"),
    )
    merged = {}
    for how in ("mean", "max", "concat"):
        embedder = models.build(job(facts, None, layers=(0, -1), merge=how))  # type: ignore[arg-type]
        merged[how] = embedder(batch)
    plain = embedder.vectors(values, [2], batch.dates, LONLAT)[2].numpy()  # type: ignore[attr-defined]
    assert list(merged["mean"]) == ["embed_layer0", "embed_layer2"]
    np.testing.assert_allclose(merged["mean"]["embed_layer2"], plain.mean(1), atol=1e-6)
    np.testing.assert_array_equal(merged["max"]["embed_layer2"], plain.max(1))
    np.testing.assert_array_equal(merged["concat"]["embed_layer2"], plain.reshape(2, 2 * facts.dim, 4, 4))


def test_what_a_model_does_not_take_is_said() -> None:
    facts = prithvi.MODELS["prithvi-eo-v2-600"]
    with pytest.raises(UsageError, match=r"--crop 256: prithvi-eo-v2-600 takes patches of 14 px.*: 252 or 266"):
        facts.check(256, facts.bands)
    with pytest.raises(UsageError, match="takes the bands B02 B03 B04 B8A B11 B12, found B02 B03"):
        facts.check(224, ("B02", "B03"))
    with pytest.raises(UsageError, match="takes 1 to 4 dates of a place, found 5"):
        facts.check(224, facts.bands, 5)
    with pytest.raises(UsageError, match="clay-v1.5 takes one date of a place, found 2"):
        clay.MODELS["clay-v1.5"].check(256, clay.MODELS["clay-v1.5"].bands, 2)


def test_facts_need_no_torch_and_encoders_no_terratorch() -> None:
    script = (
        "import sys, tmtool.models.vit.prithvi, tmtool.models.vit.clay\n"
        "print('torch' in sys.modules)\n"
        "import tmtool.models.vit._network\n"
        "print(*{'terratorch', 'timm', 'torchvision', 'lightning', 'diffusers'} & {m.partition('.')[0] for m in sys.modules})"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.split("\n")[:2] == ["False", ""]
