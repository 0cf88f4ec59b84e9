"""TerraMind's modules out of terratorch, imported without the rest of it (`tmtool.compat.terratorch` says how)."""

from tmtool.compat.terratorch import embed_without_waiting, terramind_modules

terramind_register, modality_info, terramind, tm_utils, vqvae, vit_models, unet, unet_layers = terramind_modules(
    (
        "model.terramind_register",
        "model.modality_info",
        "model.terramind",
        "model.tm_utils",
        "tokenizer.vqvae",
        "tokenizer.models.vit_models",
        "tokenizer.models.unet.unet",
        "tokenizer.models.unet.nn",
    )
)
embed_without_waiting(unet)
