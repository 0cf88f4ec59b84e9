"""How long a picture of a product as large as a Sentinel-2 tile takes, beside starting tmtool alone.

python -m tests.bench.preview [--size 10980]
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import rasterio.shutil

from tmtool.provenance import Provenance

KINDS = {"LULC": (1, "uint8"), "S1GRD": (2, "float32"), "S2L2A": (12, "uint16")}


def make(path: Path, kind: str, size: int) -> None:
    """Write a COG with the tags of a product."""
    bands, dtype = KINDS[kind]
    rng = np.random.default_rng(0)
    tile = {
        "LULC": rng.integers(1, 9, (1, 64, 64)),
        "S1GRD": rng.normal(-12, 4, (2, 64, 64)),
        "S2L2A": rng.integers(200, 3000, (12, 64, 64)),
    }
    strip = np.tile(tile[kind], (1, 4, -(-size // 64)))[:, :, :size].astype(dtype)
    work = path.with_suffix(".work.tif")
    options = {
        "crs": "EPSG:32719",
        "transform": rasterio.Affine(10, 0, 3e5, 0, -10, 6.3e6),
        "tiled": True,
        "compress": "zstd",
    }
    with rasterio.open(
        work, "w", driver="GTiff", count=bands, height=size, width=size, dtype=dtype, bigtiff="YES", **options
    ) as dst:
        for row in range(0, size, 256):
            rows = min(256, size - row)
            dst.write(strip[:, :rows], window=rasterio.windows.Window(0, row, size, rows))
        dst.update_tags(**Provenance("generate", "bench").with_details(modality=kind).tags())
    rasterio.shutil.copy(work, path, driver="COG", COMPRESS="ZSTD", BIGTIFF="YES", NUM_THREADS="ALL_CPUS")
    work.unlink()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=10_980)
    options = parser.parse_args()
    print("| product | preview, whole process, s | tmtool --version, s | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            path = Path(folder, f"bench_{kind}.tif")
            make(path, kind, options.size)
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "tmtool", "preview", str(path)], check=True, capture_output=True)
            shown = time.perf_counter() - start
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "tmtool", "--version"], check=True, capture_output=True)
            alone = time.perf_counter() - start
            print(f"| {kind} | {shown:.2f} | {alone:.2f} | {shown / alone:.1f} |", flush=True)
            path.unlink()


if __name__ == "__main__":
    main()
