"""The command line. Only this package prints or ends the process; heavy imports wait until a job starts."""

from typing import Any

import typer
from typer.core import TyperGroup

from tmtool import __version__
from tmtool.cli import bench, compare, embed, generate, info, models, predict, preview, reconstruct, stac, tokenize
from tmtool.cli._streams import standard_streams
from tmtool.names import shown


class _Commands(TyperGroup):
    """The commands. Secrets are removed from what a message quotes of the command line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:  # here, since later the message is broken into lines
            if isinstance(message := getattr(error, "message", None), str):
                error.message = shown(message)  # type: ignore[attr-defined]
            raise


app = typer.Typer(
    name="tmtool",
    cls=_Commands,
    help="Run the TerraMind foundation models over geospatial rasters of any size.",
    epilog="Example: tmtool generate Santiago.tif --out S1GRD,LULC",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"tmtool {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    pass


app.command("generate", no_args_is_help=True)(generate.generate)
app.command("tokenize", no_args_is_help=True)(tokenize.tokenize)
app.command("reconstruct", no_args_is_help=True)(reconstruct.reconstruct)
app.command("embed", no_args_is_help=True)(embed.embed)
app.command("predict", no_args_is_help=True)(predict.predict)
app.command("preview", no_args_is_help=True)(preview.preview)
app.command("compare", no_args_is_help=True)(compare.compare)
app.command("bench")(bench.bench)
app.command("stac", no_args_is_help=True)(stac.stac)
app.command("info", no_args_is_help=True)(info.info)
app.add_typer(models.app, name="models")


def main() -> None:
    """Entry point of the `tmtool` command."""
    with standard_streams():
        app()
