"""vLLM's chat API as a decoder is asked through it: kept tokens as `image_embeds`, token ids back.

The fields are those of vLLM 0.32 and 0.33; `tests/runtime/serving/recorded/` holds an exchange as it went over the wire.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..options import GenerateOptions
from ..prompt_encoder import PromptEmbeds
from ..sampling import Sampling

Messages = Sequence[Mapping[str, Any]]


class WireError(Exception):
    """What came back is not what vLLM sends."""


@dataclass(frozen=True)
class Delta:
    """What one event of a stream brought.

    Attributes:
        prompt_ids: of the prompt as vLLM read it, with the first event.
        token_ids: generated since the last event.
        logprobs: of these, as OpenAI writes them, where they were asked for.
        finish_reason: with the last token.
        usage: with the last event.
        error: vLLM's own message, where the answer failed after it had begun.
    """

    prompt_ids: list[int] | None = None
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[dict[str, Any], ...] = ()
    finish_reason: str | None = None
    usage: Mapping[str, Any] | None = None
    error: str | None = None


def npy_base64(array: np.ndarray) -> str:
    """An array in numpy's own file format, in base64: what vLLM reads without unpickling anything."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return base64.b64encode(buffer.getbuffer()).decode("ascii")


def kept_embeds(prompt: PromptEmbeds) -> list[np.ndarray]:
    """Of a prompt the kept tokens of each picture [n, D], in order.

    They stand in the prompt's embeddings already, in place of the pictures' placeholders.
    """
    embeds, found, at = np.asarray(prompt.embeds), [], 0
    placeholders = {visual.spec.placeholder for visual in prompt.visuals}
    counts = iter(len(visual.places()) // visual.parts for visual in prompt.visuals for _ in range(visual.parts))
    for token in prompt.ids:
        count = next(counts) if token in placeholders else 1
        if token in placeholders:
            found.append(embeds[at : at + count])
        at += count
    assert at == len(embeds)
    return found


def expanded_ids(prompt: PromptEmbeds) -> list[int]:
    """Token ids of a prompt with a placeholder for every kept token: what vLLM must make of the messages."""
    placeholders = {visual.spec.placeholder for visual in prompt.visuals}
    counts = iter(len(visual.places()) // visual.parts for visual in prompt.visuals for _ in range(visual.parts))
    ids: list[int] = []
    for token in prompt.ids:
        ids += [token] * (next(counts) if token in placeholders else 1)
    return ids


def wire_messages(messages: Messages, pictures: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Messages in transformers' form as vLLM's, each picture as its kept tokens [n, D]."""
    embeds = iter(pictures)
    return [
        {
            "role": message["role"],
            "content": [
                {"type": "text", "text": part["text"]}
                if part["type"] == "text"
                else {"type": "image_embeds", "image_embeds": npy_base64(next(embeds))}
                for part in message["content"]
            ],
        }
        for message in messages
    ]


def chat_body(
    model: str,
    messages: list[dict[str, Any]],
    sampling: Sampling,
    asked: GenerateOptions,
    stop_ids: Sequence[int],
    ignore_eos: bool,
    top_logprobs: int | None,
) -> dict[str, Any]:
    """The body of POST /v1/chat/completions: every setting is said, so that vLLM's own defaults have no say.

    Stop strings are not sent: they are looked for where the text is made, in one way for all decoders.
    """
    body: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "add_special_tokens": True,
        "max_tokens": asked.max_new_tokens,
        "temperature": sampling.temperature,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": asked.presence_penalty or 0.0,
        "frequency_penalty": asked.frequency_penalty or 0.0,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "ignore_eos": ignore_eos,
        "stop_token_ids": [] if ignore_eos else sorted(stop_ids),
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if top_logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": top_logprobs}
    return body


def tokenize_body(model: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The body of POST /tokenize, which tells what vLLM makes of messages without computing anything."""
    return {"model": model, "messages": messages, "add_generation_prompt": True, "add_special_tokens": True}


def read_event(line: str) -> Delta | None:
    """A line of a stream; None where it brings nothing.

    Raises:
        WireError: it is none of vLLM's.
    """
    if not line.startswith("data:") or line[5:].strip() in ("", "[DONE]"):
        return None
    try:
        told = json.loads(line[5:])
        if "error" in told:
            error = told["error"]
            return Delta(error=str(error.get("message", error) if isinstance(error, dict) else error)[:300])
        choice = told["choices"][0] if told["choices"] else {}
        logprobs = (choice.get("logprobs") or {}).get("content") or ()
        return Delta(
            prompt_ids=told.get("prompt_token_ids"),
            token_ids=tuple(int(token) for token in choice.get("token_ids") or ()),
            logprobs=tuple(map(_logprob, logprobs)),
            finish_reason=choice.get("finish_reason"),
            usage=told.get("usage"),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WireError(f"an event of the stream is not as vLLM sends them ({type(error).__name__})") from error


def error_message(body: bytes) -> str:
    """The message of an error reply, shortened; of vLLM's and of OpenAI's form."""
    try:
        told = json.loads(body)
        error = told.get("error", told)
        return str(error.get("message", error))[:300]
    except (ValueError, AttributeError):
        return body[:100].decode("utf-8", "replace")


def _logprob(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A token's log probability with OpenAI's fields alone."""

    def plain(told: Mapping[str, Any]) -> dict[str, Any]:
        return {name: told[name] for name in ("token", "logprob", "bytes")}

    return plain(entry) | {"top_logprobs": [plain(each) for each in entry.get("top_logprobs") or ()]}
