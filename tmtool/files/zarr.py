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

from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine

from tmtool.errors import ProductError
from tmtool.files.cf import centres, locate
from tmtool.files.facts import BandFacts, Facts
from tmtool.files.writer import Format, Layout, Work
from tmtool.grid import Grid

_CHUNK_BYTES = 8 << 20
_STRIP_BYTES = 96 << 20


def convert(work: Work, path: Path) -> None:
    """Write the store with its coordinates and attributes at `path`, and validate it. Raises `ProductError`."""
    import dask.array
    import numcodecs
    import xarray as xr
    import zarr

    layout, grid = work.layout, work.grid
    rows, cols = _chunk(layout, grid.shape)
    values = xr.DataArray(
        dask.array.zeros((len(layout.bands), *grid.shape), dtype=layout.dtype, chunks=(len(layout.bands), rows, cols)),
        _coordinates(work),
        ("band", "y", "x"),
        attrs={"units": layout.unit} if layout.unit else {},
    )
    values = locate(values, grid, layout.nodata)
    crs = values.rio.crs
    if crs is not None and (crs.is_geographic or crs.is_projected):  # others may have no axis called X or Y
        values = values.rio.write_coordinate_system()
    values.encoding["compressors"] = (numcodecs.Blosc("zstd", clevel=5, shuffle=numcodecs.Blosc.SHUFFLE),)
    # xarray makes coordinates of what is named here, and rioxarray finds the grid mapping among them only
    values.encoding["coordinates"] = " ".join(name for name in ("scale", "spatial_ref") if name in values.coords)
    for name in values.coords:
        values[name].encoding = {"_FillValue": None, "compressors": None}  # or what equals it is taken for missing
    described = values.to_dataset(name="embedding").assign_attrs({"Conventions": "CF-1.8"} | dict(work.tags))
    described.to_zarr(path, mode="w", compute=False, zarr_format=2, consolidated=True)
    group: Any = zarr.open_group(path, mode="r+", zarr_format=2)
    for row, strip, _ in work.rows(rows):
        group["embedding"][:, row : row + strip.shape[1]] = strip
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


def look(path: Path) -> Facts:
    """Return what a store says of itself; raises `ProductError` if it is damaged."""
    import rioxarray  # noqa: F401  (adds `.rio`)
    import xarray

    try:
        with xarray.open_zarr(path, chunks=None, consolidated=True, mask_and_scale=False) as found:
            values, tags = found["embedding"], {k: v for k, v in found.attrs.items() if isinstance(v, str)}
            grid = _grid_of(values)
            scales = found["scale"].to_numpy() if "scale" in found.variables else np.ones(len(values["band"]))
            bands = zip(values["band"].to_numpy().tolist(), scales.tolist(), strict=True)
            unit, nodata = values.attrs.get("units", ""), values.attrs.get("_FillValue")
    except (OSError, ValueError, KeyError) as error:
        raise ProductError(f"{path}: is damaged ({error}).") from error
    return Facts(
        tags=tags,
        extent=grid,
        grid=grid,
        dtype=str(values.dtype),
        nodata=None if nodata is None else float(nodata),
        bands=tuple(BandFacts(name, unit, scale) for name, scale in bands),
    )


ZARR = Format(".zarr", convert, read_tags, "application/vnd.zarr; version=2", look)


def _grid_of(values: Any) -> Grid:
    """Return the grid of a store's array, its affine bit for bit."""
    numbers = values["spatial_ref"].attrs["GeoTransform"].split()
    return Grid(values.rio.crs, Affine.from_gdal(*map(float, numbers)), values.shape[1:])


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


def _coordinates(work: Work) -> dict[str, Any]:
    found: dict[str, Any] = {"band": ("band", np.array(work.layout.bands, np.str_), {"long_name": "name of the band"})}
    if (work.scales != 1).any():
        found["scale"] = ("band", work.scales, {"long_name": "value = stored * scale"})
    return found | centres(work.grid)


def _validate(path: Path, grid: Grid, layout: Layout) -> None:
    """Open the store as a reader does and compare what it says of itself; no chunk of values is read."""
    import rioxarray  # noqa: F401  (adds `.rio`)
    import xarray

    with xarray.open_zarr(path, chunks=None, consolidated=True, mask_and_scale=False) as found:
        values = found["embedding"]
        lies, bands, dtype = _grid_of(values), tuple(values["band"].values.tolist()), values.dtype
    if lies != grid:
        raise ProductError(f"{path}: the written store lies at {lies}, expected {grid}. Please report this.")
    if bands != layout.bands or dtype != layout.dtype:
        raise ProductError(
            f"{path}: the written store has {dtype} bands {bands}, expected {layout.dtype} {layout.bands}."
            " Please report this."
        )
