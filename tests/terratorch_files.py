"""Single modules of terratorch, read from their files: importing the package takes ten seconds and more."""

import ast
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

_BACKBONES = "terratorch.models.backbones"


def _path(name: str) -> Path:
    found = find_spec("terratorch")
    assert found is not None
    assert found.submodule_search_locations
    return (
        Path(found.submodule_search_locations[0]).joinpath("models", "backbones", *name.split(".")).with_suffix(".py")
    )


def backbone_module(name: str, *needed: str) -> Any:
    """Run a module below `terratorch.models.backbones` by itself, with those that it imports from there standing ready."""
    ready: dict[str, ModuleType] = {}
    precision = torch.get_float32_matmul_precision()  # which Clay's module changes
    try:
        for part in (*needed, name):
            full = f"{_BACKBONES}.{part}"
            spec = spec_from_file_location(full, _path(part))
            assert spec is not None
            assert spec.loader is not None
            ready[full] = module_from_spec(spec)
            if full not in sys.modules:
                sys.modules[full] = ready[full]
            spec.loader.exec_module(ready[full])
    finally:
        torch.set_float32_matmul_precision(precision)
        for full, module in ready.items():
            if sys.modules.get(full) is module:
                del sys.modules[full]
    return ready[f"{_BACKBONES}.{name}"]


def prithvi_tables() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return `prithvi_cfgs` and `pretrained_weights` of terratorch's `prithvi_vit`, its bands by name."""
    wanted = {"PRETRAINED_BANDS", "prithvi_cfgs", "pretrained_weights", "_cfg"}
    wanted |= {f"PRITHVI_V{version}_{what}" for version in (1, 2) for what in ("MEAN", "STD")}
    tree = ast.parse(_path("prithvi_vit").read_text())
    tree.body = [node for node in tree.body if wanted & _defined(node)]
    bands = SimpleNamespace(**{b: b for b in ("BLUE", "GREEN", "RED", "NIR_NARROW", "SWIR_1", "SWIR_2")})
    names: dict[str, Any] = {"HLSBands": bands}
    exec(compile(tree, "prithvi_vit", "exec"), names)
    return names["prithvi_cfgs"], names["pretrained_weights"]


def _defined(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef):
        return {node.name}
    return {t.id for t in node.targets if isinstance(t, ast.Name)} if isinstance(node, ast.Assign) else set()
