"""Values to colours: `(C, H, W)` and validity `(H, W)` to `(H, W, 3)` from 0 to 1. Pure functions, each with its legend."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tmtool.grid import BoolArray

Colours = NDArray[np.float64]
"""Red, green and blue from 0 to 1, `(H, W, 3)`."""


@dataclass(frozen=True)
class Legend:
    """What a picture's colours mean: `entries` (name, colour), or a `ramp` of colours from `low` to `high`, or `text` alone."""

    text: str = ""
    entries: tuple[tuple[str, str], ...] = ()
    ramp: tuple[str, ...] = ()
    low: str = ""
    high: str = ""


NDVI_RAMP = ("#283c6e", "#a67c52", "#ecde96", "#78aa50", "#145a28")
HEIGHT_RAMP = ("#2f6f3e", "#8fae5a", "#e3d79a", "#b08a5a", "#7d6456", "#f4f2ef")
VIRIDIS = ("#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725")
DISAGREEMENT = ("#fff7ec", "#fdd49e", "#fc8d59", "#d7301f", "#7f0000")
PALETTE = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#edc948", "#76b7b2", "#9c755f", "#ff9da7", "#bab0ac")


_SPREADS = 8
"""Median deviations above the median at which true colour is white."""


def rgb(colour: str) -> NDArray[np.float64]:
    """Return `#RRGGBB` as numbers from 0 to 1."""
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def _limits(values: NDArray[np.floating], valid: BoolArray, low: float, high: float) -> tuple[float, float]:
    """Return percentiles of the valid values; 0 and 1 if there are none."""
    held = values[..., valid]
    if not held.size:
        return 0.0, 1.0
    a, b = (float(v) for v in np.percentile(held, (low, high)))
    return (a, b) if b > a else (a - 0.5, a + 0.5)


def _between(values: NDArray[np.floating], low: float, high: float) -> NDArray[np.float64]:
    return np.clip((np.nan_to_num(values.astype(np.float64), nan=low) - low) / (high - low), 0, 1)


def along(ramp: Sequence[str], share: NDArray[np.float64]) -> Colours:
    """Return the colours of a ramp at shares from 0 to 1, `(H, W, 3)`."""
    stops = np.stack([rgb(colour) for colour in ramp])
    at = share * (len(stops) - 1)
    return np.stack([np.interp(at, np.arange(len(stops)), stops[:, c]) for c in range(3)], axis=-1)


def true_colour(red_green_blue: NDArray[np.floating], valid: BoolArray) -> tuple[Colours, Legend]:
    """Stretch red, green and blue `(3, H, W)` together, brightened: robustly, so that clouds do not darken the land."""
    low, high = _limits(red_green_blue, valid, 1, 99)
    held = red_green_blue[..., valid]
    if held.size:
        middle = float(np.median(held))
        high = max(min(high, middle + _SPREADS * float(np.median(abs(held - middle)))), low + 1e-6)
    return np.moveaxis(_between(red_green_blue, low, high) ** 0.8, 0, -1), Legend("true colour")


def radar(backscatter: NDArray[np.floating], valid: BoolArray) -> tuple[Colours, Legend]:
    """Show VV, VH (dB) and their ratio as red, green and blue."""
    vv, vh = backscatter
    bands = [_between(v, *limits) ** 0.8 for v, limits in ((vv, (-25, 0)), (vh, (-32, -5)), (vv - vh, (0, 16)))]
    return np.stack(bands, axis=-1), Legend("red VV, green VH, blue VV/VH")


def terrain(heights: NDArray[np.floating], valid: BoolArray, pixel: float) -> tuple[Colours, Legend]:
    """Tint heights (m) and shade them by light from the north-west; `pixel` is the side of a pixel in m."""
    low, high = _limits(heights, valid, 1, 99)
    known = np.where(valid, heights[0].astype(np.float64), np.nan)
    steps = (np.gradient(known, pixel, axis=axis) if known.shape[axis] > 1 else 0 * known for axis in (0, 1))
    down, right = (np.nan_to_num(step) for step in steps)  # level beside what is not known, rather than a cliff
    steep = max(float(np.percentile(np.hypot(down, right), 90)), 1e-6)
    down, right = down / steep, right / steep  # plains show their relief too
    light = np.array([-1, -1, 1.4]) / np.linalg.norm([-1, -1, 1.4])
    shade = (-right * light[0] - down * light[1] + light[2]) / np.sqrt(right**2 + down**2 + 1)
    colours = along(HEIGHT_RAMP, _between(heights[0], low, high)) * np.clip(0.45 + 0.6 * shade, 0, 1)[..., None]
    return np.clip(colours, 0, 1), Legend("height", ramp=HEIGHT_RAMP, low=f"{low:.4g} m", high=f"{high:.4g} m")


def index(values: NDArray[np.floating], valid: BoolArray) -> tuple[Colours, Legend]:
    """Show NDVI from bare to green."""
    return along(NDVI_RAMP, _between(values[0], -0.2, 0.9)), Legend("NDVI", ramp=NDVI_RAMP, low="-0.2", high="0.9")


def quantity(values: NDArray[np.floating], valid: BoolArray, name: str) -> tuple[Colours, Legend]:
    """Show one band by viridis, from the 1st to the 99th percentile."""
    low, high = _limits(values, valid, 1, 99)
    return along(VIRIDIS, _between(values[0], low, high)), Legend(
        name, ramp=VIRIDIS, low=f"{low:.4g}", high=f"{high:.4g}"
    )


def spread(values: NDArray[np.floating], valid: BoolArray, name: str, unit: str) -> tuple[Colours, Legend]:
    """Show how far draws differ, the mean of the bands, from none to the 99th percentile."""
    mean = values.mean(axis=0)
    high = max(_limits(mean, valid, 1, 99)[1], 1e-9)
    words = f"{name}, mean of {len(values)} bands" if len(values) > 1 else name
    colours = along(VIRIDIS, _between(mean, 0.0, high))
    return colours, Legend(words, ramp=VIRIDIS, low="0", high=f"{high:.3g} {unit}".rstrip(" 1"))


def tiles(
    colours: Colours, values: NDArray[np.float32], places: Sequence[NDArray[np.float64]], unit: str
) -> tuple[Colours, Legend]:
    """Lay the tiles' disagreement over a picture, and lines between them; `places` count tiles at each of its rows and columns."""
    at = [np.floor(place).astype(int) for place in places]
    inside = [np.clip(index, 0, n - 1) for index, n in zip(at, values.shape, strict=True)]
    shown = values[np.ix_(*inside)].astype(np.float64)
    known = np.isfinite(values)
    high = float(values[known].max()) if known.any() else 1.0
    tint = along(DISAGREEMENT, _between(shown, 0.0, max(high, 1e-9)))
    mixed = np.where(np.isfinite(shown)[..., None], 0.4 * colours + 0.6 * tint, colours)
    for axis, index in enumerate(inside):
        edge = np.flatnonzero(np.diff(index)) + 1
        mixed[(slice(None),) * axis + (edge,)] = 0.15
    return mixed, Legend("tiles differ by", ramp=DISAGREEMENT, low="0", high=f"{high:.2g} {unit}")


def classes(
    values: NDArray[np.integer], valid: BoolArray, names: Sequence[str], colours: Sequence[str]
) -> tuple[Colours, Legend]:
    """Show classes in their colours; the legend names those that there are."""
    table = np.stack([rgb(colour) for colour in colours])
    there = [c for c in np.unique(values[0][valid]).astype(int).tolist() if c < len(colours)]
    entries = tuple((names[c], colours[c]) for c in there)
    return table[np.minimum(values[0], len(colours) - 1).astype(int)], Legend(entries=entries)


def probabilities(
    values: NDArray[np.floating], valid: BoolArray, names: Sequence[str], colours: Sequence[str]
) -> tuple[Colours, Legend]:
    """Show probabilities `(C, H, W)`: of two classes the second one's, of more their colours mixed."""
    if len(values) <= 2:
        share = _between(values[-1], 0, 1)
        return along(VIRIDIS, share), Legend(
            f"probability of {names[len(values) - 1]}", ramp=VIRIDIS, low="0", high="1"
        )
    table = np.stack([rgb(colour) for colour in colours[: len(values)]])
    total = np.maximum(np.nan_to_num(values).sum(0), 1e-9)
    mixed = np.einsum("chw,ck->hwk", np.nan_to_num(values), table) / total[..., None]
    return np.clip(mixed, 0, 1), Legend("probable classes", entries=tuple(zip(names, colours, strict=False))[:12])


def codes(values: NDArray[np.integer], valid: BoolArray, levels: Sequence[int]) -> tuple[Colours, Legend]:
    """Show tokens: the first three digits of each code as red, green and blue."""
    code = np.where(valid, values[0], 0).astype(np.int64)
    digits = [code // int(np.prod(levels[:i])) % levels[i] / (levels[i] - 1) for i in range(3)]
    return np.stack(digits, axis=-1), Legend("the codes' first three digits")


@dataclass(frozen=True)
class Components:
    """Principal components of vectors: their `mean` `(D,)`, the first three `axes` `(3, D)`, and the `low` and `high` scores."""

    mean: NDArray[np.float64]
    axes: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    share: float
    """Share of the variance that they hold."""


def components_of(vectors: NDArray[np.floating]) -> Components:
    """Fit principal components to vectors `(D, n)`."""
    held = vectors.astype(np.float64)
    mean = held.mean(axis=1) if held.shape[1] else np.zeros(len(held))
    _, values, axes = np.linalg.svd((held - mean[:, None]).T, full_matrices=False)
    axes = np.pad(axes[:3], ((0, max(0, 3 - len(axes))), (0, 0)))
    axes *= np.where(np.take_along_axis(axes, abs(axes).argmax(1)[:, None], 1) < 0, -1, 1)  # an axis has no direction
    scores = axes @ (held - mean[:, None])
    low, high = np.percentile(scores, (2, 98), axis=1) if held.shape[1] else (np.zeros(3), np.ones(3))
    total = float((values**2).sum())
    return Components(
        mean, axes, low, np.where(high > low, high, low + 1), float((values[:3] ** 2).sum()) / total if total else 0
    )


def components(values: NDArray[np.floating], valid: BoolArray, of: Components) -> tuple[Colours, Legend]:
    """Show vectors `(D, H, W)`: their scores on three principal components as red, green and blue."""
    held = np.where(valid, np.nan_to_num(values), 0).astype(np.float64)
    scores = np.einsum("kd,dhw->hwk", of.axes, held - of.mean[:, None, None])
    shown = np.clip((scores - of.low) / (of.high - of.low), 0, 1)
    return shown, Legend(f"three principal components, {100 * of.share:.0f} % of the variance")
