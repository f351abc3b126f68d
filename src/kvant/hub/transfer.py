"""Downloads that resume: one file over HTTP, verified as a whole before it gets its name.

What came so far is kept under a temporary name beside a note of what it is a part of; the next attempt, in this process
or another, asks for the rest (`Range` with `If-Range`, RFC 9110). The hash is of the bytes on the disk, old and new.
"""

import contextlib
import hashlib
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urljoin, urlsplit

import msgspec

from kvant.documents import JSON_ERRORS
from kvant.errors import KvantError, MissingDependencyError, TransferError
from kvant.files import CHUNK_BYTES, commit_file, disk_errors, lock, partial_path
from kvant.progress import SILENT, Progress

if TYPE_CHECKING:
    import httpx2

MAX_BYTES = 1 << 41
"""Of one file, whatever a server says."""

MAX_REDIRECTS = 5
ATTEMPTS = 6
"""Attempts in a row that bring less than PROGRESS_BYTES."""

PROGRESS_BYTES = 1 << 20
CONNECT_S, STALL_S = 10.0, 30.0
"""Seconds to a connection, and without a byte on one."""

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_MOVED = frozenset({301, 302, 303, 307, 308})
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Remote(msgspec.Struct, frozen=True, kw_only=True):
    """A file on a server.

    Attributes:
        url: Its address.
        sha256: Hash of its bytes as hex; None if it is not known.
        git_sha1: Git's name of its content (SHA-1 over `blob`, length and bytes); None if it is not known.
        size_bytes: Its length; None if it is not known.
        headers: Sent to the address's own host and to no other.
    """

    url: str
    sha256: str | None = None
    git_sha1: str | None = None
    size_bytes: int | None = None
    headers: dict[str, str] = {}


class _Note(msgspec.Struct, frozen=True):
    """What a partial file is a part of."""

    url: str
    etag: str
    size_bytes: int | None
    sha256: str | None


class _Again(Exception):  # noqa: N818 - a signal between two functions here, not an error for callers
    """An attempt failed in a way that another may not."""

    def __init__(self, why: str, wait_s: float | None = None) -> None:
        super().__init__(why)
        self.wait_s = wait_s


def http_client() -> "httpx2.Client":
    """Return a client with limits on every wait; proxies and certificates come from the environment.

    Raises:
        MissingDependencyError: The extra `hub` is not installed.
    """
    try:
        import httpx2
    except ImportError:
        raise MissingDependencyError(
            "httpx2: is not installed, and downloads need it. Run: pip install 'kvant[hub]'"
        ) from None
    timeout = httpx2.Timeout(STALL_S, connect=CONNECT_S)
    return httpx2.Client(timeout=timeout, follow_redirects=False, headers={"user-agent": "kvant"})


def check_address(url: str) -> SplitResult:
    """Return the parts of an address that may be asked: `https`, or `http` on this machine.

    Raises:
        TransferError: It is another kind of address.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError as error:
        raise TransferError(f"{url[:200]}: is not an address ({error}). Correct it.") from None
    if not host or parts.scheme not in ("https", "http"):
        raise TransferError(f"{url[:200]}: is not an https address. Give one.")
    if parts.scheme == "http" and host not in _LOOPBACK:
        raise TransferError(f"{url[:200]}: is not encrypted, and {host} is another machine. Use https.")
    if parts.username or parts.password:
        raise TransferError(f"{host}: the address holds a name or password. Leave it out; addresses end up in logs.")
    return parts


def download(
    client: "httpx2.Client",
    remote: Remote,
    path: Path,
    *,
    max_bytes: int = MAX_BYTES,
    progress: Progress = SILENT,
    sleep: Callable[[float], object] = time.sleep,
) -> str:
    """Bring a file to `path`, continuing what an earlier attempt left, and verify it.

    Args:
        client: From `http_client`.
        remote: What to bring.
        path: Where to; its directory exists. A file that is there is verified, and taken if it is the same.
        max_bytes: More than this is refused.
        progress: Told the bytes under the file's name.
        sleep: Waits between attempts.

    Returns:
        SHA-256 of the file as hex.

    Raises:
        TransferError: The server refuses, fails too often, or sends other bytes than it should.
        KvantError: The disk is full, or another process is at the same download.
    """
    check_address(remote.url)
    if path.is_file():
        return _verify(remote, path, path)
    partial = partial_path(path)
    with _alone(partial), disk_errors(path):
        resumed = _size(partial) > 0
        _fetch(client, remote, partial, max_bytes, progress, sleep)
        try:
            sha256 = _verify(remote, partial, path)
        except TransferError:
            _discard(partial)
            if not resumed:
                raise
            progress.say(f"{path.name}: the part kept from before was damaged; downloading it again.")
            _fetch(client, remote, partial, max_bytes, progress, sleep)
            sha256 = _verify(remote, partial, path)
        with partial.open("r+b") as file:
            os.fsync(file.fileno())
        commit_file(partial, path)
        _discard(partial)
    return sha256


def read_range(client: "httpx2.Client", remote: Remote, n_bytes: int) -> bytes:
    """Return the first bytes of a remote file, at most `n_bytes`.

    Raises:
        TransferError: The server refuses or fails.
    """
    import httpx2

    try:
        with _open(client, remote, {"range": f"bytes=0-{n_bytes - 1}"}) as response:
            if response.status_code not in (200, 206):
                raise _refused(remote, response.status_code)
            found = bytearray()
            for chunk in response.iter_raw():
                found += chunk
                if len(found) >= n_bytes:
                    break
            return bytes(found[:n_bytes])
    except httpx2.HTTPError as error:
        raise TransferError(f"{_name(remote)}: {_words(error)}. Try again later.") from error


def _fetch(
    client: "httpx2.Client",
    remote: Remote,
    partial: Path,
    max_bytes: int,
    progress: Progress,
    sleep: Callable[[float], object],
) -> None:
    """Make attempts until all bytes are there."""
    failed = 0
    task = partial.stem
    while True:
        before = _size(partial)
        try:
            _attempt(client, remote, partial, max_bytes, progress, task)
            return
        except _Again as error:
            failed = 0 if _size(partial) - before >= PROGRESS_BYTES else failed + 1
            if failed >= ATTEMPTS:
                raise TransferError(
                    f"{_name(remote)}: {error}, {ATTEMPTS} times in a row. What came is kept; "
                    "the same command continues it."
                ) from error
            wait = FIRST_WAIT_S * 2**failed * random.uniform(0.8, 1.2)  # noqa: S311 - spreads retries, hides nothing
            progress.say(f"{task}: {error}; trying again.")
            sleep(min(error.wait_s if error.wait_s is not None else wait, LONGEST_WAIT_S))


def _attempt(
    client: "httpx2.Client", remote: Remote, partial: Path, max_bytes: int, progress: Progress, task: str
) -> None:
    """Ask for what is missing and write it."""
    import httpx2

    start, headers = _continue_from(remote, partial)
    if start and start == remote.size_bytes:
        return
    try:
        with _open(client, remote, headers) as response:
            start, total = _placed(response, remote, partial, start, max_bytes)
            progress.start(task, total or 0, "B")
            progress.advance(task, start)
            try:
                _write(response, partial, start, total, max_bytes, lambda n: progress.advance(task, n))
            finally:
                progress.finish(task)
    except httpx2.HTTPError as error:
        raise _Again(_words(error)) from error


def _continue_from(remote: Remote, partial: Path) -> tuple[int, dict[str, str]]:
    """Return how many bytes are there to keep, and the headers that ask for the rest."""
    note, size = _read_note(partial), _size(partial)
    is_same = note is not None and note.url == remote.url and note.sha256 == remote.sha256
    if not size or note is None or not is_same or (not note.etag and not remote.sha256):
        _discard(partial)
        return 0, {}
    headers = {"range": f"bytes={size}-"}
    return size, headers | ({"if-range": note.etag} if note.etag else {})


def _placed(
    response: "httpx2.Response", remote: Remote, partial: Path, start: int, max_bytes: int
) -> tuple[int, int | None]:
    """Check an answer's status and lengths; return where its bytes belong and how long the whole is."""
    status = response.status_code
    if status == 416:  # nothing lies beyond what is here: what is here is not a part of it
        _discard(partial)
        raise _Again("the kept part is longer than the file")
    if status in _AGAIN:
        raise _Again(f"the server answered {status}", _retry_after(response))
    if status not in (200, 206):
        raise _refused(remote, status)
    length = response.headers.get("content-length", "")
    n = int(length) if length.isascii() and length.isdigit() and len(length) < 20 else None
    if status == 206:
        if not response.headers.get("content-range", "").strip().startswith(f"bytes {start}-"):
            _discard(partial)
            raise _Again("the server sent another range than asked")
    else:
        start = 0
    total = None if n is None else start + n
    if remote.size_bytes is not None and total is not None and total != remote.size_bytes:
        raise TransferError(f"{_name(remote)}: has {total} bytes, not {remote.size_bytes}. Check the source.")
    _check_room(remote, partial, total if total is not None else remote.size_bytes, start, max_bytes)
    note = _read_note(partial)
    etag = response.headers.get("etag", note.etag if note and status == 206 else "")
    _write_note(partial, _Note(remote.url, "" if etag.startswith("W/") else etag, total, remote.sha256))
    return start, total if total is not None else remote.size_bytes


def _check_room(remote: Remote, partial: Path, total: int | None, start: int, max_bytes: int) -> None:
    if total is None:
        return
    if total > max_bytes:
        raise TransferError(
            f"{_name(remote)}: {total} bytes are above the limit of {max_bytes}. Choose a smaller file."
        )
    free = shutil.disk_usage(partial.parent).free
    if total - start > free:
        raise KvantError(f"{partial.parent}: has {free} bytes free and {total - start} are to come. Free space there.")


def _write(
    response: "httpx2.Response",
    partial: Path,
    start: int,
    total: int | None,
    max_bytes: int,
    on_bytes: Callable[[int], object],
) -> None:
    """Write an answer's bytes from `start` on; never more than announced."""
    written = start
    limit = min(max_bytes, total) if total is not None else max_bytes
    with partial.open("r+b" if partial.exists() else "w+b") as file:
        file.truncate(start)
        file.seek(start)
        for chunk in response.iter_raw():
            written += len(chunk)
            if written > limit:
                _discard(partial)
                raise TransferError(f"{partial.stem}: more than {limit} bytes came. Check the source.")
            file.write(chunk)
            on_bytes(len(chunk))
    if total is not None and written < total:
        raise _Again(f"the connection ended at byte {written} of {total}")


@contextlib.contextmanager
def _open(client: "httpx2.Client", remote: Remote, headers: dict[str, str]) -> Iterator["httpx2.Response"]:
    """Ask an address and follow where it leads, a bounded number of times; credentials go to its own host alone."""
    url, origin = remote.url, check_address(remote.url)
    for _ in range(MAX_REDIRECTS + 1):
        parts = check_address(url)
        is_origin = (parts.scheme, parts.netloc) == (origin.scheme, origin.netloc)
        own = remote.headers if is_origin else {}
        with client.stream("GET", url, headers={"accept-encoding": "identity", **own, **headers}) as response:
            if response.status_code not in _MOVED:
                yield response
                return
            location = response.headers.get("location", "")
        url = urljoin(url, location)
        if not location or (parts.scheme == "https" and urlsplit(url).scheme != "https"):
            raise TransferError(
                f"{_name(remote)}: is moved to {location[:200]!r}, not an https address. Do not use it."
            )
    raise TransferError(f"{_name(remote)}: is moved more than {MAX_REDIRECTS} times. Check the address.")


def _verify(remote: Remote, found: Path, path: Path) -> str:
    """Hash what is there and compare it with what it should be."""
    size = found.stat().st_size
    digest, git = hashlib.sha256(), hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with found.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            if remote.git_sha1:
                git.update(chunk)
    sha256 = digest.hexdigest()
    for what, wanted, is_ in (
        ("length", remote.size_bytes, size),
        ("SHA-256", remote.sha256, sha256),
        ("git hash", remote.git_sha1, git.hexdigest()),
    ):
        if wanted is not None and wanted != is_:
            raise TransferError(
                f"{path.name}: its {what} is {is_}, not {wanted}. It is not used; check the source, then try again."
            )
    return sha256


@contextlib.contextmanager
def _alone(partial: Path) -> Iterator[None]:
    """Hold the lock of a download."""
    with partial.with_name(partial.name + ".lock").open("ab") as file:
        try:
            lock(file, wait=False)
        except BlockingIOError:
            raise KvantError(f"{partial.stem}: another process is downloading it. Wait for it to end.") from None
        yield


def _note_path(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")


def _read_note(partial: Path) -> _Note | None:
    try:
        return msgspec.json.decode(_note_path(partial).read_bytes(), type=_Note)
    except (OSError, *JSON_ERRORS):
        return None


def _write_note(partial: Path, note: _Note) -> None:
    """Put the note in place before the bytes it is about; its own loss costs a download and no more."""
    draft = partial.with_name(partial.name + ".note")
    draft.write_bytes(msgspec.json.encode(note))
    draft.replace(_note_path(partial))


def _discard(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _note_path(partial).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _retry_after(response: "httpx2.Response") -> float | None:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 8 else None


def _refused(remote: Remote, status: int) -> TransferError:
    remedy = {
        401: "Give a token: set HF_TOKEN",
        403: "Ask its owner for access, and set HF_TOKEN",
        404: "Check the name",
        410: "Check the name",
    }.get(status, "Try again later")
    return TransferError(f"{_name(remote)}: the server answered {status}. {remedy}.")


def _name(remote: Remote) -> str:
    """The address without its query, which may hold a signature."""
    parts = urlsplit(remote.url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"[:300]


def _words(error: Exception) -> str:
    kind = type(error).__name__.removesuffix("Error")
    said = str(error).splitlines()[0][:200] if str(error) else ""
    return f"{kind}: {said}" if said else kind
