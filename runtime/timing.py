"""What a request's time is spent on: seconds per stage, and the work apart from the pauses of whoever reads along."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

# The parts that the time to the first token is made of, by their keys in `Answer.timings`.
TIMED_STAGES = ("preprocess", "vision", "select", "project", "embed", "prefill")


class StageClock:
    """Adds up the seconds that each stage of a request takes.

    Attributes:
        seconds: by stage.
        intervals: stage, begin and end (`time.perf_counter`) of every piece of work, in the order of their ends.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(TIMED_STAGES, 0.0)
        self.intervals: list[tuple[str, float, float]] = []

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        end = time.perf_counter()
        self.seconds[stage] += end - begin
        self.intervals.append((stage, begin, end))


class Stopwatch:
    """Seconds of work since it was made; it stands still from `pause` to `resume`."""

    def __init__(self) -> None:
        self._worked = 0.0
        self._since: float | None = time.perf_counter()

    @property
    def seconds(self) -> float:
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self._worked + running

    def pause(self) -> None:
        self._worked, self._since = self.seconds, None

    def resume(self) -> None:
        if self._since is None:
            self._since = time.perf_counter()
