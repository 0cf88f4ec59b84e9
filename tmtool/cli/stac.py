"""`tmtool stac`."""

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

from tmtool.cli import _options as o
from tmtool.cli._compose import composed
from tmtool.cli._session import command
from tmtool.errors import EXIT_SOME_FAILED

_log = logging.getLogger("tmtool")

Folder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="A folder that products were written to.", show_default=False)
]
Below = Annotated[
    bool,
    typer.Option("--recursive", help="Also its subfolders: each gets a catalog, which the one above links to."),
]
Collection = Annotated[
    bool,
    typer.Option(
        "--json", help="Print the items as one document with absolute links, as GDAL takes it, in place of the path."
    ),
]


@composed
def stac(folder: Folder, log: o.LogOptions, recursive: Below = False, json_: Collection = False) -> None:
    """Make or refresh a static STAC catalog of a folder of products: catalog.json, an item per scene, an item per model.

    Links are relative, so that the folder can be moved or served as it is. Items whose products are gone are removed. Prints the
    path of the catalog.

    Example: tmtool stac out/

    Example: tmtool stac out/ --recursive --json > items.json
    """
    with command(log):
        from tmtool.catalog import item_collection, refresh

        made = refresh(folder, recursive=recursive)
        print(json.dumps(item_collection(made)) if json_ else made.path, flush=True)
        for error in made.wrong:
            _log.error("%s", error)
        if made.wrong:
            raise typer.Exit(EXIT_SOME_FAILED)
