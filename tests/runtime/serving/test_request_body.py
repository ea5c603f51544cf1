"""How bodies are read: up to a size, in time, within what all may hold together."""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from rediprune.runtime.serving.serve_settings import ServeSettings

from .conftest import Running

HELLO = [{"role": "user", "content": "Hello?"}]


def half_sent(server: Running, body: bytes, length: int) -> socket.socket:
    """A connection on which part of a body came."""
    where = urlsplit(server.url)
    connection = socket.create_connection((where.hostname, where.port), 10)  # pyright: ignore
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def test_a_body_that_does_not_come_is_given_up(serve: Callable[..., Any], bundle_of: Callable[[str], Path]) -> None:
    with serve({"tiny": bundle_of("llava")}, ServeSettings(timeout=0.5)) as server:
        with half_sent(server, b'{"model": ', 1000) as connection:
            began = time.monotonic()
            assert b" 408 " in connection.recv(65536).split(b"\r\n")[0]
            assert time.monotonic() - began < 5
        assert server.post({"model": "tiny", "messages": HELLO, "max_tokens": 1}).status_code == 200


def test_bodies_together_hold_no_more_than_they_may(
    serve: Callable[..., Any], bundle_of: Callable[[str], Path]
) -> None:
    with serve({"tiny": bundle_of("llava")}, ServeSettings(max_pending_bytes=1 << 20)) as server:
        with half_sent(server, b"x" * 900_000, 1 << 20):
            body = {"model": "tiny", "messages": HELLO, "max_tokens": 1, "user": "x" * 300_000}
            for _ in range(100):  # until the server has read the other's
                reply = server.post(body)
                if reply.status_code == 429:
                    break
                time.sleep(0.02)
            assert reply.status_code == 429 and reply.headers["retry-after"] == "1"
        for _ in range(100):  # until it has seen that the other left
            if (reply := server.post(body)).status_code == 200:
                break
            time.sleep(0.05)
        assert reply.status_code == 200


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"model":' * 50_000,
        '{"model": "tiny", "messages": ' + "[" * 3000 + "]" * 3000 + "}",
        '{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "keep": NaN}',
        '{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": Infinity}',
        '{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1e400}',
        '{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "keep": 1' + "0" * 5000 + "}",
        '{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
        '{"model": "tiny", "model": "other", "messages": [{"role": "user", "content": "x"}]}',
    ],
)
def test_json_that_breaks_parsers(tiny: Running, text: str) -> None:
    reply = httpx.post(
        f"{tiny.url}/v1/chat/completions", content=text, headers={"Content-Type": "application/json"}, timeout=30
    )
    assert reply.status_code in (400, 404) and len(reply.text) < 1000


def test_a_long_dialogue_is_refused_before_it_costs_anything(tiny: Running) -> None:
    many = [{"type": "text", "text": ""}] * 100_000 + [{"type": "text", "text": "x"}]
    for messages in (
        [{"role": "user", "content": "x" * 70_000}],  # the model has 2048 positions
        [{"role": "user", "content": "x"}] * 5000,
        [{"role": "user", "content": many}],
    ):
        began = time.process_time()  # the server runs in this process
        reply = tiny.post({"model": "tiny", "messages": messages})
        assert reply.status_code == 400 and reply.json()["error"]["param"] == "messages"
        assert time.process_time() - began < 2


def test_unknown_fields_are_ignored(tiny: Running) -> None:
    extra = {"user": "me", "metadata": {"a": [1]}, "store": True, "service_tier": "auto", "x": json.loads("[[[]]]")}
    assert tiny.post({"model": "tiny", "messages": HELLO, "max_tokens": 1} | extra).status_code == 200
