"""What a request is routed by."""

from contextlib import ExitStack

import pytest

pytest.importorskip("ray")
from rediprune.runtime.serving.cluster.ray_router import HotKeys, picture_key, within_bound


def body(*parts: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def image(url: object) -> dict[str, object]:
    return {"type": "image_url", "image_url": url}


TEXT = {"type": "text", "text": "Why?"}


def test_a_picture_has_one_key_in_every_form_question_and_turn() -> None:
    key = picture_key(body(image({"url": "data:a"}), TEXT))
    assert key is not None and len(key) == 64
    assert picture_key(body(TEXT, image("data:a"))) == key
    assert picture_key(body(image({"url": "data:a", "detail": "low"}))) == key
    assert picture_key(body(image({"url": "data:a"}), image({"url": "data:b"}))) == key
    dialogue = body(image("data:a"), TEXT)
    dialogue["messages"] += [{"role": "assistant", "content": "So."}, {"role": "user", "content": "And?"}]  # type: ignore
    assert picture_key(dialogue) == key


def test_other_pictures_and_clips_have_other_keys() -> None:
    keys = {
        picture_key(body(image("data:a"))),
        picture_key(body(image("data:b"))),
        picture_key(body({"type": "video_url", "video_url": {"url": "data:c"}})),
        picture_key(body({"type": "file", "file": {"file_data": "data:d"}})),
    }
    assert len(keys) == 4 and None not in keys


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        3,
        [],
        {},
        {"messages": 3},
        {"messages": [3]},
        {"messages": [{"content": "text"}]},
        body(TEXT),
        body(3, "x"),
    ],
)
def test_without_a_picture_there_is_none(wrong: object) -> None:
    assert picture_key(wrong) is None


def test_what_is_no_url_is_a_key_too_and_refused_later() -> None:
    assert picture_key(body(image(3))) is not None and picture_key(body(image({"url": None}))) is not None


def test_a_key_that_many_ask_for_is_spread_while_they_do() -> None:
    hot = HotKeys(2)
    with ExitStack() as stack:
        keys = [stack.enter_context(hot.spread("a")) for _ in range(5)]
        assert keys == ["a", "a", "a 1", "a 1", "a 2"]
        with hot.spread("b") as other, hot.spread(None) as none:
            assert (other, none) == ("b", None)
    with hot.spread("a") as key:
        assert key == "a"
    with pytest.raises(ZeroDivisionError), hot.spread("a"), hot.spread("a"):
        _ = 1 / 0
    with hot.spread("a") as key:  # what failed counts no longer
        assert key == "a"


@pytest.mark.parametrize(
    ("loads", "bound", "order"),
    [
        ([0, 0], 0.5, [0, 1]),  # nothing under way: where the hash points
        ([3, 3], 3.5, [0, 1]),
        ([5, 2], 4.0, [1, 0]),
        ([4, 3], 4.0, [1, 0]),
        ([4, 3], 4.1, [0, 1]),
        ([8, 1, 7], 7.0, [1, 0, 2]),
        ([9, 8, 9], 2.0, [0, 1, 2]),  # all have too many
    ],
)
def test_who_has_too_many_under_way_is_passed_by(loads: list[int], bound: float, order: list[int]) -> None:
    assert within_bound(list(range(len(loads))), loads, bound) == order
