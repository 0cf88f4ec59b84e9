"""The errors that tmtool raises on purpose, and the exit status that each one means.

Every message says which file it is about, what was expected, what was found and what to do. `tmtool.cli` catches
`TmtoolError` once; anything else that escapes is a bug and keeps its traceback.
"""

from tmtool.names import shown

EXIT_SOME_FAILED = 1
EXIT_NOTHING_TO_DO = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class TmtoolError(Exception):
    """Base of all errors that are the user's business; `exit_code` is what the command ends with.

    Secrets in the names that a message quotes are taken out of it.
    """

    exit_code = EXIT_SOME_FAILED

    def __init__(self, *args: object) -> None:
        super().__init__(*(shown(arg) if isinstance(arg, str) else arg for arg in args))


class UsageError(TmtoolError):
    """An option, or a combination of options, that cannot work. Found before anything is opened."""

    exit_code = EXIT_NOTHING_TO_DO


class InputError(TmtoolError):
    """A raster that cannot be used as asked. Found before a model is loaded."""

    exit_code = EXIT_NOTHING_TO_DO


class OutputError(TmtoolError):
    """A product that cannot be written where it was asked for. Found before a model is loaded."""

    exit_code = EXIT_NOTHING_TO_DO


class WeightsError(TmtoolError):
    """Weights that are absent, unreadable or do not cover the model in use."""

    exit_code = EXIT_NOTHING_TO_DO


class DeviceError(TmtoolError):
    """A device or a precision that this machine does not have."""

    exit_code = EXIT_NOTHING_TO_DO


class ClusterError(TmtoolError):
    """A cluster that was lost while it worked. Its unfinished scenes are kept for a later run to resume."""


class OutOfMemory(TmtoolError):
    """Memory, of the device or of the host, that does not hold even one tile a batch."""


class ReadError(TmtoolError):
    """A raster that turned out to be damaged while it was read; what was begun is discarded."""


class DiskError(TmtoolError):
    """A file that could not be written, for want of space or because its disk failed."""


class StoreError(TmtoolError):
    """An object store that cannot be reached, or refuses."""


class ProductError(TmtoolError):
    """A product that is wrong (non-finite, constant, not a valid COG) or could not be written; it gets no final name."""
