"""One bundle in a server: its prompts encoded in threads, its answers decoded together."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..errors import AbandonedError, RedipruneError
from ..media.visualize import draw_answer
from ..pipeline import Pipeline
from ..prepared_request import PreparedRequest
from .answer_decoder import AnswerDecoder, AnswerJob
from .answer_sink import Failure, Piece
from .api_error import ApiError, timed_out, too_many
from .local_decoder import LocalDecoder
from .log import log
from .metrics import Metrics
from .model_cards import card_of
from .responses import png_uri, usage
from .scheduler import QueueFullError, StoppedError
from .serve_settings import ServeSettings
from .spans import Spans, Told
from .translate import Translated


@dataclass(frozen=True)
class Arrival:
    """When a request came, and for whom.

    Attributes:
        at: when its body was read (`time.perf_counter`).
        fetched: when its media were here.
        caller: whose work it is part of (`Spans.caller`).
    """

    at: float
    fetched: float
    caller: Any = None


@dataclass
class Request:
    """A request under way.

    Attributes:
        asked: the request as the pipeline takes it.
        prepared: its encoded prompt.
        job: its answer under way.
        pieces: what the decoder hands over.
        arrival: when and for whom it came.
    """

    asked: Translated
    prepared: PreparedRequest
    job: AnswerJob
    pieces: "asyncio.Queue[Piece | Failure]"
    arrival: "Arrival"
    text: str = ""
    finish_reason: str = "length"
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    counted: bool = False


class ServedModel:
    """A bundle that answers many requests at once.

    Args:
        name: what clients call it.
        pipeline: the bundle, loaded.
        settings: of the server.
        metrics: of the server.
        spans: where they are traced.
        decoder: of its answers; None: its own language stage.
    """

    def __init__(
        self,
        name: str,
        pipeline: Pipeline,
        settings: ServeSettings,
        metrics: Metrics,
        spans: Spans | None = None,
        decoder: AnswerDecoder | None = None,
    ):
        self._spans = spans or Spans()
        self.name, self.pipeline, self._settings, self._metrics = name, pipeline, settings, metrics
        self.card = card_of(name, Path(pipeline.bundle.folder), pipeline.bundle.manifest)
        for stage in pipeline.backends:  # everything is open before the first request
            if stage != "language" or decoder is None:
                pipeline.stage(stage)
        self._decoder = decoder or LocalDecoder(name, pipeline, settings)
        encoders = settings.encoders or min(4, max(1, (os.cpu_count() or 1) // 4))
        self._encoders = ThreadPoolExecutor(encoders, thread_name_prefix="rediprune-encoder")
        self._encoding = 0
        metrics.max_batch.labels(name).set(self._decoder.max_slots)

    @property
    def batches(self) -> bool:
        """Whether several answers are decoded in one call."""
        return self._decoder.batches

    def caller(self, headers: Mapping[str, str]) -> Any:
        """Whose work a request is part of, for its spans."""
        return self._spans.caller(headers)

    @property
    def max_positions(self) -> int:
        """Positions that prompt and answer may take together."""
        return self.pipeline.bundle.manifest.decoder.max_positions

    async def begin(self, asked: Translated, images: list[bytes], videos: list[bytes], arrival: Arrival) -> Request:
        """Encode a request's prompt and queue it.

        Raises:
            ApiError: 400, the pipeline refuses it; 429, too many wait; 503, the server is stopping.
        """
        if self._encoding + self._decoder.waiting >= self._settings.max_waiting:
            raise too_many()
        self._encoding += 1
        loop, gone = asyncio.get_running_loop(), threading.Event()

        def pulse() -> None:
            if gone.is_set():
                raise AbandonedError("the client left")

        prepare = partial(
            self.pipeline.prepare,
            asked.messages,
            images,
            videos,
            selection=asked.selection,
            generation=asked.generation,
            question=asked.first_turn,
            return_visuals=asked.return_overlay,
            pulse=pulse,
        )
        try:
            prepared = await loop.run_in_executor(self._encoders, prepare)
        except RedipruneError as error:
            raise ApiError(400, str(error), code="invalid_value") from error
        finally:
            self._encoding -= 1
            gone.set()  # cancelled, this leaves the thread alone with its work
        pieces: asyncio.Queue[Piece | Failure] = asyncio.Queue()

        def deliver(piece: Piece | Failure) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        try:
            job = self._decoder.submit(asked, prepared, deliver)
        except RedipruneError as error:
            raise ApiError(400, str(error), code="invalid_value") from error
        except QueueFullError:
            raise too_many() from None
        except StoppedError:
            raise ApiError(503, "the server is stopping", headers={"Retry-After": "5"}) from None
        return Request(replace(asked, media=[]), prepared, job, pieces, arrival)  # what they came from is let go

    async def pieces(self, request: Request, deadline: float) -> AsyncIterator[Piece]:
        """The answer, piece by piece. Left early, it frees the request's slot.

        Args:
            request: from `begin`; one that is not read must be cancelled (`Request.job`).
            deadline: in the event loop's time.

        Raises:
            ApiError: 500, the answer failed; 502 or 503, what decodes elsewhere did; 504, the deadline passed.
        """
        try:
            while True:
                try:
                    async with asyncio.timeout_at(deadline):
                        piece = await request.pieces.get()
                except TimeoutError:
                    raise timed_out() from None
                if isinstance(piece, Failure):
                    if isinstance(piece.error, ApiError):
                        raise piece.error
                    raise ApiError(500, "the answer failed; the server's log says why") from piece.error
                request.text += piece.text
                if piece.logprobs is not None:
                    request.logprobs.append(piece.logprobs)
                if piece.finish_reason is not None:
                    request.finish_reason = piece.finish_reason
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            request.job.cancel()

    def usage(self, request: Request) -> dict[str, Any]:
        """Tokens of a request, as OpenAI writes them."""
        kept = request.prepared.kept_by_kind
        return usage(request.job.prompt_tokens, len(request.job.times), request.job.reused, kept)

    async def own(self, request: Request) -> dict[str, Any]:
        """What only this server says of an answer."""
        answer, job, times = request.prepared.answer, request.job, request.job.times
        began = request.arrival.at
        timings = {"fetch": request.arrival.fetched - began} | answer.timings
        timings |= {"queue": job.started - job.queued, "prefill": job.prefilled - job.started}
        timings["time_to_first_token"] = times[0] - began
        timings["decode"] = times[-1] - times[0]
        timings["total"] = times[-1] - began
        own: dict[str, Any] = {
            "visual_tokens": answer.visual_tokens,
            "kept_tokens": answer.kept_tokens,
            "kept": [[indices.tolist() for indices in frames] for frames in answer.kept],
            "encoded_frames": answer.encoded_frames,
            "warnings": list(answer.warnings),
            "reselected": request.asked.first_turn is None,
            "timings": timings,
        }
        if request.asked.return_overlay and answer.visuals:
            # Bare: the client has question and answer, and a long text would make an enormous picture.
            draw = partial(draw_answer, answer, self.pipeline.processor, bare=True)
            own["overlay"] = png_uri(await asyncio.get_running_loop().run_in_executor(None, draw))
        return own

    def leave(self, request: Request) -> None:
        """The end of a stream, however it ended: its slot is free, and one whose client left is counted."""
        request.job.cancel()
        if not request.counted:
            request.counted = True
            self._metrics.failure.labels(self.name, "499").inc()
            self._trace(request, "the client left")

    def failed(self, request: Request, error: ApiError) -> None:
        """Note a stream that failed after it had begun."""
        request.counted = True
        self._metrics.failure.labels(self.name, str(error.status)).inc()
        log.error("%s", error.message, exc_info=error.__cause__)
        self._trace(request, error.message)

    def record(self, request: Request) -> None:
        """Note a finished request in the metrics."""
        request.counted = True
        metrics, name, answer = self._metrics, self.name, request.prepared.answer
        job, times = request.job, request.job.times
        generated, decode = len(times), times[-1] - times[0]
        metrics.success.labels(name, request.finish_reason).inc()
        metrics.prompt_tokens.labels(name).inc(job.prompt_tokens)
        metrics.generation_tokens.labels(name).inc(generated)
        metrics.prefix_queries.labels(name).inc(job.prompt_tokens)
        metrics.prefix_hits.labels(name).inc(job.reused)
        visuals = request.prepared.prompt.visuals
        metrics.feature_queries.labels(name).inc(len(visuals))
        metrics.feature_hits.labels(name).inc(sum(visual.encoded == 0 for visual in visuals))
        metrics.visual_tokens.labels(name).inc(answer.visual_tokens)
        metrics.kept_tokens.labels(name).inc(answer.kept_tokens)
        metrics.first_token.labels(name).observe(times[0] - request.arrival.at)
        for before, after in pairwise(times):
            metrics.inter_token.labels(name).observe(after - before)
        if generated > 1:
            metrics.per_token.labels(name).observe(decode / (generated - 1))
        metrics.end_to_end.labels(name).observe(times[-1] - request.arrival.at)
        metrics.queue_time.labels(name).observe(job.started - job.queued)
        metrics.prefill_time.labels(name).observe(job.prefilled - job.started)
        metrics.decode_time.labels(name).observe(decode)
        metrics.inference_time.labels(name).observe(times[-1] - job.started)
        metrics.request_prompt.labels(name).observe(job.prompt_tokens)
        metrics.request_generation.labels(name).observe(generated)
        metrics.request_max_tokens.labels(name).observe(request.asked.generation.max_new_tokens)
        metrics.stage_seconds.labels(name, "fetch").observe(request.arrival.fetched - request.arrival.at)
        for stage in ("preprocess", "vision", "select", "project", "embed"):
            metrics.stage_seconds.labels(name, stage).observe(answer.timings[stage])
        metrics.stage_seconds.labels(name, "prefill").observe(job.prefilled - job.started)
        self._trace(request)

    def sample(self) -> None:
        """Set the gauges to what is now."""
        metrics, name = self._metrics, self.name
        metrics.running.labels(name).set(self._decoder.running)
        metrics.waiting.labels(name).set(self._decoder.waiting + self._encoding)
        metrics.cache_usage.labels(name).set(self._decoder.cache_usage)

    def fault(self) -> str | None:
        """Why no answer can be expected of it; None while all is well."""
        return self._decoder.fault()

    def close(self) -> None:
        """Finish what runs, and take nothing more."""
        self._decoder.stop()
        self._encoders.shutdown(cancel_futures=True)

    def _trace(self, request: Request, error: str | None = None) -> None:
        """Write the spans of a request that ended."""
        job, times, arrival = request.job, request.job.times, request.arrival
        now = time.perf_counter()
        stages = [("fetch", arrival.at, arrival.fetched), *request.prepared.intervals]
        stages.append(("queue", job.queued, job.started or now))
        if job.prefilled:
            stages += [("prefill", job.started, job.prefilled), ("decode", job.prefilled, times[-1] if times else now)]
        answer = request.prepared.answer
        attributes = {
            "gen_ai.usage.input_tokens": job.prompt_tokens,
            "gen_ai.usage.output_tokens": len(times),
            "gen_ai.response.finish_reasons": [request.finish_reason],
            "rediprune.visual_tokens": answer.visual_tokens,
            "rediprune.kept_tokens": answer.kept_tokens,
            "rediprune.reused_tokens": job.reused,
        }
        end = now if error or not times else times[-1]
        self._spans.write(Told(self.name, arrival.at, end, stages, attributes, error), arrival.caller)
