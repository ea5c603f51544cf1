"""From the options of `rediprune serve` to a server that runs."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RedipruneError
from ..media.limits import MediaLimits
from .arguments import parse_keep, refuse_without
from .sizes import parse_size

if TYPE_CHECKING:
    from ..serving.load_models import Loading
    from ..serving.media_fetch import MediaPolicy
    from ..serving.remote_decoder import RemoteSettings
    from ..serving.serve_settings import ServeSettings

KEEP_COUNT = 'let requests say it: "keep": {}'
_OF_RAY = (
    "ray_address",
    "replicas",
    "max_replicas",
    "replica_cpus",
    "replica_gpus",
    "models_per_replica",
    "fronts",
    "split",
)
_OF_DECODER = ("decoder_model", "decoder_api_key", "decoder_timeout", "fallback")
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")


def start_server(given: Any) -> None:
    """Serve until it is told to stop.

    Args:
        given: the options by their names (`serve_command.serve`).

    Raises:
        RedipruneError: a bad option, a bundle or backend that cannot be used, an address that is not free.
    """
    try:
        from ..serving.load_models import Loading
        from ..serving.server import run
    except ImportError as error:
        raise RedipruneError(f"serve needs {error.name}: pip install 'rediprune[serve]'") from error
    defaults = _defaults(given)
    _check(given.port, given.log_format)
    if not given.ray:
        refuse_without(given.context, "--ray", *_OF_RAY)
    if given.decoder is None:
        refuse_without(given.context, "--decoder", *_OF_DECODER)
    settings, bundles = _settings(given), named_bundles(given.bundle)
    memory, limits = parse_size(given.feature_memory, "--feature-memory"), MediaLimits.read(given.limit or ())
    remote = _remote(given, len(bundles))
    loading = Loading(given.backend, given.threads, memory, limits, remote, given.fallback)
    if given.ray:
        _run_on_ray(given, bundles, loading, settings)
    else:
        run(bundles, loading, settings, defaults, (given.host, given.port), given.log_format)


def _settings(given: Any) -> "ServeSettings":
    from ..serving.serve_settings import RequestLimits, ServeSettings

    hosts = given.allowed_host or (_LOOPBACK if given.host in _LOOPBACK else ())
    return ServeSettings(
        api_key=given.api_key or None,
        allowed_hosts=_lower(hosts),
        media=media_policy(
            given.allowed_media_domains,
            given.allowed_local_media_path,
            given.max_media_mb,
            private_addresses=given.allow_private_media,
        ),
        limits=RequestLimits(given.max_items, given.max_frames, given.max_tokens, max_text=given.max_text),
        max_body_bytes=given.max_body_mb << 20,
        max_pending_bytes=given.max_pending_mb << 20,
        max_batch=given.max_batch,
        cache_memory=parse_size(given.cache_memory, "--cache-memory"),
        max_waiting=given.max_waiting,
        encoders=given.encoders,
        prefill_chunk=given.prefill_chunk,
        timeout=given.timeout,
    )


def media_policy(domains: Iterable[str] | None, folder: Path | None, megabytes: int, **further: Any) -> "MediaPolicy":
    """Where a request's media may come from.

    Args:
        domains, folder, megabytes: of --allowed-media-domains, --allowed-local-media-path and --max-media-mb.
        further: fields of `MediaPolicy`.

    Raises:
        RedipruneError: the folder is none.
    """
    from ..serving.media_fetch import MediaPolicy

    if folder is not None and not folder.is_dir():
        raise RedipruneError(f"--allowed-local-media-path takes a folder; '{folder}' is none")
    return MediaPolicy(_lower(domains), folder, max_bytes=megabytes << 20, **further)


def _defaults(given: Any) -> dict[str, Any]:
    return given_selection(
        keep=parse_keep(given.keep, "--keep", KEEP_COUNT),
        alpha=given.alpha,
        tau=given.tau,
        frames=given.frames,
        positions=given.positions,
        scope=given.scope,
    )


def _remote(given: Any, bundles: int) -> "RemoteSettings | None":
    from ..serving.remote_decoder import RemoteSettings

    if given.decoder is None:
        if given.fallback:
            raise RedipruneError("--fallback is for a server with --decoder; without one everything is decoded here")
        return None
    _check_decoder(given.decoder, given.decoder_timeout, bundles)
    key = given.decoder_api_key or None
    return RemoteSettings(given.decoder.rstrip("/"), given.decoder_model, key, given.decoder_timeout)


def given_selection(**settings: Any) -> dict[str, Any]:
    """Selection settings that were given, checked."""
    from ..options import SelectOptions

    given = {name: value for name, value in settings.items() if value is not None}
    SelectOptions(**given)
    return given


def _run_on_ray(given: Any, bundles: dict[str, Path], loading: "Loading", settings: "ServeSettings") -> None:
    """Serve on a Ray cluster."""
    try:
        from ..serving.cluster.ray_app import run_on_ray
        from ..serving.cluster.ray_settings import Scale, Spread
    except ImportError as error:
        raise RedipruneError(f"--ray needs {error.name}: pip install 'rediprune[ray]'") from error
    from logging.config import dictConfig

    from ..bundle import Bundle
    from ..serving.log import log, log_config
    from ..serving.server import check_address

    if loading.remote is not None:
        raise RedipruneError("--decoder and --ray do not go together: put the front machines behind a load balancer")
    for folder in bundles.values():
        Bundle.open(folder, verify=False)  # told here, not by a replica
    dictConfig(log_config(given.log_format))
    if given.ray_address is None:
        check_address(given.host, given.port)  # Ray's proxy would share it with whoever has it
        log.info("starting Ray and %d replicas; this takes half a minute", given.replicas)
    scale = Scale(
        replicas=given.replicas,
        max_replicas=max(given.replicas, given.max_replicas),
        target=max(1.0, settings.max_batch / 2),
        cpus=given.replica_cpus,
        gpus=given.replica_gpus,
        models=given.models_per_replica,
        fronts=given.fronts,
        split=given.split,
    )
    run_on_ray(Spread(bundles, loading, settings, _defaults(given), scale), (given.host, given.port), given.ray_address)


def _check_decoder(url: str, seconds: float, bundles: int) -> None:
    if not url.startswith(("http://", "https://")) or not url.rstrip("/").endswith("/v1"):
        raise RedipruneError(
            f"--decoder takes the URL of an API that ends in /v1, such as http://host:8001/v1, not '{url}'"
        )
    if not seconds > 0:
        raise RedipruneError(f"--decoder-timeout must be above 0, not {seconds:g}")
    if bundles != 1:
        raise RedipruneError("a decoder serves one model: give --decoder one bundle")


def _lower(names: Iterable[str] | None) -> tuple[str, ...]:
    return tuple(name.lower() for name in names or ())


def _check(port: int, log_format: str) -> None:
    if not 0 <= port <= 65535:
        raise RedipruneError(f"--port must be from 0 to 65535, not {port}")
    if log_format not in ("text", "json"):
        raise RedipruneError(f"--log-format is text or json, not '{log_format}'")


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
