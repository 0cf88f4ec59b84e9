"""The outcome of each scene of a run, for standard output, the report and the summary."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tmtool import __version__, errors
from tmtool.files.store import Store, is_store
from tmtool.names import cleaned
from tmtool.scene.job import Prepared, Scene
from tmtool.scene.run import SceneResult

STATUSES = ("planned", "done", "skipped", "kept", "failed", "invalid")


@dataclass
class Outcome:
    """The outcome of one scene: its status (one of `STATUSES`), and a reason where one is needed."""

    scene: Scene
    status: str
    prepared: Prepared | None = None
    result: SceneResult | None = None
    error: Exception | None = None
    why: str = ""
    estimate: Mapping[str, float] = field(default_factory=dict)
    """Rough run time in seconds on several kinds of device."""
    pictures: list[str] = field(default_factory=list)
    """Pictures that were drawn of the products."""
    item: str = ""
    """The STAC item that lists the products, if one was asked for."""
    name: Callable[[Path], str] = str
    """Returns what a file that a scene made is called where it goes."""

    @property
    def bad(self) -> bool:
        """Whether the scene has no products, though it should."""
        return self.status in ("failed", "invalid")

    @property
    def paths(self) -> list[str]:
        """The products that exist, or would."""
        if self.result is not None:
            return [self.name(path) for path in self.result.products]
        return list(self._planned(self.prepared).values()) if self.prepared and not self.bad else []

    def facts(self) -> dict[str, Any]:
        """Return the outcome as JSON-ready values, without secrets."""
        said: dict[str, Any] = {
            "status": self.status,
            "inputs": [path for _, path in self.scene.inputs],
            "products": {},
        }
        if self.prepared is not None:
            said["inputs"] = {m: s.path for m, s in self.prepared.sources.items()}
            said["products"] = self._planned(self.prepared)
            said["tiles"] = self.prepared.tile_count
        if self.status == "planned" and self.prepared is not None:
            said["disk_bytes"] = self.prepared.disk_bytes
            said["estimated_seconds"] = self.estimate
        if self.why:
            said["why"] = self.why
        if self.result is not None:
            said |= {
                "beside": [self.name(path) for path in self.result.beside],
                "empty_tiles": self.result.empty_tiles,
                "seconds": round(self.result.seconds, 3),
                "model_seconds": round(self.result.model_seconds, 3),
                "stalls": {what: round(seconds, 3) for what, seconds in self.result.stalls.items()},
                "from_row": self.result.from_row,
                "warnings": list(self.result.warnings),
                "measured": dict(self.result.measured),
            }
        if self.pictures:
            said["pictures"] = [self.name(Path(path)) for path in self.pictures]
        if self.item:
            said["item"] = self.name(Path(self.item))
        if self.error is not None:
            code = self.error.exit_code if isinstance(self.error, errors.TmtoolError) else errors.EXIT_SOME_FAILED
            said["error"] = {"kind": type(self.error).__name__, "code": code, "message": str(self.error)}
        facts: dict[str, Any] = cleaned(said)
        return facts

    def _planned(self, prepared: Prepared) -> dict[str, str]:
        """Return where each product of a scene goes."""
        targets = zip(prepared.products, prepared.targets, strict=True)
        return {p.suffix: self.name(path) for p, path in targets if not p.holes}


@dataclass
class Tally:
    """The outcomes of a run, and when it began."""

    outcomes: list[Outcome] = field(default_factory=list)
    began: float = field(default_factory=time.time)

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of scenes by status, for the statuses that occur."""
        found = {status: sum(o.status == status for o in self.outcomes) for status in STATUSES}
        return {status: count for status, count in found.items() if count}

    @property
    def exit_code(self) -> int:
        """Return the exit status: 2 if no scene could be used at all, 1 if some have failed."""
        if self.outcomes and all(o.status == "invalid" for o in self.outcomes):
            return errors.EXIT_NOTHING_TO_DO
        return errors.EXIT_SOME_FAILED if any(o.bad for o in self.outcomes) else 0

    def text(self) -> str:
        """Return the closing lines."""
        lines = [f"{len(self.outcomes)} scenes: " + ", ".join(f"{n} {status}" for status, n in self.counts.items())]
        lines += [f"  {o.status:<8} {o.scene.path}" for o in self.outcomes if o.bad]
        return "\n".join(lines)

    def write(self, where: str | Path, ended_by: str) -> None:
        """Write the report of the run, by an atomic rename, into an object store, or directly into a pipe or device.

        Raises `OutputError`.
        """
        report = {
            "tool": "tmtool",
            "version": __version__,
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.began)),
            "seconds": round(time.time() - self.began, 3),
            "ended_by": ended_by,
            "counts": self.counts,
            "scenes": [o.facts() for o in self.outcomes],
        }
        text = json.dumps(report, indent=1) + "\n"
        if is_store(str(where)):
            _upload(str(where), text)
            return
        path = Path(where)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file():  # a pipe or a device, which a rename would replace
                path.write_text(text)
                return
            part.write_text(text)
            part.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):  # such as that there is no such file
                part.unlink()
            raise errors.OutputError(f"--report {path}: cannot be written ({error.strerror}).") from error


def _upload(url: str, text: str) -> None:
    folder, _, name = url.rpartition("/")
    try:
        Store(folder).write(name, text.encode())
    except errors.StoreError as error:
        raise errors.OutputError(f"--report {url}: cannot be written ({str(error).rstrip('.')}).") from error
