"""Render the sample scene and its products side by side: `python samples/render_demo.py FOLDER PICTURE.png`.

Reads `demo_scene_{LULC,NDVI,S1GRD}.tif` in FOLDER, as `make demo` writes them.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning

SCENE = Path(__file__).parent / "demo_scene.tif"
GAP_PX = 8


def true_colour(path: Path) -> NDArray[np.uint8]:
    """Return a Sentinel-2 scene's red, green and blue as a picture `(H, W, 3)`."""
    with rasterio.open(path) as src:
        return _stretch(src.read([4, 3, 2]) / 3000, 0, 1)


def _stretch(values: NDArray[np.floating], low: float, high: float) -> NDArray[np.uint8]:
    """Map `(C, H, W)` or `(H, W)` to a picture, nodata black."""
    scaled = np.clip((np.nan_to_num(values, nan=low) - low) / (high - low), 0, 1) ** 0.7 * 255
    bands = scaled if scaled.ndim == 3 else np.repeat(scaled[None], 3, axis=0)
    return bands.transpose(1, 2, 0).astype(np.uint8)


def classes(path: Path) -> NDArray[np.uint8]:
    """Return a land-cover product in its own colours."""
    with rasterio.open(path) as src:
        colours = np.array([src.colormap(1)[i][:3] for i in range(256)], np.uint8)
        return colours[src.read(1)]


def radar(path: Path) -> NDArray[np.uint8]:
    """Return VV, VH and their ratio in dB as red, green and blue."""
    with rasterio.open(path) as src:
        vv, vh = src.read()
    return np.concatenate(
        [_stretch(v[None], *r) for v, r in ((vv, (-25, 0)), (vh, (-32, -5)), (vv - vh, (0, 16)))], axis=2
    )


def ndvi(path: Path) -> NDArray[np.uint8]:
    """Return NDVI from brown over yellow to green."""
    with rasterio.open(path) as src:
        values = src.read(1)
    stops = np.array([[40, 60, 110], [166, 124, 82], [236, 222, 150], [120, 170, 80], [20, 90, 40]], float)
    at = np.clip((np.nan_to_num(values, nan=-1) + 0.2) / 1.1, 0, 1) * (len(stops) - 1)
    picture = np.stack([np.interp(at, range(len(stops)), stops[:, c]) for c in range(3)], axis=-1).astype(np.uint8)
    picture[np.isnan(values)] = 0
    return picture


def side_by_side(panels: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Join pictures of one height, white between them."""
    gap = np.full((panels[0].shape[0], GAP_PX, 3), 255, np.uint8)
    return np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)


def main() -> None:
    """Write the picture."""
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    products = {m: folder / f"demo_scene_{m}.tif" for m in ("LULC", "NDVI", "S1GRD")}
    panels = [true_colour(SCENE), classes(products["LULC"]), ndvi(products["NDVI"]), radar(products["S1GRD"])]
    picture = side_by_side(panels)[::2, ::2]
    target.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        height, width, _ = picture.shape
        with rasterio.open(target, "w", driver="PNG", height=height, width=width, count=3, dtype="uint8") as dst:
            dst.write(picture.transpose(2, 0, 1))
    target.with_name(f"{target.name}.aux.xml").unlink(missing_ok=True)
    print(target)


if __name__ == "__main__":
    main()
