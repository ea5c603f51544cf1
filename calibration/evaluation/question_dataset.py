"""Questions about images and videos with their answers: read from a JSONL file, and shown to a pipeline."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.bundle import Bundle, file_sha256
from ...runtime.errors import RedipruneError
from ...runtime.media.processor import load_image
from ...runtime.media.video import load_video, stand_ins
from .answer_matching import MATCH_RULES


@dataclass(frozen=True)
class Question:
    """One line of a dataset: {"image" or "video": path, "question", "answer", "kind", "match"}.

    Attributes:
        media: the image or video; in a file its path is relative to the file's folder.
        video: which of the two it is.
        question: what is asked.
        answer: the expected answer.
        kind: a group of questions that is counted by itself.
        match: a key of `MATCH_RULES`, by which an answer is compared with the expected one.
    """

    media: Path
    video: bool
    question: str
    answer: str
    kind: str
    match: str = "exact"

    def is_correct(self, answer: str) -> bool:
        """Whether an answer matches the expected one by the question's rule."""
        return MATCH_RULES[self.match](answer, self.answer)


def read_questions(path: str | Path, look: bool = True) -> list[Question]:
    """Read and check a dataset before anything is asked.

    Args:
        path: a JSONL file.
        look: open every image and video too.

    Raises:
        RedipruneError: no such file, a line that is no JSON object, has no image or video, no question, an empty answer
            or an unknown rule of matching, or names a file that is not there or cannot be read; the message names the
            line.
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
        try:
            question = _read_line(line, path.parent)
            if look and question.media not in seen:
                seen.add(question.media)
                _look_at(question)
        except _BadLine as error:
            raise RedipruneError(f"line {number} of '{path}' {error}; mend or remove it") from error.__cause__
        questions.append(question)
    if not questions:
        raise RedipruneError(f"dataset '{path}' is empty")
    return questions


class _BadLine(Exception):
    """What is wrong with a line."""


def _read_line(line: str, folder: Path) -> Question:
    """Raises _BadLine."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _BadLine("is no JSON") from error
    if not isinstance(entry, dict):
        raise _BadLine("is no JSON object")
    media = [kind for kind in ("image", "video") if entry.get(kind)]
    if len(media) != 1:
        raise _BadLine("needs an image or a video" if not media else "has both an image and a video")
    name = entry[media[0]]
    if not isinstance(name, str):
        raise _BadLine(f"needs the path of its {media[0]} as a text")
    for key in ("question", "answer"):
        if not str(entry.get(key) or "").strip():
            raise _BadLine(f"has no {key}")
    answer, match = str(entry["answer"]), str(entry.get("match", "exact"))
    if match not in MATCH_RULES:
        raise _BadLine(f"matches answers by '{match}', which is none of: {', '.join(MATCH_RULES)}")
    if match == "option" and not (len(answer.strip()) == 1 and answer.strip().isalpha() and answer.isascii()):
        raise _BadLine(f"needs the letter of an option as its answer, not '{answer}'")
    if not os.path.isfile(folder / name):  # `Path.is_file` fails on names that are too long
        raise _BadLine(f"names '{name}', which is not there")
    kind = str(entry.get("kind", "all"))
    return Question(folder / name, media[0] == "video", str(entry["question"]), answer, kind, match)


def _look_at(question: Question) -> None:
    """Raises _BadLine where the image or video cannot be read."""
    try:
        if question.video:
            load_video(question.media, 1)
        else:
            load_image(question.media)
    except RedipruneError as error:
        raise _BadLine(f"cannot be asked: {error}") from error


def check_disjoint(test: Sequence[Question], train: Sequence[Question]) -> None:
    """Refuse questions that are in the training set too: the same content of a file with the same question.

    Raises:
        RedipruneError: naming the first and how many there are.
    """
    seen = {(file_sha256(q.media), q.question) for q in train}
    both = [q for q in test if (file_sha256(q.media), q.question) in seen]
    if both:
        raise RedipruneError(
            f"{len(both)} of {len(test)} questions are in the training set too, the first about '{both[0].media.name}'; "
            "remove them from one of the sets"
        )


def media_of(
    question: Question, bundle: Bundle, frames: int, frame_tolerance: float | None = None
) -> tuple[list[Any], list[Any]]:
    """What a question is about, as `Pipeline.generate` takes it.

    Args:
        question: the question.
        bundle: a family without videos is shown their frames as images.
        frames: of a video.
        frame_tolerance: frames shown as images are replaced by earlier ones that differ by no more
            (`media.video.stand_ins`); None replaces none.

    Returns:
        Images and videos.
    """
    if question.video and "video" in bundle.manifest.modalities:
        return [], [question.media]
    if not question.video:
        return [load_image(question.media)], []
    pictures = load_video(question.media, frames)
    if frame_tolerance is not None:
        pictures = [pictures[at] for at in stand_ins(pictures, frame_tolerance)]
    return list(pictures), []
