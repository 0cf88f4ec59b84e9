"""Plots of agreement: scatter of bands, confusion of classes. Drawn by matplotlib, which is imported when one is asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tmtool.errors import InputError
from tmtool.pictures._sheet import write_whole
from tmtool.products.agreement import Joint

_SIDE = 3.2
"""Side of a plot, in inches."""


def plot(path: Path, title: str, unit: str, found: Mapping[str, Any], joint: Joint | None) -> None:
    """Write a PNG of what was found. Raises `InputError` for figures that have no plot, and `OutputError`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if joint is None and "confusion" not in found:
        raise InputError("--plot: tokens and embeddings have no plot; bands and classes have.")
    if joint is not None:
        columns = min(4, len(joint.bands))
        rows = -(-len(joint.bands) // columns)
        figure = Figure((_SIDE * columns, _SIDE * rows + 0.4), layout="constrained")
        _scatter(figure.subplots(rows, columns, squeeze=False).ravel(), unit, found, joint)
    else:
        side = max(4.0, 0.6 * len(found["confusion"]) + 2)
        figure = Figure((side + 1, side), layout="constrained")
        _confusion(figure.subplots(), found)
    figure.suptitle(title, fontsize=10)
    canvas = FigureCanvasAgg(figure)
    write_whole(path, lambda part: canvas.print_png(part))


def _scatter(axes: Any, unit: str, found: Mapping[str, Any], joint: Joint) -> None:
    """Draw reference against product, a plot a band: how many pixels there are, by the logarithm."""
    for axis in axes[len(joint.bands) :]:
        axis.set_axis_off()
    for axis, band, limits, counts in zip(axes, joint.bands, joint.limits, joint.counts, strict=False):
        shown = np.ma.masked_equal(counts.T, 0)
        axis.imshow(np.ma.log10(shown), origin="lower", extent=(*limits, *limits), cmap="viridis")
        axis.plot(limits, limits, color="#e15759", linewidth=1)
        held = np.flatnonzero(counts.any(axis=0) | counts.any(axis=1))
        if held.size:  # what is empty on all sides is not shown
            edges = np.linspace(*limits, len(counts) + 1)[[held[0], held[-1] + 1]]
            axis.set(xlim=edges, ylim=edges)
        figures = found["bands"][band]
        words = [
            f"{name} {figures[key]:.3g}" for name, key in (("bias", "bias"), ("r", "r")) if figures[key] is not None
        ]
        axis.set_title(f"{band}: {', '.join(words)}", fontsize=9)
        axis.set_xlabel(f"reference{f' ({unit})' if unit not in ('', '1') else ''}", fontsize=8)
        axis.set_ylabel("product", fontsize=8)
        axis.tick_params(labelsize=7)


def _confusion(axis: Any, found: Mapping[str, Any]) -> None:
    """Draw the share of each reference class that the product has as which class."""
    names = list(found["confusion"])
    counts = np.array([[found["confusion"][true][other] for other in names] for true in names], float)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, col in np.ndindex(share.shape):
        ink = "white" if share[row, col] > 0.6 else "black"
        axis.text(col, row, f"{100 * share[row, col]:.0f}", ha="center", va="center", color=ink, fontsize=8)
    axis.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_xlabel("product (% of the reference)", fontsize=8)
    axis.set_ylabel("reference", fontsize=8)


@dataclass(frozen=True)
class Mark:
    """One point of a plot: the `kind` that gives its colour, its label, and where it is."""

    kind: str
    label: str
    x: float
    y: float


def plot_marks(path: Path, axes: tuple[str, str], marks: Sequence[Mark]) -> None:
    """Write a PNG of labelled points; `axes` are called so, and begin at 0. Raises `OutputError`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((7.0, 4.5), layout="constrained")
    axis = figure.subplots()
    for kind in dict.fromkeys(mark.kind for mark in marks):
        own = [mark for mark in marks if mark.kind == kind]
        axis.scatter([mark.x for mark in own], [mark.y for mark in own], label=kind, zorder=2)
    for mark in marks:
        axis.annotate(mark.label, (mark.x, mark.y), xytext=(6, 4), textcoords="offset points", fontsize=8)
    axis.set(xlabel=axes[0], ylabel=axes[1])
    axis.set_xlim(0, 1.35 * max((mark.x for mark in marks), default=1.0))  # room for the labels
    axis.set_ylim(0, 1.15 * max((mark.y for mark in marks), default=1.0) or 1.0)
    axis.grid(alpha=0.3)
    if marks:
        axis.legend(fontsize=8)
    canvas = FigureCanvasAgg(figure)
    write_whole(path, lambda part: canvas.print_png(part))
