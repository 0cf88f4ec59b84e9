"""Validation of Zarr stores with the schemas of the conventions that their groups and arrays name, without network."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for

_HERE = Path(__file__).parent / "zarr_schemas"
_URI = {"type": "string", "pattern": r"^[a-z][a-z0-9+.-]*:\S+$"}
_TEXT, _SIDES = (
    {"type": "string"},
    {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 2},
)
_NAMED = {
    "schema_url": "https://raw.githubusercontent.com/geo-embeddings/embeddings-zarr-convention/refs/tags/v1/schema.json",
    "spec_url": "https://github.com/geo-embeddings/embeddings-zarr-convention/blob/v1/README.md",
    "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
    "name": "geoemb:",
    "description": "Geoembeddings convention for geospatial embedding arrays with model provenance",
}


def _only(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


_GEOEMB = {
    "type": "object",
    "required": ["zarr_format", "node_type", "attributes"],
    "properties": {
        "node_type": {"const": "group"},
        "attributes": {
            "type": "object",
            "required": [
                *("zarr_conventions", "geoemb:type", "geoemb:dimensions", "geoemb:model", "geoemb:source_data"),
                *("geoemb:data_type", "geoemb:chip_layout"),  # which only chips need
            ],
            "properties": {
                "zarr_conventions": {"type": "array", "contains": {"const": _NAMED}},
                "geoemb:type": {"const": "chip"},
                "geoemb:dimensions": {"type": "integer", "minimum": 1},
                "geoemb:model": _URI,
                "geoemb:source_data": {"type": "array", "items": _URI, "minItems": 1},
                "geoemb:data_type": _TEXT,
                "geoemb:gsd": {"type": "number", "exclusiveMinimum": 0},
                "geoemb:build_version": _TEXT,
                "geoemb:chip_layout": _only(
                    ["layout_type", "chip_size"],
                    layout_type={"enum": ["regular_grid", "irregular"]},
                    chip_size=_SIDES,
                    stride=_SIDES,
                ),
                "geoemb:quantization": _only(
                    ["method", "original_dtype"],
                    method=_TEXT,
                    original_dtype=_TEXT,
                    quantized_dtype=_TEXT,
                    scale=_only(["type", "array_name"], type={"const": "array"}, array_name=_TEXT),
                ),
            },
            "patternProperties": {"^(?!geoemb:)": {}},
            "additionalProperties": False,
        },
    },
}
"""What version 1 of `geoemb` asks of chips, and of the fields in use, by its documentation and schema."""


@functools.cache
def _schemas() -> dict[str, Any]:
    """Return the schemas of the conventions, by their URLs."""
    found = {_NAMED["schema_url"]: _GEOEMB}
    for path in _HERE.glob("*.json"):
        schema = json.loads(path.read_text())
        found[schema["$id"]] = schema
    return found


def nodes(store: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the path in a store, and the metadata, of each group and array."""
    for path in sorted(store.rglob("zarr.json")):
        yield path.parent.relative_to(store).as_posix(), json.loads(path.read_text())


def errors(store: Path) -> list[str]:
    """Return what is wrong with a store, by the schemas of the conventions that its nodes name."""
    found = []
    for where, node in nodes(store):
        for convention in node["attributes"].get("zarr_conventions", []):
            schema = _schemas()[convention["schema_url"]]
            kind = validator_for(schema, Draft202012Validator)
            found += [
                f"{where}: {convention['name']}: {e.json_path}: {e.message[:200]}"
                for e in kind(schema).iter_errors(node)
            ]
    return found
