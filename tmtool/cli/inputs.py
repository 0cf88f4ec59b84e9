"""INPUT arguments to scenes: files, folders, globs, GDAL's virtual paths, and lists on standard input."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tmtool.errors import InputError, UsageError
from tmtool.job import Scene
from tmtool.modality import Modality, find
from tmtool.writer import WORK_PREFIX

_RASTERS = (".tif", ".tiff", ".vrt", ".jp2", ".img")


def scenes(
    arguments: Sequence[str] | None,
    output_dir: Path,
    taken_for: Sequence[str] = (),
    bands: Mapping[str, Sequence[str]] | None = None,
) -> list[Scene]:
    """Return the scenes in a stable order. A folder's structure is mirrored under `output_dir`.

    `taken_for` is what `--in` said: nothing, what the inputs are (`MOD`), or the rasters of one scene (`MOD=FILE`);
    `bands` names the bands of a modality that are used. Raises `InputError` for a folder or glob that holds nothing,
    `UsageError` where two inputs would share a product or options do not fit together.
    """
    pairs = [text.partition("=") for text in taken_for]
    if any(equals for _, equals, _ in pairs):
        if arguments or not all(path for *_, path in pairs):
            raise UsageError("--in MOD=FILE names the rasters of one scene: give it for each modality, and no INPUT.")
        inputs = tuple((_modality(name, bands), path) for name, _, path in pairs)
        return [Scene(inputs, _stem(inputs[0][1]), output_dir)]
    if not arguments:
        raise UsageError("No input: give INPUT, or --in MOD=FILE for each modality of one scene.")
    if len(taken_for) > 1:
        raise UsageError(f"--in {' --in '.join(taken_for)}: inputs are one thing; for several write --in MOD=FILE.")
    asked = next(iter(taken_for), None) or (next(iter(bands)) if bands and len(bands) == 1 else None)
    modality = _modality(asked, bands) if asked else None
    found = [Scene(((modality, path),), _stem(path), output_dir / below) for path, below in _expand(arguments)]
    found = list({scene.path: scene for scene in found}.values())
    by_target: dict[Path, Scene] = {}
    for scene in found:
        other = by_target.setdefault(scene.folder / scene.stem, scene)
        if other is not scene:
            raise UsageError(
                f"{other.path} and {scene.path} would both write {scene.folder / scene.stem}_*. Run them with "
                "different --output-dir."
            )
    if not found:
        raise UsageError("No input: the list is empty.")
    return found


def _modality(name: str, bands: Mapping[str, Sequence[str]] | None) -> Modality:
    modality = find(name)
    return modality.subset(bands[modality.name]) if bands and modality.name in bands else modality


def bands_of(options: Sequence[str] | None) -> dict[str, tuple[str, ...]]:
    """Return the bands that `--bands MOD=BAND,...` asks for, by modality and in tmtool's names."""
    chosen: dict[str, tuple[str, ...]] = {}
    for text in options or ():
        name, equals, names = text.partition("=")
        if not equals:
            raise UsageError(f"--bands {text}: say of which modality, such as --bands S2L1C=BLUE,GREEN,RED.")
        modality = find(name)
        chosen[modality.name] = modality.subset([band for band in names.split(",") if band]).bands
    return chosen


def _expand(arguments: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Yield (path, folder below the output folder)."""
    for argument in arguments:
        if argument == "-":
            yield from _expand(line for line in map(str.strip, sys.stdin) if line and line != "-")
        elif os.path.isdir(argument):
            root = Path(argument)
            files = sorted(
                p for p in root.iterdir() if p.suffix.lower() in _RASTERS and not p.name.startswith(WORK_PREFIX)
            )
            if not files:
                raise InputError(f"{argument}: holds no raster ({' '.join(f'*{s}' for s in _RASTERS)}).")
            yield from ((str(p), Path()) for p in files)
        elif glob.has_magic(argument) and not os.path.exists(argument) and not argument.startswith("/vsi"):
            paths = sorted(glob.glob(argument, recursive=True))
            if not paths:
                raise InputError(f"{argument}: matches no file.")
            yield from ((p, Path()) for p in paths)
        else:
            yield argument, Path()


def _stem(path: str) -> str:
    """Name of a scene: its file name without suffix, with nothing that could not be part of a file name."""
    name = path.rstrip("/").rpartition("/")[2] or path
    name = name.split("?")[0]
    stem = name.rpartition(".")[0] or name
    return "".join(c if c.isalnum() or c in "-_.+ " else "_" for c in stem)
