"""`rediprune serve`: an OpenAI-compatible server."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..errors import RedipruneError
from .arguments import BACKEND_HELP, hide_torch

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")


def add(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(
        "serve",
        epilog="""Examples:\n
    rediprune serve engines/demo-fp32\n
    rediprune serve engines/llava-int8 small=engines/demo-fp32 --port 8080 --api-key "$KEY" --keep 0.15\n
    rediprune serve engines/llava --host 0.0.0.0 --allowed-media-domains images.example.org --log-format json""",
    )(serve)


def serve(
    bundle: Annotated[
        list[str], typer.Argument(help="Bundles, each a folder or NAME=FOLDER; a folder is served under its own name.")
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 takes requests from other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="REDIPRUNE_API_KEY", help="Key that clients must send; it guards all but /health."),
    ] = None,
    backend: Annotated[str, typer.Option(help=BACKEND_HELP)] = "ort",
    threads: Annotated[int, typer.Option(help="Threads for each stage; 0 leaves their number to the backend.")] = 0,
    keep: Annotated[
        float | None, typer.Option(help="Ratio of visual tokens kept where a request does not say.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Weight of relevance where a request does not say.")] = None,
    tau: Annotated[float | None, typer.Option(help="Candidate filter where a request does not say.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of a clip where a request does not say.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer that a request may ask for.")] = 4096,
    max_items: Annotated[int, typer.Option(min=0, help="Most pictures and clips in one request.")] = 16,
    max_frames: Annotated[int, typer.Option(min=1, help="Most frames of one clip.")] = 64,
    max_body_mb: Annotated[int, typer.Option(min=1, help="Largest request body, in MiB.")] = 256,
    max_media_mb: Annotated[int, typer.Option(min=1, help="Largest picture or clip, encoded, in MiB.")] = 64,
    max_batch: Annotated[int, typer.Option(min=1, help="Most requests decoded together.")] = 8,
    cache_memory: Annotated[str, typer.Option(help="Memory of each model's KV cache, such as 512MB or 4GB.")] = "1GB",
    feature_memory: Annotated[str, typer.Option(help="Memory for features of pictures seen before.")] = "1GB",
    max_waiting: Annotated[int, typer.Option(min=1, help="Most requests that wait; one more is answered 429.")] = 64,
    prefill_chunk: Annotated[
        int, typer.Option(min=1, help="Prompt tokens computed before the other answers get their next token.")
    ] = 256,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take.")] = 300,
    allowed_media_domains: Annotated[
        list[str] | None,
        typer.Option(help="Host that http(s) media may come from, .example.org with all below; repeat."),
    ] = None,
    allowed_local_media_path: Annotated[
        Path | None, typer.Option(help="Folder that file:// media may come from.")
    ] = None,
    allow_private_media: Annotated[
        bool, typer.Option("--allow-private-media", help="Let allowed media hosts have private addresses.")
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name in the Host header that is answered; repeat. Default: loopback's names on loopback, else all."
        ),
    ] = None,
    log_format: Annotated[str, typer.Option(help="Form of the log: text or json.")] = "text",
) -> None:
    """Serve bundles through OpenAI's chat API, with a page to try them on.

    Requests are batched: several answers are decoded in one call where the backend can. Pictures come as data: URIs unless
    other sources are allowed. The page is at /, the metrics are at /metrics.
    """
    if backend != "eager":
        hide_torch()
    try:
        import uvicorn

        from ..serving.app import create_app
    except ImportError as error:
        raise RedipruneError(
            f"the server needs {error.name}; install it with: pip install 'rediprune[serve]'"
        ) from error
    from ..pipeline import Pipeline
    from ..serving.log import log_config
    from ..serving.media_fetch import MediaPolicy
    from ..serving.metrics import Metrics
    from ..serving.served_model import ServedModel
    from ..serving.settings import ServeSettings
    from ..serving.translate import RequestLimits

    defaults = {"keep": keep, "alpha": alpha, "tau": tau, "frames": frames}
    defaults = {name: value for name, value in defaults.items() if value is not None}
    _check(defaults, host, port, log_format, allowed_local_media_path)
    settings = ServeSettings(
        api_key=api_key or None,
        allowed_hosts=tuple(name.lower() for name in allowed_host or (_LOOPBACK if host in _LOOPBACK else ())),
        media=MediaPolicy(
            tuple(domain.lower() for domain in allowed_media_domains or ()),
            allowed_local_media_path,
            allow_private_media,
            max_media_mb << 20,
        ),
        limits=RequestLimits(max_items, max_frames, max_tokens),
        max_body_bytes=max_body_mb << 20,
        max_batch=max_batch,
        cache_memory=_bytes(cache_memory, "--cache-memory"),
        max_waiting=max_waiting,
        prefill_chunk=prefill_chunk,
        timeout=timeout,
    )
    features = _bytes(feature_memory, "--feature-memory")
    metrics, models = Metrics(), {}
    for name, folder in _named(bundle).items():
        pipeline = Pipeline.load(folder, backend, threads=threads, cache_bytes=features)
        models[name] = ServedModel(name, pipeline, settings, metrics)
        if not models[name].batches:
            told = f"'{name}' on {backend} decodes one request at a time; ort decodes up to {max_batch} together"
            Console(stderr=True).print(told, highlight=False)
    app = create_app(models, settings, metrics, defaults)
    config = uvicorn.Config(
        app, host=host, port=port, log_config=log_config(log_format), access_log=False, timeout_graceful_shutdown=60
    )
    server = uvicorn.Server(config)
    server.run()
    if not server.started:  # uvicorn has said why, e.g. that the port is taken
        raise typer.Exit(2)


def _check(defaults: dict[str, Any], host: str, port: int, log_format: str, media: Path | None) -> None:
    from ..options import SelectOptions

    SelectOptions(**defaults)
    if not 0 <= port <= 65535:
        raise RedipruneError(f"--port must be from 0 to 65535, not {port}")
    if log_format not in ("text", "json"):
        raise RedipruneError(f"--log-format is text or json, not '{log_format}'")
    if media is not None and not media.is_dir():
        raise RedipruneError(f"--allowed-local-media-path takes a folder; '{media}' is none")


def _named(bundles: list[str]) -> dict[str, Path]:
    """Folder by name."""
    named: dict[str, Path] = {}
    for given in bundles:
        name, equals, folder = given.partition("=")
        path = Path(folder) if equals else Path(given)
        name = name if equals else path.resolve().name
        if not name or "@" in name or "/" in name:
            raise RedipruneError(f"'{name}' is no name for a model: no @ and no / in it; give NAME=FOLDER")
        if name in named:
            raise RedipruneError(f"two bundles are called '{name}'; give one another name with NAME=FOLDER")
        named[name] = path
    return named


def _bytes(text: str, option: str) -> int:
    """Bytes of a size such as 512MB or 4GB.

    Raises:
        RedipruneError: it is no size; the message names the option.
    """
    units = {"KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "B": 1}
    upper = text.strip().upper().replace("IB", "B")
    unit = next((unit for unit in units if upper.endswith(unit)), "")
    try:
        size = int(float(upper.removesuffix(unit)) * units.get(unit, 1))
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise RedipruneError(f"{option} takes a size such as 512MB or 4GB, not '{text}'")
    return size
