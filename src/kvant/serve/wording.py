"""Errors as each API words them, for whoever refuses a request: the door, the routes, or the API itself.

Clients act on these words: their libraries choose an exception by `type` and `code`, and tools look for sentences.

Sources: OpenAI's guide "Error codes"; Anthropic's reference "Errors"; Ollama docs/api/errors.mdx.
"""

from collections.abc import Iterable
from typing import Any, Literal

Api = Literal["ollama", "openai", "anthropic"]
_ANTHROPIC_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip
_OPENAI_TYPES = {429: "requests"}
_OPENAI_CODES = {401: "invalid_api_key", 405: "method_not_supported", 429: "rate_limit_exceeded"}


def api_of(path: str) -> Api:
    """Return the API that a path belongs to, whether or not there is a route; OpenAI's where none is told."""
    if path.startswith("/api/") and not path.startswith(
        "/api/v"
    ):  # /api/v0, /api/v1: other servers' names for OpenAI's
        return "ollama"
    steps = path.rstrip("/").split("/")
    return "anthropic" if "messages" in steps[-2:] or "anthropic" in steps else "openai"


def error_body(api: Api, status: int, message: str, *, code: str | None = None, param: str | None = None) -> Any:
    """Return an error as an API words it, to be written as JSON.

    Args:
        api: Whose words.
        status: HTTP status.
        message: What is wrong and what to do.
        code: Machine-readable reason; None for the usual one of the status.
        param: Field that is wrong.
    """
    if api == "ollama":
        return {"error": message}
    if api == "anthropic":
        kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": message}}
    kind = _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    code = code or _OPENAI_CODES.get(status)
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def not_found(method: str, path: str, routes: Iterable[str]) -> str:
    """Return what to say where there is no route; a base URL with a step too many or too few is recognised.

    Args:
        method: HTTP method.
        path: What was asked for.
        routes: The paths that there are.
    """
    shown, asked = path[:200], path.rstrip("/")
    for route in sorted(
        (route for route in routes if route.count("/") > 1 and "{" not in route), key=len, reverse=True
    ):
        if asked == route:
            return f"{method} {shown}: ends in a slash. Ask for {route}."
        if f"/v1{asked}" == route:
            return f"{method} {shown}: the client's base URL lacks /v1. End it in /v1, for {route}."
        if asked.endswith(route):
            extra = asked.removesuffix(route)
            if route.startswith("/v1/") and (extra + "/").endswith("/v1/"):
                return f"{method} {shown}: the client's base URL has /v1 twice. Leave one out, for {route}."
            return f"{method} {shown}: the client's base URL has {extra} too much. Leave it out, for {route}."
    return f"{method} {shown}: is not known here. What there is: /openapi.json."
