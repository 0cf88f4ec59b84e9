"""TerraMind's classes come without the rest of terratorch, compute the same, and leave terratorch whole for others."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def outcome(script: str) -> list[str]:
    """Run Python in a process of its own and return what it printed, line by line."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_only_what_terramind_needs_is_imported() -> None:
    script = (
        "import sys, tmtool.models.terramind.build, tmtool.models.demo\n"
        "print(*sorted({m.partition('.')[0] for m in sys.modules}))\n"
        "print(*(m for m in sys.modules if m.startswith('terratorch')))"
    )
    packages, modules = (set(line.split()) for line in outcome(script))
    assert not packages & {"torchgeo", "lightning", "pytorch_lightning", "timm", "torchvision", "transformers"}
    assert not packages & {"segmentation_models_pytorch", "albumentations", "geopandas", "scipy", "pandas"}
    assert all(m.startswith("terratorch.models.backbones.terramind.") for m in modules)


_BOTH = """
import torch
from tmtool.models.terramind.architecture import terramind_register as light, vqvae
from terratorch.registry import BACKBONE_REGISTRY, FULL_MODEL_REGISTRY
import terratorch, torchvision
import terratorch.models.backbones.terramind.model.terramind_register as whole
import terratorch.models.backbones.terramind.tokenizer.models.uvit as uvit
import terratorch.models.backbones.terramind.tokenizer.vqvae as whole_vqvae

def outputs(register, vqvae):
    torch.manual_seed(0)
    encoder = register.build_terrammind_vit(
        modalities=["S2L2A"], encoder_depth=1, dim=64, num_heads=2, norm_layer=register.LayerNorm, pretrained=False,
        tokenizer_dict=register.tokenizer_dict["v1"], pretrained_bands=register.PRETRAINED_BANDS,
    )
    unet = vqvae.unet.PatchedUNetCondCat(
        in_channels=1, out_channels=1, cond_channels=5, image_size=32, patch_size=4, model_channels=32,
        num_res_blocks=1, attention_resolutions=[2], channel_mult=(1, 2),
    )
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, 0, 0.1)
    pixels, noise, codes = torch.randn(1, 12, 224, 224), torch.randn(1, 1, 32, 32), torch.randn(1, 5, 2, 2)
    with torch.no_grad():
        return encoder.eval()(pixels)[0], unet.eval()(noise, 500, codes)

for dim in (256, 33):
    steps = torch.tensor([0, 7, 999])
    embeddings = [m.unet.timestep_embedding(steps, dim) for m in (vqvae, whole_vqvae)]
    print(torch.equal(*embeddings), vqvae.unet.timestep_embedding is not whole_vqvae.unet.timestep_embedding)
print(whole is not light, terratorch.models.backbones.terramind.model.terramind_register is whole)
print("terramind_v1_base" in BACKBONE_REGISTRY, "terramind_v1_base_generate" in FULL_MODEL_REGISTRY)
print(hasattr(terratorch, "tasks"), hasattr(terratorch, "datasets"))
print(hasattr(torchvision, "ops"), hasattr(uvit, "UViT"))
for one, other in zip(outputs(light, vqvae), outputs(whole, whole_vqvae), strict=True):
    print(torch.equal(one, other), bool(one.std() > 0.01))
"""


def test_terratorch_imported_afterwards_is_whole_and_computes_the_same() -> None:
    assert outcome(_BOTH) == ["True True"] * 8


def test_another_layout_of_terratorch_is_imported_whole() -> None:
    """Where a stand-in lacks what a version of terratorch wants, the plain import does it, and the log says so."""
    script = (
        "import logging, sys\n"
        "logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format='%(message)s')\n"
        "logging.getLogger('matplotlib').setLevel(logging.WARNING)\n"
        "import importlib.machinery, importlib.util\n"
        "real = importlib.util.find_spec\n"
        "def elsewhere(name, package=None):\n"
        "    spec = real(name, package)\n"
        "    if name == 'terratorch':\n"
        "        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)\n"
        "        spec.submodule_search_locations = ['/nowhere']\n"
        "    return spec\n"
        "importlib.util.find_spec = elsewhere\n"
        "import tmtool.models.terramind.architecture as architecture\n"
        "print('WHOLE', 'terratorch.tasks' in sys.modules, architecture.vqvae.DiVAE.__name__)\n"
    )
    lines = outcome(script)
    assert any(line.startswith("terratorch is imported whole: ") for line in lines)
    assert lines[-1] == "WHOLE True DiVAE"
