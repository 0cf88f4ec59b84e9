"""What a task asks a model for: one frozen class a kind of work. A model's family says which kinds it can do."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from tmtool.models.text import SEQUENCES
from tmtool.settings import Sampling

if TYPE_CHECKING:
    from tmtool.models.finetuned.config import TaskConfig


@dataclass(frozen=True)
class Request:
    """What a task asks of a model for scenes of one kind. `outputs` are modalities, in the order in which they are made.

    `checkpoint` is a file of the user's own whose weights take the place of the model's.
    """

    outputs: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    checkpoint: Path | None = None

    by_core: ClassVar[bool] = True
    """Whether the transformer works on it, rather than a tokenizer alone."""

    @property
    def drawn(self) -> tuple[str, ...]:
        """Modalities whose tokens the transformer draws."""
        return self.outputs if self.by_core else ()

    @property
    def decoded(self) -> tuple[str, ...]:
        """Modalities that are decoded from tokens to pixels."""
        return ()

    def encoded(self, inputs: Sequence[str], tokenised: Sequence[str]) -> tuple[str, ...]:
        """Return which `inputs` a tokenizer's encoder turns into tokens; the core takes `tokenised` ones as tokens only."""
        return tuple(tokenised)


@dataclass(frozen=True)
class Generation(Request):
    """Pixels of `outputs`, each drawn from the inputs and the outputs before it, then decoded; tokens of sequences.

    `coords` says whether the model takes the tiles' coordinates.
    """

    coords: bool = False

    @property
    def decoded(self) -> tuple[str, ...]:
        """All outputs but sequences."""
        return tuple(m for m in self.outputs if m not in SEQUENCES)


@dataclass(frozen=True)
class Encoding(Request):
    """Tokens of the one input."""

    by_core: ClassVar[bool] = False

    def encoded(self, inputs: Sequence[str], tokenised: Sequence[str]) -> tuple[str, ...]:
        """Return the inputs."""
        return tuple(inputs)


@dataclass(frozen=True)
class Decoding(Request):
    """Pixels of the one output from its tokens."""

    by_core: ClassVar[bool] = False

    @property
    def decoded(self) -> tuple[str, ...]:
        """The output."""
        return self.outputs

    def encoded(self, inputs: Sequence[str], tokenised: Sequence[str]) -> tuple[str, ...]:
        """Return nothing: tokens come in."""
        return ()


@dataclass(frozen=True)
class Prediction(Request):
    """What a fine-tuned task makes of `dates` dates: its answer, and with `scores` all of its scores."""

    config: "TaskConfig | None" = None
    dates: int = 1
    scores: bool = False


@dataclass(frozen=True)
class Embedding(Request):
    """One vector a patch of each of `layers`, which may count from the end. `outputs` are imagined and embedded too (TiM).

    `merge` says how vectors of several modalities become one, `coords` whether the model takes the tiles' coordinates.
    """

    layers: tuple[int, ...] = (-1,)
    merge: Literal["mean", "max", "concat", "dict"] = "mean"
    coords: bool = False


def input_key(name: str, date: int, dates: int) -> str:
    """Return the key of an input's date (from 0) among a tile's pixels: its name, and the date where there are several."""
    return name if dates == 1 else f"{name}@{date + 1}"


def input_name(key: str) -> str:
    """Return the name of the input whose date has this key."""
    return key.partition("@")[0]
