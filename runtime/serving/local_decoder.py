"""Answers from the bundle's own language stage, decoded together by the scheduler."""

from collections.abc import Sequence

import numpy as np

from ..backends.batching import open_batch
from ..errors import RedipruneError
from ..pipeline import Pipeline
from ..prepared_request import PreparedRequest
from .answer_decoder import Deliver
from .answer_sink import AnswerSink, token_logprobs
from .scheduler import Job, Scheduler
from .serve_settings import ServeSettings
from .translate import Translated


class LocalJob:
    """An `AnswerJob` of the scheduler."""

    def __init__(self, job: Job, sink: AnswerSink):
        self._job, self._sink = job, sink

    @property
    def prompt_tokens(self) -> int:
        return len(self._job.embeds)

    @property
    def reused(self) -> int:
        return self._job.reused

    @property
    def queued(self) -> float:
        return self._job.queued

    @property
    def started(self) -> float:
        return self._job.started

    @property
    def prefilled(self) -> float:
        return self._job.prefilled

    @property
    def times(self) -> list[float]:
        return self._sink.times

    def cancel(self) -> None:
        self._job.cancel()


class LocalDecoder:
    """The `AnswerDecoder` of a bundle with a language stage.

    Args:
        name: what clients call the bundle.
        pipeline: the bundle, loaded.
        settings: of the server.

    Raises:
        RedipruneError: the KV cache has no room for a single position.
    """

    def __init__(self, name: str, pipeline: Pipeline, settings: ServeSettings):
        self._pipeline = pipeline
        decoder = pipeline.bundle.manifest.decoder
        decoding = open_batch(pipeline.stage("language"))
        width = np.dtype(pipeline.bundle.manifest.stages["language"].inputs[0].dtype).itemsize
        per_position = 2 * decoder.layers * decoder.kv_heads * decoder.head_width * width
        self.batches = decoding.slots != 1
        positions = settings.cache_memory // per_position if self.batches else decoder.max_positions
        if positions < 1:
            raise RedipruneError(
                f"a position of the KV cache of '{name}' takes {per_position} bytes; give --cache-memory more"
            )
        self._scheduler = Scheduler(
            decoding,
            self._embed,
            max_slots=settings.max_batch,
            max_positions=positions,
            max_waiting=settings.max_waiting,
            prefill_chunk=settings.prefill_chunk,
        )

    @property
    def max_slots(self) -> int:
        return self._scheduler.max_slots

    @property
    def waiting(self) -> int:
        return self._scheduler.waiting

    @property
    def running(self) -> int:
        return self._scheduler.running

    @property
    def cache_usage(self) -> float:
        return self._scheduler.cache_usage

    def submit(self, asked: Translated, prepared: PreparedRequest, deliver: Deliver) -> LocalJob:
        prompt, embeds = prepared.prompt, np.asarray(prepared.prompt.embeds)
        self._scheduler.check(len(embeds), prepared.max_new_tokens)
        top = asked.top_logprobs
        logprobs = None if top is None else lambda logits, token: token_logprobs(logits, token, top, self._token_text)
        sink = AnswerSink(
            prepared.sampling,
            prompt.ids,
            prepared.unpruned_length,
            prepared.text,
            () if asked.ignore_eos else prepared.stop_ids,
            prepared.max_new_tokens,
            logprobs,
            deliver,
            at_once=not asked.stream,
        )
        job = Job(embeds, prepared.max_new_tokens, sink, prompt.positions, prompt.deepstack)
        self._scheduler.submit(job)
        return LocalJob(job, sink)

    def fault(self) -> str | None:
        return None if self._scheduler.alive else "the thread that decodes has ended"

    def stop(self) -> None:
        self._scheduler.stop()

    def _embed(self, ids: Sequence[int]) -> np.ndarray:
        """Embeddings [n, D] of n token ids."""
        embeds = self._pipeline.stage("embed").run({"input_ids": np.asarray([ids], np.int64)})["embeds"]
        return np.asarray(embeds)[0]

    def _token_text(self, token: int) -> str:
        return str(self._pipeline.processor.tokenizer.decode([token]))
