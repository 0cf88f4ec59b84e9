"""terratorch: TerraMind's modules without the rest of it, a function of its U-Net, and networks found by name."""

import importlib
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tmtool.errors import WeightsError

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
    """Finds nothing; but when terratorch is imported, drops its stand-in modules first, so that it is imported whole."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Watch for the import of terratorch; find nothing."""
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


def terramind_modules(names: Sequence[str]) -> list[Any]:
    """Import modules of TerraMind by their names below its package.

    - Why: `import terratorch` imports every data set, model and task that it knows, and 10 s go by before the first line
      of TerraMind is read. Nothing of that is used here. So while TerraMind's own modules are imported, empty packages
      stand where the ones above them would run their `__init__`, and what only training or other models need is put off
      until it is used. Afterwards these stand-ins are gone from `sys.modules`, and whoever imports terratorch gets it
      whole, with TerraMind imported again.
    - Uses: where its packages lie, and the names that TerraMind imports from its registries, torchvision and its own
      pipeline and U-ViT.
    - Without it, as with a terratorch laid out otherwise: terratorch is imported whole. The classes are the same.
    """
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
    """Return the embedding `(N, dim)` float32 of `timesteps` `(N,)`, to the bit as terratorch's U-Net makes it.

    The frequencies are still made on the CPU, where their bits come from, and copied at each call.
    """
    half = dim // 2
    steps = torch.arange(start=0, end=half, dtype=torch.float)
    frequencies = torch.exp(-math.log(max_period) * steps / half).to(timesteps.device, non_blocking=True)
    angles = timesteps[:, None].float() * frequencies[None]
    embedding = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
    return torch.cat([embedding, torch.zeros_like(embedding[:, :1])], dim=-1) if dim % 2 else embedding


def embed_without_waiting(unet: Any) -> bool:
    """Have the U-Nets of terratorch's module `unet` embed timesteps without waiting for the device; return whether they do.

    - Why: at each step terratorch copies the frequencies to the device and waits until all before is done there.
    - Uses: the function `timestep_embedding` that the module's classes look up in it when they are called.
    - Without it, or if it computes other bits than it did: terratorch's own function, and its waiting.
    """
    own = getattr(unet, "timestep_embedding", None)
    steps = torch.tensor([0, 7, 999])
    if own is None or not all(torch.equal(own(steps, dim), _timestep_embedding(steps, dim)) for dim in (32, 33)):
        _log.debug("terratorch's U-Net embeds its timesteps itself: its function is not the one that tmtool knows")
        return False
    unet.timestep_embedding = _timestep_embedding
    return True


@contextmanager
def networks_by_name(named: Mapping[ModuleType, Mapping[str, Callable[..., Any]]]) -> Iterator[None]:
    """Have terratorch's tokenizers find networks by the names given for each module, while they are built and later.

    - Why: `VQVAE` and `DiVAE` take the names of their networks, not the networks.
    - Uses: that they look these names up among the attributes of terratorch's modules of networks.
    - Without it they cannot be built: raises `WeightsError`.
    """
    for module, networks in named.items():
        for name, build in networks.items():
            setattr(module, name, build)
    try:
        yield
    except (AttributeError, NotImplementedError) as error:
        if not any(name in str(error) for networks in named.values() for name in networks):
            raise
        raise WeightsError(
            f"This version of terratorch does not look up by name the networks of this model's tokenizers ({error}). "
            "Install a version that pyproject.toml of tmtool admits, or use another --model (tmtool models list)."
        ) from error
