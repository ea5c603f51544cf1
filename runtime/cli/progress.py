"""Progress of long work on stderr: bars, or one line that turns; in a log file, where bars cannot move, a line now and then.

`rich.progress` is imported by the bars: commands that have none start the sooner.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

_LINE_EVERY = 15.0  # seconds between two lines where bars cannot move


class _LogLines:
    """What bars tell, as lines: one in `_LINE_EVERY` seconds at most, and only where stderr is no terminal."""

    def __init__(self, console: Console, silent: bool):
        self._console = console
        self._silent = silent or (console.is_terminal and not console.is_dumb_terminal)
        self._told = time.monotonic()

    def say(self, text: str) -> None:
        if not self._silent and time.monotonic() - self._told >= _LINE_EVERY:
            self._told = time.monotonic()
            self._console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


@contextmanager
def waiting(what: str, silent: bool) -> Iterator[None]:
    if silent:
        yield
    else:
        with Console(stderr=True).status(what):
            yield


@contextmanager
def stage_progress(silent: bool) -> Iterator[Any]:
    """A bar per stage, on stderr; yields the callback that moves it: stage, what is being done, share done (0 to 1).

    Where stderr is no terminal the bars are drawn once, at the end; until then a line says now and then what is being done.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.fields[stage]:<12}"),
        BarColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    lines = _LogLines(console, silent)
    with Progress(*columns, console=console, disable=silent) as progress:
        tasks: dict[str, Any] = {}

        def report(stage: str, what: str, fraction: float) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(what, total=1.0, stage=stage)
            progress.update(tasks[stage], description=what, completed=fraction)
            lines.say(f"{stage}: {what} ({fraction:.0%})")

        yield report


@contextmanager
def one_bar(hidden: bool) -> Iterator[Callable[[str, int, int], None]]:
    """One bar, told what is being done, number and of how many."""
    from rich.progress import Progress

    console = Console(stderr=True)
    lines = _LogLines(console, hidden)
    with Progress(console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("")

        def report(label: str, at: int, total: int) -> None:
            bar.update(task, description=label, completed=at, total=total)
            lines.say(f"{label}: {at:,} of {total:,}")

        yield report


@contextmanager
def batch_bar(silent: bool) -> Iterator[Callable[[int, int, Any], None]]:
    """A bar on stderr with what is left to do and how long it will take, told how many of how many rows are answered."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    console = Console(stderr=True)
    lines = _LogLines(console, silent)
    with Progress(*columns, console=console, disable=silent or not console.is_terminal) as bar:
        task, first = bar.add_task("loading", total=None), -1

        def report(at: int, total: int, tally: Any) -> None:
            nonlocal first
            if first < 0:  # the answers of an earlier run took no time of this one
                first = at
                bar.reset(task, total=total, completed=at)
            told = f"{tally.completion_tokens:,} tokens" + (f", {tally.errors} errors" if tally.errors else "")
            bar.update(task, completed=at, description=told)
            lines.say(f"{at:,} of {total:,} rows, {told}")

        yield report
