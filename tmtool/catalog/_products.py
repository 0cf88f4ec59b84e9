"""The products in a folder, each with what it says of itself."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tmtool.errors import ProductError
from tmtool.files.facts import Facts
from tmtool.files.writer import WORK_PREFIX
from tmtool.provenance import Provenance, parse
from tmtool.tasks import formats, possible_stems, stem_and_suffix


@dataclass(frozen=True)
class Found:
    """A product: where it is, how it was made, and what it says of itself. Its name is `{stem}_{suffix}` and an ending.

    `written` is its modification time, to the second in UTC.
    """

    path: Path
    made: Provenance
    stem: str
    suffix: str
    media_type: str
    facts: Facts
    written: datetime

    @property
    def beside(self) -> Path | None:
        """The file that marks which of its pixels hold data, if it has one."""
        path = self.path.with_name(self.made.validity) if self.made.validity else None
        return path if path and path.exists() else None

    @property
    def picture(self) -> Path | None:
        """The picture of it, if there is one."""
        path = self.path.with_suffix(".png")
        return path if path.exists() else None


def listed(folder: Path, stem: str = "") -> list[Path]:
    """Return what may be products in a folder, by their names, or those of a scene."""
    known, found = formats(), []
    for name in sorted(os.listdir(folder)):
        path = Path(name)
        if path.suffix in known and name.startswith(stem) and not name.startswith((WORK_PREFIX, ".")):
            stems = possible_stems(path.stem)
            if stem in stems or (stems and not stem):
                found.append(folder / name)
    return found


def state(folder: Path, stem: str = "") -> set[tuple[Path, int]]:
    """Return the products in a folder, or those of a scene, with their modification times: what changes where one is written."""
    return {(path, path.stat().st_mtime_ns) for path in listed(folder, stem) if path.exists()}


def looked_at(path: Path) -> Found | None:
    """Return what a product says; None for what tmtool did not make. Raises `ProductError` for one that is damaged."""
    format, written = formats()[path.suffix], datetime.fromtimestamp(int(path.stat().st_mtime), UTC)
    facts = format.look(path) if format.look else Facts(format.tags(path))
    made = parse(facts.tags)
    named = stem_and_suffix(path.stem, made) if made else None
    return Found(path, made, *named, format.media_type, facts, written) if made and named else None


def products(folder: Path, stem: str = "") -> tuple[list[Found], list[ProductError]]:
    """Return the products in a folder, or those of a scene, by their names; and what is wrong with those that are damaged."""
    found, wrong = [], []
    for path in listed(folder, stem):
        try:
            one = looked_at(path)
        except (ProductError, FileNotFoundError) as error:
            if path.exists():  # else it has just been taken away
                wrong.append(ProductError(*error.args))
            continue
        if one and stem in ("", one.stem):
            found.append(one)
    return found, wrong


def by_scene(found: Sequence[Found]) -> Iterator[tuple[str, list[Found]]]:
    """Yield each stem, sorted, with its products."""
    grouped: dict[str, list[Found]] = {}
    for one in found:
        grouped.setdefault(one.stem, []).append(one)
    yield from sorted(grouped.items())
