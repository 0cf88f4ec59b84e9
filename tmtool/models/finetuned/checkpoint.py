"""Checkpoints of fine-tuned tasks: Lightning's, or plain state dicts. Nothing in them is run."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tmtool.errors import UsageError, WeightsError
from tmtool.models.finetuned._document import Component
from tmtool.models.finetuned.config import TASKS, TaskConfig, task_config
from tmtool.models.weights import Foreign, checkpoint_content, load_strictly, read_state

_log = logging.getLogger("tmtool.weights")

_BEGINNINGS = ("", "model.", "model._orig_mod.", "module.model.", "module.", "_orig_mod.")
"""What may come before a network's own names: the task, a compiled network, a network trained on several devices."""

_TRAINING = ("criterion.", "train_metrics.", "val_metrics.", "test_metrics.", "train_loss_handler.", "aux_heads.")
"""What a task has besides its network, and auxiliary heads, which are of use in training only."""

_WITHOUT_EFFECT = ("pretrained", "ckpt_path", "checkpoint", "drop")
"""Parts of names in `model_args` that change nothing of what a loaded network computes."""


@dataclass(frozen=True)
class TaskCheckpoint:
    """Tensors by name, memory-mapped, and Lightning's `hyper_parameters` (empty in a plain state dict)."""

    path: Path
    state: Mapping[str, Tensor]
    hyper_parameters: Mapping[str, Any]


def read_task_checkpoint(path: str | Path) -> TaskCheckpoint:
    """Read a checkpoint. Classes that it names besides tensors are replaced by empty ones, and nothing of them is run.

    Raises `WeightsError` if the file is absent, damaged, or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"--checkpoint {path}: no such file. Give a Lightning checkpoint or a state dict.")
    if path.suffix == ".safetensors":
        return TaskCheckpoint(path, read_state(path), {})
    content = checkpoint_content(path)
    found = content.get("hyper_parameters") if "state_dict" in content else None
    state: dict[str, Tensor] = content.get("state_dict", content)
    return TaskCheckpoint(path, state, found if isinstance(found, dict) else {})


def config_of(checkpoint: TaskCheckpoint, means: str | None = None, stds: str | None = None) -> TaskConfig:
    """Make a task of a checkpoint's own settings, where there is no config; the statistics have to be given.

    Raises `UsageError` if it does not hold `model_factory` and `model_args` as plain values, or does not show its task.
    """
    settings = checkpoint.hyper_parameters
    held = settings.get("model_factory"), settings.get("model_args")
    if None in held or any(_has_foreign(value) for value in held):
        raise UsageError(
            f"{checkpoint.path}: its hyper_parameters do not hold model_factory and model_args as plain values, so the network "
            "cannot be built from it alone. Give the task's --config as well."
        )
    name = str(settings.get("_class_path") or _task_name(checkpoint))
    model = Component(name, {key: value for key, value in settings.items() if not _has_foreign(value)})
    return task_config(str(checkpoint.path), model, None, means, stds)


def _task_name(checkpoint: TaskCheckpoint) -> str:
    """Tell a task by what it calls itself in its settings; of the two classifications by the loss."""
    settings = checkpoint.hyper_parameters
    name = "multilabel" if "bce" in str(settings.get("loss")) else settings.get("task")
    found = [task for task, kind in TASKS.items() if kind == name]
    if not found:
        raise UsageError(
            f"{checkpoint.path}: its hyper_parameters do not show which task it is ({', '.join(TASKS)}). Give its --config."
        )
    return found[0]


def check_same_task(config: TaskConfig, checkpoint: TaskCheckpoint) -> None:
    """Raise `WeightsError` if a checkpoint's own settings are not the config's: also where the weights would fit."""
    held = checkpoint.hyper_parameters.get("model_args")
    if not isinstance(held, dict) or isinstance(held, Foreign):
        return
    keys = [k for k in sorted(set(held) | set(config.model_args)) if not any(word in k for word in _WITHOUT_EFFECT)]
    pairs = [(k, _plain(held.get(k)), _plain(config.model_args.get(k))) for k in keys if not _has_foreign(held.get(k))]
    other = [
        f"\n  {k}: {theirs!r:.80} there, {ours!r:.80} in the config" for k, theirs, ours in pairs if theirs != ours
    ]
    if other:
        raise WeightsError(
            f"{checkpoint.path}: is the checkpoint of another config than {config.path}:{''.join(other)}\nUse the config that "
            "it was trained with."
        )


def _has_foreign(value: Any) -> bool:
    if isinstance(value, Foreign):
        return True
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return any(_has_foreign(v) for v in inner)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def load_task(network: nn.Module, config: TaskConfig, checkpoint: TaskCheckpoint, spare: tuple[str, ...] = ()) -> None:
    """Give every parameter and buffer of a network its tensor of a checkpoint, as `load_strictly` does.

    Keys that begin with `spare`, auxiliary heads, losses and metrics may be there besides. Raises `WeightsError`.
    """
    check_same_task(config, checkpoint)
    expected = set(network.state_dict())
    state = _own_names(checkpoint.state, expected)
    allowed = (*_TRAINING, *spare)
    state = {key: value for key, value in state.items() if not key.startswith(allowed)}
    advice = f"Is it the checkpoint of {config.path}?"
    if len(expected & set(state)) * 2 < len(expected):
        raise WeightsError(
            f"{checkpoint.path}: holds {len(expected & set(state))} of the {len(expected)} tensors of the network, which begin "
            f"with {', '.join(sorted(expected)[:2])}; its own with {', '.join(sorted(state)[:2])}. {advice}"
        )
    if unknown := sorted(set(state) - expected):
        shown = "".join(f"\n  {key}" for key in unknown[:8]) + f"\n  ... {len(unknown) - 8} more" * (len(unknown) > 8)
        raise WeightsError(
            f"{checkpoint.path}: holds {len(unknown)} tensors that the network does not have:{shown}\n{advice}"
        )
    try:
        load_strictly(network, state, checkpoint.path)
    except WeightsError as error:
        raise WeightsError(f"{error}\n{advice}") from error


def _own_names(state: Mapping[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """Return tensors by the network's own names: without what comes before most of them."""
    begin = max(_BEGINNINGS, key=lambda b: sum(b + name in state for name in expected))
    _log.debug("the network's tensors begin with %r", begin)
    return {key.removeprefix(begin): value for key, value in state.items()}
