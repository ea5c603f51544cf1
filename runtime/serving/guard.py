"""What every request passes first: is it for this host, does it have the key. It gets an id, and a line in the log."""

import hmac
import re
import time
import uuid
from base64 import b64decode
from contextlib import suppress
from typing import Any

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .api_error import ApiError
from .log import log
from .metrics import Metrics
from .serve_settings import ServeSettings

_ID = re.compile(r"[\w.:-]{1,100}", re.ASCII)


class Guard:
    """The outermost layer of the application: a plain ASGI one, which hands a stream's pieces on without a queue of its own.

    Args:
        app: what answers.
        settings: of the server.
        metrics: of the server.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics):
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there is no WebSocket here
            await send({"type": "websocket.close"})
            return
        headers, began, status = Headers(scope=scope), time.perf_counter(), 500
        given = headers.get("x-request-id", "")
        identity = given if _ID.fullmatch(given) else uuid.uuid4().hex  # it goes into the log and a header
        scope.setdefault("state", {})["id"] = identity

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["x-request-id"] = identity
                out["x-content-type-options"] = "nosniff"
            await send(message)

        try:
            try:
                _check_host(headers, self._settings)
                _check_key(headers, scope["path"], self._settings)
            except ApiError as error:
                self._metrics.failure.labels("", str(error.status)).inc()
                await error_response(error)(scope, receive, noted)
            else:
                await self._app(scope, receive, noted)
        finally:
            told = {"request_id": identity, "seconds": time.perf_counter() - began}
            # As it was sent: decoded, a path could hold line breaks and look like other lines of the log.
            path = scope.get("raw_path", b"").split(b"?")[0].decode("ascii", "backslashreplace")
            log.info("%s %s %d", scope["method"], path[:200], status, extra=told)


def error_response(error: ApiError) -> JSONResponse:
    """An error as clients read it."""
    return JSONResponse(error.body(), error.status, error.headers)


def _check_host(headers: Headers, settings: ServeSettings) -> None:
    host = headers.get("host", "")
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    if settings.allowed_hosts and name.lower() not in settings.allowed_hosts:
        raise ApiError(421, "this server does not answer for that host name; start it with --allowed-host")


def _check_key(headers: Headers, path: str, settings: ServeSettings) -> None:
    """Every route but /health wants the key: as a bearer token, or as a browser's password."""
    if settings.api_key is None or path == "/health":
        return
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        with suppress(ValueError):
            given = b64decode(given, validate=True).decode("utf-8").partition(":")[2]
    if not hmac.compare_digest(given.strip().encode(), settings.api_key.encode()):
        challenge: dict[str, Any] = {"WWW-Authenticate": 'Basic realm="rediprune"'} if path == "/" else {}
        raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key", headers=challenge)
