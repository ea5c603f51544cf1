"""What handing kept tokens to vLLM adds to a request: the time to its first token through the server's decoder and straight
from vLLM, in turn.

    python -m rediprune.export.bench.scale.handoff_overhead engines/demo-fp32 http://127.0.0.1:8001/v1 --image scene.png

Both send the same body; straight it lies ready, through the decoder it is made of the prompt (array → .npy → base64 → JSON).
"""

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from ....runtime import Pipeline
from ....runtime.prepared_request import PreparedRequest
from ....runtime.serving.protocol import ChatRequest
from ....runtime.serving.remote_decoder import RemoteDecoder, RemoteSettings
from ....runtime.serving.serve_settings import RequestLimits, ServeSettings
from ....runtime.serving.translate import Translated, translate
from ....runtime.serving.vllm_protocol import chat_body, kept_embeds, read_event, wire_messages

QUESTION = "What is above the orange triangle?"


def body_of(asked: Translated, prepared: PreparedRequest, model: str) -> dict[str, Any]:
    """What goes over the wire."""
    messages = wire_messages(asked.messages, kept_embeds(prepared.prompt))
    stop = tuple(prepared.stop_ids)
    return chat_body(model, messages, prepared.sampling, asked.generation, stop, asked.ignore_eos, None)


async def straight(client: httpx.AsyncClient, url: str, body: bytes) -> float:
    """Seconds to the first token of a body that lies ready."""
    began, first = time.perf_counter(), 0.0
    headers = {"content-type": "application/json"}
    async with client.stream("POST", f"{url}/chat/completions", content=body, headers=headers) as reply:
        async for line in reply.aiter_lines():
            delta = read_event(line)
            if delta is not None and delta.token_ids and not first:
                first = time.perf_counter() - began
    return first


async def through(decoder: RemoteDecoder, asked: Translated, prepared: PreparedRequest) -> float:
    """Seconds to the first token through the decoder."""
    ended: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    began, first = time.perf_counter(), 0.0

    def deliver(piece: Any) -> None:
        nonlocal first
        first = first or time.perf_counter() - began
        if getattr(piece, "error", None) is not None:
            ended.set_exception(piece.error)
        elif piece.finish_reason is not None:
            ended.set_result(first)

    decoder.submit(asked, prepared, deliver)
    return await ended


async def measure(pipeline: Pipeline, url: str, image: bytes, requests: int, keep: float) -> dict[str, float]:
    """Medians, in milliseconds."""
    decoder = RemoteDecoder(pipeline, ServeSettings(), RemoteSettings(url))
    request = {
        "model": "m",
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": "x"}, {"type": "text", "text": QUESTION}]}
        ],
        "max_tokens": 4,
        "temperature": 0,
        "keep": keep,
    }
    asked = translate(ChatRequest.model_validate(request), RequestLimits(), {})
    model = httpx.get(f"{url}/models", trust_env=False).json()["data"][0]["id"]
    times: dict[str, list[float]] = {"straight": [], "through": [], "making the body": [], "copying the tokens": []}

    def ready() -> PreparedRequest:
        return pipeline.prepare(asked.messages, [image], selection=asked.selection, generation=asked.generation)

    size = 0
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        for number in range(requests + 3):
            prepared = ready()
            began = time.perf_counter()
            body = json.dumps(body_of(asked, prepared, model)).encode()
            made = time.perf_counter() - began
            [tokens] = kept_embeds(prepared.prompt)
            began = time.perf_counter()
            np.copy(tokens)
            copied = time.perf_counter() - began
            size = tokens.nbytes
            one, two = await straight(client, url, body), await through(decoder, asked, prepared)
            if number >= 3:
                for name, seconds in zip(times, (one, two, made, copied), strict=True):
                    times[name].append(seconds)
    found = {f"{name}, ms": 1e3 * statistics.median(seconds) for name, seconds in times.items()}
    added = [two - one for one, two in zip(times["straight"], times["through"], strict=True)]
    return found | {"added, ms": 1e3 * statistics.median(added), "kept tokens, bytes": float(size)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("url")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--keep", type=float, default=0.15)
    given = parser.parse_args()
    pipeline = Pipeline.load(given.bundle, "ort")
    found = asyncio.run(measure(pipeline, given.url, given.image.read_bytes(), given.requests, given.keep))
    print(json.dumps({name: round(value, 3) for name, value in found.items()}, indent=1))


if __name__ == "__main__":
    main()
