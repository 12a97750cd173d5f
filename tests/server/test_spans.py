"""Spans of requests, where OpenTelemetry is installed."""

from __future__ import annotations

import pytest

from tests.server.served import ask, by_hand, message, parts_of

pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed here")

TRACE = "0af7651916cd43dd8448eb211c80319c"


def test_a_request_is_a_span_below_its_caller_s() -> None:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    body = {"messages": message("my secret"), "max_tokens": 3}
    headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    ask(parts_of(by_hand()), "/v1/chat/completions", body, headers=headers)
    [span] = exporter.get_finished_spans()
    assert span.name == "POST /v1/chat/completions"
    assert f"{span.context.trace_id:032x}" == TRACE
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["new_tokens"] == 3
    assert "secret" not in str(span.to_json())
