"""The server's routes. Each only translates: bodies in, what a model says out."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from .api_error import ApiError, timed_out
from .chat_answer import Begun, Serving, begin_chat, find_model, whole_answer
from .guard import Guard, error_response
from .log import log
from .model_cards import cards_of
from .openapi import chat_operation, errors
from .request_body import read_body
from .responses import chunk
from .served_model import Request as Answering
from .served_model import ServedModel

_Result = TypeVar("_Result")


def create_app(serving: Serving) -> FastAPI:
    """The ASGI application."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.gather(*(asyncio.to_thread(model.close) for model in serving.models.values()))

    app = FastAPI(title="ReDiPrune", version=version("rediprune"), lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.serving = serving
    app.add_middleware(Guard, settings=serving.settings, metrics=serving.metrics)
    app.add_exception_handler(ApiError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_unknown)
    app.add_exception_handler(Exception, _answer_fault)
    app.include_router(router)
    return app


router = APIRouter()


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def show_page() -> HTMLResponse:
    """The page to try the models on; it loads nothing from elsewhere."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    policy += "img-src data: blob:; media-src blob:; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return HTMLResponse(page, headers={"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"})


@router.get("/health", response_class=Response, responses=errors(421))
async def health() -> Response:
    """200 once every model is loaded."""
    return Response()


@router.get("/ping", include_in_schema=False)
async def ping() -> Response:
    """The same under SageMaker's name."""
    return Response()


@router.get("/version", responses=errors(401, 421))
async def show_version() -> dict[str, str]:
    """The tool's version."""
    return {"version": version("rediprune")}


@router.get("/metrics", response_class=PlainTextResponse, responses=errors(401, 421))
async def show_metrics(request: Request) -> Response:
    """Metrics in Prometheus' text format."""
    serving: Serving = request.app.state.serving
    for model in serving.models.values():
        model.sample()
    return PlainTextResponse(
        serving.metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
    )


@router.get("/v1/models", responses=errors(401, 421))
async def list_models(request: Request) -> dict[str, Any]:
    """The models, and an alias for some keep ratios of each."""
    models = request.app.state.serving.models.values()
    return {"object": "list", "data": cards_of(model.card for model in models)}


@router.get("/v1/models/{name}", responses=errors(401, 404, 421))
async def show_model(request: Request, name: str) -> dict[str, Any]:
    """One model, or an alias."""
    model, _ = find_model(request.app.state.serving.models, name)
    return model.card.document(name)


@router.post(
    "/v1/chat/completions",
    response_model=None,
    openapi_extra=chat_operation(),
    responses=errors(400, 401, 404, 408, 413, 415, 421, 429, 500, 503, 504),
)
async def chat(request: Request) -> Response:
    """An answer, whole or as server-sent events."""
    serving: Serving = request.app.state.serving
    deadline = asyncio.get_running_loop().time() + serving.settings.timeout
    begun = await _unless_gone(request, _begin(request, serving, deadline), deadline)
    if begun.request.asked.stream:
        return _EventStream(begun.model, begun.request, _events(begun, deadline))
    return JSONResponse(await _unless_gone(request, whole_answer(begun, deadline), deadline))


class _EventStream(StreamingResponse):
    """Server-sent events; however the connection ends, the slot is given back."""

    def __init__(self, model: ServedModel, answering: Answering, events: AsyncIterator[str]):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._model, self._answering = model, answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._model.leave(self._answering)


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    if error.__cause__ is not None and error.status >= 500:
        log.error("%s, request %s", error.message, request.state.id, exc_info=error.__cause__)
    request.app.state.serving.metrics.failure.labels("", str(error.status)).inc()
    return error_response(error)


async def _answer_unknown(request: Request, error: Exception) -> Response:
    """No such route, or not with this method."""
    assert isinstance(error, HTTPException)
    return error_response(ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {})))


async def _answer_fault(request: Request, error: Exception) -> Response:
    log.error("fault of the server, request %s", request.state.id, exc_info=error)
    request.app.state.serving.metrics.failure.labels("", "500").inc()
    return error_response(ApiError(500, "a fault of the server; its log says more"))


async def _begin(request: Request, serving: Serving, deadline: float) -> Begun:
    """Read, check and queue a request."""
    with serving.bodies.share() as share:
        body = await read_body(request, serving.settings.max_body_bytes, share, deadline)
        return await begin_chat(serving, body, request.state.id, request.headers)


async def _events(begun: Begun, deadline: float) -> AsyncIterator[str]:
    """The answer as server-sent events."""
    model, answering, identity = begun.model, begun.request, begun.identity

    def event(body: Mapping[str, Any]) -> str:
        return f"data: {json.dumps(body, separators=(',', ':'))}\n\n"

    def told() -> dict[str, Any]:
        return {"usage": model.usage(answering)} if answering.asked.continuous_usage else {}

    yield event(chunk(identity, {"role": "assistant", "content": ""}, **told()))
    try:
        async for piece in model.pieces(answering, deadline):
            if piece.text or piece.logprobs:
                logprobs = None if piece.logprobs is None else [piece.logprobs]
                yield event(chunk(identity, {"content": piece.text}, logprobs=logprobs, **told()))
        model.record(answering)
        own = await model.own(answering)
        yield event(chunk(identity, {}, answering.finish_reason, rediprune=own, **told()))
        if answering.asked.include_usage:
            yield event(chunk(identity, None, usage=model.usage(answering)))
    except ApiError as error:
        model.failed(answering, error)
        yield event(error.body())
    yield "data: [DONE]\n\n"


async def _unless_gone(request: Request, work: Coroutine[Any, Any, _Result], deadline: float) -> _Result:
    """Wait for `work`, which is cancelled when the client leaves or the deadline passes.

    Raises:
        ApiError: 504, the deadline passed; 499, the client left (nobody reads it).
    """
    task = asyncio.ensure_future(work)
    try:
        while True:
            await asyncio.wait({task}, timeout=0.2)
            if task.done():
                return task.result()
            if await request.is_disconnected() and not task.done():
                raise ApiError(499, "the client left")
            if asyncio.get_running_loop().time() > deadline and not task.done():
                raise timed_out()
    finally:
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task
