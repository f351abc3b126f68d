"""Errors in each API's words, wherever they come from."""

import json

import pytest

from kvant.serve.wording import ANTHROPIC, OLLAMA, OPENAI, Api, guessed, not_found

PATHS = ["/", "/api/chat", "/v1/chat/completions", "/v1/messages", "/v1/models", "/v1/models/{name:path}"]


@pytest.mark.parametrize(
    ("path", "api"),
    [
        ("/api/chat", "ollama"), ("/api/nowhere", "ollama"), ("/api/v0/models", "openai"), ("/api/version", "ollama"),
        ("/health", "openai"),
        ("/v1/chat/completions", "openai"), ("/v1/messages", "anthropic"), ("/v1/messages/count_tokens", "anthropic"),
        ("/v1/v1/messages", "anthropic"), ("/anthropic/v1/messages", "anthropic"),
    ],
)  # fmt: skip
def test_the_path_tells_the_api(path: str, api: Api) -> None:
    assert guessed(path).api == api


@pytest.mark.parametrize(
    ("status", "anthropic", "openai", "code"),
    [
        (400, "invalid_request_error", "invalid_request_error", None),
        (401, "authentication_error", "invalid_request_error", "invalid_api_key"),
        (403, "permission_error", "invalid_request_error", None),
        (404, "not_found_error", "invalid_request_error", None),
        (405, "invalid_request_error", "invalid_request_error", "method_not_supported"),
        (413, "request_too_large", "invalid_request_error", None),
        (429, "rate_limit_error", "requests", "rate_limit_exceeded"),
        (500, "api_error", "server_error", None),
        (503, "overloaded_error", "server_error", None),
        (507, "api_error", "server_error", None),
    ],
)
def test_types_and_codes(status: int, anthropic: str, openai: str, code: str | None) -> None:
    told = json.loads(ANTHROPIC.error(status, "m"))
    assert told == {"type": "error", "error": {"type": anthropic, "message": "m"}}
    told = json.loads(OPENAI.error(status, "m", param="p"))
    assert told == {"error": {"message": "m", "type": openai, "param": "p", "code": code}}
    assert json.loads(OLLAMA.error(status, "m")) == {"error": "m"}


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/v1/v1/chat/completions", "base URL has /v1 twice. Leave one out, for /v1/chat/completions."),
        ("/chat/completions", "base URL lacks /v1. End it in /v1, for /v1/chat/completions."),
        ("/v1/chat/completions/", "ends in a slash. Ask for /v1/chat/completions."),
        ("/openai/v1/models", "base URL has /openai too much. Leave it out, for /v1/models."),
        ("/v1/api/chat", "base URL has /v1 too much. Leave it out, for /api/chat."),
        ("/v1/messages/v1/messages", "base URL has /v1/messages too much."),
        ("/nowhere", "is not known here. What there is: /openapi.json."),
    ],
)
def test_a_wrong_base_url_gets_a_hint(path: str, hint: str) -> None:
    assert hint in not_found("POST", path, PATHS)
