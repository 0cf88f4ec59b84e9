"""The tasks: one file each, which owns all that is particular to it. Choices of tasks derive from `TASKS`."""

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


def content(made: Provenance | None) -> str:
    """Return what a product holds, by how it was made: `Task.holds`; nothing where no task made it."""
    task = TASKS.get(made.task) if made else None
    return task.holds if task else ""


def cell_px(made: Provenance) -> int:
    """Return the side of a product's cells in source px, by how it was made: `Task.cell_px`; 0 where no task made it."""
    task = TASKS.get(made.task)
    return task.cell_px(made) if task else 0
