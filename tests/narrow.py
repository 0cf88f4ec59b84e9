"""TerraTorch's own TerraMind classes at a small width, and weight files of them in the hub's names."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from terratorch.models.backbones.terramind.model import terramind_register as register
from terratorch.models.backbones.terramind.tokenizer.models import vit_models
from terratorch.models.backbones.terramind.tokenizer.models.unet import unet

from tmtool.modality import INPUTS, MODALITIES, OUTPUTS
from tmtool.models.weights import core_file, tokenizer_file

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


def generation_model(**kwargs: Any) -> Any:
    """Build a narrow TerraMindGeneration, as terratorch's registry builds the wide ones."""
    return register.build_terrammind_generate(
        **CORE,
        pretraining_mean=register.v1_pretraining_mean,
        pretraining_std=register.v1_pretraining_std,
        tokenizer_dict=register.tokenizer_dict["v1"],
        **kwargs,
    )


def write_weights(folder: Path) -> None:
    """Write random weights of every part in the hub's names, flat. Call with the narrow classes patched in."""
    torch.manual_seed(5)
    outputs = [m for m in OUTPUTS if m != "LULC"] + ["LULC"]
    model = generation_model(modalities=list(INPUTS), output_modalities=outputs)
    torch.save(_randomised(model.sampler.model), folder / core_file("tiny").filename)
    for modality in OUTPUTS:
        tokenizer = model.tokenizer[MODALITIES[modality].token_key]
        torch.save(_randomised(tokenizer), folder / tokenizer_file(modality).filename)


def _randomised(module: Any) -> dict[str, torch.Tensor]:
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


def reference(inputs: list[str], outputs: list[str], folder: Path, **kwargs: Any) -> Any:
    """Return terratorch's own generation model with the weights in `folder`, loaded as terratorch loads them."""
    model = generation_model(modalities=inputs, output_modalities=outputs, standardize=True, **kwargs)
    state = torch.load(folder / core_file("tiny").filename, weights_only=True)
    model.load_state_dict(register.checkpoint_filter_fn_generate(state, model), strict=True)
    for key, tokenizer in model.tokenizer.items():
        name = next(m.name for m in MODALITIES.values() if m.token_key == key)
        tokenizer.load_state_dict(torch.load(folder / tokenizer_file(name).filename, weights_only=True), strict=True)
    return model.eval()
