"""Kept tokens go where their placeholder stood, in order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rediprune.runtime.bundle import ModalitySpec
from rediprune.runtime.errors import RedipruneError
from rediprune.runtime.media.tiles import NEWLINE, Layout
from rediprune.runtime.visual_tokens import Inserted, Projected, Visual, splice

IMAGE, VIDEO = 1000, 1001


def text(ids):
    """An embedding [S, 1] that says which id it is; placeholders' own must not be used."""
    return np.array([[np.nan if token in (IMAGE, VIDEO) else token] for token in ids], np.float32).reshape(-1, 1)


def tokens(*values):
    return np.array(values, np.float32).reshape(-1, 1)


def inserted(placeholder, new, places=None, total=None):
    count = len(new)
    where = np.arange(count) if places is None else np.array(places)
    return Inserted(placeholder, Projected(new), where[None], count if total is None else total)


# ---------------------------------------------------------------------------------------------------------- splice


@pytest.mark.parametrize(
    ("ids", "visuals", "expected"),
    [
        ([1, 2, 3], [], [1, 2, 3]),
        ([1, IMAGE, 2], [(IMAGE, tokens(-1, -2, -3))], [1, -1, -2, -3, 2]),
        ([IMAGE], [(IMAGE, tokens(-1))], [-1]),
        ([IMAGE, 1], [(IMAGE, tokens())], [1]),
        ([1, IMAGE, IMAGE], [(IMAGE, tokens(-1, -2)), (IMAGE, tokens(-3))], [1, -1, -2, -3]),
        (
            [IMAGE, 1, VIDEO, 2, IMAGE],
            [(IMAGE, tokens(-1)), (VIDEO, tokens(-2, -3)), (IMAGE, tokens(-4))],
            [-1, 1, -2, -3, 2, -4],
        ),
    ],
)
def test_splice(ids, visuals, expected):
    embeds = text(ids)
    before = embeds.copy()
    whole = splice(ids, embeds, [inserted(*each) for each in visuals])
    spliced = whole.embeds
    assert whole.deepstack is None
    assert whole.positions[0].tolist() == list(range(len(expected)))  # nothing was dropped
    assert spliced[:, 0].tolist() == expected
    assert spliced.dtype == np.float32
    assert np.array_equal(embeds, before, equal_nan=True)


@pytest.mark.parametrize(
    ("ids", "kinds"),
    [
        ([1, 2], [IMAGE]),
        ([IMAGE, 1], [IMAGE, IMAGE]),
        ([IMAGE, IMAGE], [IMAGE]),
        ([IMAGE, VIDEO], [VIDEO, IMAGE]),
        ([IMAGE, VIDEO, IMAGE], [IMAGE, IMAGE, VIDEO]),
        ([VIDEO], [IMAGE]),
    ],
)
def test_splice_refuses_what_does_not_match(ids, kinds):
    with pytest.raises(RedipruneError, match="placeholders do not match the images and videos in number and order"):
        splice(ids, text(ids), [inserted(kind, tokens(-1)) for kind in kinds])


def test_positions_are_those_before_pruning():
    ids = [1, IMAGE, 2, 3, VIDEO, 4]
    visuals = [inserted(IMAGE, tokens(-1, -2), [1, 3], 4), inserted(VIDEO, tokens(-3), [0], 6)]
    whole = splice(ids, text(ids), visuals)
    assert whole.embeds[:, 0].tolist() == [1, -1, -2, 2, 3, -3, 4]
    assert whole.positions.tolist() == [[0, 2, 4, 5, 6, 7, 13]]


def test_positions_of_three_axes_and_deepstack():
    spec = ModalitySpec(stage="vision", output="features", rows=9, columns=9, placeholder=VIDEO, dynamic=True)
    kept = np.array([[1, 5], [0, 3]])  # of two frames of 2 × 3
    seen = Visual("video", [], spec, np.zeros((2, 6, 1)), None, kept, parts=2, grid=(2, 3))
    deepstack = np.arange(8.0).reshape(2, 4, 1) + 1
    first, second = seen.inserted(Projected(tokens(-1, -2, -3, -4), deepstack), 3)
    assert first.places.tolist() == [[0, 0], [0, 1], [1, 2]] and second.places.tolist() == [[0, 0], [0, 1], [0, 0]]
    assert first.extent == second.extent == 3
    whole = splice([7, VIDEO, 8, VIDEO, 9], text([7, VIDEO, 8, VIDEO, 9]), [first, second], 3)
    assert whole.embeds[:, 0].tolist() == [7, -1, -2, 8, -3, -4, 9]
    assert whole.positions.tolist() == [[0, 1, 1, 4, 5, 5, 8], [0, 1, 2, 4, 5, 6, 8], [0, 2, 3, 4, 5, 5, 8]]
    assert whole.deepstack is not None
    assert whole.deepstack[:, :, 0].tolist() == [[0, 1, 2, 0, 3, 4, 0], [0, 5, 6, 0, 7, 8, 0]]


@given(
    parts=st.lists(
        st.one_of(st.integers(0, 99), st.tuples(st.sampled_from([IMAGE, VIDEO]), st.integers(0, 4))), max_size=20
    )
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_splice_of_anything(parts):
    ids = [part if isinstance(part, int) else part[0] for part in parts]
    visuals, expected = [], []
    for part in parts:
        if isinstance(part, int):
            expected.append(part)
        else:
            new = [-1 - len(expected) - i for i in range(part[1])]
            visuals.append(inserted(part[0], tokens(*new)))
            expected += new
    assert splice(ids, text(ids), visuals).embeds[:, 0].tolist() == expected


# -------------------------------------------------------------------------------------------------------- sequence


def visual(frames, patches, kept, layout=None):
    spec = ModalitySpec(stage="vision", output="features", rows=1, columns=patches, placeholder=IMAGE)
    features = np.zeros((frames, patches, 3), np.float32)
    return Visual("image", [], spec, features, None if layout is None else Layout(np.array(layout)), np.array(kept))


def projected(kept, patches):
    """[F, K, 2]: every token says its frame · P + patch."""
    slots = np.array(kept) + np.arange(len(kept))[:, None] * patches
    return np.stack([slots, slots + 0.5], axis=-1).astype(np.float32)


NEWLINE_ROW = np.array([-7, -7.5], np.float32)


def test_sequence_of_frames():
    kept = [[0, 2], [1, 3]]
    seen = visual(2, 4, kept)
    assert seen.total == 8
    assert seen.places().tolist() == [0, 2, 5, 7]
    for newline in (None, NEWLINE_ROW):
        assert seen.sequence(projected(kept, 4), newline)[:, 0].tolist() == [0, 2, 5, 7]


# Two tiles of 2 × 2 beside each other below the whole picture: rows of four patches, each with its newline.
LAYOUT = [0, 1, 2, 3, 4, 5, 8, 9, NEWLINE, 6, 7, 10, 11, NEWLINE]


def test_sequence_of_tiles_with_all_patches():
    kept = [[0, 1, 2, 3]] * 3
    seen = visual(3, 4, kept, LAYOUT)
    assert seen.total == 14
    out = seen.sequence(projected(kept, 4), NEWLINE_ROW)
    assert out[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 8, 9, -7, 6, 7, 10, 11, -7]
    assert out[:, 1].tolist() == [v + 0.5 if v >= 0 else -7.5 for v in out[:, 0]]
    assert out.dtype == np.float32


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ([[0, 3], [0, 1], [2, 3]], [0, 3, 4, 5, -7, 10, 11, -7]),
        ([[1, 2], [2, 3], [2, 3]], [1, 2, -7, 6, 7, 10, 11, -7]),  # a row without patches keeps its newline
        ([[0], [3], [0]], [0, 8, -7, 7, -7]),
    ],
)
def test_sequence_of_tiles_leaves_dropped_patches_out(kept, expected):
    seen = visual(3, 4, kept, LAYOUT)
    assert seen.sequence(projected(kept, 4), NEWLINE_ROW)[:, 0].tolist() == expected
    assert seen.total == 14
    slots = [-7 if LAYOUT[place] == NEWLINE else LAYOUT[place] for place in seen.places()]
    assert slots == expected


def test_sequence_leaves_out_what_the_layout_unpads():
    # Padding of the picture to tiles is in no row of the layout, kept or not.
    kept = [[0, 1], [0, 3]]
    seen = visual(2, 4, kept, [0, 1, 2, 3, 6, 7, NEWLINE])
    assert seen.sequence(projected(kept, 4), NEWLINE_ROW)[:, 0].tolist() == [0, 1, 7, -7]


@given(frames=st.integers(1, 4), patches=st.integers(1, 9), data=st.data())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_sequence_of_any_layout(frames, patches, data):
    count = data.draw(st.integers(1, patches))
    choose = st.sets(st.integers(0, patches - 1), min_size=count, max_size=count)
    kept = [sorted(data.draw(choose)) for _ in range(frames)]
    layout = data.draw(st.permutations([*range(frames * patches), *[NEWLINE] * frames]))
    slots = {frame * patches + patch for frame, row in enumerate(kept) for patch in row}
    expected = [-7 if slot == NEWLINE else slot for slot in layout if slot == NEWLINE or slot in slots]
    out = visual(frames, patches, kept, layout).sequence(projected(kept, patches), NEWLINE_ROW)
    assert out[:, 0].tolist() == expected
