"""A soak of the server: many requests of every kind at once, each answer held against `Pipeline`'s, memory against growth.

    python -m rediprune.export.bench.soak_server engines/demo-fp32 [VIDEO_BUNDLE] --requests 10000 --clip clip.mp4

Exit code 1: an answer differs, a status was not the expected one, or the memory of the last half is not flat.
"""

import argparse
import asyncio
import base64
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from ...runtime import Pipeline
from ...runtime.serving.loadtest.load_requests import picture_uri
from ...runtime.serving.media_fetch import MediaPolicy
from ...runtime.serving.protocol import ChatRequest
from ...runtime.serving.serve_settings import RequestLimits
from ...runtime.serving.translate import fetch_media, translate

FLAT = 0.02  # growth of the memory's last half that is allowed
EVERY = 100  # requests between two looks at the memory

_BAD: tuple[tuple[bytes, int], ...] = (
    (b"{", 400),
    (b"[]", 400),
    (b'{"model": "none", "messages": [{"role": "user", "content": "x"}]}', 404),
    (b'{"model": "%s", "messages": []}', 400),
    (b'{"model": "%s", "messages": [{"role": "user", "content": "x"}], "n": 4}', 400),
    (b'{"model": "%s", "messages": [{"role": "user", "content": "x"}], "keep": 7.5}', 400),
    (b'{"model": "%s", "messages": [{"role": "user", "content": "x"}], "max_tokens": 999999}', 400),
    (b'{"model": "%s", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "/etc/passwd"}]}]}', 400),
    (b'{"model": "%s", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": '
     b'"data:image/png;base64,AAAA"}]}]}', 400),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A request and what must come back.

    Attributes:
        kind: "text", "picture", "pictures" or "clip".
        body: of the request.
        text: of the answer.
    """

    kind: str
    body: dict[str, Any]
    text: str


@dataclass
class Soak:
    """What a soak found.

    Attributes:
        outcomes: by kind and status or what became of it.
        wrong: answers that are not the pipeline's, and statuses that were not expected.
        memory: bytes of the server, by requests done.
        seconds: that it took.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def growth(self) -> float:
        """Of the memory in the last half: its largest over its first."""
        half = [size for done, size in self.memory if done >= self.memory[-1][0] / 2]
        return max(half) / half[0] - 1

    @property
    def good(self) -> bool:
        return not self.wrong and self.growth <= FLAT

    def document(self) -> dict[str, Any]:
        """Everything, for JSON."""
        requests = self.outcomes.total()
        return {
            "requests": requests,
            "seconds": round(self.seconds, 1),
            "requests_per_second": round(requests / self.seconds, 1),
            "outcomes": dict(sorted(self.outcomes.items())),
            "wrong": self.wrong[:20],
            "memory_growth_of_last_half": round(self.growth, 4),
            "memory": self.memory,
        }


def cases(name: str, pipeline: Pipeline, count: int, clip: bytes | None, draw: random.Random) -> list[Case]:
    """Requests of every kind that a bundle takes, with the pipeline's answers."""
    kinds = ["text", "picture", "picture", "pictures"]
    if clip is not None and "video" in pipeline.bundle.manifest.modalities:
        kinds.append("clip")
    return [_case(name, pipeline, draw.choice(kinds), clip or b"", draw, number) for number in range(count)]


def _case(name: str, pipeline: Pipeline, kind: str, clip: bytes, draw: random.Random, number: int) -> Case:
    content: list[dict[str, Any]] = [{"type": "text", "text": f"What is in it? ({number})"}]
    for _ in range({"text": 0, "picture": 1, "pictures": 2, "clip": 0}[kind]):
        content.insert(0, {"type": "image_url", "image_url": {"url": picture_uri(f"soak {draw.randrange(60)}")}})
    if kind == "clip":
        uri = "data:video/mp4;base64," + base64.b64encode(clip).decode("ascii")
        content.insert(0, {"type": "video_url", "video_url": {"url": uri}})
    body: dict[str, Any] = {
        "model": name,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": draw.choice((1, 8, 24)),
        "keep": draw.choice((1.0, 0.5, 0.15, 3)),
        "frames": draw.choice((2, 5)),
    }
    if draw.random() < 0.3:
        body |= {"temperature": 0.8, "top_p": 0.9, "seed": number}
    if draw.random() < 0.2:
        body |= {"frequency_penalty": 0.5}
    asked = translate(ChatRequest.model_validate(body), RequestLimits(), {})
    images, videos = asyncio.run(fetch_media(asked.media, MediaPolicy()))
    answer = pipeline.generate(asked.messages, images, videos, selection=asked.selection, generation=asked.generation)
    return Case(kind, body, answer.text)


@contextmanager
def served(bundles: dict[str, Path], feature_memory: str, *options: str) -> Iterator[tuple[str, int]]:
    """A server as a process, on a free port, with further options: its address and process id."""
    named = [f"{name}={folder}" for name, folder in bundles.items()]
    command = [sys.executable, "-m", "rediprune.runtime", "serve", "--port", "0", "--feature-memory", feature_memory]
    process = subprocess.Popen([*command, *options, *named], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"page is (http://\S+)/,", line):
                break
        else:
            raise SystemExit("the server did not start")
        threading.Thread(target=lambda: [None for _ in process.stderr or ()], daemon=True).start()
        yield found.group(1), process.pid
    finally:
        process.terminate()
        process.wait(60)


async def soak(url: str, pid: int, known: list[Case], requests: int, clients: int, minutes: float, seed: int) -> Soak:
    """Ask until there were so many requests, or the time is up."""
    found, began = Soak(), time.monotonic()
    numbers = iter(range(requests))

    async def work(client: httpx.AsyncClient) -> None:
        for number in numbers:
            if time.monotonic() - began > 60 * minutes:
                return
            await _one(client, known, found, random.Random(f"{seed} {number}"))
            done = found.outcomes.total()
            if done % EVERY == 0 and (not found.memory or found.memory[-1][0] != done):
                found.memory.append((done, resident(pid)))

    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits, trust_env=False) as client:
        await asyncio.gather(*(work(client) for _ in range(clients)))
    found.seconds = time.monotonic() - began
    found.memory.append((found.outcomes.total(), resident(pid)))
    return found


async def _one(client: httpx.AsyncClient, known: list[Case], found: Soak, draw: random.Random) -> None:
    case, what = draw.choice(known), draw.random()
    if what < 0.1:
        await _bad(client, case, found, draw)
    elif what < 0.18:
        await _left(client, case, found, draw)
    elif what < 0.6:
        reply = await client.post("/v1/chat/completions", json=case.body)
        text = reply.json()["choices"][0]["message"]["content"] if reply.status_code == 200 else None
        _note(found, case, f"{case.kind} {reply.status_code}", text, reply.text)
    else:
        reply = await client.post("/v1/chat/completions", json=case.body | {"stream": True})
        lines = [line for line in reply.text.splitlines() if line.startswith("data: {")]
        choices = [choice for line in lines for choice in json.loads(line[6:]).get("choices", ())]
        text = "".join(choice["delta"].get("content", "") for choice in choices)
        _note(found, case, f"{case.kind} stream {reply.status_code}", text, reply.text)


async def _bad(client: httpx.AsyncClient, case: Case, found: Soak, draw: random.Random) -> None:
    """A body that is none; it has its own 4xx."""
    body, status = draw.choice(_BAD)
    body = body.replace(b"%s", case.body["model"].encode())
    reply = await client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    found.outcomes[f"bad {reply.status_code}"] += 1
    if reply.status_code != status:
        found.wrong.append(f"{body!r}: {reply.status_code}, not {status}: {reply.text[:200]}")


async def _left(client: httpx.AsyncClient, case: Case, found: Soak, draw: random.Random) -> None:
    """A client that leaves: before the answer, or after some pieces."""
    pieces, patience = draw.randrange(4), draw.choice((0.0, 0.005, 0.02, 5.0))
    try:
        async with asyncio.timeout(patience):
            async with client.stream("POST", "/v1/chat/completions", json=case.body | {"stream": True}) as reply:
                async for _ in reply.aiter_lines():
                    pieces -= 1
                    if pieces < 0:
                        break
    except TimeoutError:
        pass
    found.outcomes["left"] += 1


def _note(found: Soak, case: Case, outcome: str, text: str | None, reply: str) -> None:
    found.outcomes[outcome] += 1
    if text != case.text:
        found.wrong.append(f"{outcome}: {text!r}, not {case.text!r}: {reply[:200]}")


def resident(pid: int) -> int:
    """Bytes of a process in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after so many, with fewer requests")
    parser.add_argument("--cases", type=int, default=200, help="different requests for each bundle")
    parser.add_argument("--clip", type=Path, help="a video for bundles that take one")
    parser.add_argument(
        "--feature-memory", default="32MB", help="small, so that the cache is full long before the half"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path)
    given = parser.parse_args()
    bundles = {folder.resolve().name: folder for folder in given.bundles}
    clip = given.clip.read_bytes() if given.clip else None
    known = []
    for name, folder in bundles.items():
        known += cases(name, Pipeline.load(folder), given.cases, clip, random.Random(given.seed))
    with served(bundles, given.feature_memory) as (url, pid):
        found = asyncio.run(soak(url, pid, known, given.requests, given.clients, given.minutes, given.seed))
    document = found.document()
    if given.out:
        given.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document | {"memory": document["memory"][:: max(1, len(found.memory) // 12)]}, indent=1))
    sys.exit(0 if found.good else 1)


if __name__ == "__main__":
    main()
