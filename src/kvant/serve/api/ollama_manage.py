"""Ollama's routes that change which models there are: pull, push, create, copy, delete, blobs.

Paths of this machine are never taken from a request: models are named, files are uploaded by their digest.

Source: Ollama's API documentation, https://github.com/ollama/ollama/blob/main/docs/api.md
"""

import asyncio
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kvant.documents import JSON_ERRORS
from kvant.errors import KvantError, ModelfileError, ModelNameError, ModelNotFoundError, ValueRangeError
from kvant.hub.manifest import Message
from kvant.hub.modelfile import ROLES, Modelfile, check_parameters
from kvant.hub.names import ModelName
from kvant.hub.pull import make_downloads, pull
from kvant.hub.sources.names import HubSource, check_member, is_remote, is_short_name, parse_source
from kvant.hub.store import Store
from kvant.recipes.create import Making, create
from kvant.serve.api.ndjson import Telling, answer, ending_of, refusal
from kvant.serve.api.wire import caller
from kvant.serve.gate import Gate
from kvant.serve.storelibrary import StoreLibrary
from kvant.serve.uploads import Uploads

T = TypeVar("T")

AT_WORK = 2
"""Pulls and creations at a time; others wait."""

MAX_UPLOADED_FILES = 256
_NO_REGISTRY = "pushing needs a registry, and there is none yet. Use kvant export to take models elsewhere."
_NO_STORE = "this gateway serves a directory, which requests do not change. Start kvant serve without --models."


class PullRequest(msgspec.Struct, kw_only=True):
    """What is to be pulled; `name` is the older word for `model`."""

    model: str = ""
    name: str = ""
    insecure: bool = False
    stream: bool = True


class CopyRequest(msgspec.Struct, kw_only=True):
    """Which model gets a second name."""

    source: str
    destination: str


class DeleteRequest(msgspec.Struct, kw_only=True):
    """Which model goes."""

    model: str = ""
    name: str = ""


class CreateRequest(msgspec.Struct, kw_only=True):
    """What a model is made from, and how it is used."""

    model: str = ""
    name: str = ""
    from_: str = msgspec.field(default="", name="from")
    files: dict[str, str] = {}
    adapters: dict[str, str] = {}
    template: str | None = None
    system: str | None = None
    license: str | list[str] = []
    parameters: dict[str, Any] = {}
    messages: list[Message] = []
    quantize: str = ""
    stream: bool = True


@dataclass(slots=True)
class Managing:
    """What the routes here share."""

    uploads: Uploads
    gate: Gate = field(default_factory=lambda: Gate(AT_WORK, what="pulls and creations"))


def routes() -> list[Route]:
    """Return the routes."""
    return [
        Route("/api/pull", _pull, methods=["POST"]),
        Route("/api/push", _push, methods=["POST"]),
        Route("/api/create", _create, methods=["POST"]),
        Route("/api/copy", _copy, methods=["POST"]),
        Route("/api/delete", _delete, methods=["DELETE"]),
        Route("/api/blobs/{digest:path}", _has_blob, methods=["HEAD"]),
        Route("/api/blobs/{digest:path}", _put_blob, methods=["POST"]),
    ]


async def _pull(request: Request) -> Response:
    try:
        store, asked = _store(request), await _body(request, PullRequest)
        text = asked.model or asked.name
        source = parse_source(text) if is_remote(text) or is_short_name(text) else None
        if isinstance(source, HubSource):
            return await answer(
                lambda t: _do_pull(text, store, t),
                _managing(request).gate,
                caller(request),
                stream=asked.stream,
                ending=ending_of(request),
            )
        if source is not None:
            raise ValueRangeError(f"{text[:200]}: requests pull from the hub alone. Name it hf.co/org/name:variant.")
        await asyncio.to_thread(store.find, text, readable=False)
    except (ModelNotFoundError, ModelNameError):
        return _not_found(text, "pull it from the hub as hf.co/org/name:variant")
    except KvantError as error:
        return _refused(error)
    return await answer(
        lambda t: t.status("pulling manifest"),
        _managing(request).gate,
        caller(request),
        stream=asked.stream,
        ending=ending_of(request),
    )


def _do_pull(text: str, store: Store, telling: Telling) -> None:
    telling.status("pulling manifest")

    def note(digests: dict[str, str]) -> None:
        telling.digests = digests

    pull(text, store=store, progress=telling, on_files=note)
    telling.status("writing manifest")


async def _push(request: Request) -> Response:  # noqa: ARG001
    return JSONResponse({"error": _NO_REGISTRY}, status_code=501)


async def _copy(request: Request) -> Response:
    try:
        store, asked = _store(request), await _body(request, CopyRequest)
        await asyncio.to_thread(store.copy, asked.source, asked.destination)
    except ModelNotFoundError:
        return _not_found(asked.source)
    except KvantError as error:
        return _refused(error)
    return Response()


async def _delete(request: Request) -> Response:
    try:
        store, asked = _store(request), await _body(request, DeleteRequest)
        name = asked.model or asked.name
        removed = await asyncio.to_thread(store.remove, name)
    except (ModelNotFoundError, ModelNameError):
        return _not_found(name)
    except KvantError as error:
        return _refused(error)
    await request.app.state.kvant.scheduler.unload(removed.name.tagged)
    return Response()


async def _create(request: Request) -> Response:
    try:
        store, asked = _store(request), await _body(request, CreateRequest)
        name = ModelName.parse(asked.model or asked.name)
        uploads = _managing(request).uploads
        files = {check_member(path, "files"): uploads.path(digest) for path, digest in asked.files.items()}
        modelfile = _modelfile(asked)
        if len(files) > MAX_UPLOADED_FILES or any("/" in path for path in files) or bool(files) == bool(asked.from_):
            raise ModelfileError(f"create: needs either from or files, up to {MAX_UPLOADED_FILES} without directories.")
        for path, upload in files.items():
            if not upload.exists():
                raise ModelfileError(f"files: {path[:100]}: its blob is not here. Send it to /api/blobs first.")
    except KvantError as error:
        return _refused(error)
    making = Making(quantize=asked.quantize or None)

    def work(telling: Telling) -> None:
        if asked.from_:
            base = store.find(asked.from_)  # a name, never a path
            create(name, modelfile, base, making, store=store, progress=telling, on_step=telling.status)
            return
        with tempfile.TemporaryDirectory(prefix="create-", dir=make_downloads()) as directory:
            place = Path(directory) / name.model  # a directory's name becomes the model's
            place.mkdir()
            for path, upload in files.items():
                _place(upload, place / path)
            create(
                name, modelfile, _source(place), making, store=store, origin="upload", progress=telling,
                on_step=telling.status,
            )  # fmt: skip
        for upload in files.values():
            upload.unlink(missing_ok=True)

    return await answer(work, _managing(request).gate, caller(request), stream=asked.stream, ending=ending_of(request))


async def _has_blob(request: Request) -> Response:
    try:
        _store(request)
        found = _managing(request).uploads.path(request.path_params["digest"]).exists()
    except KvantError as error:
        return _refused(error)
    return Response(status_code=200 if found else 404)


async def _put_blob(request: Request) -> Response:
    length = request.headers.get("content-length", "")
    announced = int(length) if length.isascii() and length.isdigit() and len(length) < 20 else None
    try:
        is_new = await _managing(request).uploads.receive(
            request.path_params["digest"], request.stream(), announced, _store(request)
        )
    except KvantError as error:
        return _refused(error)
    return Response(status_code=201 if is_new else 200)


def _store(request: Request) -> Store:
    """Return the store behind the gateway.

    Raises:
        _NoStoreError: It serves a directory.
    """
    library = request.app.state.kvant.library
    if not isinstance(library, StoreLibrary):
        raise _NoStoreError(_NO_STORE)
    return library.store


class _NoStoreError(KvantError):
    """The gateway has no store."""


def _managing(request: Request) -> Managing:
    state = request.app.state
    if not hasattr(state, "managing"):
        state.managing = Managing(Uploads(state.kvant.settings.max_blob_bytes))
    found: Managing = state.managing
    return found


async def _body(request: Request, kind: type[T]) -> T:
    """Read a request; a wrong one is said to be so.

    Raises:
        ValueRangeError: It is no JSON, or not what the route takes.
    """
    try:
        return msgspec.json.decode(await request.body(), type=kind)
    except JSON_ERRORS as error:
        raise ValueRangeError(f"request: {error}. Correct it.") from None


def _refused(error: KvantError) -> Response:
    """Return an error."""
    if isinstance(error, _NoStoreError):
        return JSONResponse({"error": str(error)}, status_code=501)
    return refusal(error)


def _not_found(name: str, remedy: str = "") -> Response:
    text = f"model '{name[:200]}' not found"
    return JSONResponse({"error": f"{text}, {remedy}" if remedy else text}, status_code=404)


def _modelfile(asked: CreateRequest) -> Modelfile:
    if any(message.role not in ROLES for message in asked.messages):
        raise ModelfileError(f"messages: a role is not one of {', '.join(ROLES)}. Correct it.")
    licenses = [asked.license] if isinstance(asked.license, str) else asked.license
    return Modelfile(
        base=asked.from_, parameters=check_parameters(asked.parameters), template=asked.template or None,
        system=asked.system, adapters=tuple(asked.adapters), messages=tuple(asked.messages),
        licenses=tuple(text for text in licenses if text),
    )  # fmt: skip


def _place(upload: Path, path: Path) -> None:
    """Put an uploaded file beside the others of its model, without a copy where the file system can."""
    try:
        path.hardlink_to(upload)
    except OSError:
        shutil.copyfile(upload, path)


def _source(directory: Path) -> Path:
    """Return the GGUF file among uploaded files, or the directory."""
    found = sorted(directory.glob("*.gguf"))
    return found[0] if found else directory
