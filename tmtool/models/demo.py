"""The demo model: TerraMind's architecture from TerraTorch's classes at tiny width, with weights in the package.

Its weights were trained by ``samples/train_demo.py`` on synthesised scenes and nothing else; they serve to try the
pipeline without a download and to test it, not to map anything real (``samples/DEMO_MODEL.md`` has the scores).

TerraTorch looks encoders and decoders of tokenizers up by name in its modules, where the narrow ones are entered.
The files hold half precision, and of each token table only one row per level of each digit of the codebook: a token's
row is the sum of its digits' rows. Reading expands them to TerraTorch's own names and shapes.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tmtool.compat.terratorch import networks_by_name
from tmtool.modality import MODALITIES
from tmtool.models import ModelSpec, TileModel
from tmtool.models._parts import CORE
from tmtool.models.terramind.architecture import (
    modality_info,
    terramind,
    terramind_register,
    tm_utils,
    unet,
    vit_models,
    vqvae,
)
from tmtool.models.terramind.build import Architecture, assemble

DEMO_OUTPUTS: tuple[str, ...] = ("LULC", "NDVI", "S1GRD", "S1RTC", "S2L2A")

CORE_DIM = 128
_CORE_HEADS = 4
_ENCODER_DEPTH = 3
_DECODER_DEPTH = 2
_POSITIONS = 14
"""Cells a side of TerraMind's position code (224 px)."""
_ENCODER_DIM = 96
_LULC_DIM = 64
_FOLDER = Path(__file__).parent / "demo_weights"


def _core_path() -> Path:
    return _FOLDER / "core.safetensors"


def _tokenizer_path(modality: str) -> Path:
    return _FOLDER / f"tokenizer_{modality.lower()}.safetensors"


def build_core(encoder_embeddings: dict[str, nn.Module], decoder_embeddings: dict[str, nn.Module]) -> Any:
    """Build TerraMind's encoder-decoder at the demo's width around TerraTorch's embeddings, by their keys."""
    return terramind.TerraMind(
        encoder_embeddings=encoder_embeddings,
        decoder_embeddings=decoder_embeddings,
        modality_info=modality_info.MODALITY_INFO,
        dim=CORE_DIM,
        encoder_depth=_ENCODER_DEPTH,
        decoder_depth=_DECODER_DEPTH,
        num_heads=_CORE_HEADS,
        norm_layer=partial(tm_utils.LayerNorm, eps=1e-6, bias=False),
    )


def build_tokenizer(modality: str) -> Any:
    """Build a modality's tokenizer at the demo's width: TerraTorch's class, codebook and patch size."""
    spec = MODALITIES[modality]
    common: dict[str, Any] = {
        "image_size": 256,
        "n_channels": spec.channels,
        "enc_type": "vit_demo_enc",
        "post_mlp": True,
        "patch_size": 16,
        "quant_type": "fsq",
        "codebook_size": spec.codebook,
        "latent_dim": len(spec.codebook.split("-")),
    }
    vits: dict[str, Any] = {"vit_demo_enc": _encoder, "vit_demo_dec": _ClassDecoder}
    with networks_by_name({vit_models: vits, unet: {"unet_demo": _unet}}):
        if spec.classes:
            return vqvae.VQVAE(dec_type="vit_demo_dec", **common)
        # Synthesised values lie several deviations around the mean: clipping to -1..1 would cut them.
        return vqvae.DiVAE(
            dec_type="unet_demo", prediction_type="sample", clip_sample=False, thresholding=False, **common
        )


def _encoder(in_channels: int, patch_size: int, resolution: int, patch_proj: bool, post_mlp: bool) -> nn.Module:
    encoder: nn.Module = vit_models.ViTEncoder(
        in_channels=in_channels,
        patch_size=patch_size,
        resolution=resolution,
        dim_tokens=_ENCODER_DIM,
        depth=1,
        num_heads=3,
        mlp_ratio=2.0,
        patch_proj=patch_proj,
        post_mlp=post_mlp,
    )
    # What a patch is does not depend on where it lies.
    encoder.register_parameter("pos_emb", None)
    return encoder


def _unet(in_channels: int, out_channels: int, cond_channels: int, image_size: int) -> nn.Module:
    decoder: nn.Module = unet.PatchedUNetCondCat(
        in_channels=in_channels,
        out_channels=out_channels,
        cond_channels=cond_channels,
        image_size=image_size,
        patch_size=4,
        model_channels=32,
        num_res_blocks=1,
        attention_resolutions=[],
        channel_mult=(1, 1, 1),
    )
    return decoder


class _ClassDecoder(nn.Module):
    """Convolutions from codes `(B, D, h, w)` to class logits `(B, classes, 16 h, 16 w)`, in two steps of four."""

    def __init__(self, out_channels: int, patch_size: int, **_: Any) -> None:
        super().__init__()
        dim, fine = _LULC_DIM, 32
        self.dim_tokens = dim
        self.coarse = nn.Sequential(
            nn.Conv2d(dim, 128, 3, padding=1), nn.GELU(), nn.Conv2d(128, 128, 3, padding=1), nn.GELU()
        )
        self.widen = nn.Conv2d(128, fine * 16, 1)
        self.middle = nn.Sequential(
            nn.Conv2d(fine, fine, 3, padding=1), nn.GELU(), nn.Conv2d(fine, fine, 3, padding=1), nn.GELU()
        )
        self.out = nn.Conv2d(fine, out_channels * (patch_size // 4) ** 2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(4)

    def forward(self, x: Tensor) -> Tensor:
        """Decode projected codes `(B, dim_tokens, h, w)`."""
        x = self.shuffle(self.widen(self.coarse(x)))
        logits: Tensor = self.shuffle(self.out(x + self.middle(x)))
        return logits


_SHAPE: dict[str, Any] = {
    "dim": CORE_DIM,
    "encoder_depth": _ENCODER_DEPTH,
    "num_heads": _CORE_HEADS,
    "norm_layer": partial(tm_utils.LayerNorm, eps=1e-6, bias=False),
}


def generation_model(**kwargs: Any) -> nn.Module:
    """Build terratorch's TerraMindGeneration at the demo's width, as its registry builds the real sizes."""
    build_model = terramind_register.build_terrammind_generate
    model: nn.Module = build_model(decoder_depth=_DECODER_DEPTH, tokenizer_dict=_tokenizers(), **_SHAPE, **kwargs)
    return model


def backbone(**kwargs: Any) -> nn.Module:
    """Build terratorch's TerraMindViT at the demo's width."""
    model: nn.Module = terramind_register.build_terrammind_vit(tokenizer_dict=_tokenizers(), **_SHAPE, **kwargs)
    return model


def tim_backbone(**kwargs: Any) -> nn.Module:
    """Build terratorch's TerraMindTiM at the demo's width."""
    build_model = terramind_register.build_terrammind_tim
    model: nn.Module = build_model(decoder_depth=_DECODER_DEPTH, tokenizer_dict=_tokenizers(), **_SHAPE, **kwargs)
    return model


def _tokenizers() -> dict[str, Any]:
    return {str(MODALITIES[m].token_key): partial(_tokenizer, m) for m in DEMO_OUTPUTS}


def _tokenizer(modality: str, pretrained: bool = False) -> nn.Module:
    tokenizer: nn.Module = build_tokenizer(modality)
    return tokenizer


def build(spec: ModelSpec) -> TileModel:
    """Build what `spec` needs of the demo model, with its weights from the package."""

    def state_of(part: str) -> tuple[dict[str, Tensor], Path]:
        return (core_state(), _core_path()) if part == CORE else (tokenizer_state(part), _tokenizer_path(part))

    return assemble(spec, Architecture(generation_model, backbone, tim_backbone, _tokenizer), state_of)


def core_state() -> dict[str, Tensor]:
    """Return the core's float32 state dict under TerraTorch's names, for every input and output of the demo."""
    stored = {key: value.float() for key, value in load_file(_core_path()).items()}
    state: dict[str, Tensor] = {}
    for key, value in stored.items():
        owner, tabled, _ = key.partition(".token_emb.digits")
        if not tabled:
            state[key] = value
            continue
        table = expand_table(value, codebook_of(owner))
        state[f"{owner}.token_emb.weight"] = table
        if owner.startswith("decoder_embeddings."):
            state[f"{owner}.to_logits.weight"] = table
    position = tm_utils.build_2d_sincos_posemb(h=_POSITIONS, w=_POSITIONS, embed_dim=CORE_DIM)
    owners = {key.removesuffix(".mod_emb") for key in state if key.endswith(".mod_emb")}
    return state | {f"{owner}.pos_emb": position for owner in sorted(owners)}


def tokenizer_state(modality: str) -> dict[str, Tensor]:
    """Return a tokenizer's float32 state dict under TerraTorch's names."""
    return {key: value.float() for key, value in load_file(_tokenizer_path(modality)).items()}


def codebook_of(owner: str) -> tuple[int, ...]:
    """Return the levels of the codebook behind an embedding such as `encoder_embeddings.tok_lulc@224`."""
    token_key = owner.partition(".")[2]
    return next(m for m in MODALITIES.values() if m.token_key == token_key).levels


def token_digits(tokens: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Return the digits `(..., len(levels))` int64 of tokens `(...)` of a finite scalar quantiser."""
    digits = []
    for level in levels:
        digits.append(tokens % level)
        tokens = tokens // level
    return torch.stack(digits, dim=-1)


def expand_table(rows: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Return the token table `(product of levels, D)` whose rows are sums of the digits' rows `(sum of levels, D)`."""
    digits = token_digits(torch.arange(int(torch.tensor(levels).prod())), levels)
    table = torch.zeros(len(digits), rows.shape[1])
    first = 0
    for index, level in enumerate(levels):
        table += rows[first : first + level][digits[:, index]]
        first += level
    return table
