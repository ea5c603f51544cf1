"""Continuous batching: prompts are prefilled into a slot of the KV cache, and all slots in use are decoded in one call.

One thread owns the language stage. Requests wait in a bounded queue for a slot; a long prompt is prefilled in chunks, so that
answers under way wait for no more than one chunk; a request that is cancelled frees its slot before the next call.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..backends.batching import BatchDecoding
from ..errors import RedipruneError
from ..positions import Positions, span_of
from .kv_slots import ALONE, KVSlots, Slot

# Tokens of a prompt that are computed at once where no answer waits: a second call costs as much as a decoded token.
_UNHURRIED = 1024


class TokenSink(Protocol):
    """What chooses a request's tokens and shows them. Called by the scheduler's thread; must not block."""

    def token(self, logits: np.ndarray) -> int | None:
        """The next token to decode, from logits [V]; None where the answer is complete."""
        ...

    def failed(self, error: Exception) -> None:
        """The request ended by a fault."""
        ...


class QueueFullError(Exception):
    """As many requests wait as may."""


class StoppedError(Exception):
    """The scheduler takes no further requests."""


@dataclass(eq=False)
class Job:
    """A request.

    Attributes:
        embeds: [S, D], the prompt.
        max_new_tokens: the answer has at most so many tokens.
        sink: chooses its tokens.
        positions: of the prompt's tokens; None: their places in the cache.
        deepstack: [T, S, D], added behind the decoder's first layers, where the family has it.
        keep_cache: whether its cache may serve a prompt that begins alike.
        reused: positions of the prompt whose cache was there.
        queued, started, prefilled: when it came, got a slot and had its prompt computed (`time.perf_counter`).
    """

    embeds: np.ndarray
    max_new_tokens: int
    sink: TokenSink
    positions: Positions | None = None
    deepstack: np.ndarray | None = None
    keep_cache: bool = True
    reused: int = 0
    queued: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    prefilled: float = 0.0
    _slot: Slot | None = None
    _next: int = 0  # the token to decode next
    _cancelled: bool = False

    @property
    def length(self) -> int:
        """Positions of the cache that it may need; the last token's are never written."""
        return len(self.embeds) + self.max_new_tokens - 1

    def rows(self, start: int, stop: int) -> np.ndarray:
        """All that goes into the decoder for prompt tokens, [n, D] or [n, (1 + T) · D]: what a cache is known by."""
        embeds = self.embeds[start:stop]
        return embeds if self.deepstack is None else np.concatenate([embeds, *self.deepstack[:, start:stop]], axis=1)

    def row(self, embed: np.ndarray) -> np.ndarray:
        """The same for a generated token's embedding [D]: [1, …]."""
        taps = 0 if self.deepstack is None else len(self.deepstack)
        return np.concatenate([embed, np.zeros(taps * len(embed), embed.dtype)])[None]

    def cancel(self) -> None:
        """Generate no further token. The slot is free before the next call of the language stage."""
        self._cancelled = True


class Scheduler:
    """Runs the language stage for many requests. `submit` and `Job.cancel` may be called from any thread.

    Args:
        decoding: the KV cache and what computes it.
        embed: embeddings [n, D] of n token ids.
        max_slots: requests decoded together at most.
        max_positions: positions of the KV cache at most.
        max_waiting: requests in the queue at most.
        prefill_chunk: tokens that are prefilled before the others get their next token; where there are no others, more.
    """

    def __init__(
        self,
        decoding: BatchDecoding,
        embed: Callable[[Sequence[int]], np.ndarray],
        *,
        max_slots: int,
        max_positions: int,
        max_waiting: int,
        prefill_chunk: int,
    ):
        self._embed, self._decoding = embed, decoding
        self._slots = KVSlots(decoding, max_slots, max_positions)
        self._max_waiting, self._chunk = max_waiting, prefill_chunk
        self._waiting: deque[Job] = deque()
        self._decoded: list[Job] = []  # in the order of their slots
        self._prefilling: Job | None = None  # one at a time, in the slot behind theirs
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="rediprune-scheduler", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that have a slot."""
        return self._slots.busy

    @property
    def alive(self) -> bool:
        """Whether its thread still runs."""
        return self._thread.is_alive()

    @property
    def max_slots(self) -> int:
        """Requests that are decoded together at most."""
        return self._slots.max_slots

    @property
    def cache_usage(self) -> float:
        """Share of the KV cache's budget in use, 0 to 1."""
        return self._slots.positions_in_use / self._slots.max_positions

    def check(self, tokens: int, max_new_tokens: int) -> None:
        """Refuse a request that could never get a slot.

        Raises:
            RedipruneError: prompt and answer take more positions than the whole cache has.
        """
        if not self._slots.fits(tokens + max_new_tokens - 1):
            raise RedipruneError(
                f"the prompt takes {tokens} positions and the answer up to {max_new_tokens}, but this server's KV cache has "
                f"{self._slots.max_positions}; lower keep, frames or max_tokens, or start it with more --cache-memory"
            )

    def submit(self, job: Job) -> None:
        """Queue a request.

        Raises:
            QueueFullError: the queue is full.
            StoppedError: the scheduler was stopped.
        """
        with self._changed:
            if self._stopping:
                raise StoppedError
            if len(self._waiting) >= self._max_waiting:
                raise QueueFullError
            self._waiting.append(job)
            self._changed.notify()

    def stop(self) -> None:
        """Finish what runs and waits, take nothing more, and return when all is done."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _loop(self) -> None:
        while True:
            with self._changed:
                idle = not (self._waiting or self._slots.busy)
                if idle and self._stopping:
                    return
                if idle:
                    self._changed.wait()
                    continue
            try:
                self._drop_cancelled()
                self._admit()
                self._prefill()
                self._decode()
            except Exception as error:  # no memory for the cache: what it held is lost, those who come next are not
                self._start_over(error)

    def _start_over(self, error: Exception) -> None:
        """Fail whoever has a slot, and begin with an empty cache."""
        failing = [*self._decoded, *filter(None, [self._prefilling])]
        self._decoded, self._prefilling = [], None
        self._slots.clear()
        for job in failing:
            job._slot = None
            _tell(job, error)

    def _drop_cancelled(self) -> None:
        with self._changed:
            self._waiting = deque(job for job in self._waiting if not job._cancelled)
        for job in list(self._decoded):
            if job._cancelled:
                self._release(job)
        if self._prefilling is not None and self._prefilling._cancelled:
            self._release(self._prefilling)

    def _admit(self) -> None:
        """Give a slot to the request that waited longest. While it finds no room the others wait too: nobody starves."""
        if self._prefilling is not None or not self._waiting:
            return
        job = self._waiting[0]
        try:
            rows, positions = job.rows(0, len(job.embeds)), span_of(job.positions, 0, len(job.embeds))
            job._slot = self._slots.acquire(job.length, rows, positions)
        except Exception as error:
            with self._changed:
                self._waiting.popleft()
            _tell(job, error)
            raise
        if job._slot is not None:
            job.reused, job.started = job._slot.used, time.perf_counter()
            self._prefilling = job
            with self._changed:
                self._waiting.popleft()

    def _prefill(self) -> None:
        """Compute one chunk of a prompt."""
        job = self._prefilling
        if job is None or job._slot is None:
            return
        slot = job._slot
        size = self._chunk if self._decoded else max(self._chunk, _UNHURRIED)
        if len(job.embeds) - slot.used - size == ALONE:
            size += ALONE
        chunk = job.embeds[slot.used : slot.used + size]  # [tokens, D]
        places = span_of(job.positions, slot.used, len(chunk))  # [A, tokens]
        given = None if job.positions is None else places
        end = slot.used + len(chunk)
        deepstack = None if job.deepstack is None else job.deepstack[:, slot.used : end]
        try:
            logits = self._decoding.prefill(self._slots.index(slot), chunk[None], slot.used, given, deepstack)
        except Exception as error:
            self._fail(job, error)
            return
        slot.wrote(job.rows(slot.used, end), places)
        if slot.used == len(job.embeds):
            job.prefilled = time.perf_counter()
            self._prefilling = None
            self._decoded.append(job)
            self._take(job, logits)

    def _decode(self) -> None:
        """Compute one more token of every answer under way."""
        jobs = list(self._decoded)
        if not jobs:
            return
        slots = [job._slot for job in jobs if job._slot is not None]
        places = [span_of(job.positions, slot.used, 1) for job, slot in zip(jobs, slots, strict=True)]  # each [A, 1]
        given = np.stack(places, axis=1) if any(job.positions for job in jobs) else None  # [A, jobs, 1]
        try:
            embeds = self._embed([job._next for job in jobs])  # [jobs, D]
            logits = self._decoding.step(embeds[:, None], [slot.used for slot in slots], given)
        except Exception as error:
            for job in jobs:
                self._fail(job, error)
            return
        for job, slot, row, place in zip(jobs, slots, embeds, places, strict=True):
            slot.wrote(job.row(row), place)
        for job, row in zip(jobs, logits, strict=True):
            self._take(job, row)

    def _take(self, job: Job, logits: np.ndarray) -> None:
        """Have a job choose its next token; it leaves when it has its answer."""
        try:
            token = job.sink.token(logits)
        except Exception as error:
            self._fail(job, error)
            return
        if token is None or job._cancelled:
            self._release(job, keep=token is None and job.keep_cache)
        else:
            job._next = token

    def _fail(self, job: Job, error: Exception) -> None:
        self._release(job)
        _tell(job, error)

    def _release(self, job: Job, keep: bool = False) -> None:
        assert job._slot is not None
        self._slots.release(job._slot, keep, len(self._decoded))
        job._slot = None
        if job is self._prefilling:
            self._prefilling = None
        else:
            # The last of those decoded took the free slot.
            at, last = self._decoded.index(job), self._decoded.pop()
            if last is not job:
                self._decoded[at] = last


def _tell(job: Job, error: Exception) -> None:
    """Hand a fault to a job's sink. Should there be nobody to hear it, the others' answers go on."""
    with suppress(Exception):
        job.sink.failed(error)
