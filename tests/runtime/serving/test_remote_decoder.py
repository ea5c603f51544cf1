"""A decoder somewhere else: as a real vLLM answered once, and with everything that may go wrong with one."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from rediprune.runtime import Pipeline
from rediprune.runtime.errors import RedipruneError
from rediprune.runtime.serving.load_models import Loading, load_models
from rediprune.runtime.serving.metrics import Metrics
from rediprune.runtime.serving.remote_decoder import RemoteDecoder, RemoteSettings
from rediprune.runtime.serving.serve_settings import ServeSettings

from ...support.vllm_stand_in import Reply, embeds_of, replayed, stand_in

pytestmark = pytest.mark.server

RECORDED = Path(__file__).parent / "recorded" / "vllm-0.32.json"
QUESTION = "What is above the orange triangle?"

Serve = Callable[..., Any]


@pytest.mark.smoke
def test_answers_of_a_real_vllm_as_it_gave_them(demo_bundle: Path, serve_remote: Serve, ask: Any, scene: Path) -> None:
    answer, asked = replayed(RECORDED)
    pipe = Pipeline.load(demo_bundle, "ort")
    with stand_in(answer) as url, serve_remote(demo_bundle, url, "demo") as server:
        body = {"model": "demo@0.15", "temperature": 0, "max_tokens": 16}
        for pictures in ((scene,), (), (scene, scene)):
            reply = server.post(
                body | {"messages": ask(QUESTION, *pictures), "logprobs": True, "top_logprobs": 2}
            ).json()
            alone = pipe.generate(QUESTION, list(pictures), keep=0.15, max_new_tokens=16, temperature=0)
            choice = reply["choices"][0]
            assert choice["message"]["content"] == alone.text and choice["finish_reason"] == "stop"
            assert reply["usage"]["completion_tokens"] == len(alone.token_ids) == len(choice["logprobs"]["content"])
            assert reply["usage"]["prompt_tokens"] == alone.prompt_tokens + alone.kept_tokens
            assert reply["rediprune"]["kept_tokens"] == alone.kept_tokens
        streamed = server.post(
            body | {"messages": ask(QUESTION, scene), "logprobs": True, "top_logprobs": 2, "stream": True}
        )
        pieces = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
        assert "".join(each["choices"][0]["delta"].get("content", "") for each in pieces) == "purple cross"
        assert server.metric("generation_tokens_total") == 12 and server.metric("kept_tokens_total") == 29 * 4
        assert server.metric("mm_cache_hits_total") == 3 and server.comes_to_rest()
    assert asked[:3] == ["/v1/models", "/tokenize", "/v1/chat/completions"]  # looked at before anything else


# -- faults, with a stand-in that knows the tiny bundle's tokens -------------------------------------------------------


class Scripted:
    """A vLLM for a tiny bundle whose answers are always the same tokens; `fault` changes what it does."""

    TOKENS = (5, 6, 7)

    def __init__(self, pipeline: Pipeline):
        self.pipeline, self.fault, self.asked = pipeline, "", 0
        self.model, self.length = "tiny", 4096

    def __call__(self, method: str, path: str, body: Any) -> Reply:
        if path == "/v1/models":
            return Reply.of({"data": [{"id": self.model, "max_model_len": self.length}]})
        if path == "/tokenize":
            ids = self.ids(body)
            return Reply.of({"tokens": ids[:-1] if self.fault == "tokenizer" else ids})
        self.asked += 1
        if self.fault == "width":
            return Reply.of({"error": {"message": "hidden dimension mismatch: got 64"}}, 400)
        if not body.get("stream"):
            return Reply.of({"choices": []})
        return self.stream(body)

    def ids(self, body: Any) -> list[int]:
        arrays = iter(embeds_of(body))
        messages = [
            {"role": m["role"], "content": [p if p["type"] == "text" else {"type": "image"} for p in m["content"]]}
            for m in body["messages"]
        ]
        count = sum(part["type"] == "image" for message in messages for part in message["content"])
        from rediprune.runtime.prompt import prompt_ids

        placeholder = self.pipeline.bundle.manifest.modalities["image"].placeholder
        ids: list[int] = []
        for token in prompt_ids(self.pipeline.processor, messages, count, 0, True):
            ids += [token] * (len(next(arrays)) if token == placeholder else 1)
        return ids

    def stream(self, body: Any) -> Reply:
        def event(**fields: Any) -> str:
            top = {name: fields.pop(name) for name in ("prompt_token_ids", "error") if name in fields}
            return "data: " + json.dumps({"choices": [{"delta": {}, "finish_reason": None} | fields]} | top) + "\n\n"

        ids = self.ids(body)
        begin = event(prompt_token_ids=ids[1:] if self.fault == "prompt" else ids)
        tokens = [event(token_ids=[token]) for token in self.TOKENS[:-1]]
        last = event(token_ids=[self.TOKENS[-1]], finish_reason="length")
        kind = "text/event-stream"
        if self.fault == "busy":
            return Reply.of({"error": {"message": "queue full"}}, 503)
        if self.fault == "broken":
            return Reply.of({"error": {"message": "engine dead"}}, 500)
        if self.fault == "silent":
            return Reply(200, [begin, 30.0], kind)
        if self.fault == "slow":
            return Reply(200, [begin, 0.2, tokens[0], 0.8, tokens[1], 0.2, last], kind)
        if self.fault == "cut":
            return Reply(200, [begin, tokens[0], None], kind)
        if self.fault == "short":
            return Reply(200, [begin, tokens[0], "data: [DONE]\n\n"], kind)
        if self.fault == "error":
            return Reply(200, [begin, tokens[0], event(error={"message": "out of memory"})], kind)
        if self.fault == "garbage":
            return Reply(200, [begin, "data: {nonsense\n\n"], kind)
        if self.fault == "anonymous":
            return Reply(200, [*tokens, last], kind)
        return Reply(200, [begin, *tokens, last, "data: [DONE]\n\n"], kind)


@pytest.fixture
def scripted(bundle_of: Callable[[str], Path]) -> Scripted:
    return Scripted(Pipeline.load(bundle_of("llava"), "ort"))


def body_of(ask: Any, *pictures: Path, **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": ask("Why?", *pictures), "max_tokens": 3, "keep": 4} | fields


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        ("busy", 503, "queue full"),
        ("broken", 502, "engine dead"),
        ("silent", 503, "no token within 1 s"),
        ("cut", 503, "went away|ended its answer early"),
        ("short", 503, "ended its answer early"),
        ("error", 503, "out of memory"),
        ("garbage", 502, "no vLLM"),
        ("anonymous", 502, "which prompt"),
        ("prompt", 502, "another prompt"),
        ("tokenizer", 502, "another tokenizer or chat template"),
        ("width", 502, "mismatch: got 64"),
    ],
)
def test_every_fault_has_its_status_and_passes(
    fault: str, status: int, words: str, scripted: Scripted, serve_remote: Serve, ask: Any, cat: Path
) -> None:
    with (
        stand_in(scripted) as url,
        serve_remote(scripted.pipeline.bundle.folder, url, first_token_timeout=1.0) as server,
    ):
        scripted.fault = fault
        reply = server.post(body_of(ask, cat))
        error = reply.json()["error"]
        assert reply.status_code == status, error
        assert any(each in error["message"] for each in words.split("|")), error
        assert ("retry-after" in reply.headers) == (status == 503)
        assert server.comes_to_rest()
        scripted.fault = ""
        good = server.post(body_of(ask, cat)).json()
        assert good["usage"]["completion_tokens"] == 3 and good["choices"][0]["finish_reason"] == "length"


def test_one_that_is_down_is_told_and_may_come_back(
    scripted: Scripted, serve_remote: Serve, ask: Any, cat: Path
) -> None:
    with stand_in(scripted) as url:
        pass  # nobody listens there any more
    port = int(url.split(":")[2].split("/")[0])
    with serve_remote(scripted.pipeline.bundle.folder, url) as server:
        reply = server.post(body_of(ask, cat))
        assert reply.status_code == 503 and "does not answer" in reply.json()["error"]["message"]
        assert server.post(body_of(ask, cat, stream=True)).text.count('"decoder_unavailable"') == 1
        with stand_in(scripted, port):
            assert server.post(body_of(ask, cat)).status_code == 200


def test_a_stream_whose_tokens_come_slowly_is_no_fault(
    scripted: Scripted, serve_remote: Serve, ask: Any, cat: Path
) -> None:
    """The first token has a deadline of its own; behind it the request's counts."""
    with (
        stand_in(scripted) as url,
        serve_remote(scripted.pipeline.bundle.folder, url, first_token_timeout=0.6) as server,
    ):
        scripted.fault = "slow"
        assert server.post(body_of(ask, cat)).json()["usage"]["completion_tokens"] == 3


def test_what_cannot_be_handed_over_is_refused(
    scripted: Scripted, serve_remote: Serve, ask: Any, cat: Path, bundle_of: Callable[[str], Path]
) -> None:
    with stand_in(scripted) as url, serve_remote(scripted.pipeline.bundle.folder, url) as server:
        reply = server.post(body_of(ask, cat, positions="original"))
        assert reply.status_code == 400 and "'original'" in reply.json()["error"]["message"]
        scripted.length = 8
    with stand_in(scripted) as url, serve_remote(scripted.pipeline.bundle.folder, url) as server:
        reply = server.post(body_of(ask, cat))
        assert reply.status_code == 400 and "of the decoder's 8 positions" in reply.json()["error"]["message"]
    with pytest.raises(RedipruneError, match="llava only"):
        pipe = Pipeline.load(bundle_of("llava_next_video"), "ort", lazy=True)
        RemoteDecoder(pipe, ServeSettings(), RemoteSettings(url))


def test_another_model_is_refused_at_the_start_but_not_one_that_is_down(
    scripted: Scripted, serve_remote: Serve, ask: Any
) -> None:
    scripted.fault = "tokenizer"
    bundle = scripted.pipeline.bundle.folder
    with stand_in(scripted) as url:
        with pytest.raises(RedipruneError, match="another tokenizer"):
            load_models({"tiny": bundle}, Loading("ort", remote=RemoteSettings(url)), ServeSettings(), Metrics())
        scripted.fault, scripted.model = "", "other"
        with pytest.raises(RedipruneError, match="--decoder-model"):
            settings = RemoteSettings(url, model="tiny")
            load_models({"tiny": bundle}, Loading("ort", remote=settings), ServeSettings(), Metrics())
    models = load_models({"tiny": bundle}, Loading("ort", remote=RemoteSettings(url)), ServeSettings(), Metrics())
    models["tiny"].close()


def test_with_fallback_the_answer_is_made_here(
    scripted: Scripted, serve_remote: Serve, ask: Any, cat: Path, photo: Path
) -> None:
    pipe = scripted.pipeline
    alone = pipe.generate("Why?", [cat], keep=4, max_new_tokens=3, temperature=0).text
    with stand_in(scripted) as url, serve_remote(pipe.bundle.folder, url, fallback=True) as server:
        body = body_of(ask, cat, temperature=0)
        there = server.post(body).json()["choices"][0]["message"]["content"]
        assert there != alone
        for fault in ("busy", "broken", "prompt", "tokenizer"):
            scripted.fault = fault
            assert server.post(body).json()["choices"][0]["message"]["content"] == alone, fault
        scripted.fault = ""
        assert server.post(body).json()["choices"][0]["message"]["content"] == there
        assert server.post(body | {"positions": "original"}).status_code == 200  # never handed on
        scripted.fault = "error"  # after its first token it is too late for another decoder
        assert server.post(body).status_code == 503


def test_one_that_leaves_frees_its_place(scripted: Scripted, serve_remote: Serve, ask: Any, cat: Path) -> None:
    with (
        stand_in(scripted) as url,
        serve_remote(scripted.pipeline.bundle.folder, url, first_token_timeout=30.0) as server,
    ):
        server.post(body_of(ask, cat))
        scripted.fault = "silent"
        with pytest.raises(httpx.ReadTimeout):
            server.post(body_of(ask, cat), timeout=1)
        assert server.comes_to_rest()
        with ExitStack() as stack:
            stream = stack.enter_context(
                httpx.stream(
                    "POST", f"{server.url}/v1/chat/completions", json=body_of(ask, cat, stream=True), timeout=5
                )
            )
            next(stream.iter_lines())
        assert server.comes_to_rest()
