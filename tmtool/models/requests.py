"""What a task asks a model for: one frozen class a kind of work. A model's family says which kinds it can do."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from tmtool.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn and decoded; the names are the command line's.

    Temperature 0 takes the likeliest token. `clip_sigma` clamps the diffusion's estimate to so many standard
    deviations around the mean at each step; None does not.
    """

    top_p: float = 0.8
    top_k: int = 0
    temperature: float = 1.0
    decoding_steps: int = 1
    timesteps: int = 10
    clip_sigma: float | None = None

    def check(self) -> None:
        """Raise `UsageError` for a value that cannot work."""
        bounds = (
            ("--top-p", self.top_p, 0, 1),
            ("--top-k", self.top_k, 0, 15_360),
            ("--temperature", self.temperature, 0, 100),
            ("--decoding-steps", self.decoding_steps, 1, 4096),
            ("--timesteps", self.timesteps, 1, 1000),
        )
        for name, value, low, high in bounds:
            if not low <= value <= high:
                raise UsageError(f"{name} {value:g} is out of range: it goes from {low} to {high}.")
        if self.clip_sigma is not None and not self.clip_sigma > 0:
            raise UsageError(f"--clip-sigma {self.clip_sigma:g} must be above 0 (leave it out for no clipping).")


@dataclass(frozen=True)
class Request:
    """What is wanted of a model for scenes of some kind. `outputs` are modalities, in the order in which they are made.

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
    """Pixels of `outputs`, each drawn from the inputs and the outputs before it, then decoded."""

    @property
    def decoded(self) -> tuple[str, ...]:
        """All outputs."""
        return self.outputs


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
class Embedding(Request):
    """One vector a patch of each of `layers`, which may count from the end. `outputs` are imagined and embedded too (TiM).

    `merge` says how vectors of several modalities become one, `coords` whether the model is told where a tile lies.
    """

    layers: tuple[int, ...] = (-1,)
    merge: Literal["mean", "max", "concat", "dict"] = "mean"
    coords: bool = False
