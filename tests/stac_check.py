"""Validation of STAC documents with the published JSON schemas, without network: `tests/stac_schemas`, and pystac's of the core."""

import functools
import json
from pathlib import Path
from typing import Any

import pystac.validation
from jsonschema import Draft7Validator, FormatChecker
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

_HERE = Path(__file__).parent / "stac_schemas"
_CORE = Path(pystac.validation.__file__).parent / "jsonschemas"
_AT = "https://stac-extensions.github.io"

_NUMBER, _TEXT = {"type": "number"}, {"type": "string"}
_RASTER = {
    "raster:bits_per_sample": {"type": "integer"},
    "raster:sampling": {"enum": ["area", "point"]},
    "raster:scale": _NUMBER,
    "raster:offset": _NUMBER,
    "raster:spatial_resolution": _NUMBER,
}
_PROCESSING = {
    "processing:level": _TEXT,
    "processing:lineage": _TEXT,
    "processing:facility": _TEXT,
    "processing:version": _TEXT,
    "processing:datetime": {"type": "string", "format": "date-time", "pattern": "Z$"},
    "processing:software": {"type": "object", "additionalProperties": _TEXT},
}


def _fields(prefix: str, known: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object whose fields with a prefix are these, and any others."""
    return {"properties": known, "patternProperties": {f"^(?!{prefix}:)": {}}, "additionalProperties": False}


def _item_with(prefix: str, known: dict[str, Any], *, bands: bool) -> dict[str, Any]:
    """Return the schema of an item whose properties, assets and bands may have these fields, and somewhere have one."""
    fields = _fields(prefix, known)
    inside = {"allOf": [fields, {"properties": {"bands": {"items": fields}}}]} if bands else fields
    some: dict[str, Any] = {"anyOf": [{"required": [name]} for name in known]}
    of_assets = {"not": {"additionalProperties": {"not": some}}}
    return {
        "properties": {"properties": inside, "assets": {"additionalProperties": inside}},
        "anyOf": [{"properties": {"properties": some}}, {"properties": {"assets": of_assets}}],
    }


_CLASSES = {
    "type": "array",
    "minItems": 1,
    "uniqueItems": True,
    "items": {
        "required": ["value", "description"],
        "properties": {
            "value": {"type": "integer"},
            "description": _TEXT,
            "name": _TEXT,
            "color_hint": {"type": "string", "pattern": "^[0-9A-Fa-f]{6}$"},
        },
    },
}
_QUANTIZATION = {
    "type": "object",
    "required": ["method", "original_dtype"],
    "properties": {
        **dict.fromkeys(("method", "original_dtype", "quantized_dtype"), _TEXT),
        **{name: {"type": "array", "items": _NUMBER} for name in ("scale", "offset")},
        "link": {"type": "object", "required": ["rel", "href"]},
    },
    "additionalProperties": False,
}
_EMBEDDINGS = {
    "required": ["assets", "links"],
    "properties": {
        "properties": _fields("emb", {"emb:runtime_parameters": {"type": "object"}, "emb:quantization": _QUANTIZATION}),
        "assets": {"required": ["embeddings"], "additionalProperties": _fields("emb", {})},
    },
}
"""Of items it knows no other fields of those in use; a collection has `emb:type`, `emb:dimensions` and the rest."""
_BY_HAND = {
    "embeddings/v0.0.1": _EMBEDDINGS,
    "raster/v2.0.0": _item_with("raster", _RASTER, bands=True),
    "processing/v1.2.0": _item_with("processing", _PROCESSING, bands=False),
    "classification/v1.1.0": {"definitions": {"fields": {"properties": {"classification:classes": _CLASSES}}}},
}
"""What schemas that no package holds ask of the fields in use, by their documentation."""


@functools.cache
def _registry() -> Registry[Any]:
    known = {f"{_AT}/{name}/schema.json": schema for name, schema in _BY_HAND.items()}
    for path in [*_HERE.glob("*.json"), *_CORE.rglob("*.json")]:
        schema = json.loads(path.read_text())
        known[schema["$id"].rstrip("#").replace("commonjson", "common.json")] = schema  # a slip of pystac's copy
    return Registry().with_resources((uri, Resource(schema, DRAFT7)) for uri, schema in known.items())


def errors(document: dict[str, Any]) -> list[str]:
    """Return what is wrong with a catalog or item, by the core's schema and those of the extensions that it names."""
    kind = {"Feature": "item", "Catalog": "catalog"}[document["type"]]
    core = f"https://schemas.stacspec.org/v1.1.0/{kind}-spec/json-schema/{kind}.json"
    found = []
    for uri in (core, *document.get("stac_extensions", [])):
        schema = {"$ref": uri}
        validator = Draft7Validator(schema, registry=_registry(), format_checker=FormatChecker())
        found += [f"{uri}: {error.json_path}: {error.message[:300]}" for error in validator.iter_errors(document)]
    return found
