"""Stand-ins for vLLM's server: one that answers as a recording says, one that records what a real one says, and one whose
answers a test makes up."""

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np


@dataclass
class Reply:
    """What a stand-in answers: a body, in pieces with pauses between them where it is a stream.

    Attributes:
        status: of HTTP.
        pieces: of the body; a number is a pause in seconds, None closes the connection at once.
        kind: its Content-Type.
    """

    status: int = 200
    pieces: list[str | float | None] = field(default_factory=list)
    kind: str = "application/json"

    @classmethod
    def of(cls, body: Any, status: int = 200) -> "Reply":
        return cls(status, [json.dumps(body)])


Answer = Callable[[str, str, Any], Reply]  # method, path, body


@contextmanager
def stand_in(answer: Answer, port: int = 0) -> Iterator[str]:
    """A server on a loopback port, 0 for a free one; its address with /v1."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply(None)

        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def _reply(self, body: Any) -> None:
            reply = answer(self.command, self.path, body)
            self.send_response(reply.status)
            self.send_header("content-type", reply.kind)
            self.send_header("connection", "close")
            self.end_headers()
            self.close_connection = True
            for piece in reply.pieces:
                if piece is None:
                    self.connection.close()
                    return
                if isinstance(piece, float):
                    time.sleep(piece)
                    continue
                try:
                    self.wfile.write(piece.encode())
                    self.wfile.flush()
                except OSError:  # whoever asked has left
                    return

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def embeds_of(body: Any) -> list[np.ndarray]:
    """The arrays in the messages of a request."""
    parts = [part for message in body["messages"] for part in message["content"]]
    data = [part["image_embeds"] for part in parts if part["type"] == "image_embeds"]
    return [np.load(io.BytesIO(base64.b64decode(each)), allow_pickle=False) for each in data]


def without_embeds(body: Any) -> Any:
    """A request with its arrays left out."""
    text = json.dumps(body)
    for part in [p for m in (body or {}).get("messages", []) for p in m["content"] if p["type"] == "image_embeds"]:
        text = text.replace(part["image_embeds"], "")
    return json.loads(text)


def recorder(target: str, exchanges: list[dict[str, Any]]) -> Answer:
    """Hands on to a real server, and writes down what goes over the wire."""

    def answer(method: str, path: str, body: Any) -> Reply:
        reply = httpx.request(method, target.removesuffix("/v1") + path, json=body, timeout=120)
        kind = reply.headers["content-type"]
        exchanges.append(
            {
                "method": method,
                "path": path,
                "body": body,
                "status": reply.status_code,
                "kind": kind,
                "reply": reply.text,
            }
        )
        return Reply(reply.status_code, [reply.text], kind)

    return answer


def replayed(file: Path) -> tuple[Answer, list[str]]:
    """Answers as a recording says to whoever sends what was sent then; and what was asked."""
    exchanges, asked = json.loads(file.read_text()), []

    def answer(method: str, path: str, body: Any) -> Reply:
        asked.append(path)
        for each in exchanges:
            if (each["method"], each["path"]) != (method, path) or without_embeds(each["body"]) != without_embeds(body):
                continue
            pairs = [] if body is None else list(zip(embeds_of(each["body"]), embeds_of(body), strict=True))
            if all(a.shape == b.shape and a.dtype == b.dtype and np.allclose(a, b, atol=1e-3) for a, b in pairs):
                return Reply(each["status"], [each["reply"]], each["kind"])
        return Reply.of({"error": {"message": f"this was never sent to {path}: {without_embeds(body)}"}}, 400)

    return answer, asked
