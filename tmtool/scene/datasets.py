"""From the blocks of a scene to an `xarray.Dataset` of its products: computed at once, or lazily by dask.

Every block is computed by the function that commands and clusters use, `tmtool.scene.blocks.compute_block`.
"""

import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from tmtool.files.cf import attributes, centres, locate
from tmtool.files.writer import Statistics
from tmtool.grid import Strip
from tmtool.models.device import batch_size
from tmtool.products.product import Product, check_statistics
from tmtool.provenance import Provenance
from tmtool.scene.blocks import BlockTask, ComputedBlock, compute_block, models_of, part
from tmtool.scene.job import Job, Prepared
from tmtool.scene.status import provenance_of
from tmtool.tiles.stitch import SceneMean

_log = logging.getLogger("tmtool")


@dataclass(frozen=True)
class Making:
    """How a scene's products are made, all of them known to be possible; `provenance` is what they say of it."""

    job: Job
    prepared: Prepared
    provenance: Provenance
    batch: int
    threads: int

    def task(self, rows: range) -> BlockTask:
        """Return the block of these source rows."""
        cols = self.prepared.plan.cols
        return BlockTask(self.job, part(self.job, self.prepared, rows), rows, cols, self.batch, self.threads)


def making_of(job: Job, prepared: Prepared) -> Making:
    """Find the weights, and decide what decides rounding as a run of the command does."""
    models = models_of(job)
    spec = models.spec(tuple(prepared.sources))
    provenance = provenance_of(job, prepared, spec, models.weights(spec))
    job.task.check_made(prepared.sources, provenance)
    batch = prepared.batch(job.batch_size or batch_size(spec.compute))
    provenance = replace(provenance, batch_size=batch)
    return Making(job, prepared, provenance, batch, spec.compute.threads)


def computed(making: Making) -> dict[str, NDArray[Any]]:
    """Compute the products `(bands, H, W)`, by their outputs' names. Raises `ProductError` for one that cannot be right."""
    prepared = making.prepared
    rows = prepared.plan.rows
    whole = compute_block(making.task(rows))
    _judge(prepared, whole)
    made = _arrays(prepared, rows, whole)
    return {p.spec.name: _mean(p, [made[p.spec.name]]) if _is_mean(p) else made[p.spec.name] for p in prepared.products}


def _judge(prepared: Prepared, computed: ComputedBlock) -> None:
    """Raise `ProductError` for a product that is constant though the input is not, as the commands do."""
    seen = {p.spec.name: Statistics(len(p.layout.bands)) for p in prepared.products if not _is_mean(p)}
    for block in computed.blocks:
        for spec, strip in block.strips:
            if spec.name in seen:
                seen[spec.name].add(strip.values[:, strip.valid])
    for product in prepared.products:
        if product.spec.name in seen:
            for warning in check_statistics(product, seen[product.spec.name], computed.varies):
                _log.warning("%s", warning)


def lazy(making: Making, least: int) -> dict[str, Any]:
    """Return the products as dask arrays of a chunk a block, by their outputs' names."""
    import dask.array
    from dask.delayed import delayed

    prepared, plan = making.prepared, making.prepared.plan
    name = f"{making.job.task.name}-{uuid.uuid4().hex}"
    rows = plan.even_blocks(least)
    # the arrays that a scene holds are fields of dataclasses, where dask looks for them: their rows are computed before
    tasks = [delayed(_block)(making.task(r), dask_key_name=f"{name}-{i}") for i, r in enumerate(rows)]
    made: dict[str, Any] = {}
    for product in prepared.products:
        spec, layout = product.spec, product.layout
        width = plan.product_grid(prepared.grid, spec).shape[1]
        heights = [len(plan.product_rows(r, spec)) for r in rows]
        each = [task[spec.name] for task in tasks]
        if _is_mean(product):
            each, heights = [delayed(_mean)(product, each)], [1]
        chunks = [
            dask.array.from_delayed(value, (len(layout.bands), height, width), layout.dtype)
            for value, height in zip(each, heights, strict=True)
            if height
        ]
        made[spec.name] = dask.array.concatenate(chunks, axis=1)
    return made


def _block(task: BlockTask) -> dict[str, Any]:
    """Compute one block: what dask calls, in whichever process."""
    return _arrays(task.prepared, task.rows, compute_block(task))


def _is_mean(product: Product) -> bool:
    return product.spec.pool == "scene"


def _arrays(prepared: Prepared, rows: range, computed: ComputedBlock) -> dict[str, Any]:
    """Return a block's products `(bands, rows, W)` by their outputs' names, nodata filled in; strips of what is averaged."""
    made: dict[str, Any] = {}
    for product in prepared.products:
        spec = product.spec
        strips = [strip for block in computed.blocks for s, strip in block.strips if s.name == spec.name]
        at = prepared.plan.product_rows(rows, spec), prepared.plan.product_cols(prepared.plan.cols, spec)
        made[spec.name] = strips if _is_mean(product) else _filled(product, strips, *at)
    return made


def _filled(product: Product, strips: Iterable[Strip], rows: range, cols: range) -> NDArray[Any]:
    layout = product.layout
    values = np.full((len(layout.bands), len(rows), len(cols)), layout.nodata, layout.dtype)
    for strip in strips:
        top = strip.row - rows.start
        np.copyto(values[:, top : top + len(strip.valid)], strip.values, where=strip.valid, casting="same_kind")
    return values


def _mean(product: Product, blocks: Iterable[Sequence[Strip]]) -> NDArray[Any]:
    """Return the mean of a scene `(bands, 1, 1)`, of its blocks' strips in order."""
    mean = SceneMean(product.spec)
    for strips in blocks:
        for strip in strips:
            mean.add(strip)
    whole = mean.strip()
    return _filled(product, [replace(whole, values=product.finish(whole))], range(1), range(1))


def dataset(making: Making, values: Mapping[str, Any]) -> xr.Dataset:
    """Return the products as variables; those that mark holes come last."""
    products = sorted(making.prepared.products, key=lambda product: product.holes)
    kinds = {p.layout.bands for p in products if len(p.layout.bands) > 1}
    variables = {}
    for product in products:
        band = "band" if len(kinds) == 1 else f"band_{product.suffix}"
        variables[product.suffix] = _variable(making, product, values[product.spec.name], band)
    return xr.Dataset(variables)


def _variable(making: Making, product: Product, values: Any, band: str) -> xr.DataArray:
    """Return a product with its grid, nodata and attributes. One that marks holes has a grid of its own."""
    prepared, layout = making.prepared, product.layout
    own = "_px" if product.holes else ""
    grid = prepared.plan.product_grid(prepared.grid, product.spec)
    dims, coords = [f"y{own}", f"x{own}"], centres(grid, f"y{own}", f"x{own}")
    if len(layout.bands) > 1:
        dims, coords = [band, *dims], {band: list(layout.bands)} | coords
    else:
        values = values[0]
    array = xr.DataArray(values, coords, dims, product.suffix, _attributes(making, product))
    return locate(array, grid, layout.nodata, f"spatial_ref{own}")


def _attributes(making: Making, product: Product) -> dict[str, Any]:
    """Return what a product says of itself: as rioxarray has it of a file, classes as CF has them."""
    layout = product.layout
    about: dict[str, Any] = {"modality": product.modality} | dict(product.about)
    if any(p.holes for p in making.prepared.products):
        about |= {"validity": f"{product.modality}_valid.tif"}
    made = making.provenance.with_details(**about)
    made = replace(made, task="validity") if product.holes else made
    found: dict[str, Any] = {"long_name": layout.bands if len(layout.bands) > 1 else layout.bands[0]}
    return found | attributes(layout) | made.tags()
