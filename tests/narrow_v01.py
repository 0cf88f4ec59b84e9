"""TerraTorch's own TerraMind 0.1 at a small width, and weight files of it in the hub's names."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tests import narrow
from tmtool.models import MODELS
from tmtool.models.families import terramind_v01 as v01
from tmtool.models.terramind.architecture import terramind_register as register
from tmtool.models.weights import coords_file

KEYS = {m: modality.raw_key or modality.token_key for m, modality in v01.V01_MODALITIES.items()} | {"coords": "coords"}
VOCABULARIES = {"coords": coords_file(), "caption": v01.caption_file()}


def generation_model(**kwargs: Any) -> Any:
    """Build a narrow TerraMindGeneration of version 0.1, as terratorch's registry builds the wide one."""
    return register.build_terrammind_generate(
        **narrow.CORE,
        pretraining_mean=register.v01_pretraining_mean,
        pretraining_std=register.v01_pretraining_std,
        tokenizer_dict=register.tokenizer_dict["v01"],
        **kwargs,
    )


def backbone(**kwargs: Any) -> Any:
    """Build a narrow TerraMindViT of version 0.1."""
    shape = {key: value for key, value in narrow.CORE.items() if key != "decoder_depth"}
    bands = {"untok_sen2l2a@224": register.PRETRAINED_BANDS["untok_sen2l2a@224"]}
    return register.build_terrammind_vit(
        **shape, pretrained_bands=bands, tokenizer_dict=register.tokenizer_dict["v01"], **kwargs
    )


def tim_backbone(**kwargs: Any) -> Any:
    """Build a narrow TerraMindTiM of version 0.1."""
    return register.build_terrammind_tim(
        **narrow.CORE, pretrained_bands={}, tokenizer_dict=register.tokenizer_dict["v01"], **kwargs
    )


def patch(monkeypatch: Any) -> None:
    """Make terratorch's registered TerraMind 0.1 narrow, and known to tmtool."""
    narrow.patch(monkeypatch)
    monkeypatch.setattr(register, "terramind_v01_base_generate", generation_model)
    monkeypatch.setattr(register, "terramind_v01_base", backbone)
    monkeypatch.setattr(register, "terramind_v01_base_tim", tim_backbone)
    shape = {"dim": narrow.CORE["dim"], "depth": narrow.CORE["encoder_depth"]}
    monkeypatch.setitem(MODELS, "v01-base", replace(MODELS["v01-base"], **shape))


def write_weights(folder: Path) -> None:
    """Write random weights of every part in the hub's names, flat. Call with the narrow classes patched in."""
    torch.manual_seed(7)
    outputs = [*(str(m.token_key) for m in v01.V01_MODALITIES.values()), "coords", "caption", "LULC"]
    model = generation_model(modalities=list(KEYS.values()), output_modalities=outputs)
    torch.save(narrow.talkative(model.sampler.model), folder / v01.core_file().filename)
    for name, modality in v01.V01_MODALITIES.items():
        state = narrow.randomised(model.tokenizer[modality.token_key])
        torch.save(state, folder / v01.tokenizer_file(name).filename)
    write_vocabularies(folder)


def write_vocabularies(folder: Path) -> None:
    """Write the small vocabularies: both are called `config.json`, so each lies in its repository's folder."""
    for name, words in (("coords", narrow.PLACES), ("caption", narrow.WORDS)):
        path = folder / VOCABULARIES[name].repo.split("/")[1] / "config.json"
        path.parent.mkdir()
        path.write_text(narrow.vocabulary(words))


def reference(inputs: list[str], outputs: list[str], folder: Path, **kwargs: Any) -> Any:
    """Return terratorch's own generation model with the weights in `folder`, loaded as terratorch loads them."""
    model = generation_model(
        modalities=[KEYS[m] for m in inputs], output_modalities=outputs, standardize=True, **kwargs
    )
    state = torch.load(folder / v01.core_file().filename, weights_only=True)
    model.load_state_dict(register.checkpoint_filter_fn_generate(state, model), strict=True)
    for name, modality in v01.V01_MODALITIES.items():
        if modality.token_key in model.tokenizer:
            file = folder / v01.tokenizer_file(name).filename
            model.tokenizer[modality.token_key].load_state_dict(torch.load(file, weights_only=True), strict=True)
    for name in set(VOCABULARIES) & set(model.tokenizer):
        file = folder / VOCABULARIES[name].repo.split("/")[1] / "config.json"
        model.tokenizer[name] = register.tokenizer_dict["v01"][name](tokenizer_file=str(file))
    return model.eval()
