"""Rasters that are delivered as several files: what the readers in `deliveries` return."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from affine import Affine


@dataclass(frozen=True)
class Layer:
    """One band of a delivery: its name as `tmtool.modality` has it, the name that GDAL opens, and its number there."""

    name: str
    path: str = field(repr=False)
    band: int = 1


@dataclass(frozen=True)
class Flags:
    """Where a class of pixels to be masked lies: where `layer` holds one of `values`."""

    layer: Layer
    values: tuple[int, ...]


@dataclass(frozen=True)
class Delivery:
    """A raster in several files, and what its metadata says of it.

    A value in the modality's unit is `raw * gain - offset`. Layers may have different pixel sizes; the grid is that of the
    finest, unless `crs`, `transform` and `shape` (of the finest) are given, as where files do not hold them.
    """

    path: str = field(repr=False)
    """As the user named it."""
    kind: str
    """What it is, in a few words: `Sentinel-2 L2A SAFE`."""
    layers: tuple[Layer, ...]
    modality: str | None = None
    """Name of its modality; None where the names of its bands have to tell."""
    gain: float = 1.0
    offset: float = 0.0
    scale_why: str = ""
    """What gain and offset are based on; empty where the metadata does not say, and they are looked for in the files."""
    item: str = ""
    """The link or absolute path of the STAC item that describes it, if one does."""
    power: bool = False
    """Whether values are known to be linear power, of modalities in dB."""
    nodata: float | None = None
    """What stands for no data; None where the files say it."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """When it was taken, under a key of `tmtool.dates.TAGS`; `PROCESSING_BASELINE`; and so on."""
    flags: Mapping[str, tuple[Flags, ...]] = field(default_factory=dict)
    """What `--mask` can leave out, by its words: clouds, shadow, cirrus, snow."""
    crs: Any = None
    transform: Affine | None = None
    shape: tuple[int, int] = (0, 0)
    """Zeros where the files tell it."""
