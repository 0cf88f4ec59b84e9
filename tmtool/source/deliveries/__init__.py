"""Rasters as they are delivered: one module a format, each with `claims(path)` and `read(path)`; found by being here."""

import pkgutil
from importlib import import_module

from tmtool.source.delivery import Delivery


def delivery_of(path: str) -> Delivery | None:
    """Return what a path is a delivery of, or None for one that GDAL opens as it is. Raises `InputError`."""
    for _, name, _ in pkgutil.iter_modules(__path__):
        module = import_module(f"{__name__}.{name}")
        if module.claims(path):
            found: Delivery = module.read(path)
            return found
    return None
