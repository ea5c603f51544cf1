"""`keep="auto"`: the score below which a further token is not worth keeping, found on questions with answers.

The greedy choice of tokens then ends where the picture has nothing more to add, and not at a number given beforehand. The
threshold is the highest that loses no more answers than may be lost against keeping all tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ..runtime.backend_choice import AUTO
from ..runtime.bundle import SCOPES, AutoKeep
from ..runtime.bundle.auto_keep import Scope
from ..runtime.bundle.lock import changing
from ..runtime.errors import RedipruneError
from ..runtime.options import AUTO_KEEP
from ..runtime.pipeline import Pipeline
from .budget import ACCURACY, parse_budget
from .data import BUILT_IN
from .evaluation.question_dataset import Question, media_of, read_questions
from .progress_types import CountProgress, ignore_count
from .tasks.drawn_task import QUESTIONS_EACH
from .tasks.media_folder import write_set

_LEAST, _LARGEST = -1.0, 2.0  # below the one nothing ends, as a distance is at least 0; above the other everything does
_STEPS = 9  # of the bisection: to 0.006 of a score
_FRAMES = 8
_CACHE_BYTES = 4 << 30
_MAX_NEW_TOKENS = 16


@dataclass(frozen=True)
class KeepAutoSettings:
    """How the threshold is found.

    Attributes:
        points: percentage points of correct answers that may be lost against keeping all tokens.
        most: the largest ratio of tokens that is ever kept.
        data: a JSONL of questions; None is the built-in task, on its validation split.
        questions: at most so many are asked.
        seed: of their choice.
        backend: what runs the stages.
        threads: for every stage; 0 leaves it to the backend.
    """

    points: float
    most: float = 0.5
    data: Path | None = None
    questions: int = 200
    seed: int = 0
    backend: str = AUTO
    threads: int = 0


def parse_keep_auto(text: str) -> float:
    """Read "accuracy=1": points.

    Raises:
        RedipruneError: anything else.
    """
    budget = parse_budget(text)
    if budget.kind != ACCURACY:
        raise RedipruneError(f"--keep-auto takes accuracy=POINTS, e.g. accuracy=1, not '{text}'")
    return budget.limit


def calibrate_keep_auto(
    folder: str | Path, settings: KeepAutoSettings, progress: CountProgress | None = None
) -> AutoKeep:
    """Find a threshold for each scope and record them in the bundle's manifest.

    Args:
        folder: the bundle.
        settings: how.
        progress: told what is asked.

    Raises:
        RedipruneError: the bundle has no stage for it, or answers nothing correctly; or bad data.
    """
    with changing(folder) as bundle, TemporaryDirectory() as made:
        if not bundle.manifest.selects_clips:
            raise RedipruneError(f"'{folder}' is of an earlier version; export the checkpoint again, with --force")
        if settings.data is None:
            media = -(-settings.questions // QUESTIONS_EACH)
            path = write_set(Path(made), "val", settings.seed, media - media // 4, media // 4)
            questions = read_questions(path, look=False)[-settings.questions :]
        else:
            questions = read_questions(settings.data)[: settings.questions]
        found = _Asker(folder, questions, settings, progress or ignore_count).find()
        bundle.manifest.auto_keep = found
        bundle.write_manifest()
    return found


class _Asker:
    """Asks all questions at one threshold after another."""

    def __init__(
        self, folder: str | Path, questions: Sequence[Question], settings: KeepAutoSettings, progress: CountProgress
    ):
        self.settings, self.progress = settings, progress
        self.pipeline = Pipeline.load(
            folder, settings.backend, threads=settings.threads, cache_bytes=_CACHE_BYTES, verify=False
        )
        self.asked = [(question, media_of(question, self.pipeline.bundle, _FRAMES)) for question in questions]

    def find(self) -> AutoKeep:
        """The thresholds, with what they cost; none of a scope in which even the most tokens lose too much.

        Raises:
            RedipruneError: no question is answered correctly, or no scope has a threshold.
        """
        whole, _ = self._ask(1.0, "frame", "all tokens")
        if not whole:
            raise RedipruneError(
                f"the bundle answers none of {len(self.asked)} questions right, so that nothing could be lost; give questions "
                "it can answer with --data"
            )
        found = AutoKeep(
            thresholds={},
            most=self.settings.most,
            budget=self.settings.points,
            accuracy={},
            baseline={},
            tokens={},
            questions=len(self.asked),
            data=BUILT_IN if self.settings.data is None else self.settings.data.name,
        )
        least = whole - self.settings.points * len(self.asked) / 100
        for scope in SCOPES:
            low, high = _LEAST, _LARGEST
            best = self._at(found, scope, low)
            if best[0] < least:  # so many tokens are too few in this scope, wherever the choice ends
                del found.thresholds[scope]
                continue
            for _ in range(_STEPS):
                middle = (low + high) / 2
                right, tokens = self._at(found, scope, middle)
                if right >= least:
                    low, best = middle, (right, tokens)
                else:
                    high = middle
            found.thresholds[scope] = low
            found.accuracy[scope], found.tokens[scope] = 100 * best[0] / len(self.asked), best[1]
            found.baseline[scope] = 100 * whole / len(self.asked)
        if not found.thresholds:
            raise RedipruneError(
                f"with {self.settings.most:.3g} of the tokens more than {self.settings.points:g} points are lost already; allow more "
                "tokens with --most, or a larger loss"
            )
        return found

    def _at(self, found: AutoKeep, scope: Scope, threshold: float) -> tuple[int, float]:
        """Correct answers, and ratio of tokens kept, with a threshold."""
        found.thresholds[scope] = threshold
        self.pipeline.bundle.manifest.auto_keep = found
        return self._ask(AUTO_KEEP, scope, f"scope {scope}, threshold {threshold:.3f}")

    def _ask(self, keep: float | str, scope: Scope, what: str) -> tuple[int, float]:
        right, kept, total = 0, 0, 0
        for number, (question, (images, videos)) in enumerate(self.asked):
            self.progress(what, number, len(self.asked))
            answer = self.pipeline.generate(
                question.question,
                images,
                videos,
                frames=_FRAMES,
                keep=keep,
                scope=scope,
                max_new_tokens=_MAX_NEW_TOKENS,
                temperature=0.0,
            )
            right += question.is_correct(answer.text)
            kept, total = kept + answer.kept_tokens, total + answer.visual_tokens
        return right, kept / total
