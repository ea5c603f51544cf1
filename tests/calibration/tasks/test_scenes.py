"""The pictures and their questions: seeded, unambiguous, answers recomputed here from the objects alone."""

import re
from collections import Counter
from functools import cache

import numpy as np
import pytest
from rediprune.calibration.tasks.drawn_task import Sample, image_samples
from rediprune.calibration.tasks.questions import IMAGE_KINDS, MARGIN, PLURAL
from rediprune.calibration.tasks.scenes import (
    COLOURS,
    PAIRS,
    SEEN_PAIRS,
    SHAPES,
    SIDE,
    UNSEEN_PAIRS,
    Scene,
    Thing,
    draw,
    sample_scene,
)


@cache
def samples() -> list[Sample]:
    return [sample for number in range(250) for sample in image_samples("train", 0, number, 8)]


@cache
def unseen() -> list[Sample]:
    return [sample for number in range(120) for sample in image_samples("unseen", 0, number, 8)]


def things(sample: Sample) -> tuple[Thing, ...]:
    assert isinstance(sample.subject, Scene)
    return sample.subject.things


def meant(phrase: str, among: tuple[Thing, ...]) -> Thing:
    """The one thing a phrase means; fails where it means none or several."""
    glyph = re.search(r"with the (?:number|letter) (\w)$", phrase)
    words = set(phrase.split())
    found = [
        thing
        for thing in among
        if (thing.glyph == glyph[1] if glyph else all(w in (thing.colour, thing.shape, "the", "object") for w in words))
    ]
    assert len(found) == 1, f"{phrase!r} means {len(found)} things"
    return found[0]


def lies(thing: Thing, side: str, anchor: Thing) -> int:
    """By how many pixels a thing lies on a side of another."""
    return {
        "left of": anchor.x - thing.x,
        "right of": thing.x - anchor.x,
        "above": anchor.y - thing.y,
        "below": thing.y - anchor.y,
    }[side]


SIDES = "left of|right of|above|below"


def solve(question: str, among: tuple[Thing, ...]) -> str:
    """The answer, from the wording of the question and the list of objects."""
    if m := re.match(r"(?:What colou?r is|Which colour does) (the .*?)(?: have)?\?$", question):
        return meant(m[1], among).colour
    if m := re.match(r"(?:What shape is|Which shape does) (the .*?)(?: have)?\?$", question):
        return meant(m[1], among).shape
    if m := re.match(r"How many (.*?)(?: are there| can you see)\?$", question):
        noun = m[1].removesuffix(" objects")
        shapes = {plural: shape for shape, plural in PLURAL.items()}
        return str(sum(noun in ("objects", t.colour) or shapes.get(noun) == t.shape for t in among))
    if m := re.match(r"(?:Is there|Can you see) an? (\w+) (\w+)\?$", question):
        return "yes" if any((t.colour, t.shape) == (m[1], m[2]) for t in among) else "no"
    if m := re.match(r"(?:Which|What) (number|letter) is (?:printed )?on (the .*)\?$", question):
        glyph = meant(m[2], among).glyph
        assert glyph.isdigit() == (m[1] == "number")
        return glyph
    if m := re.match(rf"(?:What|Which object) is ({SIDES}) (the .*)\?$", question):
        anchor = meant(m[2], among)
        gaps = {other: lies(other, m[1], anchor) for other in among if other is not anchor}
        (found,) = [other for other, gap in gaps.items() if gap > -MARGIN]
        assert gaps[found] >= MARGIN
        return found.name
    if m := re.match(r"Is (the .*?) on the left or on the right\?$", question):
        offset = meant(m[1], among).x - SIDE / 2
        assert abs(offset) >= MARGIN
        return "left" if offset < 0 else "right"
    if m := re.match(r"Is (the .*?) at the top or at the bottom\?$", question):
        offset = meant(m[1], among).y - SIDE / 2
        assert abs(offset) >= MARGIN
        return "top" if offset < 0 else "bottom"
    if m := re.match(rf"Is (the .*?) ({SIDES}) (the .*)\?$", question):
        gap = lies(meant(m[1], among), m[2], meant(m[3], among))
        assert abs(gap) >= MARGIN
        return "yes" if gap > 0 else "no"
    if m := re.match(r"Are (the .*) and (the .*) the same colour\?$", question):
        return "yes" if meant(m[1], among).colour == meant(m[2], among).colour else "no"
    if m := re.match(r"Which is (bigger|smaller), (the .*) or (the .*)\?$", question):
        one, two = sorted((meant(m[2], among), meant(m[3], among)), key=lambda t: t.size)
        assert two.size - one.size >= 12
        return (two if m[1] == "bigger" else one).shape
    raise AssertionError(f"no such question: {question}")


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_every_answer_follows_from_the_objects(kind: str) -> None:
    asked = [sample for sample in samples() + unseen() if sample.kind == kind]
    assert len(asked) > 80
    for sample in asked:
        assert solve(sample.question, things(sample)) == sample.answer, (sample.question, things(sample))


def test_same_seed_same_picture_and_questions_other_seed_others() -> None:
    one, two, other = (image_samples("test", seed, 3) for seed in (5, 5, 6))
    assert [(s.question, s.answer) for s in one] == [(s.question, s.answer) for s in two]
    assert np.array_equal(one[0].pictures(), two[0].pictures())
    assert not np.array_equal(one[0].pictures(), other[0].pictures())


def test_splits_share_no_picture() -> None:
    seen = {
        split: {image_samples(split, 0, number, 8)[0].pictures().tobytes() for number in range(60)}
        for split in ("train", "test", "unseen", "val")
    }
    assert all(len(pictures) == 60 for pictures in seen.values())
    assert len(set.union(*seen.values())) == 240


def test_unseen_pairs_are_neither_drawn_nor_named_in_training() -> None:
    assert {c for c, _ in UNSEEN_PAIRS} == set(COLOURS) and {s for _, s in UNSEEN_PAIRS} == set(SHAPES)
    assert set(SEEN_PAIRS) | set(UNSEEN_PAIRS) == set(PAIRS) and not set(SEEN_PAIRS) & set(UNSEEN_PAIRS)
    names = {f"{colour} {shape}" for colour, shape in UNSEEN_PAIRS}
    for sample in samples():
        assert not names & {thing.name for thing in things(sample)}
        assert not any(name in sample.question + " " + sample.answer for name in names)
    assert all(names & {thing.name for thing in things(sample)} for sample in unseen())


def test_two_way_questions_are_balanced() -> None:
    for answers in (("yes", "no"), ("left", "right"), ("top", "bottom")):
        count = Counter(sample.answer for sample in samples() if sample.answer in answers)
        first, second = (count[answer] for answer in answers)
        assert 0.4 < first / (first + second) < 0.6, (answers, count)


def test_objects_neither_overlap_nor_leave_the_picture() -> None:
    for sample in samples():
        for i, a in enumerate(things(sample)):
            assert a.size / 2 <= min(a.x, a.y) and max(a.x, a.y) <= SIDE - a.size / 2
            for b in things(sample)[i + 1 :]:
                assert np.hypot(a.x - b.x, a.y - b.y) > (a.size + b.size) / 2


def test_objects_are_drawn_in_their_colour_and_stand_out() -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        scene = sample_scene(rng)
        picture = draw(scene)
        assert picture.shape == (SIDE, SIDE, 3) and picture.dtype == np.uint8
        for thing in scene.things:
            near = np.abs(picture.astype(int) - np.array(COLOURS[thing.colour])).max(axis=-1) <= 10
            box = near[thing.y - thing.size // 2 : thing.y + thing.size // 2][
                :, thing.x - thing.size // 2 : thing.x + thing.size // 2
            ]
            assert box.mean() > 0.15, thing
        distance = min(
            np.abs(scene.background.astype(int) - np.array(rgb)).max(axis=-1).min() for rgb in COLOURS.values()
        )
        assert distance > 10


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="choose one of train, test"):
        image_samples("tset", 0, 0)
