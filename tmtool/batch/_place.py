"""Where the products of a run go: a folder in which they are made, or an object store to which they are sent when they are whole."""

import base64
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tmtool.batch._claims import Claim, check_writable, claim, claim_path, owner
from tmtool.batch._outcome import Outcome
from tmtool.batch._store_claims import claim_in, owner_in
from tmtool.errors import DiskError, OutputError, ProductError, StoreError, UsageError
from tmtool.files.cog import COG
from tmtool.files.store import Changed, Store, is_store
from tmtool.files.writer import Format, sidecar
from tmtool.provenance import PROVENANCE_TAG
from tmtool.scene.job import Prepared, target
from tmtool.scene.status import Here
from tmtool.scene.writing import leftovers

_log = logging.getLogger("tmtool")

_ABOUT = "tmtool"
"""What an object's metadata have the provenance of a product under."""
_ABOUT_BYTES = 1900
"""S3 takes 2 KB of metadata."""
_MANY = 20
"""Scenes from which on a store is listed rather than asked for each product."""


class Folder(Here):
    """Products are made where they stay, and so are claims."""

    sends = False
    """Whether finished products have to be sent."""

    def __init__(self, root: Path) -> None:
        self.root = root
        """The folder that products are made in."""

    def begin(self, scenes: int) -> None:
        """Prepare for looking at so many scenes, one after the other."""

    def looked(self) -> None:
        """Take notice that all were looked at: from now on what others do meanwhile counts."""

    def check_writable(self, folder: Path) -> None:
        """Raise `OutputError` if nothing can be written in a folder. Leaves nothing behind."""
        check_writable(folder)

    def claim(self, folder: Path, name: str) -> Claim | None:
        """Claim `name` in a folder, or return None where another process has it."""
        return claim(folder, name)

    def owner(self, folder: Path, name: str) -> str | None:
        """Return who has claimed `name` in a folder, None where nobody did."""
        return owner(folder, name)

    def leftovers(self, prepared: Prepared, task: str) -> list[Path]:
        """Return what a scene that is done has no use for."""
        return leftovers(prepared, task)

    def send(self, outcome: Outcome, check: Callable[[], None]) -> None:
        """Send what a scene has made, if `check` does not raise."""

    def finish(self, outcome: Outcome) -> None:
        """Make what goes beside the products before they are sent."""


class Remote(Folder):
    """An object store. Products are made in a folder below `scratch` and sent from there; what is sent is removed here.

    Claims are objects. `beside` is called with a scene whose products are made, before they are sent.
    """

    sends = True

    def __init__(self, url: str, scratch: Path | None, beside: Callable[[Outcome], None] = lambda _: None) -> None:
        self.store = Store(url)
        self._own = None if scratch else Path(tempfile.gettempdir()) / f"tmtool-{_user()}"
        super().__init__((self._own or scratch or Path()) / _folder_name(self.store.url))
        self._make_beside = beside
        self._listed: set[str] | None = None

    def _key(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def begin(self, scenes: int) -> None:
        """List the store if there are many scenes to look at."""
        self._listed = set(self.store.keys()) if scenes > _MANY else None

    def looked(self) -> None:
        """Ask the store from now on."""
        self._listed = None

    def exists(self, path: Path) -> bool:
        """Whether the store has a product, whole."""
        return self._has(self._object(path))

    def _object(self, path: Path) -> str:
        """Return the key of the object that a product is, or that comes last of it."""
        return f"{self._key(path)}/zarr.json" if path.suffix == ".zarr" else self._key(path)

    def _has(self, key: str) -> bool:
        return key in self._listed if self._listed is not None else self.store.look(key) is not None

    def tags(self, path: Path, format: Format) -> Mapping[str, str]:
        """Return the tags of a product: what it was sent with, or else its own. Raises `ProductError`."""
        key = self._object(path)
        seen = self.store.look(key)
        if seen is None:
            raise ProductError(f"{self.store.name(key)}: is no more there.")
        if said := _unpacked(seen.about.get(_ABOUT, "")):
            return {PROVENANCE_TAG: said}
        if format is COG:
            return self.store.raster_tags(key)
        with tempfile.TemporaryDirectory(prefix="tmtool-") as folder:
            copy = Path(folder, path.name)
            self.store.fetch(self._key(path), copy)
            return format.tags(copy)

    def name(self, path: Path) -> str:
        """Return the URL that a file of the folder is sent to."""
        return self.store.name(self._key(path))

    def check_writable(self, folder: Path) -> None:
        """Raise `OutputError` if nothing can be written in the folder, or in the store."""
        if self._own:
            self._own.mkdir(mode=0o700, parents=True, exist_ok=True)
            if str(self._own.stat().st_uid) != _user():
                raise OutputError(f"{self._own}: belongs to another user; choose a folder with --scratch.")
        check_writable(folder)
        try:
            self.store.now()
        except StoreError as error:
            raise OutputError(str(error)) from error

    def claim(self, folder: Path, name: str) -> Claim | None:
        """Claim by an object."""
        return claim_in(self.store, self._key(claim_path(folder, name)))

    def owner(self, folder: Path, name: str) -> str | None:
        """Return who has claimed by an object."""
        key = self._key(claim_path(folder, name))
        return None if self._listed is not None and key not in self._listed else owner_in(self.store, key)

    def leftovers(self, prepared: Prepared, task: str) -> list[Path]:
        """Return also products here that another process made and sent."""
        made = [path for product in prepared.targets for path in (product, sidecar(product)) if path.exists()]
        return [*leftovers(prepared, task), *made]

    def finish(self, outcome: Outcome) -> None:
        """Make what goes beside the products before they are sent."""
        self._make_beside(outcome)

    def send(self, outcome: Outcome, check: Callable[[], None]) -> None:
        """Send what a scene has made, its products last, and remove it here. Raises `DiskError`, and what `check` raises."""
        prepared = outcome.prepared
        if prepared is None:
            return
        check()
        beside = list(self._beside(outcome))
        products = sorted(prepared.products, key=lambda product: not product.holes)
        try:
            for path in beside:
                self._send_item(path) if str(path) == outcome.item else self.store.put(self._key(path), path)
            for product in products:
                self._send_product(target(prepared.scene, product), product.format, check)
        except StoreError as error:
            raise DiskError(
                f"{error} What was made stays in {prepared.scene.folder}, for the next run to send."
            ) from error
        for path in (*beside, *prepared.targets, *map(sidecar, prepared.targets)):
            if path.parent != self.root / "models":  # which others may be about to send
                _remove(path)

    def _beside(self, outcome: Outcome) -> Iterator[Path]:
        """Yield pictures, and the item with those of the models that it links to."""
        yield from map(Path, outcome.pictures)
        if outcome.item:
            yield from sorted(self.root.glob("models/*.json"))
            yield Path(outcome.item)

    def _send_item(self, path: Path) -> None:
        """Send the item of a scene, which goes on listing what other commands have made. Raises `OutputError` for another's file."""
        key, item = self._key(path), json.loads(path.read_bytes())
        while True:
            before = self.store.read(key)
            text = json.dumps(_with_older(item, before[1], self.store.name(key)) if before else item, indent=2)
            try:
                self.store.write(key, f"{text}\n".encode(), before[0].version if before else {})
            except Changed:  # by another process
                continue
            return

    def _send_product(self, path: Path, format: Format, check: Callable[[], None]) -> None:
        names, there = sidecar(path), self._key(sidecar(path))
        if not path.exists():  # one with holes of which there are none
            self.store.delete(self._key(path))
            return
        if names.exists():
            self.store.put(there, names)
        else:
            self.store.delete(there)  # of an older product
        check()
        said = _packed(format.tags(path.absolute()).get(PROVENANCE_TAG, ""))
        self.store.put(self._key(path), path, {_ABOUT: said} if said else None)


def place_of(output_dir: str, scratch: Path | None, beside: Callable[[Outcome], None]) -> Folder:
    """Return the place that `--output-dir` names; `beside` is for an object store's. Raises `UsageError`."""
    if is_store(output_dir):
        return Remote(output_dir, scratch, beside)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://?", output_dir) or output_dir.startswith("/vsi"):
        raise UsageError(
            f"--output-dir {output_dir}: is neither a folder nor an object store that can be written to: s3://bucket/prefix, gs:// "
            "or az:// alike."
        )
    return Folder(Path(output_dir))


def _folder_name(url: str) -> str:
    """Return the name of the folder in which what goes to a URL is made: always the same, so that runs are resumed."""
    plain = re.sub(r"[^A-Za-z0-9.-]+", "-", url.partition("://")[2])[-40:].strip("-.")
    return f"{plain}-{hashlib.sha256(url.encode()).hexdigest()[:10]}"


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else "0"


def _with_older(item: dict[str, Any], older: bytes, name: str) -> dict[str, Any]:
    """Return an item with the products that another one of the scene lists."""
    try:
        found = json.loads(older)
        if "tmtool:kind" not in found["properties"]:
            raise KeyError
        links = {(link["rel"], link["href"]): link for link in (*found["links"], *item["links"])}
        return item | {
            "assets": found["assets"] | item["assets"],
            "links": list(links.values()),
            "stac_extensions": sorted({*found["stac_extensions"], *item["stac_extensions"]}),
        }
    except (ValueError, TypeError, KeyError):
        raise OutputError(f"{name}: exists and is no item of tmtool; move it away, or run without --stac.") from None


def _packed(provenance: str) -> str:
    """Return a text for an object's metadata, which hold few bytes of ASCII; nothing if it is too long."""
    text = base64.b64encode(zlib.compress(provenance.encode(), 9)).decode() if provenance else ""
    return text if len(text) <= _ABOUT_BYTES else ""


def _unpacked(text: str) -> str:
    """Return a provenance from an object's metadata; nothing where it is none."""
    try:
        said = zlib.decompress(base64.b64decode(text, validate=True)).decode() if text else ""
        return said if isinstance(json.loads(said or "null"), dict) else ""
    except (ValueError, zlib.error):
        return ""


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
