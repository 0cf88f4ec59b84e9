"""Batches on several devices at once, or on one while earlier results are stitched: a lane is a thread with a model."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Generic, TypeVar

from tmtool.compat.cpython import interrupt

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 2
"""Items in flight for each lane: one that it works on, and one that it finds when it is done."""


class _Dropped(BaseException):
    """Raised in a lane whose result is no longer needed."""


class Lanes(Generic[T, R]):
    """Puts items through `calls`, each on a thread of its own; the next free one takes the next item.

    Results come in the order of the items. Use as a context manager: leaving it early interrupts the calls in progress as
    soon as they run Python code again, rather than waiting for them to finish.
    """

    def __init__(self, calls: Sequence[Callable[[T], R]]) -> None:
        self._todo: SimpleQueue[tuple[T, Future[R]] | None] = SimpleQueue()
        self._flying: deque[Future[R]] = deque()
        self._threads = [
            threading.Thread(target=self._work, args=(call,), name=f"lane-{i}", daemon=True)
            for i, call in enumerate(calls)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "Lanes[T, R]":
        """Return itself; the threads wait for items."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the threads; drop what is unfinished."""
        for future in self._flying:
            future.cancel()  # what waits; a lane that works on one is interrupted
        unfinished = any(not future.done() for future in self._flying)
        for thread in self._threads:
            self._todo.put(None)
            if unfinished:
                interrupt(thread, _Dropped)
        for thread in self._threads:
            thread.join()

    def __len__(self) -> int:
        """Count the items whose results were not taken."""
        return len(self._flying)

    @property
    def full(self) -> bool:
        """Whether a result should be taken before the next item is put in."""
        return len(self._flying) >= _AHEAD * len(self._threads)

    def put(self, item: T) -> None:
        """Hand in an item."""
        future: Future[R] = Future()
        self._flying.append(future)
        self._todo.put((item, future))

    def take(self) -> R:
        """Wait for the oldest item's result, and return it; raises what its call raised."""
        result = self._flying[0].result()
        self._flying.popleft()
        return result

    def _work(self, call: Callable[[T], R]) -> None:
        try:
            while (handed := self._todo.get()) is not None:
                item, future = handed
                if not future.set_running_or_notify_cancel():
                    continue
                try:
                    future.set_result(call(item))
                except _Dropped:
                    raise
                except BaseException as error:  # noqa: BLE001  (nobody else would hear of it)
                    future.set_exception(error)
                del handed, item, future  # a lane that waits holds no pixels
        except _Dropped:
            return
