"""Accuracy against kept tokens: a bundle's answers to a set of questions, per keep ratio and selection rule."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...runtime.backend_choice import AUTO
from ...runtime.bundle import Bundle
from ...runtime.errors import RedipruneError
from ...runtime.options import SelectOptions
from ...runtime.pipeline import Pipeline
from ..progress_types import CountProgress, ignore_count
from .question_dataset import Question, media_of
from .reply_store import ReplyStore, replies_key
from .scores import Reply, Score
from .selection_rules import ONE_KEEP, RULES, using_rule

POOLED_KEEP = 0.25  # what 2 × 2 pooling keeps; it has no other ratio
AUTO_AT = 0.0  # in place of a ratio, where the bundle decides it
_CACHE_BYTES = 4 << 30  # of features: every rule and keep ratio asks about the same images


@dataclass(frozen=True)
class EvaluationOptions:
    """How questions are asked.

    Attributes:
        backend: what runs the stages.
        frames: frames of a video; a family without videos is shown them as images.
        frame_tolerance: of a video, as `Pipeline.generate` takes it; frames shown as images are replaced by earlier ones
            that differ by no more. None encodes every frame.
        seed: of the random rule.
        threads: for every stage; 0 leaves it to the backend.
        max_new_tokens: the longest answer.
        positions: of kept tokens, as `Pipeline.generate` takes them.
    """

    backend: str = AUTO
    frames: int = 8
    frame_tolerance: float | None = None
    seed: int = 0
    threads: int = 0
    max_new_tokens: int = 16
    positions: str | None = None


def evaluate(
    folder: str | Path,
    questions: Sequence[Question],
    keep_ratios: Sequence[float],
    rules: Sequence[str] = ("rediprune",),
    options: EvaluationOptions | None = None,
    *,
    data: str = "",
    out: Path | None = None,
    progress: CountProgress | None = None,
) -> list[Score]:
    """Ask every question at every keep ratio with every rule; answers are greedy.

    Args:
        folder: the bundle.
        questions: from `read_questions`.
        keep_ratios: in (0, 1].
        rules: of `RULES`. "pool2x2" is asked once, at its own ratio, and "auto" without one; at keep 1 the other rules are the same and asked
            once, as "rediprune".
        options: how they are asked.
        data: name of the questions.
        out: a JSONL file that each reply is appended to as it comes; those it holds already are not asked for again.
        progress: told what is asked.

    Returns:
        A score for each rule and keep ratio.

    Raises:
        RedipruneError: an unusable bundle, rule or image.
    """
    options = options or EvaluationOptions()
    say = progress or ignore_count
    unknown = sorted(set(rules) - set(RULES))
    if unknown:
        raise RedipruneError(f"rule '{unknown[0]}' is not known; choose of: {', '.join(RULES)}")
    bundle = Bundle.open(folder)
    pipeline = Pipeline.load(folder, options.backend, threads=options.threads, cache_bytes=_CACHE_BYTES)
    asker = _Asker(bundle, pipeline, options)
    store = ReplyStore(out, replies_key(bundle, questions, pipeline.backends, asdict(options)))
    scores = []
    with closing(asker):
        for rule, keep in _runs(rules, keep_ratios):
            replies = []
            for number, question in enumerate(questions):
                say(f"{data} {options.backend} {rule}, keep {keep:g}", number, len(questions))
                reply = store.get(rule, keep, number)
                if reply is None:
                    reply = asker.ask(question, number, rule, keep)
                    store.add(rule, keep, number, reply)
                replies.append(reply)
            scores.append(Score(data, options.backend, rule, keep, [q.kind for q in questions], replies))
    return scores


class _Asker:
    """Asks questions one by one; an image that was seen before is neither read nor encoded again."""

    def __init__(self, bundle: Bundle, pipeline: Pipeline, options: EvaluationOptions):
        self.bundle, self.pipeline, self.options = bundle, pipeline, options
        self.macs = _prefill_macs(bundle)
        self.media: dict[Path, tuple[list[Any], list[Any]]] = {}  # images, videos
        self.first_sight: dict[tuple[Path, str, float], float] = {}  # seconds of preprocessing and vision
        self._leave, self._settings = ExitStack(), {}
        self._rule: tuple[str, float, int] | None = None

    def ask(self, question: Question, number: int, rule: str, keep: float) -> Reply:
        """Answer a question; its number is part of the random rule's seed."""
        options = self.options
        if question.media not in self.media:
            self.media[question.media] = media_of(question, self.bundle, options.frames, options.frame_tolerance)
        images, videos = self.media[question.media]
        asked = SelectOptions(
            frames=options.frames,
            frame_tolerance=options.frame_tolerance,
            keep=float(keep) or None,  # none where the rule says it
            positions=options.positions,
        )
        with self._using(rule, number, keep) as settings:
            answer = self.pipeline.generate(
                question.question,
                images,
                videos,
                selection=replace(asked, **settings),
                max_new_tokens=options.max_new_tokens,
                temperature=0.0,
            )
        seeing = answer.timings["preprocess"] + answer.timings["vision"]
        first_token = answer.timings["time_to_first_token"] - seeing
        # What a rule sees by a tower of its own takes its own time.
        place = (question.media, rule, keep) if rule == "downsample" else (question.media, "", 0.0)
        return Reply(
            answer.text,
            question.is_correct(answer.text),
            answer.kept_tokens,
            answer.visual_tokens,
            first_token + self.first_sight.setdefault(place, seeing),
            self.macs(answer.prompt_tokens + answer.kept_tokens),
            answer.token_ids,
            answer.timings["select"],
        )

    @contextmanager
    def _using(self, rule: str, number: int, keep: float) -> Iterator[dict[str, Any]]:
        """A rule, kept in place as long as it is the same: one that runs a tower remembers the pictures it saw."""
        key = (rule, keep, number if rule == "random" else 0)
        if self._rule != key:
            self._leave.close()
            self._settings = self._leave.enter_context(
                using_rule(self.pipeline, rule, (self.options.seed, number), keep)
            )
            self._rule = key
        yield self._settings

    def close(self) -> None:
        self._leave.close()


def _runs(rules: Sequence[str], keep_ratios: Sequence[float]) -> list[tuple[str, float]]:
    """Which rule is asked at which keep ratio."""
    runs = []
    for rule in rules:
        if rule in ONE_KEEP:
            runs.append((rule, POOLED_KEEP if rule == "pool2x2" else AUTO_AT))
        else:
            runs += [(rule, keep) for keep in keep_ratios if keep < 1]
    return [("rediprune", 1.0)] * any(keep >= 1 for keep in keep_ratios) + runs


def _prefill_macs(bundle: Bundle) -> Callable[[int], float]:
    """Number of tokens → multiply-adds of the decoder's prefill: projections, attention and a gated FFN per layer."""
    text = json.loads(bundle.path("processor/config.json").read_text(encoding="utf-8"))["text_config"]
    decoder = bundle.manifest.decoder
    width, ffn = decoder.width, text.get("intermediate_size", 11008)  # what transformers leaves out is Llama's own
    heads = text.get("num_attention_heads", 32)
    projections = 2 * width * heads * decoder.head_width + 2 * width * decoder.kv_heads * decoder.head_width
    return lambda n: decoder.layers * (n * projections + 2 * n * n * heads * decoder.head_width + 3 * n * width * ffn)
