"""OpenTelemetry, where it is installed and told where to send: one span per request, below the caller's own.

Spans hold methods, paths, statuses and request ids, never what was said.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from kvant._version import __version__
from kvant.errors import MissingDependencyError

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Span(Protocol):
    """A span that is open."""

    def set_attribute(self, key: str, value: Any) -> Any: ...  # noqa: D102


class Tracing(Protocol):
    """Makes spans."""

    def request(
        self, method: str, path: str, headers: Mapping[bytes, bytes]
    ) -> contextlib.AbstractContextManager[Span]:
        """Open the span of a request."""
        ...


class NoTracing:
    """Makes none."""

    @contextlib.contextmanager
    def request(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> Iterator[Span]:  # noqa: ARG002
        """See `Tracing.request`."""
        yield _NO_SPAN


class _NoSpan:
    def set_attribute(self, key: str, value: Any) -> None:
        """Do nothing."""


_NO_SPAN = _NoSpan()


class OpenTelemetry:
    """Makes spans of the OpenTelemetry SDK.

    Args:
        provider: The SDK's tracer provider.
    """

    def __init__(self, provider: Any) -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = provider.get_tracer("kvant", __version__)
        self._propagator, self._kind = TraceContextTextMapPropagator(), SpanKind.SERVER

    @contextlib.contextmanager
    def request(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> Iterator[Span]:
        """See `Tracing.request`."""
        carrier = {
            name: headers[name.encode()].decode("latin-1")
            for name in ("traceparent", "tracestate")
            if name.encode() in headers
        }
        attributes = {"http.request.method": method, "url.path": path[:200]}
        with self._tracer.start_as_current_span(
            f"{method} {path[:200]}", context=self._propagator.extract(carrier), kind=self._kind, attributes=attributes
        ) as span:
            yield span


def tracing() -> Tracing:
    """Return tracing as the environment says (`OTEL_EXPORTER_OTLP_ENDPOINT`, ...), or none.

    Raises:
        MissingDependencyError: An endpoint is given and OpenTelemetry is not installed.
    """
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return NoTracing()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingDependencyError(
            f"OTEL_EXPORTER_OTLP_ENDPOINT: is set, and {error.name} is not installed. Run: pip install 'kvant[otel]'"
        ) from None
    name = os.environ.get("OTEL_SERVICE_NAME", "kvant")
    provider = TracerProvider(resource=Resource.create({"service.name": name, "service.version": __version__}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OpenTelemetry(provider)
