"""Places and captions, drawn token by token, against terratorch's own generation at small width."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import torch

from tests import narrow, narrow_v01
from tests.specs import spec_of
from tests.test_terramind import GREEDY, SEED, batch_of
from tmtool import models
from tmtool.errors import UsageError, WeightsError
from tmtool.files.sayings import place_of, text_of
from tmtool.models import MODELS, ModelSpec, Sampling
from tmtool.models.families import terramind_v01 as v01
from tmtool.models.families.terramind import vocabularies
from tmtool.models.terramind.architecture import terramind_register as register
from tmtool.models.text import END, SEQUENCES, START, Vocabulary, check, told_places
from tmtool.models.weights import find_locally

TILES = 2
ORIGINS = [(16, 32), (-8, 184)]
LONLAT = np.array([[-70.61, -33.42], [179.9, 0.1]])
FREE = Sampling(temperature=1.0, top_p=0.9, top_k=50)


@pytest.fixture(scope="session")
def v01_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with narrow weights of every part of TerraMind 0.1, in the hub's names."""
    folder = tmp_path_factory.mktemp("v01")
    with pytest.MonkeyPatch.context() as patch:
        narrow_v01.patch(patch)
        narrow_v01.write_weights(folder)
    return folder


@pytest.fixture
def narrow_v01_base(monkeypatch: pytest.MonkeyPatch, v01_folder: Path) -> Path:
    """Narrow TerraMind 0.1 in the place of the wide one; returns the folder of its weights."""
    narrow_v01.patch(monkeypatch)
    return v01_folder


def generation(
    name: str, folder: Path, inputs: list[str], outputs: list[str], sampling: Sampling = GREEDY
) -> ModelSpec:
    rasters = tuple(m for m in inputs if m != "coords")
    asked = {"coords": "coords" in inputs}
    spec = spec_of(name, "generate", rasters, tuple(outputs), sampling=sampling, request=asked, seed=SEED)
    found = {file: find_locally(file, str(folder)) for file in MODELS[name].files(spec)}
    assert all(found.values()), found
    return replace(spec, files={file: path for file, path in found.items() if path})


def pixels_of(spec: ModelSpec, size: int = 224) -> dict[str, np.ndarray]:
    found = {}
    rng = np.random.default_rng(1)
    for m in map(spec.modality, spec.inputs):
        if m.classes:
            found[m.name] = rng.integers(0, len(m.classes), (TILES, 1, size, size)).astype(np.float32)
            continue
        mean, std = (np.array(v)[:, None, None] for v in MODELS[spec.name].moments(m))
        found[m.name] = (mean + std * rng.normal(size=(TILES, len(m.bands), size, size))).astype(np.float32)
    return found


def generated(spec: ModelSpec, tiles: tuple[int, ...] = (0, 1)) -> tuple[Mapping[str, np.ndarray], dict[str, Any]]:
    """Return what is generated, and the tokens that were drawn."""
    index, drawn = list(tiles), {}
    batch = batch_of({m: v[index] for m, v in pixels_of(spec).items()}, [ORIGINS[i] for i in index])
    model: Any = models.build(spec)
    draw = model.draw

    def watched(*args: Any) -> Any:
        drawn.update(draw(*args))
        return dict(drawn)

    model.draw = watched
    outputs = model(replace(batch, lonlat=LONLAT[index]))
    return outputs, {m: tokens.numpy() for m, tokens in drawn.items() if m in SEQUENCES}


def terratorchs(reference: Any, spec: ModelSpec, keys: Mapping[str, str]) -> Iterator[tuple[Any, Any]]:
    """Yield for each tile, alone, what terratorch generates and the tokens that it drew of each modality.

    Alone, since its tiles of a batch go on until all have ended.
    """
    generate, drawn = reference.sampler.generate, {}

    def watched(*args: Any, **kwargs: Any) -> Any:
        drawn.update(generate(*args, **kwargs))
        return drawn

    reference.sampler.generate = watched
    for i in range(TILES):
        given = {keys[m]: torch.from_numpy(v[i : i + 1].copy()) for m, v in pixels_of(spec).items()}
        if spec.request.coords:  # type: ignore[attr-defined]
            given["coords"] = torch.from_numpy(LONLAT[i : i + 1])
        with torch.no_grad():
            yield reference(given), drawn


def compare(spec: ModelSpec, reference: Any, keys: Mapping[str, str]) -> list[Any]:
    """Compare all that is generated with terratorch's; return what the sequences say."""
    (mine, ids), words = generated(spec), vocabularies(spec)
    said: list[Any] = []
    for i, (theirs, drawn) in enumerate(terratorchs(reference, spec, keys)):
        for name, vocabulary in words.items():
            assert mine[name].shape == (TILES, SEQUENCES[name].channels, 1, 1)
            assert vocabulary.body(ids[name][i]) == drawn[name]["tensor"][0].tolist()
            values = mine[name][i, :, 0, 0].tolist()
            said.append(text_of(values) if name == "caption" else place_of(values))
            if name == "caption":
                assert theirs[name][0] == said[-1]
            else:
                np.testing.assert_array_equal(said[-1] or (np.nan, np.nan), theirs[name][0])
        for name in spec.request.decoded:
            if spec.modality(name).classes:  # others are diffused from other noise
                np.testing.assert_allclose(mine[name][i], theirs[name][0].numpy(), atol=1e-3)
    return said


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (["S2L2A"], ["coords"]),
        (["S2L2A"], ["coords", "LULC"]),  # the place conditions the land use
        (["DEM", "S1RTC"], ["LULC", "coords"]),
        (["S2L2A"], ["LULC", "coords", "NDVI"]),  # a place that is only begun is seen before
        (["S2L2A", "coords"], ["LULC"]),
    ],
)
@pytest.mark.filterwarnings("ignore:Coordinate generation did not work")
def test_places_equal_terratorchs(narrow_terramind: Path, inputs: list[str], outputs: list[str]) -> None:
    spec = generation("tiny", narrow_terramind, inputs, outputs)
    reference = narrow.reference(inputs, outputs, narrow_terramind, temps=0.0, timesteps=4)
    said = compare(spec, reference, {m: m for m in inputs})
    assert len(said) == TILES * ("coords" in outputs)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (["S2L2A"], ["coords"]),
        (["S2L2A"], ["caption"]),
        (["S1GRD", "DEM"], ["caption", "LULC", "coords"]),  # a text of any length conditions what follows
        (["LULC", "coords"], ["caption"]),
    ],
)
@pytest.mark.filterwarnings("ignore:Coordinate generation did not work")
def test_v01_equals_terratorch(narrow_v01_base: Path, inputs: list[str], outputs: list[str]) -> None:
    spec = generation("v01-base", narrow_v01_base, inputs, outputs)
    reference = narrow_v01.reference(inputs, outputs, narrow_v01_base, temps=0.0, timesteps=4)
    said = compare(spec, reference, narrow_v01.KEYS)
    if "caption" in outputs:
        assert any(isinstance(text, str) and len(text) > 20 for text in said)


def test_tokens_are_a_function_of_position(narrow_v01_base: Path) -> None:
    spec = generation("v01-base", narrow_v01_base, ["S2L2A"], ["caption", "coords"], FREE)
    forward, backward, again = (generated(spec, tiles)[1] for tiles in ((0, 1), (1, 0), (0, 1)))
    other = generated(replace(spec, seed=SEED + 1))[1]
    for name in ("caption", "coords"):
        np.testing.assert_array_equal(forward[name], backward[name][::-1])
        np.testing.assert_array_equal(forward[name], again[name])
        assert (forward[name] != other[name]).any()
        assert (forward[name][0] != forward[name][1]).any()


def test_what_follows_the_end_is_padding(narrow_v01_base: Path) -> None:
    """One tile's sequence ends before the other's."""
    often = Sampling(temperature=50, top_k=12, top_p=0)
    spec = generation("v01-base", narrow_v01_base, ["S2L2A"], ["caption"], often)
    for seed in range(40):  # until two of them end apart
        texts = [ids.tolist() for ids in generated(replace(spec, seed=seed))[1]["caption"]]
        ends = [ids.index(END) for ids in texts if END in ids]
        if ends and len(set(ends)) == len(ends):
            break
    assert ends
    assert len(set(ends)) == len(ends)
    assert all(not any(ids[ids.index(END) + 1 :]) for ids in texts if END in ids)
    assert max(ids.index(END) if END in ids else len(ids) for ids in texts) > min(ends)


def test_half_precision_draws_too(narrow_v01_base: Path) -> None:
    spec = generation("v01-base", narrow_v01_base, ["S2L2A"], ["coords"])
    half = replace(spec, compute=replace(spec.compute, precision="bf16"))
    assert (generated(half)[1]["coords"][:, 0] == START).all()


def words(text: str) -> list[int]:
    return [narrow.WORDS.index(word) for word in text.split()]


@pytest.fixture
def captions(tmp_path: Path) -> Vocabulary:
    (tmp_path / "words.json").write_text(narrow.vocabulary(narrow.WORDS))
    return Vocabulary.read(tmp_path / "words.json")


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        ("[S_1] an aerial view . fields ! water [EOS] [S_2] snow", "An aerial view . Fields ! Water"),
        ("[S_1] view [S_3] water [S_1] clouds [S_2]", "View clouds"),
        ("[S_1] [S_2]", ""),
        ("[S_1] [EOS] [S_2]", ""),
        ("[S_1] view", "View"),  # cut off
    ],
)
def test_what_a_caption_says(captions: Vocabulary, drawn: str, expected: str) -> None:
    assert captions.caption(words(drawn)) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("lat=-33.50 lon=-70.75", (-70.75, -33.5)),
        ("lon=-70.75 lat=-33.50", None),
        ("lat=1.00 lat=2.00", None),
        ("lat=1.00", None),
        ("", None),
    ],
)
def test_what_a_place_says(tmp_path: Path, said: str, expected: Any) -> None:
    (tmp_path / "places.json").write_text(narrow.vocabulary(narrow.PLACES))
    places = Vocabulary.read(tmp_path / "places.json")
    assert places.place([START, *(narrow.PLACES.index(word) for word in said.split()), END]) == expected


def test_other_vocabularies_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(narrow.vocabulary(narrow.WORDS[::-1]))
    with pytest.raises(
        WeightsError, match=r"config.json: is not TerraMind's vocabulary: \[PAD\] has id \d+, expected 0"
    ):
        Vocabulary.read(path)
    path.write_text("{}")
    with pytest.raises(WeightsError, match=r"config.json: is not a vocabulary"):
        Vocabulary.read(path)


@pytest.mark.parametrize(
    ("outputs", "told", "message"),
    [
        (["LULC", "coords"], True, "coords is both --in and --out"),
        (["caption"], False, "--model base cannot make caption.*it makes coords.*v01-base makes captions"),
    ],
)
def test_sequences_that_cannot_be_made_are_refused(outputs: list[str], told: bool, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check(outputs, told, MODELS["base"].sequences, "base")


def test_places_are_told_by_name() -> None:
    assert told_places(["S2L2A", "coords"]) == (["S2L2A"], True)
    assert told_places(["Coords"]) == ([], True)
    assert told_places(["S2L2A=a.tif"]) == (["S2L2A=a.tif"], False)
    for name in ("caption", "Caption=words.txt"):
        with pytest.raises(UsageError, match="cannot generate from text alone"):
            told_places([name])
    with pytest.raises(UsageError, match="taken from the raster itself"):
        told_places(["coords=places.csv"])


def test_facts_equal_terratorchs(narrow_v01_base: Path) -> None:
    entry = MODELS["v01-base"]
    for name, modality in entry.modalities.items():
        for key in filter(None, (modality.raw_key, modality.token_key)):
            mean, std = entry.moments(modality)
            assert list(mean) == pytest.approx(register.v01_pretraining_mean[key], abs=1e-9)
            assert list(std) == pytest.approx(register.v01_pretraining_std[key], abs=1e-9)
        if modality.raw_key is None:
            assert f"untok_{modality.token_key[4:]}" not in register.v01_pretraining_mean  # type: ignore[index]
        tokenizer = register.tokenizer_dict["v01"][modality.token_key](pretrained=False)
        assert tokenizer.quantize.codebook_size == modality.vocabulary
        assert tokenizer.n_channels == modality.channels, name
    assert set(register.tokenizer_dict["v01"]) == {m.token_key for m in entry.modalities.values()} | set(SEQUENCES)
    theirs = register.pretrained_weights["terramind_v01_base"]
    assert (v01.core_file().repo, v01.core_file().filename) == (theirs["hf_hub_id"], theirs["hf_hub_filename"])


def test_files_equal_terratorchs() -> None:
    from terratorch.models.backbones.terramind.tokenizer.tokenizer_register import pretrained_weights

    mine = {f"tokenizer_{m.lower()}": v01.tokenizer_file(m) for m in v01.V01_MODALITIES}
    mine |= {"caption_tokenizer": v01.caption_file()}
    for name, file in mine.items():
        theirs = pretrained_weights[f"terramind_v01_{name}"]
        assert (file.repo, file.filename) == (theirs["hf_hub_id"], theirs["hf_hub_filename"])


@pytest.mark.parametrize("name", SEQUENCES)
def test_lengths_equal_terratorchs(name: str) -> None:
    from tmtool.models.terramind.architecture import modality_info

    assert SEQUENCES[name].length == modality_info.MODALITY_INFO[name]["max_tokens"]


def test_from_the_command_line_to_geojson(
    narrow_v01_base: Path, tmtool: Any, make_raster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of a raster with a hole as large as a tile, on several tiles, begun anew and not.

    A model of random weights hardly ever says words that are a place or a text, so that its tokens are taken for them here.
    """
    monkeypatch.setattr(Vocabulary, "place", lambda _, ids: (float(sum(ids) % 180), float(sum(ids) % 80)))
    monkeypatch.setattr(Vocabulary, "caption", lambda _, ids: f"words {' '.join(map(str, ids))}")
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 3000, (12, 250, 150)).astype(np.int16)
    pixels[:, :192, :96] = 0
    raster = make_raster(pixels, nodata=0)
    run = ("generate", raster, "--out", "coords,caption", "--model", "v01-base", "--weights", narrow_v01_base)
    tiling = ("--crop", 128, "--stride", 96, "--delta", 16, "--top-k", 50, "--top-p", 0.9)
    result = tmtool(*run, *tiling, "-o", tmp_path / "a")
    assert result.exit_code == 0, result.stderr
    names = [Path(line).name for line in result.stdout.split()]
    assert names == [f"{raster.stem}_coords.geojson", f"{raster.stem}_caption.geojson"]
    places, texts = (geopandas.read_file(tmp_path / "a" / name) for name in names)
    assert len(places) == len(texts) == 3 * 2 - 2
    assert (0, 0) not in set(zip(places["row"], places["col"], strict=True))
    assert (places["distance_km"].isna() == places["lon"].isna()).all()
    assert places["lon"].notna().any()
    assert texts["text"].str.len().max() > 0
    again = tmtool(*run, *tiling, "-o", tmp_path / "b")
    assert again.exit_code == 0, again.stderr
    for name in names:
        here, there = (json.loads((tmp_path / folder / name).read_text())["features"] for folder in "ab")
        assert here == there
    kept = tmtool(*run, *tiling, "-o", tmp_path / "a")
    assert kept.exit_code == 0
    assert "coords" in kept.stderr or "skip" in kept.stderr.lower() or "exist" in kept.stderr.lower()


def test_refused_before_weights_load(tmtool: Any, make_raster: Any, tmp_path: Path) -> None:
    raster = make_raster(np.ones((12, 64, 64), np.int16))
    for args, message in (
        (("--out", "caption"), "--model base cannot make caption"),
        (("--out", "coords", "--in", "coords"), "coords is both --in and --out"),
        (("--out", "LULC", "--in", "caption"), "cannot generate from text alone"),
        (("--out", "NDVI", "--model", "v01-base"), "--model v01-base cannot make NDVI"),
        (("--out", "coords", "--model", "demo"), "--model demo cannot make coords"),
        (("--out", "LULC", "--in", "coords", "--model", "demo"), "takes no coordinates"),
    ):
        result = tmtool("generate", raster, *args, "-o", tmp_path)
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.split()), result.stderr


def test_places_told_change_what_is_generated(
    narrow_terramind: Path, tmtool: Any, make_raster: Any, tmp_path: Path
) -> None:
    raster = make_raster(np.random.default_rng(0).integers(1, 3000, (12, 64, 64)).astype(np.int16))
    run = ("generate", raster, "--out", "LULC", "--model", "tiny", "--weights", narrow_terramind, "--temperature", 0)
    found = []
    for more in ((), ("--in", "coords"), ("--in", "S2L2A", "--in", "coords")):
        result = tmtool(*run, *more, "-o", tmp_path, "--overwrite")
        assert result.exit_code == 0, result.stderr
        with rasterio.open(result.stdout.strip()) as src:
            found.append(src.read())
    assert (found[0] != found[1]).any()
    np.testing.assert_array_equal(found[1], found[2])
