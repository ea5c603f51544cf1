"""Runs a load test against a server that speaks OpenAI's chat API, and measures what clients see."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from ...errors import RedipruneError
from .load_requests import LoadTest


@dataclass
class Step:
    """What a number of clients saw at one keep ratio.

    Attributes:
        keep: the ratio.
        clients: how many there were.
        seconds: from the first request to the last answer.
        first: seconds from a request to its first token, of every answered one.
        whole: seconds from a request to the end of its answer.
        tokens: generated, of all.
        kept, visual: visual tokens kept and before pruning, of all.
        failures: by status or what went wrong.
    """

    keep: float
    clients: int
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    tokens: int = 0
    kept: int = 0
    visual: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def figures(self) -> dict[str, Any]:
        """The step as plain numbers; seconds but for the rates."""

        def percentiles(seconds: Sequence[float]) -> dict[str, float | None]:
            points = {"p50": 50, "p95": 95, "p99": 99}
            return {name: float(np.percentile(seconds, at)) if seconds else None for name, at in points.items()}

        return {
            "keep": self.keep,
            "clients": self.clients,
            "answered": len(self.whole),
            "failures": dict(self.failures),
            "seconds": self.seconds,
            "requests_per_second": len(self.whole) / self.seconds,
            "tokens_per_second": self.tokens / self.seconds,
            "tokens": self.tokens,
            "visual_tokens": self.visual,
            "kept_tokens": self.kept,
            "time_to_first_token": percentiles(self.first),
            "latency": percentiles(self.whole),
        }


async def run_load_test(
    url: str, asked: LoadTest, api_key: str | None, tell: Callable[[str], object], timeout: float = 600
) -> list[Step]:
    """Every step of a load test, one after another.

    Args:
        url: of the server, with or without /v1.
        asked: what is asked.
        api_key: sent as a bearer token.
        tell: is told what goes on, a line a step.
        timeout: seconds that one answer may take.

    Raises:
        RedipruneError: the server does not answer, or not to the first request.
    """
    base = url.rstrip("/").removesuffix("/v1")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    most = max(asked.clients)
    limits = httpx.Limits(max_connections=most, max_keepalive_connections=most)
    steps = []
    try:
        async with httpx.AsyncClient(
            base_url=base, headers=headers, timeout=timeout, limits=limits, trust_env=False
        ) as client:
            for keep in asked.keeps:
                warm = Step(keep, 1)
                for body in [*asked.warming(keep), *asked.bodies(keep, 1, 0)]:
                    await _ask(client, body, warm)
                if warm.failures:
                    raise RedipruneError(f"{base} does not answer as it should: {next(iter(warm.failures))}")
                for clients in asked.clients:
                    step = await _step(client, asked, keep, clients, len(steps) + 1)
                    steps.append(step)
                    rate = len(step.whole) / step.seconds
                    tell(f"keep {keep:g}, {clients} clients: {rate:.2f} requests/s, {step.failures.total()} failures")
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise RedipruneError(f"'{url}' is no address of a server; give one such as http://127.0.0.1:8000") from None
    return steps


def first_model(url: str, api_key: str | None) -> str:
    """The first model that a server lists.

    Raises:
        RedipruneError: it lists none, or does not answer.
    """
    base = url.rstrip("/").removesuffix("/v1")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        reply = httpx.get(f"{base}/v1/models", headers=headers, timeout=10, trust_env=False)
        if reply.status_code != 200:
            raise RedipruneError(f"{base} answers {reply.status_code}: {_message(reply.text)}")
        return str(reply.json()["data"][0]["id"])
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RedipruneError(f"{base} does not answer ({type(error).__name__}); is the server running?") from None
    except (ValueError, KeyError, IndexError, TypeError):
        raise RedipruneError(f"{base} lists no models; give --model") from None


async def _step(client: httpx.AsyncClient, asked: LoadTest, keep: float, clients: int, number: int) -> Step:
    step = Step(keep, clients)
    waiting = iter(asked.bodies(keep, asked.count(clients), number))

    async def work() -> None:
        for body in waiting:  # shared: whoever is free takes the next
            await _ask(client, body, step)

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(clients)))
    step.seconds = time.perf_counter() - began
    return step


async def _ask(client: httpx.AsyncClient, body: dict[str, Any], step: Step) -> None:
    """One request; what it took goes into the step."""
    began, first, last = time.perf_counter(), None, {}
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
            if reply.status_code != 200:
                text = (await reply.aread()).decode("utf-8", "replace")
                step.failures[f"{reply.status_code} {_message(text)}"] += 1
                return
            async for line in reply.aiter_lines():
                if (
                    first is None
                    and line.startswith("data: {")
                    and '"content":"' in line
                    and '"content":""' not in line
                ):
                    first = time.perf_counter() - began
                if line.startswith('data: {"error"'):
                    step.failures[_message(line[6:])] += 1
                    return
                if '"usage":{' in line or '"rediprune":' in line:
                    last |= json.loads(line[6:])
    except httpx.HTTPError as error:
        step.failures[type(error).__name__] += 1
        return
    if not last.get("usage"):
        step.failures["the stream ended without usage"] += 1
        return
    step.whole.append(time.perf_counter() - began)
    step.first.append(step.whole[-1] if first is None else first)
    step.tokens += last["usage"]["completion_tokens"]
    step.kept += last.get("rediprune", {}).get("kept_tokens", 0)
    step.visual += last.get("rediprune", {}).get("visual_tokens", 0)


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["message"])[:200]
    except (ValueError, KeyError, TypeError):
        return text[:100]
