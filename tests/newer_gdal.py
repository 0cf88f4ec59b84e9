"""What a GDAL that is newer than rasterio's says of a raster, as JSON: `python -m tests.newer_gdal NAME`.

It is the one in pyogrio's wheels, called by ctypes in a process of its own. It has few compressors: gzip is one. Ends with status 3
where there is none, or it is too old for Zarr format 3.
"""

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_NONE = 3
_OLDEST = 3_11_00_00


def asked(name: str) -> dict[str, Any]:
    """Return what it says; skips the test where there is no such GDAL."""
    done = subprocess.run([sys.executable, "-m", "tests.newer_gdal", name], capture_output=True, text=True, check=False)
    if done.returncode == _NONE:
        pytest.skip("there is no GDAL that reads Zarr format 3")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _library() -> Any:
    import pyogrio

    folder = Path(pyogrio.__file__).parent
    found = [*folder.parent.glob("pyogrio.libs/libgdal-*.so*"), *folder.glob(".dylibs/libgdal*.dylib")]
    if not found:
        sys.exit(_NONE)
    gdal = ctypes.CDLL(str(found[0]))
    gdal.GDALVersionInfo.restype = ctypes.c_char_p
    if int(gdal.GDALVersionInfo(b"VERSION_NUM")) < _OLDEST:
        sys.exit(_NONE)
    for name in ("GDALOpenEx", "GDALGetRasterBand"):
        getattr(gdal, name).restype = ctypes.c_void_p
    gdal.GDALGetProjectionRef.restype = gdal.CPLGetLastErrorMsg.restype = ctypes.c_char_p
    gdal.GDALGetRasterNoDataValue.restype = gdal.GDALGetRasterScale.restype = ctypes.c_double
    gdal.GDALAllRegister()
    return gdal


def _say(name: str) -> None:
    gdal = _library()
    raster_and_errors = 0x42
    source = ctypes.c_void_p(gdal.GDALOpenEx(name.encode(), raster_and_errors, None, None, None))
    if not source:
        sys.exit(gdal.CPLGetLastErrorMsg().decode())
    count, width, height = (getattr(gdal, f"GDALGetRaster{n}")(source) for n in ("Count", "XSize", "YSize"))
    affine, values = (ctypes.c_double * 6)(), np.empty((count, height, width))
    placed = gdal.GDALGetGeoTransform(source, affine) == 0
    float64, every = 7, (0, 0, width, height)
    status = gdal.GDALDatasetRasterIO(
        source, 0, *every, ctypes.c_void_p(values.ctypes.data), width, height, float64, count, None, 0, 0, 0
    )
    if status:
        sys.exit(gdal.CPLGetLastErrorMsg().decode())
    band = ctypes.c_void_p(gdal.GDALGetRasterBand(source, 1))
    about = {
        "affine": list(affine) if placed else None,
        "wkt": gdal.GDALGetProjectionRef(source).decode(),
        "nodata": gdal.GDALGetRasterNoDataValue(band, None),
        "scale": gdal.GDALGetRasterScale(band, None),
        "values": values.tolist(),
    }
    sys.stdout.write(json.dumps(about))


if __name__ == "__main__":
    _say(sys.argv[1])
