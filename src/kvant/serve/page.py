"""The web page of a gateway, at /ui/: files of this package, with headers that leave nothing else to run or load.

Model output is hostile: the page makes it text nodes, and the policy here is what holds if that ever fails. No inline
script or style runs, nothing comes from or goes to another place, and strings cannot become HTML at all.
"""

import functools
import hashlib
from dataclasses import dataclass
from importlib import resources

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-cache",  # kept, and asked for again: a new version of kvant shows at once
}
TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
INDEX = "index.html"


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file of the page.

    Attributes:
        body: Its bytes.
        media_type: What it is.
        etag: Changes when its bytes do.
    """

    body: bytes
    media_type: str
    etag: str


@functools.cache
def files() -> dict[str, PageFile]:
    """Return the page's files by name; only these names are served, so no path is ever made from a request."""
    found = {}
    for file in resources.files("kvant.serve").joinpath("page").iterdir():
        media_type = TYPES.get(file.name.rpartition(".")[2])
        if media_type is not None:
            body = file.read_bytes()
            found[file.name] = PageFile(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
    return found


def wants_page(request: Request) -> bool:
    """Whether a browser asks, who shows pages, and not a program."""
    return "text/html" in request.headers.get("accept", "")


def to_page(request: Request) -> Response:
    """Return an answer that sends a browser to the page, below the prefix that a proxy shows us under."""
    prefix = request.app.state.kvant.settings.root_path
    return RedirectResponse(f"{prefix}/ui/", headers={"vary": "accept", "cache-control": "no-store"})


async def page(request: Request) -> Response:
    """GET /ui/NAME.

    Raises:
        HTTPException: There is no such file.
    """
    name = request.path_params.get("name") or INDEX
    file = files().get(name)
    if file is None:
        raise HTTPException(404, f"page: has no file {name[:100]!r}. See /ui/.")
    headers = HEADERS | {"etag": file.etag}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.body, headers=headers, media_type=file.media_type)


async def redirect(request: Request) -> Response:
    """GET /ui."""
    return to_page(request)
