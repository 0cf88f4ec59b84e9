"""Values in STAC's words."""

import math
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any


def moment(at: datetime) -> str:
    """Return a time of UTC, to the second."""
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def number(value: float) -> float | int | str:
    """Return a number; those that JSON has not, in words."""
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return int(value) if value == int(value) else value


def classes(named: Sequence[tuple[str, str]], nodata: float | None = None) -> list[dict[str, Any]]:
    """Return classes, (name, colour) of the values 0, 1, ..., as the classification extension has them."""
    return [
        {"value": value, "name": _slug(name, value), "title": name, "description": name, "color_hint": colour[1:]}
        | ({"nodata": True} if value == nodata else {})
        for value, (name, colour) in enumerate(named)
    ]


def _slug(name: str, value: int) -> str:
    return re.sub(r"[^0-9A-Za-z_-]+", "_", name).strip("_") or f"class_{value}"
