"""Clients that leave: while their body is read, their picture encoded, in the queue, before and in the middle of the answer."""

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from rediprune.runtime.serving.serve_settings import ServeSettings

from .conftest import Running

pytestmark = pytest.mark.server

LONG = {"model": "tiny", "messages": [{"role": "user", "content": "Go on."}], "max_tokens": 60}


@pytest.fixture(scope="module")
def narrow(serve: Callable[..., Any], bundle_of: Callable[[str], Path]) -> Iterator[Running]:
    """A server that answers one request at a time."""
    with serve({"tiny": bundle_of("llava_next_video")}, ServeSettings(max_batch=1)) as server:
        yield server


class Slow:
    """A language or vision session that takes its time, and counts its calls."""

    def __init__(self, session: Any, seconds: float):
        self._session, self._seconds, self.calls = session, seconds, 0
        self.batch = session.batch

    def run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        self.calls += 1
        time.sleep(self._seconds)
        return self._session.run(inputs)


def reset(connection: socket.socket) -> None:
    """Leave as a process does that is killed: without a goodbye."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def opened(server: Running, body: bytes, length: int | None = None) -> socket.socket:
    where = urlsplit(server.url)
    connection = socket.create_connection((where.hostname, where.port), 30)  # pyright: ignore
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body)
    return connection


def encoded(body: Any) -> bytes:
    return httpx.Request("POST", "http://x", json=body).content


def test_killed_in_mid_stream(narrow: Running) -> None:
    tokens = narrow.metric("generation_tokens_total")
    for _ in range(5):
        connection = opened(narrow, encoded(LONG | {"stream": True}))
        seen = b""
        while b'"content":"' not in seen.partition(b'"content":""')[2]:
            seen += connection.recv(4096)
        reset(connection)
    assert narrow.comes_to_rest()
    assert narrow.metric("request_failure_total", model_name="tiny", status="499") == 5
    assert narrow.metric("generation_tokens_total") == tokens  # counted when an answer is whole
    assert narrow.post(LONG).json()["usage"]["completion_tokens"] == 60


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", [0.0, 0.01, 0.05, 0.3])
def test_killed_at_any_time(narrow: Running, stream: bool, after: float) -> None:
    connections = [opened(narrow, encoded(LONG | {"stream": stream})) for _ in range(8)]
    time.sleep(after)
    for connection in connections:
        reset(connection)
    assert narrow.comes_to_rest()
    assert narrow.post(LONG | {"max_tokens": 2}).status_code == 200


def test_killed_while_the_body_is_read(narrow: Running) -> None:
    left = narrow.metric("request_failure_total", model_name="", status="499")
    reset(opened(narrow, b'{"model"', 10_000))
    for _ in range(100):
        if narrow.metric("request_failure_total", model_name="", status="499") == left + 1:
            break
        time.sleep(0.02)
    else:
        raise AssertionError("it was not noticed")
    assert narrow.metric("request_failure_total", status="500") == 0
    assert narrow.post(LONG | {"max_tokens": 2}).status_code == 200


def test_a_clip_that_nobody_waits_for_is_not_encoded_further(narrow: Running, ask: Any, clip: Path) -> None:
    vision = Slow(narrow.pipeline.stage("vision"), 0.1)
    body = {"model": "tiny", "messages": ask("What?", clip), "max_tokens": 2, "frames": 40}
    with narrow.pipeline.replaced(vision=vision):
        connection = opened(narrow, encoded(body))
        while vision.calls < 3:
            time.sleep(0.01)
        reset(connection)
        began = time.monotonic()
        assert narrow.post(LONG | {"max_tokens": 2}).status_code == 200  # the encoder is free again
        assert time.monotonic() - began < 2 and vision.calls < 15


def test_the_slot_is_free_for_those_who_wait(narrow: Running) -> None:
    leaving = opened(narrow, encoded(LONG | {"stream": True}))
    leaving.recv(4096)
    replies: list[int] = []
    threads = [threading.Thread(target=lambda: replies.append(narrow.post(LONG).status_code)) for _ in range(3)]
    for thread in threads:
        thread.start()
    reset(leaving)
    for thread in threads:
        thread.join(30)
    assert replies == [200] * 3
