"""Measures of a product equal those of whole arrays, however the rows are cut."""

import json
import math
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tests.specs import moments_of
from tmtool.errors import ReadError
from tmtool.modality import MODALITIES, Modality
from tmtool.products.metrics import CodeUse, Comparison, code_use_text, comparison_text

S1, S2, NDVI, LULC = (MODALITIES[name] for name in ("S1GRD", "S2L2A", "NDVI", "LULC"))


def cuts(height: int, seed: int) -> Iterator[slice]:
    """Strips of 1 to 40 rows; strips of one row for seed 0, one strip for seed 1."""
    rng = np.random.default_rng(seed)
    row = 0
    while row < height:
        step = {0: 1, 1: height}.get(seed, int(rng.integers(1, 41)))
        yield slice(row, row + step)
        row += step


def compare(modality: Modality, reference: Any, values: Any, valid: Any = None, seed: int = 1) -> dict[str, Any]:
    valid = np.ones(reference.shape[1:], bool) if valid is None else valid
    comparison = Comparison(modality, reference.shape[2], moments_of(modality.name)[1])
    for rows in cuts(reference.shape[1], seed):
        comparison.add(reference[:, rows], values[:, rows], valid[rows])
    comparison.finish()
    result: dict[str, Any] = json.loads(json.dumps(comparison.result(), allow_nan=False))
    return result


def pair(modality: Modality, height: int, width: int, seed: int = 0) -> tuple[Any, Any]:
    """A smooth scene in the modality's unit and a noisy copy of it, float32."""
    rng = np.random.default_rng(seed)
    mean, std = (np.array(v)[:, None, None] for v in moments_of(modality.name))
    wave = np.sin(np.arange(height) / 5)[:, None] * np.cos(np.arange(width) / 7)
    reference = mean + std * (0.4 * wave + 0.1 * rng.standard_normal((len(modality.bands), height, width)))
    values = reference + 0.1 * std * rng.standard_normal(reference.shape)
    return reference.astype(np.float32), values.astype(np.float32)


def ssim_with_holes(x: Any, y: Any, valid: Any, data_range: float) -> float | None:
    """SSIM from its definition, a window at a time."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    found = []
    windows = [sliding_window_view(a, (7, 7)).reshape(-1, 49) for a in (x.astype(float), y.astype(float), valid)]
    for a, b, whole in zip(*windows, strict=True):
        if whole.all():
            (vx, vxy), (_, vy) = np.cov(a, b)
            ux, uy = a.mean(), b.mean()
            found.append((2 * ux * uy + c1) * (2 * vxy + c2) / ((ux**2 + uy**2 + c1) * (vx + vy + c2)))
    return float(np.mean(found)) if found else None


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("modality", [S1, NDVI])
def test_whole_rasters_agree_with_skimage(modality: Modality, seed: int) -> None:
    reference, values = pair(modality, 151, 83)
    result = compare(modality, reference, values, seed=seed)
    assert result["pixels"] == 151 * 83
    assert list(result["bands"]) == list(modality.bands)
    for x, y, std, found in zip(reference, values, moments_of(modality.name)[1], result["bands"].values(), strict=True):
        x, y = x.astype(np.float64), y.astype(np.float64)
        assert found["mae"] == pytest.approx(abs(x - y).mean(), rel=1e-12)
        assert found["rmse"] == pytest.approx(math.sqrt(((x - y) ** 2).mean()), rel=1e-12)
        assert found["psnr"] == pytest.approx(peak_signal_noise_ratio(x, y, data_range=6 * std), rel=1e-12)
        assert found["ssim"] == pytest.approx(structural_similarity(x, y, data_range=6 * std), rel=1e-9)
        assert 0.1 < found["ssim"] < 0.99


@pytest.mark.parametrize("values_type", [np.uint16, np.float32])
def test_integers_do_not_wrap(values_type: type) -> None:
    reference, values = (np.rint(a).clip(1, 65535) for a in pair(S2, 40, 30))
    reference[:, 0, 0], values[:, 0, 0] = 65535, 1
    result = compare(S2, reference.astype(np.uint16), values.astype(values_type), seed=2)
    for i, found in enumerate(result["bands"].values()):
        x, y = reference[i].astype(np.float64), values[i].astype(np.float64)
        assert found["mae"] == pytest.approx(abs(x - y).mean(), rel=1e-12)
        assert found["rmse"] == pytest.approx(math.sqrt(((x - y) ** 2).mean()), rel=1e-12)
        assert found["ssim"] == pytest.approx(
            structural_similarity(x, y, data_range=6 * moments_of("S2L2A")[1][i]), rel=1e-9
        )


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("hole", [np.nan, -9999.0, 3e38])
def test_holes_are_left_out(hole: float, seed: int) -> None:
    reference, values = pair(S1, 90, 41)
    valid = np.random.default_rng(seed).random((90, 41)) > 0.01
    valid[30:45, :20] = False
    reference[:, ~valid] = hole
    values[:, ~valid] = np.nan
    result = compare(S1, reference, values, valid, seed)
    assert result["pixels"] == valid.sum()
    for x, y, std, found in zip(reference, values, moments_of("S1GRD")[1], result["bands"].values(), strict=True):
        difference = x[valid].astype(np.float64) - y[valid]
        assert found["mae"] == pytest.approx(abs(difference).mean(), rel=1e-12)
        assert found["rmse"] == pytest.approx(math.sqrt((difference**2).mean()), rel=1e-12)
        assert found["ssim"] == pytest.approx(ssim_with_holes(x, y, valid, 6 * std), rel=1e-9)


@pytest.mark.parametrize("shape", [(1, 1), (5, 300), (300, 6), (6, 6)])
def test_rasters_too_small_for_a_window_have_no_ssim(shape: tuple[int, int]) -> None:
    reference, values = pair(NDVI, *shape)
    for seed in (0, 1, 2):
        found = compare(NDVI, reference, values, seed=seed)["bands"]["NDVI"]
        assert found["ssim"] is None
        assert found["mae"] == pytest.approx(abs(reference.astype(np.float64) - values).mean(), rel=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_one_window_is_enough(seed: int) -> None:
    reference, values = pair(NDVI, 7, 7)
    x, y = reference[0].astype(np.float64), values[0].astype(np.float64)
    found = compare(NDVI, reference, values, seed=seed)["bands"]["NDVI"]
    assert found["ssim"] == pytest.approx(
        structural_similarity(x, y, data_range=6 * moments_of("NDVI")[1][0]), rel=1e-9
    )


def test_nothing_valid() -> None:
    reference, values = pair(S1, 20, 20)
    result = compare(S1, reference, values, np.zeros((20, 20), bool))
    assert result == {"pixels": 0, "bands": dict.fromkeys(S1.bands, dict.fromkeys(("mae", "rmse", "psnr", "ssim")))}
    assert comparison_text(result, S1).splitlines()[2].split() == ["VV", "-", "-", "-", "-"]


def test_perfect_agreement() -> None:
    reference, _ = pair(S1, 20, 20)
    result = compare(S1, reference, reference, seed=2)
    for found in result["bands"].values():
        assert found == {"mae": 0, "rmse": 0, "psnr": None, "ssim": pytest.approx(1)}
    assert comparison_text(result, S1).splitlines()[2].split() == ["VV", "0", "0", "inf", "1.000"]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_classes_agree_with_brute_force(dtype: type, seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference = rng.choice([0, 1, 2, 4, 9], (1, 50, 37))
    values = np.where(rng.random(reference.shape) < 0.6, reference, rng.choice([0, 2, 4, 5], reference.shape))
    valid = rng.random((50, 37)) > 0.1
    result = compare(LULC, reference.astype(dtype), values.astype(np.uint8), valid, seed)
    x, y = (a[0][valid & (reference[0] != 0)] for a in (reference, values))
    ious = {LULC.classes[c][0]: ((x == c) & (y == c)).sum() / ((x == c) | (y == c)).sum() for c in (1, 2, 4, 5, 9)}
    assert result["pixels"] == x.size
    assert result["accuracy"] == pytest.approx((x == y).mean())
    assert result["classes"] == pytest.approx(ious)
    assert result["classes"]["built area"] == 0  # only in the reconstruction
    assert result["miou"] == pytest.approx(np.mean(list(ious.values())))


def test_no_class_to_compare() -> None:
    result = compare(LULC, np.zeros((1, 4, 4)), np.ones((1, 4, 4)))
    assert result == {"pixels": 0, "accuracy": None, "miou": None, "classes": {}}
    assert comparison_text(result, LULC) == "0 pixels, accuracy -, mIoU -"


@pytest.mark.parametrize("strange", [11, -1, 2.5])
def test_codes_that_are_no_classes_are_refused(strange: float) -> None:
    comparison = Comparison(LULC, 2, ())
    classes, other = np.ones((1, 1, 2)), np.array([[[1, strange]]])
    comparison.add(other, classes, np.array([[True, False]]))
    with pytest.raises(ReadError, match=f"LULC: found class {strange:g} .* 0-9"):
        comparison.add(other, classes, np.ones((1, 2), bool))


def test_code_use_of_known_cells() -> None:
    use = CodeUse("8-8-8-6-5", 12, 16)
    tokens = np.array([[[0, 0, 15359], [7, 7, 65535]]], np.uint16)
    valid = np.array([[True, True, True], [True, False, False]])
    for row in (0, 1):
        use.add(tokens[:, row : row + 1], valid[row : row + 1])
    result = json.loads(json.dumps(use.result(), allow_nan=False))
    assert result == {
        "cells": 4,
        "codes_used": 3,
        "codebook": 15360,
        "perplexity": pytest.approx(2**1.5),  # frequencies 1/2, 1/4, 1/4: entropy 1.5 bits
        "bits_per_pixel": pytest.approx(13.90689 / 256, rel=1e-6),
        "ratio": pytest.approx(12 * 16 * 256 / 13.90689, rel=1e-6),
    }
    assert code_use_text(result) == (
        "4 cells, 3 of 15360 codes used, perplexity 2.8, 0.054 bits per pixel, 3534 times smaller than the input"
    )


def test_code_use_of_even_codes_and_of_none() -> None:
    use = CodeUse("2-4", 1, 8)
    assert use.result()["perplexity"] is None
    assert code_use_text(use.result()) == (
        "0 cells, 0 of 8 codes used, 0.012 bits per pixel, 683 times smaller than the input"
    )
    use.add(np.arange(8, dtype=np.uint16).reshape(1, 2, 4), np.ones((2, 4), bool))
    assert use.result()["perplexity"] == pytest.approx(8)
    assert use.result()["ratio"] == pytest.approx(8 * 256 / 3)


def test_a_code_beyond_the_codebook_is_an_error() -> None:
    use = CodeUse("2-4", 1, 8)
    with pytest.raises(ValueError, match="code 8 in a codebook of 8"):
        use.add(np.array([[[8]]], np.uint16), np.ones((1, 1), bool))


def test_text_is_aligned() -> None:
    found = {"mae": 0.98765, "rmse": 1.23456, "psnr": 28.05, "ssim": 0.71249}
    text = comparison_text({"pixels": 50176, "bands": {"VV": found, "VH": found | {"mae": 12.0, "rmse": 34.5678}}}, S1)
    assert text.splitlines() == [
        "50176 pixels",
        "band  MAE dB  RMSE dB  PSNR dB   SSIM",
        "VV       1.0      1.2     28.1  0.712",
        "VH      12.0     34.6     28.1  0.712",
    ]
    classes = {"water": 0.75, "flooded vegetation": 0.0}
    text = comparison_text({"pixels": 9, "accuracy": 0.5, "miou": 0.375, "classes": classes}, LULC)
    assert text.splitlines() == [
        "9 pixels, accuracy 0.500, mIoU 0.375",
        "class                 IoU",
        "water               0.750",
        "flooded vegetation  0.000",
    ]


def test_memory_does_not_grow_with_height_nor_with_tall_strips() -> None:
    reference, values = pair(S1, 1024, 64)
    valid = np.ones((1024, 64), bool)

    def peak(repeats: int, height: int) -> int:
        comparison = Comparison(S1, 64, moments_of("S1GRD")[1])
        tracemalloc.start()
        try:
            for i in range(repeats):
                rows = slice(i * height % 1024, i * height % 1024 + height)
                comparison.add(reference[:, rows], values[:, rows], valid[rows])
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1, 64)  # imports
    low = peak(2, 64)
    assert peak(200, 64) < 1.1 * low
    assert peak(4, 1024) < 1.1 * low
