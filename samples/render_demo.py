"""Render the sample scene and its products: `python samples/render_demo.py FOLDER PICTURE.png`.

FOLDER holds the products `demo_scene_*.tif` as the Makefile has them made. The name of PICTURE says what is rendered: the scene and
products side by side (demo.png, tokens.png, embed.png, water.png), or products as `tmtool preview` draws them (gallery_*.png).
"""

import sys
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from samples.make_samples import HEIGHT, SEED, WIDTH, demo_world
from samples.synthesis import synthesise
from tmtool.pictures import Look, Panel, Sheet, preview
from tmtool.pictures.product import drawn, of_modality, read_at
from tmtool.source import pixel_size_m

SCENE = Path(__file__).parent / "demo_scene.tif"
GAP_PX = 8

PICTURES = {
    "demo": ("LULC", "NDVI", "S1GRD"),
    "tokens": ("S2L2A_tokens", "S2L2A_rec"),
    "embed": ("embed_layer1", "embed_layer2"),
    "water": ("pred",),
}
"""The products in a picture, from left to right after the scene."""

GALLERIES = {
    "gallery_scene": (240, ("", "S1GRD", "LULC")),
    "gallery_land": (240, ("DEM", "NDVI", "pred", "prob")),
    "gallery_patches": (320, ("S2L2A_tokens", "S2L2A_rec", "embed_layer2")),
    "gallery_spread": (240, ("S1GRD_std", "LULC_prob", "LULC_entropy", "S1GRD+tiles")),
}
"""The longest side of each panel, and the products, where nothing is the scene; +tiles lays the tiles over one."""

NOT_MADE = {"demo_scene": ("S2L2A", "demo_scene   the sample"), "demo_scene_DEM": ("DEM", "DEM   as synthesised")}
"""What tmtool has not made: its modality, and a title."""


def bare(path: Path) -> NDArray[np.uint8]:
    """Return a raster as a picture of the scene's pixels, `(H, W, 3)`, black where it has no data."""
    read = read_at(path, Look(max(HEIGHT, WIDTH)))
    if path == SCENE:
        colours, _ = of_modality("S2L2A", read.values, read.valid, read.grid, "")
    else:
        colours, _ = drawn(read, path, {})
    cell = -(-WIDTH // read.valid.shape[1])  # of patches the last ones reach beyond the scene
    shown = np.where(read.valid[..., None], colours, 0).repeat(cell, axis=0).repeat(cell, axis=1)
    return np.round(255 * shown[:HEIGHT, :WIDTH]).astype(np.uint8)


def side_by_side(paths: list[Path]) -> Image.Image:
    """Return pictures side by side at half their size, white between them."""
    gap = np.full((HEIGHT, GAP_PX, 3), 255, np.uint8)
    return Image.fromarray(
        np.concatenate([part for path in paths for part in (bare(path), gap)][:-1], axis=1)[::2, ::2]
    )


def write_heights(path: Path) -> None:
    """Write the heights that the scene was synthesised with: the demo model makes none."""
    values = synthesise(SEED, HEIGHT, WIDTH, **demo_world())["DEM"]
    with rasterio.open(SCENE) as scene:
        values[0, scene.read_masks(1) == 0] = np.nan
        profile = scene.profile | {"count": 1, "dtype": "float32", "nodata": np.nan}
    with rasterio.open(path, "w", **profile) as dst:
        dst.write(values)


def sheet(path: Path, size: int) -> Image.Image:
    """Return a raster as `preview` draws it; what tmtool has not made is told of which modality it is."""
    name, _, tiles = path.stem.partition("+")
    path = path.with_stem(name)
    if path.stem not in NOT_MADE:
        return Image.open(preview(path, Look(size, tiles=bool(tiles))))
    modality, title = NOT_MADE[path.stem]
    read = read_at(path, Look(size))
    colours, legend = of_modality(modality, read.values, read.valid, read.grid, "")
    return Sheet(title, (Panel(colours, read.valid, legend),), pixel_size_m(read.grid), True).image()


def gallery(paths: list[Path], size: int) -> Image.Image:
    """Return rasters as `preview` draws them, side by side."""
    sheets = [sheet(path, size) for path in paths]
    joined = Image.new("RGBA", (sum(s.width for s in sheets), max(s.height for s in sheets)), "white")
    left = 0
    for one in sheets:
        joined.paste(one, (left, 0))
        left += one.width
    return joined


def main() -> None:
    """Write the picture."""
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    if target.stem in GALLERIES:
        size, names = GALLERIES[target.stem]
        paths = [folder / f"demo_scene_{name}.tif" if name else SCENE for name in names]
        if "DEM" in names:
            write_heights(folder / "demo_scene_DEM.tif")
        picture = gallery(paths, size).quantize(256)
    else:
        picture = side_by_side([SCENE, *(folder / f"demo_scene_{name}.tif" for name in PICTURES[target.stem])])
    target.parent.mkdir(parents=True, exist_ok=True)
    picture.save(target, optimize=True)
    print(target)


if __name__ == "__main__":
    main()
