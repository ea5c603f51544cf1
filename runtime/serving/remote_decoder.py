"""Answers from a language model somewhere else: vLLM gets our kept tokens and sends token ids back.

Before the first request, and again after every fault, the other side is held against the bundle: the same tokenizer and
chat template (`/tokenize` must give our token ids), embeddings of the same width (a request with some). Every answer is of
the very prompt that was meant: its token ids come back with the first event.
"""

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from ..errors import RedipruneError
from ..logit_rules import rules_after_penalty, rules_before_penalty
from ..pipeline import Pipeline
from ..prepared_request import PreparedRequest
from .answer_decoder import Deliver
from .answer_sink import Failure, Piece
from .api_error import ApiError
from .log import log
from .scheduler import StoppedError
from .serve_settings import ServeSettings
from .task_decoder import TaskDecoder, TaskJob
from .translate import Translated
from .vllm_protocol import (
    Delta,
    WireError,
    chat_body,
    error_message,
    expanded_ids,
    kept_embeds,
    read_event,
    tokenize_body,
    wire_messages,
)

FAMILIES = ("llava",)  # whose kept tokens are vLLM's image embeddings as they are; others were not run


@dataclass(frozen=True)
class RemoteSettings:
    """A decoder somewhere else.

    Attributes:
        url: of its API, with /v1.
        model: its name there; None: the only one that it lists.
        api_key: sent as a bearer token.
        first_token_timeout: seconds until its first token; then the answer fails with 503.
        connect_timeout: seconds until it takes a connection, and to answer a probe.
    """

    url: str
    model: str | None = None
    api_key: str | None = None
    first_token_timeout: float = 30.0
    connect_timeout: float = 5.0


class DecoderDownError(ApiError):
    """503: the decoder does not answer, or not now; trying again may help."""

    def __init__(self, message: str):
        super().__init__(503, message, code="decoder_unavailable", headers={"Retry-After": "2"})


class OtherModelError(ApiError):
    """502: the decoder answers, but is not the bundle's."""

    def __init__(self, message: str):
        super().__init__(502, message, code="decoder_mismatch")


@dataclass(frozen=True)
class _Model:
    """What the other side serves."""

    name: str
    max_positions: int


class RemoteDecoder(TaskDecoder):
    """The `AnswerDecoder` of a bundle whose language model runs in vLLM.

    Args:
        pipeline: the bundle; its language stage, where it has one, is not used.
        settings: of the server.
        remote: where the language model is.

    Raises:
        RedipruneError: the bundle's tokens or its generation config cannot be handed over.
    """

    def __init__(self, pipeline: Pipeline, settings: ServeSettings, remote: RemoteSettings):
        super().__init__(settings.max_waiting)
        _check_bundle(pipeline)
        self._pipeline, self._remote = pipeline, remote
        self._client: httpx.AsyncClient | None = None
        self._model: _Model | None = None  # as it was found by the last probe
        self._probing = asyncio.Lock()
        self._stopped = False

    def submit(self, asked: Translated, prepared: PreparedRequest, deliver: Deliver) -> TaskJob:
        if any(visual.kind != "image" for visual in prepared.prompt.visuals):
            raise RedipruneError("videos cannot be handed to this server's decoder; give frames as images")
        if prepared.prompt.positions is not None:
            raise RedipruneError("positions 'original' cannot be handed to this server's decoder; ask with 'compact'")
        if self._stopped:
            raise StoppedError
        return self.begin(prepared.prompt.embeds.shape[0], lambda job: self._answer(job, asked, prepared, deliver))

    def fault(self) -> str | None:
        return None  # one that is down may come back, and each request says so until then

    def stop(self) -> None:
        self._stopped = True

    async def check(self) -> None:
        """Hold the other side against the bundle.

        Raises:
            DecoderDownError: it does not answer.
            OtherModelError: it is not the bundle's language model.
        """
        async with self._probing:
            if self._model is None:
                self._model = await self._probe()

    async def _answer(self, job: TaskJob, asked: Translated, prepared: PreparedRequest, deliver: Deliver) -> None:
        """Ask, and hand on what comes."""
        try:
            await self.check()
            assert self._model is not None
            if job.prompt_tokens + prepared.max_new_tokens > self._model.max_positions:
                raise ApiError(
                    400,
                    f"the prompt takes {job.prompt_tokens} of the decoder's {self._model.max_positions} positions and the "
                    f"answer up to {prepared.max_new_tokens}; lower keep or max_tokens",
                    code="invalid_value",
                )
            await self._stream(job, self._model, asked, prepared, deliver)
        except ApiError as error:
            if error.status in (502, 503):
                self._model = None  # looked at again before the next request
            deliver(Failure(error))
        except Exception as error:  # the one who waits must hear of it
            deliver(Failure(error))

    async def _stream(
        self, job: TaskJob, model: _Model, asked: Translated, prepared: PreparedRequest, deliver: Deliver
    ) -> None:
        prompt = prepared.prompt
        messages = wire_messages(asked.messages, kept_embeds(prompt))
        body = chat_body(
            model.name,
            messages,
            prepared.sampling,
            asked.generation,
            tuple(prepared.stop_ids),
            asked.ignore_eos,
            asked.top_logprobs,
        )
        pieces = _Pieces(job, prepared, () if asked.ignore_eos else prepared.stop_ids, deliver)
        job.started = time.perf_counter()
        expected: list[int] | None = expanded_ids(prompt)
        remote = self._remote
        try:
            async with asyncio.timeout(remote.first_token_timeout) as first:
                async with self._http().stream("POST", f"{remote.url}/chat/completions", json=body) as reply:
                    if reply.status_code != 200:
                        raise _refused(reply.status_code, error_message(await reply.aread()))
                    async for line in reply.aiter_lines():
                        delta = read_event(line)
                        if delta is None:
                            continue
                        if delta.error is not None:
                            raise DecoderDownError(f"the decoder failed: {delta.error}")
                        if delta.prompt_ids is not None:
                            if delta.prompt_ids != expected:
                                raise OtherModelError(
                                    "the decoder read another prompt than this server meant; see its log"
                                )
                            expected = None
                        if delta.token_ids:
                            first.reschedule(None)  # from here on the request's own deadline counts
                        if expected is not None and delta.token_ids:
                            raise OtherModelError(
                                "the decoder does not say which prompt it read; it must be vLLM 0.32 or 0.33"
                            )
                        if pieces.take(delta):
                            return
        except TimeoutError:
            raise DecoderDownError(
                f"the decoder gave no token within {remote.first_token_timeout:g} s; try again"
            ) from None
        except httpx.HTTPError as error:
            raise DecoderDownError(f"the decoder went away ({type(error).__name__}); try again") from None
        except WireError as error:
            raise OtherModelError(f"the decoder is no vLLM: {error}") from error
        raise DecoderDownError("the decoder ended its answer early; try again")

    async def _probe(self) -> _Model:
        """What the other side serves, held against the bundle."""
        try:
            async with asyncio.timeout(4 * self._remote.connect_timeout):
                model = await self._listed()
                await self._check_tokens(model)
                await self._check_width(model)
        except (httpx.HTTPError, TimeoutError) as error:
            raise DecoderDownError(f"the decoder does not answer ({type(error).__name__}); try again later") from None
        log.info("the decoder %s serves %s, which is this bundle's language model", self._remote.url, model.name)
        return model

    async def _listed(self) -> _Model:
        told = await self._told("GET", "/models")
        try:
            found = {str(each["id"]): int(each.get("max_model_len") or 0) for each in told["data"]}
        except (KeyError, TypeError, ValueError):
            raise OtherModelError("the decoder lists no models as vLLM does") from None
        name = self._remote.model or (next(iter(found)) if len(found) == 1 else None)
        if name is None or name not in found:
            raise OtherModelError(f"the decoder serves {', '.join(found)}; say with --decoder-model which to use")
        return _Model(name, found[name] or self._pipeline.bundle.manifest.decoder.max_positions)

    async def _check_tokens(self, model: _Model) -> None:
        """The same tokenizer and the same chat template."""
        question = [{"role": "user", "content": [{"type": "text", "text": "What is it? 42 ✓"}]}]
        prompt = await asyncio.to_thread(self._pipeline.prepare, question)
        base = self._remote.url.removesuffix("/v1")
        told = await self._told("POST", f"{base}/tokenize", tokenize_body(model.name, wire_messages(question, ())))
        if told.get("tokens") != prompt.prompt.ids:
            raise OtherModelError(
                f"the decoder's '{model.name}' makes other tokens of a question than this bundle: it has another tokenizer or "
                "chat template; serve the checkpoint that the bundle was exported from"
            )

    async def _check_width(self, model: _Model) -> None:
        """Embeddings of the same width, taken at all."""
        manifest = self._pipeline.bundle.manifest
        dtype = next(port.dtype for port in manifest.stages["project"].outputs if port.name == "visual_embeds")
        zeros = np.zeros((2, manifest.decoder.width), dtype)
        content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
        body = {"model": model.name, "messages": wire_messages([{"role": "user", "content": content}], [zeros])}
        await self._told("POST", "/chat/completions", body | {"max_tokens": 1, "temperature": 0})

    async def _told(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of a reply; an error reply is told."""
        url = path if path.startswith("http") else f"{self._remote.url}{path}"
        reply = await self._http().request(method, url, json=body, timeout=4 * self._remote.connect_timeout)
        if reply.status_code != 200:
            message = error_message(reply.content)
            if reply.status_code < 500 and reply.status_code != 429:
                raise OtherModelError(f"the decoder refuses what this bundle would send it: {message}")
            raise _refused(reply.status_code, message)
        try:
            return reply.json()
        except ValueError:
            raise OtherModelError("the decoder is no vLLM: its reply is not JSON") from None

    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            key = self._remote.api_key
            most = self.max_slots + 4
            self._client = httpx.AsyncClient(
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=httpx.Timeout(None, connect=self._remote.connect_timeout),
                limits=httpx.Limits(max_connections=most, max_keepalive_connections=most),
                trust_env=False,
            )
        return self._client


class _Pieces:
    """Makes pieces of what comes: the text is made here, as for an answer decoded here."""

    def __init__(self, job: TaskJob, prepared: PreparedRequest, stop_ids: Collection[int], deliver: Deliver):
        self._job, self._prepared, self._stop_ids, self._deliver = job, prepared, stop_ids, deliver

    def take(self, delta: Delta) -> bool:
        """Hand on what an event brought; whether the answer is complete."""
        now = time.perf_counter()
        if delta.token_ids and not self._job.prefilled:
            self._job.prefilled = now
        for at, token in enumerate(delta.token_ids):
            self._job.times.append(now)
            stopped = token in self._stop_ids
            full = len(self._job.times) == self._prepared.max_new_tokens
            ends = delta.finish_reason is not None and at == len(delta.token_ids) - 1
            text = self._prepared.text.add(token, stopped or full or ends)
            stopped = stopped or self._prepared.text.stopped or (ends and delta.finish_reason == "stop")
            reason = "stop" if stopped else "length" if full or ends else None
            self._deliver(Piece(text, delta.logprobs[at] if at < len(delta.logprobs) else None, reason))
            if reason is not None:
                return True
        if delta.finish_reason is not None and not delta.token_ids:
            raise WireError("it ended without its last token")
        return False


def _refused(status: int, message: str) -> ApiError:
    """An error reply of the decoder as this server's."""
    if status in (429, 503):
        return DecoderDownError(f"the decoder is busy: {message}")
    if status in (401, 403):
        return OtherModelError("the decoder wants another key; start this server with --decoder-api-key")
    return OtherModelError(f"the decoder answers {status}: {message}")


def _check_bundle(pipeline: Pipeline) -> None:
    """Refuse a bundle whose answers could not be the same there."""
    manifest = pipeline.bundle.manifest
    if manifest.family not in FAMILIES:
        raise RedipruneError(
            f"--decoder was run with {', '.join(FAMILIES)} only: kept tokens of {manifest.family_name} cannot be handed over"
        )
    config = pipeline.processor.generation
    if rules_before_penalty(config) or rules_after_penalty(config, ()):
        raise RedipruneError(
            "the checkpoint's generation config has rules for its tokens that --decoder cannot pass on"
        )
    for name in ("typical_p", "epsilon_cutoff", "eta_cutoff"):
        if config.get(name) not in (None, 0, 0.0, 1, 1.0):
            raise RedipruneError(f"the checkpoint's generation config has {name}, which --decoder cannot pass on")
