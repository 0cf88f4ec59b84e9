"""Memory depends on a raster's width, never on its height. Peaks are measured in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from tests.conftest import TRANSFORM

SCRIPT = """
import json, sys
from tests.simple_models import registered
from tmtool.cli import app
with registered() as name:
    try:
        app(["generate", sys.argv[1], "--out", "S1GRD,LULC", "--model", name, "-o", sys.argv[2], "-q"])
    except SystemExit as done:
        status = done.code
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"status": status or 0, "peak_mb": peak / 1024}), file=sys.stderr)
"""


def peak_mb(raster: Path, out: Path) -> float:
    command = [sys.executable, "-c", SCRIPT, str(raster), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    said = json.loads(done.stderr.splitlines()[-1])
    assert said["status"] == 0
    return float(said["peak_mb"])


def write_tall(path: Path, height: int, width: int) -> Path:
    profile = {
        "count": 12,
        "dtype": "int16",
        "crs": "EPSG:32719",
        "transform": TRANSFORM,
        "tiled": True,
        "bigtiff": "yes",
    }
    rows = np.random.default_rng(0).integers(1, 3000, (12, 512, width)).astype(np.int16)
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, blockxsize=256, blockysize=256, **profile
    ) as dst:
        for row in range(0, height, 512):
            part = rows[:, : min(512, height - row)]
            dst.write(part, window=rasterio.windows.Window(0, row, width, part.shape[1]))
    return path


def test_peak_memory_does_not_grow_with_height(tmp_path: Path) -> None:
    low = peak_mb(write_tall(tmp_path / "low.tif", 1024, 1500), tmp_path / "out")
    high = peak_mb(write_tall(tmp_path / "high.tif", 12_288, 1500), tmp_path / "out")
    assert high - low < 100  # held whole, the input would take 420 MB and the products' floats 840 MB more


def test_a_sparse_vrt_of_a_hundred_thousand_rows_runs(make_raster: Any, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(1, 3000, (12, 300, 300)).astype(np.int16)
    make_raster(values, "part.tif", nodata=0)
    bands = "".join(
        f'<VRTRasterBand dataType="Int16" band="{b}"><NoDataValue>0</NoDataValue>'
        + "".join(
            f'<SimpleSource><SourceFilename relativeToVRT="1">part.tif</SourceFilename><SourceBand>{b}</SourceBand>'
            f'<SrcRect xOff="0" yOff="0" xSize="300" ySize="300"/><DstRect xOff="100" yOff="{row}" xSize="300" ySize="300"/></SimpleSource>'
            for row in (50, 99_690)
        )
        + "</VRTRasterBand>"
        for b in range(1, 13)
    )
    vrt = tmp_path / "tall.vrt"
    vrt.write_text(
        '<VRTDataset rasterXSize="600" rasterYSize="100000"><SRS>EPSG:32719</SRS>'
        f"<GeoTransform>399960, 10, 0, 6300040, 0, -10</GeoTransform>{bands}</VRTDataset>"
    )
    assert peak_mb(vrt, tmp_path / "out") < 1000
    with rasterio.open(tmp_path / "out" / "tall_S1GRD.tif") as src:
        assert src.shape == (100_000, 600)
        for row in (50, 99_690):
            part = src.read(window=rasterio.windows.Window(100, row, 300, 300))
            np.testing.assert_allclose(part, values[:2], rtol=1e-6)
        assert np.isnan(src.read(window=rasterio.windows.Window(0, 50_000, 600, 500))).all()
