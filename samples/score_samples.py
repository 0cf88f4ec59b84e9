"""Calibration of `--samples` with the demo model on held-out synthesised scenes.

Run ``python samples/score_samples.py``; it prints a table. Each scene is generated as `tmtool generate --samples N` does it, and held
against the truth: how often it lies within two standard deviations of the mean, and of land cover how sure the likeliest class is.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import xarray as xr

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tmtool
from samples.score_demo import HELD_OUT_SEED, SCENE_PX
from samples.synthesis import S2_BANDS, synthesise


def score(scenes: int, samples: int) -> dict[str, float]:
    """Return the scores of so many scenes, each of so many draws."""
    within: dict[str, list[float]] = {}
    for index in range(scenes):
        truth = synthesise(HELD_OUT_SEED + index, SCENE_PX, SCENE_PX)
        s2 = xr.DataArray(truth["S2L2A"], {"band": list(S2_BANDS)}, ("band", "y", "x"))
        made = tmtool.generate(
            s2, ["S1GRD", "NDVI", "LULC"], modality="S2L2A", model="demo", samples=samples, solver="dpm"
        )
        references = {"S1GRD": truth["S1GRD_truth"], "NDVI": truth["NDVI"]}
        for name, real in references.items():
            mean, std = made[name].values.reshape(real.shape), made[f"{name}_std"].values.reshape(real.shape)
            error = np.abs(real - mean)
            within.setdefault(f"{name}: truth within mean +- 2 std", []).append(float((error <= 2 * std).mean()))
            within.setdefault(f"{name}: rms error / rms std", []).append(
                float(np.sqrt((error**2).mean() / (std**2).mean()))
            )
            within.setdefault(f"{name}: r of error and std", []).append(
                float(np.corrcoef(error.ravel(), std.ravel())[0, 1])
            )
        probability = made["LULC_prob"].values
        right = made["LULC"].values == truth["LULC"][0]
        within.setdefault("LULC: accuracy", []).append(float(right.mean()))
        within.setdefault("LULC: mean probability of the likeliest class", []).append(
            float(probability.max(axis=0).mean())
        )
        entropy = made["LULC_entropy"].values.reshape(right.shape)
        within.setdefault("LULC: entropy (nat) where right", []).append(float(entropy[right].mean()))
        within.setdefault("LULC: entropy (nat) where wrong", []).append(float(entropy[~right].mean()))
    return {name: float(np.mean(values)) for name, values in within.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--samples", type=int, default=8)
    args = parser.parse_args()
    print("| score | value |\n| --- | ---: |")
    for name, value in score(args.scenes, args.samples).items():
        print(f"| {name} | {value:.3f} |")


if __name__ == "__main__":
    main()
