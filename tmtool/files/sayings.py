"""What a model says of a tile that is no pixels, a place or a text, as numbers that go through stitching and work files."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmtool.errors import ProductError

Place = tuple[float, float]
"""Longitude and latitude in degrees."""

PLACE_BANDS = ("said", "lon", "lat")
TEXT_BYTES = 4095
"""The most bytes of a text; sixteen for each of the tokens that make it."""


def place_values(place: Place | None) -> NDArray[np.float64]:
    """Return a place as `(3,)`: whether there is one, its longitude and latitude."""
    return np.array([1.0, *place] if place else [0.0, 0.0, 0.0])


def place_of(values: Sequence[Any]) -> Place | None:
    """Return the place that `place_values` stands for."""
    said, lon, lat = map(float, values)
    return (lon, lat) if said else None


def text_values(text: str) -> NDArray[np.uint8]:
    """Return a text as `(1 + TEXT_BYTES,)`: 1, its UTF-8, and zeros. Raises `ProductError` for one that is too long."""
    found = text.encode()
    if len(found) > TEXT_BYTES:
        raise ProductError(f"a text of {len(found)} bytes was made, expected at most {TEXT_BYTES}. Please report this.")
    values = np.zeros(1 + TEXT_BYTES, np.uint8)
    values[0], values[1 : 1 + len(found)] = 1, np.frombuffer(found, np.uint8)
    return values


def text_of(values: Sequence[Any]) -> str:
    """Return the text that `text_values` stands for."""
    return bytes(int(v) for v in values[1:]).rstrip(b"\0").decode()
