"""The OpenAPI document against the gateway it describes: schemathesis makes requests, good and bad, from it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

from kvant.serve.endpoints import SSE, Endpoint
from kvant.serve.openapi import described, path_of
from kvant.serve.routes import ROUTES
from served import Served, served, write_gguf

EXAMPLES = 12
ASKED = [row for row in described(ROUTES) if row.scope != "manage"]
"""What a gateway over a directory does; `test_manage.py` tries the others."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("models")
    write_gguf(root / "plain.gguf", context=128)
    with served(root, context=128) as running:
        yield running


def test_the_document_covers_the_routes(gateway: Served) -> None:
    paths = httpx2.get(f"{gateway.url}/openapi.json").json()["paths"]

    told = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert told == {(row.method, path_of(row)) for row in ROUTES if not row.path.startswith("/ui") and row.path != "/"}


@pytest.fixture(scope="module")
def api(gateway: Served) -> Any:
    return schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")


@pytest.mark.parametrize("operation", ASKED, ids=[operation.path for operation in ASKED])
@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_no_request_breaks_it(api: Any, operation: Endpoint, mode: str) -> None:
    described = api[path_of(operation)][operation.method]
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
    assert set(STREAMED) == {row.path for row in ROUTES if row.stream == SSE}
    for path, body in STREAMED.items():
        case = api[path]["POST"].Case(body={"model": "plain", "stream": True, **body}, media_type="application/json")
        answer = case.call(timeout=60)
        assert answer.headers["content-type"][0].startswith("text/event-stream"), path
        case.validate_response(answer, checks=[schemathesis.checks.response_schema_conformance])
