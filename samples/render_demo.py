"""Render the sample scene and its products side by side: `python samples/render_demo.py FOLDER PICTURE.png`.

FOLDER holds the products `demo_scene_*.tif` as the Makefile has them made. The name of PICTURE says which are rendered:
demo.png, tokens.png, embed.png or water.png.
"""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning

SCENE = Path(__file__).parent / "demo_scene.tif"
PATCH_PX = 16
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
    """Return a product of classes in its own colours."""
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


def tokens(path: Path) -> NDArray[np.uint8]:
    """Return a token raster: the first three digits of each code as red, green and blue."""
    with rasterio.open(path) as src:
        codes, valid = src.read(1), src.read_masks(1) > 0
        made = json.loads(src.tags()["TMTOOL_PROVENANCE"])
    levels = [int(n) for n in made["codebook"].split("-")]
    digits = np.stack([codes // np.prod(levels[:i], dtype=int) % levels[i] / (levels[i] - 1) for i in range(3)])
    return _cells(np.where(valid, digits, 0))


def components(path: Path) -> NDArray[np.uint8]:
    """Return embeddings: their first three principal components as red, green and blue, from 2nd to 98th percentile."""
    with rasterio.open(path) as src:
        vectors = src.read().astype(float)
    valid = ~np.isnan(vectors[0])
    centred = vectors[:, valid].T - vectors[:, valid].mean(axis=1)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:3]
    axes *= np.sign(axes[range(3), abs(axes).argmax(axis=1)])[:, None]  # an axis has no direction of its own
    scores = centred @ axes.T
    low, high = np.percentile(scores, [2, 98], axis=0)
    shown = np.zeros((3, *valid.shape))
    shown[:, valid] = np.clip((scores - low) / (high - low), 0, 1).T
    return _cells(shown)


def _cells(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Draw `(3, h, w)` from 0 to 1 on the scene's pixels: the last cells reach beyond it."""
    with rasterio.open(SCENE) as src:
        height, width = src.shape
    pixels = values.repeat(PATCH_PX, axis=1).repeat(PATCH_PX, axis=2)[:, :height, :width]
    return (pixels * 255).astype(np.uint8).transpose(1, 2, 0)


def side_by_side(panels: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Join pictures of one height, white between them."""
    gap = np.full((panels[0].shape[0], GAP_PX, 3), 255, np.uint8)
    return np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)


PICTURES: dict[str, dict[str, Callable[[Path], NDArray[np.uint8]]]] = {
    "demo": {"LULC": classes, "NDVI": ndvi, "S1GRD": radar},
    "tokens": {"S2L2A_tokens": tokens, "S2L2A_rec": true_colour},
    "embed": {"embed_layer1": components, "embed_layer2": components},
    "water": {"pred": classes},
}
"""How each product in a picture is drawn, from left to right after the scene."""


def main() -> None:
    """Write the picture."""
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    products = PICTURES[target.stem]
    panels = [true_colour(SCENE), *(draw(folder / f"demo_scene_{name}.tif") for name, draw in products.items())]
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
