"""Threads for work that nobody need wait for: neither a request that fails nor the end of the process.

A thread inside a library that loads a model cannot be stopped. Joined at the interpreter's end, it keeps the process for
as long as the model takes; left alone, it works on while C++ takes down the objects under it, and the process aborts.
"""

import atexit
import ctypes
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
    """See to it that the process ends before C++'s objects are destroyed under a thread."""
    if not _at_work():
        return
    try:
        library = ctypes.CDLL(None)
        # Called with the exit code before all handlers registered earlier, destructors of C++ objects among them.
        library.on_exit(library._exit, None)
    except (AttributeError, TypeError, OSError):  # glibc alone has it
        for thread in _at_work():
            thread.join()
