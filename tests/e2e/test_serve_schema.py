"""The OpenAPI document against the gateway it describes: schemathesis makes requests, good and bad, from it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

from kvant.serve.api.openapi import OPERATIONS, Operation
from served import Served, served, write_gguf

EXAMPLES = 12


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("models")
    write_gguf(root / "plain.gguf", context=128)
    with served(root, context=128) as running:
        yield running


def test_the_document_covers_the_routes(gateway: Served) -> None:
    paths = httpx2.get(f"{gateway.url}/openapi.json").json()["paths"]
    served_here = {
        route.path.replace("{name:path}", "{name}")  # type: ignore[attr-defined]
        for route in gateway.app.routes
        if route.path.startswith(("/api/", "/v1/"))  # type: ignore[attr-defined]
    }

    manage = {
        path for path in served_here if path.split("/")[2] in ("pull", "push", "create", "copy", "delete", "blobs")
    }
    assert served_here - manage <= set(paths)


@pytest.fixture(scope="module")
def api(gateway: Served) -> Any:
    return schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")


@pytest.mark.parametrize("operation", OPERATIONS, ids=[operation.path for operation in OPERATIONS])
@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_no_request_breaks_it(api: Any, operation: Operation, mode: str) -> None:
    described = api[operation.path][operation.method.upper()]
    cases = described.as_strategy(generation_mode=schemathesis.GenerationMode[mode])

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=cases)
    def check(case: Any) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = "plain"

        answer = case.call(timeout=60)

        assert answer.status_code < 500, answer.text
        case.validate_response(answer, checks=[schemathesis.checks.response_schema_conformance])

    with contextlib.suppress(Unsatisfiable):  # nothing can be wrong with a request without parts
        check()


SAID = [{"role": "user", "content": "Hello"}]
STREAMED = {
    "/v1/chat/completions": {"messages": SAID, "max_tokens": 4},
    "/v1/completions": {"prompt": "Hello", "max_tokens": 4},
    "/v1/messages": {"messages": SAID, "max_tokens": 4},
    "/v1/responses": {"input": "Hello", "max_output_tokens": 16},
}


def test_streamed_events_are_as_described(api: Any) -> None:
    assert set(STREAMED) == {operation.path for operation in OPERATIONS if operation.stream == "text/event-stream"}
    for path, body in STREAMED.items():
        case = api[path]["POST"].Case(body={"model": "plain", "stream": True, **body}, media_type="application/json")
        answer = case.call(timeout=60)
        assert answer.headers["content-type"][0].startswith("text/event-stream"), path
        case.validate_response(answer, checks=[schemathesis.checks.response_schema_conformance])
