"""What every command that makes products does with its scenes: check all, run all, print results."""

import json
import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import typer

from tmtool import errors
from tmtool.cli import options
from tmtool.job import Job, Prepared, Scene, prepare
from tmtool.metrics import code_use_text, comparison_text
from tmtool.progress import LineReporter, Reporter, RichReporter, SilentReporter
from tmtool.run import Runner, SceneResult, notice_of

_log = logging.getLogger("tmtool")


def run_scenes(job: Job, found: Sequence[Scene], *, dry_run: bool, as_json: bool, quiet: bool) -> None:
    """Run `job` over the scenes; raises `typer.Exit` unless all is well."""
    for note in job.check():
        _log.warning("%s", note)
    if notice := notice_of(job):
        _log.warning("%s", notice)
    ready, failed = _prepare_all(job, found, as_json)
    if not ready:
        raise typer.Exit(errors.EXIT_NOTHING_TO_DO)
    with ExitStack() as stack:
        runner = Runner(job, _reporter(stack, quiet))
        if not dry_run:
            runner.locate_weights(ready)
        for prepared in ready:
            if dry_run:
                _print(prepared, "planned", as_json)
                continue
            try:
                result = runner.run(prepared)
            except errors.TmtoolError as error:
                if isinstance(error, errors.DeviceError | errors.WeightsError):  # which no scene can do without
                    raise
                failed += 1
                _log.error("%s", error)
                if as_json:
                    _print_json(prepared.scene, "failed", error=error)
                continue
            _report(prepared, result)
            _print(prepared, "done", as_json, result)
    if failed:
        raise typer.Exit(errors.EXIT_SOME_FAILED)


def _prepare_all(job: Job, found: Sequence[Scene], as_json: bool) -> tuple[list[Prepared], int]:
    """Check every scene before anything is loaded; return those that can run and the number of those that cannot."""
    ready: list[Prepared] = []
    for scene in found:
        try:
            prepared = prepare(job, scene)
        except errors.TmtoolError as error:
            _log.error("%s", error)
            if as_json:
                _print_json(scene, "invalid", error=error)
            continue
        for source in prepared.sources.values():
            _log.debug(
                "%s: %s by %s; offset %g (%s)",
                scene.path,
                source.modality.name,
                source.modality_why,
                source.offset,
                source.offset_why,
            )
            for warning in source.warnings:
                _log.warning("%s: %s", scene.path, warning)
        ready.append(prepared)
    return ready, len(found) - len(ready)


def _reporter(stack: ExitStack, quiet: bool) -> Reporter:
    if quiet:
        return SilentReporter()
    if sys.stderr.isatty():
        return stack.enter_context(RichReporter(options.console()))
    return LineReporter()


def _report(prepared: Prepared, result: SceneResult) -> None:
    for warning in result.warnings:
        _log.warning("%s: %s", prepared.scene.path, warning)
    _log.info(
        "%s: %d tiles (%d empty) in %.1f s", prepared.scene.stem, result.tiles, result.empty_tiles, result.seconds
    )
    for product in prepared.products:
        if facts := result.measured.get(product.suffix):
            source = prepared.sources[product.modality]
            text = code_use_text(facts) if product.measure == "codes" else comparison_text(facts, source.modality)
            _log.info("%s_%s: %s", prepared.scene.stem, product.suffix, text)
    share = 100 * result.model_seconds / max(result.seconds, 1e-9)
    _log.debug("%s: %.0f %% of the time in the model's forward", prepared.scene.stem, share)


def _print(prepared: Prepared, status: str, as_json: bool, result: SceneResult | None = None) -> None:
    if as_json:
        _print_json(prepared.scene, status, prepared, result)
        return
    for path in result.products if result else _planned(prepared).values():
        print(path, flush=True)


def _planned(prepared: Prepared) -> dict[str, str]:
    return {p.suffix: str(t) for p, t in zip(prepared.products, prepared.targets, strict=True) if not p.holes}


def _print_json(
    scene: Scene,
    status: str,
    prepared: Prepared | None = None,
    result: SceneResult | None = None,
    error: errors.TmtoolError | None = None,
) -> None:
    said: dict[str, Any] = {"status": status, "inputs": [path for _, path in scene.inputs], "products": {}}
    if prepared is not None:
        said["inputs"] = {m: s.path for m, s in prepared.sources.items()}
        said["products"] = _planned(prepared)
        said["tiles"] = len(prepared.plan)
    if result is not None:
        said |= {
            "empty_tiles": result.empty_tiles,
            "seconds": round(result.seconds, 3),
            "model_seconds": round(result.model_seconds, 3),
            "warnings": list(result.warnings),
            "measured": dict(result.measured),
        }
    if error is not None:
        said["error"] = {"kind": type(error).__name__, "message": str(error)}
    print(json.dumps(said), flush=True)
