"""What clients of the cluster talk to: it looks at who asks, for which bundle and about which picture, and hands the request to
the replica that knows the picture. A replica that ends before it has answered anything costs the request nothing but time.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ...bundle import Bundle
from ..api_error import ApiError, timed_out, too_many
from ..chat_answer import split_alias
from ..guard import Guard, error_response
from ..log import log
from ..metrics import Metrics
from ..model_cards import Card, card_of, cards_of
from .ray_router import picture_key, routed
from .ray_settings import Spread

_CHAT = "/v1/chat/completions"
_TRIES = 3  # replicas that may end under a request before it does
_GRACE = 5.0  # seconds after its deadline, by which a replica should have given up by itself


@serve.ingress()
class Front:
    """Takes the clients' connections.

    Args:
        spread: the server.
        engine: the replicas.
        board: holds their metrics.
    """

    def __init__(self, spread: Spread, engine: DeploymentHandle, board: DeploymentHandle):
        self._spread, self._engine, self._board = spread, engine, board
        self._metrics = Metrics()
        self._cards = [_card(name, folder) for name, folder in spread.bundles.items()]

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return Guard(self._answer, self._spread.settings, self._metrics)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        try:
            own = await self._own(request)
            if own is not None:
                await own(scope, receive, send)
                return
            body = await self._body(request)
            key, model = self._routing(request, body)
            await self._hand_on(request, body, key, model, send)
        except ApiError as error:
            self._metrics.failure.labels("", str(error.status)).inc()
            await error_response(error)(scope, receive, send)

    async def _own(self, request: Request) -> Response | None:
        """What the front says itself: about all bundles and all replicas."""
        path = request.url.path
        if request.method not in ("GET", "HEAD"):
            return None
        if path in ("/health", "/ping"):
            return Response()
        if path == "/metrics":
            text = await self._board.merged.remote()
            own = self._metrics.render().decode().replace("rediprune:", "rediprune:front_")
            return PlainTextResponse(text + own, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})
        if path == "/v1/models":
            return JSONResponse({"object": "list", "data": cards_of(self._cards)})
        if path.startswith("/v1/models/"):
            name = path.removeprefix("/v1/models/")
            found, _ = split_alias(self._spread.bundles, name)
            return JSONResponse(next(card for card in self._cards if card.name == found).document(name))
        return None

    async def _body(self, request: Request) -> bytes:
        """The body, up to its limit."""
        limit, data = self._spread.settings.max_body_bytes, bytearray()
        async for piece in request.stream():
            data += piece
            if len(data) > limit:
                raise ApiError(413, f"the body is larger than {limit >> 20} MiB", code="too_large")
        return bytes(data)

    def _routing(self, request: Request, body: bytes) -> tuple[str | None, str]:
        """A request's key, and the bundle that it is for; what is wrong with its body the bundle's application says."""
        first = next(iter(self._spread.bundles))
        if request.url.path != _CHAT:
            return None, first
        told: Any = None
        with suppress(ValueError, RecursionError):
            told = json.loads(body)
        name = told.get("model") if isinstance(told, dict) else None
        if not isinstance(name, str):
            return None, first
        found, _ = split_alias(self._spread.bundles, name)
        key = picture_key(told)
        return None if key is None else f"{found} {key}", found

    async def _hand_on(self, request: Request, body: bytes, key: str | None, model: str, send: Send) -> None:
        """Let a replica answer; another one where it ends before it said anything.

        Raises:
            ApiError: 429, all are full; 503, they ended; 504, the deadline passed.
        """
        scope = _portable(request.scope)
        deadline = asyncio.get_running_loop().time() + self._spread.settings.timeout + _GRACE
        for attempt in range(_TRIES):
            begun = False
            try:
                async with asyncio.timeout_at(deadline):
                    async for message in self._messages(scope, body, key, model):
                        begun = True
                        await send(message)
                return
            except TimeoutError:
                failure = timed_out()
            except BackPressureError:
                failure = too_many()
            except (RayError, RayServeException) as error:
                log.warning("a replica ended under request %s: %s", request.state.id, type(error).__name__)
                failure = ApiError(
                    503,
                    "the replica that answered this ended; try again",
                    code="replica_ended",
                    headers={"Retry-After": "1"},
                )
                if not begun and attempt < _TRIES - 1:
                    await asyncio.sleep(0.2 * attempt)
                    continue
            if not begun:
                raise failure
            await _end_broken(send, failure)
            return

    async def _messages(
        self, scope: Mapping[str, Any], body: bytes, key: str | None, model: str
    ) -> AsyncIterator[dict[str, Any]]:
        """What the replica's application sends."""
        stream: Any = routed(self._engine, key, model).ask.remote(scope, body)
        try:
            async for message in stream:
                yield message
        except (asyncio.CancelledError, GeneratorExit):
            stream.cancel()
            raise


async def _end_broken(send: Send, failure: ApiError) -> None:
    """End an answer of which a part was sent: a stream with the error as its last event, as one process ends it."""
    event = f"data: {json.dumps(failure.body())}\n\ndata: [DONE]\n\n".encode()
    await send({"type": "http.response.body", "body": event, "more_body": False})


def _portable(scope: Scope) -> dict[str, Any]:
    """Of an ASGI scope what an application needs and another process can have."""
    kept = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers", "server")
    found = {name: scope[name] for name in kept if name in scope}
    identity = scope["state"]["id"].encode()
    headers = [(name, value) for name, value in scope["headers"] if name != b"x-request-id"]
    return {**found, "root_path": "", "headers": [*headers, (b"x-request-id", identity)]}


def _card(name: str, folder: Path) -> Card:
    bundle = Bundle.open(folder, verify=False)
    return card_of(name, bundle.folder, bundle.manifest)
