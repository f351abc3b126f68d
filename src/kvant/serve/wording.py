"""Errors as each API words them, for whoever refuses a request: the connection, the door, the routes or the API.

Clients act on these words: their libraries choose an exception by `type` and `code`, and tools look for sentences.

Sources: OpenAI's guide "Error codes"; Anthropic's reference "Errors"; Ollama docs/api/errors.mdx.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from kvant.serve.failure import Failure, overflow

Api = Literal["ollama", "openai", "anthropic"]
_VERSIONED = re.compile(r"/api/v\d")
"""Where other servers have OpenAI's API."""

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Kind:
    """What an HTTP status is called in the body of an error; Ollama's has no name for it.

    Attributes:
        openai: OpenAI's `type`.
        anthropic: Anthropic's `type`.
        code: OpenAI's `code`, where the error has none of its own.
    """

    openai: str
    anthropic: str
    code: str | None = None


KINDS: dict[int, Kind] = {
    401: Kind("invalid_request_error", "authentication_error", "invalid_api_key"),
    403: Kind("invalid_request_error", "permission_error"),
    404: Kind("invalid_request_error", "not_found_error"),
    405: Kind("invalid_request_error", "invalid_request_error", "method_not_supported"),
    413: Kind("invalid_request_error", "request_too_large"),
    429: Kind("requests", "rate_limit_error", "rate_limit_exceeded"),
    503: Kind("server_error", "overloaded_error"),
    504: Kind("server_error", "timeout_error"),
    505: Kind("invalid_request_error", "invalid_request_error"),
}
_CLIENTS, _SERVERS = Kind("invalid_request_error", "invalid_request_error"), Kind("server_error", "api_error")


def kind_of(status: int) -> Kind:
    """Return what a status is called; one without a name of its own is the client's fault below 500, and ours above."""
    return KINDS.get(status, _CLIENTS if status < 500 else _SERVERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one API tells that something went wrong.

    Attributes:
        api: Whose.
        overflow: What it says of a prompt that does not fit, with `{tokens}` and `{context}`: clients look for it.
        option: How a request asks for more context, with `{larger}`; empty where the API has no way.
        frame: What stands before and after an error in a stream that had begun.
        ping: What a stream sends when it has nothing to say; its readers pass over it.
    """

    api: Api
    overflow: str
    option: str = ""
    frame: tuple[bytes, bytes]
    ping: bytes = b": ping\n\n"

    def said(self, failure: Failure) -> str:
        """Return what an error says."""
        if failure.overflow is not None:
            return overflow(failure.overflow, self.overflow, option=self.option)
        return failure.message

    def failed(self, failure: Failure) -> bytes:
        """Return the body of an error answer."""
        return self.error(failure.status, self.said(failure), code=failure.code, param=failure.param)

    def broken(self, failure: Failure) -> bytes:
        """Return the last bytes of a stream that had begun."""
        before, after = self.frame
        return before + self.failed(failure) + after

    def error(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> bytes:
        """Return an error as JSON.

        Args:
            status: HTTP status.
            message: What is wrong and what to do.
            code: Machine-readable reason; None for the usual one of the status.
            param: Field that is wrong.
        """
        kind = kind_of(status)
        body: dict[str, Any] = {"error": message}
        if self.api == "anthropic":
            body = {"type": "error", "error": {"type": kind.anthropic, "message": message}}
        elif self.api == "openai":
            body = {"error": {"message": message, "type": kind.openai, "param": param, "code": code or kind.code}}
        return _encode(body)


# White space before a line is no line: every reader of JSON passes over it, and none sees an empty line.
OLLAMA = Dialect(
    api="ollama", frame=(b"", b"\n"), ping=b" ", option="options.num_ctx {larger} in the request",
    overflow="prompt: {tokens} tokens exceed the context of {context}, the input length exceeds the context length.",
)  # fmt: skip
OPENAI = Dialect(
    api="openai", frame=(b"data: ", b"\n\n"),
    overflow="The model's maximum context length is {context} tokens, and the prompt has {tokens}.",
)  # fmt: skip
ANTHROPIC = Dialect(
    api="anthropic", frame=(b"event: error\ndata: ", b"\n\n"), ping=b'event: ping\ndata: {"type": "ping"}\n\n',
    overflow="prompt is too long: {tokens} tokens > {context} maximum.",
)  # fmt: skip


def guessed(path: str) -> Dialect:
    """Return how errors are worded at a path without a route: its client has a base URL that is nearly right."""
    if path.startswith("/api/") and not _VERSIONED.match(path):
        return OLLAMA
    steps = path.rstrip("/").split("/")
    return ANTHROPIC if "messages" in steps[-2:] or "anthropic" in steps else OPENAI


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
