"""The task: samples by number.

A sample depends on its split, the seed and its number alone. The splits draw from different random streams;
`unseen` is a test split of questions about an object whose shape and colour never met in training; `crowd` and `cells` are
test splits of pictures and questions of kinds that training does not have (`harder`).
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from .clips import Clip, draw_clip, sample_clip
from .harder import CROWD_KINDS, ask_cell, sample_crowd
from .questions import CLIP_KINDS, IMAGE_KINDS, Asked, ask_clip, ask_scene
from .scenes import (
    PAIRS,
    SEEN_PAIRS,
    UNSEEN_PAIRS,
    Scene,
    Thing,
    draw,
    sample_background,
    sample_scene,
    sample_things,
)

SPLITS = {"train": 0, "test": 1, "unseen": 2, "val": 3, "crowd": 4, "cells": 5}
# Split → how its pictures are drawn, how they are asked about, and what.
_HARDER: dict[str, tuple[Callable[[Generator], Scene], Callable[[Generator, Scene, str], Asked], tuple[str, ...]]] = {
    "crowd": (sample_crowd, ask_scene, CROWD_KINDS),
    "cells": (sample_scene, ask_cell, ("cell",)),
}
QUESTIONS_EACH = 4  # questions about one picture or clip in a test set


@dataclass(frozen=True)
class Sample:
    """One question about a picture (scene) or a clip; `number` says which one of its split."""

    subject: Scene | Clip
    question: str
    answer: str
    kind: str
    number: int

    def pictures(self) -> np.ndarray:
        """uint8 [1, H, W, 3] for a picture, [F, H, W, 3] for a clip."""
        return draw_clip(self.subject) if isinstance(self.subject, Clip) else draw(self.subject)[None]


def generator(split: str, seed: int, number: int, media: int) -> Generator:
    """The random stream of one picture (media 0) or clip (media 1). Splits never share a stream."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    return np.random.default_rng([SPLITS[split], seed, media, number])


def image_samples(split: str, seed: int, number: int, each: int = QUESTIONS_EACH) -> list[Sample]:
    """At most `each` questions, of different kinds, about picture `number` of a split."""
    rng = generator(split, seed, number, 0)
    if split in _HARDER:
        return _harder_samples(rng, split, number, each)
    focus: Thing | None = None
    pairs = SEEN_PAIRS
    if split == "unseen":
        pairs = PAIRS
        first = UNSEEN_PAIRS[int(rng.integers(len(UNSEEN_PAIRS)))]
        things = sample_things(rng, int(rng.integers(2, 7)), pairs, first)
        focus = things[0]
        scene = Scene(tuple(things), sample_background(rng))
    else:
        scene = sample_scene(rng)
    samples = []
    for i in rng.permutation(len(IMAGE_KINDS)):
        kind = list(IMAGE_KINDS)[i]
        asked = ask_scene(rng, scene, kind, pairs, focus)
        if asked is not None and len(samples) < each:
            samples.append(Sample(scene, *asked, kind, number))
    return samples


def _harder_samples(rng: Generator, split: str, number: int, each: int) -> list[Sample]:
    sample, ask, kinds = _HARDER[split]
    scene, samples = sample(rng), []
    for i in rng.permutation(len(kinds)):
        asked = ask(rng, scene, kinds[i])
        if asked is not None and len(samples) < each:
            samples.append(Sample(scene, *asked, kinds[i], number))
    return samples


def clip_samples(split: str, seed: int, number: int, each: int = QUESTIONS_EACH) -> list[Sample]:
    """At most `each` questions, of different kinds, about clip `number` of a split; none of those that have pictures only."""
    if split in _HARDER:
        return []
    rng = generator(split, seed, number, 1)
    focus: Thing | None = None
    if split == "unseen":
        clip = sample_clip(rng, pairs=PAIRS, first=UNSEEN_PAIRS[int(rng.integers(len(UNSEEN_PAIRS)))])
        focus = clip.events[0].before
    else:
        clip = sample_clip(rng)
    samples = []
    for i in rng.permutation(len(CLIP_KINDS)):
        kind = list(CLIP_KINDS)[i]
        asked = ask_clip(rng, clip, kind, focus if kind != "number" else None)
        if asked is not None and len(samples) < each:
            samples.append(Sample(clip, *asked, kind, number))
    return samples


def samples(split: str, seed: int, images: int, clips: int) -> Iterator[Sample]:
    """All samples of `images` pictures and then of `clips` clips."""
    for number in range(images):
        yield from image_samples(split, seed, number)
    for number in range(clips):
        yield from clip_samples(split, seed, number)


def majority(test: list[Sample], train: list[Sample]) -> float:
    """Accuracy on `test` of always giving the answer most frequent in `train` for the kind of question."""
    votes: dict[str, Counter[str]] = {}
    for sample in train:
        votes.setdefault(sample.kind, Counter())[sample.answer] += 1
    best = {kind: counter.most_common(1)[0][0] for kind, counter in votes.items()}
    return sum(best.get(s.kind) == s.answer for s in test) / len(test)
