"""OpenTelemetry spans of a request: one for all of it, one for every stage below it. Nothing, where it is not installed."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .log import log

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_EPOCH = time.time_ns() - time.perf_counter_ns()  # of `time.perf_counter`, in nanoseconds since 1970


@dataclass(frozen=True)
class Told:
    """What the spans of a request say.

    Attributes:
        model: its name.
        begin, end: of all of it (`time.perf_counter`).
        stages: name, begin and end of its stages.
        attributes: of the whole.
        error: what went wrong, where something did.
    """

    model: str
    begin: float
    end: float
    stages: list[tuple[str, float, float]]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


class Spans:
    """Writes spans with a tracer; without one it does nothing.

    Args:
        tracer: of OpenTelemetry; None: no spans.
    """

    def __init__(self, tracer: Any | None = None):
        self._tracer = tracer

    @classmethod
    def installed(cls) -> "Spans":
        """With the process's tracer provider, where OpenTelemetry is installed."""
        try:
            from opentelemetry import trace
        except ImportError:
            return cls()
        return cls(trace.get_tracer("rediprune"))

    def caller(self, headers: Mapping[str, str]) -> Any:
        """Whose work a request is part of, from its `traceparent`; None where that is nobody's."""
        if self._tracer is None:
            return None
        from opentelemetry import propagate

        return propagate.extract(headers)

    def write(self, told: Told, caller: Any) -> None:
        """Write the spans of a request that ended."""
        if self._tracer is None:
            return
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        whole = self._tracer.start_span(
            f"chat {told.model}",
            context=caller,
            kind=SpanKind.SERVER,
            start_time=_nanoseconds(told.begin),
            # Names of OpenTelemetry's semantic conventions for generative AI.
            attributes={"gen_ai.operation.name": "chat", "gen_ai.request.model": told.model, **told.attributes},
        )
        inside = set_span_in_context(whole)
        for name, begin, end in told.stages:
            stage = self._tracer.start_span(name, context=inside, start_time=_nanoseconds(begin))
            stage.end(_nanoseconds(end))
        if told.error is not None:
            whole.set_status(Status(StatusCode.ERROR, told.error))
        whole.end(_nanoseconds(told.end))


def export_spans() -> None:
    """Send spans where the environment says (`OTEL_EXPORTER_OTLP_ENDPOINT`), unless a provider is set already, as
    `opentelemetry-instrument` does.
    """
    if (
        not any(os.environ.get(name) for name in _ENDPOINTS)
        or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    ):
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        log.warning("no traces are sent: %s is missing; pip install 'rediprune[telemetry]'", error.name)
        return
    if isinstance(trace.get_tracer_provider(), TracerProvider):
        return
    provider = TracerProvider(
        resource=Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "rediprune")})
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def _nanoseconds(seconds: float) -> int:
    return _EPOCH + int(seconds * 1e9)
