"""Decoding in processes of its own (`--split`): the spliced prompt, kept tokens in it, goes there; text comes back."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakSet

import numpy as np
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from ...answer import Answer
from ...errors import RedipruneError
from ...pipeline import Pipeline
from ...prepared_request import PreparedRequest
from ...prompt_encoder import PromptEmbeds
from ..answer_decoder import AnswerJob, Deliver
from ..answer_sink import Failure, Piece
from ..api_error import ApiError, too_many
from ..load_models import open_pipeline
from ..local_decoder import LocalDecoder
from ..scheduler import QueueFullError, StoppedError
from ..serve_settings import ServeSettings
from ..task_decoder import TaskDecoder, TaskJob
from ..translate import Translated
from .ray_router import routed
from .ray_settings import Spread


@dataclass(frozen=True)
class HandedPrompt:
    """An encoded prompt as it travels.

    Attributes:
        prompt: without its pictures.
        asked: the request, without its messages and media.
        unpruned: positions that the prompt would take with every visual token.
    """

    prompt: PromptEmbeds
    asked: Translated
    unpruned: int

    @classmethod
    def of(cls, asked: Translated, prepared: PreparedRequest) -> "HandedPrompt":
        """What a request needs to be decoded elsewhere."""
        whole = prepared.prompt
        prompt = replace(whole, embeds=np.asarray(whole.embeds), visuals=[], warnings=[])
        return cls(prompt, replace(asked, messages=[], media=[], first_turn=None), prepared.unpruned_length)

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays: what travels but for a few hundred bytes."""
        deepstack = self.prompt.deepstack
        return np.asarray(self.prompt.embeds).nbytes + (0 if deepstack is None else deepstack.nbytes)


@dataclass(frozen=True)
class Decoded:
    """What comes back at a time.

    Attributes:
        pieces: of the answer.
        tokens: generated for them.
        reused: prompt tokens whose KV cache was there.
        refusal: why it can never be answered there.
        busy: it cannot be answered there now.
    """

    pieces: list[Piece] = field(default_factory=list)
    tokens: int = 0
    reused: int = 0
    refusal: str = ""
    busy: bool = False


class Decoders:
    """A replica that decodes; `decoders_of` adds how many bundles it holds.

    Args:
        spread: the server.
    """

    def __init__(self, spread: Spread):
        self._spread = spread
        self._held: WeakSet[_Held] = WeakSet()
        self._loaded = {name: self.open(name) for name in list(spread.bundles)[: spread.scale.models]}

    def open(self, name: str) -> "_Held":
        """Load a bundle's language and embed stages."""
        held = _Held(name, self._spread)
        self._held.add(held)
        return held

    async def bundle(self, name: str) -> "_Held":
        """A bundle, loaded."""
        raise NotImplementedError

    async def take(self, name: str) -> "_Held":
        """A bundle for the cache of `bundle`: one loaded at the start, or loaded now."""
        return self._loaded.pop(name, None) or await asyncio.to_thread(self.open, name)

    async def decode(self, handed: HandedPrompt) -> AsyncIterator[Decoded]:
        """Answer an encoded prompt, as its tokens come."""
        held = await self.bundle(serve.get_multiplexed_model_id())
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Piece | Failure] = asyncio.Queue()

        def deliver(piece: Piece | Failure) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        prepared = held.pipeline.prepared(handed.prompt, handed.asked.generation, Answer(), [], handed.unpruned)
        try:
            job = held.decoder.submit(handed.asked, prepared, deliver)
        except RedipruneError as error:
            yield Decoded(refusal=str(error))
            return
        except (QueueFullError, StoppedError):
            yield Decoded(busy=True)
            return
        counted = 0
        try:
            while True:
                found = [await pieces.get()]
                while not pieces.empty():
                    found.append(pieces.get_nowait())
                for piece in found:
                    if isinstance(piece, Failure):
                        raise piece.error
                told = [piece for piece in found if isinstance(piece, Piece)]
                now = len(job.times)
                yield Decoded(told, now - counted, job.reused)
                counted = now
                if told[-1].finish_reason is not None:
                    return
        finally:
            job.cancel()

    def check_health(self) -> None:
        """Raise where no answer can be expected of this replica."""
        for held in list(self._held):
            fault = held.decoder.fault()
            if fault is not None:
                raise RuntimeError(fault)


class _Held:
    """A bundle of a replica that decodes."""

    def __init__(self, name: str, spread: Spread):
        self.pipeline = open_pipeline(spread.bundles[name], replace(spread.loading, lazy=True))
        self.pipeline.stage("embed")
        self.decoder = LocalDecoder(name, self.pipeline, spread.settings)


def decoders_of(models: int) -> type[Decoders]:
    """A replica that holds so many bundles, the least recently asked given up for another one."""

    class Language(Decoders):
        @serve.multiplexed(max_num_models_per_replica=models)
        async def bundle(self, name: str) -> _Held:  # pyright: ignore[reportIncompatibleMethodOverride]
            return await self.take(name)

    return Language


class RayDecoder(TaskDecoder):
    """The `AnswerDecoder` of a bundle whose language stage runs in other replicas.

    Args:
        name: of the bundle.
        pipeline: the bundle, without its language stage loaded.
        settings: of the server.
        language: the replicas.
    """

    def __init__(self, name: str, pipeline: Pipeline, settings: ServeSettings, language: DeploymentHandle):
        super().__init__(settings.max_waiting)
        self._handle: Callable[[], DeploymentHandle] = lambda: routed(language, None, name)

    def submit(self, asked: Translated, prepared: PreparedRequest, deliver: Deliver) -> AnswerJob:
        return self.begin(
            prepared.prompt.embeds.shape[0],
            lambda job: self._answer(job, HandedPrompt.of(asked, prepared), deliver),
        )

    def fault(self) -> str | None:
        return None

    def stop(self) -> None:
        """Nothing of it is here."""

    async def _answer(self, job: TaskJob, handed: HandedPrompt, deliver: Deliver) -> None:
        """Ask, and hand on what comes; once more where the replica ended before a token."""
        for attempt in range(3):
            try:
                await self._once(job, handed, deliver)
                return
            except ApiError as error:
                deliver(Failure(error))
                return
            except (RayError, RayServeException) as error:
                if job.times or attempt == 2:
                    told = ApiError(503, "the replica that decoded this ended; try again", headers={"Retry-After": "1"})
                    told.__cause__ = error
                    deliver(Failure(told))
                    return
                await asyncio.sleep(0.5 * attempt)
            except Exception as error:
                deliver(Failure(error))
                return

    async def _once(self, job: TaskJob, handed: HandedPrompt, deliver: Deliver) -> None:
        job.started = time.perf_counter()
        stream: Any = self._handle().decode.remote(handed)
        try:
            async for decoded in stream:
                if decoded.refusal:
                    raise ApiError(400, decoded.refusal, code="invalid_value")
                if decoded.busy:
                    raise too_many()
                now = time.perf_counter()
                job.prefilled, job.reused = job.prefilled or now, decoded.reused
                job.times += [now] * decoded.tokens
                for piece in decoded.pieces:
                    deliver(piece)
        except asyncio.CancelledError:
            stream.cancel()
            raise
