"""Combinations one after the other, each in a fresh process; those that cannot run say why, and the others go on."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from tmtool.bench._process import Ended, in_own_process
from tmtool.bench.measure import Effort, Failed, Figures, Trial, measure, measure_limit
from tmtool.errors import TmtoolError
from tmtool.models.quality import LIMIT_STEPS, Likeness, Reference
from tmtool.scene.blocks import Models

T = TypeVar("T")

_log = logging.getLogger("tmtool")


@dataclass(frozen=True)
class Outcome:
    """A combination and what was found of it."""

    trial: Trial
    found: Figures | Failed | None = None
    """None before it was measured."""

    @property
    def why(self) -> str | None:
        """Why it could not be measured."""
        return self.found.why if isinstance(self.found, Failed) else None


def foresee(trial: Trial) -> Outcome:
    """Check what measuring a combination would check first; nothing is loaded or fetched."""
    try:
        Models(trial.job, dry=True).expect(trial.inputs)
    except TmtoolError as error:
        why = " ".join(str(error).split())
        _log.warning("%s: %s", trial, why)
        return Outcome(trial, Failed(why))
    return Outcome(trial)


def run(trials: Sequence[Trial], effort: Effort, *, quality: bool) -> Iterator[Outcome]:
    """Measure combinations in turn; the limit of each model is made before its first one, if `quality` is asked for."""
    limits: dict[str, Reference | None] = {}
    judged: dict[tuple[object, ...], dict[str, Likeness]] = {}
    for number, trial in enumerate(trials, 1):
        model = trial.job.model
        if quality and model not in limits:
            limits[model] = _limit(trial)
        key = _key(trial)
        limit = None if key in judged else limits.get(model)
        _log.info("%d of %d: %s ...", number, len(trials), trial)
        found = _apart(measure, trial, effort, limit)
        if isinstance(found, Failed):
            _log.warning("%s: %s", trial, found.why)
            _log.debug("%s", found.detail)
        else:
            quality_of = judged.setdefault(key, found.quality) if limits.get(model) else {}
            found = replace(found, quality=quality_of)
            _log.info("%d of %d: %.3g s a tile", number, len(trials), found.tile_s)
        yield Outcome(trial, found)


def _key(trial: Trial) -> tuple[object, ...]:
    """Return what quality depends on: it is judged a tile a batch, whatever the batches that are timed."""
    return trial.job.model, trial.job.precision, trial.spec.request.sampling


def _limit(trial: Trial) -> Reference | None:
    """Make the limit of a trial's model; None, with a warning, where that cannot be."""
    name = f"{trial.job.model} in fp32{f' with {LIMIT_STEPS} steps of ddim' if trial.diffused else ''}"
    _log.info("%s, which quality is held against ...", name)
    start = time.monotonic()
    found = _apart(measure_limit, trial)
    if isinstance(found, Failed):
        _log.warning("%s: quality is not measured: %s", name, found.why)
        _log.debug("%s", found.detail)
        return None
    _log.info("%s: made in %.0f s", name, time.monotonic() - start)
    return found


def _apart(function: Callable[..., T | Failed], *args: object) -> T | Failed:
    """Call a function in a fresh process; one that is ended from outside is `Failed` too."""
    try:
        return in_own_process(function, *args)
    except Ended as ended:
        killed = ended.status is not None and ended.status < 0
        return Failed(
            "the system ended its process, as it does when memory runs out" if killed else f"its process ended: {ended}"
        )
