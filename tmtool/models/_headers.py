"""Headers of weight files: the names and shapes of their tensors, read without torch and without the tensors.

They show a damaged or foreign file in milliseconds, before a scene begins. Nothing in the file is run: the pickle in a file
that `torch.save` wrote is read with stand-ins for every class and function that it names.
"""

import json
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tmtool.errors import WeightsError

Shapes = Mapping[str, tuple[int, ...]]

_TORCH = "a state dict in a zip archive, as torch.save writes it"
_SAFE = "a safetensors file"
_JSON = "a JSON file"
_LONGEST_HEADER = 100_000_000
"""Bytes of a header that the safetensors format allows."""
_ITEM_BYTES = {
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
}
"""Bytes of a value by what torch calls its storage; those not listed take one, or are counted in bytes."""


def check_header(path: Path, again: str = "Copy or fetch it again.", *, checkpoint: bool = False) -> Shapes:
    """Return the shapes of a file's tensors by name; of a checkpoint those of its `state_dict`, if it has one.

    The suffix says what is expected: `.safetensors`, `.json` (which has no tensors), anything else a file of `torch.save`.
    Raises `WeightsError` if the file is damaged, truncated or something else. `again` is how to get it whole.
    """
    try:
        with path.open("rb") as file:
            if path.suffix == ".safetensors":
                return _safetensors(file, path.stat().st_size)
            if path.suffix == ".json":
                return _json(file)
            return _torch(file, checkpoint)
    except _Otherwise as found:
        raise WeightsError(f"{path}: expected {found.expected}, found {found}. {found.cure or again}") from found
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error}).") from error


class _Otherwise(Exception):
    """What was found instead of what was expected; `cure` is what helps, where another copy would not."""

    def __init__(self, expected: str, found: str, cure: str = "") -> None:
        super().__init__(found)
        self.expected, self.cure = expected, cure


def _safetensors(file: IO[bytes], size: int) -> Shapes:
    begin = file.read(8)
    length = int.from_bytes(begin, "little")
    if len(begin) < 8 or length > _LONGEST_HEADER or file.read(1) != b"{":
        raise _looks_like(file, _SAFE)
    try:
        file.seek(8)
        header = json.loads(file.read(length))
        tensors = {name: facts for name, facts in header.items() if name != "__metadata__"}
        end = 8 + length + max((facts["data_offsets"][1] for facts in tensors.values()), default=0)
        shapes = {name: tuple(facts["shape"]) for name, facts in tensors.items()}
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _Otherwise(_SAFE, "one whose header is damaged or truncated") from error
    if size != end:
        raise _Otherwise(_SAFE, f"one of {size:,} bytes whose header speaks of {end:,}: it is damaged or truncated")
    return shapes


def _json(file: IO[bytes]) -> Shapes:
    try:
        json.load(file)
    except ValueError as error:
        raise _looks_like(file, _JSON) from error
    return {}


def _torch(file: IO[bytes], checkpoint: bool) -> Shapes:
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError) as error:
        raise _looks_like(file, _TORCH) from error
    sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    name = next((name for name in sizes if name.endswith("/data.pkl")), None)
    if name is None:
        raise _Otherwise(_TORCH, f"an archive of other files ({', '.join(list(sizes)[:3])})")
    try:
        content = _Outline(archive.open(name)).load()
        archive.open(max(archive.infolist(), key=lambda entry: entry.header_offset)).close()  # lies where it should
    except Exception as error:  # whatever damage makes of a pickle
        raise _Otherwise(_TORCH, "one that is damaged: its list of tensors cannot be read") from error
    tensors = _tensors(content, checkpoint)
    folder = name.removesuffix("data.pkl") + "data/"
    for key, tensor in tensors.items():
        found, wanted = sizes.get(folder + tensor.storage.key, 0), tensor.storage.size
        if found < wanted:
            raise _Otherwise(_TORCH, f"one that is damaged: {found:,} of the {wanted:,} bytes of {key}")
    return {key: tensor.shape for key, tensor in tensors.items()}


def _tensors(content: object, checkpoint: bool) -> dict[str, "_Tensor"]:
    """Return the tensors of what was pickled, which must be nothing else unless it is a checkpoint."""
    if not isinstance(content, dict) or isinstance(content, _Foreign):
        raise _Otherwise(_TORCH, _kind(content), "Save the model's state_dict() instead.")
    state = content.get("state_dict", content) if checkpoint else content
    if not isinstance(state, dict) or isinstance(state, _Foreign):
        raise _Otherwise(_TORCH, f"one whose state_dict is {_kind(state)}", "Save the model's state_dict() alone.")
    for key, value in state.items():
        if not isinstance(value, _Tensor):
            raise _Otherwise(_TORCH, f"one whose {key!r} is {_kind(value)}", "Save the model's state_dict() alone.")
    return {str(key): value for key, value in state.items()}


def _looks_like(file: IO[bytes], expected: str) -> _Otherwise:
    """Say what kind of file it is, if it is not what its name says."""
    file.seek(0)
    begin = file.read(64)
    if not begin:
        return _Otherwise(expected, "an empty file")
    if begin[8:9] == b"{" and expected is not _SAFE:
        return _Otherwise(expected, "a safetensors file", "Give it a name that ends in .safetensors.")
    if begin.startswith(b"PK\3\4") and expected is not _TORCH:
        return _Otherwise(expected, "a zip archive", "If torch.save wrote it, give it a name that ends in .pt.")
    for mark, found, cure in (
        (b"version https://git-lfs", "a pointer of Git LFS", "`git lfs pull` brings the file itself."),
        (b"<", "a web page", ""),
        (b"PK\3\4", "a zip archive without its end: it is truncated", ""),
        (b"\x80", "a pickle alone, as torch before 1.6 wrote", "Load it and torch.save it again."),
    ):
        if begin.lstrip().startswith(mark):
            return _Otherwise(expected, found, cure)
    return _Otherwise(expected, f"something else (it begins with {begin[:16]!r})")


@dataclass(frozen=True)
class _Storage:
    """Where values lie: an entry of the archive, and the bytes that it has at least."""

    key: str
    size: int


@dataclass(frozen=True)
class _Tensor:
    """What a pickle says of a tensor."""

    storage: _Storage
    shape: tuple[int, ...]


class _Foreign(dict[Any, Any]):
    """Stands for anything else that a pickle names; it takes what the pickle gives it and does nothing."""

    called = ""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    def __call__(self, *_: object) -> "_Foreign":
        """Stand for what a call would make."""
        return self

    def __setstate__(self, state: object) -> None:
        """Ignore what the object held."""


def _kind(value: object) -> str:
    return f"an object of {value.called}" if isinstance(value, _Foreign) else f"a value of type {type(value).__name__}"


def _tensor(storage: _Storage, offset: int, size: tuple[int, ...], *_: object) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    return _Tensor(storage, tuple(map(int, size)))


def _parameter(data: _Tensor, *_: object) -> _Tensor:
    return data


def _subclass(rebuild: Callable[..., Any], _: object, args: tuple[object, ...], *__: object) -> Any:
    return rebuild(*args)


_KNOWN = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _subclass,
}


class _Outline(pickle.Unpickler):
    """Reads what `torch.save` pickled. What it names is neither imported nor called."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a class or function."""
        called = f"{module}.{name}"
        return _KNOWN.get(called) or type(name.rpartition(".")[2], (_Foreign,), {"called": called})

    def persistent_load(self, pid: Any) -> _Storage:
        """Return the description of a storage: `("storage", type, entry, device, count of values)`."""
        _, kind, key, _, count = pid
        return _Storage(str(key), math.prod((count, _ITEM_BYTES.get(kind.__name__, 1))))
