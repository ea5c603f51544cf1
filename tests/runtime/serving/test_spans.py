"""Spans of requests, collected in memory."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from rediprune.runtime.serving.spans import Spans, export_spans

trace = pytest.importorskip("opentelemetry.sdk.trace")
export = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
simple = pytest.importorskip("opentelemetry.sdk.trace.export")


@pytest.fixture
def collected() -> tuple[Spans, Any]:
    """Spans, and what collects them."""
    memory, provider = export.InMemorySpanExporter(), trace.TracerProvider()
    provider.add_span_processor(simple.SimpleSpanProcessor(memory))
    return Spans(provider.get_tracer("test")), memory


def test_a_request_is_a_span_with_its_stages_below(
    serve: Callable[..., Any], bundle_of: Callable[[str], Path], ask: Any, photo: Path, collected: Any
) -> None:
    spans, memory = collected
    caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with serve({"tiny": bundle_of("llava")}, spans=spans) as server:
        body = {"model": "tiny", "messages": ask("What?", photo), "max_tokens": 5, "keep": 3}
        told = server.post(body, traceparent=caller).json()
    found = memory.get_finished_spans()
    whole = next(span for span in found if span.name == "chat tiny")
    stages = [span for span in found if span is not whole]
    assert {span.name for span in stages} == {
        *("fetch", "preprocess", "vision", "select", "project", "embed", "queue", "prefill", "decode")
    }
    assert f"{whole.context.trace_id:032x}" in caller and f"{whole.parent.span_id:016x}" in caller
    assert whole.attributes["gen_ai.usage.input_tokens"] == told["usage"]["prompt_tokens"]
    assert whole.attributes["gen_ai.usage.output_tokens"] == 5
    assert whole.attributes["rediprune.kept_tokens"] == 3
    assert whole.status.is_ok or whole.status.status_code.name == "UNSET"
    for span in stages:
        assert span.parent.span_id == whole.context.span_id
        assert whole.start_time <= span.start_time <= span.end_time <= whole.end_time + 1000
    seconds = (whole.end_time - whole.start_time) / 1e9
    assert seconds == pytest.approx(told["rediprune"]["timings"]["total"], abs=1e-3)


def test_a_client_that_left_is_an_error(
    serve: Callable[..., Any], bundle_of: Callable[[str], Path], collected: Any
) -> None:
    spans, memory = collected
    with serve({"tiny": bundle_of("llava")}, spans=spans) as server:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Go on."}], "max_tokens": 60, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as reply:
            next(reply.iter_lines())
        assert server.comes_to_rest()
    whole = next(span for span in memory.get_finished_spans() if span.name == "chat tiny")
    assert whole.status.status_code.name == "ERROR" and "left" in whole.status.description


def test_without_the_package_nothing_is_traced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    spans = Spans.installed()
    assert spans.caller({"traceparent": "x"}) is None
    export_spans()
    assert not caplog.records
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    export_spans()
    assert "rediprune[telemetry]" in caplog.text
