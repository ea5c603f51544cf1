"""What a request is routed by."""

import pytest

pytest.importorskip("ray")
from rediprune.runtime.serving.cluster.ray_router import picture_key


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
