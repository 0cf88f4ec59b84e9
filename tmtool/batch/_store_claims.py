"""Claims in an object store: as those in a folder (`tmtool.batch._claims`), by writes on a condition.

A claim is made by a write that fails where there is an object, kept fresh and taken over by writes that fail where the object has changed.
So of many takers one succeeds, and an owner that fell silent learns it from its next heartbeat. Ages are told by the store's clock.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from tmtool.batch._claims import TRIES, Claim, ClaimLost, Owner, forget, keep_fresh, parse
from tmtool.errors import StoreError
from tmtool.files.store import Changed, Seen, Store

_log = logging.getLogger("tmtool")


class StoreClaim(Claim):
    """A claim of this process in a store."""

    def __init__(self, store: Store, key: str, patience_s: float) -> None:
        super().__init__(Path(key), patience_s)
        self._store, self._key = store, key
        self._version: Mapping[str, str] = {}  # of no object
        self._beats, self._one = 0, threading.Lock()  # the heart and who asks may beat at once

    def take(self, over: Mapping[str, str] | None = None) -> bool:
        """Write the claim over this version of one, which is its own if not said, or {} for none. Returns whether it is this one's."""
        with self._one:
            over = self._version if over is None else over
            self._beats += 1  # so that no two versions are alike
            content = json.dumps(json.loads(self.record) | {"beat": self._beats}).encode()
            try:
                self._version = self._store.write(self._key, content, over)
            except Changed:
                found = self._store.read(self._key)
                if found is None or found[1] != content:  # else a request that was repeated met what it had done before
                    return False
                self._version = found[0].version
            return True

    def beat(self) -> bool:
        """Write the object again, for its new time, and return whether it is still this claim's."""
        try:
            self.lost = self.lost or not self.take()
        except StoreError as error:  # the next one may work, and if none does others take over
            _log.debug("%s: heartbeat failed (%s)", self._store.name(self._key), error)
        return not self.lost

    def check(self) -> None:
        """Raise `ClaimLost` if somebody took the claim over."""
        if not self.beat():
            self._tell(_look(self._store, self._key))

    def _tell(self, now: tuple[Seen, Owner | None] | None) -> NoReturn:
        by = f"taken over by {now[1] or 'an unknown owner'}" if now else "removed"
        name = self._store.name(self._key)
        raise ClaimLost(f"{name}: this claim was {by}; this run's work on the scene is discarded.")

    def release(self) -> None:
        """Remove the object if it is still this claim's. May be called any number of times."""
        if self._pid != os.getpid():
            return
        forget(self)
        if not self.lost and self.beat():  # which shows life to a taker, so it stays this one's until it is removed
            with suppress(StoreError):  # the scene itself is done, and others take over what stays
                self._store.delete(self._key)
        self.lost = True


def claim_in(store: Store, key: str, *, patience_s: float = 120.0) -> StoreClaim | None:
    """Claim by an object, or return None where somebody else is alive and has it. Raises `StoreError`."""
    mine = StoreClaim(store, key, patience_s)
    for _ in range(TRIES):
        if mine.take({}):
            keep_fresh(mine)
            return mine
        found = _look(store, key)
        if found is None:
            time.sleep(0.01)  # released this moment
            continue
        seen, owner = found
        if not _gone(store, seen, owner, patience_s) or not mine.take(seen.version):
            return None
        keep_fresh(mine)
        return mine
    raise StoreError(f"{store.name(key)}: can neither be created nor read; remove it.")


def owner_in(store: Store, key: str) -> str | None:
    """Return who has claimed, or None where nobody did."""
    found = _look(store, key)
    return str(found[1] or "an unknown owner") if found else None


def _look(store: Store, key: str) -> tuple[Seen, Owner | None] | None:
    found = store.read(key)
    return (found[0], parse(found[1])) if found else None


def _gone(store: Store, seen: Seen, owner: Owner | None, patience_s: float) -> bool:
    """Whether the owner is dead, or silent for longer than its patience and the taker's."""
    if owner and owner.dead:
        return True
    return store.now() - seen.written.timestamp() > max(patience_s, owner.patience_s if owner else 0)
