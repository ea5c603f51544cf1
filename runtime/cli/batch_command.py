"""`rediprune batch`: many requests of a file answered into a file."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..errors import RedipruneError
from ..media.limits import MediaLimits
from . import serve_options as serving
from .arguments import JsonOption, LimitOption, check_output_file, hide_torch, parse_keep, refuse_without
from .batch_options import (
    AllowedLocalMediaPath,
    Bundle,
    MaxBatch,
    MaxNewTokens,
    OnRay,
    Out,
    Prompt,
    RayAddress,
    Requests,
    Strict,
    Temperature,
    Timeout,
    WorkerCpus,
    Workers,
)
from .progress import batch_bar
from .serve_start import KEEP_COUNT, given_selection, media_policy, named_bundles
from .sizes import parse_size

if TYPE_CHECKING:
    from ..batch.batch_job import Summary


def add(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(
        "batch",
        epilog="""Examples:\n
    rediprune batch engines/demo requests.jsonl -o answers.jsonl\n
    rediprune batch engines/demo photos/ -o answers.jsonl --prompt "What is in this picture?" --keep 0.15\n
    rediprune batch engines/demo photos.csv -o answers.jsonl --strict --json\n
    rediprune batch engines/demo requests.jsonl -o answers.jsonl --ray --workers 4""",
    )(batch)


def batch(
    context: typer.Context,
    bundle: Bundle,
    requests: Requests,
    out: Out,
    prompt: Prompt = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    strict: Strict = False,
    backend: serving.Backend = "auto",
    threads: serving.Threads = 0,
    keep: serving.Keep = None,
    alpha: serving.Alpha = None,
    tau: serving.Tau = None,
    frames: serving.Frames = None,
    positions: serving.Positions = None,
    max_tokens: serving.MaxTokens = 4096,
    max_items: serving.MaxItems = 16,
    max_frames: serving.MaxFrames = 64,
    max_body_mb: serving.MaxBodyMb = 256,
    max_media_mb: serving.MaxMediaMb = 64,
    limit: LimitOption = None,
    max_batch: MaxBatch = 16,
    cache_memory: serving.CacheMemory = "1GB",
    feature_memory: serving.FeatureMemory = "1GB",
    encoders: serving.Encoders = 0,
    timeout: Timeout = 3600,
    allowed_media_domains: serving.AllowedMediaDomains = None,
    allowed_local_media_path: AllowedLocalMediaPath = None,
    ray: OnRay = False,
    ray_address: RayAddress = None,
    workers: Workers = 2,
    worker_cpus: WorkerCpus = 1,
    as_json: JsonOption = False,
) -> None:
    """Answer every row of a file, a folder or a table, many at once, and write the answers in order.

    Killed at any point and started again with the same arguments, it goes on: every row has one answer, in order, and no line
    is half written. A row that cannot be answered becomes a line with its error. The summary goes to standard output. Exit
    code 1: rows have errors.
    """
    if backend != "eager":
        hide_torch()
    try:
        from ..batch.batch_job import Answering, run_batch
        from ..batch.batch_rows import BatchSource, Question
        from ..serving.load_models import Loading
        from ..serving.serve_settings import RequestLimits, ServeSettings
    except ImportError as error:
        raise RedipruneError(f"batch needs {error.name}: pip install 'rediprune[serve]'") from error
    check_output_file(out, "--out")
    if not ray:
        refuse_without(context, "--ray", "ray_address", "workers", "worker_cpus")
    fields = {"max_tokens": max_new_tokens, "temperature": temperature}
    question = Question(prompt, {name: value for name, value in fields.items() if value is not None})
    source = BatchSource(requests, question, max_body_mb << 20)
    media = media_policy(allowed_media_domains, allowed_local_media_path, max_media_mb, base=source.folder)
    settings = ServeSettings(
        media=media,
        limits=RequestLimits(max_items, max_frames, max_tokens),
        max_batch=max_batch,
        cache_memory=parse_size(cache_memory, "--cache-memory"),
        max_waiting=16 * max_batch,
        encoders=encoders,
        timeout=timeout,
    )
    loading = Loading(backend, threads, parse_size(feature_memory, "--feature-memory"), MediaLimits.read(limit or ()))
    [(name, folder)] = named_bundles([bundle]).items()
    defaults = given_selection(
        keep=parse_keep(keep, "--keep", KEEP_COUNT), alpha=alpha, tau=tau, frames=frames, positions=positions
    )
    spread = _spread(ray_address, workers, worker_cpus) if ray else None
    with batch_bar(as_json) as progress:
        answering = Answering(name, folder, loading, settings, defaults)
        summary = run_batch(source, answering, out, strict, progress, spread)
    print(json.dumps(summary.document()) if as_json else _told(summary, out))
    if summary.tally.errors:
        raise typer.Exit(1)


def _spread(address: str | None, workers: int, cpus: float) -> Any:
    """What answers rows on a Ray cluster."""
    from ..serving.cluster import use_token

    use_token()
    try:
        from ..batch.ray_batch import spread_over
    except ImportError as error:
        raise RedipruneError(f"--ray needs {error.name}: pip install 'rediprune[ray]'") from error
    return spread_over(address, workers, cpus)


def _told(summary: "Summary", out: Path) -> str:
    figures, tally = summary.document(), summary.tally
    kept = ""
    if tally.visual_tokens:
        kept = f" · kept {tally.kept_tokens:,} of {tally.visual_tokens:,} visual tokens"
    before = f" ({summary.found:,} of them before)" if summary.found else ""
    return (
        f"{out}: {tally.requests:,} requests{before}, {tally.errors:,} errors · "
        f"{tally.prompt_tokens:,} prompt and {tally.completion_tokens:,} answer tokens{kept}\n"
        f"{figures['seconds']:.1f} s and {figures['load_seconds']:.1f} s to load · "
        f"{figures['requests_per_second']:.2f} requests/s · {figures['tokens_per_second']:.0f} tokens/s · "
        f"{figures['cpu_seconds']:.0f} core seconds · peak memory {figures['peak_memory'] / 1e9:.2f} GB"
    )
