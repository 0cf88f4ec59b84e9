"""From the files of a delivery to one virtual raster, on the grid of the finest."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from affine import Affine

from tmtool.errors import InputError
from tmtool.grid import Grid
from tmtool.source._delivery import Delivery, Layer
from tmtool.source._opening import Description, described, opened
from tmtool.source._vrt import Piece, stacked
from tmtool.source.deliveries import delivery_of


def assembled(path: str, resampling: str = "auto", *, points: bool = False) -> Description:
    """Return the metadata of a raster: of one file, or of a delivery, as one virtual raster with its bands in order.

    Coarser bands are brought to the grid of the finest by `resampling`; auto is nearest, so that values stay measured ones.
    Raises `InputError`.
    """
    delivery = delivery_of(path)
    if delivery is None:
        return described(path, points=points)
    vrt, block = virtual(delivery, delivery.layers, "nearest" if resampling == "auto" else resampling)
    found, count = described(delivery.path, vrt), len(delivery.layers)
    return replace(found, delivery=delivery, units=(None,) * count, blocks=(block,) * count)


def virtual(delivery: Delivery, layers: Sequence[Layer], resampling: str) -> tuple[str, tuple[int, int]]:
    """Return the virtual raster of some layers of a delivery, on the grid of the finest, and how large blocks are at most, in its px.

    Raises `InputError`.
    """
    files = [_looked_at(layer) for layer in layers]
    places = [_grid(delivery, file) for file in files]
    if odd := [(file, g) for file, g in zip(files, places, strict=True) if g.crs != places[0].crs]:
        (file, other), *_ = odd
        raise InputError(
            f"{delivery.path}: its band {file.layer.name} has {_crs(other)}, {files[0].layer.name} has {_crs(places[0])}; "
            "expected one CRS. Warp the bands to one grid first (gdalwarp)."
        )
    grid = min(places, key=_pixel_area)
    dtype = str(np.result_type(*(file.dtype for file in files)))
    pieces = [
        Piece(
            file.layer.path,
            file.layer.band,
            place,
            dtype,
            file.layer.name,
            file.nodata if delivery.nodata is None else delivery.nodata,
            resampling if _pixel_area(place) > 1.0001 * _pixel_area(grid) else "nearest",
        )
        for file, place in zip(files, places, strict=True)
    ]
    block = (
        max(math.ceil(f.block[0] * abs(p.transform.e / grid.transform.e)) for f, p in zip(files, places, strict=True)),
        max(math.ceil(f.block[1] * abs(p.transform.a / grid.transform.a)) for f, p in zip(files, places, strict=True)),
    )
    return stacked(pieces, grid, delivery.tags), block


@dataclass(frozen=True)
class _File:
    """What a layer's file says of itself."""

    layer: Layer
    grid: Grid
    dtype: str
    nodata: float | None
    block: tuple[int, int]


def _looked_at(layer: Layer) -> _File:
    with opened(layer.path) as src:
        if layer.band > src.count:
            raise InputError(f"{layer.path}: has {src.count} bands, but {layer.name} is expected in band {layer.band}.")
        return _File(
            layer,
            Grid.of(src),
            src.dtypes[layer.band - 1],
            src.nodatavals[layer.band - 1],
            src.block_shapes[layer.band - 1],
        )


def _grid(delivery: Delivery, file: _File) -> Grid:
    """Return where a file lies: as it says, or as the delivery says, whose affine is that of the finest file."""
    if delivery.transform is None:
        return file.grid
    height, width = file.grid.shape
    finest = delivery.shape if any(delivery.shape) else _finest(delivery)
    scale = Affine.scale(finest[1] / width, finest[0] / height)
    return Grid(delivery.crs, delivery.transform * scale, (height, width))


def _finest(delivery: Delivery) -> tuple[int, int]:
    """Return the shape of the finest of a delivery's files."""
    return max((_looked_at(layer).grid.shape for layer in delivery.layers), key=lambda shape: shape[0] * shape[1])


def _pixel_area(grid: Grid) -> float:
    return abs(float(grid.transform.determinant))


def _crs(grid: Grid) -> str:
    return str(grid.crs.to_string()) if grid.crs else "no CRS"
