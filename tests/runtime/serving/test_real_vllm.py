"""A real vLLM as the decoder: the same token ids as the bundle's own language stage. `make test-vllm` runs this."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from rediprune.export.checkpoint.older_names import copy_with_older_names
from rediprune.runtime import Pipeline

from ...conftest import DEMO
from ...support.vllm_stand_in import recorder, stand_in
from .test_server import started

PYTHON = os.environ.get("REDIPRUNE_VLLM", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="REDIPRUNE_VLLM names no Python with vLLM (make test-vllm makes one)"),
]
QUESTIONS = ("What is above the orange triangle?", "Describe the picture.", "How many objects are there?")


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A vLLM that serves the demo checkpoint on the CPU; its address and its process."""
    folder = tmp_path_factory.mktemp("vllm")
    copy_with_older_names(DEMO, folder / "demo")
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "demo")]
    command += ["--served-model-name", "demo", "--dtype", "float32", "--max-model-len", "1024", "--enforce-eager"]
    command += ["--enable-mm-embeds", "--host", "127.0.0.1", "--port", "8917"]
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | quiet, stdout=log, stderr=log)
    try:
        for _ in range(600):
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            try:
                if httpx.get("http://127.0.0.1:8917/health").status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.5)
        yield "http://127.0.0.1:8917/v1", process
    finally:
        process.terminate()
        process.wait(60)


def test_token_ids_are_those_of_the_local_decoder(
    vllm: tuple[str, subprocess.Popen[bytes]],
    demo_bundle: Path,
    serve_remote: Callable[..., Any],
    ask: Any,
    scene: Path,
) -> None:
    pipe = Pipeline.load(demo_bundle, "ort")
    exchanges: list[dict[str, Any]] = []
    with stand_in(recorder(vllm[0], exchanges)) as url, serve_remote(demo_bundle, url, "demo") as server:
        for text in QUESTIONS:
            for pictures in ((), (scene,), (scene, scene)):
                for keep in (1.0, 0.15):
                    exchanges.clear()
                    alone = pipe.generate(text, list(pictures), keep=keep, max_new_tokens=24, temperature=0)
                    body = {"model": "demo", "messages": ask(text, *pictures), "keep": keep, "max_tokens": 24}
                    reply = server.post(body | {"temperature": 0}).json()
                    assert reply["choices"][0]["message"]["content"] == alone.text
                    events = [line[6:] for line in exchanges[-1]["reply"].splitlines() if line.startswith("data: {")]
                    choices = [choice for event in events for choice in json.loads(event)["choices"]]
                    assert [token for choice in choices for token in choice.get("token_ids") or ()] == alone.token_ids
                    assert reply["usage"]["prompt_tokens"] == alone.prompt_tokens + alone.kept_tokens


def test_killed_under_load_every_request_ends_with_503_in_time(
    vllm: tuple[str, subprocess.Popen[bytes]], demo_bundle: Path, ask: Any, scene: Path
) -> None:
    """The last test: it ends the decoder."""
    from concurrent.futures import ThreadPoolExecutor

    url, process = vllm
    with started(f"demo={demo_bundle}", "--decoder", url, "--backend", "ort") as server:
        body = {"model": "demo", "messages": ask(QUESTIONS[1], scene), "max_tokens": 200, "ignore_eos": True}
        assert server.post(body | {"max_tokens": 2}).status_code == 200
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(server.post, body) for _ in range(8)]
            time.sleep(0.5)
            below = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
            for pid in (str(process.pid), *below):
                subprocess.run(["kill", "-9", pid], check=False)
            began = time.monotonic()
            replies = [each.result(timeout=60) for each in asked]
        assert time.monotonic() - began < 35  # the first token's deadline is 30 s
        assert {reply.status_code for reply in replies} <= {200, 503} and 503 in {r.status_code for r in replies}
        assert all(reply.headers["retry-after"] for reply in replies if reply.status_code == 503)
