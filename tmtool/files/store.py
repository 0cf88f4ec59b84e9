"""Object stores, by their URLs: S3 and what speaks it, Google Cloud Storage, Azure.

An object appears whole or not at all, and may be written on the condition of what is there. Keys are relative to the URL.
"""

import io
import math
import mimetypes
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tmtool.errors import ProductError, StoreError, UsageError
from tmtool.files.writer import WORK_PREFIX, quiet
from tmtool.names import shown

_PART_BYTES = 8 << 20
_PARTS = 9_000  # S3 takes 10 000 of an object
_FILES_AT_ONCE = 8
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_ENDPOINT")
_RETRY: Any = {
    "max_retries": 12,
    "retry_timeout": timedelta(minutes=3),
    "backoff": {"init_backoff": timedelta(seconds=2), "max_backoff": timedelta(seconds=10), "base": 3},
}
"""How requests are tried again: for a minute or two."""


def is_store(text: str) -> bool:
    """Whether a name is that of an object store."""
    return re.match(r"(s3|gs|az)://", text) is not None


class Changed(Exception):
    """An object is not what a condition on it said."""


@dataclass(frozen=True)
class Seen:
    """An object at one moment: what tells its version, when it was written by the store's clock, and what was said of it."""

    version: Mapping[str, str]
    written: datetime
    about: Mapping[str, str]
    size: int


class Store:
    """The objects below a URL such as `s3://bucket/products`.

    Credentials are those that the store's own tools find: of S3 with the profiles that boto3 knows. All methods raise
    `StoreError` where the store cannot be reached, or refuses; it names the object and quotes the store, without secrets.
    """

    def __init__(self, url: str) -> None:
        parts = re.fullmatch(r"(s3|gs|az)://[^/@?#]+(/[^?#]*)?", url)
        if parts is None:
            raise UsageError(
                f"{url}: expected s3://bucket/prefix, gs:// or az:// alike; credentials and options come from the environment."
            )
        try:
            from obstore.store import from_url
        except ImportError as error:
            raise UsageError(
                f"{url}: object stores need obstore, which is not installed: pip install 'tmtool[cloud]'."
            ) from error
        self.url = url.rstrip("/")
        plain = any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS)
        options: dict[str, Any] = {"client_options": {"allow_http": True}} if plain else {}
        if parts[1] == "s3":
            options |= {"config": {"checksum_algorithm": "sha256"}, "credential_provider": _of_boto3(url)}
        with self._told(""):
            self._store: Any = from_url(self.url, retry_config=_RETRY, **options)
        self._behind: float | None = None

    def name(self, key: str) -> str:
        """Return the URL of an object."""
        return f"{self.url}/{key}" if key else self.url

    def keys(self, below: str = "") -> list[str]:
        """Return the keys of all objects, or of those below one."""
        import obstore

        with self._told(below):
            return [one["path"] for some in obstore.list(self._store, below or None) for one in some]

    def look(self, key: str) -> Seen | None:
        """Return what is known of an object without its bytes; None where there is none."""
        found = self._get(key, head=True)
        return found[0] if found else None

    def read(self, key: str) -> tuple[Seen, bytes] | None:
        """Return an object, None where there is none."""
        return self._get(key, head=False)

    def _get(self, key: str, head: bool) -> tuple[Seen, bytes] | None:
        import obstore

        try:
            with self._told(key):
                found = obstore.get(self._store, key, options={"head": True} if head else None)
                content = b"" if head else bytes(found.bytes())
        except FileNotFoundError:
            return None
        meta, about = found.meta, {str(k): str(v) for k, v in found.attributes.items()}
        return Seen(_version(meta), meta["last_modified"], about, meta["size"]), content

    def fetch(self, key: str, path: Path) -> None:
        """Write an object, or with all that lies below it a folder, to a local path."""
        import obstore

        within = [(below, path / below.removeprefix(f"{key}/")) for below in self.keys(key)]
        for one, to in within or [(key, path)]:
            to.parent.mkdir(parents=True, exist_ok=True)
            with self._told(one), to.open("wb") as file:
                for chunk in obstore.get(self._store, one):
                    file.write(chunk)

    def raster_tags(self, key: str) -> dict[str, str]:
        """Return the tags of a GeoTIFF, of which only the beginning is read. Raises `ProductError` if it is none."""
        import rasterio

        with self._told(key):
            _Reader(self._store, key).close()
        try:
            with (
                quiet(),
                rasterio.open(key, opener=lambda _, mode="r": _Reader(self._store, key), driver="GTiff") as src,
            ):
                tags: dict[str, str] = src.tags()
                return tags
        except rasterio.errors.RasterioError as error:
            raise ProductError(f"{self.name(key)}: is damaged, truncated or no GeoTIFF ({error}).") from error

    def write(self, key: str, content: bytes, only: Mapping[str, str] | None = None) -> Mapping[str, str]:
        """Write a small object and return its version. Raises `Changed` if the object is no more of the version `only`.

        Of an empty one: if there is any.
        """
        import obstore

        mode: Any = "overwrite" if only is None else dict(only) or "create"
        with self._told(key):
            try:
                said = _kind(key)
                return _version(obstore.put(self._store, key, content, attributes=said, mode=mode, use_multipart=False))
            except (obstore.exceptions.AlreadyExistsError, obstore.exceptions.PreconditionError) as error:
                raise Changed(key) from error

    def put(self, key: str, path: Path, about: Mapping[str, str] | None = None) -> None:
        """Upload a file, or a folder whose `zarr.json` comes last, with checksums. The object appears when it is whole."""
        if not path.is_dir():
            self._put_file(key, path, about)
            return
        last, before = f"{key}/zarr.json", set(self.keys(key))
        self.delete(last)  # what is being replaced is no store meanwhile
        files = {f"{key}/{file.relative_to(path).as_posix()}": file for file in path.rglob("*") if file.is_file()}
        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            list(pool.map(lambda one: self._put_file(one, files[one], None), files.keys() - {last}))
        self._put_file(last, files[last], about)
        for old in before - files.keys():
            self.delete(old)

    def _put_file(self, key: str, path: Path, about: Mapping[str, str] | None) -> None:
        import obstore

        size, said = path.stat().st_size, _kind(path.name) | dict(about or {})
        part = max(_PART_BYTES, math.ceil(size / _PARTS))
        with self._told(key):
            obstore.put(self._store, key, path, attributes=said, use_multipart=size > part, chunk_size=part)
        there = self.look(key)
        if there is None or there.size != size:
            found = f"{there.size} bytes" if there else "nothing"
            raise StoreError(
                f"{self.name(key)}: holds {found} after {size} bytes were uploaded; run the command again."
            )

    def delete(self, key: str) -> None:
        """Remove an object, if there is one."""
        import obstore

        try:
            with self._told(key):
                obstore.delete(self._store, key)
        except FileNotFoundError:
            return

    def now(self) -> float:
        """Return the time of the store's clock in s since 1970, within a second or two.

        The first call asks for it by an object, which shows too that objects can be written here.
        """
        if self._behind is None:
            key = f"{WORK_PREFIX}{secrets.token_hex(8)}.now"
            self.write(key, b"\n")
            seen = self.look(key)
            self.delete(key)
            if seen is None:
                raise StoreError(f"{self.name(key)}: was written, but is not there.")
            self._behind = seen.written.timestamp() - time.monotonic()
        return time.monotonic() + self._behind

    @contextmanager
    def _told(self, key: str) -> Iterator[None]:
        """Turn what the store refuses into `StoreError`. What is not there stays `FileNotFoundError`, but for the bucket."""
        from obstore.exceptions import BaseError

        try:
            yield
        except FileNotFoundError as error:
            if "NoSuchBucket" not in str(error):
                raise
            raise StoreError(f"{self.name(key)}: {_why(error)}") from None
        except (BaseError, OSError) as error:
            raise StoreError(f"{self.name(key)}: {_why(error)}") from None


class _Reader(io.RawIOBase):
    """An object as Python has files, as which rasterio takes it."""

    def __init__(self, store: Any, key: str) -> None:
        import obstore

        self._file = obstore.open_reader(store, key)
        self._size = self._file.size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = max(0, self._size - self._file.tell())  # GDAL looks past the end of what is cut short
        found = bytes(self._file.read(min(len(buffer), left)))
        buffer[: len(found)] = found
        return len(found)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _of_boto3(url: str) -> Any:
    """Return what finds credentials as boto3 does, profiles too; None without it, or where none are wanted, for obstore's own ways.

    Raises `UsageError` where it finds none.
    """
    if os.environ.get("AWS_SKIP_SIGNATURE"):
        return None
    try:
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return None
    try:
        return Boto3CredentialProvider()
    except ValueError:
        raise UsageError(
            f"{url}: no credentials are found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
        ) from None
    except BotoCoreError as error:
        raise UsageError(f"{url}: {error}.") from None


def _kind(name: str) -> dict[str, str]:
    kind = mimetypes.guess_type(name)[0]
    return {"Content-Type": kind} if kind else {}


def _version(found: Mapping[str, Any]) -> dict[str, str]:
    return {name: found[name] for name in ("e_tag", "version") if found.get(name) is not None}


def _why(error: Exception) -> str:
    """Return what a store said, in a line."""
    text = str(error).partition("\n\nDebug source")[0]
    said = re.search(r"<Message>(.*?)</Message>", text, re.S)
    line = " ".join(text.partition(": <?xml")[0].split())
    code = re.search(r"status code: (\d+[\w ]*)", line)
    return shown(f"{said[1].rstrip('.')} ({code[1].strip()})." if said and code else f"{line}.")
