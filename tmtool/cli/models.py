"""`tmtool models`: which models there are, where their weights lie, fetching and verifying them."""

import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmtool.cli import _complete
from tmtool.cli import _options as o
from tmtool.cli._session import command

if TYPE_CHECKING:
    from tmtool.models import ModelSpec
    from tmtool.models.weights import WeightFile

app = typer.Typer(
    help="List, fetch, verify and locate model weights.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
)

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        autocompletion=_complete.models,
        help="base, large, small, tiny, demo or another that `tmtool models list` shows.",
    ),
]
For = Annotated[
    str,
    typer.Option(
        "--for", metavar="TASK", help="generate, tokenize, reconstruct or embed; Prithvi and Clay only embed."
    ),
]
Inputs = Annotated[
    str,
    typer.Option(
        "--in",
        metavar="MOD,...",
        autocompletion=_complete.inputs,
        help="Its inputs; LULC and NDVI need their tokenizers.",
    ),
]
Outputs = Annotated[
    str,
    typer.Option(
        "--out",
        metavar="MOD,...",
        autocompletion=_complete.outputs,
        help="Its outputs; each needs its tokenizer.",
        show_default="S1GRD,LULC for generate",
    ),
]


Coords = Annotated[bool, typer.Option("--coords", help="Also what embed --coords needs.")]


@app.command("list")
def list_(json_: o.Json = False) -> None:
    """Show the models, what they take and make, their licence, and which files the hub's cache holds.

    Example: tmtool models list
    """
    with command():
        from tmtool.models import MODELS, Generation, ModelSpec
        from tmtool.models.weights import find_locally

        rows: list[dict[str, Any]] = []
        from tmtool.tasks import TASKS

        for name, entry in MODELS.items():
            outputs = (*entry.outputs, *entry.sequences)
            files = entry.files(ModelSpec(name, Generation(outputs), entry.inputs))
            places = {file: find_locally(file) for file in files}
            rows.append(
                {
                    "model": name,
                    "title": entry.title,
                    "tasks": [task.name for task in TASKS.values() if task.can_be_done_by(entry)],
                    "inputs": list(entry.inputs),
                    "bands": {modality: list(bands) for modality, bands in entry.bands.items()},
                    "outputs": list(outputs),
                    "licence": entry.licence,
                    "files": [_file_facts(file, str(path) if path else None) for file, path in places.items()],
                }
            )
        print(json.dumps(rows) if json_ else "\n".join(map(_text, rows)))


def _file_facts(file: "WeightFile", path: str | None) -> dict[str, Any]:
    import os

    size = os.path.getsize(path) / 1e6 if path else file.megabytes
    return {"file": str(file), "megabytes": round(size, 1), "path": path}


def _text(row: dict[str, Any]) -> str:
    lines = [f"{row['model']:<6} {row['title']} ({row['licence']})"]
    lines.append(f"       for {', '.join(row['tasks'])}")
    bands = {modality: f" ({' '.join(names)})" for modality, names in row["bands"].items()}
    lines.append(f"       inputs {' '.join(modality + bands.get(modality, '') for modality in row['inputs'])}")
    if row["outputs"]:
        lines.append(f"       outputs {' '.join(row['outputs'])}")
    for file in row["files"]:
        where = file["path"] or "not here yet"
        about = "" if file["path"] else "~"
        lines.append(f"       {about + format(file['megabytes'], '.0f'):>6} MB  {file['file']}: {where}")
    return "\n".join(lines)


@app.command(no_args_is_help=True)
def fetch(
    model: ModelArgument,
    for_: For = "generate",
    out: Outputs = "",
    in_: Inputs = "S2L2A",
    coords: Coords = False,
    quiet: o.Quiet = False,
) -> None:
    """Fetch the files that a job uses, and no others, into the hub's cache.

    An interrupted download is resumed; complete files are never fetched again.

    Example: tmtool models fetch base --for generate --out S1GRD,LULC
    """
    with command(o.LogOptions(quiet=quiet)):
        from tmtool.models.weights import locate

        for path in locate(_files(_spec(model, for_, in_, out, coords)), None, offline=False).values():
            print(path)


@app.command(no_args_is_help=True)
def path(
    model: ModelArgument,
    for_: For = "generate",
    out: Outputs = "",
    in_: Inputs = "S2L2A",
    coords: Coords = False,
    weights: o.Weights = None,
) -> None:
    """Print where the files that a job uses lie. Fetches nothing; exit status 2 if one is missing.

    Example: tmtool models path base --out LULC
    """
    with command():
        from tmtool.models.weights import locate

        for place in locate(_files(_spec(model, for_, in_, out, coords)), weights, offline=True).values():
            print(place)


@app.command(no_args_is_help=True)
def verify(
    model: ModelArgument,
    for_: For = "generate",
    out: Outputs = "",
    in_: Inputs = "S2L2A",
    coords: Coords = False,
    weights: o.Weights = None,
    verbose: o.Verbose = False,
) -> None:
    """Check that a job's files are all here and load: every tensor present, of its shape and kind, and finite.

    Prints the SHA-256 of each file. Example: tmtool models verify base --weights weights/
    """
    with command(o.LogOptions(verbose=verbose)):
        from tmtool import models
        from tmtool.models.weights import digest, locate

        spec = _spec(model, for_, in_, out, coords)
        files = locate(_files(spec), weights, offline=True)
        for place in files.values():
            print(f"{digest(place)}  {place}", flush=True)
        models.build(replace(spec, files=files))
        logging.getLogger("tmtool").info("%s: complete, all %d files load", model, len(files))


def _files(spec: "ModelSpec") -> "tuple[WeightFile, ...]":
    from tmtool import models

    return models.find(spec.name).files(spec)


def _spec(model: str, task: str, in_: str, out: str, coords: bool) -> "ModelSpec":
    """Return the part of a job of this task that decides which files it uses."""
    from tmtool import models
    from tmtool.errors import UsageError
    from tmtool.modality import find
    from tmtool.tasks import TASKS
    from tmtool.tasks.generate import output_named

    if task not in TASKS:
        raise UsageError(f"--for {task}: choose from {', '.join(TASKS)}.")
    entry, chosen = models.find(model), TASKS[task]
    if not chosen.can_be_done_by(entry):
        able = " or ".join(name for name, other in TASKS.items() if other.can_be_done_by(entry))
        raise UsageError(f"--for {task}: {entry.title} cannot {task}. Choose --for {able}.")
    inputs = tuple(find(name, output=chosen.one_input).name for name in o.split(in_))
    asked = chosen.for_files(tuple(output_named(name) for name in o.split(out)), coords)
    request = asked.request(inputs)
    for names, choices in ((inputs, asked.offered(entry)), (request.outputs, (*entry.outputs, *entry.sequences))):
        if unknown := set(names) - set(choices):
            raise UsageError(f"{model} does not have {', '.join(sorted(unknown))}; it has {', '.join(choices)}.")
    return models.ModelSpec(model, request, inputs, bands=asked.bands_of(entry))
