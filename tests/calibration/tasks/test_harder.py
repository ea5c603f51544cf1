"""Crowded pictures and cells of a grid: every answer can be recomputed from the picture."""

from rediprune.calibration.tasks.drawn_task import clip_samples, image_samples
from rediprune.calibration.tasks.harder import CROWD, CROWD_KINDS, CROWD_SIZES
from rediprune.calibration.tasks.questions import references
from rediprune.calibration.tasks.scenes import SIDE, Scene

CROWDS = [sample for number in range(60) for sample in image_samples("crowd", 0, number)]
CELLS = [sample for number in range(60) for sample in image_samples("cells", 0, number)]


def scene_of(sample) -> Scene:
    assert isinstance(sample.subject, Scene)
    return sample.subject


def test_crowds_are_crowded_and_nothing_overlaps() -> None:
    sizes = set()
    for sample in CROWDS:
        things = scene_of(sample).things
        sizes.add(len(things))
        assert CROWD[0] <= len(things) <= CROWD[1]
        for thing in things:
            assert CROWD_SIZES[0] <= thing.size <= CROWD_SIZES[1]
            assert all(
                (thing.x - o.x) ** 2 + (thing.y - o.y) ** 2 >= ((thing.size + o.size) / 2) ** 2
                for o in things
                if o is not thing
            )
        glyphs = [thing.glyph for thing in things if thing.glyph]
        assert len(glyphs) == len(set(glyphs))
    assert len(sizes) > 10


def test_crowds_are_asked_about_in_every_kind() -> None:
    kinds = [sample.kind for sample in CROWDS]
    assert set(kinds) == set(CROWD_KINDS)
    assert min(map(kinds.count, CROWD_KINDS)) > 20


def test_a_crowds_question_means_one_object_whose_answer_it_is() -> None:
    for sample in CROWDS:
        things = scene_of(sample).things
        named = [thing for thing in things for phrase in references(thing, things) if phrase in sample.question]
        if sample.kind == "glyph":
            assert sample.answer in {thing.glyph for thing in named}
        if sample.kind == "exists":
            assert (sample.answer == "yes") == any(f"{t.name}?" in sample.question for t in things)


def test_cells_are_where_the_object_is() -> None:
    cells = set()
    for sample in CELLS:
        things = scene_of(sample).things
        found = [t for t in things if any(f" is {phrase}," in sample.question for phrase in references(t, things))]
        assert len(found) == 1
        row, column = "ABC".index(sample.answer[0]), int(sample.answer[1]) - 1
        assert row * SIDE / 3 < found[0].y < (row + 1) * SIDE / 3
        assert column * SIDE / 3 < found[0].x < (column + 1) * SIDE / 3
        cells.add(sample.answer)
    assert len(cells) == 9


def test_they_have_no_clips_and_leave_the_other_splits_as_they_are() -> None:
    assert clip_samples("crowd", 0, 0) == [] == clip_samples("cells", 0, 0)
    first = image_samples("test", 0, 0)
    assert [(s.question, s.answer) for s in first] == [(s.question, s.answer) for s in image_samples("test", 0, 0)]
