"""The JSON documents of a catalog: what marks them as tmtool's, and how they get to disk."""

import json
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from tmtool.errors import OutputError
from tmtool.files.writer import WORK_PREFIX

Kind = Literal["scene", "model", "catalog"]

KIND = "tmtool:kind"
"""The field that tmtool's documents are known by; of items among their properties."""
CATALOG = "catalog.json"
MODELS = "models"
"""The folder, below a catalog's, of the items of models: a catalog of its own, as readers of scenes stumble over them."""

_EXTENSIONS = {
    "proj": "projection/v2.0.0",
    "raster": "raster/v2.0.0",
    "classification": "classification/v2.0.0",
    "processing": "processing/v1.2.0",
    "table": "table/v1.2.0",
    "mlm": "mlm/v1.4.0",
    "file": "file/v2.1.0",
    "emb": "embeddings/v0.0.1",
}


def kind_of(path: Path) -> Kind | None:
    """Return what kind of document of tmtool's a file is; None for what is none of its, or not there."""
    document = read(path) or {}
    kind: Kind | None = document.get("properties", document).get(KIND)
    return kind


def read(path: Path) -> dict[str, Any] | None:
    """Return the document in a file; None where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    known = isinstance(found, dict) and isinstance(found.get("properties", {}), dict)
    return found if known else None


def is_document(path: Path) -> bool:
    """Whether a file is an item or catalog that tmtool wrote."""
    return path.suffix == ".json" and kind_of(path) is not None


def check_free(path: Path, kind: Kind = "scene") -> None:
    """Raise `OutputError` where a file that is no such document of tmtool's has its name."""
    if path.exists() and kind_of(path) != kind:
        raise OutputError(
            f"{path}: exists and is no {'catalog' if kind == 'catalog' else f'item of a {kind}'} that tmtool wrote; it would be "
            "replaced. Rename it, or write elsewhere."
        )


def write(path: Path, document: Mapping[str, Any], kind: Kind) -> None:
    """Write a document by an atomic rename, if it is not there already as it is. Raises `OutputError`."""
    check_free(path, kind)
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    part = path.with_name(f"{WORK_PREFIX}{path.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        if path.exists() and path.read_text(encoding="utf-8") == text:
            return
        path.parent.mkdir(exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}).") from error


def extensions(*values: Any) -> list[str]:
    """Return the schemas of the extensions whose fields are used somewhere in these values."""
    used = {key.partition(":")[0] for value in values for key in _keys(value) if ":" in key}
    return [
        f"https://stac-extensions.github.io/{name}/schema.json"
        for prefix, name in _EXTENSIONS.items()
        if prefix in used
    ]


def _keys(value: Any) -> Iterable[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _keys(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _keys(inner)


def relative(path: Path, folder: Path) -> str:
    """Return the link to a file from a document in a folder."""
    link = Path(os.path.relpath(path, folder)).as_posix()
    return link if link.startswith("../") else f"./{link}"
