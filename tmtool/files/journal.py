"""The journal of a scene: which rows of its products are safely on disk, so that the same command can resume there.

A journal is a file of JSON lines. The first says what is made and how. Each further line is a record: all product rows that
begin above a source row are written and synced, and the checksum of the rows since the record before. A record is appended
after its data is synced, and every line carries its own checksum, so a line that a crash cut short is ignored.
"""

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tmtool.errors import DiskError
from tmtool.files.writer import WORK_PREFIX


@dataclass(frozen=True)
class Record:
    """Product rows that begin above source row `row` are final, of a part of the scene's columns.

    `checksums` are of those since the record before.
    """

    row: int
    checksums: Mapping[str, int]
    varies: bool
    """Whether the input's valid pixels seen so far vary."""
    part: int = 0
    overlaps: Mapping[str, str] = field(default_factory=dict)
    """How far tiles differ in those rows, by output."""


@dataclass
class Journal:
    """The journal at `path`: `header` says what is made and how, `records` how far the run has come."""

    path: Path
    header: Mapping[str, Any]
    records: list[Record] = field(default_factory=list)

    def begin(self) -> None:
        """Write the header and the records, and replace the old journal by an atomic rename."""
        part = self.path.with_name(f"{self.path.name}.part")
        with _reported(self.path), part.open("w") as file:
            file.writelines([_line(self.header), *(_line(vars(record)) for record in self.records)])
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path)

    def add(self, record: Record) -> None:
        """Append a record and sync it. Its data must be synced before."""
        with _reported(self.path), self.path.open("a") as file:
            file.write(_line(vars(record)))
            file.flush()
            os.fsync(file.fileno())
        self.records.append(record)

    def remove(self) -> None:
        """Remove the journal: the scene is done or abandoned."""
        self.path.unlink(missing_ok=True)


def journal_path(folder: Path, stem: str, task: str) -> Path:
    """Return where the journal of a scene lies."""
    return folder / f"{WORK_PREFIX}{stem}_{task}.journal"


def read(path: Path) -> Journal | None:
    """Return the journal at `path` up to its last intact line; None if there is none or its header is damaged."""
    try:
        lines = path.read_text(errors="replace").splitlines(keepends=True)
    except OSError:
        return None
    whole = []
    for line in lines:
        content = _content(line)
        if content is None:
            break
        whole.append(content)
    if not whole:
        return None
    try:
        return Journal(path, whole[0], [Record(**content) for content in whole[1:]])
    except TypeError:  # lines of something else
        return None


def _line(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def _content(line: str) -> dict[str, Any] | None:
    check, _, text = line.rstrip("\n").partition(" ")
    if not line.endswith("\n") or check != f"{zlib.crc32(text.encode()):08x}":
        return None
    content = json.loads(text)
    return content if isinstance(content, dict) else None


class _reported:
    """Turns an `OSError` into a `DiskError` that names the journal."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise DiskError(f"{self._path}: the journal cannot be written ({error.strerror}).") from error
