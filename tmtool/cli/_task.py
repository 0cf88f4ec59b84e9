"""Which fine-tuned task a command is about: options that `predict` and `info` share."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tmtool.cli import _options as o

if TYPE_CHECKING:
    from tmtool.tasks.predict import TaskFiles

TASK = "Task"

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="F", rich_help_panel=TASK, help="TerraTorch's YAML of the task. Read, never run."),
]
TaskCheckpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        metavar="F",
        rich_help_panel=TASK,
        help="What was fine-tuned: Lightning's checkpoint, or a state dict. Code in it is never run.",
    ),
]
Means = Annotated[
    str | None,
    typer.Option(
        "--means",
        metavar="F|pretraining",
        rich_help_panel=TASK,
        show_default="the config's",
        help="Means that inputs were standardised with: a YAML or JSON file, or those of the backbone's pretraining.",
    ),
]
Stds = Annotated[
    str | None,
    typer.Option(
        "--stds",
        metavar="F|pretraining",
        rich_help_panel=TASK,
        show_default="the config's",
        help="Likewise, deviations.",
    ),
]
ModelHub = Annotated[
    str | None,
    typer.Option(
        "--model-hub",
        metavar="ORG/NAME",
        rich_help_panel=TASK,
        help="Repository of the Hugging Face hub with config and checkpoint. Where it holds several, --config and "
        "--checkpoint name files in it.",
    ),
]


@dataclass(frozen=True, eq=False, repr=False)
class TaskFileOptions:
    """Where a fine-tuned task comes from."""

    config: ConfigFile = None
    checkpoint: TaskCheckpoint = None
    model_hub: ModelHub = None
    means: Means = None
    stds: Stds = None
    offline: o.Offline = False

    @property
    def given(self) -> bool:
        """Whether there is a task at all."""
        return bool(self.config or self.checkpoint or self.model_hub)

    def files(self) -> "TaskFiles":
        """Return them as the task has them."""
        from tmtool.tasks.predict import TaskFiles

        return TaskFiles(self.config, self.checkpoint, self.means, self.stds, self.model_hub, self.offline)
