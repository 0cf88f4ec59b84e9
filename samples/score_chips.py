"""Score the demo model on real chips: `python samples/score_chips.py FOLDER`, one folder a modality inside.

Runs `tmtool generate` on every chip of FOLDER/S2L2A and compares with the chips of the same name in LULC, NDVI and
S1RTC. The model has seen synthetic scenes only: these figures say how far that carries, which is not far.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray

OUTPUTS = ("LULC", "NDVI", "S1RTC")


def read(path: Path) -> NDArray[np.float64]:
    """Return a raster's bands `(C, H, W)`."""
    with rasterio.open(path) as src:
        return src.read().astype(float)


def scores(made: Path, real: Path, name: str) -> dict[str, float]:
    """Return the scores of one chip's products in the folder `made` against the chips below `real`."""
    pairs = {m: (read(made / f"{name}_{m}.tif"), read(real / m / f"{name}.tif")) for m in OUTPUTS}
    found = {"LULC accuracy": float((pairs["LULC"][0] == pairs["LULC"][1]).mean())}
    for label, key in (("NDVI", "NDVI"), ("S1RTC VV", "S1RTC")):
        guess, truth = (values[0].ravel() for values in pairs[key])
        known = np.isfinite(guess) & np.isfinite(truth)
        found[f"{label} RMSE"] = float(np.sqrt(np.mean((guess - truth)[known] ** 2)))
        found[f"{label} r"] = float(np.corrcoef(guess[known], truth[known])[0, 1])
    return found


def main() -> None:
    """Print a table."""
    real = Path(sys.argv[1])
    chips = sorted((real / "S2L2A").glob("*.tif"))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tmtool", "generate", *map(str, chips), "--out", ",".join(OUTPUTS)]
        subprocess.run(
            [*command, "--model", "demo", "--temperature", "0", "-q", "-o", folder],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        rows = {chip.stem: scores(Path(folder), real, chip.stem) for chip in chips}
    names = list(next(iter(rows.values())))
    print("| chip | " + " | ".join(names) + " |")
    print("| --- |" + " ---: |" * len(names))
    for chip, found in rows.items():
        print(f"| {chip} | " + " | ".join(f"{found[n]:.2f}" for n in names) + " |")


if __name__ == "__main__":
    main()
