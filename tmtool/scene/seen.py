"""A raster as a model sees it, as an `xarray.DataArray`."""

from typing import Any

import numpy as np
import xarray as xr

from tmtool.files.cf import centres, locate
from tmtool.grid import Window
from tmtool.source import Place, Reader, ShapeMask, Source

_CHUNK = 512
"""Side of a window that is read at a time, in px."""


def seen(source: Source, place: Place) -> xr.DataArray:
    """Return the part of a raster that `place` names, lazy if the raster is: (band, y, x) float32, NaN where there is no data."""
    import dask.array
    from dask.delayed import delayed

    part = place.part
    cuts = [_cuts(part.row, part.height), _cuts(part.col, part.width)]
    rows = []
    for top, bottom in cuts[0]:
        windows = [Window(top, left, bottom - top, right - left) for left, right in cuts[1]]
        shapes = [(len(source.bands), w.height, w.width) for w in windows]
        read = [delayed(_read)(source, window, place.area) for window in windows]
        pieces = [dask.array.from_delayed(r, shape, np.float32) for r, shape in zip(read, shapes, strict=True)]
        rows.append(dask.array.concatenate(pieces, axis=2))
    values = dask.array.concatenate(rows, axis=1)
    if source.array is not None and not source.array.lazy:
        values = values.compute()
    grid, modality = source.grid.part(part), source.modality
    array = xr.DataArray(
        values, {"band": list(modality.bands)} | centres(grid), ["band", "y", "x"], modality.name, _attributes(source)
    )
    return locate(array, grid, float("nan"))


def _attributes(source: Source) -> dict[str, Any]:
    """Return what was done to a raster, in words."""
    said = {
        "units": source.modality.unit,
        "modality": f"{source.modality.name}, because of {source.modality_why}",
        "unit": source.unit_why,
        "offset": f"{source.offset:g} ({source.offset_why})" if source.modality.is_optical else "",
        "read": source.brought,
        "acquired": source.date,
        "processing_baseline": source.baseline,
    }
    return {key: value for key, value in said.items() if value}


def _cuts(start: int, size: int) -> list[tuple[int, int]]:
    return [(at, min(at + _CHUNK, start + size)) for at in range(start, start + size, _CHUNK)]


def _read(source: Source, window: Window, area: ShapeMask | None) -> np.ndarray:
    """Read a window: what dask calls, in whichever process."""
    with Reader(source) as reader:
        pixels, valid = reader.read(window)
    if area is not None:
        valid = valid & ~area.covers(window)
    found: np.ndarray = np.where(valid, pixels, np.float32("nan"))
    return found
