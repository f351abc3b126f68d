"""Pictures and sounds that a request names by an address: fetched where the operator allows it, from public addresses.

The name is looked up once, every address it has must be public, and the connection goes to one of those, so that what a
name means cannot change in between. Nothing is followed, and nothing of this gateway (keys, cookies) is sent.
"""

import asyncio
import base64
import contextlib
import http.client
import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from kvant.errors import ApiError
from kvant.generate.media import MAX_BYTES, Media

SECONDS = 10.0
"""From the look-up of the name to the last byte."""

LOOK_UPS = threading.BoundedSemaphore(16)
"""Names that are looked up at a time: one that no server answers for keeps its thread longer than its request."""

MAX_ADDRESS_CHARACTERS = 2048
CHUNK_BYTES = 1 << 16
TUNNELS = tuple(
    ipaddress.IPv6Network(net) for net in ("::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
)
"""IPv6 addresses that stand for others of IPv4: mapped, translated, 6to4, Teredo."""


async def fetched(part: Media, *, allowed: bool) -> None:
    """Let a part be what its address names.

    Raises:
        ApiError: Addresses are not allowed, this one is not public or does not answer with a picture or sound in time.
    """
    assert part.url is not None
    if not allowed:
        raise _refused(
            part, "addresses are not fetched here. Send the bytes as a data URL, or start the gateway with "
            "--allow-media-urls"
        )  # fmt: skip
    try:
        data = await asyncio.to_thread(_get, part, part.url, time.monotonic() + SECONDS)
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise _refused(part, f"cannot be fetched ({type(error).__name__}). Send the bytes as a data URL") from None
    part.take(data, base64.b64encode(data).decode())


def _get(part: Media, url: str, until: float) -> bytes:
    try:
        address = urlsplit(url)
        port = address.port or (443 if address.scheme.lower() == "https" else 80)
    except ValueError:
        raise _refused(part, "is no address. Send a data URL") from None
    host = address.hostname
    if not host or address.username is not None or len(url) > MAX_ADDRESS_CHARACTERS or not url.isascii() or " " in url:
        raise _refused(part, "is no plain address of a file. Send a data URL")
    found = _looked_up(host, port, until)
    if not found or not all(_is_public(ip) for ip in found):
        raise _refused(part, "leads to an address that is not public. Send the bytes as a data URL")
    with _connected(address.scheme.lower(), host, found[0], port, until) as sock:
        target = (address.path or "/") + (f"?{address.query}" if address.query else "")
        name = f"[{host}]" if ":" in host else host
        shown = name if address.port is None else f"{name}:{port}"
        sock.sendall(f"GET {target} HTTP/1.0\r\nHost: {shown}\r\nAccept: image/*, audio/*\r\n\r\n".encode("ascii"))
        with contextlib.closing(http.client.HTTPResponse(sock, method="GET")) as answer, _ended(sock, until):
            answer.begin()
            if answer.status != 200:
                raise _refused(part, f"answers with status {answer.status}, and nothing is followed. Send a data URL")
            return _body(part, answer, until)


def _looked_up(host: str, port: int, until: float) -> list[str]:
    """Return the addresses of a name; the system's look-up has no limit of its own, and is left to itself after ours.

    Raises:
        OSError: There is no such name, or no answer in time.
    """
    places = LOOK_UPS
    if not places.acquire(timeout=_left(until)):
        raise TimeoutError
    found: queue.SimpleQueue[list[str] | OSError | UnicodeError] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            found.put([str(item[4][0]) for item in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)])
        except (OSError, UnicodeError) as error:
            found.put(error)
        finally:
            places.release()

    threading.Thread(target=look_up, name="look up", daemon=True).start()
    try:
        answer = found.get(timeout=_left(until))
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(answer, list):
        return answer
    raise answer


def _connected(scheme: str, host: str, ip: str, port: int, until: float) -> socket.socket:
    sock = socket.create_connection((ip, port), timeout=_left(until))
    if scheme == "https":
        return ssl.create_default_context().wrap_socket(sock, server_hostname=host)
    return sock


@contextlib.contextmanager
def _ended(sock: socket.socket, until: float) -> Iterator[None]:
    """End a connection when its time is over, however slowly it goes on."""

    def end() -> None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(_left(until), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _body(part: Media, answer: http.client.HTTPResponse, until: float) -> bytes:
    most = MAX_BYTES[part.kind]
    parts: list[bytes] = []
    size = 0
    while True:
        chunk = answer.read1(CHUNK_BYTES)
        _left(until)
        if not chunk:
            return b"".join(parts)
        size += len(chunk)
        if size > most:
            raise _refused(part, f"gives more than {most} bytes. Send a smaller file")
        parts.append(chunk)


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _is_public(ip: str) -> bool:
    """Whether an address is of the internet: none of a private network, a cloud's own or this machine."""
    address = ipaddress.ip_address(ip.partition("%")[0])
    return address.is_global and not address.is_multicast and not any(address in network for network in TUNNELS)


def _refused(part: Media, what: str) -> ApiError:
    return ApiError(f"{part.where}: {what}.", code="media_url_refused", param=part.where.partition("[")[0])
