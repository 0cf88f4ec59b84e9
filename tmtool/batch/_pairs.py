"""Scenes of several rasters each: `--in MOD=PATTERN` with the fields {stem}, {date} and {band}, or a folder for each modality."""

import functools
import glob
import os
import re
import sys
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tmtool.dates import parsed
from tmtool.errors import InputError, UsageError

_FIELDS = {
    "stem": r"(?P<stem>[^/]+)",
    "date": r"(?P<date>\d{4}-?\d\d-?\d\d(?:[T_]?\d\d:?\d\d:?\d\d)?)",
    "band": r"(?P<band>[^/]+)",
}
_FIELD = re.compile(r"\{(\w*)\}")

Inputs = list[tuple[str, str]]
"""Modality and path of each raster of a scene."""

ListFolder = Callable[[str], Sequence[str]]
"""Lists the rasters of a folder."""


@dataclass(frozen=True)
class _Pattern:
    """What `--in` said of one modality: a path, or a pattern with fields."""

    modality: str
    text: str

    @property
    def fields(self) -> list[str]:
        return _FIELD.findall(self.text)

    @cached_property
    def _paths(self) -> list[str]:
        """All files that may match, sorted: looked for once, whatever the number of scenes."""
        return sorted(glob.glob(_FIELD.sub("*", self.text)))

    def _candidates(self, stem: str | None) -> Sequence[str]:
        """Return the files that may match a stem: those that begin as the pattern does up to it."""
        before, field, _ = self.text.partition("{stem}")
        if stem is None or not field or glob.has_magic(before) or "{" in before:
            return self._paths
        start = before + stem
        return self._paths[bisect_left(self._paths, start) : bisect_left(self._paths, start + chr(sys.maxunicode))]

    def matches(self, stem: str | None = None) -> Iterator[tuple[str, str, str]]:
        """Yield (stem, date, path) of each file; {band} stays in the path."""
        expression = self._expression({"stem": re.escape(stem)} if stem is not None else {})
        for path in self._candidates(stem):
            found = expression.fullmatch(path)
            if found is None:
                continue
            groups = found.groupdict()
            if "band" in groups:
                start, stop = found.span("band")
                path = f"{path[:start]}{{band}}{path[stop:]}"
            yield stem if stem is not None else groups.get("stem", ""), groups.get("date", ""), path

    def _expression(self, given: Mapping[str, str]) -> re.Pattern[str]:
        """Return the regular expression of the paths; a field that comes again has to be the same."""
        seen: set[str] = set()
        parts = []
        for i, part in enumerate(_FIELD.split(self.text)):
            if i % 2 == 0:
                parts.append(re.escape(part).replace(r"\*", "[^/]*").replace(r"\?", "[^/]"))
            elif part in given:
                parts.append(given[part])
            else:
                parts.append(f"(?P={part})" if part in seen else _FIELDS[part])
                seen.add(part)
        return re.compile("".join(parts))


def is_many(paths: Sequence[str], is_product: Callable[[str], bool]) -> bool:
    """Whether `--in MOD=PATH` names rasters of several scenes, or dates: by a field or by a folder that is no product."""
    return any(
        {*_FIELD.findall(path)} - {"band"} or (os.path.isdir(path) and not is_product(path))
        for path in paths
        if not path.startswith("/vsi")  # where GDAL has braces of its own
    )


def paired(asked: Inputs, list_folder: ListFolder, is_product: Callable[[str], bool]) -> dict[str, Inputs]:
    """Return the rasters of each scene by its stem, in order of the first modality's; the dates of a modality in order.

    A partner that is missing stays as a pattern that matches nothing, which is the scene's error when it is its turn. Raises
    `UsageError` for patterns that cannot work, `InputError` where the first one matches nothing.
    """
    list_folder = functools.cache(list_folder)
    patterns = [_Pattern(name, text) for name, text in asked]
    for pattern in patterns:
        _check(pattern, is_product)
    first, *others = patterns
    if "stem" not in first.fields and not os.path.isdir(first.text):
        return {"": [pair for pattern in patterns for pair in _of_scene(pattern, None, list_folder, is_product)]}
    stems = _stems(first, list_folder)
    return {
        stem: [*inputs, *(pair for p in others for pair in _of_scene(p, stem, list_folder, is_product))]
        for stem, inputs in stems.items()
    }


def _check(pattern: _Pattern, is_product: Callable[[str], bool]) -> None:
    unknown = [field for field in pattern.fields if field not in _FIELDS]
    if unknown:
        raise UsageError(
            f"--in {pattern.modality}={pattern.text}: unknown field {{{unknown[0]}}}; fields are {{stem}}, {{date}} and {{band}}."
        )
    if os.path.isdir(pattern.text) and not os.listdir(pattern.text):
        raise InputError(f"{pattern.text}: is an empty folder.")


def _stems(first: _Pattern, list_folder: ListFolder) -> dict[str, Inputs]:
    """Return the rasters of the first modality, by stem."""
    if os.path.isdir(first.text):
        return {_stem(path): [(first.modality, path)] for path in list_folder(first.text)}
    found: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for stem, date, path in first.matches():
        found[stem].append((date, path))
    if not found:
        raise InputError(f"--in {first.modality}={first.text}: matches no file.")
    return {stem: _dated(first, dates) for stem, dates in found.items()}


def _of_scene(
    pattern: _Pattern, stem: str | None, list_folder: ListFolder, is_product: Callable[[str], bool]
) -> Inputs:
    """Return the rasters of one modality for a scene."""
    text = pattern.text
    if os.path.isdir(text) and not is_product(text):
        if stem is None:
            raise UsageError(
                f"--in {pattern.modality}={text}: is a folder, but the first --in names one scene: give a folder or {{stem}} there too."
            )
        there = [path for path in list_folder(text) if _stem(path) == stem]
        return _dated(pattern, [("", path) for path in there]) or [(pattern.modality, f"{text}/{stem}.*")]
    if not pattern.fields or (stem is None and "stem" not in pattern.fields and "date" not in pattern.fields):
        return [(pattern.modality, text)]  # the same for all scenes, such as a mosaic
    if stem is None and "stem" in pattern.fields:
        raise UsageError(
            f"--in {pattern.modality}={text}: the first --in has no {{stem}}, so it is not known which is meant."
        )
    found = [(date, path) for _, date, path in pattern.matches(stem)]
    return _dated(pattern, found) or [
        (pattern.modality, _FIELD.sub(lambda f: (stem or "*") if f[1] == "stem" else "*", text))
    ]


def _dated(pattern: _Pattern, found: Sequence[tuple[str, str]]) -> Inputs:
    """Return the rasters of a modality in order of their dates; without dates there has to be one."""
    by_path = {path: date for date, path in found}
    if "date" not in pattern.fields and len(by_path) > 1:
        raise UsageError(
            f"--in {pattern.modality}={pattern.text}: matches {len(by_path)} files of one scene: {', '.join(list(by_path)[:3])}. "
            "Make the pattern narrower, or say {date} where their dates stand."
        )
    order = sorted(by_path, key=lambda path: (parsed(by_path[path]) or by_path[path], path))
    return [(pattern.modality, path) for path in order]


def _stem(path: str) -> str:
    return Path(path).stem
