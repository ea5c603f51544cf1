"""A load test of a real server."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rediprune.runtime.errors import RedipruneError
from rediprune.runtime.serving.loadtest.load_report import load_document, load_table
from rediprune.runtime.serving.loadtest.load_requests import LoadTest
from rediprune.runtime.serving.loadtest.load_run import Step, first_model, run_load_test
from rediprune.runtime.serving.serve_settings import ServeSettings

from ....support.command_line import CommandLine
from ..conftest import Running

pytestmark = pytest.mark.server


def run(url: str, asked: LoadTest, key: str | None = None) -> list[Step]:
    return asyncio.run(run_load_test(url, asked, key, lambda line: None))


def test_what_is_counted_is_what_the_server_counts(serve: Callable[..., Any], bundle_of: Callable[[str], Path]) -> None:
    asked = LoadTest("tiny", keeps=(1.0, 0.25), clients=(1, 4), requests=10, max_tokens=6, pictures=2)
    with serve({"tiny": bundle_of("llava")}) as server:
        steps = run(server.url, asked)
        warm = 2 * (2 + 1)
        answered = sum(len(step.whole) for step in steps)
        assert answered == 40 and not any(step.failures for step in steps)
        assert server.metric("time_to_first_token_seconds_count") == answered + warm
        assert server.metric("generation_tokens_total") == 6 * (answered + warm)
        assert server.metric("mm_cache_queries_total") - server.metric("mm_cache_hits_total") == 2  # the pictures
    assert [(step.keep, step.clients) for step in steps] == [(1.0, 1), (1.0, 4), (0.25, 1), (0.25, 4)]
    for step in steps:
        assert step.tokens == 60 and step.visual > 0 and (step.kept == step.visual) == (step.keep == 1)
        assert all(0 < first <= whole <= step.seconds for first, whole in zip(step.first, step.whole, strict=True))
    figures = steps[3].figures()
    assert figures["requests_per_second"] == 10 / steps[3].seconds
    assert figures["time_to_first_token"]["p50"] <= figures["time_to_first_token"]["p99"] <= max(steps[3].whole)


def test_what_is_refused_is_told(serve: Callable[..., Any], bundle_of: Callable[[str], Path]) -> None:
    settings = ServeSettings(max_batch=1, max_waiting=1)
    asked = LoadTest("tiny", keeps=(1.0,), clients=(8,), requests=16, max_tokens=20, text_share=1.0)
    with serve({"tiny": bundle_of("llava")}, settings) as server:
        (step,) = run(server.url, asked)
    assert len(step.whole) + step.failures.total() == 16
    assert any(what.startswith("429 ") for what in step.failures) and "429" in load_table(asked, [step])


def test_the_table_compares_keep_ratios() -> None:
    steps = [Step(1.0, 2, 2.0, [0.1], [0.2, 0.3], 10), Step(0.1, 2, 1.0, [0.05], [0.1, 0.1, 0.2], 15)]
    asked = LoadTest("m", keeps=(1.0, 0.1), clients=(2,))
    table = load_table(asked, steps)
    assert "| 1 | 2 | 1.00 | 5.0 | 100 | 100 | 100 | 250 | 295 | 0 |" in table
    assert "keep 0.1 over keep 1, by clients: 3.00 with 2." in table
    assert load_document("u", asked, steps)["steps"][0]["tokens_per_second"] == 5
    nothing = load_table(LoadTest("m", keeps=(1.0,), clients=(1,)), [Step(1.0, 1, 1.0)])
    assert "| 1 | 1 | 0.00 | 0.0 | – | – | – | – | – | 0 |" in nothing


class _Handler(BaseHTTPRequestHandler):
    """Another server: lists no models, and ends its streams without a word."""

    def do_GET(self) -> None:
        self.reply("application/json", b'{"data": []}')

    def do_POST(self) -> None:
        self.reply("text/event-stream", b"data: [DONE]\n\n")

    def reply(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def odd() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_servers_that_cannot_be_measured_are_told(odd: str) -> None:
    with pytest.raises(RedipruneError, match="lists no models"):
        first_model(odd, None)
    with pytest.raises(RedipruneError, match="without usage"):
        run(odd, LoadTest("m"))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        closed = f"http://127.0.0.1:{silent.getsockname()[1]}"
    for url in (closed, "nonsense", "ftp://x", "http://[", ""):
        with pytest.raises(RedipruneError):
            first_model(url, None)
        with pytest.raises(RedipruneError):
            run(url, LoadTest("m"))


def test_the_command(
    rediprune: CommandLine, serve: Callable[..., Any], bundle_of: Callable[[str], Path], tmp_path: Path
) -> None:
    few = ["--clients", "1,2", "--requests", 4, "--max-tokens", 3]
    with serve({"tiny": bundle_of("llava")}, ServeSettings(api_key="secret")) as server:
        out = tmp_path / "figures.json"
        done = rediprune("loadtest", f"{server.url}/v1", "--api-key", "secret", *few, "-o", out)
        assert done.stdout.count("\n| ") == 4 and "keep 0.15, 2 clients" in done.stderr
        assert json.loads(out.read_text())["plan"]["model"] == "tiny"
        document = json.loads(rediprune("loadtest", server.url, "--api-key", "secret", *few, "--json").stdout)
        assert [step["answered"] for step in document["steps"]] == [4] * 4
        assert "401" in rediprune("loadtest", server.url, *few, code=2).stderr
        assert "404" in rediprune("loadtest", server.url, "--api-key", "secret", "--model", "x", code=2).stderr
    assert "--clients" in rediprune("loadtest", "http://127.0.0.1:1", "--clients", "x", code=2).stderr
    assert "--keeps" in rediprune("loadtest", "http://127.0.0.1:1", "--keeps", "2", code=2).stderr


def test_the_full_range_of_clients(tiny: Running) -> None:
    (step,) = run(tiny.url, LoadTest("tiny", keeps=(0.15,), clients=(32,), requests=1, max_tokens=2))
    assert len(step.whole) == 64 and not step.failures
