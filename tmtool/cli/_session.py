"""What surrounds every command: logging, signals, and the exit status that an error becomes."""

import functools
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import typer

from tmtool import errors
from tmtool.cli._streams import to_nowhere, unforeseen
from tmtool.limits import check_room_to_start

if TYPE_CHECKING:
    from rich.console import Console

    from tmtool.cli._options import LogOptions


class Stopped(BaseException):
    """SIGINT or SIGTERM arrived; raised in the main thread between two steps of whatever it does."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signal_name = signal.Signals(signum).name
        self.exit_code = errors.EXIT_INTERRUPTED if signum == signal.SIGINT else errors.EXIT_TERMINATED


def _stop(signum: int, frame: FrameType | None) -> None:
    for number in _SIGNALS:
        signal.signal(number, _stop_at_once)
    raise Stopped(signum)


def _stop_at_once(signum: int, frame: FrameType | None) -> None:
    os._exit(128 + signum)  # nothing needs cleaning up: a later run resumes from the work files and journals


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def command(log_as: "LogOptions | None" = None) -> Iterator[None]:
    """Set up logging, then turn errors and signals into a message and an exit status."""
    quiet, verbose, log_file, log_format = astuple(log_as) if log_as else (False, False, None, "text")
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    handlers = _handlers(log_file, level, log_format)
    previous = {number: signal.signal(number, _stop) for number in _SIGNALS}
    log = logging.getLogger("tmtool")
    try:
        check_room_to_start()
        yield
    except errors.TmtoolError as error:
        log.error("%s", error)
        raise typer.Exit(error.exit_code) from None
    except Stopped as stop:
        log.error("Stopped by %s. Run the same command again to resume.", stop.signal_name)
        raise typer.Exit(stop.exit_code) from None
    except BrokenPipeError:  # whoever read our output has gone
        raise typer.Exit(errors.EXIT_SOME_FAILED) from None
    except typer.Exit:
        raise
    except Exception as error:
        log.error("%s", unforeseen(error), exc_info=True)
        raise typer.Exit(errors.EXIT_SOME_FAILED) from error
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for log_handler in handlers:
            log.removeHandler(log_handler)
            log_handler.close()


class _TextFormatter(logging.Formatter):
    """The message alone: tracebacks are for -v and the log file."""

    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage()


class _JsonFormatter(logging.Formatter):
    """One JSON object a record."""

    def __init__(self, tracebacks: bool) -> None:
        super().__init__()
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        said = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname.lower()}
        said["message"] = record.getMessage()
        if record.exc_text and self._tracebacks:
            said["traceback"] = record.exc_text
        return json.dumps(said)


class _StderrHandler(logging.Handler):
    """Writes records through the console that draws the progress bar, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if record.levelno >= logging.WARNING and not isinstance(self.formatter, _JsonFormatter):
            text = f"{record.levelname.capitalize()}: {text}"
        if sys.stderr.isatty():
            console().print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr)


class _FileHandler(logging.FileHandler):
    """Writes records to a file; if that fails, says so once and writes no more."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._failed:
            self._failed = True
            print(f"Warning: --log-file {self.baseFilename}: cannot be written ({sys.exc_info()[1]}).", file=sys.stderr)
        to_nowhere(self.stream)


def _handlers(log_file: Path | None, level: int, log_format: str) -> list[logging.Handler]:
    logger = logging.getLogger("tmtool")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    handlers: list[logging.Handler] = [_StderrHandler(level)]
    verbose = level == logging.DEBUG
    if log_format == "json":
        handlers[0].setFormatter(_JsonFormatter(tracebacks=verbose))
    elif not verbose:
        handlers[0].setFormatter(_TextFormatter())
    if log_file is not None:
        try:
            handlers.append(_FileHandler(log_file, encoding="utf-8", errors="backslashreplace"))
        except OSError as error:
            typer.echo(f"Error: --log-file {log_file}: cannot be written ({error.strerror}).", err=True)
            raise typer.Exit(errors.EXIT_NOTHING_TO_DO) from None
        text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
        handlers[-1].setFormatter(_JsonFormatter(tracebacks=True) if log_format == "json" else text)
        handlers[-1].setLevel(min(level, logging.INFO))
    for handler in handlers:
        logger.addHandler(handler)
    return handlers


@functools.cache
def console() -> "Console":
    """Return the one rich console on standard error."""
    from rich.console import Console

    return Console(stderr=True)
