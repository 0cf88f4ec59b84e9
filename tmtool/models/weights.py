"""Weight files: which ones a job needs, where they lie, and loading them so that nothing is left random."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmtool.errors import WeightsError
from tmtool.modality import MODALITIES

if TYPE_CHECKING:
    from torch import Tensor, nn

_log = logging.getLogger("tmtool.weights")
_ORGANISATION = "ibm-esa-geospatial"
_SUFFIXES = (".pt", ".safetensors")


@dataclass(frozen=True)
class WeightFile:
    """A file on the Hugging Face hub: repository `{organisation}/{name}` and file name."""

    repo: str
    filename: str

    def __str__(self) -> str:
        """`repository/file`."""
        return f"{self.repo}/{self.filename}"


def core_file(size: str) -> WeightFile:
    """Return the file of TerraMind's encoder-decoder of a size (base, large, small, tiny)."""
    return WeightFile(f"{_ORGANISATION}/TerraMind-1.0-{size}", f"TerraMind_v1_{size}.pt")


def tokenizer_file(modality: str) -> WeightFile:
    """Return the file of a modality's tokenizer."""
    return WeightFile(f"{_ORGANISATION}/TerraMind-1.0-Tokenizer-{modality}", f"TerraMind_Tokenizer_{modality}.pt")


def tokenizer_files(inputs: Sequence[str], outputs: Sequence[str]) -> tuple[WeightFile, ...]:
    """Return the tokenizers of all outputs, and of the inputs that the model takes as tokens only."""
    tokenised = [m for m in inputs if MODALITIES[m].raw_key is None]
    return tuple(tokenizer_file(m) for m in dict.fromkeys([*tokenised, *outputs]))


def locate(files: Sequence[WeightFile], folder: str | None, offline: bool) -> dict[WeightFile, Path]:
    """Return where each file lies: in `folder` if given, else in the hub's cache, else fetched from the hub.

    Raises `WeightsError` naming the files that are missing and how to get them.
    """
    if folder is not None:
        found = {file: _in_folder(file, Path(folder).expanduser()) for file in files}
    else:
        found = {file: _from_hub(file, offline) for file in files}
    missing = [file for file, path in found.items() if path is None]
    if missing:
        raise WeightsError(_missing_message(missing, folder, offline))
    return {file: path for file, path in found.items() if path is not None}


def _in_folder(file: WeightFile, folder: Path) -> Path | None:
    """Look for a file flat, in its repository's folder, or in a hub cache laid out in `folder`."""
    if not folder.is_dir():
        raise WeightsError(f"--weights {folder}: no such folder. Give a folder with the hub's files, or 'random'.")
    organisation, name = file.repo.split("/")
    places = [folder, folder / name, folder / organisation / name]
    places += sorted((folder / f"models--{organisation}--{name}" / "snapshots").glob("*"))
    for place in places:
        for suffix in _SUFFIXES:
            if (path := place / Path(file.filename).with_suffix(suffix)).is_file():
                return path
    return None


def _from_hub(file: WeightFile, offline: bool) -> Path | None:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    cached = try_to_load_from_cache(file.repo, file.filename)
    if isinstance(cached, str):
        return Path(cached)
    if offline:
        return None
    _log.info("fetching %s from the hub", file)
    try:
        return Path(hf_hub_download(file.repo, file.filename))
    except LocalEntryNotFoundError:  # no network, or HF_HUB_OFFLINE is set
        return None
    except (HfHubHTTPError, OSError) as error:
        raise WeightsError(f"{file}: the hub did not give it ({error}).") from error


def _missing_message(missing: Sequence[WeightFile], folder: str | None, offline: bool) -> str:
    names = "".join(f"\n  {file}" for file in missing)
    fetch = "\n".join(f"  hf download {file.repo} {file.filename}" for file in missing)
    if folder is not None:
        return (
            f"--weights {folder}: missing{names}\nExpected there under its file name (.pt or .safetensors), flat or in a "
            f"folder named like its repository."
        )
    why = "with --offline nothing is fetched" if offline else "the hub cannot be reached"
    return (
        f"These weights are not in the hub's cache, and {why}:{names}\nOn a machine with network access run\n{fetch}\n"
        "and copy the cache folder (HF_HOME), or the files for use with --weights DIR. --weights random tries the "
        "pipeline without weights; its output means nothing."
    )


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, computed once and remembered by path, size and time of change."""
    if re.fullmatch(r"[0-9a-f]{64}", blob := path.resolve().name):
        return blob  # the hub's cache names files by their digest
    stat = path.stat()
    key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    store = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "tmtool" / "digests.json"
    known = _read_json(store)
    if key not in known:
        with path.open("rb") as file:
            known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        _write_json(store, known)
    return known[key]


def _read_json(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(path: Path, content: Mapping[str, str]) -> None:
    """Write atomically; a cache that cannot be written only costs time."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(content))
        part.replace(path)
    except OSError as error:
        _log.info("digests are not remembered: %s", error)


def read_state(path: Path) -> dict[str, "Tensor"]:
    """Return a file's tensors by key, memory-mapped. Raises `WeightsError` if it is damaged or something else."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        safe = path.suffix == ".safetensors"
        state = load_file(path) if safe else torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise WeightsError(
            f"{path}: cannot be read as weights, it is damaged or truncated ({_first_line(error)})."
        ) from error
    except Exception as error:  # weights_only refuses foreign pickles with UnpicklingError of several modules
        raise WeightsError(f"{path}: is no file of weights ({_first_line(error)}).") from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise WeightsError(f"{path}: holds {type(state).__name__}, expected a state dict (names to tensors).")
    return state


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def load_strictly(module: "nn.Module", state: Mapping[str, "Tensor"], path: Path) -> None:
    """Give every parameter and buffer of `module` its tensor from `state`, without copying where the dtype fits.

    Tied parameters need one of their names. Raises `WeightsError` listing what is missing or has another shape or kind;
    keys that the module does not use are logged.
    """
    expected = module.state_dict(keep_vars=True)
    names: dict[int, list[str]] = {}
    for name, tensor in expected.items():
        names.setdefault(id(tensor), []).append(name)
    chosen: dict[str, Tensor] = {}
    problems: list[str] = []
    for tied in names.values():
        present = [name for name in tied if name in state]
        if not present:
            problems.append(f"{tied[0]} is missing")
            continue
        problems += _mismatch(present[-1], expected[present[-1]], state[present[-1]])
        chosen |= dict.fromkeys(tied, state[present[-1]])
    if problems:
        shown = "".join(f"\n  {p}" for p in problems[:8]) + (f"\n  ... {len(problems) - 8} more" * (len(problems) > 8))
        raise WeightsError(
            f"{path}: does not cover the model in use; {len(problems)} of {len(names)} tensors are wrong:{shown}"
        )
    unused = sorted(set(state) - set(expected))
    _log.debug("%s: %d keys not used by this job: %s", path.name, len(unused), ", ".join(unused))
    module.load_state_dict({k: _as_float32(v) for k, v in chosen.items()}, strict=True, assign=True)
    for owner, attribute, first in _tied(module, names):
        setattr(owner, attribute, first)


def _mismatch(name: str, expected: "Tensor", found: "Tensor") -> Iterator[str]:
    if found.shape != expected.shape:
        yield f"{name} has shape {list(found.shape)}, expected {list(expected.shape)}"
    elif found.is_floating_point() != expected.is_floating_point():
        yield f"{name} has dtype {found.dtype}, expected {expected.dtype}"


def _as_float32(tensor: "Tensor") -> "Tensor":
    return tensor.float() if tensor.is_floating_point() else tensor


def _tied(module: "nn.Module", names: Mapping[int, Sequence[str]]) -> Iterator[tuple[Any, str, Any]]:
    """Yield (owner, attribute, tensor) for every tied name but the first: assigning gave each its own object."""
    for first, *others in names.values():
        for name in others:
            path, _, attribute = name.rpartition(".")
            yield module.get_submodule(path), attribute, _get(module, first)


def _get(module: "nn.Module", name: str) -> Any:
    path, _, attribute = name.rpartition(".")
    return getattr(module.get_submodule(path), attribute)
