"""TerraTorch's configs read as plain data: what a fine-tuned task takes, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tmtool.errors import UsageError
from tmtool.modality import MODALITIES, S2_BANDS
from tmtool.models import MODELS
from tmtool.models.finetuned.config import TaskConfig, Tiling, read_config
from tmtool.models.requests import input_key

CONFIGS = ROOT.parent / "shared" / "data" / "configs"

BURN_SCARS = """
data:
  class_path: GenericNonGeoSegmentationDataModule
  init_args:
    batch_size: 8
    dataset_bands: [BLUE, GREEN, RED, NIR_NARROW, SWIR_1, SWIR_2]
    means: [0.0333, 0.0570, 0.0588, 0.2323, 0.1972, 0.1194]
    stds: [0.0226, 0.0268, 0.0400, 0.0779, 0.0870, 7.24e-2]
    no_data_replace: 0
    num_classes: 2
    train_transform:
      - class_path: albumentations.D4
      - class_path: ToTensorV2
model:
  class_path: terratorch.tasks.SemanticSegmentationTask
  init_args:
    model_factory: EncoderDecoderFactory
    model_args:
      backbone: terramind_v1_tiny
      backbone_pretrained: true
      backbone_modalities: [S2L2A]
      backbone_bands: {S2L2A: [BLUE, GREEN, RED, NIR_NARROW, SWIR_1, SWIR_2]}
      necks:
        - {name: SelectIndices, indices: [2, 5, 8, 11]}
        - {name: ReshapeTokensToImage, remove_cls_token: False}
        - name: LearnedInterpolateToPyramidal
      decoder: UNetDecoder
      decoder_channels: [32, 16, 8, 8]
      head_dropout: 1e-1
      num_classes: 2
    loss: dice
    ignore_index: -1
    class_names: [Others, Burned]
"""

FLOOD = """
data:
  class_path: impactmesh.impactmesh_datamodule.ImpactMeshDataModule
  init_args:
    timesteps: [0, 1, 2, 3]
    modalities: [S2L2A, S1RTC, DEM]
    no_data_replace: 0
    train_transform:
      - class_path: terratorch.datasets.transforms.FlattenTemporalIntoChannels
      - class_path: albumentations.pytorch.ToTensorV2
      - class_path: terratorch.datasets.transforms.UnflattenTemporalFromChannels
        init_args: {n_timesteps: 4}
model:
  class_path: SemanticSegmentationTask
  init_args:
    model_factory: EncoderDecoderFactory
    model_args:
      backbone: terramind_v1_tiny
      backbone_pretrained: true
      backbone_modalities: [S2L2A, S1RTC, DEM]
      backbone_use_temporal: true
      backbone_temporal_pooling: concat
      backbone_temporal_n_timestamps: 4
      necks:
        - {name: SelectIndices, indices: [2, 5, 8, 11]}
        - {name: ReshapeTokensToImage, remove_cls_token: False}
        - name: LearnedInterpolateToPyramidal
      decoder: UNetDecoder
      decoder_channels: [32, 16, 8, 8]
      num_classes: 2
    loss: dice
    tiled_inference_parameters: {crop: 256, stride: 208, batch_size: 64, delta: 8}
"""


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Write a config, with some of its text replaced, and read it."""

    def write_and_read(text: str, *changes: tuple[str, str], **options: str) -> TaskConfig:
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "task.yaml"
        path.write_text(text)
        return read_config(path, **options)

    return write_and_read


def test_what_a_config_says(read: Any) -> None:
    config = read(BURN_SCARS)
    assert (config.kind, config.channels, config.class_names) == ("segmentation", 2, ("Others", "Burned"))
    assert (config.joined, config.temporal, config.dates, config.ignore_index) == ("tensor", False, 1, -1)
    assert config.tiling is None
    assert config.model_args["head_dropout"] == 0.1  # 1e-1 is a string to PyYAML
    (entry,) = config.inputs
    assert (entry.name, entry.modality, entry.scale, entry.fill) == ("S2L2A", "S2L2A", 1.0, 0.0)
    assert entry.bands == entry.file_bands == ("B02", "B03", "B04", "B8A", "B11", "B12")
    assert entry.means[5] == (0.1194,)
    assert entry.stds[5] == (0.0724,)
    assert entry.statistics == "the config"


def test_bands_are_picked_in_the_order_of_output_bands(read: Any) -> None:
    config = read(
        BURN_SCARS,
        ("dataset_bands: [BLUE,", "output_bands: [RED, GREEN]\n    dataset_bands: [BLUE,"),
        ("[0.0333, 0.0570, 0.0588, 0.2323, 0.1972, 0.1194]", "[1, 2]"),
        ("[0.0226, 0.0268, 0.0400, 0.0779, 0.0870, 7.24e-2]", "[3, 4]"),
        ("backbone_bands: {S2L2A: [BLUE, GREEN, RED, NIR_NARROW, SWIR_1, SWIR_2]}", "backbone_bands: {S2L2A: [RED, GREEN]}"),
    )  # fmt: skip
    assert config.inputs[0].bands == ("B04", "B03")
    assert config.inputs[0].file_bands == ("B02", "B03", "B04", "B8A", "B11", "B12")


def test_bands_of_predicting_go_before_those_of_training(read: Any) -> None:
    config = read(
        BURN_SCARS,
        ("    dataset_bands:", "    predict_dataset_bands: [SWIR_2, SWIR_1, NIR_NARROW, RED, GREEN, BLUE]\n    dataset_bands:"),
        ("    no_data_replace: 0\n", "    output_bands: [BLUE, GREEN, RED, NIR_NARROW, SWIR_1, SWIR_2]\n"),
    )  # fmt: skip
    assert config.inputs[0].bands == ("B02", "B03", "B04", "B8A", "B11", "B12")
    assert config.inputs[0].file_bands == ("B12", "B11", "B8A", "B04", "B03", "B02")
    assert config.inputs[0].fill is None


def test_several_modalities_and_dates(read: Any) -> None:
    config = read(FLOOD, means="pretraining", stds="pretraining")
    assert [entry.modality for entry in config.inputs] == ["S2L2A", "S1RTC", "DEM"]
    assert config.inputs[0].bands == S2_BANDS
    assert config.inputs[2].bands == ("elevation",)
    assert [row[0] for row in config.inputs[1].means] == list(MODELS["base"].moments(MODALITIES["S1RTC"])[0])
    assert (config.joined, config.temporal, config.dates) == ("dict", True, 4)
    assert config.tiling == Tiling(256, 208, 8)
    assert config.check_dates({"S2L2A": 4, "S1RTC": 4, "DEM": 1}) == 4
    assert [input_key("S2L2A", d, 2) for d in range(2)] == ["S2L2A@1", "S2L2A@2"]
    for counts in ({"S2L2A": 2, "S1RTC": 2, "DEM": 1}, {"S2L2A": 4, "S1RTC": 3, "DEM": 1}, {"S2L2A": 1}):
        with pytest.raises(UsageError, match="date"):
            config.check_dates(counts)


def test_mean_pooling_takes_any_number_of_dates(read: Any) -> None:
    text = FLOOD.replace("    timesteps: [0, 1, 2, 3]\n", "").replace(
        "backbone_temporal_n_timestamps: 4", "backbone_drop: 0"
    )
    text = text.replace("init_args: {n_timesteps: 4}", "init_args: {n_channels: 12}").replace("concat", "mean")
    config = read(text, means="pretraining", stds="pretraining")
    assert (config.temporal, config.dates) == (True, None)
    assert config.check_dates({"S2L2A": 7, "S1RTC": 7}) == 7


def test_statistics_that_are_not_known_are_asked_for_in_three_ways(read: Any) -> None:
    with pytest.raises(UsageError) as failure:
        read(FLOOD)
    for way in ("data.init_args.means", "--means FILE --stds FILE", "--means pretraining"):
        assert way in str(failure.value)


def test_statistics_from_files(read: Any, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"S2L2A": [1,1,1,1,1,1,1,1,1,1,1,1], "S1RTC": [2, 3], "DEM": [4], "RGB": [0]}')
    (tmp_path / "s.yaml").write_text(
        "{S2L2A: [5,5,5,5,5,5,5,5,5,5,5,5], S1RTC: [[6, 6, 6, 6], [7, 7, 7, 8]], DEM: [9]}"
    )
    config = read(FLOOD, means=str(tmp_path / "m.json"), stds=str(tmp_path / "s.yaml"))
    assert config.inputs[1].means == ((2.0,), (3.0,))
    assert config.inputs[1].stds == ((6.0,) * 4, (7.0, 7.0, 7.0, 8.0))
    assert config.inputs[2].stds == ((9.0,),)


def test_a_text_file_named_in_the_config(read: Any, tmp_path: Path) -> None:
    (tmp_path / "means.txt").write_text("1\n2\n3\n4\n5\n6\n")
    config = read(BURN_SCARS, ("means: [0.0333, 0.0570, 0.0588, 0.2323, 0.1972, 0.1194]", "means: means.txt"))
    assert config.inputs[0].means == tuple((float(v),) for v in range(1, 7))


def test_a_data_module_with_its_own_statistics(read: Any) -> None:
    config = read(
        BURN_SCARS,
        ("GenericNonGeoSegmentationDataModule", "terratorch.datamodules.Sen1Floods11NonGeoDataModule"),
        ("dataset_bands: [BLUE, GREEN, RED, NIR_NARROW, SWIR_1, SWIR_2]", "bands: [SWIR_1, RED]"),
        ("backbone_modalities: [S2L2A]", "backbone_modalities: [S2L1C]"),
    )
    (entry,) = config.inputs
    assert (entry.bands, entry.scale, entry.modality) == (("B11", "B04"), 0.0001, "S2L1C")
    assert entry.means == ((0.2044958,), (0.12353792,))
    assert entry.statistics == "Sen1Floods11NonGeoDataModule"
    assert len(entry.file_bands) == 13


def test_resizing_is_said(read: Any) -> None:
    step = "test_transform:\n      - class_path: albumentations.Resize\n        init_args: {height: 448, width: 448}\n    num_classes"
    assert "Resize 448" in read(BURN_SCARS, ("num_classes: 2\n    train", f"{step}: 2\n    train")).notes[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            [("terratorch.tasks.SemanticSegmentationTask", "terratorch.tasks.ObjectDetectionTask")],
            "ObjectDetectionTask",
        ),
        (
            [("terratorch.tasks.SemanticSegmentationTask", "mine.SemanticSegmentationTask")],
            "mine.SemanticSegmentationTask",
        ),
        ([("model_factory: EncoderDecoderFactory", "model_factory: MyFactory")], "MyFactory"),
        ([("GenericNonGeoSegmentationDataModule", "my.DataModule")], "my.DataModule.*\n.*data.init_args.means"),
        ([("head_dropout: 1e-1", "head_final_act: os.system")], "os.system"),
        ([("head_dropout: 1e-1", "decoder_act: {class_path: my.Layer}")], "my.Layer"),
        ([("train_transform", "test_transform"), ("albumentations.D4", "albumentations.Perspective")], "Perspective"),
        ([("train_transform", "predict_transform"), ("albumentations.D4", "albumentations.Normalize")], "Normalize"),
        ([("means: [0.0333,", "means: [")], "5 means for S2L2A, expected 6"),
        ([("7.24e-2", "0")], "not above 0"),
        ([("    stds: [0.0226, 0.0268, 0.0400, 0.0779, 0.0870, 7.24e-2]\n", "")], "no stds of S2L2A"),
        ([("S2L2A: [BLUE, GREEN, ", "S2L2A: [BLUE, ")], "6 bands in the data section.*takes 5"),
        ([("class_names: [Others, Burned]", "class_names: [Others]")], "1 class_names for 2"),
        ([("      num_classes: 2\n    loss", "    loss"), ("    num_classes: 2\n", "")], "num_classes"),
        ([("data:", "data: !!python/object/apply:os.system [touch]\nother:")], "plain YAML"),
    ],
)
def test_refused_by_name(read: Any, changes: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){message}"):
        read(BURN_SCARS, *changes)


def test_dates_that_contradict_each_other_are_refused(read: Any) -> None:
    with pytest.raises(UsageError, match="backbone_temporal_n_timestamps 3, timesteps 4"):
        read(FLOOD, ("n_timestamps: 4", "n_timestamps: 3"), means="pretraining", stds="pretraining")


def test_tiles_that_are_not_square_are_refused(read: Any) -> None:
    with pytest.raises(UsageError, match="square"):
        read(FLOOD, ("crop: 256", "h_crop: 256, w_crop: 512"), means="pretraining", stds="pretraining")


@pytest.mark.parametrize(
    ("name", "inputs", "dates", "statistics"),
    [
        ("burnscars", ["S2L2A"], 1, None),
        ("impactmesh_fire", ["S2L2A", "S1RTC", "DEM"], 4, "pretraining"),
        ("impactmesh_flood", ["S2L2A", "S1RTC", "DEM"], 4, "pretraining"),
        ("multitemporal_crop", ["S2L2A"], 3, None),
        ("sen1floods11", ["S2L1C", "S1GRD"], 1, None),
        ("tim_lulc_sen1floods11", ["S2L1C", "S1GRD"], 1, None),
    ],
)
def test_real_configs(name: str, inputs: list[str], dates: int, statistics: str | None) -> None:
    path = CONFIGS / f"terramind_v1_base_{name}.yaml"
    if not path.is_file():
        pytest.skip(f"TerraMind's example configs are not at {CONFIGS}")
    config = read_config(path, statistics, statistics)
    assert [entry.modality for entry in config.inputs] == inputs
    assert config.dates == dates
    assert config.temporal == (dates > 1)
    assert all(entry.fill == 0 for entry in config.inputs)
