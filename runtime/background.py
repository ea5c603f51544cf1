"""Threads for work that nobody need wait for: neither a request that fails nor the end of the process.

A thread inside a library that loads a model cannot be stopped. Joined at the interpreter's end, it keeps the process for
as long as the model takes; left alone, it works on while C++ takes down the objects under it, and the process aborts.
"""

import atexit
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress


class _Background(threading.Thread):
    def __init__(self, work: Callable[[], None]):
        super().__init__(target=work, name="rediprune-background", daemon=True)


def start(work: Callable[[], None]) -> None:
    """Run `work` in a thread of its own, which does not keep the process from ending."""
    _Background(work).start()


def leave_at_once(code: int) -> None:
    """End the process with this exit code if background work goes on; return if there is none."""
    if _at_work():
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _at_work() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if isinstance(thread, _Background)]


@atexit.register
def _at_exit() -> None:
    """At the interpreter's end, with background work: end the process with its exit code, and nothing else.

    What would go wrong otherwise: Python ends a thread that comes back to it by unwinding its stack, which C++ answers with
    abort() (from 3.14 on it lets it hang); and the thread works on objects whose destructors run. Elsewhere than on
    glibc the end waits for the thread.
    """
    if not _at_work():
        return
    import ctypes

    try:
        library = ctypes.CDLL(None)
        ctypes.CDLL("libstdc++.so.6")._ZSt13set_terminatePFvvE(library.pause)  # std::set_terminate: wait, do not abort
        library.on_exit(library._exit, None)  # gets the exit code, before all handlers registered earlier
    except (AttributeError, TypeError, OSError):
        for thread in _at_work():
            thread.join()
