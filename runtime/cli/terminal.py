"""Standard output and error as they come: in any encoding, closed, full, or read by nobody."""

import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.markup import escape


@contextmanager
def ready_streams() -> Iterator[None]:
    """Let both streams take any character, stand in for closed ones, and warn in one line.

    Characters that an encoding lacks are replaced on standard output and escaped on standard error. Writing to a closed
    standard output fails, as writing to a full one does; what is written to a closed standard error is lost.
    """
    if sys.stdout is None:  # opening anything takes its number, so that no other file gets it
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (open until the process ends)
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):  # tests put other streams there
            stream.reconfigure(errors=errors)
    before = warnings.formatwarning
    warnings.formatwarning = _format_warning
    try:
        yield
    finally:
        warnings.formatwarning = before


def say(kind: str, message: str, colour: str) -> None:
    """Print a line on standard error: `error: …`."""
    with suppress(OSError):
        Console(stderr=True, soft_wrap=True).print(f"[{colour}]{kind}:[/{colour}] {escape(message)}", highlight=False)


def flush_output() -> OSError | None:
    """Write what is held back of standard output; what keeps it from being written, in which case it is given up."""
    try:
        sys.stdout.flush()
        return None
    except OSError as error:
        with suppress(OSError, ValueError):  # so that Python does not try, and fail, when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error


def _format_warning(message: Warning | str, *where: Any, **line: Any) -> str:
    return f"warning: {message}\n"
