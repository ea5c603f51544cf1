"""A server on a free loopback port, in a thread of this process."""

import base64
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from rediprune.runtime import MediaLimits, Pipeline
from rediprune.runtime.serving.fallback_decoder import FallbackDecoder
from rediprune.runtime.serving.local_decoder import LocalDecoder
from rediprune.runtime.serving.metrics import Metrics
from rediprune.runtime.serving.remote_decoder import RemoteDecoder, RemoteSettings
from rediprune.runtime.serving.routes import Serving, create_app
from rediprune.runtime.serving.serve_settings import ServeSettings
from rediprune.runtime.serving.served_model import ServedModel
from rediprune.runtime.serving.spans import Spans

SCENE = Path(__file__).parents[3] / "docs" / "demo" / "scene.png"


@dataclass
class Running:
    """A server and what it serves."""

    url: str
    models: dict[str, ServedModel]
    metrics: Metrics

    @property
    def pipeline(self) -> Pipeline:
        return next(iter(self.models.values())).pipeline

    def post(self, body: Any, timeout: float = 60, **headers: str) -> httpx.Response:
        """The reply to a chat request with this body."""
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=timeout, headers=headers)

    def metric(self, name: str, **labels: str) -> float:
        """A metric's value as Prometheus scrapes it; 0 where it has not been set."""
        for line in httpx.get(f"{self.url}/metrics").text.splitlines():
            key, _, value = line.rpartition(" ")
            if key.split("{")[0] == f"rediprune:{name}" and all(f'{k}="{v}"' in key for k, v in labels.items()):
                return float(value)
        return 0.0

    def comes_to_rest(self, seconds: float = 10) -> bool:
        """Whether no request is left after so long at most."""
        for _ in range(int(seconds / 0.02)):
            if not any(
                self.metric(f"num_requests_{state}", model_name=m)
                for m in self.models
                for state in ("running", "waiting")
            ):
                return True
            time.sleep(0.02)
        return False

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0} | options)


@contextmanager
def running(
    bundles: dict[str, Path],
    settings: ServeSettings | None = None,
    defaults: dict[str, Any] | None = None,
    limits: MediaLimits | None = None,
    spans: Spans | None = None,
    backend: str = "ort",
) -> Iterator[Running]:
    """A server over bundles by name."""
    settings, metrics = settings or ServeSettings(), Metrics()
    models = {
        name: ServedModel(name, Pipeline.load(folder, backend, threads=1, limits=limits), settings, metrics, spans)
        for name, folder in bundles.items()
    }
    with listening(models, settings, metrics, defaults) as it:
        yield it


@contextmanager
def listening(
    models: dict[str, ServedModel], settings: ServeSettings, metrics: Metrics, defaults: dict[str, Any] | None = None
) -> Iterator[Running]:
    """A server over models that are loaded."""
    app = create_app(Serving(models, settings, metrics, defaults or {}))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Running(f"http://127.0.0.1:{port}", models, metrics)
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def serve_remote() -> Callable[..., Any]:
    """`with serve_remote(bundle, url, name="tiny", fallback=False, **settings) as server:`, decoded at `url`."""

    @contextmanager
    def start(bundle: Path, url: str, name: str = "tiny", fallback: bool = False, **remote: Any) -> Iterator[Running]:
        settings, metrics = ServeSettings(), Metrics()
        pipeline = Pipeline.load(bundle, "ort", threads=1, lazy=True)
        decoder: Any = RemoteDecoder(pipeline, settings, RemoteSettings(url, **{"connect_timeout": 2.0} | remote))
        if fallback:
            decoder = FallbackDecoder(decoder, LocalDecoder(name, pipeline, settings))
        with listening(
            {name: ServedModel(name, pipeline, settings, metrics, decoder=decoder)}, settings, metrics
        ) as it:
            yield it

    return start


@pytest.fixture(scope="session")
def serve() -> Callable[..., Any]:
    """`with serve({"name": bundle}, settings) as server:`."""
    return running


@pytest.fixture(scope="module")
def server(demo_bundle: Path, bundle_of: Callable[[str], Path]) -> Iterator[Running]:
    """A server of the demo bundle and of a tiny one that takes videos."""
    with running({"demo": demo_bundle, "video": bundle_of("llava_next_video")}) as started:
        yield started


@pytest.fixture(scope="module")
def tiny(bundle_of: Callable[[str], Path]) -> Iterator[Running]:
    """A server of a bundle with random weights that takes pictures and videos: for what does not depend on the answer."""
    with running({"tiny": bundle_of("llava_next_video")}) as started:
        yield started


@pytest.fixture(scope="session")
def as_uri() -> Callable[[Path], str]:
    """A file as a data: URI."""
    kinds = {".png": "image/png", ".jpg": "image/jpeg", ".mp4": "video/mp4"}
    return lambda path: f"data:{kinds[path.suffix]};base64," + base64.b64encode(path.read_bytes()).decode()


@pytest.fixture(scope="session")
def scene() -> Path:
    return SCENE


@pytest.fixture(scope="session")
def ask(as_uri: Callable[[Path], str]) -> Callable[..., list[dict[str, Any]]]:
    """The messages of one question about pictures."""

    def messages(text: str, *pictures: Path) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = []
        for path in pictures:
            kind = "video_url" if path.suffix == ".mp4" else "image_url"
            parts.append({"type": kind, kind: {"url": as_uri(path)}})
        return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]

    return messages
