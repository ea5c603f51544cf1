"""The wire format of vLLM's chat API, piece by piece."""

import base64
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rediprune.runtime.serving.vllm_protocol import (
    Delta,
    WireError,
    error_message,
    npy_base64,
    read_event,
    wire_messages,
)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_arrays_travel_as_npy_without_pickles(dtype: type) -> None:
    array = np.arange(12, dtype=dtype).reshape(3, 4).T  # not contiguous
    data = base64.b64decode(npy_base64(array))
    assert data.startswith(b"\x93NUMPY")
    found = np.load(io.BytesIO(data), allow_pickle=False)
    assert found.dtype == dtype and np.array_equal(found, array) and found.flags.c_contiguous


def test_pictures_stand_where_they_stood() -> None:
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "s"}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}, {"type": "image"}]},
    ]
    one, two = np.zeros((2, 4), np.float32), np.ones((3, 4), np.float32)
    wired = wire_messages(messages, [one, two])
    assert wired[0] == {"role": "system", "content": [{"type": "text", "text": "s"}]}
    kinds = [part["type"] for part in wired[1]["content"]]
    assert kinds == ["image_embeds", "text", "image_embeds"]
    assert wired[1]["content"][2]["image_embeds"] == npy_base64(two)


def test_events_are_read() -> None:
    def event(**fields: object) -> str:
        return "data: " + json.dumps({"choices": [{"delta": {}, "finish_reason": None} | fields]})

    assert read_event("") is None and read_event(": ping") is None and read_event("data: [DONE]") is None
    assert read_event(event(token_ids=[3, 4])) == Delta(token_ids=(3, 4))
    assert read_event(event(finish_reason="length", token_ids=None)) == Delta(finish_reason="length")
    assert read_event('data: {"choices": [], "usage": {"prompt_tokens": 3}}') == Delta(usage={"prompt_tokens": 3})
    assert read_event('data: {"error": {"message": "m"}}') == Delta(error="m")
    entry = {
        "token": "a",
        "logprob": -1.0,
        "bytes": [97],
        "rank": 1,
        "top_logprobs": [{"token": "b", "logprob": -2.0, "bytes": None}],
    }
    delta = read_event(event(token_ids=[1], logprobs={"content": [entry]}))
    assert delta is not None
    assert delta.logprobs == (
        {
            "token": "a",
            "logprob": -1.0,
            "bytes": [97],
            "top_logprobs": [{"token": "b", "logprob": -2.0, "bytes": None}],
        },
    )


@given(st.text())
def test_what_vllm_never_sends_is_told(text: str) -> None:
    try:
        read_event(f"data: {text}")
        read_event(text)
    except WireError as error:
        assert "vLLM" in str(error)


def test_error_replies_of_any_form_have_a_message() -> None:
    assert error_message(b'{"error": {"message": "m"}}') == "m"
    assert error_message(b'{"message": "m"}') == "m"
    assert error_message(b"<html>no</html>") == "<html>no</html>"
    assert error_message(b"[1]")
