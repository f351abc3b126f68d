"""The table of routes, and what is read off it."""

import pytest

from kvant.serve.endpoints import PUBLIC, Endpoint, Endpoints
from kvant.serve.openapi import described, document, path_of
from kvant.serve.routes import ROUTES
from kvant.serve.wording import OPENAI, guessed

ENDPOINTS = Endpoints(ROUTES)


def test_no_key_is_needed_for_this_and_for_nothing_else() -> None:
    assert {row.path for row in ROUTES if row.scope == PUBLIC} == {
        "/", "/health", "/ready", "/ui", "/ui/", "/ui/{name}", "/openapi.json", "/api/version"
    }  # fmt: skip


def test_what_changes_models_needs_a_key_for_that() -> None:
    assert {(row.method, row.path.split("/")[2]) for row in ROUTES if row.scope == "manage"} == {
        ("POST", "pull"), ("POST", "push"), ("POST", "create"), ("POST", "copy"), ("DELETE", "delete"),
        ("HEAD", "blobs"), ("POST", "blobs"),
    }  # fmt: skip


@pytest.mark.parametrize("row", [row for row in ROUTES if row.path.startswith(("/api/", "/v1/"))], ids=path_of)
def test_a_path_that_is_nearly_right_is_refused_in_the_same_words(row: Endpoint) -> None:
    assert guessed(row.path) is row.dialect
    assert ENDPOINTS.dialect(f"{row.path}/") is row.dialect


@pytest.mark.parametrize(
    ("method", "path", "found"),
    [
        ("GET", "/v1/models", "/v1/models"), ("HEAD", "/v1/models", "/v1/models"),
        ("GET", "/v1/models/a/b:c", "/v1/models/{name:path}"), ("GET", "/v1/models/", "/v1/models/{name:path}"),
        ("POST", "/v1/models", None), ("GET", "/ui/main.js", "/ui/{name}"), ("GET", "/ui/a/b", None),
        ("HEAD", "/api/blobs/sha256:0", "/api/blobs/{digest:path}"), ("GET", "/api/blobs/sha256:0", None),
        ("GET", "//v1/models", None),
    ],
)  # fmt: skip
def test_the_row_of_a_request(method: str, path: str, found: str | None) -> None:
    row = ENDPOINTS.find(method, path)
    assert (row and row.path) == found
    assert row is None or row.method == method or (row.method, method) == ("GET", "HEAD")


def test_no_two_rows_are_for_the_same_requests() -> None:
    assert len({(row.method, row.path) for row in ROUTES}) == len(ROUTES)


def test_a_scope_that_no_key_can_have_is_refused() -> None:
    with pytest.raises(ValueError, match="'inferense' is none"):
        Endpoint("GET", "/x", ROUTES[0].handler, scope="inferense", dialect=OPENAI, heading="")


def test_the_document_tells_of_all_but_pages() -> None:
    made = document(ROUTES)
    told = {(method.upper(), path) for path, methods in made["paths"].items() for method in methods}
    assert told == {(row.method, path_of(row)) for row in described(ROUTES)}
    assert {row.path for row in ROUTES} - {row.path for row in described(ROUTES)} == {"/", "/ui", "/ui/", "/ui/{name}"}
    assert made["paths"]["/api/version"]["get"]["tags"] == ["Ollama"]
    assert made["paths"]["/api/blobs/{digest}"]["post"]["parameters"][0]["name"] == "digest"
    assert {name for name in made["components"]["schemas"] if "." in name} == set()
