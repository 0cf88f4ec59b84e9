"""Rasters as they are delivered: one module a format, each with `claims(path)` and `read(path)`; found by being here."""

import pkgutil
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

from tmtool.source._delivery import Delivery


def _formats() -> Iterator[Any]:
    for _, name, _ in pkgutil.iter_modules(__path__):
        yield import_module(f"{__name__}.{name}")


def is_delivery(path: str) -> bool:
    """Whether a path is that of a delivery."""
    return any(module.claims(path) for module in _formats())


def delivery_of(path: str) -> Delivery | None:
    """Return what a path is a delivery of, or None for one that GDAL opens as it is. Raises `InputError`."""
    for module in _formats():
        if module.claims(path):
            found: Delivery = module.read(path)
            return found
    return None


def grouped(paths: Sequence[str]) -> list[str]:
    """Return listed rasters with those that are bands of one scene as one path, which says {band} where they differ."""
    found: list[str] = import_module(f"{__name__}.bands").grouped(paths)
    return found


def collected(path: str) -> list[str]:
    """Return the paths of a collection's items, if a path is that of one."""
    stac = import_module(f"{__name__}.stac")
    return [item for _, item in stac.items(path)] if stac.claims(path) and "#" not in path else []
