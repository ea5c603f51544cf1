"""The server as its clients see it: the official client over a real socket."""

import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rediprune.runtime import Pipeline
from rediprune.runtime.serving.media_fetch import MediaPolicy
from rediprune.runtime.serving.serve_settings import ServeSettings

from .conftest import Running

QUESTIONS = ("What is above the orange triangle?", "How many objects are there?", "Describe the picture.")


def test_the_official_client_gets_the_pipelines_answer(server: Running, ask: Any, scene: Path) -> None:
    expected = server.pipeline.generate(QUESTIONS[0], images=[scene], keep=0.15, max_new_tokens=16)
    reply = server.client().chat.completions.create(
        model="demo", messages=ask(QUESTIONS[0], scene), max_tokens=16, extra_body={"keep": 0.15}
    )
    assert reply.choices[0].message.content == expected.text == "purple cross"
    assert reply.choices[0].finish_reason == expected.finish_reason == "stop"
    assert reply.usage is not None and reply.usage.completion_tokens == len(expected.token_ids)
    assert reply.usage.prompt_tokens == expected.prompt_tokens + expected.kept_tokens
    own = (reply.model_extra or {})["rediprune"]
    assert own["kept"] == [kept.tolist() for kept in expected.kept]
    assert own["visual_tokens"] == 196 and own["kept_tokens"] == 29
    assert own["timings"]["time_to_first_token"] <= own["timings"]["total"]


def test_a_stream_is_the_same_answer_in_pieces(server: Running, ask: Any, scene: Path) -> None:
    expected = server.pipeline.generate(QUESTIONS[2], images=[scene], max_new_tokens=40)
    stream = server.client().chat.completions.create(
        model="demo",
        messages=ask(QUESTIONS[2], scene),
        max_tokens=40,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert "".join(pieces) == expected.text and len(pieces) > 3
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == expected.finish_reason
    assert not chunks[-1].choices and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(expected.token_ids)
    assert len({c.id for c in chunks}) == 1


def test_the_asynchronous_client(server: Running, ask: Any, scene: Path) -> None:
    async def run() -> list[str | None]:
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none")
        calls = [
            client.chat.completions.create(model="demo@0.15", messages=ask(text, scene), max_tokens=12)
            for text in QUESTIONS
        ]
        replies = await asyncio.gather(*calls)
        return [reply.choices[0].message.content for reply in replies]

    expected = [server.pipeline.generate(q, images=[scene], keep=0.15, max_new_tokens=12).text for q in QUESTIONS]
    assert asyncio.run(run()) == expected


def test_many_clients_at_once_each_get_their_own_answer(server: Running, ask: Any, scene: Path, cat: Path) -> None:
    asked = [
        (question, picture, keep, positions)
        for question in QUESTIONS
        for picture in (scene, cat, None)
        for keep, positions in ((0.05, "compact"), (0.5, "compact"), (0.05, "original"))
    ] * 2
    expected = [
        server.pipeline.generate(q, images=[p] if p else [], keep=k, positions=s, max_new_tokens=24).text
        for q, p, k, s in asked
    ]
    assert expected[::3] != expected[2::3]  # positions make a difference
    client = server.client()

    def one(item: tuple[str, Path | None, float, str]) -> str | None:
        text, picture, keep, positions = item
        pictures = [picture] if picture else []
        reply = client.chat.completions.create(
            model="demo",
            messages=ask(text, *pictures),
            max_tokens=24,
            extra_body={"keep": keep, "positions": positions},
        )
        return reply.choices[0].message.content

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(one, asked)) == expected


@pytest.mark.parametrize("name", ["internvl", pytest.param("qwen2_5_vl", marks=pytest.mark.slow), "qwen3_vl"])
def test_other_families_are_batched_alike(
    name: str, serve: Callable[..., Any], bundle_of: Callable[[str], Path], ask: Any, scene: Path, cat: Path, clip: Path
) -> None:
    """Several placeholders a video, positions of three axes, embeddings for the first layers: as alone."""
    asked = [
        (question, images, videos, keep)
        for question, (images, videos), keep in product(
            QUESTIONS[:2], (([scene], []), ([cat, scene], []), ([], [clip]), ([], [])), (0.3, 1.0)
        )
    ]
    settings = ServeSettings(prefill_chunk=7)  # prompts come in pieces
    with serve({name: bundle_of(name)}, settings) as fresh:
        pipeline, client = fresh.pipeline, fresh.client()
        expected = [
            pipeline.generate(q, images=i, videos=v, keep=k, frames=4, max_new_tokens=12).text for q, i, v, k in asked
        ]

        def one(item: tuple[str, list[Path], list[Path], float]) -> str | None:
            text, images, videos, keep = item
            reply = client.chat.completions.create(
                model=name,
                messages=ask(text, *images, *videos),
                max_tokens=12,
                extra_body={"keep": keep, "frames": 4},
            )
            return reply.choices[0].message.content

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(one, asked)) == expected
    assert len(set(expected)) > 6


def test_a_clip(server: Running, ask: Any, clip: Path) -> None:
    pipeline = server.models["video"].pipeline
    expected = pipeline.generate("What happens?", videos=[clip], frames=3, keep=4, max_new_tokens=8)
    reply = server.client().chat.completions.create(
        model="video",
        messages=ask("What happens?", clip),
        max_tokens=8,
        extra_body={"mm_processor_kwargs": {"keep": 4}, "media_io_kwargs": {"video": {"num_frames": 3}}},
    )
    assert reply.choices[0].message.content == expected.text
    details = reply.model_dump()["usage"]["prompt_tokens_details"]
    assert details["multimodal_tokens"] == {"image": 0, "video": 12}


def test_log_probabilities(server: Running, ask: Any, scene: Path) -> None:
    reply = server.client().chat.completions.create(
        model="demo", messages=ask(QUESTIONS[0], scene), max_tokens=3, logprobs=True, top_logprobs=3
    )
    content = reply.choices[0].logprobs.content if reply.choices[0].logprobs else None
    assert content is not None and len(content) == reply.usage.completion_tokens if reply.usage else False
    for token in content or ():
        assert token.top_logprobs[0].logprob == token.logprob  # greedy: the chosen one is the likeliest
        likely = [entry.logprob for entry in token.top_logprobs]
        assert likely == sorted(likely, reverse=True) and len(likely) == 3 and max(likely) <= 0


def test_a_dialogue_that_keeps_its_tokens_reuses_its_cache(server: Running, ask: Any, scene: Path) -> None:
    client = server.client()

    def say(messages: list[dict[str, Any]], reselect: bool) -> Any:
        return client.chat.completions.create(
            model="demo",
            messages=messages,  # pyright: ignore[reportArgumentType]
            max_tokens=16,
            extra_body={"keep": 0.15, "rediprune": {"reselect": reselect}},
        )

    turn = ask(QUESTIONS[0], scene)
    first = say(turn, False)
    longer = [*turn, {"role": "assistant", "content": first.choices[0].message.content}, *ask(QUESTIONS[1])]
    warm = say(longer, False)
    kept = [reply.model_extra["rediprune"]["kept"] for reply in (first, warm)]
    assert kept[0] == kept[1] and warm.model_extra["rediprune"]["reselected"] is False
    details = warm.usage.prompt_tokens_details
    assert details.cached_tokens >= 29 + 10  # the system prompt, the kept tokens and the question at least
    anew = say(longer, True)
    assert anew.model_extra["rediprune"]["reselected"] is True
    assert anew.model_extra["rediprune"]["kept"] != kept[0]


def test_the_reused_cache_gives_the_cold_answer(
    serve: Callable[..., Any], demo_bundle: Path, ask: Any, scene: Path
) -> None:
    extra = {"keep": 0.15, "rediprune": {"reselect": False}}
    turn = ask(QUESTIONS[2], scene)
    answers, cached = [], []
    for warm in (True, False):
        with serve({"demo": demo_bundle}) as fresh:
            client = fresh.client()
            if warm:
                client.chat.completions.create(model="demo", messages=turn, max_tokens=30, extra_body=extra)
            longer = [*turn, {"role": "assistant", "content": "A picture of things."}, *ask(QUESTIONS[2])]
            reply = client.chat.completions.create(model="demo", messages=longer, max_tokens=40, extra_body=extra)
            answers.append(reply.choices[0].message.content)
            cached.append(reply.usage.prompt_tokens_details.cached_tokens)  # pyright: ignore
    assert answers[0] == answers[1] and cached[0] > 29 and cached[1] == 0


def test_a_client_that_leaves_frees_its_slot(serve: Callable[..., Any], bundle_of: Callable[[str], Path]) -> None:
    with serve({"tiny": bundle_of("llava")}, ServeSettings(max_batch=1)) as server:
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "Go on."}],
            "max_tokens": 60,
            "stream": True,
        }
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=30) as reply:
            next(reply.iter_lines())
        assert server.comes_to_rest()
        assert server.metric("request_failure_total", model_name="tiny", status="499") == 1


def test_a_full_queue_is_429_and_the_client_tries_again(
    serve: Callable[..., Any], bundle_of: Callable[[str], Path]
) -> None:
    with serve({"tiny": bundle_of("llava")}, ServeSettings(max_batch=1, max_waiting=1)) as server:
        messages: Any = [{"role": "user", "content": "Go on."}]
        statuses: list[int] = []

        def flood() -> None:
            body = {"model": "tiny", "messages": messages, "max_tokens": 40}
            reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
            statuses.append(reply.status_code)
            if reply.status_code == 429:
                assert reply.headers["retry-after"] == "1"

        threads = [threading.Thread(target=flood) for _ in range(10)]
        for thread in threads:
            thread.start()
        patient = server.client(max_retries=8, timeout=60)
        reply = patient.chat.completions.create(model="tiny", messages=messages, max_tokens=2)
        assert reply.choices[0].finish_reason == "length"
        for thread in threads:
            thread.join()
        assert set(statuses) == {200, 429}


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"n": 2}, 400, "n"),
        ({"presence_penalty": 2.5}, 400, "presence_penalty"),
        ({"guided_json": {}}, 400, "guided_json"),
        ({"modalities": ["text", "audio"]}, 400, "modalities"),
        ({"logit_bias": {"5": 1}}, 400, "logit_bias"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, 400, "response_format"),
        ({"tool_choice": "required", "tools": []}, 400, "tool_choice"),
        ({"stop": list("abcde")}, 400, "stop"),
        ({"top_logprobs": 2}, 400, "top_logprobs"),
        ({"temperature": -1}, 400, "temperature"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 10**9}, 400, "max_tokens"),
        ({"messages": [{"role": "user", "content": "word " * 20000}]}, 400, None),  # beyond the model's positions
        ({"keep": 2.5}, 400, "keep"),
        ({"frames": 1000}, 400, "frames"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": ""}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, 400, "messages.0.content"),
        ({"model": "other"}, 404, "model"),
        ({"model": "demo@many"}, 404, "model"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name(
    server: Running, change: dict[str, Any], status: int, param: str | None
) -> None:
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hello?"}]} | change
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30)
    error = reply.json()["error"]
    assert reply.status_code == status and error["type"] == "invalid_request_error"
    if param is not None:
        assert str(error["param"]).startswith(param)
    assert "Traceback" not in reply.text and str(Path.cwd()) not in reply.text


@pytest.mark.parametrize(
    "data",
    [
        b"not a picture",
        b"\x89PNG\r\n\x1a\n" + b"x" * 50,
        b"ffconcat version 1.0\nfile 'x.ts'\n",
        b"%!PS-Adobe-3.0 EPSF",
    ],
)
@pytest.mark.parametrize("kind", ["image_url", "video_url"])
def test_bad_media_say_nothing_of_the_server(server: Running, data: bytes, kind: str) -> None:
    import base64

    url = f"data:{kind[:5]}/x;base64,{base64.b64encode(data).decode()}"
    content = [{"type": kind, kind: {"url": url}}, {"type": "text", "text": "What?"}]
    body = {"model": "video", "messages": [{"role": "user", "content": content}]}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30)
    assert reply.status_code == 400
    assert "/" not in reply.json()["error"]["message"].replace("data:", "") and "0x" not in reply.text


@pytest.mark.parametrize(
    ("headers", "content", "status"),
    [
        ({"Content-Type": "text/plain"}, b"{}", 415),
        ({"Content-Type": "application/json"}, b"{", 400),
        ({"Content-Type": "application/json"}, b"\xff\xfe", 400),
        ({"Content-Type": "application/json"}, b"[]", 400),
        ({"Content-Type": "application/json"}, b"null", 400),
        ({"Content-Type": "application/json"}, b'{"model": "demo"}', 400),
    ],
)
def test_bodies_that_are_none(server: Running, headers: dict[str, str], content: bytes, status: int) -> None:
    reply = httpx.post(f"{server.url}/v1/chat/completions", content=content, headers=headers)
    assert reply.status_code == status and reply.json()["error"]["message"]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "messages",
                "model",
                "max_tokens",
                "temperature",
                "top_p",
                "top_k",
                "seed",
                "stop",
                "stream",
                "n",
                "logprobs",
                "keep",
                "alpha",
                "tau",
                "frames",
                "mm_processor_kwargs",
                "media_io_kwargs",
                "rediprune",
                "tools",
                "response_format",
                "prune_tiles",
            ]
        ),
        _JSON,
        max_size=4,
    )
)
def test_no_body_is_a_fault_of_the_server(server: Running, change: dict[str, Any]) -> None:
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 2} | change
    reply = httpx.post(
        f"{server.url}/v1/chat/completions", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert reply.status_code in (200, 400, 404), reply.text


def test_a_body_beyond_the_cap(serve: Callable[..., Any], bundle_of: Callable[[str], Path]) -> None:
    with serve({"tiny": bundle_of("llava")}, ServeSettings(max_body_bytes=1 << 20)) as server:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "x" * (1 << 21)}]}
        assert httpx.post(f"{server.url}/v1/chat/completions", json=body).status_code == 413

        def pieces() -> Any:  # without a Content-Length
            yield b'{"model": "'
            for _ in range(40):
                yield b"x" * 65536

        reply = httpx.post(
            f"{server.url}/v1/chat/completions", content=pieces(), headers={"Content-Type": "application/json"}
        )
        assert reply.status_code == 413


def test_the_key_guards_everything_but_health(serve: Callable[..., Any], bundle_of: Callable[[str], Path]) -> None:
    with serve({"tiny": bundle_of("llava")}, ServeSettings(api_key="secret")) as server:
        routes = ["/", "/v1/models", "/v1/models/tiny", "/metrics", "/version", "/ping", "/openapi.json", "/nothing"]
        for route in routes:
            for headers in (
                {},
                {"Authorization": "Bearer wrong"},
                {"Authorization": "Basic eDp5"},
                {"Authorization": "secret"},
            ):
                assert httpx.get(server.url + route, headers=headers).status_code == 401, route
        assert httpx.post(f"{server.url}/v1/chat/completions", json={}).status_code == 401
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert httpx.get(f"{server.url}/", auth=("anyone", "secret")).status_code == 200  # as a browser does
        assert next(model.id for model in server.client(api_key="secret").models.list()) == "tiny"


def test_only_named_hosts_are_answered(serve: Callable[..., Any], bundle_of: Callable[[str], Path]) -> None:
    settings = ServeSettings(allowed_hosts=("localhost", "127.0.0.1"))
    with serve({"tiny": bundle_of("llava")}, settings) as server:
        assert httpx.get(f"{server.url}/v1/models").status_code == 200
        assert httpx.get(f"{server.url}/v1/models", headers={"Host": "evil.test"}).status_code == 421


def test_local_files_where_they_are_allowed(
    serve: Callable[..., Any], demo_bundle: Path, scene: Path, server: Running
) -> None:
    def ask_file(running: Running) -> httpx.Response:
        content = [{"type": "image_url", "image_url": f"file://{scene}"}, {"type": "text", "text": QUESTIONS[0]}]
        body = {"model": "demo", "messages": [{"role": "user", "content": content}], "max_tokens": 8}
        return httpx.post(f"{running.url}/v1/chat/completions", json=body, timeout=30)

    assert ask_file(server).status_code == 400
    with serve({"demo": demo_bundle}, ServeSettings(media=MediaPolicy(folder=scene.parent))) as allowed:
        assert ask_file(allowed).json()["choices"][0]["message"]["content"] == "purple cross"


def test_metrics_count_what_was_asked(serve: Callable[..., Any], demo_bundle: Path, ask: Any, scene: Path) -> None:
    with serve({"demo": demo_bundle}) as server:
        for _ in range(2):
            server.client().chat.completions.create(
                model="demo", messages=ask(QUESTIONS[0], scene), max_tokens=8, extra_body={"keep": 0.15}
            )
        httpx.post(
            f"{server.url}/v1/chat/completions", json={"model": "none", "messages": [{"role": "user", "content": "x"}]}
        )
        text = httpx.get(f"{server.url}/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    label = '{model_name="demo"}'
    assert float(lines[f"rediprune:visual_tokens_total{label}"]) == 2 * 196
    assert float(lines[f"rediprune:kept_tokens_total{label}"]) == 2 * 29
    assert float(lines[f"rediprune:mm_cache_queries_total{label}"]) == 2
    assert float(lines[f"rediprune:mm_cache_hits_total{label}"]) == 1
    assert float(lines[f"rediprune:time_to_first_token_seconds_count{label}"]) == 2
    assert float(lines['rediprune:request_success_total{finished_reason="stop",model_name="demo"}']) == 2
    assert float(lines['rediprune:request_failure_total{model_name="",status="404"}']) == 1


def test_defaults_of_the_server(serve: Callable[..., Any], demo_bundle: Path, ask: Any, scene: Path) -> None:
    with serve({"demo": demo_bundle}, defaults={"keep": 0.25}) as server:
        client = server.client()
        kept = []
        for model in ("demo", "demo@0.5", "demo@7"):
            reply = client.chat.completions.create(model=model, messages=ask("What?", scene), max_tokens=2)
            kept.append((reply.model_extra or {})["rediprune"]["kept_tokens"])
        assert kept == [49, 98, 7]


def test_the_pipelines_own_answers_stand_beside_the_servers(server: Running, ask: Any, scene: Path) -> None:
    """A pipeline that a server uses may be used directly too."""
    assert isinstance(server.pipeline, Pipeline)
    direct = server.pipeline.generate(QUESTIONS[0], images=[scene], seed=1, temperature=0.7, max_new_tokens=12)
    reply = server.client().chat.completions.create(
        model="demo", messages=ask(QUESTIONS[0], scene), seed=1, temperature=0.7, max_tokens=12
    )
    assert reply.choices[0].message.content == direct.text
