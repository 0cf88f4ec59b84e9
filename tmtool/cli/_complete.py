"""What a shell completes where the value of an option is the name of something: `tmtool --install-completion`."""

from collections.abc import Iterable

from tmtool import modality


def inputs(incomplete: str) -> list[str]:
    """Complete the last of the modalities that are taken as input."""
    return _last_of_list(incomplete, modality.INPUTS)


def outputs(incomplete: str) -> list[str]:
    """Complete the last of the modalities that are made."""
    return _last_of_list(incomplete, modality.OUTPUTS)


def models(incomplete: str) -> list[str]:
    """Complete the last of the names of models."""
    from tmtool.models import MODELS

    return _last_of_list(incomplete, MODELS)


def _last_of_list(incomplete: str, names: Iterable[str]) -> list[str]:
    """Return how a list with commas may go on, with no name twice."""
    before, comma, begun = incomplete.rpartition(",")
    taken = before.split(",")
    return [before + comma + name for name in names if name.startswith(begun) and name not in taken]
