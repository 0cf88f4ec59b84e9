"""What a user can set, with defaults and limits: one declaration each. Imports nothing heavy, so that help is quick."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tmtool.errors import UsageError

Merge = Literal["mean", "max", "concat", "dict"]
Normalize = Literal["none", "l2"]
Dtype = Literal["float32", "float16", "int8"]
Pool = Literal["patch", "tile", "scene"]
RasterFormat = Literal["cog", "zarr"]
FileFormat = Literal["cog", "zarr", "geoparquet", "majortom"]
Stale = Literal["error", "redo", "keep"]
Compile = Literal["auto", "on", "off"]
Resampling = Literal["auto", "nearest", "bilinear", "cubic", "average"]
Codes = Literal["terramind", "esri", "worldcover", "dynamicworld"]
Anchor = Literal["raster", "grid"]
Solver = Literal["ddim", "dpm"]

TIMESTEPS: Mapping[Solver, int] = {"ddim": 10, "dpm": 4}
"""How often each solver evaluates the decoder, unless asked otherwise."""


@dataclass(frozen=True)
class Tiling:
    """Side of a tile, distance between tiles, and margin discarded on each side, all in source px."""

    crop: int = 256
    stride: int = 192
    delta: int = 8

    @classmethod
    def fitting(
        cls,
        patch: int,
        *,
        on_patch_grid: bool,
        own: tuple[int, int, int] | None = None,
        crop: int | None = None,
        stride: int | None = None,
        delta: int | None = None,
    ) -> "Tiling":
        """Return the tiling that was asked for; what was not is the model's `own`, or the default.

        The default is cut down to whole patches of `patch` px; on the patch grid a patch is discarded on each side, else
        8 px.
        """
        usual = own or (cls.crop // patch * patch, cls.stride // patch * patch, patch if on_patch_grid else cls.delta)
        return cls(
            *(default if asked is None else asked for asked, default in zip((crop, stride, delta), usual, strict=True))
        )

    def check(self, patch: int, *, on_patch_grid: bool = False) -> list[str]:
        """Raise `UsageError` if tiles would leave gaps or split patches; return notes on what works but may be seen.

        `patch` is the side of the model's patch in px.
        """
        if self.crop < patch or self.crop % patch:
            near = max(patch, round(self.crop / patch) * patch)
            raise UsageError(
                f"--crop {self.crop} is not a multiple of {patch}, the model's patch size. Try --crop {near}."
            )
        if self.delta < 0 or self.stride < 1:
            raise UsageError(f"--stride must be at least 1 and --delta at least 0, got {self.stride} and {self.delta}.")
        if self.stride > self.crop - 2 * self.delta:
            raise UsageError(
                f"--stride {self.stride} leaves gaps between tiles: with --crop {self.crop} and --delta {self.delta} it "
                f"can be at most {self.crop - 2 * self.delta} (crop - 2*delta)."
            )
        off_grid = [f"--{k} {v}" for k, v in (("stride", self.stride), ("delta", self.delta)) if v % patch]
        if on_patch_grid and off_grid:
            raise UsageError(
                f"Products on the patch grid need multiples of {patch}, got {', '.join(off_grid)} (from the command line or "
                "TMTOOL_ variables)."
            )
        if self.stride % patch:
            return [
                f"--stride {self.stride} is no multiple of {patch}: neighbouring tiles' patches differ and seams may show."
            ]
        return []


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn and decoded; the names are the command line's.

    Temperature 0 takes the likeliest token. `solver` runs the diffusion, in `timesteps` evaluations of the decoder, or as many as
    it usually takes if that is None. `clip_sigma` clamps the diffusion's estimate to so many standard deviations around the
    mean at each step; None does not. Of `samples` draws, with consecutive seeds, the products are the mean and the spread.
    """

    top_p: float = 0.8
    top_k: int = 0
    temperature: float = 1.0
    decoding_steps: int = 1
    timesteps: int | None = None
    clip_sigma: float | None = None
    solver: Solver = "ddim"
    samples: int = 1

    @property
    def steps(self) -> int:
        """How often the decoder is evaluated."""
        return TIMESTEPS[self.solver] if self.timesteps is None else self.timesteps

    def said(self) -> dict[str, Any]:
        """Return what decides pixels, for the provenance: solver and samples only where they are not TerraTorch's."""
        facts = asdict(self) | {"timesteps": self.steps}
        if self.solver == "ddim":
            del facts["solver"]
        if self.samples == 1:
            del facts["samples"]
        return facts

    def check(self) -> None:
        """Raise `UsageError` for a value that cannot work."""
        bounds = (
            ("--top-p", self.top_p, 0, 1),
            ("--top-k", self.top_k, 0, 15_360),
            ("--temperature", self.temperature, 0, 100),
            ("--decoding-steps", self.decoding_steps, 1, 4096),
            ("--timesteps", self.steps, 1, 1000),
            ("--samples", self.samples, 1, 1000),
        )
        for name, value, low, high in bounds:
            if not low <= value <= high:
                raise UsageError(f"{name} {value:g} is out of range: it goes from {low} to {high}.")
        if self.clip_sigma is not None and not self.clip_sigma > 0:
            raise UsageError(f"--clip-sigma {self.clip_sigma:g} must be above 0 (leave it out for no clipping).")


@dataclass(frozen=True)
class Vectors:
    """How embeddings are written; the names are the command line's."""

    normalize: Normalize = "none"
    dtype: Dtype = "float32"
    format: FileFormat = "cog"
    pool: Pool = "patch"


@dataclass(frozen=True)
class RunSettings:
    """Which model runs, where and how. `weights` is a folder, "random", or None for the hub; `max_memory` is in bytes."""

    model: str = "base"
    weights: str | None = None
    offline: bool = False
    device: str = "auto"
    precision: str = "auto"
    compile: Compile = "auto"
    batch_size: int | None = None
    max_memory: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Reading:
    """How inputs are read; the names are the command line's.

    `unit` maps modalities to the unit that their rasters are in. `mask` names what is left out: classes of the product's own
    mask, or rasters and vector files. `min_overlap` is a share of the grid.
    """

    s2_offset: float | None = None
    unit: Mapping[str, str] = field(default_factory=dict)
    lulc_codes: Codes = "terramind"
    grid: str = ""
    resampling: Resampling = "auto"
    min_overlap: float = 0.05
    mask: tuple[str, ...] = ()


@dataclass(frozen=True)
class Extent:
    """Which part of a scene is made, and what tiles are pinned to; the names are the command line's."""

    bbox: str = ""
    window: str = ""
    aoi: str = ""
    anchor: Anchor = "raster"


@dataclass(frozen=True)
class Policy:
    """How a run over many scenes handles existing products and failures; the names are the command line's."""

    dry_run: bool = False
    stale: Stale = "error"
    fail_fast: bool = False
    retries: int = 0
    report: str | Path | None = None
    cluster: str | None = None
