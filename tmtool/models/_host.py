"""How much of the host's memory models take: an estimate, since a host gives no error when it runs out.

Estimates / measured peaks in 10**6 bytes, tiles of 256 px one at a time, weights from files: generate S1GRD,LULC of S2L2A base
fp32 4016 / 3495, bf16 2765 / 2857, demo 1245 / 1089; tokenize 1552 / 1295; embed S2L2A 1516 / 1236. Peaks hold pages of
mapped files, which the system can drop.
"""

from collections.abc import Sequence

from tmtool.models.entry import ModelSpec
from tmtool.models.registry import find

_LIBRARIES_MB = 800  # torch, of terratorch what TerraMind needs, and rasterio, imported: 760
_ALLOCATOR_MB = 100  # freed, and kept for later
_WEIGHT_BYTES = {"fp32": 4.5, "bf16": 2.4, "fp16": 2.4}  # and what loading leaves; norms and tables stay float32
_ROOM = 1.15


def host_bytes(specs: Sequence[ModelSpec], size: int) -> tuple[int, int]:
    """Estimate the host's memory for models that are loaded together: without tiles, and for each tile of `size` px.

    The pixels of tiles that are read ahead are in it. On CUDA a tile takes nothing else; the weights pass through there.
    """
    entries = [(find(spec.name), spec) for spec in specs]
    weights = sum(
        entry.parameters_of(spec) * _WEIGHT_BYTES["fp32" if spec.files is None else spec.compute.precision]
        for entry, spec in entries
    )  # random weights are made in float32, and the holes that halving them leaves are not given back
    scale, cuda = size**2 / 256**2, specs[0].compute.device.startswith("cuda")
    copies = len(specs[0].compute.each)  # on CUDA the weights of one pass through at a time
    work = 0.0 if cuda else copies * scale * sum(entry.tile_mb_of(spec) for entry, spec in entries)
    channels = entries[0][0].channels_of(specs[0])
    pixels = (
        copies * 4 * 4 * channels * size**2
    )  # float32, batches: one called, the same collated, one waiting, one read ahead
    held = weights * (1 if cuda else copies)
    return int(_ROOM * 1e6 * (_LIBRARIES_MB + _ALLOCATOR_MB + held)), int(_ROOM * 1e6 * work + pixels)
