"""Neighbouring products with `--anchor grid`, opened together through GDAL's tile index (GTI)."""

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
from rasterio.windows import Window
from shapely.geometry import box

SAMPLE = Path(__file__).parent.parent / "samples" / "demo_scene.tif"
LEFT, RIGHT, CUT = 120, 270, 195
"""The columns that both rasters have, and where one product ends and the other begins."""
ROWS, COLS = 60, 330


def crop(path: Path, cols: range) -> Path:
    """Write some columns of the sample's first rows, with nodata as in the sample."""
    with rasterio.open(SAMPLE) as src:
        window = Window(cols.start, 0, len(cols), ROWS)
        profile = {**src.profile, "width": len(cols), "height": ROWS, "transform": src.window_transform(window)}
        with rasterio.open(path, "w", **profile) as dst:
            dst.write(src.read(window=window))
            dst.descriptions = src.descriptions
    return path


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two rasters that overlap by more than two tiles."""
    folder = tmp_path_factory.mktemp("halves")
    return crop(folder / "west.tif", range(RIGHT)), crop(folder / "east.tif", range(LEFT, COLS))


def test_a_tile_index_shows_no_seam(tmtool: Any, halves: tuple[Path, Path], tmp_path: Path) -> None:
    tiles = ("--crop", 64, "--stride", 48, "--delta", 4, "--solver", "dpm", "--anchor", "grid")
    products, boxes, size = [], [], 0.0
    for path, part in zip(halves, (f"0,0,{CUT},{ROWS}", f"{CUT - LEFT},0,{COLS - CUT},{ROWS}"), strict=True):
        asked = ("--model", "demo", "--out", "S1GRD", "--window", part, *tiles, "-o", tmp_path)
        result = tmtool("generate", path, *asked)
        assert result.exit_code == 0, result.stderr
        products.append(Path(result.stdout.strip()))
    for product in products:
        with rasterio.open(product) as src:
            boxes.append(box(*src.bounds))
            crs, size = src.crs, src.res[0]
    index = geopandas.GeoDataFrame({"location": [str(p) for p in products]}, geometry=boxes, crs=crs)
    index.to_file(tmp_path / "index.gpkg", layer="index")
    with rasterio.open(f"GTI:{tmp_path / 'index.gpkg'}") as mosaic:
        assert mosaic.shape == (ROWS, COLS)
        assert mosaic.res[0] == pytest.approx(size)
        values = mosaic.read(1)
    whole = crop(tmp_path / "whole.tif", range(COLS))
    assert tmtool("generate", whole, "--model", "demo", "--out", "S1GRD", *tiles, "-o", tmp_path).exit_code == 0
    with rasterio.open(tmp_path / "whole_S1GRD.tif") as src:
        np.testing.assert_array_equal(values, src.read(1))
