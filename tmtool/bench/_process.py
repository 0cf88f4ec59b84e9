"""Functions in fresh processes: each has its own imports, settings and memory, which the next one does not find."""

import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from types import TracebackType

T = TypeVar("T")

_PATIENCE_S = 20.0
"""How long a process that has done its work may take to end."""


class Ended(RuntimeError):
    """A process that ended without a result; `status` is its exit status, below 0 the signal that ended it."""

    def __init__(self, name: str, status: int | None) -> None:
        super().__init__(f"{name} ended with status {status} and no result")
        self.status = status


class Side:
    """Something made in a fresh process by `make(*args)`, and run there whenever it is called.

    `make` is a module's function that returns what is to be run. What it prints goes to standard error.
    """

    def __init__(self, make: Callable[..., Callable[[], Any]], *args: Any) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        called = args[0] if make is _bound else make
        self._name = f"{called.__module__}.{called.__name__}"
        self._process = context.Process(target=_serve, args=(theirs, make, args))
        self._process.start()
        theirs.close()
        try:
            self._receive()
        except BaseException:
            self.close(at_once=True)
            raise

    def __call__(self) -> Any:
        """Run once, and return what that gave. Raises `Ended`."""
        self._pipe.send(True)
        return self._receive()

    def __enter__(self) -> "Side":
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        """End the process, at once after an error."""
        self.close(at_once=kind is not None)

    def close(self, at_once: bool = False) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(0 if at_once else _PATIENCE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join()
            raise Ended(self._name, self._process.exitcode) from None


def _serve(pipe: "Connection", make: Callable[..., Callable[[], Any]], args: Sequence[Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever is waiting hears it, and ends this process
    os.dup2(sys.stderr.fileno(), 1)
    warnings.filterwarnings("ignore")  # the libraries' own, in the middle of a table
    subject = make(*args)
    pipe.send(None)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        pipe.send(subject())


def in_own_process(function: Callable[..., T], *args: Any) -> T:
    """Call a module's function in a fresh process, which has imported nothing but that module. Raises `Ended`."""
    with Side(_bound, function, args) as side:
        found: T = side()
    return found


def _bound(function: Callable[..., T], args: Sequence[Any]) -> Callable[[], T]:
    return lambda: function(*args)
