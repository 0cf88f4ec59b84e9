"""Weight files: which ones a job needs, where they are, and strict loading, which leaves no tensor random."""

import base64
import hashlib
import json
import logging
import os
import pickle
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tmtool.errors import WeightsError
from tmtool.models._headers import check_header

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")

_log = logging.getLogger("tmtool")
_ORGANISATION = "ibm-esa-geospatial"
_PACKAGED = "tmtool"
"""Stands for a repository where the file comes with the package."""
_SUFFIXES = (".pt", ".safetensors")
_ATTEMPTS = 3
_CORE_MB = {"base": 1331, "large": 3538, "small": 410, "tiny": 165}
_TOKENIZER_MB = {"S2L2A": 1157, "S1GRD": 1146, "S1RTC": 1146, "DEM": 1145, "LULC": 736, "NDVI": 1145}
_SIZE_OF_WIDTH = {192: "tiny", 384: "small", 768: "base", 1024: "large"}


@dataclass(frozen=True)
class WeightFile:
    """A file on the Hugging Face hub, repository `{organisation}/{name}` and file name; or one in the package.

    `megabytes` is its approximate size: its parameters in float32. Some of its tensors' names begin with `mark`.
    `access` says how to get access, where it is restricted.
    """

    repo: str
    filename: str
    megabytes: int = 0
    mark: str = ""
    access: str = ""

    @property
    def packaged(self) -> Path | None:
        """Where the file lies in the package, if that is where it comes from."""
        return Path(__file__).parent / "demo_weights" / self.filename if self.repo == _PACKAGED else None

    def __str__(self) -> str:
        """`repository/file`."""
        return f"{self.repo}/{self.filename}" if self.repo else self.filename


def core_file(size: str) -> WeightFile:
    """Return the file of TerraMind's encoder-decoder of a size (base, large, small, tiny)."""
    name = f"{_ORGANISATION}/TerraMind-1.0-{size}"
    return WeightFile(name, f"TerraMind_v1_{size}.pt", _CORE_MB[size], "encoder_embeddings.")


def tokenizer_file(modality: str) -> WeightFile:
    """Return the file of a modality's tokenizer."""
    name = f"{_ORGANISATION}/TerraMind-1.0-Tokenizer-{modality}"
    return WeightFile(name, f"TerraMind_Tokenizer_{modality}.pt", _TOKENIZER_MB[modality], "quant_proj.")


def packaged_file(filename: str) -> WeightFile:
    """Return a file of the demo model."""
    return WeightFile(_PACKAGED, filename)


def tokenizer_files(modalities: Sequence[str]) -> tuple[WeightFile, ...]:
    """Return the files of several modalities' tokenizers."""
    return tuple(tokenizer_file(m) for m in modalities)


def coords_file() -> WeightFile:
    """Return the file of the vocabulary of coordinates."""
    return WeightFile(f"{_ORGANISATION}/TerraMind-1.0-Tokenizer-Coords", "config.json", 1)


def local_file(path: Path) -> WeightFile:
    """Return the name under which a file of the user's own, a checkpoint, stands among the files of a job."""
    return WeightFile("", path.name)


def digest_uri(digest: str) -> str:
    """Return the name of a file of the user's own by its SHA-256 (RFC 6920): nobody knows where it lies."""
    return f"ni:///sha-256;{base64.urlsafe_b64encode(bytes.fromhex(digest)).decode().rstrip('=')}"


def model_uri(weights: Any, version: str) -> str:
    """Return what refers to a model, by the weights in a provenance: the user's own file, the repository on the hub, or tmtool."""
    names: Mapping[str, str] = weights if isinstance(weights, dict) else {}
    own = [digest for name, digest in names.items() if "/" not in name]
    repositories = [name.rpartition("/")[0] for name in names if "/" in name]
    if own:
        return digest_uri(own[0])
    if repositories and repositories[0] != _PACKAGED:
        return f"https://huggingface.co/{repositories[0]}"
    return f"pkg:pypi/tmtool@{version}" + ("" if names else "#random-weights")


def locate(
    files: Sequence[WeightFile], folder: str | None, offline: bool, fetch: bool = True
) -> dict[WeightFile, Path]:
    """Return where each file lies: in `folder` if given, else in the hub's cache, else fetched from the hub.

    Raises `WeightsError` naming the files that are missing and how to get them.
    """
    found = {file: find_locally(file, folder) for file in files}
    if folder is None and fetch and not offline:
        found |= {file: _fetch(file) for file, path in found.items() if path is None}
    missing = [file for file, path in found.items() if path is None]
    if missing:
        raise WeightsError(_missing_message(missing, folder, offline or not fetch))
    return {file: path for file, path in found.items() if path is not None}


def to_fetch(files: Sequence[WeightFile], folder: str | None, offline: bool) -> list[WeightFile]:
    """Return the files that `locate` would fetch. The hub is asked for each, but nothing is downloaded.

    Raises `WeightsError` where `locate` would.
    """
    missing = [file for file in files if find_locally(file, folder) is None]
    asks = folder is None and not offline
    out_of_reach = [file for file in missing if not asks or _fetch(file, only_ask=True) is None]
    if out_of_reach:
        raise WeightsError(_missing_message(out_of_reach, folder, offline))
    return missing


def find_locally(file: WeightFile, folder: str | None = None) -> Path | None:
    """Return where a file lies in the package, in `folder`, or in the hub's cache; None if it has to be fetched."""
    if file.packaged is not None:
        return file.packaged
    if folder is not None:
        return _in_folder(file, Path(folder).expanduser())
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(file.repo, file.filename)
    return Path(cached) if isinstance(cached, str) else None


def listed_locally(repo: str) -> list[str]:
    """Return the names of a repository's files that the hub's cache holds, of the version that it holds last."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, local_files_only=True))
    except LocalEntryNotFoundError:
        return []
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def listed(repo: str, offline: bool) -> list[str]:
    """Return the names of a repository's files by the hub. Raises `WeightsError`."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    cure = f"On a machine with network access run\n  hf download {repo}\nand copy the cache folder (HF_HOME)."
    if offline:
        raise WeightsError(f"{repo}: is not in the hub's cache, and nothing is fetched in this run. {cure}")
    with _answered(repo):
        try:
            return sorted(_persistently(lambda: HfApi().list_repo_files(repo)))
        except HfHubHTTPError:  # an answer
            raise
        except Exception as error:  # HF_HUB_OFFLINE, or whatever the HTTP library raises
            raise WeightsError(f"{repo}: is not in the hub's cache, and the hub cannot be reached. {cure}") from error


def _in_folder(file: WeightFile, folder: Path) -> Path | None:
    """Look for a file flat, in its repository's folder, or in a hub cache laid out in `folder`."""
    if not folder.is_dir():
        raise WeightsError(f"--weights {folder}: no such folder. Give a folder with the hub's files, or 'random'.")
    organisation, name = file.repo.split("/")
    places = [folder, folder / name, folder / organisation / name]
    places += sorted((folder / f"models--{organisation}--{name}" / "snapshots").glob("*"))
    for place in places:
        for within in dict.fromkeys(
            [Path(file.filename), Path(Path(file.filename).name)]
        ):  # some have a folder in them
            for suffix in _SUFFIXES if within.suffix in _SUFFIXES else (within.suffix,):
                if (path := place / within.with_suffix(suffix)).is_file():
                    return path
    return None


def _fetch(file: WeightFile, only_ask: bool = False) -> Path | None:
    """Download a file into the hub's cache, resuming where a connection breaks; None without network.

    With `only_ask` nothing is downloaded, and the path is where the file would lie.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    size = f" (about {file.megabytes} MB)" if file.megabytes else ""
    _log.info("%s %s%s from the hub", "the run would fetch" if only_ask else "fetching", file, size)
    with _answered(str(file), file.access):
        try:
            if only_ask:
                return Path(_persistently(lambda: hf_hub_download(file.repo, file.filename, dry_run=True).local_path))
            return Path(_persistently(lambda: hf_hub_download(file.repo, file.filename)))
        except (
            LocalEntryNotFoundError
        ) as error:  # no network, HF_HUB_OFFLINE is set, or an answer that was not understood
            if isinstance(error.__cause__, HfHubHTTPError):
                raise WeightsError(
                    f"{file}: the hub answered with an error ({_first_line(error.__cause__)})."
                ) from error
            _log.debug("%s: %s", file, error)
            return None


@contextmanager
def _answered(what: str, access: str = "") -> Iterator[None]:
    """Turn what the hub answers about `what`, and what breaks on the way, into `WeightsError` with the cure."""
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        yield
    except WeightsError:
        raise
    except GatedRepoError as error:
        cure = access or "Accept its terms there, and set HF_TOKEN."
        raise WeightsError(f"{what}: the hub asks for permission. {cure}") from error
    except RepositoryNotFoundError as error:
        why = "there is no such repository, or it is private and needs HF_TOKEN."
        raise WeightsError(f"{what}: the hub answered 401 or 404: {access or why}") from error
    except EntryNotFoundError as error:
        raise WeightsError(f"{what}: the hub answered 404: the repository holds no such file.") from error
    except HfHubHTTPError as error:
        raise WeightsError(
            f"{what}: the hub answered with an error ({_first_line(error)}). Try again later."
        ) from error
    except Exception as error:  # whatever the HTTP library, the disk or a proxy raises
        raise WeightsError(
            f"{what}: the download was interrupted ({_first_line(error)}). Run the same command again to resume; complete files are kept."
        ) from error


def _persistently(download: Callable[[], T]) -> T:
    """Retry `download` when the connection breaks: huggingface_hub itself recovers from some faults, not from a reset."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    for _ in range(_ATTEMPTS - 1):
        try:
            return download()
        except (EntryNotFoundError, HfHubHTTPError):  # an answer, not a broken connection
            raise
        except Exception as error:  # noqa: BLE001  (of whichever HTTP library it uses)
            _log.info("connection lost (%s), resuming", _first_line(error))
    return download()


def _missing_message(missing: Sequence[WeightFile], folder: str | None, offline: bool) -> str:
    names = "".join(f"\n  {file}" for file in missing)
    fetch = "\n".join(f"  hf download {file.repo} {file.filename}" for file in missing)
    if folder is not None:
        return (
            f"--weights {folder}: missing{names}\nExpected there under its file name (.pt or .safetensors), flat or in a "
            f"folder named like its repository."
        )
    why = "nothing is fetched in this run" if offline else "the hub cannot be reached"
    return (
        f"These weights are not in the hub's cache, and {why}:{names}\nOn a machine with network access run\n{fetch}\n"
        "and copy the cache folder (HF_HOME), or the files for use with --weights DIR. --weights random tries the "
        "pipeline without weights; its output means nothing."
    )


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, computed once and cached by path, size and modification time."""
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
    """Write by an atomic rename; a cache that cannot be written only costs time."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(content))
        part.replace(path)
    except OSError as error:
        _log.info("digests could not be saved: %s", error)


def check_file(file: WeightFile, path: Path, width: int) -> None:
    """Look at the header of what lies at `path` for `file`: whether it is whole, and holds TerraMind's tensors.

    `width` is that of the encoder's vectors in the model in use. No tensor is read. Raises `WeightsError`.
    """
    checkpoint = not file.repo
    fetched = f"Fetch it again: hf download {file.repo} {file.filename} --force-download (or copy it again)."
    shapes = check_header(path, "Save or copy it again." if checkpoint else fetched, checkpoint=checkpoint)
    begin = _backbone_begin(path, shapes) if checkpoint else ""
    if not any(name.startswith(begin + file.mark) for name in shapes) and path.suffix != ".json":
        raise WeightsError(
            f"{path}: expected {file.filename} (tensors with names such as {file.mark}...), found a file of other weights "
            f"({', '.join(list(shapes)[:3]) or 'none at all'}). {fetched}"
        )
    norm = shapes.get(f"{begin}encoder_norm.weight", ())
    if norm and norm[-1] != width:
        raise WeightsError(f"{path}: is of another size. {_sizes_text(norm[-1], width)}")


def read_state(path: Path) -> dict[str, "Tensor"]:
    """Return a file's tensors by key, memory-mapped. Raises `WeightsError` if it is damaged or something else."""
    import torch
    from safetensors.torch import load_file

    check_header(path)
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # whatever damage that the header does not show makes torch raise
        raise WeightsError(f"{path}: cannot be read as weights ({_reason(error)}). Copy or fetch it again.") from error
    return state


@dataclass(frozen=True)
class Checkpoint:
    """A fine-tuned backbone's tensors by TerraMind's own names, and those of its TiM sampler (empty without one)."""

    path: Path
    backbone: Mapping[str, "Tensor"]
    sampler: Mapping[str, "Tensor"]


_SAMPLER = "sampler.model."


def read_checkpoint(path: Path) -> Checkpoint:
    """Find the backbone in a checkpoint of TerraTorch: Lightning's or a plain state dict, whatever its keys begin with.

    Nothing in the file is run: classes that it names besides tensors are replaced by empty ones. Raises `WeightsError`.
    """
    state = checkpoint_state(path)
    begin = _backbone_begin(path, state)
    own = {key.removeprefix(begin): value for key, value in state.items() if key.startswith(begin)}
    sampler = {key.removeprefix(_SAMPLER): value for key, value in own.items() if key.startswith(_SAMPLER)}
    wanted = ("encoder_embeddings.", "encoder.", "encoder_norm.")
    return Checkpoint(path, {key: value for key, value in own.items() if key.startswith(wanted)}, sampler)


def _backbone_begin(path: Path, names: Collection[str]) -> str:
    """Return what the names of a checkpoint's backbone begin with. Raises `WeightsError` unless there is one backbone."""
    marks = ("encoder_embeddings.", "encoder_norm.")
    begins = {name[: name.index(mark)] for name in names for mark in marks if mark in name}
    begins = {begin for begin in begins if not begin.endswith(_SAMPLER)}
    if len(begins) != 1:
        found = f"in {len(begins)} places ({', '.join(sorted(begins))})" if begins else "not at all"
        raise WeightsError(
            f"{path}: expected the encoder of one TerraMind backbone (keys with 'encoder_embeddings.'), found {found}. "
            f"Its first keys: {', '.join(list(names)[:3])}."
        )
    return begins.pop()


def checkpoint_state(path: Path) -> dict[str, "Tensor"]:
    """Return a checkpoint's tensors by key, memory-mapped: of Lightning's file, or a plain state dict. Runs no code in it."""
    if path.suffix == ".safetensors":
        return read_state(path)
    content = checkpoint_content(path)
    state: dict[str, Tensor] = content.get("state_dict", content)
    return state


def checkpoint_content(path: Path) -> dict[str, Any]:
    """Return a checkpoint's content, with `Foreign` objects in place of whatever is neither a tensor nor a plain value.

    Nothing in the file is run. Raises `WeightsError`.
    """
    import torch
    from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

    check_header(path, "Save or copy it again.", checkpoint=True)
    try:
        foreign = [(Foreign, name) for name in get_unsafe_globals_in_checkpoint(path)]
        with safe_globals(foreign):  # type: ignore[arg-type]
            content: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # whatever a trainer's settings or damage make torch raise
        raise WeightsError(
            f"{path}: cannot be read as a checkpoint ({_reason(error)}). If it is a trainer's checkpoint that holds more "
            "than weights and plain settings, save its state_dict on its own."
        ) from error
    return content


class Foreign(dict):  # type: ignore[type-arg]
    """Stands in for a class that a checkpoint names, such as a trainer's settings."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        """Ignore what the object held."""


def _reason(error: Exception) -> str:
    """Return torch's reason, without its advice to load the file unsafely."""
    return "it holds more than tensors" if isinstance(error, pickle.UnpicklingError) else _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def load_strictly(module: "nn.Module", state: Mapping[str, "Tensor"], path: Path, spare: tuple[str, ...] = ()) -> None:
    """Give every parameter and buffer of `module` its tensor from `state`, without copying where the dtype fits.

    Tied parameters need one of their names. Raises `WeightsError` listing what is missing, has another shape or kind,
    is not finite, or is too many in a part that the module has (a deeper model's layer, say). Keys of other parts are
    logged, except those that begin with one of `spare`: what a whole model has and this job does not use.
    """
    expected = module.state_dict(keep_vars=True)
    tied = _tied_names(expected)
    # of tied names the last one counts, as in loading by copying
    found = {names[0]: next((name for name in reversed(names) if name in state), None) for names in tied}
    extra = sorted(set(state) - set(expected))
    own = {_family(name) for name in expected}
    problems = [f"{name} is missing" for name, source in found.items() if source is None]
    problems += [
        p for source in filter(None, found.values()) for p in _mismatch(source, expected[source], state[source])
    ]
    problems += [f"{key} is not in the model" for key in extra if _family(key) in own]
    if not problems:  # only then is it worth reading everything
        problems = [
            f"{name} holds NaN or infinite values" for name in filter(None, found.values()) if not _finite(state[name])
        ]
    if problems:
        shown = "".join(f"\n  {p}" for p in problems[:8]) + (f"\n  ... {len(problems) - 8} more" * (len(problems) > 8))
        raise WeightsError(
            f"{path}: does not cover the model in use; {len(problems)} of {len(found)} tensors are wrong:{shown}"
            f"{_other_size(expected, state)}"
        )
    if unknown := [key for key in extra if not key.startswith(spare)]:
        _log.debug("%s: %d unknown keys: %s", path.name, len(unknown), ", ".join(unknown))
    given = {name: state[found[names[0]] or ""] for names in tied for name in names}
    module.load_state_dict({name: _as_float32(tensor) for name, tensor in given.items()}, strict=True, assign=True)
    for first, *others in tied:  # assigning gave each name an object of its own
        owner, _, attribute = first.rpartition(".")
        shared = getattr(module.get_submodule(owner), attribute)  # a parameter or a buffer
        for name in others:
            owner, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(owner), attribute, shared)


def _tied_names(expected: Mapping[str, "Tensor"]) -> list[list[str]]:
    """Group the names of a state dict by the tensor that they stand for."""
    names: dict[int, list[str]] = {}
    for name, tensor in expected.items():
        names.setdefault(id(tensor), []).append(name)
    return list(names.values())


def _family(key: str) -> str:
    """Return the part of a model that a key belongs to: its first word, and of embeddings the modality too."""
    words = key.split(".")
    return ".".join(words[:2]) if words[0].endswith("_embeddings") else words[0]


def _mismatch(name: str, expected: "Tensor", found: "Tensor") -> Iterator[str]:
    if found.shape != expected.shape:
        yield f"{name} has shape {list(found.shape)}, expected {list(expected.shape)}"
    elif found.is_floating_point() != expected.is_floating_point():
        yield f"{name} has dtype {found.dtype}, expected {expected.dtype}"


def _other_size(expected: Mapping[str, "Tensor"], state: Mapping[str, "Tensor"]) -> str:
    """Say so if the file holds TerraMind of another size."""
    key = "encoder_norm.weight"
    widths = [tensors[key].shape[-1] for tensors in (state, expected) if key in tensors]
    if len(widths) < 2 or widths[0] == widths[1]:
        return ""
    return "\n" + _sizes_text(*widths)


def _sizes_text(found: int, wanted: int) -> str:
    """Say what size a file holds and what is wanted, by the widths of the encoder's vectors."""
    holds, uses = (_SIZE_OF_WIDTH.get(width, f"of width {width}") for width in (found, wanted))
    return f"The file holds TerraMind {holds}, but the model in use is {uses}: choose it with --model."


def _finite(tensor: "Tensor") -> bool:
    """Whether all values are finite, without a copy: a sum is not, if one of its terms is not."""
    import torch

    return not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum(dtype=torch.float32)))


def _as_float32(tensor: "Tensor") -> "Tensor":
    return tensor.float() if tensor.is_floating_point() else tensor
