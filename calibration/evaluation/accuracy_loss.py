"""Points of accuracy that a bundle loses against the baseline it is made of, on questions with answers."""

from collections.abc import Sequence
from pathlib import Path

from ...runtime.errors import RedipruneError
from ..budget import KEEP_RATIOS
from ..data import BUILT_IN, HELD_OUT, choose
from ..progress_types import CountProgress
from ..settings import CalibrationSettings
from ..tasks.drawn_task import QUESTIONS_EACH
from ..tasks.media_folder import write_set
from .evaluate import EvaluationOptions, evaluate
from .question_dataset import Question, read_questions


def select_questions(settings: CalibrationSettings, videos: bool, folder: Path) -> list[Question]:
    """Select the questions that a budget of accuracy is measured on.

    Of a JSONL those are taken first that the bundle is not calibrated with. The built-in task's are of its validation
    split, which shares nothing with the one that accuracy is reported on.

    Args:
        settings: where the questions come from, at most how many, and the seed.
        videos: whether the family answers about videos.
        folder: where the built-in set is written.
    """
    count, seed = settings.questions, settings.seed
    if settings.data is None:
        media = -(-count // QUESTIONS_EACH)
        clips = media // 4 if videos else 0
        place = folder / f"{BUILT_IN}-val-{seed}-{media - clips}-{clips}"
        path = write_set(place, "val", seed, media - clips, clips)
        return read_questions(path, look=False)[:count]
    questions = [question for question in read_questions(settings.data) if videos or not question.video]
    order = choose(questions, len(questions), seed)
    calibrated_with = set(choose(questions, settings.samples + HELD_OUT, seed))
    return sorted(order, key=lambda question: question in calibrated_with)[:count]


class NothingToLoseError(RedipruneError):
    """The baseline answers no question right."""


class AccuracyLoss:
    """The score of a baseline, and the points that bundles made of it lose."""

    def __init__(
        self,
        baseline: Path,
        questions: Sequence[Question],
        replies: Path,
        progress: CountProgress | None = None,
        backend: str = "ort",
    ):
        """Ask the baseline.

        Args:
            baseline: its folder.
            questions: with answers.
            replies: a file that keeps what was answered, for a rerun to go on from.
            progress: told what is asked.
            backend: what runs the stages, of the baseline and of the others.

        Raises:
            NothingToLoseError: it answers no question correctly, so that nothing could be lost.
            RedipruneError: it cannot be asked.
        """
        self.questions, self.replies, self.progress = questions, replies, progress
        self.options = EvaluationOptions(backend)
        self.baseline = self._correct(baseline)
        if not any(self.baseline.values()):
            raise NothingToLoseError(
                f"'{baseline}' answers none of {len(questions)} questions right, so no accuracy can be lost; give questions "
                "it can answer with --data, or --budget error=0.02"
            )

    def points(self, folder: Path) -> dict[str, float]:
        """Keep ratio → points that a bundle loses; negative where more of its answers are correct."""
        ours = self._correct(folder)
        return {keep: 100 * (self.baseline[keep] - ours[keep]) / len(self.questions) for keep in self.baseline}

    def worst(self, folder: Path) -> float:
        """Points that a bundle loses at the keep ratio where it loses most."""
        return max(self.points(folder).values())

    def _correct(self, folder: Path) -> dict[str, int]:
        """Keep ratio → number of correct answers."""
        scores = evaluate(
            folder, self.questions, KEEP_RATIOS, options=self.options, out=self.replies, progress=self.progress
        )
        return {f"{score.keep:g}": sum(score.right.values()) for score in scores}
