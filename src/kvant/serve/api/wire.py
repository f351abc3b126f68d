"""Requests read as typed messages; whatever is not declared never gets further than here."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kvant.errors import KvantError
from kvant.serve.api.answer import Dialect, failed
from kvant.serve.api.failure import ApiError
from kvant.serve.library import ModelFile

if TYPE_CHECKING:
    from kvant.serve.app import Gateway

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]
_PATH = re.compile(r" - at `(?:key in )?\$\.?(?P<path>[^`]*)`$")
_UNKNOWN = re.compile(r"unknown field `(?P<name>[^`]*)`")


def gateway(request: Request) -> "Gateway":
    """Return the gateway that a request came to."""
    found: Gateway = request.app.state.kvant
    return found


async def model_file(request: Request, name: str) -> ModelFile:
    """Return a model of the library; in a thread, for a store may have to put it together first.

    Raises:
        ModelNotFoundError: There is none of that name.
    """
    return await asyncio.to_thread(gateway(request).library.find, name)


async def read(request: Request, kind: type[T]) -> T:
    """Return a request's JSON body as a typed message.

    Raises:
        ApiError: It is no JSON, lacks a field, or has one of a wrong type; the field is named.
    """
    return decode(await request.body(), kind)


def decode(body: bytes, kind: type[T]) -> T:
    """Return JSON as a typed message; see `read`."""
    if not body.strip():
        raise ApiError("body: is empty. Send a JSON object.")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(f"body: is not JSON ({error}). Send a JSON object.") from None
    except RecursionError:
        raise ApiError("body: JSON is nested too deep. Send a flatter one.") from None


def _invalid(text: str) -> ApiError:
    unknown = _UNKNOWN.search(text)
    match = _PATH.search(text)
    path = match["path"] if match else ""
    if unknown:
        path = f"{path}.{unknown['name']}".lstrip(".")
        return ApiError(f"{path}: is not known here. Leave it out.", code="unknown_parameter", param=path)
    missing = re.search(r"missing required field `([^`]*)`", text)
    if missing:
        path = f"{path}.{missing[1]}".lstrip(".")
        return ApiError(f"{path}: is missing. Give it.", code="missing_required_parameter", param=path)
    what = text[: match.start()] if match else text
    return ApiError(f"{path or 'body'}: {what}. Mend the request.", code="invalid_type", param=path or None)


def endpoint(dialect: Dialect) -> Callable[[Handler], Handler]:
    """Make a handler's errors answers in its API's own words."""

    def wrap(handler: Handler) -> Handler:
        async def call(request: Request) -> Response:
            try:
                return await handler(request)
            except KvantError as error:
                return failed(error, dialect)

        call.__name__, call.__doc__ = handler.__name__, handler.__doc__
        return call

    return wrap


def as_json(value: Any) -> Response:
    """Return an answer that is one JSON value."""
    return Response(msgspec.json.encode(value), media_type="application/json")


def check(condition: bool, message: str, param: str | None = None) -> None:
    """Refuse a request unless a condition holds.

    Raises:
        ApiError: It does not.
    """
    if not condition:
        raise ApiError(message, param=param)
