"""Requests read as typed messages; whatever is not declared never gets further than here.

A field that is not known is left out and named in the answer's header `x-kvant-ignored`, as are those of an object that
is a field's value; one that asks for what cannot be given (`refused` of a message's class) is an error.
"""

import asyncio
import functools
import logging
import re
import typing
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kvant.errors import ApiError, KvantError
from kvant.generate.sampling import context_wanted
from kvant.serve.api.answer import failed
from kvant.serve.endpoints import Handler
from kvant.serve.gateway import gateway
from kvant.serve.library import ModelFile
from kvant.serve.share import Share
from kvant.serve.sizing import Size
from kvant.serve.wording import Dialect

T = TypeVar("T")
_PATH = re.compile(r" - at `(?:key in )?\$\.?(?P<path>[^`]*)`$")
_NAME = re.compile(r"[A-Za-z0-9_.\[\]-]{1,100}")
IGNORED = "x-kvant-ignored"
MAX_IGNORED = 32
"""Names that the header holds at most."""

_LOG = logging.getLogger("kvant.serve")


def caller(request: Request) -> str:
    """Return who asks, for fairness: the key's name, or the address."""
    principal = getattr(request.state, "principal", None)
    if principal is not None:
        return str(principal.name)
    return request.client.host if request.client else ""


def share(request: Request) -> Share:
    """Return the way to have done what a request could prolong, in its caller's turn."""
    return Share(gateway(request).bounded, caller(request))


async def served_size(request: Request, file: ModelFile) -> Size:
    """Return the size that a model is loaded with where a request asks for none: as its own settings say.

    Raises:
        KvantError: Its header cannot be read.
    """
    return await gateway(request).scheduler.sizing(file, context_wanted(file.settings.parameters))


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
    body = await request.body()
    made = decode(body, kind)
    note_ignored(request, unknown_fields(body, kind))
    return made


def note_ignored(request: Request, names: Iterable[str]) -> None:
    """Remember what of a request is left out; `worded` tells its sender."""
    noted: list[str] = request.scope.setdefault("state", {}).setdefault("ignored", [])
    new = [name if _NAME.fullmatch(name) else "?" for name in names]
    if new:
        noted += new[: MAX_IGNORED - len(noted)]
        _LOG.debug("%s: ignored %s", request.url.path, ", ".join(new[:MAX_IGNORED]))


def unknown_fields(body: bytes, kind: type) -> list[str]:
    """Return the fields of a JSON object, and of objects that are its fields, that a message's class does not have.

    Args:
        body: JSON that is a message of that class.
        kind: Class of the message.

    Raises:
        ApiError: One of them asks for what cannot be given.
    """
    found = []
    refused: dict[str, str] = getattr(kind, "refused", {})
    known = _fields(kind)
    for name, value in msgspec.json.decode(body, type=dict[str, msgspec.Raw]).items():
        if name not in known:
            if name in refused and bytes(value) not in _ASKS_NOTHING:
                raise ApiError(f"{name}: {refused[name]}", code="unsupported_parameter", param=name)
            found.append(name)
            continue
        inner = known[name]
        if inner is not None and bytes(memoryview(value)[:1]) == b"{":
            found += [f"{name}.{key}" for key in msgspec.json.decode(value, type=dict[str, msgspec.Raw])
                      if key not in _fields(inner)]  # fmt: skip
    return found


_ASKS_NOTHING = frozenset({b"null", b"false", b"[]", b"{}", b'""'})


@functools.cache
def _fields(kind: type) -> dict[str, type | None]:
    """Return the fields of a message's class by their JSON names, with the class of those that are messages."""
    hints = typing.get_type_hints(kind)
    found: dict[str, type | None] = {}
    for field in msgspec.structs.fields(kind):
        options = typing.get_args(hints[field.name]) or (hints[field.name],)
        classes = [item for item in options if isinstance(item, type) and issubclass(item, msgspec.Struct)]
        found[field.encode_name] = classes[0] if classes else None
    return found


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
    match = _PATH.search(text)
    path = match["path"] if match else ""
    missing = re.search(r"missing required field `([^`]*)`", text)
    if missing:
        path = f"{path}.{missing[1]}".lstrip(".")
        return ApiError(f"{path}: is missing. Give it.", code="missing_required_parameter", param=path)
    what = text[: match.start()] if match else text
    return ApiError(f"{path or 'body'}: {what}. Mend the request.", code="invalid_type", param=path or None)


def worded(handler: Handler, dialect: Dialect) -> Handler:
    """Return a handler whose errors are answers in its API's own words, and which tells what it left out."""

    async def call(request: Request) -> Response:
        try:
            answer = await handler(request)
        except KvantError as error:
            answer = failed(error, dialect)
        ignored = getattr(request.state, "ignored", ())
        if ignored:
            answer.headers[IGNORED] = ", ".join(dict.fromkeys(ignored[:MAX_IGNORED]))
        return answer

    call.__name__, call.__doc__ = handler.__name__, handler.__doc__
    return call


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
