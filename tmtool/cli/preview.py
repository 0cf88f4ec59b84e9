"""`tmtool preview`."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tmtool.cli import _options as o
from tmtool.cli._compose import composed
from tmtool.cli._session import command
from tmtool.cli._terminal import viewer
from tmtool.errors import EXIT_NOTHING_TO_DO, EXIT_SOME_FAILED, InputError, TmtoolError, UsageError

if TYPE_CHECKING:
    from tmtool.pictures import Components, Look, Space

_log = logging.getLogger("tmtool")

Products = Annotated[
    list[Path],
    typer.Argument(metavar="PRODUCT...", help="Products that tmtool wrote, or folders of them.", show_default=False),
]
Size = Annotated[int, typer.Option("--size", metavar="PX", help="Longest side of the picture.")]
PreviewBbox = Annotated[
    str,
    typer.Option(
        "--bbox",
        metavar="W,S,E,N",
        show_default="the whole product",
        help="Show this part only: in degrees, or in a CRS as 300000,6200000,310000,6210000@EPSG:32719.",
    ),
]
With = Annotated[
    str,
    typer.Option(
        "--with", metavar="INPUT", show_default="the product alone", help="Show this raster beside each product."
    ),
]
Together = Annotated[
    bool,
    typer.Option(
        "--together", help="Show all embeddings by the same principal components, so that colours can be compared."
    ),
]
Tiles = Annotated[
    bool,
    typer.Option(
        "--tiles", help="Lay the tiles over the picture, coloured by how far they disagree where they overlap."
    ),
]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="PAGE.html",
        show_default=False,
        help="Write one page instead: scenes, a swipe between input and products, values, legends, provenance. It needs no network.",
    ),
]
OfRun = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="F",
        show_default=False,
        help="What --report of the run wrote: adds states, errors and metrics to the page.",
    ),
]


@composed
def preview(
    products: Products,
    log: o.LogOptions,
    recursive: o.Recursive = False,
    size: Size = 1024,
    bbox: PreviewBbox = "",
    with_: With = "",
    together: Together = False,
    tiles: Tiles = False,
    html: Html = None,
    report: OfRun = None,
) -> None:
    """Draw products: a PNG beside each, with title, legend, scale bar and north; no data is transparent.

    Sentinel-2 in true colour, radar as VV, VH and their ratio, elevation shaded, NDVI, classes in their colours, probabilities,
    tokens by their digits, embeddings by principal components. Prints the paths, and shows the pictures in a terminal that can.

    Example: tmtool preview out/

    Example: tmtool preview out/Santiago_LULC.tif --with Santiago.tif

    Example: tmtool preview out/ --html out/page.html --report run.json
    """
    with command(log):
        from tmtool.pictures import Look, fitted
        from tmtool.pictures import preview as draw
        from tmtool.source import inspect

        Look(size).check()
        _check_page(html, report)
        if tiles and html is not None:
            raise UsageError("--tiles: is for pictures; leave out --html.")
        look = Look(size, bbox, inspect(with_) if with_ else None, tiles)
        paths = _listed(products, recursive, needed=report is None)
        components = fitted(paths) if together else {}
        if html is not None:
            _write_page(html, paths, look, components, report)
            return
        show, failed = viewer(), 0
        for path in paths:
            try:
                picture = draw(path, look, components)
                print(picture, flush=True)
                if show is not None:
                    show(picture)
            except TmtoolError as error:
                _log.error("%s", error)
                failed += 1
        if failed:
            raise typer.Exit(EXIT_NOTHING_TO_DO if failed == len(paths) else EXIT_SOME_FAILED)


def _check_page(html: Path | None, report: Path | None) -> None:
    """Raise `UsageError` for a page that cannot be one, or a report without a page."""
    from tmtool.pictures import check_page

    if html is not None:
        check_page(html)
    elif report is not None:
        raise UsageError(f"--report {report}: is for a page; give --html PAGE.html too.")


def _write_page(
    html: Path, paths: list[Path], look: "Look", components: "dict[Space, Components]", report: Path | None
) -> None:
    from tmtool.pictures import write_page

    failed = write_page(html, paths, look, components, report)
    print(html, flush=True)
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED)


def _listed(products: list[Path], recursive: bool, needed: bool = True) -> list[Path]:
    """Return the products, those in folders sorted. Raises `InputError` for what holds none though it is `needed`."""
    from tmtool.batch import is_product
    from tmtool.pictures.product import check_picturable

    found: dict[Path, None] = {}
    for path in products:
        if not path.is_dir() or path.suffix == ".zarr":
            check_picturable(path)
            found[path] = None
            continue
        inside = sorted(path.rglob("*.tif") if recursive else path.glob("*.tif"))
        own = [one for one in inside if is_product(str(one))]
        if needed and not own:
            raise InputError(f"{path}: holds no product of tmtool in GeoTIFF. Name files to see others.")
        found |= dict.fromkeys(own)
    return list(found)
