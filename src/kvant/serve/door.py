"""What every request passes before it reaches an API: who, from where, how large, how deep, how often.

The order: Host (DNS rebinding), Origin (other sites' pages), key, scope, rate, size, depth. Refusals are worded as the
API that was called words its errors.
"""

import asyncio
import ipaddress
import math
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from kvant.errors import AccessError
from kvant.serve import bodies, logs
from kvant.serve.access import PUBLIC, Authenticator, Principal, needed_scope
from kvant.serve.metrics import Metrics
from kvant.serve.settings import Settings
from kvant.serve.tracing import Tracing
from kvant.serve.wording import api_of, error_body

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BLOBS = "/api/blobs/"
BODY_TIMEOUT_S = 60.0
MAX_HEADER_BYTES = 32 << 10
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
ALLOWED_HEADERS = "authorization, content-type, x-api-key, x-request-id, anthropic-version, anthropic-beta, openai-beta"
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Refusal(Exception):  # noqa: N818 - it is an answer, not an error of ours
    """A request that is not let in.

    Attributes:
        status: HTTP status.
        reason: One word for metrics.
        message: For the caller.
        headers: To send with it.
    """

    def __init__(self, status: int, reason: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.message, self.headers = status, reason, message, headers or {}


class Door:
    """ASGI middleware; see the module.

    Args:
        app: What is behind the door.
        settings: Limits, hosts and origins.
        authenticator: Tells who asks.
        metrics: Counts answers and refusals.
        tracing: Makes spans.
    """

    def __init__(
        self, app: App, settings: Settings, authenticator: Authenticator, metrics: Metrics, tracing: Tracing
    ) -> None:
        self._app, self._settings, self._authenticator, self._metrics = app, settings, authenticator, metrics
        self._tracing = tracing
        self._buckets: dict[str, tuple[float, float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it here."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # a websocket that nobody accepts is closed by the server
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        answer = _Answer(send, request_id, self._cors(headers))
        begun = time.perf_counter()
        self._metrics.open_requests.inc()
        try:
            with self._tracing.request(scope["method"], scope["path"], headers) as span:
                span.set_attribute("kvant.request_id", request_id)
                try:
                    await self._answer(scope, headers, receive, answer)
                finally:
                    span.set_attribute("http.response.status_code", answer.status)
        finally:
            self._metrics.open_requests.dec()
            self._metrics.responses.labels(str(answer.status)).inc()
            principal = scope["state"].get("principal")
            logs.write(
                "request", id=request_id, method=scope["method"], path=scope["path"][:200], status=answer.status,
                ms=round(1000 * (time.perf_counter() - begun), 1), caller=principal.name if principal else None,
                bytes=answer.n_bytes,
            )  # fmt: skip

    async def _answer(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, answer: "_Answer") -> None:
        """Check a request and pass it on, or refuse it."""
        try:
            receive = await self._check(scope, headers, receive)
        except Refusal as refusal:
            if refusal.status >= 400:
                self._metrics.refusals.labels(refusal.reason).inc()
            await _refuse(answer, scope["path"], refusal)
            return
        await self._app(scope, receive, answer)

    async def _check(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """Do all checks; return where the body is to be read from.

        Raises:
            Refusal: One of them failed.
        """
        method, path = scope["method"], scope["path"]
        # The server stops at headers that are not whole by then; those that came in one piece are looked at here.
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            raise Refusal(431, "headers", f"The headers are above the limit of {MAX_HEADER_BYTES} bytes.")
        host = self._check_host(headers)
        self._check_origin(headers, host)
        if method == "OPTIONS" and b"origin" in headers:
            raise Refusal(204, "preflight", "", {"Access-Control-Max-Age": "600"})
        principal = self._principal(scope, headers, needed_scope(method, path))
        scope["state"]["principal"] = principal
        self._check_rate(principal)
        if path.startswith(BLOBS):
            return _counted(receive, headers, self._settings.max_blob_bytes)
        return await self._checked_body(receive, headers)

    def _check_host(self, headers: dict[bytes, bytes]) -> str:
        """Refuse names that are not ours: a page could have its own name point to this machine."""
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = _host_name(host)
        settings = self._settings
        allowed = name in LOOPBACK_NAMES or name == settings.host.lower() or name in settings.allow_hosts
        if not allowed and not is_loopback(settings.host):
            allowed = _is_address(name)  # rebinding needs a name
        if not allowed:
            raise Refusal(
                403,
                "host",
                f"Host {name[:100]!r} is not this gateway. Start it with: --allow-host {name[:100] or 'NAME'}",
            )
        return host

    def _check_origin(self, headers: dict[bytes, bytes], host: str) -> None:
        """Refuse requests that pages of other sites make, even those whose answer the page could not read."""
        origin = headers.get(b"origin")
        if origin is None:
            return
        text = origin.decode("latin-1").lower()
        is_own = text in (f"http://{host}", f"https://{host}")
        if not is_own and not self._allows(text):
            raise Refusal(
                403,
                "origin",
                f"Origin {text[:100]!r} may not call. Start the gateway with: --allow-origin {text[:100]}",
            )

    def _allows(self, origin: str) -> bool:
        allowed = self._settings.allow_origins
        return "*" in allowed or origin in {item.lower().rstrip("/") for item in allowed}

    def _cors(self, headers: dict[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        """Headers that let an allowed page read the answer."""
        origin = headers.get(b"origin")
        if origin is None or not self._allows(origin.decode("latin-1").lower()):
            return []
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-allow-methods", b"GET, HEAD, POST, DELETE, OPTIONS"),
            (b"access-control-allow-headers", ALLOWED_HEADERS.encode()),
            (b"access-control-expose-headers", b"x-request-id, x-kvant-ignored, retry-after"),
            (b"vary", b"Origin"),
        ]

    def _principal(self, scope: Scope, headers: dict[bytes, bytes], needed: str) -> Principal:
        client = scope.get("client") or ("", 0)
        principal = self._authenticator.authenticate(headers, str(client[0]))
        if principal is None:
            if needed == PUBLIC:
                return Principal(name="anybody", scopes=frozenset(), kind="nobody")
            raise Refusal(
                401, "key", "No valid API key. Send one as `Authorization: Bearer KEY`; make one with: kvant key add",
                {"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        if not principal.may(needed):
            raise Refusal(403, "scope", f"This key is not for {needed}. Use one that has that scope.")
        return principal

    def _check_rate(self, principal: Principal) -> None:
        """Take one request from the caller's bucket, which fills up within a minute."""
        limit = self._settings.requests_per_minute
        if limit <= 0:
            return
        now = time.monotonic()
        left, since = self._buckets.get(principal.name, (float(limit), now))
        left = min(float(limit), left + (now - since) * limit / 60)
        if left < 1:
            wait_s = math.ceil((1 - left) * 60 / limit)
            raise Refusal(
                429,
                "rate",
                f"More than {limit} requests a minute. Try again in {wait_s} s.",
                {"Retry-After": str(wait_s)},
            )
        self._buckets[principal.name] = (left - 1, now)

    async def _checked_body(self, receive: Receive, headers: dict[bytes, bytes]) -> Receive:
        """Read the whole body, check it, and return a source that gives it once more."""
        limit = self._settings.max_body_bytes
        _check_length(headers, limit)
        if b"content-length" not in headers and b"transfer-encoding" not in headers:
            return receive
        parts, size = [], 0
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise Refusal(400, "disconnect", "The body is not whole.")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise _too_large(limit)
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            raise Refusal(408, "slow", f"The body did not come within {BODY_TIMEOUT_S:.0f} s.") from None
        body = b"".join(parts)
        if (fault := bodies.fault(body, self._settings.max_json_depth)) is not None:
            raise Refusal(400, "depth", fault)
        return _replayed(body, receive)


class _Answer:
    """Sends an answer on, with the headers every answer has, and notes its status and size."""

    def __init__(self, send: Send, request_id: str, extra: list[tuple[bytes, bytes]]) -> None:
        self._send, self._extra = send, extra
        self._extra += [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]
        self.status = 0
        self.n_bytes = 0

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *self._extra]
        else:
            self.n_bytes += len(message.get("body", b""))
        await self._send(message)


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_safe(settings: Settings, *, has_keys: bool) -> None:
    """Refuse to start a gateway that stands open to a network.

    Raises:
        AccessError: It listens beyond loopback, or asks for keys, and there is none; or half of TLS is given.
    """
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise AccessError("TLS: needs a certificate and a key, and one is missing. Give --tls-cert and --tls-key.")
    if (settings.require_keys or not is_loopback(settings.host)) and not has_keys:
        raise AccessError(
            f"host {settings.host}: can be reached by others, and there is no key to ask them for. "
            "Make one with: kvant key add NAME, or listen on 127.0.0.1."
        )


async def _refuse(send: _Answer, path: str, refusal: Refusal) -> None:
    body = b"" if refusal.status == 204 else _error(path, refusal)
    headers = [(name.lower().encode(), value.encode()) for name, value in refusal.headers.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refusal.status in (400, 408, 413, 431):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _error(path: str, refusal: Refusal) -> bytes:
    return msgspec.json.encode(error_body(api_of(path), refusal.status, refusal.message))


def _host_name(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") == 1 else host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _check_length(headers: dict[bytes, bytes], limit: int) -> None:
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or int(length[:20]) > limit:
        raise _too_large(limit)


def _too_large(limit: int) -> Refusal:
    return Refusal(413, "size", f"The body is above the limit of {limit} bytes.")


def _counted(receive: Receive, headers: dict[bytes, bytes], limit: int) -> Receive:
    """Pass a long upload on piece by piece; one that grows above the limit breaks off."""
    _check_length(headers, limit)
    size = 0

    async def counted() -> MutableMapping[str, Any]:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        return {"type": "http.disconnect"} if size > limit else message

    return counted


def _replayed(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replayed() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
