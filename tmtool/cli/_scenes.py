"""What every command that makes products does with its scenes: run them, print the outcome of each."""

import json
import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack

import typer

from tmtool.batch import Folder, Listing, Outcome, Policy, list_scenes, place_of, run_batch
from tmtool.cli import _session as session
from tmtool.cli._options import ListingOptions, OutputOptions
from tmtool.errors import EXIT_SOME_FAILED, TmtoolError
from tmtool.scene.job import Job, Scene, stem_of
from tmtool.scene.progress import LineReporter, Reporter, RichReporter, SilentReporter

_log = logging.getLogger("tmtool")


def run_command(
    job: Job,
    listing: ListingOptions,
    output: OutputOptions,
    policy: Policy,
    taken_for: Sequence[str] | None,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """List the scenes of a command and run `job` over them; raises `typer.Exit` unless all is well."""
    unlisted = list[Outcome]()

    def beside(outcome: Outcome) -> None:
        if output.preview and outcome.status == "done":
            _draw(outcome)
        if output.stac and not _list(outcome, place):
            unlisted.append(outcome)

    def tell(outcome: Outcome) -> None:
        if not place.sends:
            beside(outcome)
        (_print_json if as_json else _print_paths)(outcome)

    place = place_of(output.output_dir, output.scratch, beside)
    found = list_scenes(listing_of(job, listing), place.root, taken_for or (), job.task.bands)
    if not found:
        return  # an empty shard
    if output.stac:
        _check_items(found)
    with ExitStack() as stack:
        tally = run_batch(job, found, policy, tell, _reporter(stack, quiet), place)
    if tally.exit_code or unlisted:
        raise typer.Exit(tally.exit_code or EXIT_SOME_FAILED)


def listing_of(job: Job, options: ListingOptions) -> Listing:
    """Return where a command's inputs are listed."""
    o, tokens = options, job.task.before is not None
    return Listing(o.inputs, o.recursive, o.pattern, o.files_from, o.null, o.shard, tokens)


def _draw(outcome: Outcome) -> None:
    """Draw what a scene made; a picture that cannot be drawn is told, and fails nothing."""
    from tmtool.pictures import Look, preview

    products = zip(outcome.prepared.products, outcome.prepared.targets, strict=True) if outcome.prepared else ()
    for product, path in products:
        if path.suffix == ".tif" and not product.holes:
            try:
                outcome.pictures.append(str(preview(path, Look())))
            except TmtoolError as error:
                _log.warning("%s: no picture (%s)", path, error)


def _check_items(scenes: Sequence[Scene]) -> None:
    """Raise `OutputError` if another file has the name of an item, such as the one that is the input."""
    from tmtool.catalog import check_free

    for scene in scenes:
        check_free(scene.folder / f"{scene.stem}.json")


def _list(outcome: Outcome, place: Folder) -> bool:
    """Write the items of a scene that has its products; one that cannot be written is told, and return False."""
    from tmtool.catalog import write_item

    prepared = outcome.prepared
    if prepared is None or outcome.bad or outcome.status == "planned":
        return True
    try:
        for stem in {stem_of(prepared.scene, product) for product in prepared.products}:
            outcome.item = str(write_item(prepared.scene.folder, stem, place.root))
    except TmtoolError as error:
        _log.error("%s: its products are complete, but no STAC item lists them. %s", outcome.scene.stem, error)
        return False
    return True


def _print_json(outcome: Outcome) -> None:
    print(json.dumps(outcome.facts()), flush=True)


def _print_paths(outcome: Outcome) -> None:
    for path in outcome.paths:
        print(path, flush=True)


def _reporter(stack: ExitStack, quiet: bool) -> Reporter:
    if quiet:
        return SilentReporter()
    if sys.stderr.isatty():
        return stack.enter_context(RichReporter(session.console()))
    return LineReporter()
