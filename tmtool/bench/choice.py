"""Which combination to use: the fastest whose quality is not below that of the defaults."""

from collections.abc import Sequence
from dataclasses import dataclass

from tmtool.bench.measure import Figures
from tmtool.bench.run import Outcome
from tmtool.settings import Sampling


@dataclass(frozen=True)
class Choice:
    """A combination, and why it was chosen."""

    outcome: Outcome
    because: str


def best(outcomes: Sequence[Outcome]) -> Choice | None:
    """Choose among the combinations of one model; None if none could be measured."""
    done = sorted(((o, f) for o in outcomes if isinstance(f := o.found, Figures)), key=lambda pair: pair[1].tile_s)
    if not done:
        return None
    if not done[0][1].quality:
        return Choice(done[0][0], "the fastest; quality was not measured")
    usual = next((figures for outcome, figures in done if _is_usual(outcome, figures)), None)
    if usual is None:
        return Choice(
            done[0][0], "the fastest; the defaults are not among them, so its quality was held against nothing"
        )
    bar = usual.quality
    good = (o for o, figures in done if all(figures.quality[name].not_worse_than(bar[name]) for name in bar))
    return Choice(next(good), "the fastest that is nowhere farther from the model's limit than the defaults are")


def _is_usual(outcome: Outcome, figures: Figures) -> bool:
    """Whether a combination does what the command does by default, but for the size of batches."""
    sampling, usual = outcome.trial.spec.request.sampling, Sampling()
    return figures.precision == figures.usual_precision and (sampling.solver, sampling.steps) == (
        usual.solver,
        usual.steps,
    )
