"""`rediprune serve`: an OpenAI-compatible server."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer

from ..errors import RedipruneError
from ..media.limits import MediaLimits
from .arguments import LimitOption, hide_torch
from .serve_options import (
    AllowedHost,
    AllowedLocalMediaPath,
    AllowedMediaDomains,
    AllowPrivateMedia,
    Alpha,
    ApiKey,
    Backend,
    Bundle,
    CacheMemory,
    Encoders,
    FeatureMemory,
    Frames,
    Host,
    Keep,
    LogFormat,
    MaxBatch,
    MaxBodyMb,
    MaxFrames,
    MaxItems,
    MaxMediaMb,
    MaxPendingMb,
    MaxText,
    MaxTokens,
    MaxWaiting,
    Port,
    Positions,
    PrefillChunk,
    Tau,
    Threads,
    Timeout,
)
from .sizes import parse_size

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
    bundle: Bundle,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key: ApiKey = None,
    backend: Backend = "auto",
    threads: Threads = 0,
    keep: Keep = None,
    alpha: Alpha = None,
    tau: Tau = None,
    frames: Frames = None,
    positions: Positions = None,
    max_tokens: MaxTokens = 4096,
    max_items: MaxItems = 16,
    max_frames: MaxFrames = 64,
    max_text: MaxText = 1_000_000,
    max_body_mb: MaxBodyMb = 256,
    max_pending_mb: MaxPendingMb = 1024,
    max_media_mb: MaxMediaMb = 64,
    limit: LimitOption = None,
    max_batch: MaxBatch = 8,
    cache_memory: CacheMemory = "1GB",
    feature_memory: FeatureMemory = "1GB",
    max_waiting: MaxWaiting = 64,
    encoders: Encoders = 0,
    prefill_chunk: PrefillChunk = 256,
    timeout: Timeout = 300,
    allowed_media_domains: AllowedMediaDomains = None,
    allowed_local_media_path: AllowedLocalMediaPath = None,
    allow_private_media: AllowPrivateMedia = False,
    allowed_host: AllowedHost = None,
    log_format: LogFormat = "text",
) -> None:
    """Serve bundles through OpenAI's chat API, with a page to try them on.

    Requests are batched: several answers are decoded in one call where the backend can. Pictures come as data: URIs unless
    other sources are allowed. The page is at /, the metrics are at /metrics.
    """
    if backend != "eager":
        hide_torch()
    try:
        from ..serving.media_fetch import MediaPolicy
        from ..serving.server import Loading, run
    except ImportError as error:
        raise RedipruneError(f"serve needs {error.name}: pip install 'rediprune[serve]'") from error
    from ..serving.serve_settings import RequestLimits, ServeSettings

    defaults = given_selection(keep=keep, alpha=alpha, tau=tau, frames=frames, positions=positions)
    _check(port, log_format, allowed_local_media_path)
    domains, hosts = _lower(allowed_media_domains), _lower(allowed_host or (_LOOPBACK if host in _LOOPBACK else ()))
    settings = ServeSettings(
        api_key=api_key or None,
        allowed_hosts=hosts,
        media=MediaPolicy(domains, allowed_local_media_path, allow_private_media, max_media_mb << 20),
        limits=RequestLimits(max_items, max_frames, max_tokens, max_text=max_text),
        max_body_bytes=max_body_mb << 20,
        max_pending_bytes=max_pending_mb << 20,
        max_batch=max_batch,
        cache_memory=parse_size(cache_memory, "--cache-memory"),
        max_waiting=max_waiting,
        encoders=encoders,
        prefill_chunk=prefill_chunk,
        timeout=timeout,
    )
    loading = Loading(backend, threads, parse_size(feature_memory, "--feature-memory"), MediaLimits.read(limit or ()))
    run(named_bundles(bundle), loading, settings, defaults, (host, port), log_format)


def given_selection(**settings: Any) -> dict[str, Any]:
    """Selection settings that were given, checked."""
    from ..options import SelectOptions

    given = {name: value for name, value in settings.items() if value is not None}
    SelectOptions(**given)
    return given


def _lower(names: Iterable[str] | None) -> tuple[str, ...]:
    return tuple(name.lower() for name in names or ())


def _check(port: int, log_format: str, media: Path | None) -> None:
    if not 0 <= port <= 65535:
        raise RedipruneError(f"--port must be from 0 to 65535, not {port}")
    if log_format not in ("text", "json"):
        raise RedipruneError(f"--log-format is text or json, not '{log_format}'")
    if media is not None and not media.is_dir():
        raise RedipruneError(f"--allowed-local-media-path takes a folder; '{media}' is none")


def named_bundles(bundles: list[str]) -> dict[str, Path]:
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
