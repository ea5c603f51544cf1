"""Accuracy against kept tokens: a bundle's answers to a set of questions, per keep ratio and selection rule."""

import hashlib
import json
import os
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...runtime.bundle import Bundle
from ...runtime.errors import RedipruneError
from ...runtime.media.preprocess import load_image, load_video
from ...runtime.media.video import stand_ins
from ...runtime.pipeline import Pipeline
from .selection_rules import RULES, using_rule

_FORMAT = 2  # of a stored reply
POOLED_KEEP = 0.25  # what 2 × 2 pooling keeps; it has no other ratio


@dataclass(frozen=True)
class Question:
    """One line of a dataset: {"image" or "video": path, "question", "answer", "kind"}; paths are relative to the file."""

    media: Path
    video: bool
    question: str
    answer: str
    kind: str


@dataclass(frozen=True)
class Reply:
    """What a bundle said to one question, and what it took."""

    answer: str
    right: bool
    kept_tokens: int
    visual_tokens: int  # before pruning
    first_token: float  # seconds, as for a picture that was not seen before: preprocessing and vision count
    prefill_macs: float  # multiply-adds
    token_ids: list[int] = field(default_factory=list)


@dataclass
class Score:
    """The replies of a bundle to a set of questions, with one backend, rule and keep ratio."""

    data: str  # name of the set
    backend: str
    rule: str
    keep: float
    kinds: list[str]  # of the questions
    replies: list[Reply] = field(repr=False)

    @property
    def asked(self) -> dict[str, int]:
        """Number of questions by kind."""
        return dict(Counter(self.kinds))

    @property
    def right(self) -> dict[str, int]:
        """Number of right answers by kind."""
        return {
            kind: sum(r.right for r, k in zip(self.replies, self.kinds, strict=True) if k == kind)
            for kind in self.asked
        }

    @property
    def accuracy(self) -> float:
        return statistics.fmean(reply.right for reply in self.replies)

    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the accuracy (Wilson)."""
        return wilson(sum(reply.right for reply in self.replies), len(self.replies))

    @property
    def visual_tokens(self) -> float:
        """Mean after pruning."""
        return statistics.fmean(reply.kept_tokens for reply in self.replies)

    @property
    def all_tokens(self) -> float:
        """Mean before pruning."""
        return statistics.fmean(reply.visual_tokens for reply in self.replies)

    @property
    def first_token(self) -> float:
        """Median, seconds."""
        return statistics.median(reply.first_token for reply in self.replies)

    @property
    def prefill_macs(self) -> float:
        """Mean."""
        return statistics.fmean(reply.prefill_macs for reply in self.replies)

    def same_answers(self, other: "Score") -> int:
        """How many questions two scores of the same set answer alike, word for word."""
        return sum(a.answer == b.answer for a, b in zip(self.replies, other.replies, strict=True))

    def same_ids(self, other: "Score") -> float:
        """Share of an answer's token ids before it first differs from another score's, the mean over all questions."""
        shares = []
        for a, b in zip(self.replies, other.replies, strict=True):
            shares.append(tokens_alike(a.token_ids, b.token_ids) / max(len(a.token_ids), len(b.token_ids), 1))
        return statistics.fmean(shares)

    def document(self) -> dict[str, Any]:
        numbers = ("right", "asked", "accuracy", "visual_tokens", "all_tokens", "first_token", "prefill_macs")
        named = {"data": self.data, "backend": self.backend, "rule": self.rule, "keep": self.keep}
        return named | {name: getattr(self, name) for name in numbers} | {"interval": self.interval()}


def tokens_alike(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many token ids two answers begin with alike."""
    pairs = zip(ours, theirs, strict=False)
    return next((at for at, (our, their) in enumerate(pairs) if our != their), min(len(ours), len(theirs)))


def wilson(right: int, asked: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval of a proportion."""
    share = right / asked
    centre = share + z * z / (2 * asked)
    spread = z * (share * (1 - share) / asked + z * z / (4 * asked * asked)) ** 0.5
    scale = 1 + z * z / asked
    return (centre - spread) / scale, (centre + spread) / scale


def read_questions(path: str | Path, look: bool = True) -> list[Question]:
    """Read and check a dataset before anything is asked.

    Args:
        path: a JSONL file.
        look: open every image and video too.

    Raises:
        RedipruneError: no such file, a line that is no JSON object, has no image or video, no question or an empty
            answer, or names a file that is not there or cannot be read; the message names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise RedipruneError(f"there is no dataset '{path}'; give a JSONL file of {{image or video, question, answer}}")
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows writes a byte order mark
    except UnicodeDecodeError as error:
        raise RedipruneError(f"dataset '{path}' is no text; give a JSONL file") from error
    questions = []
    seen: set[Path] = set()
    for number, line in enumerate(text.split("\n"), start=1):  # JSON may hold U+2028, where `splitlines` would cut
        if not line.strip():
            continue

        def wrong(what: str, number: int = number) -> RedipruneError:
            return RedipruneError(f"line {number} of '{path}' {what}; mend or remove it")

        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise wrong("is no JSON") from error
        if not isinstance(entry, dict):
            raise wrong("is no JSON object")
        kinds = [kind for kind in ("image", "video") if entry.get(kind)]
        if len(kinds) != 1:
            raise wrong("needs an image or a video" if not kinds else "has both an image and a video")
        if not isinstance(entry[kinds[0]], str):
            raise wrong(f"needs the path of its {kinds[0]} as a text")
        for name in ("question", "answer"):
            if not str(entry.get(name) or "").strip():
                raise wrong(f"has no {name}")
        media = path.parent / entry[kinds[0]]
        if not os.path.isfile(media):  # `Path.is_file` fails on names that are too long
            raise wrong(f"names '{entry[kinds[0]]}', which is not there")
        if look and media not in seen:
            seen.add(media)
            try:
                load_video(media, 1) if kinds == ["video"] else load_image(media)
            except RedipruneError as error:
                raise wrong(f"cannot be asked: {error}") from error
        questions.append(
            Question(
                media, kinds[0] == "video", str(entry["question"]), str(entry["answer"]), str(entry.get("kind", "all"))
            )
        )
    if not questions:
        raise RedipruneError(f"dataset '{path}' is empty")
    return questions


def check_disjoint(test: Sequence[Question], train: Sequence[Question]) -> None:
    """Refuse questions that are in the training set too: the same picture content with the same question.

    Raises:
        RedipruneError: naming the first and how many there are.
    """
    seen = {(_content(q.media), q.question) for q in train}
    both = [q for q in test if (_content(q.media), q.question) in seen]
    if both:
        raise RedipruneError(
            f"{len(both)} of {len(test)} questions are in the training set too, the first about '{both[0].media.name}'; "
            "remove them from one of the sets"
        )


def _content(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def evaluate(
    folder: str | Path,
    questions: Sequence[Question],
    keeps: Sequence[float],
    rules: Sequence[str] = ("rediprune",),
    backend: str = "ort",
    out: Path | None = None,
    frames: int = 8,
    seed: int = 0,
    threads: int = 0,
    max_new_tokens: int = 16,
    progress: Callable[[str, int, int], None] | None = None,
    data: str = "",
    frame_tolerance: float | None = None,
) -> list[Score]:
    """Ask every question at every keep ratio with every rule.

    Args:
        folder: the bundle.
        questions: from `read_questions`.
        keeps: keep ratios.
        rules: of `RULES`. "pool2x2" is asked once, at its own ratio; at keep 1 the other rules are the same and asked
            once, as "rediprune".
        backend: what runs the stages.
        out: a JSONL file that each reply is appended to as it comes; those it holds already are not asked for again.
        frames: frames of a video; a family without videos is shown them as images.
        seed: of the random rule.
        threads: for every stage; 0 leaves it to the backend.
        max_new_tokens: longest answer.
        progress: told label, question number and number of questions.
        data: name of the questions.
        frame_tolerance: of a video, as `Pipeline.stream` takes it; frames shown as images are replaced by the earlier
            ones that stand in for them.

    Raises:
        RedipruneError: an unusable bundle, rule or picture.
    """
    unknown = sorted(set(rules) - set(RULES))
    if unknown:
        raise RedipruneError(f"rule '{unknown[0]}' is not known; choose of: {', '.join(RULES)}")
    bundle = Bundle.open(folder)
    pipeline = Pipeline.load(folder, backend, threads=threads, cache_bytes=4 << 30)
    macs = _prefill_macs(bundle)
    settings = (backend, frames, seed, max_new_tokens) + (() if frame_tolerance is None else (frame_tolerance,))
    key = _key(bundle, questions, *settings)
    known = _known(out, key)
    media: dict[Path, tuple[list[Any], list[Any]]] = {}  # images, videos
    first_sight: dict[Path, float] = {}  # seconds of preprocessing and vision
    scores = []
    for rule, keep in _runs(rules, keeps):
        replies = []
        for at, question in enumerate(questions):
            if progress is not None:
                progress(f"{data} {backend} {rule}, keep {keep:g}", at, len(questions))
            if (rule, keep, at) in known:
                replies.append(known[rule, keep, at])
                continue
            if question.media not in media:
                media[question.media] = media_of(question, bundle, frames, frame_tolerance)
            images, videos = media[question.media]
            with using_rule(pipeline, rule, (seed, at)) as alpha:
                answer = pipeline.generate(
                    question.question,
                    images,
                    videos,
                    frames=frames,
                    frame_tolerance=frame_tolerance,
                    keep=1.0 if rule == "pool2x2" else float(keep),
                    alpha=alpha,
                    max_new_tokens=max_new_tokens,
                    temperature=0.0,
                )
            seeing = answer.timings["preprocess"] + answer.timings["vision"]
            first_token = answer.timings["time_to_first_token"] - seeing
            reply = Reply(
                answer.text,
                is_right(answer.text, question.answer),
                answer.kept_tokens,
                answer.visual_tokens,
                first_token + first_sight.setdefault(question.media, seeing),
                macs(answer.prompt_tokens + answer.kept_tokens),
                answer.token_ids,
            )
            replies.append(reply)
            if out is not None:
                line = {"key": key, "rule": rule, "keep": keep, "at": at, "reply": asdict(reply)}
                with open(out, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
        scores.append(Score(data, backend, rule, keep, [q.kind for q in questions], replies))
    return scores


def media_of(
    question: Question, bundle: Bundle, frames: int, frame_tolerance: float | None = None
) -> tuple[list[Any], list[Any]]:
    """What a question is about, as images and videos; a family without videos is shown the frames, or their stand-ins."""
    if question.video and "video" in bundle.manifest.modalities:
        return [], [question.media]
    if not question.video:
        return [load_image(question.media)], []
    pictures = load_video(question.media, frames)
    if frame_tolerance is not None:
        pictures = [pictures[at] for at in stand_ins(pictures, frame_tolerance)]
    return list(pictures), []


def is_right(answer: str, expected: str) -> bool:
    """Whether an answer is the expected one, up to case, outer space and a closing full stop."""
    return answer.strip().rstrip(".").strip().casefold() == expected.strip().rstrip(".").strip().casefold()


def _runs(rules: Sequence[str], keeps: Sequence[float]) -> list[tuple[str, float]]:
    runs = []
    for rule in rules:
        if rule == "pool2x2":
            runs.append((rule, POOLED_KEEP))
        else:
            runs += [(rule, keep) for keep in keeps if keep < 1]
    return [("rediprune", 1.0)] * any(keep >= 1 for keep in keeps) + runs


def _prefill_macs(bundle: Bundle) -> Callable[[int], float]:
    """Multiply-adds of a prefill of n tokens: per layer projections, attention and a gated FFN."""
    text = json.loads(bundle.path("processor/config.json").read_text(encoding="utf-8"))["text_config"]
    decoder = bundle.manifest.decoder
    width, ffn = decoder.width, text.get("intermediate_size", 11008)
    heads = text.get("num_attention_heads", 32)
    projections = 2 * width * heads * decoder.head_width + 2 * width * decoder.kv_heads * decoder.head_width
    return lambda n: decoder.layers * (n * projections + 2 * n * n * heads * decoder.head_width + 3 * n * width * ffn)


def _key(bundle: Bundle, questions: Sequence[Question], *settings: object) -> str:
    """What a stored score depends on."""
    asked = [(q.media.name, q.media.stat().st_size, q.question, q.answer) for q in questions]
    stages = {name: stage.files for name, stage in bundle.manifest.stages.items()}
    return hashlib.sha256(json.dumps([_FORMAT, stages, asked, settings]).encode()).hexdigest()[:16]


def _known(out: Path | None, key: str) -> dict[tuple[str, float, int], Reply]:
    """The replies of an earlier call, by rule, keep and number of the question."""
    if out is None or not out.is_file():
        return {}
    try:
        text = out.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RedipruneError(f"'{out}' holds no replies of an earlier call; give --out another file") from error
    if text and not text.endswith("\n"):
        with open(out, "a", encoding="utf-8") as file:
            file.write("\n")  # what was broken off stays a line of its own
    known = {}
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # broken off while it was written
        if isinstance(entry, dict) and entry.get("key") == key and "reply" in entry:
            known[entry["rule"], entry["keep"], entry["at"]] = Reply(**entry["reply"])
    return known
