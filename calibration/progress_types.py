"""How long work tells what it is doing."""

from collections.abc import Callable

StageProgress = Callable[[str, str, float], None]  # stage, what is being done to it, fraction done
CountProgress = Callable[[str, int, int], None]  # what is being done, number of the item, number of items


def ignore_stage(stage: str, what: str, fraction: float) -> None:
    """A `StageProgress` that nobody watches."""


def ignore_count(what: str, number: int, total: int) -> None:
    """A `CountProgress` that nobody watches."""
