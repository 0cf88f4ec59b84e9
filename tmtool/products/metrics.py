"""Measurements of a product, taken while its rows stream by: their memory does not grow with the raster's height."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmtool.errors import ReadError
from tmtool.grid import BoolArray
from tmtool.modality import TOKEN_PX, Modality

RANGE_STDS = 6
"""Data range of PSNR and SSIM, in pretraining standard deviations of the band: the same for every raster of a modality."""

_SIDE = 7  # of SSIM's window, in px
_PIECE = 64  # rows looked at in one go: SSIM needs about a dozen float64 arrays of that height


class Comparison:
    """How well a reconstruction agrees with its input.

    Call `add` for all strips of a raster `width` px wide, then `finish`, then `result`. The data range of PSNR and SSIM
    is 6 of the band's `stds`, those that the model was trained on, so that figures of different rasters can be compared.
    """

    def __init__(self, modality: Modality, width: int, stds: Sequence[float]) -> None:
        names = [name for name, _ in modality.classes]
        self._measure = Confusion(modality.name, names, 1) if names else _Errors(modality, width, stds)

    def add(self, reference: NDArray[Any], values: NDArray[Any], valid: BoolArray) -> None:
        """Take the next rows: input and reconstruction `(bands, h, W)` in the modality's unit, validity `(h, W)`.

        Both must be finite where `valid`; elsewhere they may hold anything. For classes both are `(1, h, W)` class ids;
        raises `ReadError` if one of them is no class of the modality.
        """
        self._measure.add(reference, values, valid)

    def finish(self) -> None:
        """Let go of the rows that were kept for the strips to come: there are none."""
        self._measure.finish()

    def result(self) -> dict[str, Any]:
        """Return what was found, ready for JSON; a figure that does not exist is None.

        Quantities: `pixels` (valid ones) and for each of `bands` `mae` and `rmse` in the modality's unit, `psnr` in dB
        (None too where agreement is perfect, as infinity is not JSON) and `ssim`, scikit-image's default (7 x 7 px,
        uniform, sample covariance), averaged over the windows that lie inside the raster and hold valid pixels only
        (None if there are none).

        Classes: `pixels` (valid ones whose class in the input is not 0, no data), `accuracy`, `miou` and the IoU of each
        of `classes`: those that occur in the input or the reconstruction. No data is none of them, so a pixel that is
        reconstructed as no data is an error of its own class only.
        """
        return self._measure.result()


class _Errors:
    """A comparison of quantities."""

    def __init__(self, modality: Modality, width: int, stds: Sequence[float]) -> None:
        bands = len(modality.bands)
        self._modality = modality
        self._ranges = [RANGE_STDS * std for std in stds]
        self._pixels = self._windows = 0
        self._absolute, self._squared, self._ssim = np.zeros((3, bands))
        # The last 6 rows: reference, values, valid. float32 holds 16 bit integers exactly and gives way to float64.
        rows = np.empty((bands, 0, width), np.float32)
        self._above: tuple[NDArray[Any], NDArray[Any], BoolArray] = (rows, rows, np.empty((0, width), np.bool_))

    def add(self, reference: NDArray[Any], values: NDArray[Any], valid: BoolArray) -> None:
        for row in range(0, len(valid), _PIECE):
            part = slice(row, row + _PIECE)
            self._add_differences(reference[:, part], values[:, part], valid[part])
            self._add_windows(reference[:, part], values[:, part], valid[part])

    def _add_differences(self, reference: NDArray[Any], values: NDArray[Any], valid: BoolArray) -> None:
        self._pixels += int(np.count_nonzero(valid))
        for band in range(len(reference)):
            difference = values[band][valid].astype(np.float64) - reference[band][valid]
            self._absolute[band] += np.abs(difference).sum()
            self._squared[band] += np.square(difference).sum()

    def _add_windows(self, reference: NDArray[Any], values: NDArray[Any], valid: BoolArray) -> None:
        """Add SSIM of the windows that end in these rows."""
        from skimage.metrics import structural_similarity

        reference = np.concatenate([self._above[0], reference], axis=1)
        values = np.concatenate([self._above[1], values], axis=1)
        valid = np.concatenate([self._above[2], valid])
        kept = _SIDE - 1
        self._above = reference[:, -kept:].copy(), values[:, -kept:].copy(), valid[-kept:].copy()
        complete = _complete_windows(valid)
        if not complete.any():
            return
        self._windows += int(np.count_nonzero(complete))
        inside = slice(_SIDE // 2, -(_SIDE // 2))
        for band, data_range in enumerate(self._ranges):
            # Holes become 0: the filter's running sums would carry a NaN or a huge nodata value into windows without it.
            x = np.where(valid, reference[band], 0).astype(np.float64)
            y = np.where(valid, values[band], 0).astype(np.float64)
            _, ssim = structural_similarity(x, y, win_size=_SIDE, data_range=data_range, full=True)
            self._ssim[band] += ssim[inside, inside][complete].sum()

    def finish(self) -> None:
        reference, values, valid = self._above
        self._above = reference[:, :0].copy(), values[:, :0].copy(), valid[:0].copy()

    def result(self) -> dict[str, Any]:
        return {"pixels": self._pixels, "bands": {name: self._band(i) for i, name in enumerate(self._modality.bands)}}

    def _band(self, band: int) -> dict[str, float | None]:
        ssim = float(self._ssim[band]) / self._windows if self._windows else None
        if not self._pixels:
            return {"mae": None, "rmse": None, "psnr": None, "ssim": ssim}
        rmse = math.sqrt(self._squared[band] / self._pixels)
        psnr = 20 * math.log10(self._ranges[band] / rmse) if rmse else None
        return {"mae": float(self._absolute[band]) / self._pixels, "rmse": rmse, "psnr": psnr, "ssim": ssim}


def _complete_windows(valid: BoolArray) -> BoolArray:
    """Return for `(h, W)` which of the `(h - 6, W - 6)` windows hold valid pixels only; without any, an empty array."""
    if min(valid.shape) < _SIDE:
        return np.empty((0, 0), np.bool_)
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(valid, _SIDE, axis=axis)
        valid = np.logical_and.reduce(windows, axis=-1)
    return valid


class Confusion:
    """A comparison of classes: `counts[c, d]` is how many pixels of class c the product has as d.

    `names` are those of the classes 0, 1, ... of `what`; with `first` 1 a reference of class 0 is no data.
    """

    def __init__(self, what: str, names: Sequence[str], first: int = 0) -> None:
        self.what, self.names, self.first = what, tuple(names), first
        self.counts = np.zeros((len(names), len(names)), np.int64)

    def add(self, reference: NDArray[Any], values: NDArray[Any], valid: BoolArray) -> None:
        """Take the next rows; raises `ReadError` for what is no class."""
        scored = valid & (reference[0] != 0) if self.first else valid
        n = len(self.counts)
        pairs = self._ids(reference[0][scored]) * n + self._ids(values[0][scored])
        self.counts += np.bincount(pairs, minlength=n * n).reshape(n, n)

    def _ids(self, values: NDArray[Any]) -> NDArray[np.int64]:
        ids = values.astype(np.int64)
        strange = values[(ids != values) | (ids < 0) | (ids >= len(self.counts))]
        if strange.size:
            raise ReadError(
                f"{self.what}: found class {strange[0]:g} while comparing it, but classes are "
                f"0-{len(self.counts) - 1}. Remap the input's codes."
            )
        return ids

    def finish(self) -> None:
        """Do nothing: no rows are kept."""

    @property
    def ious(self) -> dict[str, float]:
        """The IoU of each class that occurs in either, by name."""
        right = self.counts.diagonal()
        either = self.counts.sum(axis=0) + self.counts.sum(axis=1) - right
        return {
            name: int(right[c]) / int(either[c]) for c, name in enumerate(self.names) if c >= self.first and either[c]
        }

    def result(self) -> dict[str, Any]:
        """Return pixels, accuracy, mIoU and the IoU of each class, ready for JSON."""
        pixels, right, ious = int(self.counts.sum()), int(self.counts.trace()), self.ious
        return {
            "pixels": pixels,
            "accuracy": right / pixels if pixels else None,
            "miou": sum(ious.values()) / len(ious) if ious else None,
            "classes": ious,
        }


class CodeUse:
    """What a token raster holds, and how small it is beside its input.

    `codebook` has the levels of each digit ("8-8-8-6-5"); their product is the vocabulary. The input has `bands` bands
    of `bits_per_band` bits.
    """

    def __init__(self, codebook: str, bands: int, bits_per_band: int) -> None:
        vocabulary = math.prod(int(levels) for levels in codebook.split("-"))
        self._counts = np.zeros(vocabulary, np.int64)
        self._input_bits = bands * bits_per_band

    def add(self, tokens: NDArray[Any], valid: BoolArray) -> None:
        """Take cells `(1, h, W)` of integers, codes where `valid` `(h, W)`. Raises `ValueError` if one is no code."""
        counts = np.bincount(tokens[0][valid], minlength=len(self._counts))
        if len(counts) > len(self._counts):
            raise ValueError(f"code {len(counts) - 1} in a codebook of {len(self._counts)}")
        self._counts += counts

    def result(self) -> dict[str, Any]:
        """Return what was found, ready for JSON.

        `cells` (valid ones), `codes_used` (different codes among them), `codebook` (the vocabulary) and `perplexity`: exp
        of the entropy of the codes' frequencies in nats, the number of equally frequent codes that would vary as much
        (None without valid cells). `bits_per_pixel` is log2(vocabulary) bits a token over its 16 x 16 px, as if all codes
        were equally frequent: what an entropy coder would save is not counted, nor that the last cells may cover less.
        `ratio` is the input's bits per pixel, uncompressed, over that. Both depend on the codebook only, not on the cells.
        """
        cells = int(self._counts.sum())
        share = self._counts[self._counts > 0] / max(cells, 1)
        bits = math.log2(len(self._counts)) / TOKEN_PX**2
        return {
            "cells": cells,
            "codes_used": len(share),
            "codebook": len(self._counts),
            "perplexity": math.exp(-float((share * np.log(share)).sum())) if cells else None,
            "bits_per_pixel": bits,
            "ratio": self._input_bits / bits,
        }


def comparison_text(result: Mapping[str, Any], modality: Modality) -> str:
    """Return lines for a log: `Comparison.result` of `modality` as a table under a line of totals. `-` is no figure."""
    if "classes" in result:
        head = f"accuracy {fixed(result['accuracy'], 3)}, mIoU {fixed(result['miou'], 3)}"
        rows = [("class", "IoU"), *((name, fixed(iou, 3)) for name, iou in result["classes"].items())]
        return "\n".join([f"{result['pixels']} pixels, {head}", *aligned(rows if result["classes"] else [])])
    unit = "" if modality.unit == "1" else f" {modality.unit}"
    bands: Mapping[str, Mapping[str, float | None]] = result["bands"]
    digits = decimals(max((band["rmse"] or 0 for band in bands.values()), default=0))
    table = [("band", f"MAE{unit}", f"RMSE{unit}", "PSNR dB", "SSIM")]
    for name, band in bands.items():
        errors = fixed(band["mae"], digits), fixed(band["rmse"], digits)
        psnr = "inf" if band["rmse"] == 0 else fixed(band["psnr"], 1)
        table.append((name, *errors, psnr, fixed(band["ssim"], 3)))
    return "\n".join([f"{result['pixels']} pixels", *aligned(table)])


def code_use_text(result: Mapping[str, Any]) -> str:
    """Return `CodeUse.result` as one line for a log."""
    said = [f"{result['cells']} cells", f"{result['codes_used']} of {result['codebook']} codes used"]
    if result["perplexity"] is not None:
        said.append(f"perplexity {result['perplexity']:.1f}")
    said += [f"{result['bits_per_pixel']:.3f} bits per pixel", f"{result['ratio']:.0f} times smaller than the input"]
    return ", ".join(said)


def fixed(value: float | None, decimals: int) -> str:
    """Return a figure with so many decimals; `-` if there is none."""
    return "-" if value is None else f"{value:.{decimals}f}"


def decimals(largest: float) -> int:
    """Return the decimals that show three digits of the largest number of a column."""
    return min(max(2 - math.floor(math.log10(largest)), 0), 6) if largest else 0


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return a table's lines, names to the left and numbers to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for name, *numbers in rows:
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells]))
    return lines
