"""A replica: bundles loaded on demand, each behind the same ASGI application that `rediprune serve` runs."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import replace
from typing import Any
from weakref import WeakSet

from ray import serve
from ray.serve.handle import DeploymentHandle

from ...background import start
from ..answer_decoder import AnswerDecoder
from ..load_models import open_pipeline
from ..local_decoder import LocalDecoder
from ..metrics import Metrics
from ..routes import Serving, create_app
from ..served_model import ServedModel
from ..spans import Spans
from .ray_decoder import RayDecoder
from .ray_settings import Spread

_PUSH_SECONDS = 2.0  # between two reports of a replica's metrics

Message = MutableMapping[str, Any]  # of ASGI


class Loaded:
    """A bundle of a replica: its model and its application. Closed when it is dropped for another one."""

    def __init__(self, name: str, spread: Spread, decoder: Callable[[Any], AnswerDecoder]):
        self.metrics = Metrics()
        pipeline = open_pipeline(spread.bundles[name], spread.loading)
        self.model = ServedModel(name, pipeline, spread.settings, self.metrics, Spans.installed(), decoder(pipeline))
        # Hosts and keys are looked at by the front, which is the only one that can reach this.
        settings = replace(spread.settings, api_key=None, allowed_hosts=())
        self.app = create_app(Serving({name: self.model}, settings, self.metrics, spread.defaults))

    def __del__(self) -> None:
        with suppress(AttributeError):
            start(self.model.close)  # what runs is finished


class Replica:
    """What every replica of the engine does; `engine_of` adds how many bundles it holds.

    Args:
        spread: the server.
        language: replicas that decode, where they are apart.
        board: takes metrics.
    """

    def __init__(self, spread: Spread, language: DeploymentHandle | None, board: DeploymentHandle | None):
        self._spread, self._language, self._board = spread, language, board
        self._held: WeakSet[Loaded] = WeakSet()
        self._loaded: dict[str, Loaded] = {}  # at the start, until they are asked for
        for name in list(spread.bundles)[: spread.scale.models]:  # it is ready when these are
            self._loaded[name] = self.open(name)
        self._pushing: asyncio.Task[None] | None = None

    def open(self, name: str) -> Loaded:
        """Load a bundle."""

        def decoder(pipeline: Any) -> AnswerDecoder:
            if self._language is None:
                return LocalDecoder(name, pipeline, self._spread.settings)
            return RayDecoder(name, pipeline, self._spread.settings, self._language)

        loaded = Loaded(name, self._spread, decoder)
        self._held.add(loaded)
        return loaded

    async def bundle(self, name: str) -> Loaded:
        """A bundle, loaded."""
        raise NotImplementedError

    async def take(self, name: str) -> Loaded:
        """A bundle for the cache of `bundle`: one loaded at the start, or loaded now."""
        return self._loaded.pop(name, None) or await asyncio.to_thread(self.open, name)

    async def ask(self, scope: Mapping[str, Any], body: bytes) -> AsyncIterator[Message]:
        """Answer an HTTP request; the messages that an ASGI application sends, without its body's end.

        Args:
            scope: method, path, headers and the like.
            body: of the request.
        """
        if self._pushing is None:
            self._pushing = asyncio.create_task(self._push())
        loaded = await self.bundle(serve.get_multiplexed_model_id())
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        left, given = asyncio.Event(), False

        async def receive() -> Message:
            nonlocal given
            if given:
                await left.wait()
                return {"type": "http.disconnect"}
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            await messages.put(message)

        async def run() -> None:
            try:
                # The state is this request's own; the application notes its id there.
                await loaded.app({**scope, "state": {}}, receive, send)
            finally:
                await messages.put(None)

        task = asyncio.create_task(run())
        try:
            while (message := await messages.get()) is not None:
                yield message
            await task
        finally:  # the client left, or the front gave up
            left.set()
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    def check_health(self) -> None:
        """Raise where no answer can be expected of this replica; Ray then ends it and starts another."""
        for loaded in list(self._held):
            fault = loaded.model.fault()
            if fault is not None:
                raise RuntimeError(f"{loaded.model.name}: {fault}")

    async def _push(self) -> None:
        """Report the metrics again and again, beside the requests."""
        if self._board is None:
            return
        own = serve.get_replica_context().replica_id.unique_id
        while True:
            with suppress(Exception):  # the board may be on the move
                for loaded in list(self._held):
                    loaded.model.sample()
                texts = [loaded.metrics.render().decode() for loaded in list(self._held)]
                await self._board.put.remote(own, "".join(texts), time.time())
            await asyncio.sleep(_PUSH_SECONDS)


def engine_of(models: int) -> type[Replica]:
    """A replica that holds so many bundles, the least recently asked given up for another one."""

    class Engine(Replica):
        @serve.multiplexed(max_num_models_per_replica=models)
        async def bundle(self, name: str) -> Loaded:  # pyright: ignore[reportIncompatibleMethodOverride]
            return await self.take(name)

    return Engine
