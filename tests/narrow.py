"""TerraTorch's own TerraMind classes at a small width, and weight files of them in the hub's names."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from tmtool.modality import INPUTS, MODALITIES, OUTPUTS
from tmtool.models import MODELS
from tmtool.models.terramind.architecture import terramind_register as register
from tmtool.models.terramind.architecture import unet, vit_models
from tmtool.models.weights import coords_file, core_file, tokenizer_file

CORE = {
    "encoder_depth": 2,
    "decoder_depth": 2,
    "dim": 64,
    "num_heads": 2,
    "mlp_ratio": 2,
    "qkv_bias": True,
    "proj_bias": True,
    "mlp_bias": True,
    "num_register_tokens": 0,
    "norm_layer": partial(register.LayerNorm, eps=1e-6, bias=False),
}


def _encoder(in_channels: int, patch_size: int, resolution: int, **kwargs: Any) -> Any:
    kwargs.pop("ckpt_path", None)
    return vit_models.ViTEncoder(
        in_channels=in_channels,
        patch_size=patch_size,
        resolution=resolution,
        dim_tokens=32,
        depth=1,
        num_heads=2,
        **kwargs,
    )


def _decoder(out_channels: int, patch_size: int, resolution: int, **kwargs: Any) -> Any:
    return vit_models.ViTDecoder(
        out_channels=out_channels,
        patch_size=patch_size,
        resolution=resolution,
        dim_tokens=32,
        depth=1,
        num_heads=2,
        **kwargs,
    )


def _unet(**kwargs: Any) -> Any:
    return unet.PatchedUNetCondCat(
        patch_size=4, model_channels=32, num_res_blocks=1, attention_resolutions=[2], channel_mult=(1, 2), **kwargs
    )


def patch(monkeypatch: Any) -> None:
    """Make terratorch's registered TerraMind tiny and its tokenizers narrow."""
    monkeypatch.setattr(vit_models, "vit_b_enc", _encoder)
    monkeypatch.setattr(vit_models, "vit_b_dec", _decoder)
    monkeypatch.setattr(unet, "unet_patched", _unet)
    monkeypatch.setattr(register, "terramind_v1_tiny_generate", generation_model)
    monkeypatch.setattr(register, "terramind_v1_tiny", backbone)
    monkeypatch.setattr(register, "terramind_v1_tiny_tim", tim_backbone)
    monkeypatch.setitem(MODELS, "tiny", replace(MODELS["tiny"], dim=CORE["dim"], depth=CORE["encoder_depth"]))


def generation_model(**kwargs: Any) -> Any:
    """Build a narrow TerraMindGeneration, as terratorch's registry builds the wide ones."""
    return register.build_terrammind_generate(
        **CORE,
        pretraining_mean=register.v1_pretraining_mean,
        pretraining_std=register.v1_pretraining_std,
        tokenizer_dict=register.tokenizer_dict["v1"],
        **kwargs,
    )


def backbone(**kwargs: Any) -> Any:
    """Build a narrow TerraMindViT, as terratorch's registry builds the wide ones."""
    shape = {key: value for key, value in CORE.items() if key != "decoder_depth"}
    return register.build_terrammind_vit(
        **shape, pretrained_bands=register.PRETRAINED_BANDS, tokenizer_dict=register.tokenizer_dict["v1"], **kwargs
    )


def tim_backbone(**kwargs: Any) -> Any:
    """Build a narrow TerraMindTiM, as terratorch's registry builds the wide ones."""
    return register.build_terrammind_tim(
        **CORE, pretrained_bands=register.PRETRAINED_BANDS, tokenizer_dict=register.tokenizer_dict["v1"], **kwargs
    )


def write_weights(folder: Path) -> None:
    """Write random weights of every part in the hub's names, flat. Call with the narrow classes patched in."""
    torch.manual_seed(5)
    outputs = [m for m in OUTPUTS if m != "LULC"] + ["LULC"]
    model = generation_model(modalities=list(INPUTS), output_modalities=outputs)
    core = randomised(model.sampler.model)
    for modality in OUTPUTS:
        tokenizer = model.tokenizer[MODALITIES[modality].token_key]
        torch.save(randomised(tokenizer), folder / tokenizer_file(modality).filename)
    with_coords = generation_model(modalities=["S2L2A"], output_modalities=["coords", "LULC"]).sampler.model
    core |= {key: value for key, value in talkative(with_coords).items() if "_embeddings.coords." in key}
    torch.save(core, folder / core_file("tiny").filename)
    (folder / coords_file().filename).write_text(vocabulary(PLACES))


def randomised(module: Any) -> dict[str, torch.Tensor]:
    """Lively weights: a random init leaves zero convolutions and tiny logits."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name.endswith("pos_emb"):
                continue
            if p.ndim < 2:
                p.normal_(1.0 if name.endswith("weight") else 0.0, 0.1)
            else:
                p.normal_(0.0, 0.3 if "emb" in name else p[0].numel() ** -0.5)
    return {k: v.clone() for k, v in module.state_dict().items()}


def talkative(core: Any) -> dict[str, torch.Tensor]:
    """Lively weights of an encoder-decoder, whose sequences are of words that the small vocabularies have.

    A word resembles the code of a position, where it is likely then: latitudes come first, longitudes next.
    """
    state = randomised(core)
    for name, words in (("coords", PLACES), ("caption", WORDS)):
        if (key := f"decoder_embeddings.{name}.token_emb.weight") not in state:
            continue
        code = state[f"decoder_embeddings.{name}.pos_emb"][0]
        turns = {"lat=": code[0] - code[1], "lon=": code[1] - code[0]}
        likely = torch.stack([turns.get(word[:4], code[9 * i % len(code)] - code[0]) for i, word in enumerate(words)])
        state[key][len(words) :] = 0
        state[key][: len(words)] = 0.02 * state[key][: len(words)] + 0.1 * likely
        state[f"decoder_embeddings.{name}.to_logits.weight"] = state[key]
    return state


SPECIAL = ["[PAD]", "[UNK]", "[SOS]", "[EOS]", "[S_0]", "[S_1]", "[S_2]"]
PLACES = SPECIAL + [
    f"{axis}={v / 4:.2f}" for axis, most in (("lat", 360), ("lon", 720)) for v in range(-most, most + 1)
]
_PROSE = "a an aerial view of the fields forests and water with snow . clouds ! over desert"
WORDS = [*SPECIAL, "[S_3]", *_PROSE.split()]


def vocabulary(words: list[str]) -> str:
    """Return a tokenizer of words in the format of the `tokenizers` package."""
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer.to_str()


def reference_backbone(inputs: list[str], folder: Path, *, tim: bool = False, bands: Any = None, **kwargs: Any) -> Any:
    """Return terratorch's own backbone with the weights in `folder`, loaded as terratorch loads them."""
    build, load = (
        (tim_backbone, register.checkpoint_filter_fn_tim) if tim else (backbone, register.checkpoint_filter_fn)
    )
    model = build(modalities=inputs, pretrained=False, **kwargs)
    state = torch.load(folder / core_file("tiny").filename, weights_only=True)
    model.load_state_dict(load(state, model), strict=True)
    for key, tokenizer in dict(model.tokenizer).items():
        if key == "coords":
            model.tokenizer[key] = register.tokenizer_dict["v1"]["coords"](
                tokenizer_file=str(folder / coords_file().filename)
            )
            continue
        name = next(m.name for m in MODALITIES.values() if m.token_key == key)
        tokenizer.load_state_dict(torch.load(folder / tokenizer_file(name).filename, weights_only=True), strict=True)
    if bands:
        model = register.select_modality_patch_embed_weights(model, bands, register.PRETRAINED_BANDS)
    return model.eval()


def reference_tokenizer(modality: str, folder: Path) -> Any:
    """Return terratorch's own tokenizer with the weights in `folder`."""
    tokenizer = register.tokenizer_dict["v1"][MODALITIES[modality].token_key](pretrained=False)
    tokenizer.load_state_dict(torch.load(folder / tokenizer_file(modality).filename, weights_only=True), strict=True)
    return tokenizer.eval()


def reference(inputs: list[str], outputs: list[str], folder: Path, **kwargs: Any) -> Any:
    """Return terratorch's own generation model with the weights in `folder`, loaded as terratorch loads them."""
    model = generation_model(modalities=inputs, output_modalities=outputs, standardize=True, **kwargs)
    state = torch.load(folder / core_file("tiny").filename, weights_only=True)
    model.load_state_dict(register.checkpoint_filter_fn_generate(state, model), strict=True)
    for key, tokenizer in dict(model.tokenizer).items():
        if key == "coords":
            file = str(folder / coords_file().filename)
            model.tokenizer[key] = register.tokenizer_dict["v1"]["coords"](tokenizer_file=file)
            continue
        name = next(m.name for m in MODALITIES.values() if m.token_key == key)
        tokenizer.load_state_dict(torch.load(folder / tokenizer_file(name).filename, weights_only=True), strict=True)
    return model.eval()
