"""Fine-tuned tasks: predictors give what TerraTorch's own tasks give, and refuse what they cannot be sure of."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests import finetuned
from tests.test_task_config import BURN_SCARS, CONFIGS, FLOOD
from tmtool.errors import UsageError, WeightsError
from tmtool.grid import TileBatch
from tmtool.models.device import Compute
from tmtool.models.finetuned import config as task_configs
from tmtool.models.finetuned._network import factories
from tmtool.models.finetuned._predictor import build_predictor
from tmtool.models.finetuned._tim import PlacedSampler
from tmtool.models.finetuned.checkpoint import TaskCheckpoint, config_of, read_task_checkpoint
from tmtool.models.finetuned.config import TaskConfig, read_config

TILES = {"crop": 96, "stride": 64, "delta": 8, "batch_size": 4}
PRETRAINING = {"means": "pretraining", "stds": "pretraining"}
NARROW_DECODER = ("decoder_channels: [512, 256, 128, 64]", "decoder_channels: [32, 16, 8, 8]")


@pytest.fixture(scope="module", autouse=True)
def _small_tokenizer() -> Any:
    """Stand in for the tokenizer that a TiM backbone has of LULC, and does not call: it has 184 million parameters."""
    factories()  # terratorch as a whole, once
    from terratorch.models.backbones.terramind.model import terramind_register as register

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(register.tokenizer_dict["v1"], "tok_lulc@224", lambda pretrained: torch.nn.Linear(2, 2))
        yield


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """Write a config; return it read, TerraTorch's task of it with random weights, and that one's checkpoint."""

    def build(text: str, **options: str) -> tuple[TaskConfig, Any, TaskCheckpoint]:
        path = tmp_path / "task.yaml"
        path.write_text(text)
        config = read_config(path, **options)
        task = finetuned.terratorch_task(config, yaml.safe_load(text)["model"]["init_args"])
        return config, task, read_task_checkpoint(finetuned.save_checkpoint(task, tmp_path / "best.ckpt"))

    return build


def _hold_equal(
    config: TaskConfig, task: Any, checkpoint: TaskCheckpoint, tiles: Any = TILES, shape: Any = (112, 140)
) -> None:
    predictor = build_predictor(config, checkpoint, Compute(), config.dates or 2)
    scene = finetuned.scene_of(config, *shape, config.dates or 2)
    theirs = finetuned.terratorch_logits(task, config, scene, tiles)
    ours = finetuned.predictor_logits(predictor, scene, tiles)
    assert ours.shape == (config.channels, *shape)
    assert np.ptp(theirs) > 0.05
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.ptp(theirs), rtol=0)


@pytest.mark.parametrize(
    "name",
    ["burnscars", "impactmesh_fire", "impactmesh_flood", "multitemporal_crop", "sen1floods11", "tim_lulc_sen1floods11"],
)
def test_real_configs_at_tiny_width(make: Any, name: str) -> None:
    path = CONFIGS / f"terramind_v1_base_{name}.yaml"
    if not path.is_file():
        pytest.skip(f"TerraMind's example configs are not at {CONFIGS}")
    text = path.read_text().replace("terramind_v1_base", "terramind_v1_tiny").replace(*NARROW_DECODER)
    if "_tim" in name or name.startswith(
        "tim_"
    ):  # terratorch draws from global generators: nothing to hold but the likeliest
        text = text.replace("backbone_merge_method: mean", "backbone_merge_method: mean\n      backbone_tim_top_k: 1")
    config, task, checkpoint = make(text, **(PRETRAINING if "impactmesh" in name else {}))
    _hold_equal(config, task, checkpoint)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("backbone_temporal_pooling: concat", "backbone_temporal_pooling: mean"),
        ("backbone_temporal_pooling: concat", "backbone_temporal_pooling: diff\n      backbone_temporal_subset_lengths: [1, 3]"),
        ("decoder: UNetDecoder\n      decoder_channels: [32, 16, 8, 8]", "decoder: UperNetDecoder\n      decoder_channels: 16"),
        ("decoder: UNetDecoder\n      decoder_channels: [32, 16, 8, 8]", "decoder: FCNDecoder\n      decoder_channels: 16"),
        ("backbone_modalities: [S2L2A, S1RTC, DEM]", "backbone_modalities: [S2L2A, S1RTC, DEM]\n      backbone_merge_method: concat"),
    ],
)  # fmt: skip
def test_poolings_decoders_and_merges(make: Any, old: str, new: str) -> None:
    assert old in FLOOD
    _hold_equal(*make(FLOOD.replace(old, new), **PRETRAINING))


def test_a_linear_decoder_on_one_layer(make: Any) -> None:
    text = BURN_SCARS.replace("[2, 5, 8, 11]", "[11]").replace("        - name: LearnedInterpolateToPyramidal\n", "")
    text = text.replace("decoder: UNetDecoder\n      decoder_channels: [32, 16, 8, 8]", "decoder: LinearDecoder")
    text = text.replace(
        "decoder: LinearDecoder",
        "decoder: LinearDecoder\n      decoder_upsampling_size: 16\n      decoder_num_classes: 2",
    )
    _hold_equal(*make(text.replace("      head_dropout: 1e-1\n", "")))


def test_auxiliary_heads_and_class_weights_are_left_aside(make: Any) -> None:
    config, task, checkpoint = make(BURN_SCARS)
    spare = {"criterion.weight": torch.ones(2), "model.aux_heads.extra.0.weight": torch.ones(3)}
    whole = TaskCheckpoint(checkpoint.path, {**checkpoint.state, **spare}, checkpoint.hyper_parameters)
    _hold_equal(config, task, whole)


def test_scale_and_holes(make: Any) -> None:
    text = BURN_SCARS.replace("no_data_replace: 0", "no_data_replace: 200\n    constant_scale: 0.0001")
    config, task, checkpoint = make(text)
    scene = finetuned.scene_of(config, 96, 96)
    holed, filled = ({k: v.copy() for k, v in scene.items()} for _ in range(2))
    holed["S2L2A"][:, :, 20:50, 30:60] = np.nan
    filled["S2L2A"][:, :, 20:50, 30:60] = 200
    predictor = build_predictor(config, checkpoint, Compute())
    theirs = finetuned.terratorch_logits(task, config, filled, TILES)
    np.testing.assert_allclose(finetuned.predictor_logits(predictor, holed, TILES), theirs, atol=1e-4 * np.ptp(theirs))


PRITHVI = """
data:
  class_path: MultiTemporalCropClassificationDataModule
  init_args: {expand_temporal_dimension: true}
model:
  class_path: PixelwiseRegressionTask
  init_args:
    model_factory: EncoderDecoderFactory
    model_args:
      backbone: prithvi_eo_v2_tiny_tl
      backbone_pretrained: false
      backbone_num_frames: 3
      backbone_coords_encoding: []
      necks:
        - {name: SelectIndices, indices: [2, 5, 8, 11]}
        - {name: ReshapeTokensToImage, effective_time_dim: 3}
      decoder: UperNetDecoder
      decoder_channels: 16
      decoder_scale_modules: true
      num_outputs: 1
"""


def test_values_a_pixel_of_a_backbone_with_its_own_time_axis(make: Any) -> None:
    config, task, checkpoint = make(PRITHVI)
    assert (config.kind, config.temporal, config.dates, config.channels) == ("regression", True, 3, 1)
    predictor = build_predictor(config, checkpoint, Compute(), 3)
    scene = finetuned.scene_of(config, 96, 96, 3)
    theirs = finetuned.terratorch_logits(task, config, scene, TILES)
    np.testing.assert_allclose(
        finetuned.predictor_logits(predictor, scene, TILES)[0], theirs, atol=1e-4 * np.ptp(theirs)
    )


CLASSIFICATION = """
data:
  class_path: terratorch.datamodules.GenericMultiModalDataModule
  init_args:
    task: classification
    modalities: [S2L2A]
    dataset_bands: {S2L2A: [RED, GREEN, BLUE]}
    means: {S2L2A: [1000, 900, 800]}
    stds: {S2L2A: [500, 400, 300]}
model:
  class_path: terratorch.tasks.ClassificationTask
  init_args:
    model_factory: EncoderDecoderFactory
    model_args:
      backbone: terramind_v1_tiny
      backbone_modalities: [S2L2A]
      backbone_bands: {S2L2A: [RED, GREEN, BLUE]}
      necks:
        - {name: SelectIndices, indices: [2, 5, 8, 11]}
        - {name: ReshapeTokensToImage, remove_cls_token: False}
      decoder: IdentityDecoder
      num_classes: 5
    loss: ce
"""


@pytest.mark.parametrize(
    ("changes", "kind", "channels"),
    [
        ([], "classification", 5),
        ([("ClassificationTask", "MultiLabelClassificationTask"), ("loss: ce", "loss: bce")], "multilabel", 5),
        ([("ClassificationTask", "ScalarRegressionTask"), ("num_classes: 5", "num_outputs: 2")]
         + [("loss: ce", "loss: mse\n    num_outputs: 2")], "scalar_regression", 2),
    ],
)  # fmt: skip
def test_an_answer_a_tile(make: Any, changes: list[tuple[str, str]], kind: str, channels: int) -> None:
    text = CLASSIFICATION
    for old, new in changes:
        text = text.replace(old, new)
    config, task, checkpoint = make(text)
    assert (config.kind, config.channels, config.per_pixel) == (kind, channels, False)
    scene = finetuned.scene_of(config, 96, 96)
    tiles = {"S2L2A": np.stack([scene["S2L2A"], scene["S2L2A"][..., ::-1]])}
    predictor = build_predictor(config, checkpoint, Compute())
    ours = predictor(finetuned.batch_of(predictor, tiles))["pred"]
    inputs = {"S2L2A": torch.from_numpy(tiles["S2L2A"][:, :, 0].copy())}
    with torch.no_grad():
        theirs = task(finetuned.normalised(config, inputs)).output.numpy()
    assert ours.shape == (2, channels)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.ptp(theirs))
    assert config_of(checkpoint, **PRETRAINING).kind == kind


def test_bfloat16_is_near(make: Any) -> None:
    config, _, checkpoint = make(BURN_SCARS)
    scene = finetuned.scene_of(config, 96, 96)
    exact, half = (
        finetuned.predictor_logits(build_predictor(config, checkpoint, Compute(precision=p)), scene, TILES)
        for p in ("fp32", "bf16")
    )
    assert 0 < np.abs(exact - half).max() < 0.1 * np.ptp(exact)


def test_random_weights_are_the_same_at_every_call(make: Any) -> None:
    config, _, _ = make(BURN_SCARS)
    scene = finetuned.scene_of(config, 96, 96)
    first, second = (
        finetuned.predictor_logits(build_predictor(config, None, Compute()), scene, TILES) for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)
    assert np.ptp(first) > 0


def test_a_static_input_stands_for_all_dates(make: Any) -> None:
    config, _, checkpoint = make(FLOOD, **PRETRAINING)
    predictor = build_predictor(config, checkpoint, Compute(), 4)
    scene = finetuned.scene_of(config, 96, 96, 4)
    scene["DEM"][:] = scene["DEM"][:, :1]
    batch = finetuned.batch_of(predictor, {k: v[None] for k, v in scene.items()})
    once = {k: v for k, v in batch.pixels.items() if not k.startswith("DEM")} | {"DEM": batch.pixels["DEM@1"]}
    np.testing.assert_array_equal(predictor(batch)["pred"], predictor(TileBatch(once, batch.rows, batch.cols))["pred"])


TIM = """
data:
  class_path: GenericMultiModalDataModule
  init_args:
    modalities: [S2L2A]
    means: {S2L2A: [1390, 1503, 1718, 1853, 2199, 2779, 2987, 3083, 3132, 3162, 2424, 1857]}
    stds: {S2L2A: [2106, 2141, 2038, 2134, 2085, 1889, 1820, 1871, 1753, 1797, 1434, 1334]}
model:
  class_path: SemanticSegmentationTask
  init_args:
    model_factory: EncoderDecoderFactory
    model_args:
      backbone: terramind_v1_tiny_tim
      backbone_modalities: [S2L2A]
      backbone_tim_modalities: [LULC]
      necks:
        - {name: SelectIndices, indices: [2, 5, 8, 11]}
        - {name: ReshapeTokensToImage, remove_cls_token: False}
        - name: LearnedInterpolateToPyramidal
      decoder: UNetDecoder
      decoder_channels: [32, 16, 8, 8]
      num_classes: 2
"""


def test_the_same_place_thinks_the_same(make: Any) -> None:
    """Imagined tokens are drawn by the tile's place, not in the order of calls, and the place matters."""
    config, _, checkpoint = make(TIM)
    predictor = build_predictor(config, checkpoint, Compute())
    assert isinstance(predictor.samplers[0], PlacedSampler)
    assert not any("tokenizer" in name for name, _ in predictor.network.named_parameters())
    tile = finetuned.scene_of(config, 96, 96)["S2L2A"][:, 0]
    there, elsewhere = np.array([0, 4096]), np.array([0, 0])

    def predict(rows: np.ndarray) -> np.ndarray:
        return predictor(TileBatch({"S2L2A": np.stack([tile, tile])}, rows, rows))["pred"]

    first, other, again = predict(there), predict(elsewhere), predict(there)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(other[0], other[1])
    assert np.abs(first[0] - first[1]).max() > 0


def test_any_order_of_keys_in_front_of_the_networks_names(make: Any, tmp_path: Path) -> None:
    config, task, _ = make(BURN_SCARS)
    state = task.model.state_dict()
    for begin in ("", "model.", "model._orig_mod."):
        torch.save({begin + key: value for key, value in state.items()}, tmp_path / "plain.pt")
        build_predictor(config, read_task_checkpoint(tmp_path / "plain.pt"), Compute())


def _changed(checkpoint: TaskCheckpoint, drop: str = "", **new: torch.Tensor) -> TaskCheckpoint:
    state = {k: v for k, v in checkpoint.state.items() if k != drop} | new
    return TaskCheckpoint(checkpoint.path, state, checkpoint.hyper_parameters)


def test_checkpoints_that_do_not_cover_the_network(make: Any) -> None:
    config, _, checkpoint = make(BURN_SCARS)
    key = "model.head.head.2.weight"
    weight = checkpoint.state[key]
    for broken, message in (
        (_changed(checkpoint, key), "head.head.2.weight is missing"),
        (_changed(checkpoint, **{key: weight[:1]}), "has shape"),
        (_changed(checkpoint, **{key: weight * float("nan")}), "NaN"),
        (_changed(checkpoint, **{"model.encoder.more": weight}), "encoder.more"),
        (_changed(checkpoint, **{"model.other.weight": weight}), "other.weight"),
    ):
        with pytest.raises(WeightsError, match=f"(?s){message}.*Is it the checkpoint of"):
            build_predictor(config, broken, Compute())


def test_the_checkpoint_of_another_config(make: Any, tmp_path: Path) -> None:
    """Also where all weights fit: how dates are pooled and bands are ordered shows in no tensor."""
    _, _, checkpoint = make(BURN_SCARS)
    for old, new, named in (
        ("S2L2A: [BLUE, GREEN,", "S2L2A: [GREEN, BLUE,", "backbone_bands"),
        ("decoder_channels: [32, 16, 8, 8]", "decoder_channels: [64, 16, 8, 8]", "decoder_channels"),
    ):
        (tmp_path / "other.yaml").write_text(BURN_SCARS.replace(old, new))
        with pytest.raises(WeightsError, match=f"(?s)another config.*{named}"):
            build_predictor(read_config(tmp_path / "other.yaml"), checkpoint, Compute())
    plain = TaskCheckpoint(checkpoint.path, checkpoint.state, {})
    with pytest.raises(WeightsError, match=r"(?s)has shape.*Is it the checkpoint of .*other.yaml"):
        build_predictor(read_config(tmp_path / "other.yaml"), plain, Compute())


def _touch(path: str) -> None:
    Path(path).touch()


class _Payload:
    """Touches a file when it is unpickled, by a function of ours or of the system's."""

    def __init__(self, function: Any, path: Path) -> None:
        self.call = function, (str(path),)

    def __reduce__(self) -> Any:
        return self.call


def test_pickled_code_does_not_run(make: Any, tmp_path: Path) -> None:
    config, task, _ = make(BURN_SCARS)
    touched = tmp_path / "touched"
    file = tmp_path / "odd.ckpt"
    torch.save({"state_dict": task.state_dict(), "hyper_parameters": {"model_args": _Payload(_touch, touched)}}, file)
    checkpoint = read_task_checkpoint(file)
    build_predictor(config, checkpoint, Compute())  # what it holds besides weights is left alone
    with pytest.raises(UsageError, match="--config"):
        config_of(checkpoint)
    torch.save({"state_dict": task.state_dict(), "callbacks": _Payload(os.mkdir, touched)}, file)
    with pytest.raises(WeightsError, match="cannot be read as a checkpoint"):
        read_task_checkpoint(file)
    file.write_bytes(pickle.dumps({"state_dict": _Payload(_touch, touched)}))
    with pytest.raises(WeightsError):
        read_task_checkpoint(file)
    assert not touched.exists()


def test_a_checkpoint_alone_asks_for_statistics(make: Any) -> None:
    _, _, checkpoint = make(BURN_SCARS)
    with pytest.raises(UsageError, match="--means FILE"):
        config_of(checkpoint)
    config = config_of(checkpoint, **PRETRAINING)
    assert (config.kind, config.inputs[0].bands[0], config.class_names) == ("segmentation", "B02", ("Others", "Burned"))
    build_predictor(config, checkpoint, Compute())


def test_what_terratorch_cannot_build_is_said(make: Any, tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text(BURN_SCARS.replace("backbone: terramind_v1_tiny", "backbone: terramind_v9"))
    with pytest.raises(UsageError, match="cannot build the network"):
        build_predictor(read_config(tmp_path / "odd.yaml"), None, Compute())


def test_statistics_of_data_modules_are_terratorchs() -> None:
    import importlib

    from terratorch.models.backbones import prithvi_vit

    from tmtool.models.finetuned._statistics import BUILT_IN, PRITHVI

    for name, module in (
        ("MultiTemporalCropClassificationDataModule", "multi_temporal_crop_classification"),
        ("Sen1Floods11NonGeoDataModule", "sen1floods11"),
        ("FireScarsNonGeoDataModule", "fire_scars"),
    ):
        theirs: Any = importlib.import_module(f"terratorch.datamodules.{module}")
        ours = BUILT_IN[name]
        assert dict(zip(ours.bands, ours.means, strict=True)) == theirs.MEANS
        assert dict(zip(ours.bands, ours.stds, strict=True)) == theirs.STDS
    assert [list(v) for v in PRITHVI["prithvi_eo_v2"]] == [prithvi_vit.PRITHVI_V2_MEAN, prithvi_vit.PRITHVI_V2_STD]
    assert [list(v) for v in PRITHVI["prithvi_eo_v1"]] == [prithvi_vit.PRITHVI_V1_MEAN, prithvi_vit.PRITHVI_V1_STD]


ADAPTERS = (
    "      decoder: UNetDecoder",
    """      peft_config:
        method: LORA
        replace_qkv: qkv
        peft_config_kwargs:
          target_modules: [qkv.q_linear, qkv.v_linear, mlp.fc1]
          lora_alpha: 16
          r: 4
      decoder: UNetDecoder""",
)


def test_adapters(make: Any) -> None:
    pytest.importorskip("peft", reason="adapters need the package peft")
    config, task, checkpoint = make(BURN_SCARS.replace(*ADAPTERS))
    assert any("lora_A" in name for name in checkpoint.state)
    _hold_equal(config, task, checkpoint)


def test_adapters_need_their_package(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_configs, "find_spec", lambda name: None)
    (tmp_path / "task.yaml").write_text(BURN_SCARS.replace(*ADAPTERS))
    with pytest.raises(UsageError, match=r"needs the package peft. Run pip install 'tmtool\[peft\]'"):
        read_config(tmp_path / "task.yaml")
