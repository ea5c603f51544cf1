"""The questions that a command asks: from a file, or of the built-in task."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..evaluation.question_dataset import Question


def question_sets(
    data: Path | None,
    train: Path | None,
    splits: list[str],
    images: int,
    clips: int,
    folder: Path,
    progress: Callable[[str, int, int], None],
) -> "dict[str, list[Question]]":
    """The questions by name of their set: images and videos are judged apart, for they cost and score differently."""
    from ..evaluation.question_dataset import check_disjoint, read_questions
    from ..tasks.media_folder import write_set

    progress("reading the questions", 0, 1)
    if data is not None:
        sources = {"": read_questions(data)}
    else:
        names = {"test": "", "unseen": ", unseen pairs", "crowd": ", crowded", "cells": ", cells of a grid"}
        made = {s: write_set(folder / s, s, images=images, clips=clips) for s in splits}
        sources = {names[s]: read_questions(path, look=False) for s, path in made.items()}
    if train is not None:
        known = read_questions(train, look=False)
        for questions in sources.values():
            check_disjoint(questions, known)
    sets = {}
    for suffix, questions in sources.items():
        sets["images" + suffix] = [q for q in questions if not q.video]
        sets["videos" + suffix] = [q for q in questions if q.video]
    return {name: questions for name, questions in sets.items() if questions}
