"""What a model takes and gives, as a card of the model tells it (STAC's `mlm`)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Taken:
    """One input: its bands in order, and the mean and standard deviation of each where values are standardised by them."""

    name: str
    bands: tuple[str, ...]
    means: tuple[float, ...] = ()
    stds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Given:
    """One output. `work` is what kind of machine learning it is, in `mlm`'s words. A cell of it stands for `cell_px` px a side.

    `channels` is None where only its products know. `classes` are (name, colour) of the values 0, 1, ...
    """

    name: str
    work: tuple[str, ...]
    channels: int | None
    cell_px: int = 1
    dtype: str = "float32"
    classes: tuple[tuple[str, str], ...] = ()
