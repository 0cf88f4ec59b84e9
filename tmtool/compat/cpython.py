"""CPython: exceptions sent into threads."""

import ctypes
import logging
import threading

_log = logging.getLogger("tmtool")


def interrupt(thread: threading.Thread, error: type[BaseException]) -> bool:
    """Have `error` raised in another thread as soon as it runs Python again; return whether it will be.

    - Why: a batch that is no longer needed may take minutes, and a thread cannot be asked to stop in a call.
    - Uses: `PyThreadState_SetAsyncExc` of CPython's C interface, through ctypes.
    - Without it, as on other Pythons: nothing is raised, and joining the thread takes until its call ends.
    """
    send = getattr(getattr(ctypes, "pythonapi", None), "PyThreadState_SetAsyncExc", None)
    if send is None:
        _log.debug("%s: waiting until its call ends; this Python cannot interrupt it", thread.name)
        return False
    return thread.ident is not None and bool(send(ctypes.c_ulong(thread.ident), ctypes.py_object(error)))
