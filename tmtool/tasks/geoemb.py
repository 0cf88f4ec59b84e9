"""Embeddings in the words of the conventions for them: `geoemb` of Zarr and `emb` of STAC.

https://github.com/geo-embeddings/embeddings-zarr-convention, version 1, and .../embeddings-stac-specification, version 0.0.1. A chip is
what one vector stands for: a patch, what is kept of a tile, or a scene.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from tmtool.files.writer import Layout
from tmtool.grid import Cells
from tmtool.modality import MODALITIES
from tmtool.models.requests import input_name
from tmtool.models.weights import model_uri
from tmtool.names import shown
from tmtool.provenance import Provenance

_CONVENTION = {
    "schema_url": "https://raw.githubusercontent.com/geo-embeddings/embeddings-zarr-convention/refs/tags/v1/schema.json",
    "spec_url": "https://github.com/geo-embeddings/embeddings-zarr-convention/blob/v1/README.md",
    "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
    "name": "geoemb:",
    "description": "Geoembeddings convention for geospatial embedding arrays with model provenance",
}


def attributes(made: Provenance, layout: Layout, cells: Cells) -> dict[str, Any]:
    """Return the attributes of a store of embeddings."""
    chips = {"layout_type": "regular_grid", "chip_size": [*cells.size], "stride": [*cells.stride]}
    said = {
        "zarr_conventions": [_CONVENTION],
        "geoemb:type": "chip",
        "geoemb:dimensions": len(layout.bands),
        "geoemb:model": model_uri(made.weights, made.version),
        "geoemb:source_data": [*dict.fromkeys(_source(made, key) for key in made.inputs)],
        "geoemb:data_type": layout.dtype,
        "geoemb:gsd": cells.pixel_m,
        "geoemb:chip_layout": chips,
        "geoemb:quantization": _quantization(made, {"type": "array", "array_name": "scale"}),
        "geoemb:build_version": f"tmtool {made.version}",
    }
    return {name: value for name, value in said.items() if value}


def properties(made: Provenance, scales: Sequence[float]) -> dict[str, Any]:
    """Return the properties of an item of embeddings, whose dimensions have these `scales`."""
    how = {key: made.details[key] for key in ("bands", "embedding") if key in made.details}
    said = {
        "emb:runtime_parameters": {"precision": made.precision, "seed": made.seed, **made.tiling, **how},
        "emb:quantization": _quantization(made, [*scales]),
    }
    return {name: value for name, value in said.items() if value}


def _source(made: Provenance, key: str) -> str:
    """Return what refers to an input: its STAC item if that is anywhere, what describes data of its kind, or its name."""
    item, modality = made.details.get("items", {}).get(key, ""), MODALITIES.get(input_name(key))
    if "://" in item:
        return shown(item)
    return modality.page if modality and modality.page else f"file:{quote(made.inputs[key])}"


def _quantization(made: Provenance, scale: Any) -> Mapping[str, Any] | None:
    """Return how int8 was made of float32: by the square root of unit vectors, or a `scale` for each dimension."""
    asked = made.details.get("embedding", {})
    if asked.get("dtype") != "int8":
        return None
    about = {"original_dtype": "float32", "quantized_dtype": "int8"}
    if asked.get("normalize") == "l2":
        return {"method": "signed_square_root"} | about
    return {"method": "per_dimension_scale"} | about | {"scale": scale}
