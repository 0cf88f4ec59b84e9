"""Runs a command up to its first tile, and prints where the seconds since the process began went.

    python -m tests.bench._first_tile START generate SCENE ...

START is `time.monotonic()` when the process was started. Imports are what the outermost import statements take, on
whichever thread and at whatever time.
"""

import builtins
import importlib
import json
import os
import sys
import threading
import time
from typing import Any


class Imports:
    """Adds up the seconds of imports from now on."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock, self._local = threading.Lock(), threading.local()
        builtins.__import__ = self._timed(builtins.__import__)
        importlib.import_module = self._timed(importlib.import_module)

    def _timed(self, call: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            depth = getattr(self._local, "depth", 0)
            if depth:
                return call(*args, **kwargs)
            self._local.depth, start = 1, time.monotonic()
            try:
                return call(*args, **kwargs)
            finally:
                self._local.depth = 0
                with self._lock:
                    self.seconds += time.monotonic() - start

        return timed


def main(start: float, command: list[str]) -> None:
    """Run the command up to its first tile."""
    imports = Imports()
    from tmtool import cli, models

    parts: dict[str, float] = {}
    real = models.build

    def apart(name: str, call: Any) -> Any:
        """Call, and note what that took without the imports in it."""
        began, imported = time.monotonic(), imports.seconds
        result = call()
        parts[name] = time.monotonic() - began - (imports.seconds - imported)
        return result

    def build(spec: Any) -> Any:
        importlib.import_module(models.find(spec.name).module)
        model = apart("building and loading", lambda: real(spec))

        def call(batch: Any) -> Any:
            apart("first forward", lambda: model(batch))
            whole = time.monotonic() - start
            rest = whole - imports.seconds - sum(parts.values())
            found = {"all": whole, "imports": imports.seconds, **parts, "the rest (Python, looking, reading)": rest}
            print(json.dumps(found), flush=True)
            os._exit(0)

        return call

    models.build = build
    sys.argv[1:] = command
    cli.app()


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
