"""Both tools' models, as their users run them: tmtool's adapters, and TerraTorch's modules in float32."""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.bench import _measure as m
from tests.specs import moments_of, spec_of
from tmtool import models
from tmtool.grid import FloatArray, TileBatch
from tmtool.models import Sampling, TileModel
from tmtool.models.device import resolve
from tmtool.scene.job import Job
from tmtool.tasks import TASKS, Generate, Reconstruct

SAMPLING = Sampling(timesteps=m.TIMESTEPS)
Forward = Callable[[Any], Any]


def job(options: m.Options, task: str, **settings: Any) -> Job:
    """Return the job of a command with its defaults, from Sentinel-2."""
    chosen = {"generate": Generate(m.OUTPUTS, SAMPLING), "reconstruct": Reconstruct(SAMPLING)}
    return Job(
        chosen.get(task) or TASKS[task](),
        options.model,
        weights=options.weights,
        device=options.device,
        batch_size=options.batch_size,
        overwrite=True,
        resume=False,
        **settings,
    )


def tmtool_model(
    options: m.Options,
    task: str,
    precision: str = "auto",
    outputs: tuple[str, ...] = m.OUTPUTS,
    sampling: Sampling = SAMPLING,
) -> TileModel:
    """Build tmtool's adapter of a task, Sentinel-2 in; `outputs` are those of `generate`."""
    if task == "tokenize" and precision == "auto":
        precision = "fp32"  # as the command does: rounding turns some tokens into others
    spec = spec_of(options.model, task, ("S2L2A",), outputs if task == "generate" else (), sampling=sampling)
    compute = resolve(options.device, precision)
    files = None
    if options.model == "demo":
        from tmtool.models.weights import locate

        files = locate(models.find("demo").files(spec), None, offline=True)
    return models.build(replace(spec, compute=compute, files=files))


def batch_of(pixels: FloatArray, first: int = -m.DELTA) -> TileBatch:
    """Return tiles `(B, 12, S, S)` of Sentinel-2 as a batch, side by side from column `first`."""
    cols = first + m.STRIDE * np.arange(len(pixels))
    return TileBatch({"S2L2A": pixels}, np.full(len(pixels), first), cols)


def terratorch_register() -> Any:
    """Return terratorch's module of TerraMind's builders, imported as its users do.

    On a machine that lacks some of what the whole of terratorch imports, it comes as tmtool imports it: the classes are
    the same.
    """
    try:
        from terratorch.models.backbones.terramind.model import terramind_register
    except ImportError:
        from tmtool.models.terramind.architecture import terramind_register
    return terramind_register


def terratorch_tiled_inference() -> Any:
    """Return terratorch's `tiled_inference`; where the whole of terratorch cannot be imported, from its file alone."""
    try:
        from terratorch.tasks.tiled_inference import tiled_inference
    except ImportError:
        (folder,) = find_spec("terratorch").submodule_search_locations
        source = Path(folder, "tasks", "tiled_inference.py").read_text()
        found: dict[str, Any] = {"__name__": __name__}
        exec(source.replace("from terratorch.models.utils import pad_images", ""), found)  # which it does not use
        tiled_inference = found["tiled_inference"]
    return tiled_inference


def terratorch_generate(options: m.Options) -> Forward:
    """Return the notebook's `model_forward`: DN `(B, 12, H, W)` in, all outputs in one tensor, fp32."""
    register = terratorch_register()
    build = _builder(options, register, "_generate", "generation_model")
    given: dict[str, Any] = {"standardize": True, "timesteps": m.TIMESTEPS}
    if options.model == "demo":
        given |= {"pretraining_mean": register.v1_pretraining_mean, "pretraining_std": register.v1_pretraining_std}
    model = build(modalities=["S2L2A"], output_modalities=list(m.OUTPUTS), pretrained=False, **given)
    model = model.to(resolve(options.device).device).eval()

    def forward(x: Any) -> Any:
        with torch.no_grad():
            generated = model(x)
        return torch.concat([generated[name] for name in m.OUTPUTS], dim=1)

    return forward


def terratorch_embed(options: m.Options) -> Forward:
    """Return terratorch's backbone: DN in, all layers' vectors out, fp32."""
    build = _builder(options, terratorch_register(), "", "backbone")
    model = build(modalities=["S2L2A"], pretrained=False).to(resolve(options.device).device).eval()
    return _on_standardised(model, options)


def terratorch_tokenize(options: m.Options) -> Forward:
    """Return terratorch's tokenizer: DN in, tokens out, fp32."""
    if options.model == "demo":
        from tmtool.models.demo import build_tokenizer

        model: Any = build_tokenizer("S2L2A")
    else:
        model = terratorch_register().terramind_v1_tokenizer_s2l2a(pretrained=False)
    model = model.to(resolve(options.device).device).eval()
    return _on_standardised(model.tokenize, options)


def _builder(options: m.Options, register: Any, suffix: str, demo: str) -> Any:
    """Return the registry's builder of a size, or the demo model's: terratorch's classes at another width."""
    if options.model != "demo":
        return getattr(register, f"terramind_v1_{options.model}{suffix}")
    from tmtool.models import demo as demo_model

    return getattr(demo_model, demo)


def _on_standardised(call: Callable[[Any], Any], options: m.Options) -> Forward:
    """Standardise what comes, as users of backbones and tokenizers have to."""
    device = resolve(options.device).device
    mean, std = (torch.tensor(v, device=device)[None, :, None, None] for v in moments_of("S2L2A"))

    def forward(x: Any) -> Any:
        with torch.no_grad():
            return call((x - mean) / std)

    return forward
