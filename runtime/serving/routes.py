"""The server's routes. Each only translates: bodies in, what a model says out."""

import asyncio
import hmac
import json
import time
import uuid
from base64 import b64decode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from pydantic import ValidationError

from .api_error import ApiError, refuse
from .log import log
from .metrics import Metrics
from .protocol import ChatRequest
from .responses import chunk, completion
from .serve_settings import ServeSettings
from .served_model import Request as Answering
from .served_model import ServedModel
from .translate import Translated, fetch_media, translate

LISTED_KEEPS = ("1", "0.5", "0.25", "0.15")  # aliases in /v1/models; any other ratio works too


@dataclass(frozen=True)
class Serving:
    """What the routes work with.

    Attributes:
        models: by name.
        settings: of the server.
        metrics: that the models write to.
        defaults: selection settings where a request says nothing.
    """

    models: Mapping[str, ServedModel]
    settings: ServeSettings
    metrics: Metrics
    defaults: Mapping[str, Any]


def create_app(serving: Serving) -> FastAPI:
    """The ASGI application."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.gather(*(asyncio.to_thread(model.close) for model in serving.models.values()))

    app = FastAPI(title="ReDiPrune", version=version("rediprune"), lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.serving = serving
    app.middleware("http")(_guard)
    app.add_exception_handler(ApiError, _answer_error)
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
    return HTMLResponse(page, headers={"Content-Security-Policy": policy})


@router.get("/health")
async def health() -> Response:
    """200 once every model is loaded."""
    return Response()


@router.get("/ping", include_in_schema=False)
async def ping() -> Response:
    """The same under SageMaker's name."""
    return Response()


@router.get("/version")
async def show_version() -> dict[str, str]:
    """The tool's version."""
    return {"version": version("rediprune")}


@router.get("/metrics")
async def show_metrics(request: Request) -> Response:
    """Metrics in Prometheus' text format."""
    serving: Serving = request.app.state.serving
    for model in serving.models.values():
        model.sample()
    return Response(serving.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """The models, and an alias for some keep ratios of each."""
    models = request.app.state.serving.models.values()
    return {"object": "list", "data": [_card(name, model) for model in models for name in _names(model)]}


@router.get("/v1/models/{name}")
async def show_model(request: Request, name: str) -> dict[str, Any]:
    """One model, or an alias."""
    model, _ = _find(request.app.state.serving.models, name)
    return _card(name, model)


@router.post("/v1/chat/completions", response_model=None)
async def chat(request: Request) -> Response:
    """An answer, whole or as server-sent events."""
    serving: Serving = request.app.state.serving
    settings = serving.settings
    body = await _body(request, settings.max_body_bytes)
    model, alias = _find(serving.models, body.model)
    asked = translate(body, settings.limits, {**serving.defaults, **alias})
    identity = {"id": f"chatcmpl-{request.state.id}", "created": int(time.time()), "model": body.model}
    deadline = asyncio.get_running_loop().time() + settings.timeout
    answering = await _unless_gone(request, _begin(model, asked, settings), deadline)
    if asked.stream:
        events = _events(model, answering, identity, deadline)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    return JSONResponse(await _unless_gone(request, _whole(model, answering, identity), deadline))


async def _guard(request: Request, forward: Callable[[Request], Awaitable[Response]]) -> Response:
    """Check host and key, give the request an id, and log it."""
    settings: ServeSettings = request.app.state.serving.settings
    began, identity = time.perf_counter(), request.headers.get("x-request-id", "")[:100] or uuid.uuid4().hex
    request.state.id = identity
    try:
        _check_host(request, settings)
        _check_key(request, settings)
        response = await forward(request)
    except ApiError as error:
        response = _error(error)
    response.headers["x-request-id"] = identity
    told = {"request_id": identity, "seconds": time.perf_counter() - began}
    log.info("%s %s %d", request.method, request.url.path, response.status_code, extra=told)
    return response


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    request.app.state.serving.metrics.failure.labels("", str(error.status)).inc()
    return _error(error)


async def _answer_fault(request: Request, error: Exception) -> Response:
    log.exception("fault in %s", request.url.path, exc_info=error)
    return _error(ApiError(500, "a fault of the server; its log says more"))


async def _begin(model: ServedModel, asked: Translated, settings: ServeSettings) -> Answering:
    images, videos = await fetch_media(asked.media, settings.media)
    return await model.begin(asked, images, videos)


async def _whole(model: ServedModel, answering: Answering, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The answer in one body."""
    async for _ in model.pieces(answering):
        pass
    model.record(answering)
    logprobs = None if answering.asked.top_logprobs is None else answering.logprobs
    own = await model.own(answering)
    return completion(identity, answering.text, answering.finish_reason, model.usage(answering), own, logprobs)


async def _events(
    model: ServedModel, answering: Answering, identity: Mapping[str, Any], deadline: float
) -> AsyncIterator[str]:
    """The answer as server-sent events."""

    def event(body: Mapping[str, Any]) -> str:
        return f"data: {json.dumps(body, separators=(',', ':'))}\n\n"

    yield event(chunk(identity, {"role": "assistant", "content": ""}))
    try:
        async with asyncio.timeout_at(deadline):
            async for piece in model.pieces(answering):
                if piece.text or piece.logprobs:
                    logprobs = None if piece.logprobs is None else [piece.logprobs]
                    yield event(chunk(identity, {"content": piece.text}, logprobs=logprobs))
        model.record(answering)
        yield event(chunk(identity, {}, answering.finish_reason, rediprune=await model.own(answering)))
        if answering.asked.include_usage:
            yield event(chunk(identity, None, usage=model.usage(answering)))
    except ApiError as error:
        log.error("%s", error.message, exc_info=error.__cause__)
        yield event(error.body())
    except TimeoutError:
        yield event(_timed_out().body())
    yield "data: [DONE]\n\n"


async def _unless_gone(request: Request, work: Any, deadline: float) -> Any:
    """Wait for `work`; it is cancelled when the client leaves or the deadline passes.

    Raises:
        ApiError: 504, the deadline passed; 499, the client left (nobody reads it).
    """
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            if await request.is_disconnected():
                raise ApiError(499, "the client left")
            if asyncio.get_running_loop().time() > deadline:
                raise _timed_out()
            await asyncio.wait({task}, timeout=0.2)
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _body(request: Request, limit: int) -> ChatRequest:
    """The request's body, read up to a limit and checked.

    Raises:
        ApiError: 400, 413 or 415.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":  # a web page of another origin can send other types without asking
        raise ApiError(415, "the body must be JSON: send Content-Type: application/json")
    too_large = ApiError(413, f"the body is larger than {limit >> 20} MiB", code="too_large")
    with suppress(ValueError):
        if int(request.headers.get("content-length", "0")) > limit:
            raise too_large
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > limit:
            raise too_large
    try:
        return ChatRequest.model_validate_json(bytes(data))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise refuse(where, f"{where}: {first['msg']}" if where else f"the body is not valid: {first['msg']}") from None


def _names(model: ServedModel) -> list[str]:
    return [model.name, *(f"{model.name}@{keep}" for keep in LISTED_KEEPS)]


def _card(name: str, model: ServedModel) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "rediprune",
        "max_model_len": model.max_positions,
    }


def _find(models: Mapping[str, ServedModel], name: str) -> tuple[ServedModel, dict[str, Any]]:
    """A model by its name or by an alias NAME@KEEP, and the settings that the alias stands for.

    Raises:
        ApiError: 404, there is none.
    """
    base, at, keep = name.rpartition("@")
    if name in models:
        return models[name], {}
    if at and base in models:
        with suppress(ValueError):
            ratio = int(keep) if keep.isdigit() and keep != "1" else float(keep)
            return models[base], {"keep": ratio}
    known = ", ".join(models)
    raise ApiError(404, f"there is no model '{name[:100]}'; there are: {known}", param="model", code="model_not_found")


def _check_host(request: Request, settings: ServeSettings) -> None:
    host = request.headers.get("host", "")
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    if settings.allowed_hosts and name.lower() not in settings.allowed_hosts:
        raise ApiError(421, "this server does not answer for that host name; start it with --allowed-host")


def _check_key(request: Request, settings: ServeSettings) -> None:
    """Every route but /health wants the key: as a bearer token, or as a browser's password."""
    if settings.api_key is None or request.url.path == "/health":
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        with suppress(ValueError):
            given = b64decode(given, validate=True).decode("utf-8").partition(":")[2]
    if not hmac.compare_digest(given.strip().encode(), settings.api_key.encode()):
        headers = {"WWW-Authenticate": 'Basic realm="rediprune"'} if request.url.path == "/" else {}
        raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key", headers=headers)


def _timed_out() -> ApiError:
    return ApiError(504, "the request took too long", code="timeout")


def _error(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, error.headers)
