"""Request shapes of the clients that people have, built by hand from what their sources send; no code of theirs is here."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from rediprune.runtime.serving.media_fetch import MediaPolicy
from rediprune.runtime.serving.serve_settings import ServeSettings

from .conftest import Running


def open_webui(uri: str) -> dict[str, Any]:
    """Open WebUI 0.12: pictures as base64, tools sent along, max_tokens in place of max_completion_tokens, usage in streams."""
    tool = {"name": "get_time", "description": "The time.", "parameters": {"type": "object", "properties": {}}}
    return {
        "stream": True,
        "messages": [
            {"role": "system", "content": "User Context:\n\n"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is in it?"},
                    {"type": "image_url", "image_url": {"url": uri}},
                ],
            },
        ],
        "stream_options": {"include_usage": True},
        "tools": [{"type": "function", "function": tool}],
        "max_tokens": 3,
        "temperature": 0.8,
        "top_p": 0.9,
        "seed": 42,
        "min_p": 0.05,
        "frequency_penalty": 0.5,
        "presence_penalty": 0.1,
        "keep": 0.25,  # its "custom parameters" are top-level keys
    }


def open_webui_title(uri: str) -> dict[str, Any]:
    """What Open WebUI asks by itself after an answer: a title, from the dialogue as one text."""
    task = "### Task:\nGenerate a concise title.\n### Chat History:\n<chat_history>\nUSER: x\n</chat_history>"
    return {"messages": [{"role": "user", "content": task}], "stream": False, "max_completion_tokens": 3}


def librechat(uri: str) -> dict[str, Any]:
    """LibreChat's custom endpoint: detail in the picture, user and penalties unless dropParams says otherwise."""
    return {
        "temperature": 1,
        "top_p": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "user": "65a1f0c2e4b0",
        "stream": True,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is in it?"},
                    {"type": "image_url", "image_url": {"url": uri, "detail": "auto"}},
                ],
            },
            {"role": "assistant", "content": "A cat."},
            {"role": "user", "content": "Sure?"},
        ],
        "stop": ["||>", "\nUser:"],
        "max_tokens": 3,
        "alpha": 0.7,  # addParams
    }


def litellm(uri: str) -> dict[str, Any]:
    """LiteLLM's hosted_vllm provider: extra_body merged into the root, a picture as a bare string, nothing left out."""
    return {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": uri}, {"type": "text", "text": "What is in it?"}],
            }
        ],
        "max_completion_tokens": 3,
        "n": 1,
        "tools": None,
        "tool_choice": None,
        "response_format": {"type": "text"},
        "parallel_tool_calls": None,
        "logit_bias": None,
        "reasoning_effort": None,
        "mm_processor_kwargs": {"keep": 0.5},
        "metadata": {"trace": "x"},
    }


def lmms_eval(uri: str) -> dict[str, Any]:
    """lmms-eval's async_openai: one message per turn, pictures first, max_tokens, temperature 0 with top_p, no extra keys."""
    content = [{"type": "image_url", "image_url": {"url": uri}}] * 2 + [{"type": "text", "text": "What is in them?"}]
    return {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 3,
        "temperature": 0,
        "top_p": 1,
        "n": 1,
        "model": "tiny@0.15",  # it can set nothing else
    }


@pytest.mark.parametrize("shape", [open_webui, open_webui_title, librechat, litellm, lmms_eval])
def test_what_clients_send_is_answered(tiny: Running, shape: Callable[[str], Any], as_uri: Any, cat: Path) -> None:
    body = {"model": "tiny"} | shape(as_uri(cat))
    reply = tiny.post(body, Authorization="Bearer sk-anything")
    assert reply.status_code == 200, reply.text
    if body.get("stream"):
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.text.rstrip().endswith("data: [DONE]") and '"finish_reason":"' in reply.text
        assert ('"usage":' in reply.text) == ("stream_options" in body)
    else:
        assert reply.json()["choices"][0]["message"]["role"] == "assistant"


def test_models_are_discovered_as_open_webui_and_librechat_do(tiny: Running) -> None:
    listed = httpx.get(f"{tiny.url}/v1/models", headers={"Authorization": "Bearer x"}).json()
    assert listed["object"] == "list" and {"tiny", "tiny@0.15"} <= {model["id"] for model in listed["data"]}


def clips(uri: str) -> list[dict[str, Any]]:
    """A clip as LiteLLM's callers, vLLM's and lmms-eval's send it."""
    return [
        {"type": "file", "file": {"file_data": uri, "format": "video/mp4"}},
        {"type": "video_url", "video_url": {"url": uri}},
        {"type": "video_url", "video_url": uri},
    ]


def test_clips_are_the_same_in_every_form(tiny: Running, as_uri: Any, clip: Path) -> None:
    replies = []
    for part in clips(as_uri(clip)):
        messages = [{"role": "user", "content": [part, {"type": "text", "text": "What happens?"}]}]
        fields = {"media_io_kwargs": {"video": {"num_frames": 3}}, "keep": 4, "max_tokens": 4}
        replies.append(tiny.post({"model": "tiny", "messages": messages} | fields).json())
    assert len({reply["choices"][0]["message"]["content"] for reply in replies}) == 1
    assert {reply["usage"]["prompt_tokens_details"]["multimodal_tokens"]["video"] for reply in replies} == {12}


def test_lmms_eval_passes_videos_as_files(
    serve: Callable[..., Any], bundle_of: Callable[[str], Path], clip: Path
) -> None:
    """With pass_video_url=True; the server must have been told the folder."""
    video = {"type": "video_url", "video_url": {"url": f"file://{clip}"}}
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": [video, {"type": "text", "text": "What happens?"}]}],
        "max_tokens": 3,
        "media_io_kwargs": {"video": {"num_frames": 4}},
    }
    with serve({"tiny": bundle_of("llava_next_video")}, ServeSettings(media=MediaPolicy(folder=clip.parent))) as server:
        assert len(server.post(body).json()["rediprune"]["kept"][0]) == 4


# -- the official client -----------------------------------------------------------------------------------------------


def test_errors_are_the_clients_own(tiny: Running) -> None:
    client = tiny.client()
    hello: Any = [{"role": "user", "content": "Hello?"}]
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="other", messages=hello)
    assert unknown.value.code == "model_not_found" and unknown.value.param == "model"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="tiny", messages=hello, n=3)
    assert bad.value.param == "n" and bad.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="tiny", input="x")


def test_an_asynchronous_stream_and_one_that_is_left(tiny: Running, ask: Any) -> None:
    async def run() -> tuple[str, int]:
        async with openai.AsyncOpenAI(base_url=f"{tiny.url}/v1", api_key="none") as client:
            arguments: Any = {"model": "tiny", "messages": ask("Go on."), "stream": True}
            whole = ""
            async for chunk in await client.chat.completions.create(**arguments, max_tokens=12):
                whole += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            seen = 0
            async with await client.chat.completions.create(**arguments, max_tokens=60) as stream:
                async for _ in stream:
                    seen += 1
                    if seen == 3:
                        break
            return whole, seen

    whole, seen = asyncio.run(run())
    assert whole == tiny.pipeline.generate("Go on.", max_new_tokens=12).text and seen == 3
    assert tiny.comes_to_rest()


def test_the_clients_helper_for_streams(tiny: Running, ask: Any) -> None:
    arguments: Any = {"model": "tiny", "messages": ask("Go on."), "max_tokens": 8}
    with (
        pytest.raises(openai.LengthFinishReasonError) as cut,  # what the helper makes of "length"
        tiny.client().chat.completions.stream(**arguments) as stream,
    ):
        stream.get_final_completion()
    expected = tiny.pipeline.generate("Go on.", max_new_tokens=8).text
    assert cut.value.completion.choices[0].message.content == expected


def test_the_raw_reply_has_the_request_id(tiny: Running, ask: Any) -> None:
    raw = tiny.client().chat.completions.with_raw_response.create(model="tiny", messages=ask("Hi"), max_tokens=1)
    assert raw.request_id and raw.parse().id == f"chatcmpl-{raw.request_id}"
