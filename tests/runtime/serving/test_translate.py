"""From bodies to what a pipeline takes."""

import asyncio
import base64
from typing import Any

import pytest
from rediprune.runtime.options import GenerateOptions, SelectOptions
from rediprune.runtime.serving.api_error import ApiError
from rediprune.runtime.serving.media_fetch import MediaPolicy
from rediprune.runtime.serving.protocol import ChatRequest
from rediprune.runtime.serving.serve_settings import RequestLimits
from rediprune.runtime.serving.translate import Translated, fetch_media, translate

LIMITS = RequestLimits(max_items=3, max_frames=16, max_tokens=100, default_tokens=40, max_text=200)


def uri(kind: str, data: bytes) -> str:
    return f"data:{kind}/x;base64,{base64.b64encode(data).decode()}"


IMAGE = {"type": "image_url", "image_url": {"url": uri("image", b"one")}}
VIDEO = {"type": "video_url", "video_url": uri("video", b"two")}
FILE = {"type": "file", "file": {"file_data": uri("video", b"three"), "format": "video/mp4"}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def translated(defaults: dict[str, Any] | None = None, **body: Any) -> Translated:
    request = ChatRequest.model_validate({"model": "m", "messages": [user(text("What?"))]} | body)
    return translate(request, LIMITS, defaults or {})


def refused(**body: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        translated(**body)
    assert caught.value.status == 400
    return caught.value


def test_a_dialogue_keeps_its_order_and_its_media() -> None:
    messages = [
        {"role": "developer", "content": "Be short."},
        user(text("First"), IMAGE, VIDEO),
        {"role": "assistant", "content": [text("An answer.")]},
        {"role": "assistant", "content": None},
        user(FILE, text("And this?")),
    ]
    got = translated(messages=messages)
    assert got.messages == [
        {"role": "system", "content": [text("Be short.")]},
        {"role": "user", "content": [text("First"), {"type": "image"}, {"type": "video"}]},
        {"role": "assistant", "content": [text("An answer.")]},
        {"role": "assistant", "content": [text("")]},
        {"role": "user", "content": [{"type": "video"}, text("And this?")]},
    ]
    assert [(ref.kind, ref.param) for ref in got.media] == [
        ("image", "messages[1].content[1].image_url"),
        ("video", "messages[1].content[2].video_url"),
        ("video", "messages[4].content[0].file.file_data"),
    ]
    assert asyncio.run(fetch_media(got.media, MediaPolicy())) == ([b"one"], [b"two", b"three"])


def test_settings_that_are_nearer_to_the_request_count_first() -> None:
    defaults = {"keep": 0.1, "alpha": 0.2, "tau": 0.3, "frames": 4}
    assert translated(defaults).selection == SelectOptions(**defaults)
    kwargs = {"mm_processor_kwargs": {"keep": 0.5, "alpha": 0.6, "do_pan_and_scan": True}}
    assert translated(defaults, **kwargs).selection == SelectOptions(keep=0.5, alpha=0.6, tau=0.3, frames=4)
    frames = {"media_io_kwargs": {"video": {"num_frames": 8, "fps": 2}, "image": {}}}
    own = {"keep": 7, "frames": 9, "prune_tiles": True}
    assert translated(defaults, **kwargs, **frames).selection.frames == 8
    assert translated(defaults, **kwargs, **frames, **own).selection == SelectOptions(
        keep=7, alpha=0.6, tau=0.3, frames=9, prune_tiles=True
    )
    sizes = {"mm_processor_kwargs": {"min_pixels": 3136, "max_pixels": 100_352}}  # as Qwen-VL's users send them
    assert translated(**sizes).selection == SelectOptions(min_pixels=3136, max_pixels=100_352)
    assert translated(**sizes, max_pixels=50_176).selection.max_pixels == 50_176


def test_keep_1_is_all_of_them_however_json_writes_it() -> None:
    for keep in (1, 1.0):
        got = translated(keep=keep).selection.keep
        assert got == 1.0 and isinstance(got, float)
    assert isinstance(translated(keep=2).selection.keep, int)
    assert isinstance(translated(mm_processor_kwargs={"keep": 1}).selection.keep, float)


def test_generation_settings() -> None:
    assert translated().generation == GenerateOptions(max_new_tokens=40)
    assert translated(max_tokens=5, max_completion_tokens=6).generation.max_new_tokens == 6
    body = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 3, "stop": "."}
    assert translated(**body).generation == GenerateOptions(
        max_new_tokens=40, temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, seed=3, stop=(".",)
    )
    # Clients send the others along with temperature 0, which is greedy.
    assert translated(**body | {"temperature": 0}).generation == GenerateOptions(
        max_new_tokens=40, temperature=0, stop=(".",)
    )
    assert translated(top_k=-1).generation.top_k is None
    penalties = {"presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.1}
    assert translated(**penalties).generation == GenerateOptions(max_new_tokens=40, **penalties)


def test_a_text_that_no_model_has_room_for_is_refused_before_it_is_encoded() -> None:
    assert RequestLimits().of_model(4096).max_text == 32 * 4096
    assert LIMITS.of_model(4096) == LIMITS
    assert RequestLimits().of_model(10**6).max_text == 1_000_000


def test_the_first_turn_steers_where_nothing_is_selected_anew() -> None:
    turns = [{"role": "system", "content": "S"}, user(text("A")), user(IMAGE, text("B")), user(text("C"))]
    off: dict[str, Any] = {"rediprune": {"reselect": False}}
    assert translated(messages=turns).first_turn is None
    got = translated(messages=turns, **off)
    assert got.first_turn == got.messages[:3]
    got = translated(messages=[turns[1]], **off)
    assert got.first_turn == got.messages


def test_how_the_answer_is_given() -> None:
    got = translated(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})
    assert got.stream and got.include_usage and got.continuous_usage
    assert translated(logprobs=True).top_logprobs == 0 and translated(logprobs=True, top_logprobs=4).top_logprobs == 4
    assert translated().top_logprobs is None and not translated().return_overlay
    assert translated(rediprune={"return_overlay": True}).return_overlay
    assert translated(ignore_eos=True).ignore_eos


@pytest.mark.parametrize(
    "body",
    [
        {"n": 1, "logit_bias": {}, "response_format": {"type": "text"}, "tool_choice": "auto", "tools": [{}]},
        {"best_of": 1, "min_tokens": 0, "modalities": ["text"], "guided_json": None, "echo": False},
        {"top_logprobs": None, "stop": None, "stream": None, "add_generation_prompt": True},
    ],
)
def test_what_asks_for_nothing_is_taken(body: dict[str, Any]) -> None:
    assert translated(**body) == translated()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 2}, "n"),
        ({"n": 0}, "n"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"structured_outputs": {"json": {}}}, "structured_outputs"),
        ({"min_tokens": 3}, "min_tokens"),
        ({"best_of": 2}, "best_of"),
        ({"stop": list("abcde")}, "stop"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"seed": -1}, "seed"),
        ({"max_tokens": 101}, "max_tokens"),
        ({"keep": 0.0}, "keep"),
        ({"keep": -1}, "keep"),
        ({"mm_processor_kwargs": {"keep": "half"}}, "keep"),
        ({"mm_processor_kwargs": {"prune_tiles": "yes"}}, "prune_tiles"),
        ({"alpha": -1}, "alpha"),
        ({"frames": 17}, "frames"),
        ({"frames": 0}, "frames"),
        ({"media_io_kwargs": {"video": {"num_frames": 1.5}}}, "frames"),
        ({"frame_tolerance": -1}, "frame_tolerance"),
        ({"messages": [user(IMAGE, IMAGE, VIDEO, VIDEO, text("x"))]}, "messages"),
        ({"messages": [user(text("x" * 201))]}, "messages"),
        ({"messages": [user(IMAGE), {"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [user(text(" "))]}, "messages"),
        ({"messages": [{"role": "system", "content": [IMAGE]}, user(text("x"))]}, "messages[0].content[0].image_url"),
    ],
)
def test_what_cannot_be_obeyed_names_its_field(body: dict[str, Any], param: str) -> None:
    error = refused(**body)
    assert error.param == param and param.split("[")[0] in error.message


def test_a_picture_without_words_is_a_question() -> None:
    assert translated(messages=[user(IMAGE)]).messages[0]["content"] == [{"type": "image"}]
