"""The standard streams: secrets are removed from what is written, and a stream that fails ends the run in one line."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tmtool import errors
from tmtool.limits import address_limit
from tmtool.names import shown


class OutputLost(OSError):
    """Standard output cannot be written to, for another reason than that its reader has gone (`BrokenPipeError`)."""


class _Stream:
    """Standard output or error: takes secrets out of what is written, and is silent once it has failed.

    A failure of standard output is an error; one of standard error is not, as there is nowhere left to report it.
    """

    def __init__(self, stream: TextIO, vital: bool) -> None:
        self._stream, self._vital = stream, vital

    def write(self, text: str) -> int:
        self._trying(lambda: self._stream.write(shown(text)))
        return len(text)

    def flush(self) -> None:
        self._trying(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _trying(self, call: Callable[[], object]) -> None:
        try:
            call()
        except OSError as error:
            to_nowhere(self._stream)
            if self._vital and not isinstance(error, BrokenPipeError):
                raise OutputLost(error.errno, error.strerror) from None
            if self._vital:
                raise


def to_nowhere(stream: Any) -> None:
    """Redirect a stream to the null device: else the interpreter tries to flush it as it exits, and complains."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextmanager
def standard_streams() -> Iterator[None]:
    """Guard the standard streams; an error that no command handles ends the process with one line.

    A stream that the caller closed is as good as one that leads nowhere. Paths are written as the bytes that they are.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  (it is a standard stream)
    sys.stdout.reconfigure(encoding=sys.getfilesystemencoding(), errors="surrogateescape")  # type: ignore[union-attr]
    plain = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Stream(sys.stdout, vital=True), _Stream(sys.stderr, vital=False)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # now, while an error can be reported
    except BrokenPipeError:
        sys.exit(errors.EXIT_SOME_FAILED)
    except Exception as error:  # noqa: BLE001  (the last one there is)
        print(f"Error: {unforeseen(error)}", file=sys.stderr)
        sys.exit(errors.EXIT_SOME_FAILED)
    finally:
        sys.stdout, sys.stderr = plain


def unforeseen(error: Exception) -> str:
    """Return one line about an error that nothing else has turned into a message."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, OutputLost):
        return f"standard output cannot be written to ({error.strerror}). Finished products are complete and need not be made again."
    if isinstance(error, (MemoryError, ImportError)) and (limit := address_limit()):
        return f"no room in memory ({text}). ulimit -v allows {limit / 1e9:.1f} GB: allow more."
    if isinstance(error, MemoryError):
        return "out of memory. Use a smaller --model or --crop, or see what --max-memory allows."
    if isinstance(error, OSError) and error.strerror:
        return f"the operating system refused an operation ({text}). -v shows where."
    return f"internal error, {type(error).__name__}: {text}. Please report it, with what -v shows."
