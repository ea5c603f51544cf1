"""Response bodies of the chat API, as OpenAI's clients read them, with our own figures under `rediprune`."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image


def completion(
    identity: Mapping[str, Any],
    text: str,
    finish_reason: str,
    usage: Mapping[str, Any],
    own: Mapping[str, Any],
    logprobs: Sequence[Mapping[str, Any]] | None,
) -> dict[str, Any]:
    """A whole answer.

    Args:
        identity: `id`, `created` and `model`.
        text: the answer.
        finish_reason: "stop" or "length".
        usage: from `usage`.
        own: what only this server says.
        logprobs: of its tokens, where they were asked for.
    """
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None if logprobs is None else {"content": list(logprobs), "refusal": None},
        "finish_reason": finish_reason,
    }
    return {**identity, "object": "chat.completion", "choices": [choice], "usage": dict(usage), "rediprune": dict(own)}


def chunk(
    identity: Mapping[str, Any],
    delta: Mapping[str, Any] | None,
    finish_reason: str | None = None,
    logprobs: Sequence[Mapping[str, Any]] | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """A piece of an answer; without a delta, one without choices, which carries `extra` alone."""
    choices = []
    if delta is not None:
        content = None if logprobs is None else {"content": list(logprobs), "refusal": None}
        choices = [{"index": 0, "delta": dict(delta), "logprobs": content, "finish_reason": finish_reason}]
    return {**identity, "object": "chat.completion.chunk", "choices": choices, **extra}


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int, visual: Mapping[str, int]) -> dict[str, Any]:
    """Tokens of a request.

    Args:
        prompt_tokens: positions of the prompt, kept visual tokens among them.
        completion_tokens: generated ones.
        cached_tokens: of the prompt, those whose KV cache was there.
        visual: kept visual tokens by kind, "image" and "video".
    """
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": cached_tokens,
            "image_tokens": sum(visual.values()),
            "multimodal_tokens": dict(visual),
        },
    }


def png_uri(image: Image.Image) -> str:
    """A picture as a data: URI."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
