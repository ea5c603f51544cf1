"""A server over bundles: loaded, announced, run until it is told to stop."""

import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvicorn

from ..errors import RedipruneError
from .load_models import Loading, load_models
from .log import log, log_config
from .metrics import Metrics
from .routes import Serving, create_app
from .serve_settings import ServeSettings
from .spans import export_spans


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


def check_address(host: str, port: int) -> None:
    """See that an address is free now; raises as a server that wants it."""
    _bound(host, port).close()


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
