"""A bundle that answers: images and a question in, text out.

pixels → features → indices → kept → projected → spliced → prefill → decode, one after another.
"""

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..graphs.selection.counts import check_weights, num_kept, query_ids
from .backends.arrays import Array, concatenate, take
from .backends.session import BACKENDS, LanguageSession, StageSession, open_session, runs_on
from .bundle import Bundle
from .errors import RedipruneError
from .generate import Sampling, Stopping
from .media.preprocess import Processor, image_key, load_image, load_video
from .media.video import stand_ins
from .memory import check_memory, peak_memory
from .prompt import Prompt, check_placeholders, render_prompt
from .visual_tokens import FeatureCache, Visual, splice

DEFAULT_FRAMES = 8
_ON_CPU = ("ort", "openvino", "openvino-bf16")  # what a GPU loads stays with the thread that runs it


@dataclass
class Answer:
    """An answer and what it took.

    Attributes:
        text: the answer, without special tokens and leading space, up to a stop string.
        token_ids: generated ids, the stop token included.
        kept: for each image or video [F, K] indices of the kept tokens.
        timings: seconds: preprocess, vision, select, project, embed, prefill, time_to_first_token, decode, total.
        prompt_tokens: text tokens of the prompt.
        visual_tokens, kept_tokens: visual tokens before and after pruning.
        encoded_frames: pictures, tiles and frames that went through the vision tower; others were known.
        finish_reason: "stop" (stop token or string) or "length".
        peak_memory: bytes, the process's largest resident size so far.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    kept: list[np.ndarray] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    prompt_tokens: int = 0
    visual_tokens: int = 0
    kept_tokens: int = 0
    encoded_frames: int = 0
    finish_reason: str = "length"
    peak_memory: int = 0
    visuals: list[Visual] = field(default_factory=list, repr=False)

    @property
    def tokens_per_second(self) -> float:
        """Decoded tokens per second, the first not counted (it comes from the prefill)."""
        return (len(self.token_ids) - 1) / self.timings["decode"] if self.timings.get("decode") else 0.0


class Stream:
    """Text pieces of an answer as they come; `answer` is complete once they are exhausted."""

    def __init__(self, pieces: Iterator[str], answer: Answer):
        self._pieces = pieces
        self.answer = answer

    def __iter__(self) -> Iterator[str]:
        return self._pieces


class Pipeline:
    """Loaded stages of a bundle; `Pipeline.load` makes one.

    Stages are loaded when first needed, but for those on a CPU: they are opened in threads while the processor's
    libraries are imported, which takes as long.
    """

    def __init__(self, bundle: Bundle, backends: Mapping[str, str], threads: int, cache_bytes: int):
        self.bundle = bundle
        self.backends = backends
        self.threads = threads
        self.processor = Processor.load(bundle.path("processor"))
        self.cache = FeatureCache(cache_bytes)
        self.sessions: dict[str, StageSession] = {}
        self._ahead: dict[str, Future[Any]] = {}  # sessions that `load` has begun to open
        # Chooses [F,K] of features [F,P,C] in place of the select stage, to measure other rules (calibration.rules).
        self.chooser: Callable[[np.ndarray, int], np.ndarray] | None = None

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        backend: str | Mapping[str, str] = "ort",
        *,
        eager: Collection[str] = (),
        threads: int = 0,
        cache_bytes: int = 1 << 30,
        verify: bool = True,
        lazy: bool = False,
    ) -> "Pipeline":
        """Open a bundle.

        Args:
            bundle: folder.
            backend: what runs the stages: "ort" (ONNX Runtime on the CPU), "openvino" (`select` stays on "ort"),
                "openvino-bf16", "ort-cuda", "tensorrt", "tensorrt-rtx" or "eager" (PyTorch, the reference). A mapping gives
                each stage its own, `{"vision": "ort", "default": "tensorrt"}`; "default", itself "ort", is for stages
                not named.
            eager: stages to run in eager PyTorch instead, to find one that drifts.
            threads: for every stage; 0 leaves it to the backend.
            cache_bytes: bound of the feature cache.
            verify: compare the bundle's files with their hashes.
            lazy: load no stage sooner than it is needed, for one who may not need them all.

        Raises:
            RedipruneError: the bundle or backend cannot be used.
        """
        opened = Bundle.open(bundle, verify)
        stages = list(opened.manifest.stages)
        chosen = {"default": backend} if isinstance(backend, str) else {"default": "ort", **backend}
        unknown = sorted({*eager, *chosen} - {*stages, "default"})
        if unknown:
            raise RedipruneError(f"stage '{unknown[0]}' is not one of this bundle's: {', '.join(stages)}")
        for name in chosen.values():
            if name not in BACKENDS:
                raise RedipruneError(f"backend '{name}' is not known; choose one of: {', '.join(BACKENDS)}")
        made = opened.manifest.calibration
        for name in chosen.values():
            if made is not None and (refusal := made.refusal(name)) is not None:
                raise RedipruneError(refusal)
        most = 4 * (os.cpu_count() or 1)
        if threads > most:
            raise RedipruneError(
                f"threads must be at most {most} on this machine, not {threads}; 0 leaves it to the backend"
            )
        if threads < 0 or cache_bytes < 0:
            raise RedipruneError("threads and cache_bytes must be 0 or more")
        asked = {stage: "eager" if stage in eager else chosen.get(stage, chosen["default"]) for stage in stages}
        backends = {stage: runs_on(backend, stage) for stage, backend in asked.items()}
        check_memory(
            f"'{bundle}' in {opened.manifest.precision}",
            sum(spec.weight_bytes for name, spec in opened.manifest.stages.items() if backends[name] == "ort"),
            "quantise the bundle (rediprune calibrate --help)",
        )
        ahead = {} if lazy else _open_ahead(opened, backends, threads)
        try:
            pipeline = cls(opened, backends, threads, cache_bytes)
        except BaseException:
            for session in ahead.values():
                session.cancel()
            raise
        pipeline._ahead = ahead
        return pipeline

    def stage(self, name: str) -> StageSession:
        """The session of a stage other than `language`."""
        if name not in self.sessions:
            self.sessions[name] = self._open(name)
        return self.sessions[name]

    @cached_property
    def language(self) -> LanguageSession:
        return self._open("language")

    def _open(self, name: str) -> Any:
        begun = self._ahead.pop(name, None)
        return begun.result() if begun else open_session(self.backends[name], self.bundle, name, self.threads)

    @cached_property
    def newline(self) -> np.ndarray | None:
        """The embedding [D] that ends a row of tiles, where the family has one."""
        path = self.bundle.manifest.newline
        return None if path is None else np.load(self.bundle.path(path))

    def generate(
        self, prompt: Prompt, images: Sequence[Any] = (), videos: Sequence[Any] = (), **options: Any
    ) -> Answer:
        """Answer a question. Takes what `stream` takes."""
        stream = self.stream(prompt, images, videos, **options)
        for _ in stream:
            pass
        return stream.answer

    def stream(
        self,
        prompt: Prompt,
        images: Sequence[Any] = (),
        videos: Sequence[Any] = (),
        *,
        frames: int | None = None,
        keep: float | int | None = None,
        alpha: float | None = None,
        tau: float | None = None,
        frame_tolerance: float | None = None,
        prune_tiles: bool = False,
        max_new_tokens: int = 128,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        chat: bool = True,
    ) -> Stream:
        """Answer a question piece by piece.

        Args:
            prompt: a question, or the messages of a dialogue (see `render_prompt`).
            images: paths, bytes, Pillow images or uint8 arrays [H,W,3], in the order of their placeholders.
            videos: paths or bytes, likewise.
            frames: frames sampled from each video, evenly; None is the checkpoint's number, or 8.
            keep: float, the ratio of visual tokens kept in each frame, 1.0 for all; int, their number; None is the
                bundle's default.
            alpha: weight of relevance against diversity. tau: candidate filter, 0 is off.
            frame_tolerance: a video's frame takes the features of an earlier one where no part of it differs by more
                than this, in colour levels of 255 (`video.stand_ins`); 0 is for equal frames, None encodes every frame.
            prune_tiles: prune images that are seen in tiles too (the release does not; see algorithm.md).
            max_new_tokens: at most this many tokens.
            temperature, top_k, top_p, repetition_penalty, seed: sampling; None is the checkpoint's generation
                config, temperature 0 is greedy.
            stop: strings that end the answer, besides the generation config's.
            chat: put the question into the checkpoint's chat form; False takes the prompt as it is.

        Raises:
            RedipruneError: a bad image, video, prompt or setting.
        """
        started = time.perf_counter()
        if max_new_tokens < 1:
            raise RedipruneError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
        chosen = self._selection(frames, keep, alpha, tau, frame_tolerance)
        sampling = Sampling.from_config(
            self.processor.generation,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        stopping = Stopping(self.processor.generation, self.processor.tokenizer.eos_token_id, stop)
        answer = _new_answer()
        embeds, ids = self._prompt_embeds(prompt, images, videos, *chosen, prune_tiles, chat, answer)
        length = embeds.shape[0]
        limit = self.bundle.manifest.decoder.max_positions
        if length + max_new_tokens > limit:
            raise RedipruneError(
                f"the prompt takes {length} of the model's {limit} positions and the answer up to {max_new_tokens}; lower "
                "keep, frames or max_new_tokens, or shorten the prompt"
            )
        return Stream(self._decode(embeds, ids, max_new_tokens, sampling, stopping, answer, started), answer)

    def select(
        self,
        prompt: Prompt,
        images: Sequence[Any] = (),
        videos: Sequence[Any] = (),
        *,
        frames: int | None = None,
        keep: float | int | None = None,
        alpha: float | None = None,
        tau: float | None = None,
        frame_tolerance: float | None = None,
        prune_tiles: bool = False,
        chat: bool = True,
    ) -> list[np.ndarray]:
        """The tokens that an answer would keep, without answering: indices [F, K] for each image or video.

        Takes what `stream` takes, and raises what it raises.
        """
        answer = _new_answer()
        chosen = self._selection(frames, keep, alpha, tau, frame_tolerance)
        self._prompt_embeds(prompt, images, videos, *chosen, prune_tiles, chat, answer)
        return answer.kept

    def _selection(
        self,
        frames: int | None,
        keep: float | int | None,
        alpha: float | None,
        tau: float | None,
        frame_tolerance: float | None,
    ) -> tuple[int, float | int, float, float, float | None]:
        """The settings of a selection, checked; None is the bundle's default."""
        defaults = self.bundle.manifest.defaults
        keep = defaults.keep if keep is None else keep
        alpha = defaults.alpha if alpha is None else alpha
        tau = defaults.tau if tau is None else tau
        if frames is not None and frames < 1:
            raise RedipruneError(f"frames must be at least 1, not {frames}")
        if frame_tolerance is not None and not frame_tolerance >= 0:
            raise RedipruneError(f"frame_tolerance must be at least 0, not {frame_tolerance}")
        with _as_user_error():
            check_weights(alpha, tau)
            if not (isinstance(keep, int) and keep > 0):  # a count is held against each frame's tokens later
                num_kept(1, keep)
        return frames or self.processor.frames or DEFAULT_FRAMES, keep, alpha, tau, frame_tolerance

    def _prompt_embeds(
        self,
        prompt: Prompt,
        images: Sequence[Any],
        videos: Sequence[Any],
        frames: int,
        keep: float | int,
        alpha: float,
        tau: float,
        frame_tolerance: float | None,
        prune_tiles: bool,
        chat: bool,
        answer: Answer,
    ) -> tuple[Array, list[int]]:
        """The whole prompt as embeddings [S', D], and its token ids."""
        modalities = self.bundle.manifest.modalities
        for kind, given in (("image", images), ("video", videos)):
            if given and kind not in modalities:
                raise RedipruneError(
                    f"{self.bundle.manifest.family_name} answers about {' and '.join(modalities)}s only; "
                    f"give a {kind}'s frames as images, or use another checkpoint"
                )
        clock = _Clock(answer.timings)
        with clock("preprocess"):
            if chat:
                text = render_prompt(self.processor, prompt, len(images), len(videos))
            elif isinstance(prompt, str):
                check_placeholders(self.processor, prompt, len(images), len(videos))
                text = prompt
            else:
                raise RedipruneError("chat=False takes the prompt as one text, not as messages")
            ids = self.processor.encode(text)
        placeholders = {spec.placeholder: kind for kind, spec in modalities.items()}
        if not ids:
            raise RedipruneError("the prompt is empty; ask a question")
        question = query_ids(ids, placeholders)
        sources = {"image": iter(images), "video": iter(videos)}
        order = [placeholders[token] for token in ids if token in placeholders]
        visuals = [self._encode(kind, next(sources[kind]), frames, frame_tolerance, clock) for kind in order]

        plain = [0 if token in placeholders else token for token in ids]  # a placeholder's own embedding is not used
        with clock("embed"):
            embeds = self.stage("embed").run({"input_ids": np.array([plain])})["embeds"][0]
            tail = embeds[len(ids) - len(question) :]
            if not question:
                tail = np.zeros((1, embeds.shape[1]), embeds.dtype)
        spliced = []
        for visual in visuals:
            pruned = not visual.spec.tiled or prune_tiles
            with clock("select"):
                kept = self._select(visual, tail, keep if pruned else 1.0, alpha, tau)
            with clock("project"):
                projected = self.stage("project").run({"kept": kept})["visual_embeds"]
            tokens = visual.sequence(projected, self.newline)
            spliced.append((visual.spec.placeholder, tokens))
            answer.kept_tokens += tokens.shape[0]
            answer.visual_tokens += visual.total
        answer.kept = [visual.kept for visual in visuals]
        answer.visuals = visuals
        answer.encoded_frames = sum(visual.encoded for visual in visuals)
        answer.prompt_tokens = len(ids) - len(visuals)
        return splice(ids, embeds, spliced), ids

    def _encode(self, kind: str, source: Any, frames: int, tolerance: float | None, clock: "_Clock") -> Visual:
        """Features of an image or video, from the cache where it was seen before."""
        spec = self.bundle.manifest.modalities[kind]
        video = kind == "video"
        with clock("preprocess"):
            pictures = load_video(source, frames) if video else [load_image(source)]
            key = (f"{spec.stage}.{spec.output}.{kind}", "".join(image_key(picture) for picture in pictures))
            shown, rows = pictures, None  # of which features are made, and which of them each frame takes
            if video and tolerance is not None:
                apart, rows = np.unique(stand_ins(pictures, tolerance), return_inverse=True)
                shown, key = [pictures[at] for at in apart], (key[0], f"{key[1]} {tolerance}")
        features, encoded = self.cache.get(key), 0
        if features is None:
            with clock("preprocess"):
                pixels = self.processor.pixel_values(shown, video)
            with clock("vision"):
                session = self.stage(spec.stage)
                step, encoded = session.batch, len(pixels)
                features = concatenate(
                    [
                        session.run({"pixel_values": pixels[at : at + step]})[spec.output]
                        for at in range(0, len(pixels), step)
                    ]
                )
                features = features if rows is None else take(features, rows)
            self.cache.put(key, features)
        layout = self.processor.layout(pictures[0]) if spec.tiled else None
        everything = np.tile(np.arange(features.shape[1]), (features.shape[0], 1))
        return Visual(kind, pictures, spec, features, layout, everything, encoded)

    def _select(self, visual: Visual, question: Array, keep: float | int, alpha: float, tau: float) -> Array:
        """Prune a visual: sets its `kept` and returns the kept features [F,K,C]."""
        patches = visual.features.shape[1]
        with _as_user_error():
            count = num_kept(patches, keep)
        if count == patches:
            return visual.features
        if self.chooser is not None:
            features = np.asarray(visual.features)
            visual.kept = self.chooser(features, count)
            return np.take_along_axis(features, visual.kept[:, :, None], axis=1)
        outputs = self.stage("select").run(
            {
                "features": visual.features,
                "text_embeds": question,
                "num_keep": np.array(count),
                "alpha": np.array(alpha),
                "tau": np.array(tau),
            }
        )
        visual.kept = np.asarray(outputs["indices"])
        return outputs["kept"]

    def _decode(
        self,
        embeds: Array,
        ids: list[int],
        max_new_tokens: int,
        sampling: Sampling,
        stopping: Stopping,
        answer: Answer,
        started: float,
    ) -> Iterator[str]:
        """Prefill, then token after token; yields text as soon as it is certain."""
        clock = _Clock(answer.timings)
        random = np.random.default_rng(sampling.seed)
        decoding = self.language.start(embeds.shape[0] + max_new_tokens)
        with clock("prefill"):
            logits = decoding.step(embeds.reshape(1, *embeds.shape))
        shown = 0
        first = time.perf_counter()
        while True:
            token = sampling.choose(logits, [*ids, *answer.token_ids], random)
            answer.token_ids.append(token)
            if len(answer.token_ids) == 1:
                first = time.perf_counter()
                answer.timings["time_to_first_token"] = first - started
            ended = token in stopping.ids
            text = self.processor.decode(answer.token_ids).lstrip()
            cut = stopping.cut(text)
            last = ended or cut is not None or len(answer.token_ids) == max_new_tokens
            answer.text = text if cut is None else cut
            certain = len(answer.text) if last else len(text) - max(stopping.held_back(text), _unfinished(text))
            if certain > shown:
                yield answer.text[shown:certain]
                shown = certain
            if last:
                break
            embedded = self.stage("embed").run({"input_ids": np.array([[token]])})["embeds"]
            logits = decoding.step(embedded)
        now = time.perf_counter()
        answer.finish_reason = "stop" if ended or cut is not None else "length"
        answer.timings["decode"] = now - first
        answer.timings["total"] = now - started
        answer.peak_memory = peak_memory()


def _open_ahead(bundle: Bundle, backends: Mapping[str, str], threads: int) -> dict[str, Future[Any]]:
    """Begin to open the CPU's stages, the large ones first: all but the towers of a family that has several."""
    towers = {modality.stage for modality in bundle.manifest.modalities.values()}
    wanted = [stage for stage in bundle.manifest.stages if stage not in towers or len(towers) == 1]
    wanted.sort(key=lambda stage: -bundle.manifest.stages[stage].weight_bytes)
    pool = ThreadPoolExecutor(2)  # one works while the other waits for the disk
    begun = {
        stage: pool.submit(open_session, backends[stage], bundle, stage, threads)
        for stage in wanted
        if backends[stage] in _ON_CPU
    }
    pool.shutdown(wait=False)
    return begun


def _new_answer() -> Answer:
    return Answer(timings=dict.fromkeys(("preprocess", "vision", "select", "project", "embed", "prefill"), 0.0))


class _Clock:
    """Adds what a block takes to the entry of its name."""

    def __init__(self, timings: dict[str, float]):
        self.timings = timings

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.timings[name] += time.perf_counter() - begin


@contextmanager
def _as_user_error() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise RedipruneError(str(error)) from error


def _unfinished(text: str) -> int:
    """How many characters at the end are not whole yet: one that takes several tokens decodes to U+FFFD meanwhile."""
    return len(text) - len(text.rstrip("\ufffd"))
