"""TerraMind's classes out of terratorch, imported without the rest of it.

`import terratorch` imports every data set, model and task that it knows, and 10 s go by before the first line of
TerraMind is read. Nothing of that is used here. So while TerraMind's own modules are imported, empty packages stand where
the ones above them would run their `__init__`, and what only training or other models need is put off until it is used.
Afterwards these stand-ins are gone from `sys.modules`, and whoever imports terratorch gets it whole, TerraMind anew.
"""

import importlib
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_log = logging.getLogger("tmtool")

_PACKAGES = ("terratorch", "terratorch.models", "terratorch.models.backbones", "terratorch.models.backbones.terramind")
_TERRAMIND = _PACKAGES[-1]
_PIPELINE = f"{_TERRAMIND}.tokenizer.scheduling.diffusion_pipeline"
_UVIT = f"{_TERRAMIND}.tokenizer.models.uvit"


class _Registry:
    """Stands for terratorch's registries, which TerraMind's builders enter themselves in: they are called by name here."""

    def register(self, constructor: Any) -> Any:
        """Enter a builder nowhere."""
        return constructor


class _PutOff(ModuleType):
    """Stands for a module until something of it is used, which is never the case here."""

    def __getattr__(self, name: str) -> Any:
        """Import the module and return its attribute."""
        if name.startswith("__") or f"{self.__name__}.{name}" in sys.modules:  # a module below it stands in as well
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


class _PipelineCond:
    """Stands for the pipeline that terratorch's DiVAE makes of its decoder; diffusers' pipelines come if it is called."""

    def __init__(self, **parts: Any) -> None:
        self._parts = parts

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Do what the pipeline does."""
        return importlib.import_module(_PIPELINE).PipelineCond(**self._parts)(*args, **kwargs)


class _Whole(MetaPathFinder):
    """Finds nothing; but when terratorch is asked for, lets go of its modules that are here, so that it comes whole."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Hear what is asked for."""
        if name == _PACKAGES[0]:
            sys.meta_path.remove(self)
            for module in _loaded():
                del sys.modules[module]


def _loaded() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == _PACKAGES[0]]


def _stand_ins() -> dict[str, ModuleType]:
    """Return what stands in while TerraMind is imported, by the names of the modules."""
    found = find_spec(_PACKAGES[0])
    if found is None or not found.submodule_search_locations:
        raise ImportError("terratorch is not a package of files")
    stand_ins: dict[str, ModuleType] = {}
    for package in _PACKAGES:
        spec = ModuleSpec(package, None, is_package=True)
        below = package.split(".")[1:]
        spec.submodule_search_locations = ["/".join([place, *below]) for place in found.submodule_search_locations]
        stand_ins[package] = module_from_spec(spec)
    registry: Any = ModuleType("terratorch.registry")
    registry.TERRATORCH_BACKBONE_REGISTRY = registry.TERRATORCH_FULL_MODEL_REGISTRY = _Registry()
    pipeline: Any = ModuleType(_PIPELINE)
    pipeline.PipelineCond = _PipelineCond
    return stand_ins | {registry.__name__: registry, _PIPELINE: pipeline, _UVIT: _PutOff(_UVIT)}


@contextmanager
def _standing_in(stand_ins: dict[str, ModuleType]) -> Iterator[None]:
    """Put modules into `sys.modules`, where nothing else stands, and take them out again."""
    put = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    sys.modules.update(put)
    try:
        yield
    finally:
        for name, module in put.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _image_library() -> dict[str, ModuleType]:
    """Return stand-ins for torchvision, of which one function that shows images is used."""
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    return {name: _PutOff(name) for name in names}


def _import(names: Sequence[str]) -> list[Any]:
    """Import modules of TerraMind by their names below its package."""
    if _PACKAGES[0] in sys.modules:  # somebody has waited for all of it already
        return [importlib.import_module(f"{_TERRAMIND}.{name}") for name in names]
    try:
        with _standing_in(_stand_ins()):
            with _standing_in({} if "torchvision" in sys.modules else _image_library()):
                importlib.import_module(f"{_TERRAMIND}.utils")
            importlib.import_module(f"{_TERRAMIND}.tokenizer.vqvae")  # the register would swallow its errors
            modules = [importlib.import_module(f"{_TERRAMIND}.{name}") for name in names]
    except (ImportError, AttributeError) as error:  # another version, laid out otherwise
        _log.debug("terratorch is imported whole: %s", error)
        for name in _loaded():
            del sys.modules[name]
        return [importlib.import_module(f"{_TERRAMIND}.{name}") for name in names]
    sys.meta_path.insert(0, _Whole())
    return modules


def _timestep_embedding(timesteps: Tensor, dim: int, max_period: int = 10_000) -> Tensor:
    """Do what the function of terratorch's U-Net does that it stands for, to the bit, without waiting for the device.

    The frequencies are still made on the CPU, where their bits come from, and copied at each call.
    """
    half = dim // 2
    steps = torch.arange(start=0, end=half, dtype=torch.float)
    frequencies = torch.exp(-math.log(max_period) * steps / half).to(timesteps.device, non_blocking=True)
    angles = timesteps[:, None].float() * frequencies[None]
    embedding = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
    return torch.cat([embedding, torch.zeros_like(embedding[:, :1])], dim=-1) if dim % 2 else embedding


terramind_register, modality_info, terramind, tm_utils, vqvae, vit_models, unet, unet_layers = _import(
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
unet.timestep_embedding = _timestep_embedding
