"""The OpenAPI document against the gateway it describes: schemathesis makes requests, good and bad, from it."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from served import Served, served, write_gguf

schemathesis = pytest.importorskip("schemathesis", reason="an oracle of its own: pip install schemathesis")
hypothesis = pytest.importorskip("hypothesis")
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


requests = schemathesis.pytest.from_fixture("api")


@pytest.mark.slow
@requests.parametrize()
@hypothesis.settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
def test_no_request_breaks_it(case: Any) -> None:
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str) and len(case.body["model"]) % 2 == 0:
        case.body["model"] = "plain"

    answer = case.call(timeout=60)

    assert answer.status_code < 500, answer.text
    case.validate_response(answer, checks=[schemathesis.checks.response_schema_conformance])
