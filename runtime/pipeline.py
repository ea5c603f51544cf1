"""A bundle that answers: images and a question in, text out.

pixels → features → indices → kept → projected → spliced (`prompt_encoder`) → prefill → decode (`decode`) → text
(`detokenize`, `answer`): one after another, without going back.
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Literal, Unpack, overload

import numpy as np

from .answer import Answer, Stream
from .backend_choice import AUTO, check_stages, choose_backends
from .backends.session import LanguageSession, StageSession, open_session
from .bundle import Bundle
from .decode import decode
from .detokenize import Detokenizer
from .errors import RedipruneError
from .feature_cache import FeatureCache
from .media.limits import MediaLimits
from .media.processor import Processor
from .memory import check_memory
from .options import AnswerKeywords, GenerateOptions, SelectKeywords, SelectOptions, merge_keywords
from .prefill_time import PrefillTime, any_prefill
from .prepared_request import PreparedRequest, prepared_of
from .prompt import Prompt, check_placeholder_ids
from .prompt_encoder import PromptEmbeds, PromptEncoder
from .sampling import Sampling
from .stage_sessions import RequestSessions, StageSessions, prefetch_order
from .stop_strings import TokenBytes
from .timing import StageClock, Stopwatch
from .visual_tokens import Kept

__all__ = ["Answer", "Pipeline", "Stream"]


@dataclass(frozen=True, eq=False)
class _Replacement:
    """Sessions in place of the pipeline's own, and a cache for the features that they make."""

    sessions: Mapping[str, Any]
    cache: FeatureCache | None


class Pipeline:
    """Loaded stages of a bundle; `Pipeline.load` makes one.

    Stages are loaded when first needed, but for those on a CPU: they are prefetched in threads while the processor's
    libraries are imported, which takes as long.

    **Threads.** A pipeline may be shared: any number of threads may call `generate`, `stream` and `select` at once, and
    each gets what it would get alone. A stage is loaded once, whoever needs it first; a picture that several ask about at
    once is encoded once; every request has a KV cache of its own. On a GPU, and in eager PyTorch, one stage runs at a
    time. A `Stream` belongs to the thread that reads it.

    Attributes:
        bundle: the bundle.
        backends: by stage, what runs it.
        reasons: by stage, why that does, where `load` chose it.
        threads: for every stage; 0 leaves it to the backend.
        processor: tokenizer, chat template and picture settings.
        cache: features of pictures seen before.
        limits: what an image or video may be at most.
        prefill_time: what the language stage takes on this machine, measured for requests that give `first_token`.
    """

    def __init__(
        self,
        bundle: Bundle,
        backends: Mapping[str, str],
        threads: int,
        cache_bytes: int,
        prefetch: Sequence[str] = (),
        limits: MediaLimits | None = None,
        reasons: Mapping[str, str] | None = None,
    ):
        self.bundle = bundle
        self.backends = backends
        self.threads = threads
        self.limits = limits or MediaLimits.read()
        self.cache = FeatureCache(cache_bytes)
        self.reasons = reasons or {}
        self._replacements: tuple[_Replacement, ...] = ()
        self._lock = Lock()  # guards the replacements
        self._sessions = StageSessions(backends, lambda stage: open_session(backends[stage], bundle, stage, threads))
        prefill = any_prefill(bundle.manifest, self._sessions.__getitem__)  # of `self` it would be a circle
        self.prefill_time = PrefillTime(prefill, bundle.manifest.decoder.max_positions)
        self._sessions.prefetch(prefetch)
        try:
            self.processor = Processor.load(bundle.path("processor"))
            self._token_bytes = TokenBytes(self.processor.tokenizer)
            self._detokenizer = Detokenizer.for_processor(self.processor)
            check_placeholder_ids(self.processor, _own_placeholders(bundle))
        except BaseException:
            self._sessions.stop_prefetch()
            raise

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        backend: str | Mapping[str, str] = AUTO,
        *,
        eager: Collection[str] = (),
        threads: int = 0,
        cache_bytes: int = 1 << 30,
        verify: bool = True,
        lazy: bool = False,
        limits: MediaLimits | None = None,
    ) -> "Pipeline":
        """Open a bundle.

        Args:
            bundle: folder.
            backend: what runs the stages: "auto" (the fastest at hand that computes what the bundle promises), "ort" (ONNX
                Runtime on the CPU), "openvino" (`select` stays on "ort"), "openvino-bf16", "ort-cuda", "tensorrt",
                "tensorrt-rtx" or "eager" (PyTorch, the reference). A mapping gives each stage its own,
                `{"vision": "ort", "default": "tensorrt"}`; "default", itself "auto", is for stages not named.
            eager: stages to run in eager PyTorch instead, to find one that drifts.
            threads: for every stage; 0 leaves it to the backend.
            cache_bytes: bound of the feature cache.
            verify: compare the bundle's files with their hashes.
            lazy: load no stage sooner than it is needed, for one who may not need them all.
            limits: what an image or video may be at most; None is `MediaLimits.read()`, the defaults or what the
                environment's REDIPRUNE_MEDIA_LIMITS says.

        Raises:
            RedipruneError: the bundle or backend cannot be used.
        """
        opened = Bundle.open(bundle, verify)
        manifest = opened.manifest
        _check_limits(threads, cache_bytes)
        choices = choose_backends(opened, backend, eager)
        backends = {stage: choice.backend for stage, choice in choices.items()}
        check_memory(
            f"'{bundle}' in {manifest.precision}",
            sum(spec.weight_bytes for name, spec in manifest.stages.items() if backends[name] == "ort"),
            "quantise the bundle (rediprune calibrate --help)",
        )
        reasons = {stage: choice.reason for stage, choice in choices.items()}
        prefetch = () if lazy else prefetch_order(opened, backends)
        return cls(opened, backends, threads, cache_bytes, prefetch, limits, reasons)

    @overload
    def stage(  # pyright: ignore[reportOverlappingOverload]  # a str may be "language": then it is the first
        self, name: Literal["language"]
    ) -> LanguageSession: ...

    @overload
    def stage(self, name: str) -> StageSession: ...

    def stage(self, name: str) -> StageSession | LanguageSession:
        """The session of a stage, opened if it is not yet; the one that replaces it, within `replaced`."""
        sessions = self._request_sessions()
        return sessions.language if name == "language" else sessions.stage(name)

    @contextmanager
    def replaced(self, **sessions: StageSession | LanguageSession) -> Iterator[None]:
        """Run requests on other sessions of some stages: `with pipeline.replaced(select=session):`.

        For whoever measures, observes or tries out a stage. It holds for all requests that begin within the block, in
        whichever thread; those that run already keep the sessions they began with. Blocks may be nested: the innermost
        counts. Features of a replaced vision stage are remembered for the block alone.

        Args:
            sessions: by stage; a `LanguageSession` for `language`, a `StageSession` for any other.

        Raises:
            RedipruneError: the bundle has no such stage.
        """
        check_stages(sessions, self.backends)
        towers = {modality.stage for modality in self.bundle.manifest.modalities.values()}
        replacement = _Replacement(sessions, FeatureCache(self.cache.limit) if towers & set(sessions) else None)
        with self._lock:
            self._replacements += (replacement,)
        try:
            yield
        finally:
            with self._lock:
                self._replacements = tuple(each for each in self._replacements if each is not replacement)

    @cached_property
    def newline(self) -> np.ndarray | None:
        """The embedding [D] that ends a row of tiles, where the family has one."""
        path = self.bundle.manifest.newline
        return None if path is None else np.load(self.bundle.path(path))

    def generate(
        self,
        prompt: Prompt,
        images: Sequence[Any] = (),
        videos: Sequence[Any] = (),
        *,
        selection: SelectOptions | None = None,
        generation: GenerateOptions | None = None,
        return_visuals: bool = False,
        **keywords: Unpack[AnswerKeywords],
    ) -> Answer:
        """Answer a question. Takes what `stream` takes, and raises what it raises."""
        stream = self.stream(
            prompt,
            images,
            videos,
            selection=selection,
            generation=generation,
            return_visuals=return_visuals,
            **keywords,
        )
        for _ in stream:
            pass
        return stream.answer

    def stream(
        self,
        prompt: Prompt,
        images: Sequence[Any] = (),
        videos: Sequence[Any] = (),
        *,
        selection: SelectOptions | None = None,
        generation: GenerateOptions | None = None,
        return_visuals: bool = False,
        **keywords: Unpack[AnswerKeywords],
    ) -> Stream:
        """Answer a question piece by piece.

        Args:
            prompt: a question, or the messages of a dialogue (see `render_prompt`).
            images: paths, bytes, Pillow images or uint8 arrays [H,W,3], in the order of their placeholders.
            videos: paths or bytes, likewise.
            selection: which visual tokens are kept.
            generation: how the answer is generated.
            return_visuals: keep the images, videos and their features in `Answer.visuals`.
            keywords: any setting of `SelectOptions` and `GenerateOptions`, in place of that of the objects:
                `keep=0.15, max_new_tokens=32`.

        Raises:
            RedipruneError: a bad image, video, prompt or setting.
        """
        watch = Stopwatch()
        selection, generation = merge_keywords(selection, generation, keywords)
        clock, sessions = StageClock(), self._request_sessions()
        encoder = self._encoder(sessions, selection, clock)
        ready = self._prepare(encoder, prompt, images, videos, generation, None, return_visuals)
        tokens = decode(sessions, ready.prompt, ready.max_new_tokens, ready.sampling, clock)
        return Stream(ready.answer, tokens, ready.text, ready.stop_ids, ready.max_new_tokens, watch)

    def prepare(
        self,
        prompt: Prompt,
        images: Sequence[Any] = (),
        videos: Sequence[Any] = (),
        *,
        selection: SelectOptions | None = None,
        generation: GenerateOptions | None = None,
        question: Prompt | None = None,
        return_visuals: bool = False,
        pulse: Callable[[], object] = lambda: None,
    ) -> PreparedRequest:
        """Encode a request's prompt and leave the language stage to the caller, e.g. one that decodes many together.

        Args:
            prompt, images, videos, selection, generation, return_visuals: as `stream` takes them.
            question: a prompt whose question steers the selection in place of `prompt`'s own, such as the first turn of a
                dialogue: the kept tokens are then the first turn's, and so is the beginning of the prompt.
            pulse: called between frames and stages; an `AbandonedError` that it raises ends the work for which nobody
                waits any more.

        Raises:
            RedipruneError: what `stream` raises.
        """
        selection, generation = merge_keywords(selection, generation, {})
        sessions, clock = self._request_sessions(), StageClock()
        encoder = self._encoder(sessions, selection, clock, pulse)
        return self._prepare(encoder, prompt, images, videos, generation, question, return_visuals)

    def _prepare(
        self,
        encoder: PromptEncoder,
        prompt: Prompt,
        images: Sequence[Any],
        videos: Sequence[Any],
        generation: GenerateOptions,
        question: Prompt | None,
        return_visuals: bool,
    ) -> PreparedRequest:
        Sampling.from_config(self.processor.generation, (), **generation.sampling)  # refused before any work is done
        embedded = encoder.encode(prompt, images, videos, generation.chat, question)
        self._check_length(embedded, generation.max_new_tokens)
        answer = Answer(
            kept=[visual.kept for visual in embedded.visuals],
            timings=encoder.clock.seconds,
            prompt_tokens=embedded.text_tokens,
            visual_tokens=sum(visual.total for visual in embedded.visuals),
            kept_tokens=embedded.kept_tokens,
            encoded_frames=sum(visual.encoded for visual in embedded.visuals),
            warnings=embedded.warnings,
            visuals=embedded.visuals if return_visuals else [],
        )
        return self.prepared(embedded, generation, answer, encoder.clock.intervals)

    def prepared(
        self,
        prompt: PromptEmbeds,
        generation: GenerateOptions,
        answer: Answer,
        intervals: list[tuple[str, float, float]],
        unpruned: int | None = None,
    ) -> PreparedRequest:
        """A request whose prompt is encoded, here or by another process that has the same bundle.

        Args:
            prompt: encoded.
            generation: how the answer is generated.
            answer: with what is known before the first token.
            intervals: when the stages ran.
            unpruned: as `PreparedRequest` has it.

        Raises:
            RedipruneError: a bad setting.
        """
        text_of = (self._detokenizer(), self._token_bytes)
        return prepared_of(self.processor, text_of, prompt, generation, answer, intervals, unpruned)

    def select(
        self,
        prompt: Prompt,
        images: Sequence[Any] = (),
        videos: Sequence[Any] = (),
        *,
        selection: SelectOptions | None = None,
        chat: bool = True,
        **keywords: Unpack[SelectKeywords],
    ) -> list[Kept]:
        """The tokens that an answer would keep, without answering: `Answer.kept`.

        Takes what `stream` takes, and raises what it raises.
        """
        selection = replace(selection or SelectOptions(), **keywords)
        encoder = self._encoder(self._request_sessions(), selection, StageClock())
        embedded = encoder.encode(prompt, images, videos, chat)
        return [visual.kept for visual in embedded.visuals]

    def _request_sessions(self) -> RequestSessions:
        """What a request that begins now runs on."""
        replacements = self._replacements
        sessions = {stage: session for each in replacements for stage, session in each.sessions.items()}
        caches = [self.cache, *(each.cache for each in replacements if each.cache is not None)]
        return RequestSessions(self._sessions, sessions, caches[-1])

    def _encoder(
        self,
        sessions: RequestSessions,
        options: SelectOptions,
        clock: StageClock,
        pulse: Callable[[], object] = lambda: None,
    ) -> PromptEncoder:
        manifest = self.bundle.manifest
        selection = options.resolved(manifest.defaults, self.processor.frames, manifest.auto_keep)
        return PromptEncoder(
            manifest,
            self.processor,
            sessions,
            self.newline,
            selection,
            self.limits,
            clock,
            self.prefill_time,
            pulse,
        )

    def _check_length(self, prompt: PromptEmbeds, max_new_tokens: int) -> None:
        limit = self.bundle.manifest.decoder.max_positions
        if prompt.end + max_new_tokens > limit:
            dropped = " (positions 'original' count what was dropped too: 'compact' takes fewer)"
            raise RedipruneError(
                f"the prompt takes {prompt.end} of the model's {limit} positions and the answer up to {max_new_tokens}; lower "
                f"keep, frames or max_new_tokens, or shorten the prompt{dropped if prompt.positions else ''}"
            )


def _own_placeholders(bundle: Bundle) -> dict[str, int]:
    """Placeholder ids by kind; where images and a video's frames share one, it is the images'."""
    found = {spec.placeholder: kind for kind, spec in reversed(bundle.manifest.modalities.items())}
    return {kind: token for token, kind in found.items()}


def _check_limits(threads: int, cache_bytes: int) -> None:
    most = 4 * (os.cpu_count() or 1)
    if threads > most:
        raise RedipruneError(
            f"threads must be at most {most} on this machine, not {threads}; 0 leaves it to the backend"
        )
    if threads < 0 or cache_bytes < 0:
        raise RedipruneError("threads and cache_bytes must be 0 or more")
