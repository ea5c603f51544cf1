"""The clips and their questions, and the dataset folder."""

import json
import re
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
from rediprune.calibration.tasks.clips import DIRECTIONS, EVENTS, FILE_FRAMES, Clip, draw_clip, frame_numbers
from rediprune.calibration.tasks.drawn_task import Sample, clip_samples
from rediprune.calibration.tasks.media_folder import write_set
from rediprune.calibration.tasks.questions import CLIP_KINDS
from rediprune.calibration.tasks.scenes import SIDE, UNSEEN_PAIRS


@cache
def samples() -> list[Sample]:
    return [sample for number in range(250) for sample in clip_samples("train", 0, number, 8)]


@cache
def unseen() -> list[Sample]:
    return [sample for number in range(80) for sample in clip_samples("unseen", 0, number, 8)]


def clip_of(sample: Sample) -> Clip:
    assert isinstance(sample.subject, Clip)
    return sample.subject


def fits(phrase: str, thing) -> bool:
    glyph = re.search(r"with the (?:number|letter) (\w)$", phrase)
    if glyph:
        return thing.glyph == glyph[1]
    return all(word in (thing.colour, thing.shape, "the", "object") for word in phrase.split())


def solve(question: str, clip: Clip) -> str:
    """The answer from what is visible in the first and the last frame alone."""
    before, after = clip.things(0.0), clip.things(1.0)
    place = (
        {(t.shape, t.size, t.angle, t.x, t.y) for t in before},
        {(t.shape, t.size, t.angle, t.x, t.y) for t in after},
    )
    gone = [t for t in before if (t.shape, t.size, t.angle, t.x, t.y) not in place[1]]
    new = [t for t in after if (t.shape, t.size, t.angle, t.x, t.y) not in place[0]]
    moved = [(a, b) for a in gone for b in new if (a.name, a.size, a.glyph) == (b.name, b.size, b.glyph)]
    changes = {
        "move": [a for a, _ in moved],
        "disappear": [a for a in gone if all(a is not m for m, _ in moved)],
        "appear": [b for b in new if all(b is not m for _, m in moved)],
        "change colour": [
            a for a in before for b in after if (a.x, a.y, a.shape) == (b.x, b.y, b.shape) and a.colour != b.colour
        ],
    }
    if m := re.match(r"(?:Which way does|Where does) (the .*) (?:move|go)\?$", question):
        ((a, b),) = moved
        assert fits(m[1], a)
        assert sum(fits(m[1], thing) for thing in before) == 1
        dx, dy = np.sign(b.x - a.x), np.sign(b.y - a.y)
        return next(name for name, step in DIRECTIONS.items() if step == (dx, dy))
    if m := re.match(r"(?:What|Which object) (move|appear|disappear)s\?$", question):
        (thing,) = changes[m[1]]
        return thing.name
    if re.match(r"(?:What|Which shape) changes colour\?$", question):
        (thing,) = changes["change colour"]
        return thing.shape
    if m := re.match(r"What colour is the (\w+) at the (start|end)\?$", question):
        (thing,) = [t for t in (before if m[2] == "start" else after) if t.shape == m[1]]
        return thing.colour
    if m := re.match(r"What colour does the (\w+) become\?$", question):
        (thing,) = [t for t in after if t.shape == m[1]]
        return thing.colour
    if m := re.match(r"Does (the .*) (move|appear|disappear|change colour)\?$", question):
        looks = {t for t in [*before, *after] if fits(m[1], t)}
        assert looks, question
        return "yes" if any(fits(m[1], t) for t in changes[m[2]]) else "no"
    if m := re.match(r"How many objects are there at the (start|end)\?$", question):
        return str(len(before if m[1] == "start" else after))
    raise AssertionError(f"no such question: {question}")


@pytest.mark.parametrize("kind", CLIP_KINDS)
def test_every_answer_follows_from_the_first_and_last_frame(kind: str) -> None:
    asked = [sample for sample in samples() + unseen() if sample.kind == kind]
    assert len(asked) > 50
    for sample in asked:
        assert solve(sample.question, clip_of(sample)) == sample.answer, (sample.question, sample.subject)


def test_happens_is_balanced_and_every_event_occurs() -> None:
    answers = [sample.answer for sample in samples() if sample.kind == "happens"]
    assert 0.4 < answers.count("yes") / len(answers) < 0.6
    assert {event.kind for sample in samples() for event in clip_of(sample).events} == set(EVENTS)


def test_nothing_touches_at_any_time() -> None:
    for sample in samples()[::7]:
        for time in np.linspace(0, 1, 24).tolist():
            present = clip_of(sample).things(time)
            for i, a in enumerate(present):
                assert a.size / 2 <= min(a.x, a.y) and max(a.x, a.y) <= SIDE - a.size / 2
                assert all(np.hypot(a.x - b.x, a.y - b.y) > (a.size + b.size) / 2 for b in present[i + 1 :])


def test_unseen_pairs_never_show_in_training_clips() -> None:
    names = {f"{colour} {shape}" for colour, shape in UNSEEN_PAIRS}
    for sample in samples():
        for time in (0.0, 1.0):
            assert not names & {thing.name for thing in clip_of(sample).things(time)}
    assert all(clip_of(sample).events[0].before.name in names for sample in unseen())


def test_same_seed_same_clip() -> None:
    one, two, other = (draw_clip(clip_of(clip_samples("test", seed, 2)[0])) for seed in (4, 4, 5))
    assert one.shape == (8, SIDE, SIDE, 3)
    assert np.array_equal(one, two) and not np.array_equal(one, other)


def test_dataset_folder_has_a_line_for_each_question_and_readable_media(tmp_path: Path) -> None:
    path = write_set(tmp_path, "test", seed=1, images=3, clips=2)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {frozenset(line) for line in lines} == {
        frozenset({"image", "question", "answer", "kind"}),
        frozenset({"video", "question", "answer", "kind"}),
    }
    assert len({line.get("image") or line["video"] for line in lines}) == 5
    assert all((tmp_path / (line.get("image") or line["video"])).exists() for line in lines)
    before = path.read_bytes()
    (tmp_path / "test-00001.png").unlink()
    assert write_set(tmp_path, "test", seed=1, images=3, clips=2).read_bytes() == before
    assert (tmp_path / "test-00001.png").exists()


def test_the_file_holds_the_frames_the_model_is_trained_on(tmp_path: Path) -> None:
    write_set(tmp_path, "test", seed=1, images=0, clips=1)
    with av.open(str(tmp_path / "test-00000.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == FILE_FRAMES
    drawn = draw_clip(clip_of(clip_samples("test", 1, 0)[0]))
    read = np.stack([frames[i] for i in frame_numbers(8)])
    assert np.abs(read.astype(int) - drawn.astype(int)).mean() < 6
