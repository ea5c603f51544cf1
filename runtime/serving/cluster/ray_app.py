"""The server as a Ray Serve application, and a cluster that runs it."""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig

from ...errors import RedipruneError
from ...options import SelectOptions
from ..load_models import Loading
from ..log import log
from ..serve_settings import ServeSettings
from .ray_board import Board
from .ray_cluster import ray_cluster
from .ray_decoder import decoders_of
from .ray_engine import engine_of
from .ray_front import Front
from .ray_router import by_picture
from .ray_settings import Scale, Spread

APPLICATION = "default"  # as `serve run` calls it, so that one replaces the other
_DRAIN = 10.0  # seconds beyond a request's own that a replica may take to end
_BUNDLES = "REDIPRUNE_BUNDLES"


class Arguments(BaseModel):
    """What `serve run …:app NAME=VALUE …` and the `args` of a Serve config file may say; `rediprune serve --help` explains it."""

    model_config = ConfigDict(extra="forbid")

    bundles: str = Field("", description=f"folders or NAME=FOLDER, separated by commas; default: ${_BUNDLES}")
    backend: str = "auto"
    threads: int = 0
    keep: float | None = None
    replicas: int = 1
    max_replicas: int = 0
    cpus: float = 1.0
    gpus: float = 0.0
    models: int = 2
    fronts: int = 1
    split: int = 0
    max_batch: int = 8
    max_waiting: int = 64
    timeout: float = 300.0
    api_key: str | None = None


def app(args: Arguments) -> Application:
    """`serve run rediprune.runtime.serving.ray:app`: the application of what the arguments say.

    Raises:
        RedipruneError: no bundle is named, or a setting is out of its range.
    """
    named: dict[str, Path] = {}
    for given in filter(None, (args.bundles or os.environ.get(_BUNDLES, "")).split(",")):
        name, equals, folder = given.partition("=")
        path = Path(folder if equals else name).resolve()
        named[name if equals else path.name] = path
    if not named:
        raise RedipruneError(f"say which bundles: bundles=engines/demo-fp32, or {_BUNDLES}=…")
    selection = {} if args.keep is None else {"keep": args.keep}
    SelectOptions(keep=args.keep)
    most = max(args.replicas, args.max_replicas)
    key = args.api_key or os.environ.get("REDIPRUNE_API_KEY")
    settings = ServeSettings(
        api_key=key or None, max_batch=args.max_batch, max_waiting=args.max_waiting, timeout=args.timeout
    )
    scale = Scale(
        args.replicas,
        most,
        cpus=args.cpus,
        gpus=args.gpus,
        models=args.models,
        fronts=args.fronts,
        split=args.split,
        target=args.max_batch / 2,
    )
    return application(Spread(named, Loading(args.backend, args.threads), settings, selection, scale))


def application(spread: Spread) -> Application:
    """The deployments of a server: the front, the replicas, those that decode apart, the board of metrics."""
    scale, settings = spread.scale, spread.settings
    threads = spread.loading.threads or max(1, int(scale.cpus))
    # Threads of a replica are those of its cores: two replicas on one machine must not take all of it each.
    loading = Loading(
        spread.loading.backend, threads, spread.loading.feature_memory, spread.loading.limits, lazy=bool(scale.split)
    )
    spread = Spread(
        {name: folder.resolve() for name, folder in spread.bundles.items()}, loading, settings, spread.defaults, scale
    )
    common: dict[str, Any] = {
        "max_ongoing_requests": settings.max_waiting,
        "graceful_shutdown_timeout_s": settings.timeout + _DRAIN,
        "graceful_shutdown_wait_loop_s": 0.2,
        "health_check_period_s": max(1.0, scale.patience / 5),
        "health_check_timeout_s": scale.patience,
    }
    deployment: Any = serve.deployment  # its own types do not take options as a dictionary
    board = deployment(Board, name="Board", ray_actor_options={"num_cpus": 0}).bind()
    language = None
    if scale.split:
        language = deployment(
            decoders_of(scale.models),
            name="Language",
            num_replicas=scale.split,
            ray_actor_options=_needs(scale),
            **common,
        ).bind(spread)
    engine = deployment(
        engine_of(scale.models),
        name="Engine",
        ray_actor_options=_needs(scale),
        max_queued_requests=settings.max_waiting,
        request_router_config=by_picture(settings.max_batch),
        **_count(scale),
        **common,
    ).bind(spread, language, board)
    front = deployment(
        Front,
        name="Front",
        num_replicas=scale.fronts,
        ray_actor_options={"num_cpus": 0},  # it waits
        **common | {"max_ongoing_requests": 64 * settings.max_waiting},
    )
    return front.bind(spread, engine, board)


def run_on_ray(spread: Spread, address: tuple[str, int], cluster: str | None) -> None:
    """Serve on Ray: on a cluster, where it stays and replaces what runs there; else on a Ray of this machine, until SIGTERM or
    Ctrl-C.

    Args:
        spread: the server.
        address: host and port of every machine's proxy.
        cluster: address of the Ray cluster; None starts one here.

    Raises:
        RedipruneError: there is no such cluster, or it has no room.
    """
    host, port = address
    with ray_cluster(cluster, torch=spread.loading.backend == "eager"):
        serve.start(http_options={"host": host, "port": port}, logging_config={"log_level": "WARNING"})
        try:
            serve.run(application(spread), name=APPLICATION, route_prefix="/")
        except RuntimeError as error:
            raise RedipruneError(f"the replicas did not start: {str(error).splitlines()[0][:300]}") from error
        log.info("ready: the page is http://%s:%d/, the API http://%s:%d/v1", host, port, host, port)
        if cluster is not None:
            log.info("it stays on the cluster; `serve shutdown --yes` ends it, and this command again replaces it")
            return
        ended = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        ended.wait()
        serve.shutdown()
    sys.exit(0)


def _needs(scale: Scale) -> dict[str, Any]:
    return {"num_cpus": scale.cpus, **({"num_gpus": scale.gpus} if scale.gpus else {})}


def _count(scale: Scale) -> dict[str, Any]:
    if scale.max_replicas == scale.replicas:
        return {"num_replicas": scale.replicas}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=scale.replicas,
            max_replicas=scale.max_replicas,
            target_ongoing_requests=scale.target,
            upscale_delay_s=5,
            downscale_delay_s=120,
        )
    }
