"""A small Hugging Face hub on loopback that speaks its HTTP API: model info, tree, resolve, search. A fake, not a mock.

The real `huggingface_hub` client and kvant talk to it through HF_ENDPOINT. Large files are moved to a second host name
(`localhost` beside `127.0.0.1`), as the hub moves them to its storage. Tests plan faults per path.
"""

import contextlib
import dataclasses
import hashlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

PIECE = 1 << 14


@dataclasses.dataclass
class Repo:
    """A repository: its files by path, and what its card says."""

    files: dict[str, bytes]
    commit: str = "0123456789abcdef0123456789abcdef01234567"
    license: str | None = "apache-2.0"
    gated: str | bool = False
    tags: tuple[str, ...] = ("gguf",)
    base_model: str | None = None
    downloads: int = 100
    gguf: dict[str, Any] | None = None
    branches: tuple[str, ...] = ("main",)


@dataclasses.dataclass
class Fault:
    """What goes wrong with one path, the first `times` times it is asked for."""

    kind: str  # "cut", "hold", "status", "corrupt", "ignore-range", "redirect", "flood", "wrong-range"
    after: int = 0
    times: int = 1
    status: int = 503
    to: str = ""


@dataclasses.dataclass
class Asked:
    """A request that came, as far as tests look at it."""

    method: str
    path: str
    host: str
    range: str
    authorization: str
    query: str


class Hub:
    """The server and what tests see of it."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.plain: dict[str, bytes] = {}
        self.faults: dict[str, Fault] = {}
        self.asked: list[Asked] = []
        self.held = threading.Event()
        self.release = threading.Event()
        self.token: str | None = None
        self.port = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ranges(self, path: str) -> list[str]:
        return [a.range for a in self.asked if a.path.endswith(path) and a.method == "GET"]

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/api/models", self._search),
                Route("/api/models/{org}/{name}/revision/{revision:path}", self._info),
                Route("/api/models/{org}/{name}/tree/{revision}", self._tree),
                Route("/api/models/{org}/{name}", self._info),
                Route("/{org}/{name}/resolve/{revision}/{path:path}", self._resolve, methods=["GET", "HEAD"]),
                Route("/storage/{org}/{name}/{path:path}", self._storage, methods=["GET", "HEAD"]),
                Route("/plain/{path:path}", self._plain, methods=["GET", "HEAD"]),
            ]
        )

    def _note(self, request: Request) -> None:
        headers = request.headers
        self.asked.append(
            Asked(
                request.method,
                request.url.path,
                request.url.hostname or "",
                headers.get("range", ""),
                headers.get("authorization", ""),
                request.url.query,
            )
        )

    def _find(self, request: Request) -> tuple[str, Repo] | Response:
        self._note(request)
        name = f"{request.path_params['org']}/{request.path_params['name']}"
        repo = self.repos.get(name)
        if repo is None:
            return JSONResponse({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        revision = request.path_params.get("revision", "main")
        if revision not in (*repo.branches, repo.commit):
            return JSONResponse({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
        return name, repo

    async def _info(self, request: Request) -> Response:
        found = self._find(request)
        return found if isinstance(found, Response) else JSONResponse(_document(*found, blobs=True))

    async def _tree(self, request: Request) -> Response:
        found = self._find(request)
        if isinstance(found, Response):
            return found
        return JSONResponse([{"type": "file", "path": p, "size": len(d)} for p, d in found[1].files.items()])

    async def _search(self, request: Request) -> Response:
        self._note(request)
        text = request.query_params.get("search", "").lower()
        wanted = set(request.query_params.getlist("filter"))
        found = [
            _document(name, repo, blobs=False)
            for name, repo in self.repos.items()
            if text in name.lower() and wanted <= set(repo.tags)
        ]
        found.sort(key=lambda d: -d["downloads"])
        return JSONResponse(found[: int(request.query_params.get("limit", 1000))])

    async def _resolve(self, request: Request) -> Response:
        found = self._find(request)
        if isinstance(found, Response):
            return found
        name, repo = found
        path = request.path_params["path"]
        data = repo.files.get(path)
        if data is None:
            return JSONResponse({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        if repo.gated and self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return JSONResponse({"error": "Access is restricted"}, 403, {"X-Error-Code": "GatedRepo"})
        headers = {"X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes"}
        if not _is_large(path):
            return await self._send(request, data, {**headers, "ETag": f'"{_git(data)}"'})
        sha256 = hashlib.sha256(data).hexdigest()
        headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{sha256}"'}
        return RedirectResponse(f"http://localhost:{self.port}/storage/{name}/{path}", 302, headers)

    async def _storage(self, request: Request) -> Response:
        self._note(request)
        repo = self.repos[f"{request.path_params['org']}/{request.path_params['name']}"]
        data = repo.files[request.path_params["path"]]
        return await self._send(request, data, {"ETag": f'"{hashlib.md5(data).hexdigest()}"'})

    async def _plain(self, request: Request) -> Response:
        self._note(request)
        data = self.plain.get(request.path_params["path"])
        return (
            Response(status_code=404) if data is None else await self._send(request, data, {"ETag": f'"{_git(data)}"'})
        )

    async def _send(self, request: Request, data: bytes, headers: dict[str, str]) -> Response:
        fault = self.faults.get(request.path_params["path"])
        if fault and fault.times > 0 and request.method == "GET":
            fault.times -= 1
        else:
            fault = None
        kind = fault.kind if fault else ""
        if fault and kind == "status":
            return Response(status_code=fault.status)
        if fault and kind == "redirect":
            return RedirectResponse(fault.to)
        start = 0
        asked = request.headers.get("range", "")
        if asked.startswith("bytes=") and kind != "ignore-range":
            first, _, last = asked[6:].partition("-")
            matches = request.headers.get("if-range", headers["ETag"]) == headers["ETag"]
            if matches and int(first) >= len(data):
                return Response(status_code=416, headers={"Content-Range": f"bytes */{len(data)}"})
            if matches:
                start = int(first)
                end = min(int(last) + 1, len(data)) if last else len(data)
                shown = 0 if kind == "wrong-range" else start
                headers = headers | {"Content-Range": f"bytes {shown}-{end - 1}/{len(data)}"}
                data = data[:end]
        body = data[start:]
        if kind == "corrupt":
            body = body[:-1] + bytes([body[-1] ^ 1])
        status = 206 if "Content-Range" in headers else 200
        if kind == "flood":
            return StreamingResponse(self._pieces(body * 3, None), status, headers)
        headers = {**headers, "Content-Length": str(len(body))}
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers)
        return StreamingResponse(self._pieces(body, fault), status, headers)

    async def _pieces(self, body: bytes, fault: Fault | None) -> AsyncIterator[bytes]:
        import anyio.to_thread

        for start in range(0, len(body), PIECE):
            if fault and start >= fault.after and fault.kind in ("cut", "hold"):
                if fault.kind == "hold":
                    self.held.set()
                    await anyio.to_thread.run_sync(self.release.wait, abandon_on_cancel=True)
                return  # fewer bytes than announced: the server closes the connection
            yield body[start : start + PIECE]


def _is_large(path: str) -> bool:
    return path.endswith((".gguf", ".safetensors"))


def _git(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def _document(name: str, repo: Repo, *, blobs: bool) -> dict[str, Any]:
    siblings: list[dict[str, Any]] = []
    for path, data in repo.files.items():
        entry: dict[str, Any] = {"rfilename": path}
        if blobs:
            entry |= {"size": len(data), "blobId": _git(data)}
            if _is_large(path):
                lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
                entry |= {"blobId": _git(b"pointer" + data[:9]), "lfs": lfs}
        siblings.append(entry)
    tags = [*repo.tags, *([f"license:{repo.license}"] if repo.license else [])]
    tags += [f"base_model:{repo.base_model}"] if repo.base_model else []
    card = {"license": repo.license, "base_model": repo.base_model}
    return {
        "_id": "0", "id": name, "modelId": name, "sha": repo.commit, "siblings": siblings, "tags": tags,
        "cardData": {key: value for key, value in card.items() if value}, "gated": repo.gated, "private": False,
        "downloads": repo.downloads, "likes": 1, **({"gguf": repo.gguf} if repo.gguf else {}),
    }  # fmt: skip


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """Run a hub while the block runs. Its socket listens from the start, so nobody has to wait for it."""
    hub = Hub()
    listener = socket.create_server(("127.0.0.1", 0))
    hub.port = listener.getsockname()[1]
    config = uvicorn.Config(hub.app(), log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.release.set()
        server.should_exit = True
        thread.join(timeout=20)
        listener.close()
