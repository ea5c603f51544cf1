"""Bodies as clients write them."""

from typing import Any

import pytest
from pydantic import ValidationError
from rediprune.runtime.serving.protocol import MAX_MESSAGES, ChatRequest, ImagePart, MediaUrl, VideoPart

HELLO = {"role": "user", "content": "Hello?"}


def parsed(**body: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "m", "messages": [HELLO]} | body)


def test_a_picture_may_be_an_object_or_a_string() -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": "data:a", "detail": "high"}},
        {"type": "image_url", "image_url": "data:a"},
        {"type": "video_url", "video_url": "data:a"},
    ]
    content = parsed(messages=[{"role": "user", "content": parts}]).messages[0].content
    assert isinstance(content, list)
    first, second, third = content
    assert isinstance(first, ImagePart) and isinstance(first.image_url, MediaUrl) and first.image_url.url == "data:a"
    assert isinstance(second, ImagePart) and second.image_url == "data:a"
    assert isinstance(third, VideoPart)


def test_null_is_as_good_as_left_out() -> None:
    """LiteLLM and others send every field that they know."""
    fields = [name for name in ChatRequest.model_fields if name not in ("model", "messages", "rediprune")]
    request = parsed(**dict.fromkeys(fields))
    assert request.max_tokens is None and not request.stream


def test_unknown_fields_stay_where_they_are_seen() -> None:
    assert parsed(guided_json={}, user="me").model_extra == {"guided_json": {}, "user": "me"}


@pytest.mark.parametrize(
    "body",
    [
        {"messages": []},
        {"messages": [HELLO] * (MAX_MESSAGES + 1)},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_embeds", "image_embeds": "x"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"temperature": -0.1},
        {"top_p": 0},
        {"top_k": -2},
        {"min_p": 2},
        {"presence_penalty": -3},
        {"repetition_penalty": 1e-300},  # the logits would be infinite
        {"stop": [1]},
        {"stream": "perhaps"},
        {"rediprune": {"reselect": 7}},
        {"media_io_kwargs": {"video": 3}},
    ],
)
def test_what_is_no_request(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        parsed(**body)
