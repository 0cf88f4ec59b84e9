"""`tmtool bench`."""

import itertools
import logging
import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tmtool import errors
from tmtool.cli import _complete
from tmtool.cli import _options as o
from tmtool.cli._compose import composed, words_of
from tmtool.cli._session import command
from tmtool.settings import TIMESTEPS, RunSettings, Sampling

if TYPE_CHECKING:
    from tmtool.bench.measure import Trial
    from tmtool.scene.job import Job, Scene
    from tmtool.tasks import Task

_log = logging.getLogger("tmtool")

_Settings = tuple[str, o.DecodingOptions, str]
"""A precision, a solver with its steps, and a batch size."""

OUTPUTS = "S1GRD,LULC"
"""What is generated unless asked otherwise."""
SAMPLE = Path("samples", "demo_scene.tif")
"""The sample's place in the repository, which is not installed."""

_MEASURED = "What is measured"

Input = Annotated[
    str,
    typer.Argument(
        metavar="INPUT",
        help="A raster, or anything else that the other commands take for one scene.",
        show_default="the repository's sample, where it is",
    ),
]
TaskName = Annotated[
    Literal["generate", "embed"],
    typer.Option("--task", rich_help_panel=_MEASURED, help="What the models do; Prithvi and Clay only embed."),
]
Out = Annotated[
    str,
    typer.Option(
        "--out",
        metavar="MOD,...",
        autocompletion=_complete.outputs,
        rich_help_panel=_MEASURED,
        show_default=OUTPUTS,
        help="Modalities to generate, all in each combination.",
    ),
]
ModelList = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME,...",
        autocompletion=_complete.models,
        rich_help_panel=_MEASURED,
        envvar="TMTOOL_MODEL",
        help="Models, as `tmtool models list` names them.",
    ),
]
PrecisionList = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="P,...",
        rich_help_panel=_MEASURED,
        envvar="TMTOOL_PRECISION",
        help="Precisions: auto or any that the other commands take.",
    ),
]
BatchList = Annotated[
    str,
    typer.Option(
        "--batch-size",
        metavar="N,...",
        rich_help_panel=_MEASURED,
        envvar="TMTOOL_BATCH_SIZE",
        help="Tiles per batch, or auto.",
    ),
]
SolverList = Annotated[
    str,
    typer.Option("--solver", metavar="NAME,...", rich_help_panel=_MEASURED, show_default="all", help="Solvers."),
]
StepList = Annotated[
    str,
    typer.Option(
        "--timesteps",
        metavar="N,...",
        rich_help_panel=_MEASURED,
        show_default="each solver's own",
        help="Diffusion steps.",
    ),
]
Tiles = Annotated[
    int,
    typer.Option(
        "--tiles",
        metavar="N",
        min=1,
        rich_help_panel=_MEASURED,
        help="Tiles in a round, from the middle of the raster; whole batches are run.",
    ),
]
Rounds = Annotated[
    int,
    typer.Option("--rounds", metavar="N", min=1, rich_help_panel=_MEASURED, help="Rounds that times are medians of."),
]
Quality = Annotated[
    bool,
    typer.Option(
        "--quality/--no-quality",
        rich_help_panel=_MEASURED,
        help="Hold one tile against the model's own limit: fp32, and 500 steps of ddim, which are made once a model.",
    ),
]
BenchDevice = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEV",
        rich_help_panel="Model and device",
        envvar="TMTOOL_DEVICE",
        help="auto, cpu, cuda, cuda:N or mps.",
    ),
]
BenchDryRun = Annotated[
    bool, typer.Option("--dry-run", rich_help_panel="Run", help="List the combinations without measuring them.")
]
BenchJson = Annotated[bool, typer.Option("--json", rich_help_panel="Run", help="Print one JSON object.")]
Plot = Annotated[
    Path | None,
    typer.Option(
        "--plot",
        metavar="F",
        rich_help_panel="Run",
        show_default="none",
        help="Draw a PNG: seconds a tile against the distance to the limit, or against memory where there is none.",
    ),
]


@dataclass(frozen=True, eq=False, repr=False)
class CombinedOptions:
    """What is combined: each combination has one value of every list."""

    model: ModelList = RunSettings.model
    precision: PrecisionList = RunSettings.precision
    batch_size: BatchList = "auto"
    solver: SolverList = ""
    timesteps: StepList = ""


@dataclass(frozen=True, eq=False, repr=False)
class ComputedOptions:
    """Where models come from, and where they run."""

    weights: o.Weights = RunSettings.weights
    offline: o.Offline = RunSettings.offline
    device: BenchDevice = RunSettings.device


@dataclass(frozen=True, eq=False, repr=False)
class SeedOptions:
    """The seed."""

    seed: o.Seed = RunSettings.seed


@dataclass(frozen=True, eq=False, repr=False)
class WorkOptions:
    """What the models do, and on what."""

    input_: Input = ""
    in_: o.Ins = None
    task: TaskName = "generate"
    out: Out = ""


@composed
def bench(
    work: WorkOptions,
    combined: CombinedOptions,
    computed: ComputedOptions,
    reading: o.ReadingOptions,
    tiles: o.TileOptions,
    seed: SeedOptions,
    log: o.LogOptions,
    count: Tiles = 2,
    rounds: Rounds = 3,
    quality: Quality = True,
    dry_run: BenchDryRun = False,
    json_: BenchJson = False,
    plot: Plot = None,
) -> None:
    """Measure models on this machine: load time, speed beside its ceiling, memory, energy, and quality.

    Every combination of the lists is measured in a process of its own, on tiles of the raster, from memory to memory; nothing
    is written. One that cannot run says why, and the others go on. Quality is the distance to the model's own limit, fp32 with
    500 steps of ddim, from the same tokens and noise. Ends with the command line to use.

    Example: tmtool bench Santiago.tif --precision bf16,fp32 --solver ddim,dpm --batch-size 1,4

    Example: tmtool bench Santiago.tif --task embed --model base,prithvi-eo-v2-300,clay-v1.5
    """
    with command(log):
        from tmtool.bench.measure import Effort
        from tmtool.bench.run import foresee, run
        from tmtool.cli import _figures
        from tmtool.models import RANDOM

        if plot is not None and not plot.absolute().parent.is_dir():
            raise errors.OutputError(f"--plot {plot}: there is no such folder.")
        trials = _Plan(work, combined, computed, reading, tiles, seed).trials()
        if quality and computed.weights == RANDOM:
            _log.warning("--weights random: quality would mean nothing and is not measured. Times and memory hold.")
            quality = False
        effort = Effort(count, rounds)
        outcomes = list(map(foresee, trials) if dry_run else run(trials, effort, quality=quality))
        print(_figures.as_json(outcomes, effort) if json_ else _figures.as_text(outcomes, effort), flush=True)
        if plot is not None and not dry_run:
            _figures.draw(plot, outcomes)
        failed = sum(outcome.why is not None for outcome in outcomes)
        if failed:
            raise typer.Exit(errors.EXIT_NOTHING_TO_DO if failed == len(outcomes) else errors.EXIT_SOME_FAILED)


@dataclass(frozen=True)
class _Plan:
    """The options of the command, and what they combine to."""

    work: WorkOptions
    combined: CombinedOptions
    computed: ComputedOptions
    reading: o.ReadingOptions
    tiles: o.TileOptions
    seed: SeedOptions

    def trials(self) -> "list[Trial]":
        """Return all combinations, models outermost, after all checks that load nothing. Raises `TmtoolError`."""
        models = _listed("--model", self.combined.model)
        if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", self.computed.device.lower()):
            raise errors.UsageError(f"--device {self.computed.device}: give one, of auto, cpu, cuda, cuda:N or mps.")
        settings_of = list(self._settings())
        scene = self._scene()
        notes: dict[str, None] = {}
        found = [trial for model in models for trial in self._of_model(model, settings_of, scene, notes)]
        for note in notes:
            _log.warning("%s", note)
        return found

    def _settings(self) -> "Iterator[_Settings]":
        """Yield all combinations of a precision, a solver with its steps, and a batch size."""
        from tmtool.models.device import PRECISIONS

        asked = self.combined
        precisions = _listed("--precision", asked.precision.lower(), PRECISIONS)
        solvers: list[Any] = _listed("--solver", asked.solver, TIMESTEPS) if asked.solver else list(TIMESTEPS)
        steps: list[int | None] = [_number("--timesteps", text) for text in o.split(asked.timesteps)]
        batches = _listed("--batch-size", asked.batch_size)
        for precision, solver, count, batch in itertools.product(precisions, solvers, steps or [None], batches):
            yield precision, o.DecodingOptions(solver=solver, timesteps=count), batch

    def _scene(self) -> "Scene":
        """Return the one scene that is measured on. Raises `InputError` and `UsageError`."""
        from tmtool.batch import Listing, list_scenes

        listing = Listing([self._input] if self._input else None)
        found = list_scenes(listing, Path(), self.work.in_ or ())
        if len(found) != 1:
            raise errors.UsageError(f"{self._input}: is {len(found)} scenes; bench takes one. Name it.")
        return found[0]

    @property
    def _input(self) -> str:
        """The raster that is named, or the sample; nothing where --in names files."""
        named = self.work.input_ or any("=" in text for text in self.work.in_ or ())
        if named:
            return self.work.input_
        import tmtool

        for folder in (Path(), Path(tmtool.__file__).parents[1]):
            if (folder / SAMPLE).exists():
                return str(folder / SAMPLE)
        raise errors.UsageError(f"INPUT: name a raster; the sample ({SAMPLE}) is only where the repository is.")

    def _of_model(
        self, model: str, settings_of: "Sequence[_Settings]", scene: "Scene", notes: dict[str, None]
    ) -> "Iterator[Trial]":
        """Yield all combinations of one model, and add what is to be told of them to the `notes`."""
        from tmtool.bench.measure import Trial
        from tmtool.scene.job import prepare
        from tmtool.scene.status import notice_of

        job = self._job(self._model(model), o.DecodingOptions())
        notes.update(dict.fromkeys(filter(None, [*job.check(), notice_of(job)])))
        prepared = prepare(job, scene, writes=False)
        for source in prepared.sources.values():
            notes.update(dict.fromkeys(f"{source.path}: {text}" for text in source.warnings))
        diffused = bool(Trial(job, prepared).diffused)
        if not diffused and (self.combined.solver or self.combined.timesteps):
            raise errors.UsageError(f"--solver, --timesteps: {job.task.name} runs no diffusion here; leave them out.")
        if self.work.out and not job.task.request(()).outputs:
            raise errors.UsageError(f"--out {self.work.out}: {job.task.name} makes no modalities.")
        seen = set()
        for precision, decoding, batch in settings_of:
            chosen, how = self._model(model, precision, batch), decoding if diffused else o.DecodingOptions()
            job = self._job(chosen, how)
            job.check()
            line = self._line(job, chosen, how)
            if line not in seen:
                yield Trial(job, prepared, line)
            seen.add(line)

    def _model(self, model: str, precision: str = RunSettings.precision, batch: str = "auto") -> o.ModelOptions:
        where = self.computed
        return o.ModelOptions(
            model=model,
            weights=where.weights,
            offline=where.offline,
            device=where.device,
            precision=precision,
            batch_size=batch,
        )

    def _job(self, model: o.ModelOptions, decoding: o.DecodingOptions) -> "Job":
        from tmtool.tasks import Embed, Generate
        from tmtool.tasks.generate import output_named

        outputs = tuple(output_named(name) for name in o.split(self.work.out or OUTPUTS))
        tasks: dict[str, Task] = {
            "generate": Generate(outputs, Sampling(solver=decoding.solver, timesteps=decoding.timesteps)),
            "embed": Embed(),
        }
        return o.job_of(tasks[self.work.task], self.reading, o.OutputOptions(), model, self.tiles, self.seed.seed)

    def _line(self, job: "Job", model: o.ModelOptions, decoding: o.DecodingOptions) -> str:
        """Return the command line that does what a job does, with its products in the current folder."""
        words = ["tmtool", job.task.name, *([self._input] if self._input else [])]
        for text in self.work.in_ or ():
            words += ["--in", text]
        if job.task.request(()).outputs:
            words += ["--out", self.work.out or OUTPUTS]
        groups = (model, decoding, self.seed, self.tiles, self.reading)
        return shlex.join([*words, *(word for group in groups for word in words_of(group))])


def _listed(option: str, text: str, choices: Collection[str] = ()) -> list[str]:
    """Return the values of a list. Raises `UsageError` for an empty one, or one that is none of the `choices`."""
    values = list(dict.fromkeys(o.split(text)))
    if not values:
        raise errors.UsageError(f"{option}: names nothing.")
    for value in values:
        if choices and value not in choices:
            raise errors.UsageError(f"{option} {value}: choose from {', '.join(choices)}.")
    return values


def _number(option: str, text: str) -> int:
    if not text.isdecimal():
        raise errors.UsageError(f"{option} {text}: give whole numbers, such as 4,10.")
    return int(text)
