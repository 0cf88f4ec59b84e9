"""The network of a fine-tuned task: built through terratorch's factories, without pretrained weights, and filled."""

import functools
import importlib
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tmtool.errors import UsageError
from tmtool.models.finetuned.config import TaskConfig

_log = logging.getLogger("tmtool")

_SEED = 0
_FETCHED = ("ckpt_path", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")
"""Arguments, of a backbone or on their own, that name weights to begin the training with."""

_PRETRAINED_UNLESS_TOLD = ("PrithviModelFactory", "SMPModelFactory", "TimmModelFactory")


@functools.cache
def factories() -> Any:
    """Import terratorch whole, which takes 10 s and more, and return its registry of model factories."""
    start = time.perf_counter()
    with _quiet():
        importlib.import_module("terratorch")
        registry = importlib.import_module("terratorch.registry").MODEL_FACTORY_REGISTRY
    _log.debug("terratorch was imported in %.1f s", time.perf_counter() - start)
    return registry


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the warnings of terratorch and its dependencies while they build, which do not concern users of tmtool."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def build_network(config: TaskConfig, initialised: bool = True) -> nn.Module:
    """Build a task's network for inference, without auxiliary heads and without fetching anything.

    Its weights are random and the same at every call; without `initialised` they are whatever memory held, to be loaded
    over. Raises `UsageError` where terratorch cannot build it.
    """
    registry = factories()
    from tmtool.models._parts import no_initialisation  # after terratorch, which would come a second time else

    arguments = _arguments(config)
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        try:
            factory = registry.build(config.factory)
            if initialised:
                network: nn.Module = factory.build_model(config.task, aux_decoders=None, **arguments)
            else:
                with no_initialisation():
                    network = factory.build_model(config.task, aux_decoders=None, **arguments)
        except Exception as error:  # whatever a factory, a registry or a layer makes of arguments that do not fit
            why = " ".join(str(error).split())[:300] or "no reason given"
            raise UsageError(
                f"{config.path}: TerraTorch cannot build the network of its model_args ({type(error).__name__}: {why})."
            ) from error
    return network.eval().requires_grad_(False)


def _arguments(config: TaskConfig) -> dict[str, Any]:
    """Return the factory's arguments, but for those that fetch pretrained weights."""
    kept = {k: _copied(v) for k, v in config.model_args.items() if k.removeprefix("backbone_") not in _FETCHED}
    for key in ("pretrained", "backbone_pretrained", "smp_encoder_weights"):
        if key in kept:
            kept[key] = None if key == "smp_encoder_weights" else False
    if config.factory in _PRETRAINED_UNLESS_TOLD:
        kept["pretrained"] = False
    if config.factory == "TimmModelFactory":
        kept.setdefault("in_channels", sum(len(entry.bands) for entry in config.inputs))
    return kept


def _copied(value: Any) -> Any:
    """Copy plain values: factories take what they are given apart."""
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    return [_copied(v) for v in value] if isinstance(value, list) else value
