"""The registry of models, by the names that `--model` takes. Each file in `families/` registers its models on import."""

import pkgutil
from importlib import import_module

from tmtool.errors import UsageError
from tmtool.limits import check_room_for_torch
from tmtool.models import families
from tmtool.models.entry import ModelEntry, ModelSpec, TileModel

RANDOM = "random"
"""Value of `--weights` that asks for seeded random weights."""

MODELS: dict[str, ModelEntry] = {}


def register(name: str, entry: ModelEntry) -> None:
    """Offer a model under a name."""
    MODELS[name] = entry


def find(name: str) -> ModelEntry:
    """Return the model called `name`, or raise `UsageError` with the choices."""
    if name not in MODELS:
        raise UsageError(f"Unknown model {name!r}. Choose from {', '.join(MODELS)}.")
    return MODELS[name]


def build(spec: ModelSpec) -> TileModel:
    """Build the model of a spec; see `ModelEntry.build`."""
    check_room_for_torch()
    return find(spec.name).build(spec)


def load_families() -> None:
    """Import every file in `families/`: TerraMind's first, then the others in the order of their names."""
    for module in sorted(
        pkgutil.iter_modules(families.__path__), key=lambda found: (not found.name.startswith("terramind"), found.name)
    ):
        import_module(f"{families.__name__}.{module.name}")
