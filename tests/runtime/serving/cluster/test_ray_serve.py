"""The server on a real Ray: replicas, routing by picture, updates, and every kind of end that a process may have."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from rediprune.runtime import Pipeline

from ....support.command_line import CommandLine
from ..test_server import started

pytest.importorskip("ray")
from ....support.ray_head import head

pytestmark = pytest.mark.process


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return held.getsockname()[1]


def metric(url: str, name: str) -> dict[str, float]:
    """A metric by replica."""
    found: dict[str, float] = {}
    for line in httpx.get(f"{url}/metrics", timeout=30).text.splitlines():
        key, _, value = line.rpartition(" ")
        if key.split("{")[0] == f"rediprune:{name}":
            replica = key.split('replica="')[1].split('"')[0]
            found[replica] = found.get(replica, 0.0) + float(value)
    return found


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.1)
    return found


@pytest.mark.smoke
def test_two_replicas_answer_the_official_client_and_know_their_pictures(
    bundle_of: Callable[[str], Path], ask: Any, photo: Path, cat: Path, scene: Path
) -> None:
    """What `rediprune serve --ray` promises, from its start to its end."""
    bundle = bundle_of("llava")
    options = ["--ray", "--replicas", 2, "--replica-cpus", 0.5, "--backend", "ort", "--port", free_port()]
    pipe = Pipeline.load(bundle, "ort")
    with started(f"tiny={bundle}", *options) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        assert "tiny@0.15" in {model.id for model in client.models.list()}
        for _ in range(3):
            for picture in (photo, cat, scene):
                arguments: Any = {"model": "tiny", "messages": ask("Why?", picture), "max_tokens": 4, "temperature": 0}
                reply = client.chat.completions.create(**arguments)
                expected = pipe.generate("Why?", [picture], max_new_tokens=4, temperature=0).text
                assert reply.choices[0].message.content == expected
                streamed = client.chat.completions.create(**arguments, stream=True)
                assert "".join(each.choices[0].delta.content or "" for each in streamed) == expected
        wait_for(lambda: sum(metric(server.url, "mm_cache_queries_total").values()) == 18, 15)
        assert sum(metric(server.url, "mm_cache_hits_total").values()) == 15  # each was encoded once, by one replica
        assert httpx.get(f"{server.url}/health").status_code == 200
        unknown = server.post({"model": "other", "messages": []})
        assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "model_not_found"
        assert server.post({"model": "tiny", "messages": ask("Why?"), "n": 3}).json()["error"]["param"] == "n"
        below = psutil.Process(server.process.pid).children(recursive=True)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
        _, left = psutil.wait_procs(below, timeout=30)
        assert left == []


# -- the rest in one Ray of this process -------------------------------------------------------------------------------


class Cluster:
    """A Ray of this machine with one application on it."""

    def __init__(self, port: int):
        self.url = f"http://127.0.0.1:{port}"

    def deploy(self, bundles: dict[str, Path], **scale: Any) -> None:
        """Deploy, or replace what is there; returns once it is there."""
        from ray import serve
        from rediprune.runtime.serving.cluster.ray_app import APPLICATION, application
        from rediprune.runtime.serving.cluster.ray_settings import Scale, Spread
        from rediprune.runtime.serving.load_models import Loading
        from rediprune.runtime.serving.serve_settings import ServeSettings

        settings = ServeSettings(max_batch=4, timeout=scale.pop("timeout", 60.0))
        spread = Spread(bundles, Loading("ort"), settings, {}, replace(Scale(1, 1, cpus=0.25), **scale))
        serve.run(application(spread), name=APPLICATION, route_prefix="/")

    def replicas(self, deployment: str = "Engine") -> list[psutil.Process]:
        """The processes of a deployment."""
        named = f"ServeReplica:default:{deployment}"
        below = psutil.Process().children(recursive=True)
        return [each for each in below if any(named in part for part in _command(each))]

    def post(self, body: dict[str, Any], timeout: float = 90) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=timeout)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    from ray import serve
    from rediprune.runtime.serving.cluster.ray_cluster import ray_cluster

    port = free_port()
    with ray_cluster(None):
        serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "ERROR"})
        yield Cluster(port)
        serve.shutdown()


@contextmanager
def load(
    cluster: Cluster, bodies: list[dict[str, Any]], clients: int = 6, pause: float = 0.05
) -> Iterator[list[tuple[int, httpx.Response]]]:
    """Clients that ask again and again, until the block ends; their replies.

    Without their pauses (seconds) they would take what time the processes need that start meanwhile.
    """
    replies: list[tuple[int, httpx.Response]] = []
    ended = threading.Event()

    def work(own: int) -> None:
        number = own
        while not ended.is_set():
            replies.append((number % len(bodies), cluster.post(bodies[number % len(bodies)])))
            number += clients
            ended.wait(pause)

    with ThreadPoolExecutor(clients) as pool:
        asked = [pool.submit(work, own) for own in range(clients)]
        try:
            yield replies
        finally:
            ended.set()
    for each in asked:
        each.result()


def bodies_of(ask: Any, pictures: list[Path], tokens: int = 24) -> list[dict[str, Any]]:
    common = {"model": "tiny", "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    return [common | {"messages": ask(f"Why {number}?", path)} for number, path in enumerate(pictures * 3)]


def texts_of(bundle: Path, pictures: list[Path], tokens: int = 24) -> list[str]:
    """The right answers, from a server of one process's parts."""
    from rediprune.runtime.serving.metrics import Metrics
    from rediprune.runtime.serving.serve_settings import ServeSettings
    from rediprune.runtime.serving.served_model import ServedModel

    from ..conftest import listening

    settings, metrics = ServeSettings(), Metrics()
    model = ServedModel("tiny", Pipeline.load(bundle, "ort"), settings, metrics)
    with listening({"tiny": model}, settings, metrics) as server:
        return [
            server.post(body).json()["choices"][0]["message"]["content"]
            for body in bodies_of(_messages, pictures, tokens)
        ]


def _messages(text: str, path: Path) -> list[dict[str, Any]]:
    import base64

    kind = "png" if path.suffix == ".png" else "jpeg"
    uri = f"data:image/{kind};base64," + base64.b64encode(path.read_bytes()).decode()
    return [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": text}]}
    ]


def check(replies: list[tuple[int, httpx.Response]], expected: list[str], allowed: set[int]) -> set[int]:
    """No reply is wrong, and each that is no answer may be tried again; the statuses there were."""
    for number, reply in replies:
        if reply.status_code == 200:
            assert reply.json()["choices"][0]["message"]["content"] == expected[number]
            assert reply.json()["usage"]["completion_tokens"] == 24
        else:
            assert reply.status_code in allowed, reply.text
            assert reply.json()["error"]["message"]
    return {reply.status_code for _, reply in replies}


@pytest.mark.slow
def test_a_replica_that_is_killed_costs_no_request_a_wrong_answer(
    cluster: Cluster, bundle_of: Callable[[str], Path], photo: Path, cat: Path, scene: Path
) -> None:
    pictures, bundle = [photo, cat, scene], bundle_of("llava")
    expected = texts_of(bundle, pictures)
    cluster.deploy({"tiny": bundle}, replicas=2, max_replicas=2)
    with load(cluster, bodies_of(_messages, pictures)) as replies:
        wait_for(lambda: len(replies) > 20)
        cluster.replicas()[0].send_signal(signal.SIGKILL)
        before = len(replies)
        wait_for(lambda: len(replies) > before + 40 and len(cluster.replicas()) == 2, 120)
    assert check(replies, expected, {503}) >= {200}
    assert sum(reply.status_code == 200 for _, reply in replies) > 0.9 * len(replies)


@pytest.mark.slow
def test_a_picture_that_many_ask_about_at_once_is_answered_by_both_replicas(
    cluster: Cluster, bundle_of: Callable[[str], Path], scene: Path
) -> None:
    bundle = bundle_of("llava")
    expected = texts_of(bundle, [scene])
    cluster.deploy({"tiny": bundle}, replicas=2, max_replicas=2)
    asked = {"before": metric(cluster.url, "mm_cache_queries_total")}
    with load(cluster, bodies_of(_messages, [scene]), clients=12, pause=0) as replies:
        wait_for(lambda: len(replies) > 100)

    def told() -> int:
        asked["after"] = metric(cluster.url, "mm_cache_queries_total")
        return round(sum(asked["after"].values()) - sum(asked["before"].values()))

    wait_for(lambda: told() == len(replies), 15)
    assert check(replies, expected, set()) == {200}
    shares = [asked["after"][name] - asked["before"].get(name, 0.0) for name in asked["after"]]
    answering = [share for share in shares if share > 0]  # replicas of the tests before are still told
    assert len(answering) == 2 and min(answering) > 0.25 * len(replies)


@pytest.mark.slow
def test_a_replica_that_hangs_is_replaced_and_its_requests_end_in_time(
    cluster: Cluster, bundle_of: Callable[[str], Path], photo: Path, cat: Path, scene: Path
) -> None:
    """A process that is stopped stands for a machine that hangs: it answers neither requests nor health checks."""
    pictures, bundle = [photo, cat, scene], bundle_of("llava")
    expected = texts_of(bundle, pictures)
    cluster.deploy({"tiny": bundle}, replicas=2, max_replicas=2, patience=2.0, timeout=45.0)
    with load(cluster, bodies_of(_messages, pictures)) as replies:
        wait_for(lambda: len(replies) > 20)
        stopped = cluster.replicas()[0]
        stopped.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        try:
            wait_for(lambda: sum(each.pid != stopped.pid for each in cluster.replicas()) == 2, 60)
            before = len(replies)
            wait_for(lambda: len(replies) > before + 30, 60)
        finally:
            with suppress(psutil.NoSuchProcess):
                stopped.kill()
    assert time.monotonic() - began < 110
    assert check(replies, expected, {503, 504}) >= {200}
    assert all(reply.elapsed.total_seconds() < 52 for _, reply in replies)


@pytest.mark.slow
def test_an_update_to_another_bundle_loses_no_request(
    cluster: Cluster, bundle_of: Callable[[str], Path], photo: Path, cat: Path, scene: Path
) -> None:
    pictures = [photo, cat, scene]
    old, new = texts_of(bundle_of("llava"), pictures), texts_of(bundle_of("llava_qwen2"), pictures)
    assert old != new
    cluster.deploy({"tiny": bundle_of("llava")}, replicas=2, max_replicas=2)
    with load(cluster, bodies_of(_messages, pictures)) as replies:
        wait_for(lambda: len(replies) > 20)
        cluster.deploy({"tiny": bundle_of("llava_qwen2")}, replicas=2, max_replicas=2)
        deployed = len(replies)
        wait_for(lambda: len(replies) > deployed + 30)
    assert {reply.status_code for _, reply in replies} == {200}, [r.text for _, r in replies if r.status_code != 200][
        :3
    ]
    found = [reply.json()["choices"][0]["message"]["content"] for _, reply in replies]
    for (number, _), text in zip(replies, found, strict=True):
        assert text in (old[number], new[number])
    assert all(text == new[number] for (number, _), text in list(zip(replies, found, strict=True))[deployed + 12 :])


@pytest.mark.slow
def test_language_apart_answers_alike_and_survives_its_end(
    cluster: Cluster, bundle_of: Callable[[str], Path], photo: Path, cat: Path, scene: Path
) -> None:
    pictures, bundle = [photo, cat, scene], bundle_of("llava")
    expected = texts_of(bundle, pictures)
    cluster.deploy({"tiny": bundle}, replicas=1, max_replicas=1, split=2)
    with load(cluster, bodies_of(_messages, pictures)) as replies:
        wait_for(lambda: len(replies) > 20)
        assert {reply.status_code for _, reply in replies} == {200}
        cluster.replicas("Language")[0].send_signal(signal.SIGKILL)
        before = len(replies)
        wait_for(lambda: len(replies) > before + 40, 120)
    assert check(replies, expected, {503}) >= {200}
    streamed = cluster.post(
        bodies_of(_messages, pictures)[0] | {"stream": True, "stream_options": {"include_usage": True}}
    )
    events = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    assert "".join(c["delta"].get("content") or "" for e in events for c in e["choices"]) == expected[0]
    assert events[-1]["usage"]["completion_tokens"] == 24


@pytest.mark.slow
def test_more_bundles_than_a_replica_holds_are_loaded_in_turn(
    cluster: Cluster, bundle_of: Callable[[str], Path], cat: Path
) -> None:
    names = ("llava", "llava_qwen2", "llava_siglip")
    bundles = {name: bundle_of(name) for name in names}
    cluster.deploy(bundles, models=1)
    expected = {
        name: Pipeline.load(folder, "ort").generate("Why?", [cat], max_new_tokens=5, temperature=0).text
        for name, folder in bundles.items()
    }
    body = {"messages": _messages("Why?", cat), "max_tokens": 5, "temperature": 0}
    for name in (*names, *names, "llava"):
        reply = cluster.post(body | {"model": name})
        assert reply.json()["choices"][0]["message"]["content"] == expected[name]
    listed = httpx.get(f"{cluster.url}/v1/models").json()["data"]
    assert set(names) <= {model["id"] for model in listed}


@pytest.mark.slow
def test_under_load_there_are_more_replicas(
    cluster: Cluster, bundle_of: Callable[[str], Path], photo: Path, cat: Path, scene: Path
) -> None:
    pictures, bundle = [photo, cat, scene], bundle_of("llava")
    expected = texts_of(bundle, pictures)
    cluster.deploy({"tiny": bundle}, replicas=1, max_replicas=2, target=1.0)
    assert len(cluster.replicas()) == 1
    with load(cluster, bodies_of(_messages, pictures), pause=0) as replies:
        wait_for(lambda: len(cluster.replicas()) == 2, 60)
        before = len(replies)
        wait_for(lambda: len(replies) > before + 20)
    assert check(replies, expected, set()) == {200}


@pytest.mark.slow
def test_a_client_that_reads_slowly_or_leaves_keeps_nobody(
    cluster: Cluster, bundle_of: Callable[[str], Path], photo: Path, cat: Path
) -> None:
    bundle, pictures = bundle_of("llava"), [photo, cat]
    expected = texts_of(bundle, pictures)
    cluster.deploy({"tiny": bundle}, replicas=1, max_replicas=1)
    long = bodies_of(_messages, pictures, 1500)[0] | {"stream": True}
    slow = [httpx.stream("POST", f"{cluster.url}/v1/chat/completions", json=long, timeout=60) for _ in range(4)]
    streams = [each.__enter__() for each in slow]  # as many as are decoded together
    try:
        firsts = [next(stream.iter_raw(16)) for stream in streams]
        assert all(firsts)
        with load(cluster, bodies_of(_messages, pictures), clients=2) as replies:
            wait_for(lambda: len(replies) >= 10, 120)
        assert check(replies, expected, set()) == {200}
    finally:
        for each in slow:
            with suppress(httpx.HTTPError):
                each.__exit__(None, None, None)
    wait_for(lambda: sum(metric(cluster.url, "num_requests_running").values()) == 0, 30)


@pytest.mark.slow
def test_a_key_and_limits_guard_the_front(bundle_of: Callable[[str], Path], ask: Any) -> None:
    options = ["--ray", "--replica-cpus", 0.5, "--backend", "ort", "--port", free_port(), "--max-body-mb", 1]
    with started(f"tiny={bundle_of('llava')}", *options, REDIPRUNE_API_KEY="secret") as server:
        body = {"model": "tiny", "messages": ask("Why?"), "max_tokens": 2}
        for path in ("/v1/models", "/metrics", "/version"):
            assert httpx.get(f"{server.url}{path}").status_code == 401
        assert server.post(body).status_code == 401
        key = {"Authorization": "Bearer secret"}
        assert server.post(body, **key).status_code == 200
        assert server.post(body | {"user": "x" * (2 << 20)}, **key).status_code == 413
        assert httpx.get(f"{server.url}/health", headers={"Host": "evil.test"}).status_code == 421
        assert "Traceback" not in "".join(server.lines)


@pytest.mark.slow
def test_rays_own_tools_run_it_and_the_command_replaces_it(
    bundle_of: Callable[[str], Path], rediprune_process: CommandLine, cat: Path
) -> None:
    """`serve run rediprune.runtime.serving.ray:app`, then `rediprune serve --ray --ray-address`."""
    one, two = bundle_of("llava"), bundle_of("llava_qwen2")
    body = {"model": "tiny", "messages": _messages("Why?", cat), "max_tokens": 5, "temperature": 0}

    def answer(url: str) -> str | None:
        with suppress(httpx.HTTPError, KeyError, ValueError):
            reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)
            return str(reply.json()["choices"][0]["message"]["content"])
        return None

    expected = [
        Pipeline.load(bundle, "ort").generate("Why?", [cat], max_new_tokens=5, temperature=0).text
        for bundle in (one, two)
    ]
    with head(200_000_000) as address:
        told = [f"bundles=tiny={one}", "replicas=1", "cpus=0.5", "backend=ort"]
        target = "rediprune.runtime.serving.ray:app"
        command = [sys.executable, "-m", "ray.serve.scripts", "run", "--address", address, target, *told]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            url = "http://127.0.0.1:8000"
            assert wait_for(lambda: answer(url), 120) == expected[0]
            options = ["--ray", "--ray-address", address, "--replica-cpus", 0.5, "--backend", "ort"]
            done = rediprune_process("serve", f"tiny={two}", *options)
            assert "it stays on the cluster" in done.stderr
            wait_for(lambda: answer(url) == expected[1], 60)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
