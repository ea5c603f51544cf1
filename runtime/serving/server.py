"""A server over bundles: loaded, announced, run until it is told to stop."""

import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from ..backend_choice import AUTO, choose_backends, describe_backends
from ..bundle import Bundle
from ..errors import RedipruneError
from ..media.limits import MediaLimits
from ..pipeline import Pipeline
from .log import log, log_config
from .metrics import Metrics
from .routes import Serving, create_app
from .serve_settings import ServeSettings
from .served_model import ServedModel
from .spans import Spans, export_spans


@dataclass(frozen=True)
class Loading:
    """How bundles are loaded.

    Attributes:
        backend: what runs their stages.
        threads: for every stage; 0 leaves it to the backend.
        feature_memory: bytes of each bundle's feature cache.
        limits: what a picture or clip may be at most.
    """

    backend: str = AUTO
    threads: int = 0
    feature_memory: int = 1 << 30
    limits: MediaLimits | None = None


def load_models(
    bundles: Mapping[str, Path], loading: Loading, settings: ServeSettings, metrics: Metrics
) -> dict[str, ServedModel]:
    """Bundles by name, ready to answer.

    Raises:
        RedipruneError: a bundle or backend cannot be used.
    """
    models, spans = {}, Spans.installed()
    for name, folder in bundles.items():
        pipeline = Pipeline.load(
            folder,
            _backends(folder, loading.backend),
            threads=loading.threads,
            cache_bytes=loading.feature_memory,
            limits=loading.limits,
        )
        models[name] = ServedModel(name, pipeline, settings, metrics, spans)
        log.info("%s runs on %s", name, describe_backends(pipeline.backends))
        if not models[name].batches:
            log.warning(
                "%s decodes one request at a time with its language stage on %s; ort decodes many together",
                name,
                pipeline.backends["language"],
            )
    return models


def _backends(folder: Path, asked: str) -> str | dict[str, str]:
    """What is asked for; but `auto`, which goes by what is fastest for one, leaves decoding to what batches."""
    if asked != AUTO:
        return asked
    bundle = Bundle.open(folder, verify=False)  # its files are held to their hashes when it is loaded
    if not choose_backends(bundle)["language"].backend.startswith("openvino"):
        return asked
    record = bundle.manifest.calibration
    takes = record is None or record.refusal("ort", stage="language") is None
    return {"default": AUTO, "language": "ort"} if takes else asked


class _Server(uvicorn.Server):
    """One that says where it is once it takes requests."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or () if self.started else ():
            host, port = listening.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            log.info("ready: the page is http://%s:%d/, the API http://%s:%d/v1", shown, port, shown, port)


def run(
    bundles: Mapping[str, Path],
    loading: Loading,
    settings: ServeSettings,
    defaults: Mapping[str, Any],
    address: tuple[str, int],
    log_format: str,
) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what runs.

    Args:
        bundles: folders by the name that clients use.
        loading: how they are loaded.
        settings: of the server.
        defaults: selection settings where a request says nothing.
        address: host and port to listen on.
        log_format: "text" or "json".

    Raises:
        RedipruneError: a bundle or backend cannot be used, or the address is not free.
    """
    config = uvicorn.Config(
        "",
        log_config=log_config(log_format),
        access_log=False,
        timeout_graceful_shutdown=60,
    )
    with _bound(*address) as listening:
        export_spans()
        metrics = Metrics()
        models = load_models(bundles, loading, settings, metrics)
        config.app = create_app(Serving(models, settings, metrics, defaults))
        # uvicorn drains on SIGTERM, then raises the signal again for the handler of before: who drained leaves with 0.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        _Server(config).run([listening])


def _bound(host: str, port: int) -> socket.socket:
    """A socket that has the address, before anything is loaded, and takes no connection yet.

    Raises:
        RedipruneError: the address is not free, or not this machine's.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise RedipruneError(f"--host {host} is no address of this machine ({error})") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(where)
    except OSError as error:
        listening.close()
        raise RedipruneError(
            f"cannot listen on {host}:{port} ({error.strerror}); give another --port or --host"
        ) from None
    return listening
