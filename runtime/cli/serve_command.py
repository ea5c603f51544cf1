"""`rediprune serve`: an OpenAI-compatible server."""

from types import SimpleNamespace

import typer

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
    Decoder,
    DecoderApiKey,
    DecoderModel,
    DecoderTimeout,
    Encoders,
    Fallback,
    FeatureMemory,
    Frames,
    Fronts,
    Host,
    Keep,
    LogFormat,
    MaxBatch,
    MaxBodyMb,
    MaxFrames,
    MaxItems,
    MaxMediaMb,
    MaxPendingMb,
    MaxReplicas,
    MaxText,
    MaxTokens,
    MaxWaiting,
    ModelsPerReplica,
    OnRay,
    Port,
    Positions,
    PrefillChunk,
    RayAddress,
    ReplicaCpus,
    ReplicaGpus,
    Replicas,
    Scope,
    Split,
    Tau,
    Threads,
    Timeout,
)
from .serve_start import start_server


def add(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(
        "serve",
        epilog="""Examples:\n
    rediprune serve engines/demo-fp32\n
    rediprune serve engines/llava-int8 small=engines/demo-fp32 --port 8080 --api-key "$KEY" --keep 0.15\n
    rediprune serve engines/demo-fp32 --ray --replicas 2\n
    rediprune serve engines/front --decoder http://127.0.0.1:8001/v1\n
    rediprune serve engines/llava --host 0.0.0.0 --allowed-media-domains images.example.org --log-format json""",
    )(serve)


def serve(
    context: typer.Context,
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
    scope: Scope = None,
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
    decoder: Decoder = None,
    decoder_model: DecoderModel = None,
    decoder_api_key: DecoderApiKey = None,
    decoder_timeout: DecoderTimeout = 30,
    fallback: Fallback = False,
    ray: OnRay = False,
    ray_address: RayAddress = None,
    replicas: Replicas = 1,
    max_replicas: MaxReplicas = 0,
    replica_cpus: ReplicaCpus = 1,
    replica_gpus: ReplicaGpus = 0,
    models_per_replica: ModelsPerReplica = 2,
    fronts: Fronts = 1,
    split: Split = 0,
) -> None:
    """Serve bundles through OpenAI's chat API, with a page to try them on.

    Requests are batched: several answers are decoded in one call where the backend can. Pictures come as data: URIs unless
    other sources are allowed. The page is at /, the metrics are at /metrics.
    """
    given = dict(locals())
    if backend != "eager":
        hide_torch()
    start_server(SimpleNamespace(**given))
