"""How products are made, as they say it themselves; and whether those that exist are what a job would make."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from tmtool import __version__, models
from tmtool.errors import InputError, ProductError
from tmtool.job import Job, Prepared, target
from tmtool.modality import MODALITIES
from tmtool.models import ModelSpec
from tmtool.names import base
from tmtool.writer import PROVENANCE_TAG

_BESIDE_THE_PIXELS = (
    *("libraries", "inputs", "device", "batch_size", "threads", "validity", "modality", "layer", "warning"),
)
"""What provenance tells without its making another product: results differ by rounding at most."""


def provenance_of(job: Job, prepared: Prepared, spec: ModelSpec, weights: Any) -> dict[str, Any]:
    """Return what all products of a scene say of how they were made; `weights` are the digests by file, or "random"."""
    said: dict[str, Any] = {
        "tool": "tmtool",
        "version": __version__,
        "libraries": {name: _version(name) for name in ("terratorch", "torch", "rasterio")},
        "task": job.task,
        "model": job.model,
        "weights": weights,
        "inputs": {m: base(s.path) for m, s in prepared.sources.items()},
        "input_states": {m: _state(s.path) for m, s in prepared.sources.items()},
        "outputs": list(spec.outputs),
        "offsets": {m: s.offset for m, s in prepared.sources.items() if s.modality.is_optical},
        "seed": job.seed,
        "sampling": vars(job.sampling),
        "tiling": vars(prepared.plan.tiling),
        "precision": spec.compute.precision,
        "device": spec.compute.device.partition(":")[0],
        "threads": spec.compute.threads,
    }
    if spec.compute.compiled:
        said["compiled"] = True
    if job.task == "tokenize":
        height, width = prepared.grid.shape
        said["source"] = {"height": height, "width": width}
        said["codebook"] = MODALITIES[spec.inputs[0]].codebook
    if job.task == "embed":
        said["bands"] = {m: list(spec.modality(m).bands) for m in spec.inputs}
        said["embedding"] = vars(job.embedding) | vars(job.vectors)
    if notice := notice_of(job):
        said["warning"] = notice
    return said


def notice_of(job: Job) -> str:
    """Return what users of a job's products have to know, or nothing."""
    if job.weights == models.RANDOM:
        return "RANDOM WEIGHTS: the products mean nothing. They show that the pipeline works, not what TerraMind does."
    return models.find(job.model).notice


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _state(path: str) -> str:
    """Return what tells a changed file: its size and time of change; nothing of what is no local file."""
    try:
        found = os.stat(path)
    except OSError:
        return ""
    return f"{found.st_size} bytes, changed {found.st_mtime_ns}"


def fingerprint(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a provenance that decides the pixels, as JSON gives it back."""
    kept = {key: value for key, value in said.items() if key not in _BESIDE_THE_PIXELS}
    kept["version"] = ".".join(str(kept.get("version", "")).split(".")[:2])
    plain: dict[str, Any] = json.loads(json.dumps(kept))
    return plain


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return how two fingerprints differ, one line of words each: `seed: was 0, is 1`."""
    found = []
    for key in sorted({*before, *now}):
        a, b = before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += [f"{key}.{line}" for line in differences(a, b)]
        elif a != b:
            found.append(f"{key}: was {_short(a)}, is {_short(b)}")
    return found


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


@dataclass(frozen=True)
class Status:
    """Whether a scene's products exist: all as they would be made, not all, or as something `other`, and `why`."""

    kind: Literal["absent", "done", "other"]
    why: str = ""


def status_of(prepared: Prepared, said: Mapping[str, Any]) -> Status:
    """Compare the products that exist with what would be made now."""
    existing = [p for p in prepared.products if not p.holes and target(prepared.scene, p).exists()]
    wanted = [p for p in prepared.products if not p.holes]
    for product in existing:
        path = target(prepared.scene, product)
        try:
            made = json.loads(product.format.tags(path).get(PROVENANCE_TAG, "null"))
        except (ProductError, ValueError) as error:
            return Status("other", f"{path} is not whole ({error})")
        if not made:
            return Status("other", f"{path} exists and was not made by tmtool")
        if changed := differences(fingerprint(made), fingerprint(said)):
            return Status("other", f"{path} exists and was made otherwise: {'; '.join(changed)}")
        if made.get("validity") and not (path.parent / made["validity"]).exists():
            return Status("absent", f"{made['validity']} is missing")
    return Status("done" if len(existing) == len(wanted) else "absent")


def check_tokenizer(prepared: Prepared, said: Mapping[str, Any]) -> None:
    """Raise `InputError` for tokens that another tokenizer made than the one that would decode them."""
    for source in prepared.sources.values():
        if source.made and source.made.get("weights") != said["weights"]:
            raise InputError(
                f"{source.path}: its tokens were made by another tokenizer ({source.made.get('model')}, "
                f"{weights_text(source.made.get('weights'))}) than the one in use ({said['model']}, "
                f"{weights_text(said['weights'])}). Use the --model and --weights that they were made with."
            )


def weights_text(weights: Any) -> str:
    """Return a provenance's weights in a few words."""
    if not isinstance(weights, dict):
        return f"{weights} weights"
    return ", ".join(f"{Path(name).name} {value[:12]}" for name, value in weights.items())
