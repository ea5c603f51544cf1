"""Kept tokens go where their placeholder stood, in order; features are remembered within a bound."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rediprune.runtime.bundle import ModalitySpec
from rediprune.runtime.errors import RedipruneError
from rediprune.runtime.visual_tokens import NEWLINE, FeatureCache, Visual, splice

IMAGE, VIDEO = 1000, 1001


def text(ids):
    """An embedding [S, 1] that says which id it is; placeholders' own must not be used."""
    return np.array([[np.nan if token in (IMAGE, VIDEO) else token] for token in ids], np.float32).reshape(-1, 1)


def tokens(*values):
    return np.array(values, np.float32).reshape(-1, 1)


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
    spliced = splice(ids, embeds, visuals)
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
        splice(ids, text(ids), [(kind, tokens(-1)) for kind in kinds])


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
            visuals.append((part[0], tokens(*new)))
            expected += new
    assert splice(ids, text(ids), visuals)[:, 0].tolist() == expected


# -------------------------------------------------------------------------------------------------------- sequence


def visual(frames, patches, kept, layout=None):
    spec = ModalitySpec(stage="vision", output="features", rows=1, columns=patches, placeholder=IMAGE)
    features = np.zeros((frames, patches, 3), np.float32)
    return Visual("image", [], spec, features, None if layout is None else np.array(layout), np.array(kept))


def projected(kept, patches):
    """[F, K, 2]: every token says its frame · P + patch."""
    slots = np.array(kept) + np.arange(len(kept))[:, None] * patches
    return np.stack([slots, slots + 0.5], axis=-1).astype(np.float32)


NEWLINE_ROW = np.array([-7, -7.5], np.float32)


def test_sequence_of_frames():
    kept = [[0, 2], [1, 3]]
    seen = visual(2, 4, kept)
    assert seen.total == 8
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


# ----------------------------------------------------------------------------------------------------------- cache


def entry(size):
    return np.zeros(size, np.uint8)


def held(cache, keys):
    """Which keys the cache holds; asking makes them recent, the last one most."""
    return [key for key in keys if cache.get(("stage", key)) is not None]


def test_cache_returns_what_was_put():
    cache = FeatureCache(100)
    features = entry(10)
    cache.put(("stage", "a"), features)
    assert cache.get(("stage", "a")) is features
    assert cache.get(("stage", "b")) is None
    assert cache.get(("other", "a")) is None
    assert cache.size == 10


def test_cache_is_bounded_in_bytes():
    cache = FeatureCache(100)
    for key in "abcd":
        cache.put(("stage", key), np.zeros(5, np.float64))  # 40 bytes
        assert cache.size <= 100
    assert held(cache, "abcd") == ["c", "d"]
    assert cache.size == 80
    cache.put(("stage", "e"), entry(100))
    assert held(cache, "abcde") == ["e"]
    assert cache.size == 100


def test_the_least_recently_used_goes():
    cache = FeatureCache(30)
    for key in "abc":
        cache.put(("stage", key), entry(10))
    cache.get(("stage", "a"))
    cache.put(("stage", "d"), entry(10))
    assert held(cache, "bacd") == ["a", "c", "d"]
    cache.put(("stage", "e"), entry(15))  # two have to go
    assert held(cache, "abcde") == ["d", "e"]
    assert cache.size == 25


def test_what_is_larger_than_the_bound_is_not_kept_and_drives_nothing_out():
    cache = FeatureCache(20)
    cache.put(("stage", "a"), entry(20))
    cache.put(("stage", "b"), entry(21))
    assert held(cache, "ab") == ["a"]
    assert cache.size == 20


def test_the_same_key_is_counted_once():
    cache = FeatureCache(30)
    first = entry(20)
    cache.put(("stage", "a"), first)
    cache.put(("stage", "a"), entry(20))
    assert cache.size == 20
    assert cache.get(("stage", "a")) is first


def test_no_bytes_no_cache():
    cache = FeatureCache(0)
    cache.put(("stage", "a"), entry(1))
    assert cache.get(("stage", "a")) is None
    assert cache.size == 0


@given(
    limit=st.integers(0, 40),
    steps=st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 20), st.booleans()), max_size=40),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_cache_equals_a_plain_list(limit, steps):
    cache, model = FeatureCache(limit), []  # (key, size), least recently used first
    for key, size, put in steps:
        known = next((item for item in model if item[0] == key), None)
        if put:
            cache.put(("stage", key), entry(size))
            if known is None and size <= limit:
                model.append((key, size))
                while sum(n for _, n in model) > limit:
                    model.pop(0)
        else:
            found = cache.get(("stage", key))
            assert (None if found is None else found.nbytes) == (known and known[1])
            if known:
                model.remove(known)
                model.append(known)
        assert cache.size == sum(n for _, n in model) <= limit
