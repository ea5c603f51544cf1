"""What the server costs one client: time to the first token of `Pipeline` and of `rediprune serve`, in turn.

    python -m rediprune.export.bench.serve_overhead engines/demo-fp32 --requests 40

Both run on this machine, and requests alternate, so that what else it does falls on both alike. The picture's features are
known to both; prompts differ from their first words on, so that the server finds no prefix in its KV cache.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import httpx

from ...runtime import Pipeline
from ...runtime.serving.loadtest.load_requests import picture_png, picture_uri
from .soak_server import served

TOKENS = 4  # of an answer; the first is what is timed


def messages(number: int, uri: str | None) -> list[dict[str, Any]]:
    """A question, as the API takes it (with the picture's URI) or as a pipeline does."""
    picture = {"type": "image"} if uri is None else {"type": "image_url", "image_url": {"url": uri}}
    question = {"type": "text", "text": "What is in it?"}
    return [{"role": "system", "content": f"Number {number}."}, {"role": "user", "content": [picture, question]}]


def direct(pipeline: Pipeline, number: int, picture: bytes, keep: float) -> float:
    """Seconds from the call to the first token."""
    answer = pipeline.generate(messages(number, None), [picture], keep=keep, max_new_tokens=TOKENS)
    return answer.timings["time_to_first_token"]


def through_http(client: httpx.Client, model: str, number: int, uri: str, keep: float) -> tuple[float, float]:
    """Seconds from the request to the first token, as the client and as the server see it."""
    body = {"model": model, "messages": messages(number, uri), "max_tokens": TOKENS, "keep": keep, "stream": True}
    body |= {"logprobs": True, "stream_options": {"include_usage": True}}  # so that every token has its piece
    began, first, own, cached = time.perf_counter(), 0.0, 0.0, 0
    with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        for line in reply.iter_lines():
            if not first and '"logprobs":{' in line:
                first = time.perf_counter() - began
            if '"rediprune":' in line:
                own = json.loads(line[6:])["rediprune"]["timings"]["time_to_first_token"]
            if '"usage":{' in line:
                cached = json.loads(line[6:])["usage"]["prompt_tokens_details"]["cached_tokens"]
    if cached or not first:
        raise SystemExit(f"the server reused {cached} tokens, or gave no answer: nothing is measured")
    return first, own


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--keep", type=float, default=0.15)
    parser.add_argument("--backend", default="ort")
    given = parser.parse_args()
    uri, picture = picture_uri("overhead"), picture_png("overhead")
    pipeline = Pipeline.load(given.bundle, given.backend)
    began = time.perf_counter()
    with served({"m": given.bundle}, "1GB", "--backend", given.backend) as (url, _):
        ready = time.perf_counter() - began
        client = httpx.Client(base_url=url, timeout=300, trust_env=False)
        for number in (1, 2):  # both know the picture
            direct(pipeline, number, picture, given.keep)
            through_http(client, "m", number, uri, given.keep)
        alone, seen, own = [], [], []
        for number in range(3, given.requests + 3):
            alone.append(direct(pipeline, number, picture, given.keep))
            first, inside = through_http(client, "m", number, uri, given.keep)
            seen.append(first)
            own.append(inside)
    median = statistics.median
    found = {"pipeline": median(alone), "server": median(own), "client": median(seen), "ready": ready}
    found |= {"server_over_pipeline": found["server"] / found["pipeline"] - 1}
    found |= {"client_over_pipeline": found["client"] / found["pipeline"] - 1}
    print(json.dumps({name: round(value, 4) for name, value in found.items()}, indent=1))


if __name__ == "__main__":
    main()
