"""A request's body: read up to a limit, within a budget that all requests share, and checked.

The limit itself is `ServeSettings.max_body_bytes`.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from fastapi import Request
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from .api_error import ApiError, refuse
from .body_budget import BodyShare
from .protocol import ChatRequest


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
    return check_body(data)


def check_body(data: bytes | bytearray | Mapping[str, Any]) -> ChatRequest:
    """A chat request of its JSON text, or of what that holds.

    Raises:
        ApiError: 400, and the field that is wrong.
    """
    try:
        if isinstance(data, Mapping):
            return ChatRequest.model_validate(data)
        return ChatRequest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise refuse(where, f"{where}: {first['msg']}" if where else f"the body is not valid: {first['msg']}") from None
