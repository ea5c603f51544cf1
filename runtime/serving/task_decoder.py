"""What decoders somewhere else have in common: each answer is a task of the event loop."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from .scheduler import QueueFullError


@dataclass(eq=False)
class TaskJob:
    """An `AnswerJob` of a `TaskDecoder`."""

    prompt_tokens: int
    reused: int = 0
    queued: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    prefilled: float = 0.0
    times: list[float] = field(default_factory=list)
    task: "asyncio.Task[None] | None" = None

    def cancel(self) -> None:
        """End it; what decodes sees the connection close. Called by the event loop's thread."""
        if self.task is not None and not self.task.done():
            self.task.cancel()


class TaskDecoder:
    """The part of an `AnswerDecoder` that counts its answers under way.

    Args:
        max_waiting: of them at most.
    """

    batches = True
    cache_usage = 0.0

    def __init__(self, max_waiting: int):
        self.max_slots = max_waiting
        self._jobs: set[TaskJob] = set()

    @property
    def waiting(self) -> int:
        return sum(not job.times for job in self._jobs)

    @property
    def running(self) -> int:
        return sum(bool(job.times) for job in self._jobs)

    def begin(self, prompt_tokens: int, answer: Callable[[TaskJob], Coroutine[Any, Any, None]]) -> TaskJob:
        """Answer in a task of the running event loop.

        Args:
            prompt_tokens: positions of the prompt.
            answer: asks for the answer, and hands on what comes.

        Raises:
            QueueFullError: as many are under way as may be.
        """
        if len(self._jobs) >= self.max_slots:
            raise QueueFullError
        job = TaskJob(prompt_tokens)
        job.task = asyncio.get_running_loop().create_task(answer(job))
        self._jobs.add(job)
        job.task.add_done_callback(lambda _: self._jobs.discard(job))
        return job
