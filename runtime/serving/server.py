"""A server over bundles: loaded, announced, run until it is told to stop."""

import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from ..backend_choice import AUTO, describe_backends
from ..media.limits import MediaLimits
from ..pipeline import Pipeline
from .log import log, log_config
from .metrics import Metrics
from .routes import Serving, create_app
from .serve_settings import ServeSettings
from .served_model import ServedModel


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
    models = {}
    for name, folder in bundles.items():
        pipeline = Pipeline.load(
            folder,
            loading.backend,
            threads=loading.threads,
            cache_bytes=loading.feature_memory,
            limits=loading.limits,
        )
        models[name] = ServedModel(name, pipeline, settings, metrics)
        log.info("%s runs on %s", name, describe_backends(pipeline.backends))
        if not models[name].batches:
            log.warning(
                "%s decodes one request at a time with its language stage on %s; ort decodes many together",
                name,
                pipeline.backends["language"],
            )
    return models


def run(
    bundles: Mapping[str, Path],
    loading: Loading,
    settings: ServeSettings,
    defaults: Mapping[str, Any],
    address: tuple[str, int],
    log_format: str,
) -> bool:
    """Serve until SIGTERM or Ctrl-C, then finish what runs.

    Args:
        bundles: folders by the name that clients use.
        loading: how they are loaded.
        settings: of the server.
        defaults: selection settings where a request says nothing.
        address: host and port to listen on.
        log_format: "text" or "json".

    Returns:
        Whether it could listen; if not, the log says why.

    Raises:
        RedipruneError: a bundle or backend cannot be used.
    """
    config = uvicorn.Config(
        "",
        host=address[0],
        port=address[1],
        log_config=log_config(log_format),
        access_log=False,
        timeout_graceful_shutdown=60,
    )
    metrics = Metrics()
    models = load_models(bundles, loading, settings, metrics)
    config.app = create_app(Serving(models, settings, metrics, defaults))
    server = uvicorn.Server(config)
    # uvicorn drains on SIGTERM, then raises the signal again for the handler of before: a server that drained leaves with 0.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server.run()
    return server.started
