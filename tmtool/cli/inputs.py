"""INPUT arguments to scenes: files, folders, globs, GDAL's virtual paths, and lists on standard input."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tmtool.errors import InputError, UsageError
from tmtool.job import Scene
from tmtool.writer import WORK_PREFIX

_RASTERS = (".tif", ".tiff", ".vrt", ".jp2", ".img")


def scenes(arguments: Sequence[str], output_dir: Path) -> list[Scene]:
    """Return the scenes in a stable order. A folder's structure is mirrored under `output_dir`.

    Raises `InputError` for a folder or glob that holds nothing, `UsageError` where two inputs would share a product.
    """
    found = [Scene(path, _stem(path), output_dir / below) for path, below in _expand(arguments)]
    found = list({scene.path: scene for scene in found}.values())
    by_target: dict[Path, Scene] = {}
    for scene in found:
        other = by_target.setdefault(scene.folder / scene.stem, scene)
        if other is not scene:
            raise UsageError(
                f"{other.path} and {scene.path} would both write {scene.folder / scene.stem}_*.tif. Run them with "
                "different --output-dir."
            )
    if not found:
        raise UsageError("No input: the list is empty.")
    return found


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
