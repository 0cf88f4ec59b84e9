"""A product's work file to a Zarr store that xarray, rioxarray and GDAL read with its CRS, affine, nodata and names.

The store is of Zarr format 2 with consolidated metadata, which more readers know than format 3, whose specification has
neither consolidated metadata nor strings. `xarray.open_zarr(path)` gives

- `embedding` (band, y, x) in the layout's dtype, its nodata as `_FillValue` and its unit as `units`. xarray turns int8 into
  float32 with NaN where there is no value, and leaves it as stored, -128 included, with `mask_and_scale=False`.
- `scale` (band), only where values are stored in steps: `embedding * scale` is the value. A scale differs between bands,
  so it is no CF `scale_factor`, and neither xarray nor GDAL applies it.
- `band`, the names; `x` and `y`, the centres of the cells, unless the affine is rotated.
- `spatial_ref`, the CRS by CF and as WKT, and `GeoTransform`, the affine in GDAL's order and bit for bit. `rio.transform()`
  takes the corner from `x` and `y` instead where they exist, which can round the last bit of a corner near zero. GDAL takes
  all of the affine from them: it has none for a rotated store, nor for one of a single row or column.

The product's tags are the store's global attributes.
"""

import contextlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from tmtool.errors import ProductError
from tmtool.files.writer import Format, Layout, Work
from tmtool.grid import Grid

_CHUNK_BYTES = 8 << 20
_STRIP_BYTES = 96 << 20
_COMPRESSOR = {"id": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 1, "blocksize": 0}


def convert(work: Work, path: Path) -> None:
    """Write the store with its coordinates and attributes at `path`, and validate it. Raises `ProductError`."""
    import zarr

    layout, grid = work.layout, work.grid
    rows, cols = _chunk(layout, grid.shape)
    group = zarr.open_group(path, mode="w", zarr_format=2)
    values = group.create_array(
        "embedding",
        shape=(len(layout.bands), *grid.shape),
        chunks=(len(layout.bands), rows, cols),
        dtype=layout.dtype,
        fill_value=np.dtype(layout.dtype).type(layout.nodata),  # xarray's _FillValue, GDAL's nodata
        compressors=_COMPRESSOR,
    )
    for row, strip, _ in work.rows(rows):
        values[:, row : row + strip.shape[1]] = strip
    scaled = bool((work.scales != 1).any())
    values.attrs.update(
        {"_ARRAY_DIMENSIONS": ["band", "y", "x"], "grid_mapping": "spatial_ref"}
        # xarray makes coordinates of what is named here, and rioxarray finds the grid mapping among them only
        | {"coordinates": "scale spatial_ref" if scaled else "spatial_ref"}
        | ({"units": layout.unit} if layout.unit else {})
    )
    _put(group, "band", np.array(layout.bands, dtype=np.str_), ["band"], {"long_name": "name of the band"})
    if scaled:
        _put(group, "scale", work.scales, ["band"], {"long_name": "value = stored * scale"})
    _locate(group, grid)
    group.attrs.update({"Conventions": "CF-1.8"} | dict(work.tags))
    zarr.consolidate_metadata(path, zarr_format=2)
    _validate(path, grid, layout)


def read_tags(path: Path) -> dict[str, str]:
    """Return the attributes of a store; raises `ProductError` if it is damaged."""
    import zarr

    try:
        group: Any = zarr.open_consolidated(path, mode="r")
        group["embedding"][:1, :1, :1]
    except (OSError, ValueError, KeyError) as error:
        raise ProductError(f"{path}: is damaged ({error}).") from error
    return {key: value for key, value in group.attrs.items() if isinstance(value, str)}


ZARR = Format(".zarr", convert, read_tags)


def _chunk(layout: Layout, shape: tuple[int, int]) -> tuple[int, int]:
    """Return the rows and columns of a chunk, which holds all bands; a strip of so many rows is held in memory.

    64 rows are what the work file's blocks have: fewer where the product is so wide that they take much memory, more
    where it is so narrow that they do not fill a chunk.
    """
    height, width = shape
    row_bytes = len(layout.bands) * np.dtype(layout.work[0]).itemsize * width
    rows = 64
    while rows > 16 and rows * row_bytes > _STRIP_BYTES:
        rows //= 2
    while rows < height and 2 * rows * row_bytes <= _CHUNK_BYTES:
        rows *= 2
    rows = min(rows, height)
    return rows, min(width, max(1, _CHUNK_BYTES // (rows * layout.pixel_bytes)))


def _locate(group: Any, grid: Grid) -> None:
    """Write `spatial_ref`, and `x` and `y` where each is a function of one axis."""
    import pyproj

    crs = None if grid.crs is None else pyproj.CRS.from_wkt(grid.crs.to_wkt(version="WKT2_2019"))
    affine = {"GeoTransform": " ".join(repr(float(v)) for v in grid.transform.to_gdal())}
    _put(group, "spatial_ref", np.array(0, dtype=np.int32), [], _crs_attributes(crs) | affine)
    a, b, c, d, e, f = grid.transform[:6]
    if b != 0 or d != 0:
        return
    axes: dict[str, Mapping[str, Any]] = {}
    if crs is not None and (crs.is_geographic or crs.is_projected):  # others may have no axis called X or Y
        axes = {axis["axis"]: axis for axis in crs.cs_to_cf()}
    for name, start, step, size in (("y", f, e, grid.shape[0]), ("x", c, a, grid.shape[1])):
        centres = start + step * (np.arange(size) + 0.5)
        _put(group, name, centres, [name], {"axis": name.upper()} | dict(axes.get(name.upper(), {})))


def _crs_attributes(crs: Any) -> dict[str, Any]:
    if crs is None:
        return {}
    attributes: dict[str, Any] = {}
    with warnings.catch_warnings(), contextlib.suppress(KeyError):  # a projection that CF cannot say has its WKT only
        warnings.simplefilter("ignore", UserWarning)
        attributes = crs.to_cf()
    wkt = crs.to_wkt()
    return attributes | {"crs_wkt": wkt, "spatial_ref": wkt}  # the second is the name that GDAL gave it


def _put(group: Any, name: str, values: NDArray[Any], dims: list[str], attributes: Mapping[str, Any]) -> None:
    # without a fill value, or xarray takes a coordinate that equals it for missing
    array = group.create_array(
        name, shape=values.shape, chunks=values.shape, dtype=values.dtype, fill_value=None, compressors=None
    )
    array[...] = values
    array.attrs.update({"_ARRAY_DIMENSIONS": dims} | dict(attributes))


def _validate(path: Path, grid: Grid, layout: Layout) -> None:
    """Open the store as a reader does and compare what it says of itself; no chunk of values is read."""
    import rioxarray  # noqa: F401  (adds `.rio`)
    import xarray

    with xarray.open_zarr(path, chunks=None, consolidated=True, mask_and_scale=False) as found:
        values = found["embedding"]
        numbers = values["spatial_ref"].attrs["GeoTransform"].split()
        transform = Affine.from_gdal(*map(float, numbers))
        shape, crs, bands = values.shape, values.rio.crs, tuple(values["band"].values.tolist())
        dtype = values.dtype
    if (crs, transform, shape[1:]) != (grid.crs, grid.transform, grid.shape):
        lies = Grid(crs, transform, shape[1:])
        raise ProductError(f"{path}: the written store lies at {lies}, expected {grid}. Please report this.")
    if bands != layout.bands or dtype != layout.dtype:
        raise ProductError(
            f"{path}: the written store has {dtype} bands {bands}, expected {layout.dtype} {layout.bands}."
            " Please report this."
        )
