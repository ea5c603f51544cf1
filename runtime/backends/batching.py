"""Decoding of many requests on one language stage: together where the backend can, one at a time where it cannot."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from .arrays import Array
from .session import Decoding, LanguageSession


class BatchDecoding(Protocol):
    """A KV cache with a slot for each request. One thread uses it; logits are good until its next call.

    Attributes:
        slots: requests at most.
        length: positions of each slot.
        rewinds: whether a slot may be written again from any position on, what stands before it being kept.
    """

    slots: int
    rewinds: bool
    length: int

    def prefill(
        self,
        slot: int,
        embeds: Array,
        start: int,
        positions: np.ndarray | None = None,
        deepstack: np.ndarray | None = None,
    ) -> np.ndarray:
        """Append embeds [1, S, D] to a slot from place `start` on; logits [V] float32 of the last.

        `positions` [A, S] and `deepstack` [T, S, D] as `Decoding.step` takes them.
        """
        ...

    def step(self, embeds: Array, starts: Sequence[int], positions: np.ndarray | None = None) -> np.ndarray:
        """Append one token each to the first slots: embeds [B, 1, D] at places `starts` [B]; logits [B, V] float32.

        `positions` [A, B, 1] as in `prefill`.
        """
        ...

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` positions of a slot over those of another."""
        ...

    def swap(self, one: int, other: int, tokens: int) -> None:
        """Exchange the first `tokens` positions of two slots."""
        ...

    def resize(self, slots: int, length: int, used: int) -> None:
        """Change the number of slots and their length; the first `used` positions of those that stay are kept."""
        ...


class SingleDecoding:
    """The same interface over a session that decodes one request at a time."""

    slots = 1
    rewinds = False

    def __init__(self, language: LanguageSession):
        self._language = language
        self._decoding: Decoding | None = None
        self.length = 0

    def prefill(
        self,
        slot: int,
        embeds: Array,
        start: int,
        positions: np.ndarray | None = None,
        deepstack: np.ndarray | None = None,
    ) -> np.ndarray:
        if start == 0 or self._decoding is None:
            self._decoding = self._language.start(self.length)
        return self._decoding.step(embeds, positions, deepstack)

    def step(self, embeds: Array, starts: Sequence[int], positions: np.ndarray | None = None) -> np.ndarray:
        assert self._decoding is not None and len(starts) == 1
        return self._decoding.step(embeds, None if positions is None else positions[:, 0])[None]

    def move(self, source: int, target: int, tokens: int) -> None:
        raise AssertionError("there is one slot only")

    def swap(self, one: int, other: int, tokens: int) -> None:
        raise AssertionError("there is one slot only")

    def resize(self, slots: int, length: int, used: int) -> None:
        self.length, self._decoding = length, None


def open_batch(language: LanguageSession) -> BatchDecoding:
    """The batched form of a language session; `slots` is 0 until the first `resize` where it can batch, else 1."""
    batch = getattr(language, "start_batch", None)
    return SingleDecoding(language) if batch is None else batch()
