"""A chat request from its checked body to its answer, whoever asks: the server's routes, or a batch."""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from .api_error import ApiError
from .body_budget import BodyBudget
from .metrics import Metrics
from .protocol import ChatRequest
from .responses import completion
from .serve_settings import ServeSettings
from .served_model import Arrival, Request, ServedModel
from .translate import fetch_media, translate


@dataclass(frozen=True)
class Serving:
    """What requests are answered with.

    Attributes:
        models: by name.
        settings: of the server.
        metrics: that the models write to.
        defaults: selection settings where a request says nothing.
        bodies: what requests hold while they are read.
    """

    models: Mapping[str, ServedModel]
    settings: ServeSettings
    metrics: Metrics
    defaults: Mapping[str, Any]
    bodies: BodyBudget = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bodies", BodyBudget(self.settings.max_pending_bytes))


@dataclass(frozen=True)
class Begun:
    """A request that was queued.

    Attributes:
        model: what answers it.
        request: its answer under way.
        identity: what stands in every piece of the answer: `id`, `created`, `model`.
    """

    model: ServedModel
    request: Request
    identity: dict[str, Any]


async def begin_chat(serving: Serving, body: ChatRequest, request_id: str, headers: Mapping[str, str]) -> Begun:
    """Check a request, fetch its media, encode its prompt and queue it.

    Raises:
        ApiError: it cannot be answered, or not now.
    """
    settings = serving.settings
    model, alias = find_model(serving.models, body.model)
    limits = settings.limits.of_model(model.max_positions)
    asked = translate(body, limits, {**serving.defaults, **alias})
    identity = {"id": f"chatcmpl-{request_id}", "created": int(time.time()), "model": body.model}
    del body
    at = time.perf_counter()
    images, videos = await fetch_media(asked.media, settings.media)
    arrival = Arrival(at, time.perf_counter(), model.caller(headers))
    return Begun(model, await model.begin(asked, images, videos, arrival), identity)


async def whole_answer(begun: Begun, deadline: float) -> dict[str, Any]:
    """The answer in one body.

    Args:
        begun: from `begin_chat`.
        deadline: in the event loop's time.

    Raises:
        ApiError: the answer failed, or the deadline passed.
    """
    model, request = begun.model, begun.request
    try:
        async for _ in model.pieces(request, deadline):
            pass
        model.record(request)
        logprobs = None if request.asked.top_logprobs is None else request.logprobs
        own = await model.own(request)
        return completion(begun.identity, request.text, request.finish_reason, model.usage(request), own, logprobs)
    finally:
        request.job.cancel()


def find_model(models: Mapping[str, ServedModel], name: str) -> tuple[ServedModel, dict[str, Any]]:
    """A model by its name or by an alias NAME@KEEP, and the settings that the alias stands for.

    Raises:
        ApiError: 404, there is none.
    """
    found, settings = split_alias(models, name)
    return models[found], settings


def split_alias(models: Mapping[str, Any], name: str) -> tuple[str, dict[str, Any]]:
    """The name in `models` that a request's `model` stands for, and the settings of its alias; raises as `find_model`."""
    base, at, keep = name.rpartition("@")
    if name in models:
        return name, {}
    if at and base in models:
        with suppress(ValueError):
            ratio = int(keep) if keep.isdigit() and keep != "1" else float(keep)
            return base, {"keep": ratio}
    known = ", ".join(models)
    raise ApiError(404, f"there is no model '{name[:100]}'; there are: {known}", param="model", code="model_not_found")
