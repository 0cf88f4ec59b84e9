"""One combination, measured in this process: what `_run` calls in a fresh one."""

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from statistics import median

import numpy as np

from tmtool import models
from tmtool.bench._costs import cost_of, peak_rss
from tmtool.bench._energy import meter_of
from tmtool.errors import InputError, OutOfMemory, TmtoolError
from tmtool.grid import TileBatch
from tmtool.models import ModelSpec
from tmtool.models.device import batch_size, resolve
from tmtool.models.machine import machine
from tmtool.models.memory import fit, is_out_of_memory, limit_bytes, loading
from tmtool.models.quality import Likeness, Reference, judged, limit_of, reference_of
from tmtool.scene.blocks import Models
from tmtool.scene.job import Job, Prepared, tile_loader
from tmtool.tiles.batches import TileInput, Told, collate

_CEILING_S = 0.5
"""How long a ceiling is looked for, in products and in convolutions each."""


@dataclass(frozen=True)
class Trial:
    """One combination: a job on a scene, and the command `line` that does it."""

    job: Job
    prepared: Prepared
    line: str = ""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names that the model has for the scene's inputs."""
        return tuple(self.prepared.sources)

    @property
    def spec(self) -> ModelSpec:
        """What the model computes, but for where."""
        return self.job.spec(self.inputs)

    @property
    def diffused(self) -> tuple[str, ...]:
        """Outputs that a solver makes, in so many timesteps."""
        spec = self.spec
        return tuple(m for m in spec.request.decoded if not spec.modality(m).classes)

    def __str__(self) -> str:
        """Name it as the log does."""
        sampling = self.spec.request.sampling
        steps = [f"{sampling.solver} {sampling.steps}"] if self.diffused else []
        batch = "auto" if self.job.batch_size is None else str(self.job.batch_size)
        return ", ".join([self.job.model, self.job.precision, *steps, f"batch {batch}"])


@dataclass(frozen=True)
class Effort:
    """How much is measured: `tiles` a round, of which there are `rounds`."""

    tiles: int = 2
    rounds: int = 3


@dataclass(frozen=True)
class Failed:
    """Why a combination could not be measured; `detail` is for `-v`."""

    why: str
    detail: str = ""


@dataclass(frozen=True)
class Figures:
    """What was measured of a combination.

    `precision` is the one in force, and `usual_precision` that of `auto`. `rounds_s` are seconds a tile of each round,
    `floor_s` what its arithmetic takes at the ceiling. Energy is that of the device alone.
    """

    machine: str
    device: str
    precision: str
    usual_precision: str
    batch_size: int
    load_s: float
    first_forward_s: float
    rounds_s: tuple[float, ...]
    mpx_per_tile: float
    parameters: int
    weights_bytes: int
    host_peak_bytes: int
    device_peak_bytes: int | None
    joules_per_tile: float | None
    energy_from: str | None
    tflop_per_tile: float
    ceiling_tflops: dict[str, float] | None
    floor_s: float | None
    quality: dict[str, Likeness] = field(default_factory=dict)

    @property
    def tile_s(self) -> float:
        """Seconds a tile: the median of the rounds."""
        return median(self.rounds_s)

    @property
    def times_floor(self) -> float | None:
        """Seconds a tile over those at the ceiling."""
        return self.tile_s / self.floor_s if self.floor_s else None


def measure(trial: Trial, effort: Effort, limit: Reference | None) -> Figures | Failed:
    """Measure a combination; its quality too, if its limit is given."""
    try:
        return _measured(trial, effort, limit)
    except Exception as error:  # noqa: BLE001  (it is told, and the other combinations go on)
        return _failed(error)


def measure_limit(trial: Trial) -> Reference | Failed:
    """Return the limit that combinations of a model are held against."""
    try:
        found = Models(replace(trial.job, precision="fp32"))
        spec = limit_of(found.spec(trial.inputs))
        with loading(spec.name):
            model = models.build(spec)
        return reference_of(model, _batch(trial, _tiles(trial, 1), 1))
    except Exception as error:  # noqa: BLE001
        return _failed(error)


def _failed(error: Exception) -> Failed:
    text = str(error).strip() or type(error).__name__
    if isinstance(error, TmtoolError):
        return Failed(" ".join(text.split()), traceback.format_exc())
    text = text.splitlines()[0]
    if is_out_of_memory(error):
        text = f"the device is out of memory ({text[:120]})"
    elif isinstance(error, MemoryError):
        text = "out of memory"
    else:
        text = f"{type(error).__name__}: {text}"
    return Failed(text, traceback.format_exc())


def _measured(trial: Trial, effort: Effort, limit: Reference | None) -> Figures:
    from tmtool.models import measures

    spec = Models(trial.job).spec(trial.inputs)
    batch = _batch_size(trial, spec)
    tiles = _tiles(trial, effort.tiles)
    batches = [_batch(trial, tiles, batch, at) for at in range(0, effort.tiles, batch)]
    import_module(trial.job.entry.module)  # which is no loading
    spec.compute.prepare()
    start = time.perf_counter()
    with loading(spec.name):
        model = models.build(spec)
    load_s = time.perf_counter() - start
    parameters, weights = measures.weights_of(model)
    first = cost_of(lambda: model(batches[0]))

    def turn() -> None:
        for one in batches:
            model(one)

    count = len(batches) * batch
    meter = meter_of(spec.compute.device)
    rounds = tuple(cost_of(turn).wall_s / count for _ in range(effort.rounds))
    joules = meter.joules() / (count * effort.rounds) if meter else None
    peaks = peak_rss(), measures.device_peak_bytes(spec.compute.device)
    work = measures.counted(lambda: model(batches[0]))
    ceiling = measures.ceiling_of(spec.compute, _CEILING_S)
    return Figures(
        machine=machine(spec.compute),
        device=spec.compute.device,
        precision=spec.compute.precision,
        usual_precision=resolve(spec.compute.device).precision,
        batch_size=batch,
        load_s=load_s,
        first_forward_s=first.wall_s,
        rounds_s=rounds,
        mpx_per_tile=trial.prepared.plan.step**2 / 1e6,
        parameters=parameters,
        weights_bytes=weights,
        host_peak_bytes=peaks[0],
        device_peak_bytes=peaks[1],
        joules_per_tile=joules,
        energy_from=meter.source if meter else None,
        tflop_per_tile=work.tflop / batch,
        ceiling_tflops=vars(ceiling) if ceiling else None,
        floor_s=ceiling.seconds(work) / batch if ceiling else None,
        quality=judged(model, spec, _batch(trial, tiles, 1), limit) if limit else {},
    )


def _batch_size(trial: Trial, spec: ModelSpec) -> int:
    """Return the tiles a batch: as asked for, else as a run would choose. Raises `OutOfMemory` without room for them."""
    asked = trial.job.batch_size
    batch, allowed = asked or batch_size(spec.compute), limit_bytes()
    fits = fit(allowed, trial.prepared.memory_bytes(), *models.host_bytes([spec], trial.prepared.plan.size), batch)
    if asked and fits < asked:
        raise OutOfMemory(f"{asked} tiles a batch have no room: {allowed[0] / 1e9:.1f} GB may be used ({allowed[1]}).")
    return fits


def _tiles(trial: Trial, most: int) -> list[TileInput]:
    """Return tiles with data, at most so many: those nearest to the middle of the scene. Raises `InputError`."""
    plan = trial.prepared.plan
    middle = [n - 1 for n in plan.counts]  # twice the tile row and tile column
    every = sorted(
        trial.prepared.tiles_in_use(),
        key=lambda tile: abs(2 * tile.tile_row - middle[0]) + abs(2 * tile.tile_col - middle[1]),
    )
    found: list[TileInput] = []
    with tile_loader(trial.job, trial.prepared) as load:
        for tile in every:
            loaded = load(tile)
            found += [loaded] if loaded.pixels else []
            if len(found) == most:
                break
    if not found:
        raise InputError(f"{trial.prepared.scene.path}: has no pixel with data to measure on.")
    return found


def _batch(trial: Trial, tiles: Sequence[TileInput], size: int, first: int = 0) -> TileBatch:
    """Return a batch of these tiles from the `first` on, again from the beginning where there are not enough."""
    prepared = trial.prepared
    taken = trial.job.task.taken(prepared.sources, trial.job.entry)
    dates = np.array([np.datetime64(date) for date in taken]) if taken else None
    chosen = [tiles[(first + i) % len(tiles)] for i in range(size)]
    return collate(chosen, size, Told(dates=dates), prepared.plan.position)
