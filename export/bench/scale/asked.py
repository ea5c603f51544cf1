"""The requests of these measurements: questions about drawn pictures, some of which come again."""

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any

import httpx

from ....runtime.serving.loadtest.load_requests import picture_uri


def bodies(model: str, count: int, pictures: int, tokens: int, keep: float, seed: int = 0) -> list[dict[str, Any]]:
    """Requests for a model.

    Args:
        model: its name.
        count: how many.
        pictures: how many different ones they are about; the n-th most asked comes as often as 1/n says.
        tokens: of each answer.
        keep: ratio of visual tokens.
        seed: of what is drawn.
    """
    draw = random.Random(f"{seed} {count} {pictures}")
    uris = [picture_uri(f"scale {seed} {number}") for number in range(pictures)]
    weights = [1 / (number + 1) for number in range(pictures)]
    made = []
    for uri in draw.choices(uris, weights, k=count):
        picture = {"type": "image_url", "image_url": {"url": uri}}
        text = {"type": "text", "text": "Describe the picture."}
        body = {"model": model, "messages": [{"role": "user", "content": [picture, text]}], "keep": keep}
        made.append(body | {"max_tokens": tokens, "temperature": 0, "ignore_eos": True})
    return made


async def ask_all(url: str, asked: Sequence[dict[str, Any]], clients: int) -> tuple[float, list[str]]:
    """Seconds that a server takes for all requests, each client asking one after another; and the answers.

    Raises:
        SystemExit: one was not answered.
    """
    texts = [""] * len(asked)
    numbers = iter(range(len(asked)))

    async def work(client: httpx.AsyncClient) -> None:
        for number in numbers:
            reply = await client.post("/v1/chat/completions", json=asked[number])
            if reply.status_code != 200:
                raise SystemExit(f"{reply.status_code}: {reply.text[:300]}")
            texts[number] = reply.json()["choices"][0]["message"]["content"]

    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits, trust_env=False) as client:
        began = time.perf_counter()
        await asyncio.gather(*(work(client) for _ in range(clients)))
        return time.perf_counter() - began, texts


def hit_rate(url: str) -> float:
    """Share of the pictures whose features were there, over all replicas of a server."""
    text = httpx.get(f"{url}/metrics", timeout=30, trust_env=False).text
    sums = dict.fromkeys(("queries", "hits"), 0.0)
    for line in text.splitlines():
        for name in sums:
            if line.startswith(f"rediprune:mm_cache_{name}_total{{"):
                sums[name] += float(line.rpartition(" ")[2])
    return sums["hits"] / max(sums["queries"], 1)
