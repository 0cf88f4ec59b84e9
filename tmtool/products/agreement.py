"""How well a product agrees with a reference: figures that are gathered strip by strip, at flat memory.

Each figure's formula is in docs/METRICS.md.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tmtool.grid import BoolArray
from tmtool.modality import Modality
from tmtool.products.metrics import Comparison, Confusion, aligned, decimals, fixed


class Agreement(Protocol):
    """Takes strips of a product and of its reference from the top, then says what was found."""

    def add(self, values: NDArray[Any], reference: NDArray[Any], valid: BoolArray) -> None:
        """Take the next rows: product and reference `(bands, h, W)`, and which pixels are valid in both, `(h, W)`."""
        ...

    def result(self) -> dict[str, Any]:
        """Return what was found, ready for JSON; a figure that does not exist is None."""
        ...


class Quantities:
    """Agreement of bands: bias, MAE, RMSE, r, PSNR, SSIM and the gradient's RMSE of each, in the modality's unit.

    PSNR and SSIM are those of `reconstruct`: their data range is 6 of the band's pretraining `stds`.
    """

    def __init__(self, modality: Modality, width: int, stds: Sequence[float]) -> None:
        self._bands = modality.bands
        self._comparison = Comparison(modality, width, stds)
        self._count = 0
        self._means = np.zeros((2, len(self._bands)))  # of the product and of the reference
        self._moments = np.zeros((3, len(self._bands)))  # summed squares and products of deviations from the means
        self._steps, self._squared_steps = 0, np.zeros(len(self._bands))
        self._last: tuple[NDArray[np.float64], BoolArray] | None = None

    def add(self, values: NDArray[Any], reference: NDArray[Any], valid: BoolArray) -> None:
        """Take the next rows."""
        self._comparison.add(reference, values, valid)
        x, y = (np.where(valid, band, 0).astype(np.float64) for band in (values, reference))
        self._add_moments(x[:, valid], y[:, valid])
        self._add_steps(x - y, valid)

    def _add_moments(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        """Merge count, means and co-moments of some pixels `(bands, n)`; Chan, Golub and LeVeque's update."""
        n = x.shape[1]
        if not n:
            return
        means = np.stack([x.mean(axis=1), y.mean(axis=1)])
        dx, dy = x - means[0][:, None], y - means[1][:, None]
        step, total = means - self._means, self._count + n
        factor = self._count * n / total
        self._moments += np.stack([(dx * dx).sum(1), (dy * dy).sum(1), (dx * dy).sum(1)])
        self._moments += factor * np.stack([step[0] ** 2, step[1] ** 2, step[0] * step[1]])
        self._means += step * n / total
        self._count = total

    def _add_steps(self, difference: NDArray[np.float64], valid: BoolArray) -> None:
        """Add the squared steps of the difference between neighbours: those of a perfect gradient are 0."""
        if self._last is not None:
            difference = np.concatenate([self._last[0], difference], axis=1)
            valid = np.concatenate([self._last[1], valid])
        both = valid[1:] & valid[:-1]
        down = (difference[:, 1:] - difference[:, :-1])[:, both]
        mine = slice(None) if self._last is None else slice(1, None)  # the row that was kept has been counted
        beside = valid[mine, 1:] & valid[mine, :-1]
        right = (difference[:, mine, 1:] - difference[:, mine, :-1])[:, beside]
        self._steps += down.shape[1] + right.shape[1]
        self._squared_steps += (down**2).sum(axis=1) + (right**2).sum(axis=1)
        self._last = difference[:, -1:].copy(), valid[-1:].copy()

    def result(self) -> dict[str, Any]:
        """Return `pixels` and for each of `bands` the figures."""
        self._comparison.finish()
        found = self._comparison.result()
        return {
            "pixels": self._count,
            "bands": {b: self._band(i, found["bands"][b]) for i, b in enumerate(self._bands)},
        }

    def _band(self, i: int, errors: Mapping[str, float | None]) -> dict[str, float | None]:
        bias = float(self._means[0, i] - self._means[1, i]) if self._count else None
        spread = math.sqrt(self._moments[0, i] * self._moments[1, i])
        r = float(self._moments[2, i]) / spread if spread > 0 else None
        gradient = math.sqrt(self._squared_steps[i] / self._steps) if self._steps else None
        order = {"bias": bias, "mae": errors["mae"], "rmse": errors["rmse"], "r": r}
        return order | {"psnr": errors["psnr"], "ssim": errors["ssim"], "gradient_rmse": gradient}


class Classes:
    """Agreement of classes: accuracy, mIoU, macro F1, kappa; IoU, F1, precision and recall of each, and the confusion.

    `names` are those of the classes 0, 1, ... of `what`; with `first` 1 a reference of class 0 is no data.
    """

    def __init__(self, what: str, names: Sequence[str], first: int = 0) -> None:
        self._confusion = Confusion(what, names, first)

    def add(self, values: NDArray[Any], reference: NDArray[Any], valid: BoolArray) -> None:
        """Take the next rows; raises `ReadError` for what is no class."""
        self._confusion.add(reference, values, valid)

    def result(self) -> dict[str, Any]:
        """Return the figures; `confusion` has a row for each class of the reference, by name."""
        of, found = self._confusion, self._confusion.result()
        counts, pixels, accuracy = of.counts, found["pixels"], found["accuracy"]
        true, made = counts.sum(axis=1), counts.sum(axis=0)
        there = {name: of.names.index(name) for name in found["classes"]}
        each = {
            n: {"iou": found["classes"][n]} | _class(int(counts[c, c]), int(true[c]), int(made[c]))
            for n, c in there.items()
        }
        expected = float((true / max(pixels, 1)) @ (made / max(pixels, 1)))
        return found | {
            "f1": _mean([one["f1"] for one in each.values()]),
            "kappa": (accuracy - expected) / (1 - expected) if pixels and expected < 1 else None,
            "classes": each,
            "confusion": {a: {b: int(counts[c, d]) for b, d in there.items()} for a, c in there.items()},
        }


def _class(right: int, true: int, found: int) -> dict[str, float | None]:
    return {
        "f1": 2 * right / (true + found),
        "precision": right / found if found else None,
        "recall": right / true if true else None,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


class Joint:
    """How often the reference and the product have which values: counts `(bins, bins)` of each band, within mean +- 4 std."""

    BINS = 200
    REACH = 4

    def __init__(self, modality: Modality, moments: tuple[Sequence[float], Sequence[float]]) -> None:
        self.bands = modality.bands
        self.limits = [(mean - self.REACH * std, mean + self.REACH * std) for mean, std in zip(*moments, strict=True)]
        self.counts = np.zeros((len(self.bands), self.BINS, self.BINS), np.int64)

    def add(self, values: NDArray[Any], reference: NDArray[Any], valid: BoolArray) -> None:
        """Take the next rows; values beyond the limits are left out."""
        for i, limits in enumerate(self.limits):
            found, _, _ = np.histogram2d(reference[i][valid], values[i][valid], self.BINS, [limits, limits])
            self.counts[i] += found.astype(np.int64)


class Codes:
    """Agreement of tokens: the share of cells whose codes are equal."""

    def __init__(self) -> None:
        self._cells = self._equal = 0

    def add(self, values: NDArray[Any], reference: NDArray[Any], valid: BoolArray) -> None:
        """Take the next rows."""
        self._cells += int(valid.sum())
        self._equal += int((values[0] == reference[0])[valid].sum())

    def result(self) -> dict[str, Any]:
        """Return the number of cells and the share that agrees."""
        return {"cells": self._cells, "agreement": self._equal / self._cells if self._cells else None}


class Vectors:
    """Agreement of embeddings: the mean and the least cosine of the angle between vectors of a cell."""

    def __init__(self) -> None:
        self._cells, self._sum, self._least = 0, 0.0, 1.0

    def add(self, values: NDArray[Any], reference: NDArray[Any], valid: BoolArray) -> None:
        """Take the next rows."""
        x, y = (band[:, valid].astype(np.float64) for band in (values, reference))
        length = np.linalg.norm(x, axis=0) * np.linalg.norm(y, axis=0)
        cosine = (x * y).sum(axis=0)[length > 0] / length[length > 0]
        if cosine.size:
            self._cells += cosine.size
            self._sum += float(cosine.sum())
            self._least = min(self._least, float(cosine.min()))

    def result(self) -> dict[str, Any]:
        """Return the number of cells, and their cosines."""
        known = self._cells > 0
        return {
            "cells": self._cells,
            "cosine": self._sum / self._cells if known else None,
            "least_cosine": self._least if known else None,
        }


def text(found: Mapping[str, Any], unit: str = "") -> str:
    """Return figures as a table under a line of totals. `-` is no figure."""
    if "bands" in found:
        return _bands_text(found, unit)
    if "classes" in found:
        return _classes_text(found)
    if "agreement" in found:
        return f"{found['cells']} cells, {fixed(found['agreement'], 4)} of them with the same code"
    return f"{found['cells']} cells, mean cosine {fixed(found['cosine'], 4)}, least {fixed(found['least_cosine'], 4)}"


def worst_text(tiles: Sequence[Mapping[str, Any]], unit: str = "", most: int = 10) -> str:
    """Return a table of the tiles that agree least, under a line that says by which figure; those of bands are means over them.

    Each of `tiles` has `tile_row`, `tile_col`, `window` and what a measure found of it.
    """
    known = []
    for tile in tiles:
        figures = _over_all(tile)
        first = next(iter(figures))
        if (value := figures[first]) is not None:
            known.append((value, tile, figures))
    if not known:
        return f"{len(tiles)} tiles, none with pixels that are valid in both"
    bands: Mapping[str, Any] = known[0][1].get("bands", {})
    counted = "pixels" if "pixels" in known[0][1] else "cells"
    ranked = sorted(known, key=lambda one: one[0], reverse=bool(bands))[:most]
    digits, named = decimals(ranked[0][0]), f" {unit}" if unit not in ("", "1") else ""
    heads = (f"{name}{named}" if name in _IN_UNITS else name for name in ranked[0][2])
    rows = [("tile row, column", "window", counted, *heads)]
    for _, tile, figures in ranked:
        numbers = (fixed(value, digits if name in _IN_UNITS else 4) for name, value in figures.items())
        where = f"{tile['tile_row']}, {tile['tile_col']}", ",".join(map(str, tile["window"]))
        rows.append((*where, str(tile[counted]), *numbers))
    over = ", mean over the bands" if len(bands) > 1 else ""
    head = f"{len(tiles)} tiles, {len(known)} with {counted} that are valid in both; worst by {first}{over}:"
    return "\n".join([head, *aligned(rows)])


_IN_UNITS = ("RMSE", "MAE", "bias")


def _over_all(found: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the figures that say how a whole agrees, the one first by which it is ranked; of bands their means."""
    if "bands" in found:
        keys = {"RMSE": "rmse", "MAE": "mae", "bias": "bias", "r": "r", "SSIM": "ssim"}
        return {name: _mean([band[key] for band in found["bands"].values()]) for name, key in keys.items()}
    if "classes" in found:
        return {name: found[key] for name, key in _TOTALS}
    if "agreement" in found:
        return {"same code": found["agreement"]}
    return {"mean cosine": found["cosine"], "least": found["least_cosine"]}


def _bands_text(found: Mapping[str, Any], unit: str) -> str:
    bands = found["bands"]
    digits = decimals(max((band["rmse"] or 0 for band in bands.values()), default=0))
    named = f" {unit}" if unit not in ("", "1") else ""
    rows: list[tuple[str, ...]] = [
        ("band", f"bias{named}", f"MAE{named}", f"RMSE{named}", "r", "PSNR dB", "SSIM", f"gradient RMSE{named}")
    ]
    for name, band in bands.items():
        errors = (fixed(band[key], digits) for key in ("bias", "mae", "rmse"))
        psnr = "inf" if band["rmse"] == 0 else fixed(band["psnr"], 1)
        rows.append(
            (name, *errors, fixed(band["r"], 3), psnr, fixed(band["ssim"], 3), fixed(band["gradient_rmse"], digits))
        )
    return "\n".join([f"{found['pixels']} pixels", *aligned(rows)])


def _classes_text(found: Mapping[str, Any]) -> str:
    totals = ", ".join(f"{name} {fixed(found[key], 3)}" for name, key in _TOTALS)
    rows: list[tuple[str, ...]] = [("class", "IoU", "F1", "precision", "recall")]
    rows += [
        (name, *(fixed(one[key], 3) for key in ("iou", "f1", "precision", "recall")))
        for name, one in found["classes"].items()
    ]
    return "\n".join([f"{found['pixels']} pixels, {totals}", *aligned(rows if len(rows) > 1 else [])])


_TOTALS = (("accuracy", "accuracy"), ("mIoU", "miou"), ("F1", "f1"), ("kappa", "kappa"))
