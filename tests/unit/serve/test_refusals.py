"""What the door and the routes refuse, as the APIs' own clients are told it: the exception, its type, its code."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import httpx
import httpx2
import ollama
import openai
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from kvant.errors import ApiError, QueueFullError
from kvant.serve import room
from kvant.serve.app import make_app
from kvant.serve.endpoints import Endpoint, Handler
from kvant.serve.keys import Keys
from kvant.serve.library import DirectoryLibrary
from kvant.serve.settings import Settings
from kvant.serve.wording import ANTHROPIC, OLLAMA, OPENAI

URL = "http://127.0.0.1"
ASK: Any = [{"role": "user", "content": "Hello"}]
PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages", "ollama": "/api/chat"}
DIALECTS = {"openai": OPENAI, "anthropic": ANTHROPIC, "ollama": OLLAMA}


@dataclass(frozen=True)
class Told:
    """An error as a client's user sees it."""

    status: int
    exception: type[Exception]
    message: str
    kind: str | None = None
    code: str | None = None


def http(app: ASGIApp) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app, raise_app_exceptions=False))


async def ask_openai(app: ASGIApp, key: str) -> Told:
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=key, max_retries=0, http_client=http(app)) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(model="m", messages=ASK)
    error = caught.value
    assert isinstance(error.body, dict)
    assert error.body.keys() == {"message", "type", "param", "code"}
    return Told(error.status_code, type(error), error.body["message"], error.type, error.code)


async def ask_anthropic(app: ASGIApp, key: str) -> Told:
    async with anthropic.AsyncAnthropic(base_url=URL, api_key=key, max_retries=0, http_client=http(app)) as client:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await client.messages.create(model="m", messages=ASK, max_tokens=1)
    body: Any = caught.value.body
    assert body["type"] == "error"
    return Told(caught.value.status_code, type(caught.value), body["error"]["message"], body["error"]["type"])


async def ask_ollama(app: ASGIApp, key: str) -> Told:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    client = ollama.AsyncClient(URL, headers={"Authorization": f"Bearer {key}"}, transport=transport)
    with pytest.raises(ollama.ResponseError) as caught:
        await client.chat("m", ASK)
    return Told(caught.value.status_code, ollama.ResponseError, caught.value.error)


ASKED: dict[str, Callable[[ASGIApp, str], Awaitable[Told]]] = {
    "openai": ask_openai, "anthropic": ask_anthropic, "ollama": ask_ollama,
}  # fmt: skip


async def answered(request: Request) -> Response:
    await request.body()
    return JSONResponse({})


def raising(error: Exception) -> Handler:
    async def handler(_: Request) -> Response:
        raise error

    return handler


def rows(handler: Handler = answered, method: str = "POST") -> list[Endpoint]:
    return [
        Endpoint(method, path, handler, scope="inference", dialect=DIALECTS[api], heading="")
        for api, path in PATHS.items()
    ]


def told(
    api: str, directory: Path, routes: list[Endpoint], *, key: str = "k", hangs: bool = False, times: int = 1,
    **settings: Any,
) -> Told:  # fmt: skip
    """Ask through the door with an API's own client; return the error of the last of several requests."""
    given: dict[str, Any] = {"max_ram_bytes": 1, "keys_file": directory / "keys.json"}
    app: ASGIApp = make_app(Settings(**given | settings), DirectoryLibrary(directory), routes=routes)
    asked = hanging(app) if hangs else app

    async def run() -> Told:
        async with http(asked) as client:
            for _ in range(times - 1):
                await client.post(f"{URL}{PATHS[api]}", json={})
        return await ASKED[api](asked, key)

    return asyncio.run(run())


def hanging(app: ASGIApp) -> ASGIApp:
    """Return an application whose clients never send their bodies."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
        async def never() -> Any:
            await asyncio.Event().wait()

        await app(scope, never, send)

    return call


def refused(status: int, api: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Told:
    """Make the door, or what is behind it, refuse a request with a status, each in its own way."""
    keys = Keys(directory / "keys.json")
    match status:
        case 400:
            return told(api, directory, rows(), max_json_depth=1)
        case 401:
            return told(api, directory, rows(), require_keys=True)
        case 403:
            return told(api, directory, rows(), require_keys=True, key=keys.add("gauge", ("metrics",)))
        case 404:
            return told(api, directory, [])
        case 405:
            return told(api, directory, rows(method="GET"))
        case 408:
            monkeypatch.setattr(room, "BODY_S", 0.0)
            return told(api, directory, rows(), hangs=True)
        case 413:
            return told(api, directory, rows(), max_body_bytes=10)
        case 429:
            return told(api, directory, rows(), requests_per_minute=1, times=2)
        case 500:
            (directory / "keys.json").write_text("{broken")
            return told(api, directory, rows(), require_keys=True)
        case 503:
            return told(api, directory, rows(raising(QueueFullError("queue: full.", retry_after_s=7))))
    return told(api, directory, rows(raising(ApiError("refused", status=status))))


INVALID, SERVER = "invalid_request_error", "server_error"
STATUSES = {
    # OpenAI's exception, type, code; Anthropic's exception, type
    400: ("BadRequestError", INVALID, None, "BadRequestError", INVALID),
    401: ("AuthenticationError", INVALID, "invalid_api_key", "AuthenticationError", "authentication_error"),
    403: ("PermissionDeniedError", INVALID, None, "PermissionDeniedError", "permission_error"),
    404: ("NotFoundError", INVALID, None, "NotFoundError", "not_found_error"),
    405: ("APIStatusError", INVALID, "method_not_supported", "APIStatusError", INVALID),
    408: ("APIStatusError", INVALID, None, "RequestTimeoutError", INVALID),
    409: ("ConflictError", INVALID, None, "ConflictError", INVALID),
    411: ("APIStatusError", INVALID, None, "APIStatusError", INVALID),
    413: ("APIStatusError", INVALID, None, "ContentTooLargeError", "request_too_large"),
    415: ("APIStatusError", INVALID, None, "APIStatusError", INVALID),
    422: ("UnprocessableEntityError", INVALID, None, "UnprocessableEntityError", INVALID),
    429: ("RateLimitError", "requests", "rate_limit_exceeded", "RateLimitError", "rate_limit_error"),
    431: ("APIStatusError", INVALID, None, "RequestHeaderFieldsTooLargeError", INVALID),
    500: ("InternalServerError", SERVER, None, "InternalServerError", "api_error"),
    501: ("InternalServerError", SERVER, None, "HTTPNotImplementedError", "api_error"),
    502: ("InternalServerError", SERVER, None, "InternalServerError", "api_error"),
    503: ("InternalServerError", SERVER, "queue_full", "ServiceUnavailableError", "overloaded_error"),
    504: ("InternalServerError", SERVER, None, "GatewayTimeoutError", "timeout_error"),
    507: ("InternalServerError", SERVER, None, "InternalServerError", "api_error"),
}


@pytest.mark.parametrize("status", STATUSES)
def test_a_refusal_is_what_each_apis_client_knows(status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openai_exception, kind, code, anthropic_exception, anthropic_kind = STATUSES[status]
    for api in PATHS:
        (tmp_path / api).mkdir()
    said = {api: refused(status, api, tmp_path / api, monkeypatch) for api in PATHS}
    by_openai, by_anthropic, by_ollama = (said[api] for api in PATHS)
    assert {answer.status for answer in said.values()} == {status}
    assert (by_openai.kind, by_openai.code, by_anthropic.kind) == (kind, code, anthropic_kind)
    assert issubclass(by_openai.exception, getattr(openai, openai_exception))
    # Clients of other versions may know the status by no name of its own.
    assert issubclass(by_anthropic.exception, getattr(anthropic, anthropic_exception, anthropic.APIStatusError))
    for answer in (by_anthropic, by_ollama):  # says the same, but for the path
        assert answer.message[-12:] == by_openai.message[-12:]
