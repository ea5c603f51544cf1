"""The calibration set: images, videos and questions, selected by a seed and identified by their content."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..runtime.bundle import file_sha256
from ..runtime.errors import RedipruneError
from ..runtime.media.film import SUFFIXES as VIDEO_SUFFIXES
from ..runtime.media.images import SUFFIXES as IMAGE_SUFFIXES
from ..runtime.media.processor import load_image
from ..runtime.media.video import load_video
from .evaluation.question_dataset import Question, read_questions
from .tasks.media_folder import write_set

BUILT_IN = "built-in"
# Asked about the files of a folder, which has no questions.
_QUESTIONS = ("What is in this picture?", "Describe it in detail.", "How many things are there, and where?")
HELD_OUT = 8
# With fewer samples, values of other inputs leave the static ranges: on the demo checkpoint INT8 logits are 24 % off with
# 8 or 16 samples, 2 to 5 % with 32 or 64.
FEW = 32


@dataclass(frozen=True)
class Data:
    """Samples to calibrate with, and others to judge by. Files are read when they are used, none is kept.

    Attributes:
        name: "built-in", or the path of the data.
        samples: shown to observe activations.
        held_out: shown to compare the quantised stages with the baseline's.
    """

    name: str
    samples: list[Question]
    held_out: list[Question]

    @property
    def sha256(self) -> str:
        """Hash of the contents, questions and order."""
        digest = hashlib.sha256()
        for sample in (*self.samples, *self.held_out):
            digest.update(f"{file_sha256(sample.media)} {sample.video} {sample.question}\n".encode())
        return digest.hexdigest()


def open_data(path: Path | None, count: int, seed: int, videos: bool, folder: Path) -> Data:
    """Select samples.

    Args:
        path: a JSONL as `evaluate` takes it, or a folder of images and videos; None is the built-in set, drawn from
            the training split, which shares nothing with the splits that accuracy is measured on.
        count: the largest number of samples; up to 8 more are held out.
        seed: selects them.
        videos: whether the family answers about videos; others are not shown any.
        folder: where the built-in set is written.

    Raises:
        RedipruneError: nothing there, or a chosen file that cannot be read.
    """
    if path is None:
        wanted = count + HELD_OUT
        clips = wanted // 4 if videos else 0
        # Its size is in the name: other calibrations of the same bundle may write sets of other sizes at the same time.
        place = folder / f"{BUILT_IN}-{seed}-{wanted - clips}-{clips}"
        questions = read_questions(write_set(place, "train", seed, wanted - clips, clips))
    elif path.is_dir():
        questions = _folder(path, videos)
    else:
        questions = read_questions(path)
    questions = [question for question in questions if videos or not question.video]
    if not questions:
        raise RedipruneError(f"'{path}' has only videos, and this family answers about images; give images")
    chosen = choose(questions, count + HELD_OUT, seed)
    for question in chosen:
        if question.video:
            load_video(question.media, 1)
        else:
            load_image(question.media)
    held = min(HELD_OUT, len(chosen) // 2)
    name = BUILT_IN if path is None else str(path.resolve())
    if not held:  # one sample has to serve for both
        return Data(name, chosen, chosen)
    return Data(name, chosen[:-held], chosen[-held:])


def choose(questions: Sequence[Question], count: int, seed: int) -> list[Question]:
    """Select questions: shuffled, every file once before any is taken again, videos evenly among images.

    Args:
        questions: to select from.
        count: the largest number of them.
        seed: of the shuffle.
    """
    shuffled = random.Random(seed).sample(list(questions), len(questions))
    seen: dict[Path, int] = {}
    rounds = []
    for question in shuffled:
        seen[question.media] = seen.get(question.media, -1) + 1
        rounds.append(seen[question.media])
    order = sorted(range(len(shuffled)), key=lambda at: rounds[at])
    chosen = [shuffled[at] for at in order[:count]]
    # Videos lie evenly among images, so that both are among the samples and among those held out.
    kinds = [[q for q in chosen if q.video == video] for video in (True, False)]
    places = [((at + 0.5) / len(kind), q) for kind in kinds for at, q in enumerate(kind)]
    return [question for _, question in sorted(places, key=lambda place: place[0])]


def _folder(path: Path, videos: bool) -> list[Question]:
    """A question about each image and video below a folder, hidden files and folders left out."""
    found = [
        file
        for file in sorted(path.rglob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
        and file.is_file()
        # macOS writes a ._NAME beside a NAME on foreign disks, which is no image
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    if not found:
        raise RedipruneError(f"folder '{path}' holds no images{' or videos' * videos}; give one that does, or a JSONL")
    return [
        Question(file, file.suffix.lower() in VIDEO_SUFFIXES, _QUESTIONS[at % len(_QUESTIONS)], "", "")
        for at, file in enumerate(found)
    ]
