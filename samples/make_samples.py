"""(Re)write ``demo_scene.tif``: a synthesised Sentinel-2 L2A scene for examples and tests.

Run ``python samples/make_samples.py``; the file comes out byte for byte the same on every run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.transform import Affine

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from samples.synthesis import PIXEL_M, S2_BANDS, synthesise

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEED = 3
# Neither side is a multiple of 16, so padding and cropping show up in tests.
HEIGHT, WIDTH = 618, 707
EPSG = 32719
ORIGIN = (347_830.0, 6_284_470.0)
NODATA = 0


def demo_world() -> dict[str, Any]:
    """Fields of the demo scene's world: every kind of land in one scene, sun from the north-east."""
    return {
        "green": 0.62,
        "broadleaf": 0.7,
        "tree_share": 0.24,
        "crop_share": 0.42,
        "bare_share": 0.12,
        "base_m": 420.0,
        "relief_m": 620.0,
        "rivers": 1,
        "river_px": 12.0,
        "lake_share": 0.03,
        "wetland_px": 8.0,
        "turbidity": 0.4,
        "towns": 2,
        "town_px": 44.0,
        "snow_share": 0.0,
        "cloud_share": 0.035,
        "cloud_shift_px": 30.0,
        "sun_azimuth": 48.0,
        "sun_zenith": 42.0,
        "haze": 0.25,
        "parcel_px": 24.0,
        "bare_kind": "rock",
        "soil_kind": "loam",
    }


def swath_edge(height: int, width: int) -> NDArray[np.bool_]:
    """Mask (H, W) of the pixels beyond a swath's slanted edge: a wedge in the lower right corner."""
    rows, columns = np.mgrid[0:height, 0:width]
    return columns > width - 0.21 * (rows - 0.45 * height)


def write_scene(path: Path) -> None:
    """Write the demo scene: 12 bands int16 digital numbers, nodata 0, 10 m pixels in UTM zone 19 South."""
    s2 = synthesise(SEED, HEIGHT, WIDTH, **demo_world())["S2L2A"]
    s2 = np.where(swath_edge(HEIGHT, WIDTH), np.int16(NODATA), np.maximum(s2, 1))
    profile = {
        "driver": "GTiff",
        "height": HEIGHT,
        "width": WIDTH,
        "count": len(S2_BANDS),
        "dtype": "int16",
        "nodata": NODATA,
        "crs": CRS.from_epsg(EPSG),
        "transform": Affine(PIXEL_M, 0.0, ORIGIN[0], 0.0, -PIXEL_M, ORIGIN[1]),
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "compress": "deflate",
        "predictor": 2,
        "zlevel": 9,
        "interleave": "band",
    }
    with rasterio.open(path, "w", **profile) as target:
        target.write(s2.astype(np.int16))
        for index, name in enumerate(S2_BANDS, start=1):
            target.set_band_description(index, name)


def main() -> None:
    """Write the demo scene beside this script, or to the folder given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="folder to write into")
    path = parser.parse_args().out / "demo_scene.tif"
    write_scene(path)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
