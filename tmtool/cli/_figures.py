"""What `tmtool bench` says: a table in Markdown or a JSON object, each with the lines to use; and its plot."""

import io
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tmtool.bench.choice import Choice, best
from tmtool.bench.measure import Effort, Figures
from tmtool.bench.run import Outcome
from tmtool.models.quality import LIMIT_STEPS
from tmtool.names import shown
from tmtool.pictures.plots import Mark, plot_marks

Cell = Callable[[Outcome], str]

_WHY_CHARS = 120
"""The most of a reason that a table shows."""


def as_json(outcomes: Sequence[Outcome], effort: Effort) -> str:
    """Return everything as one JSON object."""
    trial = outcomes[0].trial
    measured = [o.found for o in outcomes if isinstance(o.found, Figures)]
    return json.dumps(
        {
            "task": trial.job.task.name,
            "inputs": {name: shown(source.path) for name, source in trial.prepared.sources.items()},
            "outputs": list(trial.spec.outputs),
            **asdict(effort),
            "machine": measured[0].machine if measured else None,
            "combinations": [_facts(outcome) for outcome in outcomes],
            "use": [
                {
                    "model": choice.outcome.trial.job.model,
                    "command": choice.outcome.trial.line,
                    "because": choice.because,
                }
                for choice in _choices(outcomes)
            ],
        }
    )


def _facts(outcome: Outcome) -> dict[str, Any]:
    trial, found = outcome.trial, outcome.found
    sampling = trial.spec.request.sampling
    facts: dict[str, Any] = {"model": trial.job.model, "precision": trial.job.precision}
    if trial.diffused:
        facts |= {"solver": sampling.solver, "timesteps": sampling.steps}
    plan = trial.prepared.plan
    facts |= {"batch_size": trial.job.batch_size, "tile_px": plan.size, "step_px": plan.step, "command": trial.line}
    if not isinstance(found, Figures):
        return facts | ({"status": "failed", "error": found.why} if found else {"status": "planned"})
    figures = asdict(found) | {"status": "done", "times_floor": found.times_floor, "tile_s": found.tile_s}
    del figures["machine"]
    figures |= {"tiles_per_s": 1 / found.tile_s, "mpx_per_s": found.mpx_per_tile / found.tile_s}
    figures["quality"] = {
        name: {key: value for key, value in asdict(likeness).items() if value is not None}
        for name, likeness in found.quality.items()
    }
    return facts | figures


def as_text(outcomes: Sequence[Outcome], effort: Effort) -> str:
    """Return a table, what it was measured on and how, and the lines to use."""
    measured = [o.found for o in outcomes if isinstance(o.found, Figures)]
    text = _table(outcomes)
    if not measured:
        return text
    rounds = f"medians of {effort.rounds} rounds" if effort.rounds > 1 else "one round"
    notes = [f"{measured[0].machine}.", f"{_tiles(outcomes)}; {rounds} of {effort.tiles}, from memory to memory."]
    if any(found.quality for found in measured):
        steps = f", with {LIMIT_STEPS} steps of ddim" if outcomes[0].trial.diffused else ""
        notes.append(
            f"Quality is held against the same model in fp32{steps}, on one tile, from the same tokens and noise."
        )
    said = [f"{c.outcome.trial.job.model}, {c.because}:\n{c.outcome.trial.line}" for c in _choices(outcomes)]
    return "\n\n".join([text, "\n".join(notes), *said])


def _tiles(outcomes: Sequence[Outcome]) -> str:
    """Say how large tiles are, and whose, where they differ."""
    by_plan: dict[tuple[int, int], dict[str, None]] = {}
    for trial in (outcome.trial for outcome in outcomes):
        by_plan.setdefault((trial.prepared.plan.size, trial.prepared.plan.step), {})[trial.job.model] = None
    whose = {plan: f" ({', '.join(names)})" if len(by_plan) > 1 else "" for plan, names in by_plan.items()}
    said = (f"{size} px, {step} px apart{names}" for (size, step), names in whose.items())
    return f"Tiles of {'; of '.join(said)}"


def _choices(outcomes: Sequence[Outcome]) -> list[Choice]:
    """Return the best combination of each model."""
    by_model = itertools.groupby(outcomes, lambda outcome: outcome.trial.job.model)
    return [choice for _, group in by_model if (choice := best(list(group)))]


def _table(outcomes: Sequence[Outcome]) -> str:
    """Return a table in Markdown; a column that would be empty is left out."""
    from rich.box import MARKDOWN
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table, rows = Table(box=MARKDOWN), [[cell(outcome) for _, cell in _columns(outcomes)] for outcome in outcomes]
    kept = [i for i, column in enumerate(zip(*rows, strict=True)) if any(column)]
    heads = [head for head, _ in _columns(outcomes)]
    for i in kept:
        table.add_column(heads[i], no_wrap=True)
    for row in rows:
        table.add_row(*(Text(row[i]) for i in kept))
    page = io.StringIO()
    Console(file=page, width=10_000).print(table)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines() if line.strip())


def _columns(outcomes: Sequence[Outcome]) -> list[tuple[str, Cell]]:
    """Return the heads of the columns, and what each has of a combination."""
    named: list[tuple[str, Cell]] = [
        ("model", lambda o: o.trial.job.model),
        ("precision", lambda o: o.found.precision if isinstance(o.found, Figures) else o.trial.job.precision),
        ("solver", _solver),
        ("batch", _batch),
        ("load, s", _of(lambda f: f.load_s)),
        ("tile, s", _of(lambda f: f.tile_s)),
        ("tiles/s", _of(lambda f: 1 / f.tile_s)),
        ("Mpx/s", _of(lambda f: f.mpx_per_tile / f.tile_s)),
        ("times its floor", _of(lambda f: f.times_floor)),
        ("memory, GB", _of(lambda f: f.host_peak_bytes / 1e9)),
        ("GPU memory, GB", _of(lambda f: f.device_peak_bytes / 1e9 if f.device_peak_bytes is not None else None)),
        ("J/tile", _of(lambda f: f.joules_per_tile)),
        ("weights, M", _of(lambda f: f.parameters / 1e6)),
        ("weights, MB", _of(lambda f: f.weights_bytes / 1e6)),
    ]
    return [*named, *_quality_columns(outcomes), ("why not", _why)]


def _quality_columns(outcomes: Sequence[Outcome]) -> list[tuple[str, Cell]]:
    names = dict.fromkeys(name for o in outcomes if isinstance(o.found, Figures) for name in o.found.quality)
    kinds = (("distance", "off limit, std", "{:.4f}"), ("classes", "classes", "{:.2%}"), ("cosine", "cosine", "{:.6f}"))
    columns = [(f"{name} {word}", _likeness(name, key, form)) for name in names for key, word, form in kinds]
    return [*columns, *((f"{name} tokens", _likeness(name, "tokens", "{:.2%}")) for name in names)]


def _likeness(name: str, key: str, form: str) -> Cell:
    def cell(outcome: Outcome) -> str:
        quality = outcome.found.quality if isinstance(outcome.found, Figures) else {}
        value = getattr(quality[name], key) if name in quality else None
        return "" if value is None else form.format(value)

    return cell


def _of(value: Callable[[Figures], float | None]) -> Cell:
    """Return what has a figure in three digits, or nothing."""

    def cell(outcome: Outcome) -> str:
        number = value(outcome.found) if isinstance(outcome.found, Figures) else None
        return "" if number is None else f"{number:.3g}" if number < 1000 else f"{number:.0f}"

    return cell


def _solver(outcome: Outcome) -> str:
    sampling = outcome.trial.spec.request.sampling
    return f"{sampling.solver} {sampling.steps}" if outcome.trial.diffused else ""


def _why(outcome: Outcome) -> str:
    """Return why a combination could not be measured, cut short: the log and --json have all of it."""
    why = outcome.why or ""
    return why if len(why) <= _WHY_CHARS else f"{why[: _WHY_CHARS - 3].rstrip()}..."


def _batch(outcome: Outcome) -> str:
    if isinstance(outcome.found, Figures):
        return str(outcome.found.batch_size)
    return str(outcome.trial.job.batch_size or "auto")


def draw(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Draw what was measured: seconds a tile against the largest distance to the limit, or else against memory."""
    measured = [(o, o.found) for o in outcomes if isinstance(o.found, Figures)]
    far = [max((q.distance for q in f.quality.values() if q.distance is not None), default=None) for _, f in measured]
    by_quality = all(distance is not None for distance in far)
    heights = [
        distance or 0.0 if by_quality else f.host_peak_bytes / 1e9
        for distance, (_, f) in zip(far, measured, strict=True)
    ]
    marks = [
        Mark(
            o.trial.job.model, ", ".join(filter(None, [f.precision, _solver(o), f"batch {f.batch_size}"])), f.tile_s, y
        )
        for (o, f), y in zip(measured, heights, strict=True)
    ]
    plot_marks(path, ("seconds a tile", "distance to the limit, std" if by_quality else "peak memory, GB"), marks)
