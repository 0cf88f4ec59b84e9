"""Provenance: how a product was made, recorded in one of its tags."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from tmtool.names import cleaned

PROVENANCE_TAG = "TMTOOL_PROVENANCE"
"""The tag of a product that says, in JSON, how it was made."""

_TOOL = "tmtool"
_BESIDE_THE_PIXELS = (
    *(
        "libraries",
        "inputs",
        "device",
        "batch_size",
        "threads",
        "validity",
        "modality",
        "layer",
        "warning",
        "acquired",
        "baselines",
        "seams",
        "items",
        "platforms",
    ),
)
"""Fields that do not make it another product: where they differ, results differ by rounding at most."""


@dataclass(frozen=True)
class Provenance:
    """What made a product: the task, the model and its weights, the inputs, and every parameter that decides pixels.

    `weights` are digests by file, or "random". `inputs` are names by modality, `input_states` reveal a changed file.
    `read` says how inputs were read where it is not as they are: warped, converted, in part.
    `details` is particular to this task or product, under keys of its own. A field that is None is not written.
    """

    task: str
    model: str
    version: str = ""
    libraries: Mapping[str, str] = field(default_factory=dict)
    weights: Any = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    input_states: Mapping[str, str] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    offsets: Mapping[str, float] = field(default_factory=dict)
    read: Mapping[str, Any] | None = None
    seed: int = 0
    sampling: Mapping[str, Any] = field(default_factory=dict)
    tiling: Mapping[str, int] = field(default_factory=dict)
    precision: str = ""
    device: str = ""
    threads: int = 0
    batch_size: int | None = None
    compiled: bool | None = None
    warning: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def with_details(self, **details: Any) -> "Provenance":
        """Return the same, with these details too."""
        return replace(self, details={**self.details, **details})

    @property
    def modality(self) -> str:
        """The modality that the product is of; nothing if it does not say."""
        return str(self.details.get("modality", ""))

    @property
    def validity(self) -> str | None:
        """Name of the file beside the product that marks which pixels hold data, if some do not."""
        return self.details.get("validity")

    def facts(self) -> dict[str, Any]:
        """Return everything, ready for JSON: one flat object."""
        said = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "details"}
        return {"tool": _TOOL} | {k: v for k, v in said.items() if v is not None} | dict(self.details)

    def tags(self) -> dict[str, str]:
        """Return the tag that a product carries, without secrets."""
        return {PROVENANCE_TAG: json.dumps(cleaned(self.facts()), sort_keys=True)}

    def fingerprint(self) -> dict[str, Any]:
        """Return the part that decides the pixels, as JSON gives it back."""
        kept = {key: value for key, value in self.facts().items() if key not in _BESIDE_THE_PIXELS}
        kept["version"] = ".".join(self.version.split(".")[:2])
        plain: dict[str, Any] = json.loads(json.dumps(kept))
        return plain

    def differences(self, other: "Provenance") -> list[str]:
        """Return the differences of `other` that change pixels, one line each: `seed: was 0, is 1`."""
        return list(differences(self.fingerprint(), other.fingerprint()))


def parse(tags: Mapping[str, Any]) -> Provenance | None:
    """Return the provenance in a product's tags; None if there is none.

    Unknown keys become details, absent ones have no value: products of older versions can be read.
    """
    try:
        said = json.loads(tags.get(PROVENANCE_TAG, "null"))
    except (ValueError, TypeError):
        return None
    if not isinstance(said, dict) or not said:
        return None
    said.pop("tool", None)
    known = {f.name for f in fields(Provenance)} - {"details"}
    own = {key: value for key, value in said.items() if key in known}
    own["outputs"] = tuple(own.get("outputs", ()))
    details = {key: value for key, value in said.items() if key not in known}
    return Provenance(**{"task": "", "model": ""} | own, details=details)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield how two fingerprints differ, one line of words each."""
    for key in sorted({*before, *now}):
        a, b = before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from (f"{key}.{line}" for line in differences(a, b))
        elif a != b:
            yield f"{key}: was {_short(a)}, is {_short(b)}"


def weights_text(weights: Any) -> str:
    """Return a provenance's weights in a few words."""
    if not isinstance(weights, dict):
        return f"{weights} weights"
    return ", ".join(f"{name.rpartition('/')[2]} {value[:12]}" for name, value in weights.items())


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
