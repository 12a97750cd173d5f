"""Spans for OpenTelemetry, if it is installed: whoever starts the server configures where they go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol


class Span(Protocol):
    """What is told of a request while it runs."""

    def update_name(self, name: str) -> None:
        """Call it otherwise."""

    def set_attribute(self, key: str, value: Any) -> None:
        """Add something that is known of it."""


class _NoSpan:
    def update_name(self, name: str) -> None:
        """Tell nobody."""

    def set_attribute(self, key: str, value: Any) -> None:
        """Tell nobody."""


@contextmanager
def span(name: str, headers: Mapping[str, str]) -> Iterator[Span]:
    """A span of a request, below the one that its `traceparent` names.

    Args:
        name: What is done.
        headers: Of the request, lower case.
    """
    try:
        from opentelemetry import propagate, trace
    except ImportError:
        yield _NoSpan()
        return
    tracer = trace.get_tracer("adaptc")
    with tracer.start_as_current_span(name, context=propagate.extract(headers), kind=trace.SpanKind.SERVER) as found:
        yield found
