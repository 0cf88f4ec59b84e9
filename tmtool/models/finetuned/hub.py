"""The config and the checkpoint of a fine-tuned task in a repository of the Hugging Face hub."""

import re
from collections.abc import Sequence
from pathlib import Path

from tmtool.errors import UsageError, WeightsError
from tmtool.models.weights import WeightFile, listed, listed_locally, locate

_CONFIGS = (".yaml", ".yml")
_CHECKPOINTS = (".ckpt", ".pt", ".pth", ".safetensors")


def task_files(
    repo: str, config: str | None = None, checkpoint: str | None = None, offline: bool = False
) -> tuple[Path | None, Path]:
    """Return where a repository's config (None if it has none) and checkpoint lie, fetched if the cache lacks them.

    `config` and `checkpoint` name files of the repository; without a name it is the only one of its kind. Raises
    `UsageError` where there are several, `WeightsError` where the files cannot be had.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UsageError(f"--model-hub {repo}: give a repository of the Hugging Face hub, as ORGANISATION/NAME.")
    names: Sequence[str] = ()
    if config is None or checkpoint is None:
        names = listed_locally(repo)
        if not _has(names, _CONFIGS, config) or not _has(names, _CHECKPOINTS, checkpoint):
            names = listed(repo, offline)
    config = config or _only(repo, names, _CONFIGS, "--config")
    checkpoint = checkpoint or _only(repo, names, _CHECKPOINTS, "--checkpoint")
    if checkpoint is None:
        kinds = ", ".join(_CHECKPOINTS)
        raise WeightsError(
            f"--model-hub {repo}: holds no checkpoint ({kinds}); it holds {', '.join(names) or 'nothing'}."
        )
    wanted = [WeightFile(repo, name) for name in (config, checkpoint) if name]
    found = list(locate(wanted, None, offline).values())
    return (found[0] if config else None), found[-1]


def _has(names: Sequence[str], endings: Sequence[str], asked: str | None) -> bool:
    return asked is not None or any(name.endswith(tuple(endings)) for name in names)


def _only(repo: str, names: Sequence[str], endings: Sequence[str], option: str) -> str | None:
    found = [name for name in names if name.endswith(tuple(endings))]
    if len(found) > 1:
        raise UsageError(
            f"--model-hub {repo}: holds {', '.join(found)}. Say which: {option} {found[0]}, the name of a file in the repository."
        )
    return found[0] if found else None
