"""What every request passes first."""

import logging
import socket
from urllib.parse import urlsplit

import httpx
import pytest

from .conftest import Running


def raw(server: Running, request: bytes) -> bytes:
    """What comes back for bytes on the wire."""
    where = urlsplit(server.url)
    with socket.create_connection((where.hostname, where.port), 10) as connection:  # pyright: ignore
        connection.sendall(request)
        got = b""
        while piece := connection.recv(65536):
            got += piece
    return got


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("DELETE", "/v1/models", 405)])
def test_an_unknown_route_is_answered_in_the_same_form(tiny: Running, method: str, path: str, status: int) -> None:
    reply = httpx.request(method, tiny.url + path)
    assert reply.status_code == status
    assert reply.json()["error"]["type"] == "invalid_request_error" and reply.json()["error"]["message"]


def test_a_request_id_is_given_back_where_it_is_one(tiny: Running) -> None:
    for given in ("abc-1.2:3_4", "x" * 100):
        assert httpx.get(f"{tiny.url}/health", headers={"X-Request-Id": given}).headers["x-request-id"] == given
    for bad in ("x" * 101, "two words", "tab\tbed", "é", "<script>", ""):
        headers = {"X-Request-Id": bad.encode("latin-1")}
        reply = httpx.get(f"{tiny.url}/health", headers=headers)  # pyright: ignore[reportArgumentType]
        assert reply.headers["x-request-id"] != bad and len(reply.headers["x-request-id"]) == 32


def test_a_path_cannot_write_lines_of_the_log(tiny: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "rediprune.serve"):
        httpx.get(f"{tiny.url}/x%0a2026-01-01%20INFO%20forged?secret=1")
        raw(tiny, b"GET /\xff\x1b[31m HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    lines = [record.getMessage() for record in caplog.records]
    assert any("%0a" in line for line in lines)
    assert not any(set("\n\r\x1b\xff") & set(line) or "secret" in line for line in lines)


def test_what_is_no_request_is_refused(tiny: Running) -> None:
    assert b" 400 " in raw(tiny, b"\x16\x03\x01\x02\x00" * 20 + b"\r\n\r\n").split(b"\r\n")[0]
    upgrade = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    reply = raw(tiny, upgrade + b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nConnection: close\r\n\r\n")
    assert b" 101 " not in reply.split(b"\r\n")[0]
    assert httpx.get(f"{tiny.url}/health").status_code == 200


def test_no_reply_may_be_taken_for_another_type(tiny: Running) -> None:
    for path in ("/", "/health", "/metrics", "/v1/models", "/nothing"):
        assert httpx.get(tiny.url + path).headers["x-content-type-options"] == "nosniff"
    policy = httpx.get(tiny.url).headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy


def test_no_page_of_another_origin_may_read_or_ask(tiny: Running) -> None:
    headers = {"Origin": "https://evil.test"}
    preflight = {**headers, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    replies = [
        httpx.get(f"{tiny.url}/v1/models", headers=headers),
        httpx.options(f"{tiny.url}/v1/chat/completions", headers=preflight),
    ]
    assert not any(name.startswith("access-control") for reply in replies for name in reply.headers)
    assert replies[1].status_code == 405
