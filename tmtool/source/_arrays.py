"""What an `xarray.DataArray` says of itself, as rioxarray reads it: its grid, nodata, band names and tags."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from affine import Affine

from tmtool.errors import InputError
from tmtool.grid import Grid
from tmtool.provenance import parse
from tmtool.source._held import Held
from tmtool.source._opening import Description, refuse_points

_OFF_PX = 1e-3
"""Tolerance between a coordinate and its place by the affine, in px."""


def described_array(array: Any) -> Description:
    """Return what a DataArray (band, y, x), or (y, x) for one band, says of itself.

    One that is neither in memory nor backed by dask is loaded. Raises `InputError` for what is no raster.
    """
    import rioxarray  # noqa: F401  (adds `.rio`)
    import xarray

    if not isinstance(array, xarray.DataArray):
        raise InputError(
            f"{type(array).__name__}: is not a raster; give a path, an xarray.DataArray, or a dict of them by modality "
            "(of a Dataset one of its variables, such as ds['S1GRD'])."
        )
    name = "DataArray" if array.name is None else f"DataArray {array.name!r}"
    y, x = _axes(array, name)
    values = array.data if array.chunks is not None else array.to_numpy()
    values = values[None] if array.ndim == 2 else values
    count, tags = len(values), {str(k): v for k, v in array.attrs.items()}
    names = _names(array, count)
    return Description(
        path=name,
        grid=_grid(array, name, y, x),
        names=names,
        dtypes=(str(array.dtype),) * count,
        nodata=(_nodata(array, name),) * count,
        scales=_each(tags, "scale", 1.0, count),
        offsets=_each(tags, "offset", 0.0, count),
        alpha=tuple(name is not None and name.strip().lower() == "alpha" for name in names),
        mask_bands=(False,) * count,
        blocks=((1, 1),) * count,
        tags={k: str(v) for k, v in tags.items() if k != "add_offset"},  # which is CF's, and handled above
        made=parse(tags),
        array=Held(values),
    )


def _axes(array: Any, name: str) -> tuple[str, str]:
    """Return the names of the axes of rows and columns, which have to be the last ones."""
    from rioxarray.exceptions import RioXarrayError

    expected = "expected band, y, x (or y, x for one band)"
    try:
        y, x = array.rio.y_dim, array.rio.x_dim
    except RioXarrayError as error:
        raise InputError(f"{name}: its dimensions are {', '.join(map(str, array.dims))}; {expected}.") from error
    if array.dims[-2:] != (y, x) or array.ndim > 3:
        raise InputError(
            f"{name}: its dimensions are {', '.join(map(str, array.dims))}; {expected}. Select or reorder: "
            f"array.transpose('band', '{y}', '{x}')."
        )
    if 0 in array.shape:
        raise InputError(f"{name}: is empty, {' x '.join(map(str, array.shape))}.")
    if array.dtype.kind not in "iufc":
        raise InputError(f"{name}: holds {array.dtype}; expected integers or floats.")
    return y, x


def _grid(array: Any, name: str, y: str, x: str) -> Grid:
    """Return the grid that agrees with the coordinates; its affine is the stored one if that agrees."""
    points = array.rio.get_gcps()
    for transform in _affines(array):
        if _agrees(array, transform, y, x):
            refuse_points(name, bool(points), transform)
            return Grid(array.rio.crs, transform, (array.sizes[y], array.sizes[x]))
    raise InputError(
        f"{name}: its coordinates {y} and {x} do not form a regular grid. Resample it to one first: "
        "array.rio.reproject(...), or array.interp(...) with even steps."
    )


def _affines(array: Any) -> Iterator[Affine]:
    """Yield candidates for the affine: the one stored, exactly; that of a window; the one of the coordinates."""
    from rioxarray.exceptions import RioXarrayError

    reference = array.coords.get(array.rio.grid_mapping)
    if reference is not None and "GeoTransform" in reference.attrs:
        yield Affine.from_gdal(*map(float, str(reference.attrs["GeoTransform"]).split()))
    for recalculated in (False, True):
        with contextlib.suppress(RioXarrayError):
            yield array.rio.transform(recalc=recalculated)


def _agrees(array: Any, transform: Affine, y: str, x: str) -> bool:
    """Whether an affine agrees with the coordinates, if there are any."""
    a, b, c, d, e, f = transform[:6]
    found = {axis: np.asarray(array[axis], np.float64) for axis in (y, x) if axis in array.coords}
    if found and (b or d):
        return False
    for axis, start, step in ((y, f, e), (x, c, a)):
        if axis in found:
            regular = start + step * (np.arange(len(found[axis])) + 0.5)
            if not (abs(found[axis] - regular) <= _OFF_PX * abs(step)).all():
                return False
    return True


def _names(array: Any, count: int) -> tuple[str | None, ...]:
    """Return the names of the bands: their coordinate's, or those that rioxarray has of a file."""
    if array.ndim == 3:
        bands = array.coords.get(array.dims[0])
        if bands is not None and bands.dtype.kind in "UOT":
            return tuple(map(str, bands.to_numpy()))
    said = array.attrs.get("long_name")
    if isinstance(said, str) and count == 1:
        return (said,)
    return tuple(said) if isinstance(said, (tuple, list)) and len(said) == count else (None,) * count


def _nodata(array: Any, name: str) -> float | None:
    try:
        value = array.rio.nodata
    except OverflowError as error:
        raise InputError(f"{name}: its nodata value does not fit its dtype, {array.dtype} ({error}).") from error
    return None if value is None else float(value)


def _each(attributes: dict[str, Any], what: str, usual: float, count: int) -> tuple[float, ...]:
    """Return the bands' scales or offsets, which rioxarray has one by one where they differ."""
    each = attributes.get(f"{what}s")
    if each is not None:
        return tuple(map(float, each))
    one = {"scale": "scale_factor", "offset": "add_offset"}[what]
    return (float(attributes.get(one, usual)),) * count
