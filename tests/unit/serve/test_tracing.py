from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from kvant.errors import MissingDependencyError
from kvant.serve.app import make_app
from kvant.serve.library import DirectoryLibrary
from kvant.serve.settings import Settings
from kvant.serve.tracing import NoTracing, OpenTelemetry, tracing

sdk = pytest.importorskip("opentelemetry.sdk.trace")


def test_a_request_is_a_span_below_its_callers(tmp_path: Path) -> None:
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = make_app(Settings(max_ram_bytes=1), DirectoryLibrary(tmp_path), tracing=OpenTelemetry(provider))
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with TestClient(app, base_url="http://localhost") as client:
        client.get("/health?q=hidden", headers={"traceparent": f"00-{trace}-{parent}-01", "X-Request-Id": "r1"})
        client.get("/health", headers={"Host": "evil.example", "traceparent": "nonsense"})

    spans: Any = exporter.get_finished_spans()
    fine, refused = spans
    assert fine.name == "GET /health"
    assert (f"{fine.context.trace_id:032x}", f"{fine.parent.span_id:016x}") == (trace, parent)
    assert fine.attributes["http.response.status_code"] == 200
    assert fine.attributes["kvant.request_id"] == "r1"
    assert "hidden" not in str(dict(fine.attributes))
    assert (refused.attributes["http.response.status_code"], refused.parent) == (403, None)
    provider.shutdown()


def test_without_an_endpoint_there_is_none_and_with_one_the_extra_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert isinstance(tracing(), NoTracing)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(MissingDependencyError, match=r"kvant\[otel\]"):
        tracing()
