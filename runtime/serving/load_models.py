"""Bundles loaded to be served."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..backend_choice import AUTO, choose_backends, describe_backends
from ..bundle import Bundle
from ..errors import RedipruneError
from ..media.limits import MediaLimits
from ..pipeline import Pipeline
from .answer_decoder import AnswerDecoder
from .fallback_decoder import FallbackDecoder
from .local_decoder import LocalDecoder
from .log import log
from .metrics import Metrics
from .remote_decoder import DecoderDownError, OtherModelError, RemoteDecoder, RemoteSettings
from .serve_settings import ServeSettings
from .served_model import ServedModel
from .spans import Spans


@dataclass(frozen=True)
class Loading:
    """How bundles are loaded.

    Attributes:
        backend: what runs their stages.
        threads: for every stage; 0 leaves it to the backend.
        feature_memory: bytes of each bundle's feature cache.
        limits: what a picture or clip may be at most.
        remote: where answers are decoded; None: here.
        fallback: decode here what fails there.
        lazy: load no stage that is not asked for.
    """

    backend: str = AUTO
    threads: int = 0
    feature_memory: int = 1 << 30
    limits: MediaLimits | None = None
    remote: RemoteSettings | None = None
    fallback: bool = False
    lazy: bool = False


def load_models(
    bundles: Mapping[str, Path], loading: Loading, settings: ServeSettings, metrics: Metrics
) -> dict[str, ServedModel]:
    """Bundles by name, ready to answer.

    Raises:
        RedipruneError: a bundle or backend cannot be used.
    """
    models, spans = {}, Spans.installed()
    for name, folder in bundles.items():
        pipeline = open_pipeline(folder, loading)
        decoder = None if loading.remote is None else _remote(name, pipeline, loading, settings)
        models[name] = ServedModel(name, pipeline, settings, metrics, spans, decoder)
        log.info("%s runs on %s", name, describe_backends(pipeline.backends))
        if decoder is None and not models[name].batches:
            log.warning(
                "%s decodes one request at a time with its language stage on %s; ort decodes many together",
                name,
                pipeline.backends["language"],
            )
    return models


def open_pipeline(folder: Path, loading: Loading) -> Pipeline:
    """A bundle, opened to be served.

    Raises:
        RedipruneError: it or its backend cannot be used.
    """
    return Pipeline.load(
        folder,
        _backends(folder, loading.backend),
        threads=loading.threads,
        cache_bytes=loading.feature_memory,
        limits=loading.limits,
        lazy=loading.lazy or (loading.remote is not None and not loading.fallback),
    )


def _remote(name: str, pipeline: Pipeline, loading: Loading, settings: ServeSettings) -> AnswerDecoder:
    """What asks a decoder elsewhere, after a first look at it; one that is down may come up later.

    Raises:
        RedipruneError: it serves another model, or the bundle's tokens cannot be handed over.
    """
    assert loading.remote is not None
    try:
        asyncio.run(RemoteDecoder(pipeline, settings, loading.remote).check())
    except DecoderDownError as error:
        log.warning("%s: %s", loading.remote.url, error.message)
    except OtherModelError as error:
        if not loading.fallback:
            raise RedipruneError(f"--decoder {loading.remote.url}: {error.message}") from error
        log.warning("%s: %s", loading.remote.url, error.message)
    remote = RemoteDecoder(pipeline, settings, loading.remote)
    return FallbackDecoder(remote, LocalDecoder(name, pipeline, settings)) if loading.fallback else remote


def _backends(folder: Path, asked: str) -> str | dict[str, str]:
    """What is asked for; but `auto`, which goes by what is fastest for one, leaves decoding to what batches."""
    if asked != AUTO:
        return asked
    bundle = Bundle.open(folder, verify=False)  # its files are held to their hashes when it is loaded
    if "language" not in bundle.manifest.stages:
        return asked
    if not choose_backends(bundle)["language"].backend.startswith("openvino"):
        return asked
    record = bundle.manifest.calibration
    takes = record is None or record.refusal("ort", stage="language") is None
    return {"default": AUTO, "language": "ort"} if takes else asked
