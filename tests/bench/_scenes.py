"""Rasters to measure on: real chips where they lie beside the repository, else parts of the shipped sample."""

import os
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.windows import Window

from tmtool.grid import FloatArray

ROOT = Path(__file__).resolve().parents[2]
CHIPS = Path(os.environ.get("BENCH_CHIPS") or ROOT.parent / "shared" / "data" / "terramind_examples" / "S2L2A")
SAMPLE = ROOT / "samples" / "demo_scene.tif"
SAMPLE_CORNERS = ((32, 32), (32, 288), (288, 96))
"""Rows and columns of parts of the sample, 224 px a side, that have data everywhere."""


def chips() -> list[FloatArray]:
    """Return Sentinel-2 chips `(12, 224, 224)` float32, DN; `origin` says where they are from."""
    found: list[FloatArray] = []
    for path in sorted(CHIPS.glob("*.tif")):
        with rasterio.open(path) as src:
            found.append(src.read().astype(np.float32))
    if found:
        return found
    with rasterio.open(SAMPLE) as src:
        return [src.read(window=Window(col, row, 224, 224)).astype(np.float32) for row, col in SAMPLE_CORNERS]


def origin() -> str:
    """Say what `chips` gives."""
    return "real chips" if any(CHIPS.glob("*.tif")) else "parts of the synthetic sample"


def tile(size: int) -> FloatArray:
    """Return one tile `(1, 12, size, size)` float32, DN: the first chip, mirrored."""
    chip = _mirrored(chips()[0])
    index = np.arange(size) % chip.shape[1]
    return chip[None][:, :, index][:, :, :, index]


def make_scene(folder: Path, height: int, width: int) -> Path:
    """Write a Sentinel-2 scene of 12 bands of int16 (deflate, blocks of 512 px) a strip at a time, or find it there.

    It is the first chip, mirrored without a jump at its edges, with a slow drift of brightness: no two places are alike.
    """
    path = folder / f"scene_{height}x{width}.tif"
    if path.exists():
        return path
    chip = _mirrored(chips()[0])
    period, cols = chip.shape[1], np.arange(width)
    profile = {"count": 12, "height": height, "width": width, "dtype": "int16", "crs": "EPSG:32719"}
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "bigtiff": "if_safer"}
    transform = Affine(10, 0, 399_960, 0, -10, 6_300_040)
    part = folder / f"part-{os.getpid()}.tif"
    with rasterio.open(part, "w", driver="GTiff", transform=transform, **profile, **layout) as dst:
        for top in range(0, height, 512):
            rows = np.arange(top, min(top + 512, height))
            drift = 1 + 0.1 * np.sin(rows / 1700)[:, None] * np.cos(cols / 2300)[None]
            strip = chip[:, rows % period][:, :, cols % period] * drift
            dst.write(strip.astype(np.int16), window=Window(0, top, width, len(rows)))
    part.rename(path)
    return path


def _mirrored(chip: FloatArray) -> FloatArray:
    """Continue a chip to twice its size, so that it can be repeated without a jump."""
    chip = np.concatenate([chip, chip[:, ::-1]], axis=1)
    return np.concatenate([chip, chip[:, :, ::-1]], axis=2)
