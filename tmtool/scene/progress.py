"""Progress of a run on standard error: a bar on a terminal, plain lines elsewhere, or nothing."""

import logging
import time
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_log = logging.getLogger("tmtool")
_LINE_EVERY_S = 30.0


class Reporter(Protocol):
    """Receives the progress of a scene, tile by tile."""

    def begin(self, name: str, tiles: int) -> None:
        """A scene of so many tiles starts."""

    def advance(self, tiles: int) -> None:
        """So many more tiles are done, empty ones included."""

    def phase(self, text: str) -> None:
        """What happens now that all tiles are done."""

    def end(self) -> None:
        """The scene is over, well or not."""


class SilentReporter:
    """Says nothing."""

    def begin(self, name: str, tiles: int) -> None:
        """Do nothing."""

    def advance(self, tiles: int) -> None:
        """Do nothing."""

    def phase(self, text: str) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""


class LineReporter:
    """Logs a line at the start and every half minute: for logs of cron jobs and schedulers."""

    def __init__(self) -> None:
        self._name, self._tiles, self._done, self._start, self._said = "", 0, 0, 0.0, 0.0

    def begin(self, name: str, tiles: int) -> None:
        """Say that the scene starts."""
        self._name, self._tiles, self._done = name, tiles, 0
        self._start = self._said = time.monotonic()
        _log.info("%s: %d tiles", name, tiles)

    def advance(self, tiles: int) -> None:
        """Log how far the scene is, at most every half minute."""
        self._done += tiles
        now = time.monotonic()
        if now - self._said >= _LINE_EVERY_S:
            self._said = now
            rate = self._done / (now - self._start)
            left = (self._tiles - self._done) / rate
            _log.info("%s: %d of %d tiles, %.2f tiles/s, %.0f s left", self._name, self._done, self._tiles, rate, left)

    def phase(self, text: str) -> None:
        """Say it at `-v`."""
        _log.debug("%s: %s", self._name, text)

    def end(self) -> None:
        """Do nothing."""


class RichReporter:
    """A bar with tiles, rate and time left; use as a context manager around the run."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("tiles {task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("", visible=False, rate="")

    def __enter__(self) -> "RichReporter":
        """Start drawing."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing and give the cursor back."""
        self._progress.stop()

    def begin(self, name: str, tiles: int) -> None:
        """Show a fresh bar."""
        self._progress.reset(self._task, description=name, total=tiles, visible=True, rate="")

    def advance(self, tiles: int) -> None:
        """Move the bar."""
        self._progress.advance(self._task, tiles)
        speed = self._progress.tasks[0].speed
        self._progress.update(self._task, rate=f"{speed:.2f}/s" if speed else "")

    def phase(self, text: str) -> None:
        """Show what is done after the last tile in place of the rate."""
        self._progress.update(self._task, rate=f"({text})")

    def end(self) -> None:
        """Hide the bar."""
        self._progress.update(self._task, visible=False)
