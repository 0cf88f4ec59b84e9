"""A product's work file to a Zarr store, format 3, that xarray, rioxarray and GDAL (from 3.11 on) read where it lies.

`xarray.open_zarr(path)` gives

- the values (band, y, x), `embedding` or as the product's suffix is, in the layout's dtype, with CF's attributes: `_FillValue`,
  `units`, `scale_factor`; of classes `flag_values`, `flag_meanings`, `flag_colors`, and their own names as `class_names`.
  `mask_and_scale=False` leaves them as stored.
- `scale` (band), only where each band is stored in steps of its own: `embedding * scale` is the value. It is no CF
  `scale_factor`, and neither xarray nor GDAL applies it.
- `band`, the names; `x` and `y`, the centres of the cells, unless the affine is rotated.
- `spatial_ref`, the CRS by CF and as WKT, and `GeoTransform`, the affine in GDAL's order and bit for bit. `rio.transform()`
  takes the corner from `x` and `y` instead where they exist, which can round the last bit of a corner near zero. Older GDAL takes
  all of the affine from them: it has none for a rotated store, nor for one of a single row or column.

Where sides are longer than 512 cells, the groups `ovr_2x`, `ovr_4x`, ... hold the same variables at a half, a fourth, ... of the
size, as GDAL names and makes them. Groups and arrays say where they lie by the conventions `proj`, `spatial` and `multiscales` too.
The product's tags, and what it says in a convention's words, are the store's attributes. Metadata are consolidated. Chunks without
data are not stored.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine

from tmtool.errors import ProductError
from tmtool.files import _conventions as conventions
from tmtool.files.cf import attributes, centres, locate
from tmtool.files.facts import BandFacts, Facts
from tmtool.files.writer import Format, Layout, Work
from tmtool.grid import Grid

_CHUNK_BYTES = 8 << 20
_STRIP_BYTES = 96 << 20
_SIDE = 512
"""Most rows of a chunk, and most columns where so many fit, as in COGs."""


def convert(work: Work, path: Path) -> None:
    """Write the store with its overviews, coordinates and attributes at `path`, and validate it. Raises `ProductError`."""
    import zarr

    name = work.about.name
    grids = {"": work.grid} | {f"ovr_{2 ** (i + 1)}x": grid for i, grid in enumerate(work.overviews(_SIDE))}
    overviews = [(f"{group}/{name}", grid) for group, grid in grids.items() if group]
    placed = conventions.of_group(work.grid, name, overviews, work.layout.resampling)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # texts and consolidated metadata are extensions of the format, though all know them
        for group, grid in grids.items():
            _describe(work, grid, path, group, {} if group else _root(work, placed))
        zarr.consolidate_metadata(path, zarr_format=3)
    for level, (group, grid) in enumerate(grids.items()):
        array: Any = zarr.open_array(path / group / name, mode="r+", zarr_format=3)
        for row, strip, _ in work.rows(_chunk(work.layout, grid.shape)[0], level - 1 if level else None):
            array[:, row : row + strip.shape[1]] = strip
    _validate(path, work)


def read_tags(path: Path) -> dict[str, str]:
    """Return the attributes of a store that are texts; raises `ProductError` if it is damaged."""
    import zarr

    try:
        group: Any = zarr.open_consolidated(path, mode="r")
        next(array for _, array in sorted(group.arrays()) if array.ndim == 3)[:1, :1, :1]
    except (OSError, ValueError, KeyError, RuntimeError, StopIteration) as error:
        raise ProductError(f"{path}: is damaged ({error}).") from error
    return {key: value for key, value in group.attrs.items() if isinstance(value, str)}


def look(path: Path) -> Facts:
    """Return what a store says of itself; raises `ProductError` if it is damaged."""
    import rioxarray  # noqa: F401  (adds `.rio`)
    import xarray

    try:
        with xarray.open_zarr(path, chunks=None, consolidated=True, mask_and_scale=False) as found:
            values, tags = _values(found), {k: v for k, v in found.attrs.items() if isinstance(v, str)}
            grid = _grid_of(values)
            scale = values.attrs.get("scale_factor", 1.0)
            scales = found["scale"].to_numpy() if "scale" in found.variables else np.full(len(values["band"]), scale)
            bands = zip(values["band"].to_numpy().tolist(), scales.tolist(), strict=True)
            unit, nodata = values.attrs.get("units", ""), values.attrs.get("_FillValue")
    except (OSError, ValueError, KeyError, RuntimeError, StopIteration) as error:
        raise ProductError(f"{path}: is damaged ({error}).") from error
    return Facts(
        tags=tags,
        extent=grid,
        grid=grid,
        dtype=str(values.dtype),
        nodata=None if nodata is None else float(nodata),
        bands=tuple(BandFacts(name, unit, scale) for name, scale in bands),
        classes=tuple(
            zip(values.attrs.get("class_names", ()), values.attrs.get("flag_colors", "").split(), strict=True)
        ),
    )


ZARR = Format(".zarr", convert, read_tags, "application/vnd.zarr; version=3", look)


def _describe(work: Work, grid: Grid, path: Path, group: str, about: Mapping[str, Any]) -> None:
    """Write one size of the product without its values: metadata, coordinates, and what the group says about itself."""
    import dask.array
    import xarray as xr

    layout = work.layout
    rows, cols = _chunk(layout, grid.shape)
    names = {"class_names": [name for name, _ in layout.classes]} if layout.classes else {}
    values = xr.DataArray(
        dask.array.zeros((len(layout.bands), *grid.shape), dtype=layout.dtype, chunks=(len(layout.bands), rows, cols)),
        _coordinates(work, grid),
        ("band", "y", "x"),
        attrs=attributes(layout) | names | conventions.of_array(grid),
    )
    values = locate(values, grid, layout.nodata)
    crs = values.rio.crs
    if crs is not None and (crs.is_geographic or crs.is_projected):  # others may have no axis called X or Y
        values = values.rio.write_coordinate_system()
    values.encoding["compressors"] = (_compressor(),)
    values.encoding["fill_value"] = np.dtype(layout.dtype).type(layout.nodata)  # which is what GDAL takes for nodata
    # xarray makes coordinates of what is named here, and rioxarray finds the grid mapping among them only
    values.encoding["coordinates"] = " ".join(name for name in ("scale", "spatial_ref") if name in values.coords)
    for name in values.coords:
        values[name].encoding = {"_FillValue": None, "compressors": None}  # or what equals it is taken for missing
    described = values.to_dataset(name=work.about.name).assign_attrs(dict(about))
    described.to_zarr(
        path, group=group or None, mode="a" if group else "w", compute=False, zarr_format=3, consolidated=False
    )


def _compressor() -> Any:
    from zarr.codecs import BloscCodec

    return BloscCodec(cname="zstd", clevel=5, shuffle="shuffle")


def _root(work: Work, placed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of the store, all conventions in one list."""
    said = work.about.attributes
    known = {"zarr_conventions": [*said.get("zarr_conventions", ()), *placed["zarr_conventions"]]}
    return {"Conventions": "CF-1.8"} | dict(work.tags) | dict(said) | dict(placed) | known


def _values(found: Any) -> Any:
    """Return the variable of a store that holds the product."""
    return next(array for array in found.data_vars.values() if array.ndim == 3)


def _grid_of(values: Any) -> Grid:
    """Return the grid of a store's array, its affine bit for bit."""
    numbers = values["spatial_ref"].attrs["GeoTransform"].split()
    return Grid(values.rio.crs, Affine.from_gdal(*map(float, numbers)), values.shape[1:])


def _chunk(layout: Layout, shape: tuple[int, int]) -> tuple[int, int]:
    """Return the rows and columns of a chunk, which holds all bands; a strip of so many rows is held in memory.

    Squares of 512 px, as in COGs; fewer rows where there are many bands or the product is so wide that they take much memory;
    more where it is so narrow that they do not fill a chunk.
    """
    height, width = shape
    row_bytes = len(layout.bands) * np.dtype(layout.work[0]).itemsize * width
    rows = _SIDE
    while rows > 16 and (rows * row_bytes > _STRIP_BYTES or rows * rows * layout.pixel_bytes > _CHUNK_BYTES):
        rows //= 2
    cols = _SIDE if rows == _SIDE else max(1, _CHUNK_BYTES // (rows * layout.pixel_bytes))
    while width <= cols and rows < height and 2 * rows * row_bytes <= _CHUNK_BYTES:
        rows *= 2
    return min(rows, height), min(width, cols)


def _coordinates(work: Work, grid: Grid) -> dict[str, Any]:
    names = np.array(work.layout.bands, object)  # Zarr has no texts of a fixed length
    found: dict[str, Any] = {"band": ("band", names, {"long_name": "name of the band"})}
    if work.layout.coded:
        found["scale"] = ("band", work.scales, {"long_name": "value = stored * scale"})
    return found | centres(grid)


def _validate(path: Path, work: Work) -> None:
    """Open the store as a reader does and compare what it says of itself; no chunk of values is read."""
    import rioxarray  # noqa: F401  (adds `.rio`)
    import xarray

    layout = work.layout
    with xarray.open_zarr(path, chunks=None, consolidated=True, mask_and_scale=False) as found:
        values = found[work.about.name]
        lies, bands, dtype = _grid_of(values), tuple(values["band"].values.tolist()), values.dtype
    if lies != work.grid:
        raise ProductError(f"{path}: the written store lies at {lies}, expected {work.grid}. Please report this.")
    if bands != layout.bands or dtype != layout.dtype:
        raise ProductError(
            f"{path}: the written store has {dtype} bands {bands}, expected {layout.dtype} {layout.bands}."
            " Please report this."
        )
