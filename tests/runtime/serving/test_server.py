"""The server as a process: started from the command line, asked, told to stop."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from ...support.command_line import COMMAND, CommandLine

pytestmark = pytest.mark.process

HELLO = [{"role": "user", "content": "Go on."}]


@dataclass
class Served:
    """A server and what it logged."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    url: str = ""

    def post(self, body: Any, **headers: str) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=60)

    def wait(self, seconds: float = 30) -> int:
        code = self.process.wait(seconds)
        time.sleep(0.1)  # its last lines
        assert "Traceback" not in "".join(self.lines)
        return code


@contextmanager
def started(*arguments: object, **environment: str) -> Iterator[Served]:
    """`rediprune serve` on a free port, once it listens."""
    command = [*COMMAND, "serve", "--port", "0", *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environment)
    served, listening = Served(process), threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            served.lines.append(line)
            if found := re.search(r"page is (http://[\w.:\[\]]+)/", line):
                served.url = found.group(1)
                listening.set()

    threading.Thread(target=read, daemon=True).start()
    try:
        assert listening.wait(120), served.lines
        yield served
    finally:
        process.kill()
        process.wait()


def test_sigterm_under_load_lets_every_answer_end(bundle_of: Callable[[str], Path]) -> None:
    with started(f"one={bundle_of('llava')}", f"two={bundle_of('llava_next_video')}", "--max-batch", 2) as server:
        assert {model["id"] for model in httpx.get(f"{server.url}/v1/models").json()["data"]} >= {
            "one",
            "two",
            "two@0.5",
        }
        body = {"messages": HELLO, "max_tokens": 240, "ignore_eos": True}  # answered after all have come
        expected = {name: server.post(body | {"model": name}).json() for name in ("one", "two")}
        assert expected["one"]["choices"] != expected["two"]["choices"]
        replies: list[tuple[str, bool, httpx.Response]] = []

        def ask(name: str, stream: bool) -> None:
            replies.append((name, stream, server.post(body | {"model": name, "stream": stream})))

        asked = [(name, stream) for name in ("one", "two") for stream in (False, True)] * 4
        threads = [threading.Thread(target=ask, args=each) for each in asked]
        for thread in threads:
            thread.start()
        # All are taken: the system resets connections that nobody has accepted when the server ends.
        taken = len(expected) + len(asked)
        while (waiting := _sum(text := httpx.get(f"{server.url}/metrics").text, "num_requests_waiting")) + sum(
            _sum(text, name) for name in ("num_requests_running", "request_success_total")
        ) < taken:
            time.sleep(0.005)
        assert waiting >= 4
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert server.wait() == 0
        assert len(replies) == len(asked)
        for name, stream, reply in replies:
            assert reply.status_code == 200
            text = expected[name]["choices"][0]["message"]["content"]
            if stream:
                chunks = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
                pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
                assert "".join(pieces) == text and reply.text.rstrip().endswith("data: [DONE]")
            else:
                assert reply.json()["choices"][0]["message"]["content"] == text
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/health")


def _sum(metrics: str, name: str) -> float:
    lines = [line for line in metrics.splitlines() if line.startswith(f"rediprune:{name}{{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_options_reach_the_server(bundle_of: Callable[[str], Path], ask: Any, cat: Path) -> None:
    options = ["--limit", "image_pixels=100", "--max-tokens", 3, "--log-format", "json", "--keep", 0.5]
    with started(bundle_of("llava"), *options, REDIPRUNE_API_KEY="secret") as server:
        name = bundle_of("llava").name
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        key = {"Authorization": "Bearer secret"}
        assert server.post({"model": name, "messages": HELLO}, **key).json()["usage"]["completion_tokens"] == 3
        refused = server.post({"model": name, "messages": ask("What?", cat)}, **key).json()["error"]["message"]
        assert "0.0001 million" in refused
        assert httpx.get(f"{server.url}/health", headers={"Host": "evil.test"}).status_code == 421
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        entries = [json.loads(line) for line in server.lines]
        asked = [entry for entry in entries if entry["message"] == "POST /v1/chat/completions 200"]
        assert len(asked) == 1 and asked[0]["seconds"] > 0 and asked[0]["request_id"]


def test_ctrl_c_ends_it_too(bundle_of: Callable[[str], Path]) -> None:
    with started(bundle_of("llava")) as server:
        server.process.send_signal(signal.SIGINT)
        assert server.wait() == 130


def test_what_cannot_be_served_leaves_with_2(rediprune: CommandLine, bundle_of: Callable[[str], Path]) -> None:
    bundle = bundle_of("llava")
    for arguments, words in (
        ([f"a={bundle}", f"a={bundle}"], "two bundles are called 'a'"),
        ([f"a@b={bundle}"], "no name for a model"),
        ([bundle, "--cache-memory", "many"], "--cache-memory takes a size"),
        ([bundle, "--cache-memory", "10B"], "--cache-memory more"),
        ([bundle, "--keep", 2.5], "keep"),
        ([bundle, "--limit", "nothing=3"], "--limit takes NAME=VALUE"),
        ([bundle, "--allowed-local-media-path", bundle / "none"], "takes a folder"),
        ([bundle, "--log-format", "xml"], "text or json"),
        ([bundle, "--port", 70000], "--port"),
        ([bundle, "--replicas", 2], "--replicas does nothing without --ray"),
        ([bundle, "--fallback"], "--fallback does nothing without --decoder"),
        ([bundle / "none"], "none"),
    ):
        assert words in rediprune("serve", *arguments, code=2).stderr.replace("\n", " ")


def test_an_address_that_cannot_be_had_leaves_with_2(rediprune: CommandLine, bundle_of: Callable[[str], Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = rediprune("serve", bundle_of("llava"), "--port", taken.getsockname()[1], code=2)
        assert "Address already in use" in done.stderr and "--port" in done.stderr
        done = rediprune("serve", bundle_of("llava"), "--ray", "--port", taken.getsockname()[1], code=2)
        assert "Address already in use" in done.stderr and "--port" in done.stderr
    for host in ("192.0.2.1", "no.such.host.invalid", "a..b"):
        assert host in rediprune("serve", bundle_of("llava"), "--host", host, "--port", 0, code=2).stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_torch_is_loaded(bundle_of: Callable[[str], Path]) -> None:
    with started(bundle_of("llava")) as server:
        maps = Path(f"/proc/{server.process.pid}/maps").read_text()
        assert "onnxruntime" in maps and "libtorch" not in maps
