"""The tasks: one file each, which owns all that is particular to it. Choices of tasks derive from `TASKS`."""

import re

from tmtool.files.writer import Format
from tmtool.provenance import Provenance
from tmtool.settings import Vectors
from tmtool.tasks.base import Task
from tmtool.tasks.embed import Embed
from tmtool.tasks.generate import Generate
from tmtool.tasks.predict import Predict
from tmtool.tasks.reconstruct import Reconstruct
from tmtool.tasks.tokenize import Tokenize

TASKS: dict[str, type[Task]] = {task.name: task for task in (Generate, Tokenize, Reconstruct, Embed, Predict)}

__all__ = ["TASKS", "Embed", "Generate", "Predict", "Reconstruct", "Task", "Tokenize", "Vectors"]


def formats() -> dict[str, Format]:
    """Return the file formats of all products, by the ending of their names."""
    return {format.ending: format for task in TASKS.values() for format in task.formats()}


def possible_stems(name: str) -> set[str]:
    """Return what may be the stem of a product with this name, given without its ending; none where it is no product's name."""
    return {found[0] for task in TASKS.values() if (found := _parted(name, task))}


def stem_and_suffix(name: str, made: Provenance) -> tuple[str, str] | None:
    """Return the stem of a product's scene, and what follows it in its name, which is given without its ending.

    None if no task made it, or it was renamed.
    """
    task = TASKS.get(made.task)
    return _parted(name, task) if task else None


def _parted(name: str, task: type[Task]) -> tuple[str, str] | None:
    found = re.fullmatch(rf"(.+)_({task.suffixes()})", name, re.S)  # as long a stem as there can be
    return (found[1], found[2]) if found else None


def content(made: Provenance | None) -> str:
    """Return what a product holds, by how it was made: `Task.holds`; nothing where no task made it."""
    task = TASKS.get(made.task) if made else None
    return task.holds if task else ""


def cell_px(made: Provenance) -> int:
    """Return the side of a product's cells in source px, by how it was made: `Task.cell_px`; 0 where no task made it."""
    task = TASKS.get(made.task)
    return task.cell_px(made) if task else 0
