"""Ollama's routes that change which models there are: pull, push, create, copy, delete, blobs.

Paths of this machine are never taken from a request: models are named, files are uploaded by their digest.

Source: Ollama's API documentation, https://github.com/ollama/ollama/blob/main/docs/api.md
"""

import asyncio
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from kvant.errors import ApiError, KvantError, ModelfileError, ModelNameError, ModelNotFoundError, ValueRangeError
from kvant.hub.modelfile import ROLES, Modelfile, check_parameters
from kvant.hub.names import ModelName
from kvant.hub.pull import make_downloads, pull
from kvant.hub.sources.names import HubSource, check_member, is_remote, is_short_name, parse_source
from kvant.hub.store import Store
from kvant.recipes.create import Making, create
from kvant.serve.api.ollama.manage_types import CopyRequest, CreateRequest, DeleteRequest, PullRequest
from kvant.serve.api.ollama.progress import Telling, Work, answer, ending_of
from kvant.serve.api.wire import caller, read
from kvant.serve.endpoints import Handler
from kvant.serve.failure import describe
from kvant.serve.gate import Gate
from kvant.serve.gateway import gateway
from kvant.serve.storelibrary import StoreLibrary
from kvant.serve.uploads import Uploads

AT_WORK = 2
"""Pulls and creations at a time; others wait."""

MAX_UPLOADED_FILES = 256
_NO_REGISTRY = "pushing needs a registry, and there is none yet. Use kvant export to take models elsewhere."
_NO_STORE = "this gateway serves a directory, which requests do not change. Start kvant serve without --models."


@dataclass(slots=True)
class Managing:
    """What the routes here share."""

    uploads: Uploads
    gate: Gate = field(default_factory=lambda: Gate(AT_WORK, what="pulls and creations"))


def by_request(handler: Handler) -> Handler:
    """Let what is wrong with the bytes a request brings or names be its sender's fault.

    Elsewhere a model that is damaged is the gateway's.
    """

    async def call(request: Request) -> Response:
        try:
            return await handler(request)
        except KvantError as error:
            if isinstance(error, ValueError) and describe(error).status == 500:
                raise ApiError(str(error)) from None
            raise

    call.__name__, call.__doc__ = handler.__name__, handler.__doc__
    return call


@by_request
async def pull_model(request: Request) -> Response:
    """POST /api/pull: get a model from the hub."""
    store, asked = _store(request), await read(request, PullRequest)
    text = asked.model or asked.name
    try:
        source = parse_source(text) if is_remote(text) or is_short_name(text) else None
        if source is None:
            await asyncio.to_thread(store.find, text, readable=False)
    except (ModelNotFoundError, ModelNameError):
        raise _not_found(text, "pull it from the hub as hf.co/org/name:variant") from None
    if source is None:
        return await _answer(request, lambda t: t.status("pulling manifest"), stream=asked.stream)
    if not isinstance(source, HubSource):
        raise ValueRangeError(f"{text[:200]}: requests pull from the hub alone. Name it hf.co/org/name:variant.")
    return await _answer(request, lambda t: _do_pull(text, store, t), stream=asked.stream)


def _do_pull(text: str, store: Store, telling: Telling) -> None:
    telling.status("pulling manifest")

    def note(digests: dict[str, str]) -> None:
        telling.digests = digests

    pull(text, store=store, progress=telling, on_files=note)
    telling.status("writing manifest")


async def push(request: Request) -> Response:  # noqa: ARG001
    """POST /api/push: there is nowhere to push to."""
    raise ApiError(_NO_REGISTRY, status=501)


@by_request
async def copy(request: Request) -> Response:
    """POST /api/copy: give a model a second name."""
    store, asked = _store(request), await read(request, CopyRequest)
    try:
        await asyncio.to_thread(store.copy, asked.source, asked.destination)
    except ModelNotFoundError:
        raise _not_found(asked.source) from None
    return Response()


@by_request
async def delete(request: Request) -> Response:
    """DELETE /api/delete: remove a model."""
    store, asked = _store(request), await read(request, DeleteRequest)
    name = asked.model or asked.name
    try:
        removed = await asyncio.to_thread(store.remove, name)
    except (ModelNotFoundError, ModelNameError):
        raise _not_found(name) from None
    await gateway(request).scheduler.unload(removed.name.tagged)
    return Response()


@by_request
async def create_model(request: Request) -> Response:
    """POST /api/create: make a model from another one, or from files that were uploaded."""
    store, asked = _store(request), await read(request, CreateRequest)
    name = ModelName.parse(asked.model or asked.name)
    uploads = _managing(request).uploads
    files = {check_member(path, "files"): uploads.path(digest) for path, digest in asked.files.items()}
    modelfile = _modelfile(asked)
    if len(files) > MAX_UPLOADED_FILES or any("/" in path for path in files) or bool(files) == bool(asked.from_):
        raise ModelfileError(f"create: needs either from or files, up to {MAX_UPLOADED_FILES} without directories.")
    for path, upload in files.items():
        if not upload.exists():
            raise ModelfileError(f"files: {path[:100]}: its blob is not here. Send it to /api/blobs first.")
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

    return await _answer(request, work, stream=asked.stream)


@by_request
async def has_blob(request: Request) -> Response:
    """HEAD /api/blobs/DIGEST: whether a file was uploaded."""
    _store(request)
    found = _managing(request).uploads.path(request.path_params["digest"]).exists()
    return Response(status_code=200 if found else 404)


@by_request
async def put_blob(request: Request) -> Response:
    """POST /api/blobs/DIGEST: upload a file."""
    length = request.headers.get("content-length", "")
    announced = int(length) if length.isascii() and length.isdigit() and len(length) < 20 else None
    is_new = await _managing(request).uploads.receive(
        request.path_params["digest"], request.stream(), announced, _store(request)
    )
    return Response(status_code=201 if is_new else 200)


async def _answer(request: Request, work: Work, *, stream: bool) -> Response:
    """Do work in its caller's turn and answer with its progress."""
    gate = _managing(request).gate
    return await answer(work, gate, caller(request), stream=stream, ending=ending_of(request))


def _store(request: Request) -> Store:
    """Return the store behind the gateway.

    Raises:
        ApiError: It serves a directory.
    """
    library = gateway(request).library
    if not isinstance(library, StoreLibrary):
        raise ApiError(_NO_STORE, status=501)
    return library.store


def _managing(request: Request) -> Managing:
    state = request.app.state
    if not hasattr(state, "managing"):
        state.managing = Managing(Uploads(state.kvant.settings.max_blob_bytes))
    found: Managing = state.managing
    return found


def _not_found(name: str, remedy: str = "") -> ApiError:
    text = f"model '{name[:200]}' not found"
    return ApiError(f"{text}, {remedy}" if remedy else text, status=404)


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
