"""Points of accuracy that a bundle loses against the one it is made of, on questions with answers."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ...runtime.errors import RedipruneError
from ..budget import KEEPS
from ..data import BUILT_IN, HELD, choose
from ..tasks.drawn_task import QUESTIONS_EACH
from ..tasks.media_folder import write_set
from .evaluate import Question, evaluate, read_questions


def open_questions(data: Path | None, samples: int, count: int, seed: int, videos: bool, made: Path) -> list[Question]:
    """Questions to choose by.

    Args:
        data: a JSONL, of which those are taken first that were not calibrated with; None is the built-in task's
            validation split, which shares nothing with the one that accuracy is reported on.
        samples: as many are calibrated with.
        count: at most this many.
        seed: of the choice.
        videos: whether the family answers about videos.
        made: where the built-in set is written.
    """
    if data is None:
        media = -(-count // QUESTIONS_EACH)
        clips = media // 4 if videos else 0
        path = write_set(made / f"{BUILT_IN}-val-{seed}", "val", seed, media - clips, clips)
        return read_questions(path, look=False)[:count]
    questions = [question for question in read_questions(data) if videos or not question.video]
    order = choose(questions, len(questions), seed)
    shown = set(choose(questions, samples + HELD, seed))
    return sorted(order, key=lambda question: question in shown)[:count]


class Exam:
    """The source's score, and those of bundles made of it."""

    def __init__(
        self,
        source: Path,
        questions: Sequence[Question],
        replies: Path,
        progress: Callable[[str, int, int], None] | None = None,
    ):
        """Ask the source.

        Args:
            source: its folder.
            questions: with answers.
            replies: a file that keeps what was answered, for a rerun to go on from.
            progress: told label, question number and number of questions.

        Raises:
            RedipruneError: it answers none of the questions right: nothing could be lost.
        """
        self.questions, self.replies, self.progress = questions, replies, progress
        self.source = self._right(source)
        if not any(self.source.values()):
            raise RedipruneError(
                f"'{source}' answers none of {len(questions)} questions right, so no accuracy can be lost; give questions "
                "it can answer with --data, or --budget error=0.02"
            )

    def points(self, folder: Path) -> dict[str, float]:
        """Keep ratio → points lost; less than 0 where there are more right answers."""
        ours = self._right(folder)
        return {keep: 100 * (self.source[keep] - ours[keep]) / len(self.questions) for keep in self.source}

    def lost(self, folder: Path) -> float:
        """Points lost at the ratio where most are."""
        return max(self.points(folder).values())

    def _right(self, folder: Path) -> dict[str, int]:
        scores = evaluate(folder, self.questions, KEEPS, out=self.replies, progress=self.progress)
        return {f"{score.keep:g}": sum(score.right.values()) for score in scores}
