"""A request's body: read up to a limit, within a budget that all requests share, and checked.

The limit itself is `ServeSettings.max_body_bytes`.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fastapi import Request
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from .api_error import ApiError, refuse
from .protocol import ChatRequest


class BodyBudget:
    """Bytes of bodies that are held at once: without it, as many clients as like could fill the memory.

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


async def read_body(request: Request, limit: int, share: BodyShare, deadline: float) -> ChatRequest:
    """The body of a chat request.

    Args:
        request: not read yet.
        limit: bytes at most.
        share: what it may hold beside others.
        deadline: by which it must be here, in the event loop's time.

    Raises:
        ApiError: 400, 408, 413, 415 or 429; 499, the client left (nobody reads it).
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":  # a web page of another origin can send other types without asking
        raise ApiError(415, "the body must be JSON: send Content-Type: application/json")
    too_large = ApiError(413, f"the body is larger than {limit >> 20} MiB", code="too_large")
    with suppress(ValueError):
        if int(request.headers.get("content-length", "0")) > limit:
            raise too_large
    data = bytearray()
    try:
        async with asyncio.timeout_at(deadline):
            async for piece in request.stream():
                share.take(len(piece))
                data += piece
                if len(data) > limit:
                    raise too_large
    except ClientDisconnect:
        raise ApiError(499, "the client left") from None
    except TimeoutError:
        raise ApiError(408, "the body did not arrive in time", code="timeout") from None
    try:
        return ChatRequest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise refuse(where, f"{where}: {first['msg']}" if where else f"the body is not valid: {first['msg']}") from None
