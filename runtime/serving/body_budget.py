"""Bytes of bodies that are held at once: without a budget, as many clients as like could fill the memory."""

from collections.abc import Iterator
from contextlib import contextmanager

from .api_error import ApiError


class BodyBudget:
    """What all requests hold while they are read and encoded.

    Args:
        limit: bytes at most.
    """

    def __init__(self, limit: int):
        self._limit, self._held = limit, 0

    @property
    def held(self) -> int:
        """Bytes held now."""
        return self._held

    @contextmanager
    def share(self) -> Iterator["BodyShare"]:
        """What one request holds, given back at the end of the block."""
        share = BodyShare(self)
        try:
            yield share
        finally:
            self._held -= share.held

    def take(self, count: int) -> None:
        """Hold so many bytes more.

        Raises:
            ApiError: 429, others hold too much.
        """
        if self._held + count > self._limit:
            raise ApiError(429, "too many large requests at once; try again", code="busy", headers={"Retry-After": "1"})
        self._held += count


class BodyShare:
    """One request's part of a `BodyBudget`."""

    def __init__(self, budget: BodyBudget):
        self._budget, self.held = budget, 0

    def take(self, count: int) -> None:
        """Hold so many bytes more; raises as `BodyBudget.take` does."""
        self._budget.take(count)
        self.held += count
