"""INPUT arguments to scenes: files, folders, globs, GDAL's virtual paths, and lists of them.

The order is stable: arguments as they are given, then `--files-from`; a folder's or glob's files sorted by path, as strings.
A file that is named twice counts once, where it comes first.
"""

import glob
import json
import logging
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from tmtool.batch._pairs import is_many, paired
from tmtool.catalog import is_document
from tmtool.errors import InputError, UsageError
from tmtool.files.writer import WORK_PREFIX
from tmtool.modality import Modality, find
from tmtool.names import base, in_one_word
from tmtool.provenance import PROVENANCE_TAG
from tmtool.scene.job import Scene
from tmtool.source import opened
from tmtool.source.deliveries import collected, grouped, is_delivery
from tmtool.tasks import TASKS

_log = logging.getLogger("tmtool")

_RASTERS = (".tif", ".tiff", ".vrt", ".jp2", ".img")
_FOLDERS = (".safe", ".zarr")
"""Endings of folders that are products, not folders of rasters."""
_BESIDE = (".aux.xml", ".ovr", ".msk", ".parquet")
"""Endings of sidecar files, which a glob or pattern such as `*` also matches."""


@dataclass(frozen=True)
class Listing:
    """What the inputs are taken from; the names are the command line's.

    With `tokens`, token rasters in folders and globs are taken too.
    """

    arguments: Sequence[str] | None = None
    recursive: bool = False
    pattern: str | None = None
    files_from: str | None = None
    null: bool = False
    shard: str | None = None
    tokens: bool = False


def list_scenes(
    listing: Listing,
    output_dir: Path,
    taken_for: Sequence[str] = (),
    bands: Mapping[str, Sequence[str]] | None = None,
) -> list[Scene]:
    """Return the scenes in a stable order. A folder's structure is mirrored under `output_dir`.

    `taken_for` is what `--in` said: nothing, what the inputs are (`MOD`), or the rasters of each scene (`MOD=FILE`, or a folder
    or pattern for several scenes);
    `bands` names the bands of a modality that are used. Raises `InputError` for a folder or glob that holds nothing,
    `UsageError` where two inputs would share a product or options do not fit together. There are none if the shard that
    was asked for is empty.
    """
    _check_folder(output_dir)
    share = _share(listing.shard)
    pairs = [text.partition("=") for text in taken_for]
    if any(equals for _, equals, _ in pairs):
        if listing.arguments or listing.files_from is not None or not all(path for *_, path in pairs):
            raise UsageError("--in MOD=FILE names the rasters of one scene: give it for each modality, and no INPUT.")
        found = _paired_scenes(listing, output_dir, [(name, path) for name, _, path in pairs], bands)
    else:
        found = _listed_scenes(listing, output_dir, _asked(taken_for, bands))
    mine = found[share]
    if not mine:
        _log.info("--shard %s: nothing to do, there are fewer scenes (%d) than jobs.", listing.shard, len(found))
    return mine


def _paired_scenes(
    listing: Listing, output_dir: Path, pairs: Sequence[tuple[str, str]], bands: Mapping[str, Sequence[str]] | None
) -> list[Scene]:
    """Return the scene, or scenes, of `--in MOD=FILE`. Raises `UsageError`."""
    paths = [path for _, path in pairs]
    scenes = (
        {"": list(pairs)}
        if not is_many(paths, is_delivery)
        else paired(list(pairs), _Expansion(listing).folder, is_delivery)
    )
    found = []
    for stem, rasters in scenes.items():
        inputs = tuple((_modality(name, bands), in_one_word(path)) for name, path in rasters)
        found.append(Scene(inputs, _as_file_name(stem, stem) if stem else _stem(inputs[0][1]), output_dir))
    return found


def _asked(taken_for: Sequence[str], bands: Mapping[str, Sequence[str]] | None) -> Modality | None:
    """Return what all inputs are taken for, if `--in` or `--bands` says it."""
    if len(taken_for) > 1:
        raise UsageError(f"--in {' --in '.join(taken_for)}: inputs are one thing; for several write --in MOD=FILE.")
    asked = next(iter(taken_for), None) or (next(iter(bands)) if bands and len(bands) == 1 else None)
    return _modality(asked, bands) if asked else None


def _listed_scenes(listing: Listing, output_dir: Path, modality: Modality | None) -> list[Scene]:
    """Return one scene a raster. Raises `UsageError` if there is none or two would share a product."""
    if not listing.arguments and listing.files_from is None:
        raise UsageError("No input: give INPUT, --files-from, or --in MOD=FILE for each modality of one scene.")
    here, by_path, by_target = Path.cwd(), dict[Path, Scene](), dict[Path, Scene]()
    for path, below in _Expansion(listing).inputs():
        by_path.setdefault(here / path, Scene(((modality, path),), _stem(path), output_dir / below))
    for scene in by_path.values():
        other = by_target.setdefault(scene.folder / scene.stem, scene)
        if other is not scene:
            raise UsageError(
                f"{other.path} and {scene.path} would both write {scene.folder / scene.stem}_*. Run them with "
                "different --output-dir, or give the folder above them with --recursive, which mirrors its folders."
            )
    if not by_path:
        raise UsageError("No input: the list is empty.")
    return list(by_path.values())


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


def _check_folder(folder: Path) -> None:
    """Raise `UsageError` if it is not a folder that GDAL can write to."""
    try:
        str(folder).encode()
    except UnicodeError:
        raise UsageError(f"--output-dir {str(folder)!r}: GDAL takes names in UTF-8 only; choose another.") from None


def _share(shard: str | None) -> slice:
    """Return which of the scenes `--shard K/N` asks for: all without it."""
    if shard is None:
        return slice(None)
    parts = re.fullmatch(r"([0-9]+)/([0-9]+)", shard)
    k, n = map(int, parts.groups()) if parts else (0, 0)
    if not 1 <= k <= n:
        raise UsageError(
            f"--shard {shard}: give K/N, K from 1 to N; --shard 2/8 is the second of eight jobs that share a list."
        )
    return slice(k - 1, None, n)


class _Expansion:
    """Expands arguments, folders, globs and lists; counts the files that it skips because tmtool wrote them."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._skipped = 0

    def inputs(self) -> Iterator[tuple[str, Path]]:
        """Yield (path, folder below the output folder)."""
        yield from self._expand(self._listing.arguments or ())
        if self._listing.files_from is not None:
            yield from self._expand(_entries(self._listing.files_from, self._listing.null))
        if self._skipped:
            _log.debug("Not taken as input: %d products, work files and sidecars in folders and globs.", self._skipped)

    def _expand(self, arguments: Iterable[str]) -> Iterator[tuple[str, Path]]:
        for argument in arguments:
            if argument == "-":
                yield from self._expand(_entries("-", self._listing.null))
            elif of_collection := collected(argument):
                yield from ((path, Path()) for path in of_collection)
            elif is_delivery(argument):
                yield argument, Path()
            elif os.path.isdir(argument):
                for path in grouped(self.folder(argument)):
                    yield path, Path(path).parent.relative_to(argument)
            elif glob.has_magic(argument) and not (os.path.exists(argument) or _is_virtual(argument)):
                yield from ((path, Path()) for path in grouped(self._glob(argument)))
            else:
                yield in_one_word(argument), Path()

    def folder(self, argument: str) -> list[str]:
        """Return the rasters in a folder. Raises `InputError` if there are none."""
        listing = self._listing
        paths = sorted(str(path) for path in _inside(Path(argument), listing))
        if not paths and argument.rstrip("/").endswith(".zarr"):
            raise InputError(
                f"{argument}: is Zarr, of which only ESA's Sentinel-2 products (EOPF) are read; make products of tmtool with --format cog."
            )
        if not paths:
            names = listing.pattern or " ".join(f"*{ending}" for ending in _RASTERS)
            hint = "" if listing.recursive else " --recursive also searches its subfolders."
            raise InputError(f"{argument}: holds no raster ({names}).{hint}")
        return self._foreign(argument, paths)

    def _glob(self, argument: str) -> list[str]:
        found = glob.glob(argument, recursive=True)
        paths = sorted(path for path in found if is_delivery(path) or not os.path.isdir(path))
        if not paths:
            raise InputError(f"{argument}: matches no file.")
        return self._foreign(argument, paths)

    def _foreign(self, argument: str, paths: list[str]) -> list[str]:
        """Return the paths without what tmtool wrote."""
        foreign = [path for path in paths if not _is_own(path, self._listing.tokens)]
        self._skipped += len(paths) - len(foreign)
        if not foreign:
            raise InputError(
                f"{argument}: holds nothing but tmtool's own products, work files and sidecars ({len(paths)}), which are "
                "not taken from folders and globs. To use them, name each file."
            )
        return foreign


def _is_virtual(path: str) -> bool:
    """Whether a path is one of GDAL's, or a URL, in which `?` begins a query."""
    return path.startswith("/vsi") or "://" in path


def _inside(root: Path, listing: Listing) -> Iterator[Path]:
    """Yield the files in a folder that are wanted, in no order. Links to folders are not followed."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: this folder cannot be listed ({error.strerror}).") from error

    for folder, below, names in os.walk(root, onerror=refuse):
        products = [n for n in below if n.lower().endswith(_FOLDERS) and is_delivery(os.path.join(folder, n))]
        # work files and products may be folders too, with thousands of files in them
        below[:] = [
            n for n in below if listing.recursive and not n.startswith(WORK_PREFIX) and not n.lower().endswith(_FOLDERS)
        ]
        for name in (*names, *products):
            if fnmatchcase(name, listing.pattern) if listing.pattern else _is_raster(folder, name, products):
                yield Path(folder, name)


def _is_raster(folder: str, name: str, products: Sequence[str]) -> bool:
    """Whether a file or folder is taken from a folder: by its ending, or as a product."""
    zipped = name.lower().endswith(".zip") and is_delivery(os.path.join(folder, name))
    return name in products or zipped or Path(name).suffix.lower() in _RASTERS


def is_product(path: str) -> bool:
    """Whether a file is a raster that tmtool wrote, and not one that marks another's pixels."""
    name = os.path.basename(path)
    if name.startswith((WORK_PREFIX, ".")):
        return False
    said = _provenance_text(path)
    return said is not None and _task(said) in TASKS


def _is_own(path: str, tokens: bool) -> bool:
    """Whether a file is a product, work file, sidecar or STAC of products; with `tokens`, a token raster is none."""
    name = os.path.basename(path)
    if name.startswith(WORK_PREFIX) or name.lower().endswith(_BESIDE) or is_document(Path(path)):
        return True
    if not _like_a_product(name):
        return False
    said = _provenance_text(path)
    if said is None:
        return False
    task = TASKS.get(_task(said) or "")
    return not (tokens and task is not None and task.makes_inputs)


def _like_a_product(name: str) -> bool:
    """Whether a product may have a name, and others may have it too: only the provenance tag says which."""
    suffixes = "|".join(task.suffixes() for task in TASKS.values())
    return re.search(rf"_({suffixes})\.tiff?\Z", name, re.I | re.S) is not None


def _provenance_text(path: str) -> str | None:
    """Return the tag in which tmtool said how it made a file, None if there is none or the file cannot be opened."""
    import rasterio

    try:
        # without this GDAL lists the whole folder at each opening
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"), opened(path) as src:
            text: str | None = src.tags().get(PROVENANCE_TAG)
            return text
    except (InputError, UnicodeError):  # it is kept, and reported when it is its turn
        return None


def _task(provenance: str) -> str | None:
    try:
        said = json.loads(provenance)
    except ValueError:
        return None
    return said.get("task") if isinstance(said, dict) else None


def _entries(name: str, null: bool) -> list[str]:
    """Return the entries of the list in the file `name`, or on standard input if that is `-`."""
    where = "The list on standard input" if name == "-" else f"--files-from {name}"
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({error.strerror}).") from error
    if not null and b"\0" in data:
        raise UsageError(f"{where}: holds NUL characters, expected one path a line; is it NUL-separated? Then add -0.")
    found = data.split(b"\0") if null else [line.strip() for line in data.splitlines()]
    if b"-" in found:
        raise UsageError(f"{where}: holds the entry -; a list cannot name standard input.")
    return [os.fsdecode(entry) for entry in found if entry]


def _stem(path: str) -> str:
    """Name of a scene: its file name without suffix, as far as products can have it; of an item its name, of bands what they share."""
    name = base(path)
    item = path.rpartition("#")[2] if "#" in name else ""
    if item and is_delivery(path):
        return _as_file_name(item, path)
    if "{band}" in name and not os.path.exists(path):
        shared = re.sub(r"[._-]*\{\w+\}[._-]*", ".", name).strip(".")
        return _as_file_name(shared.rpartition(".")[0] or base(os.path.dirname(os.path.abspath(path))), path)
    stem = name.rpartition(".")[0] or name
    stem = stem.removesuffix(".SAFE").removesuffix(".zarr")  # of their zips
    return _as_file_name(stem, path)


def _as_file_name(stem: str, path: str) -> str:
    """Replace control characters, line ends and invalid UTF-8, which product names cannot hold, by `_`, with a warning.

    If `path` is not a file but a GDAL name such as a subdataset's, its `:` and `"` are syntax and are replaced too.
    """
    syntax = "" if os.path.exists(path) or path.startswith("/vsi") else ':"'
    bad = {c for c in stem if c in syntax or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")}
    if not bad:
        return stem
    name = "".join("_" if c in bad else c for c in stem)
    shown = " ".join(ascii(c) for c in sorted(bad))
    _log.warning(
        "%s: products are named %s_..., with _ in place of %s, which file names should not contain",
        ascii(path),
        name,
        shown,
    )
    return name
