"""The provenance that a job's products would have, and whether existing products match it."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Protocol

from tmtool import __version__, models
from tmtool.errors import ProductError
from tmtool.files.writer import Format
from tmtool.models import ModelSpec
from tmtool.names import base
from tmtool.provenance import Provenance, parse
from tmtool.scene.job import Job, Prepared, target
from tmtool.source import Source


def provenance_of(job: Job, prepared: Prepared, spec: ModelSpec, weights: Any) -> Provenance:
    """Return the provenance that all products of a scene share; `weights` are the digests by file, "random",
    or None if they are not known before they are fetched.
    """
    taken = list(job.task.taken(prepared.sources, job.entry))
    read = _read(job, prepared)
    return Provenance(
        task=job.task.name,
        model=job.model,
        version=__version__,
        libraries={name: _version(name) for name in ("terratorch", "torch", "rasterio")},
        weights=weights,
        inputs={m: base(s.path) for m, s in prepared.sources.items()},
        input_states={m: _state(s) for m, s in prepared.sources.items()}
        | ({"level": _state(prepared.reference)} if prepared.reference else {}),
        outputs=spec.outputs,
        offsets={m: s.offset for m, s in prepared.sources.items() if s.modality.is_optical},
        read=read,
        seed=job.seed,
        sampling=spec.request.sampling.said(),
        tiling=vars(prepared.plan.tiling),
        precision=spec.compute.precision,
        device=spec.compute.device.partition(":")[0],
        threads=spec.compute.threads,
        compiled=True if spec.compute.compiled else None,
        warning=notice_of(job) or None,
        details={
            **job.task.details(spec, prepared.made),
            **({"dates": taken} if taken else {}),
            **({"whole": list(prepared.plan.shape[::-1])} if read and "part" in read else {}),
            **_told({m: s.date for m, s in prepared.sources.items()}, "acquired"),
            **_told({m: s.baseline for m, s in prepared.sources.items()}, "baselines"),
            **_told({m: s.platform for m, s in prepared.sources.items()}, "platforms"),
            **_told({m: s.delivery.item for m, s in prepared.sources.items() if s.delivery}, "items"),
        },
    )


def notice_of(job: Job) -> str:
    """Return what users of a job's products have to know, or nothing."""
    if job.weights == models.RANDOM:
        return "RANDOM WEIGHTS: the products mean nothing. They show that the pipeline works, not what the model does."
    return job.entry.notice


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _told(values: Mapping[str, str | None], name: str) -> dict[str, dict[str, str]]:
    """Return what some inputs say of themselves, if any does."""
    known = {m: value for m, value in values.items() if value}
    return {name: known} if known else {}


def _read(job: Job, prepared: Prepared) -> dict[str, Any] | None:
    """Return how inputs were read, as far as it is not as they are; None if it is."""
    said: dict[str, Any] = {}
    for name, source in prepared.sources.items():
        own = {"warped": source.brought, "unit": source.unit_why, "gain": source.gain if source.gain != 1 else None}
        if kept := {key: value for key, value in own.items() if value}:
            said[name] = kept
    plan, extent = prepared.plan, job.extent
    if plan.part is not None and (plan.rows, plan.cols) != (range(plan.shape[0]), range(plan.shape[1])):
        said["part"] = [plan.cols.start, plan.rows.start, len(plan.cols), len(plan.rows)]
    if any(source.codes for source in prepared.sources.values()):
        said["lulc_codes"] = job.reading.lulc_codes
    if job.reading.grid:
        said["grid"] = job.reading.grid
    said |= {"anchor": extent.anchor} if prepared.plan.pinned else {}
    said |= {"mask": [_named(name) for name in job.reading.mask]} if job.reading.mask else {}
    said |= {"aoi": _named(extent.aoi)} if extent.aoi else {}
    return said or None


def _named(path: str) -> str:
    """Return a file's name and state, or a word that names no file."""
    state = _state_of(path)
    return f"{base(path)}, {state}" if state else base(path)


def _state(source: Source) -> str:
    """Return what reveals a changed file: its size and modification time, of several together; empty for what is not local."""
    states = [_state_of(path) for path in source.files]
    if len(states) == 1:
        return states[0]
    return hashlib.sha256("\n".join(states).encode()).hexdigest()[:16] if any(states) else ""


def _state_of(path: str) -> str:
    try:
        found = os.stat(path)
    except OSError:
        return ""
    return f"{found.st_size} bytes, changed {found.st_mtime_ns}"


@dataclass(frozen=True)
class Status:
    """Whether a scene's products exist: all as this job makes them, not all, or made differently (`other`), and `why`."""

    kind: Literal["absent", "done", "other"]
    why: str = ""


class Place(Protocol):
    """Where finished products are looked for, by the paths at which they are made."""

    def exists(self, path: Path) -> bool:
        """Whether a product, or what lies beside one, is there."""
        ...

    def tags(self, path: Path, format: Format) -> Mapping[str, str]:
        """Return the tags of a product that is there. Raises `ProductError` if it is not whole."""
        ...

    def name(self, path: Path) -> str:
        """Return what a product is called there."""
        ...


class Here:
    """Products stay where they are made."""

    def exists(self, path: Path) -> bool:
        """Whether there is such a file or folder."""
        return path.exists()

    def tags(self, path: Path, format: Format) -> Mapping[str, str]:
        """Return the tags of a product. Raises `ProductError`."""
        return format.tags(path.absolute())  # as a name such as http:a would be a URI where it begins the path

    def name(self, path: Path) -> str:
        """Return the path."""
        return str(path)


def status_of(prepared: Prepared, provenance: Provenance, place: Place) -> Status:
    """Compare the products that exist in a place with what would be made now."""
    wanted = [p for p in prepared.products if not p.holes]
    existing = [p for p in wanted if place.exists(target(prepared.scene, p))]
    for product in existing:
        path = target(prepared.scene, product)
        name = place.name(path)
        try:
            made = parse(place.tags(path, product.format))
        except ProductError as error:
            return Status("other", f"{name} is incomplete or damaged ({error})")
        if made is None:
            return Status("other", f"{name} exists and was not made by tmtool")
        if provenance.weights is None:
            made = replace(made, weights=None)
        if changed := made.differences(provenance):
            return Status("other", f"{name} exists and was made differently: {'; '.join(changed)}")
        if made.validity and not place.exists(path.parent / made.validity):
            return Status("absent", f"{made.validity} is missing")
    return Status("done" if len(existing) == len(wanted) else "absent")
