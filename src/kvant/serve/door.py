"""What every request passes before it reaches an API: who, from where, how large, how deep, how often.

The order: path prefix and trusted proxies, Host (DNS rebinding), Origin (other sites' pages), key, scope, rate, size,
depth. Refusals are worded as the API that was called words its errors. What is bounded before there is a request, is
bounded in `connections` and `strict`.
"""

import asyncio
import math
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from kvant.errors import AccessError, KvantError
from kvant.serve import bodies, logs
from kvant.serve.access import NOBODY, Authenticator, Principal, given_key, needed_scope
from kvant.serve.addresses import Proxies, Seen, client_of, is_loopback
from kvant.serve.buckets import Buckets
from kvant.serve.connections import FIXED_HEADERS
from kvant.serve.endpoints import PUBLIC, Endpoints
from kvant.serve.metrics import Metrics
from kvant.serve.origins import Origins, host_name
from kvant.serve.refusal import Refusal, later
from kvant.serve.room import Body, Room, announced, counted, replayed
from kvant.serve.settings import Settings
from kvant.serve.tracing import Tracing
from kvant.serve.wording import Dialect

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

WRONG_KEYS, WRONG_KEYS_PER_MINUTE = 20, 10
"""Wrong keys that a client may send at once and in the long run. A right key is let in all the same: 256 random bits
are not found by guessing, and who shares an address with a guesser is not to be kept out by him."""

SHORT_BODY_BYTES = 1 << 18
"""A longer body is looked at in a thread: its shape may take a second, and others are answered meanwhile."""

_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_HEADER_NAMES = re.compile(r"[A-Za-z0-9, -]{1,1000}")
_FIXED = tuple((name.encode(), value.encode()) for name, value in FIXED_HEADERS)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Door:
    """ASGI middleware; see the module.

    Args:
        app: What is behind the door.
        settings: Limits, hosts and origins.
        authenticator: Tells who asks.
        endpoints: What can be asked: by whom, and in whose words refusals are told.
        metrics: Counts answers and refusals.
        tracing: Makes spans.
    """

    def __init__(
        self, app: App, settings: Settings, authenticator: Authenticator, endpoints: Endpoints, metrics: Metrics,
        tracing: Tracing,
    ) -> None:  # fmt: skip
        self._app, self._settings, self._authenticator, self._metrics = app, settings, authenticator, metrics
        self._endpoints, self._tracing = endpoints, tracing
        self._origins = Origins(settings.host, settings.allow_hosts, settings.allow_origins)
        self._proxies = Proxies(settings.trust_proxies)
        self._room = Room(settings.max_body_bytes)
        limit = settings.requests_per_minute
        self._rates = Buckets(limit, limit / 60) if limit > 0 else None
        self._wrong_keys = Buckets(WRONG_KEYS, WRONG_KEYS_PER_MINUTE / 60)

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
        scope["path"] = self._below_prefix(scope["path"])
        seen = self._proxies.seen(str((scope.get("client") or ("",))[0]), scope.get("scheme", "http"), scope["headers"])
        scope["scheme"], scope["client"] = seen.scheme, (seen.address, 0)
        answer = _Answer(send, request_id, self._cors(headers))
        begun = time.perf_counter()
        self._metrics.open_requests.inc()
        try:
            with (
                self._tracing.request(scope["method"], scope["path"], headers) as span,
                Body(self._room, receive) as body,
            ):
                span.set_attribute("kvant.request_id", request_id)
                try:
                    await self._answer(scope, headers, seen, body, answer)
                finally:
                    span.set_attribute("http.response.status_code", answer.status)
        finally:
            self._metrics.open_requests.dec()
            self._metrics.responses.labels(str(answer.status)).inc()
            principal = scope["state"].get("principal")
            logs.write(
                "request", id=request_id, method=scope["method"], path=scope["path"][:200], status=answer.status,
                ms=round(1000 * (time.perf_counter() - begun), 1), caller=principal.name if principal else None,
                bytes=answer.n_bytes, client=seen.address if answer.status >= 400 else None,
            )  # fmt: skip

    def _below_prefix(self, path: str) -> str:
        """Return a path without the prefix that a proxy left on it; most take it off themselves."""
        prefix = self._settings.root_path
        if prefix and (path == prefix or path.startswith(prefix + "/")):
            return path[len(prefix) :] or "/"
        return path

    async def _answer(
        self, scope: Scope, headers: dict[bytes, bytes], seen: Seen, body: Body, answer: "_Answer"
    ) -> None:
        """Check a request and pass it on, or refuse it."""
        try:
            receive = await self._check(scope, headers, seen, body)
        except Refusal as refusal:
            if refusal.status >= 400:
                self._metrics.refusals.labels(refusal.reason).inc()
            await _refuse(answer, self._endpoints.dialect(scope["path"]), refusal)
            return
        await self._app(scope, receive, answer)

    async def _check(self, scope: Scope, headers: dict[bytes, bytes], seen: Seen, body: Body) -> Receive:
        """Do all checks; return where the body is to be read from.

        Raises:
            Refusal: One of them failed.
        """
        method, path = scope["method"], scope["path"]
        self._check_host(seen.host)
        self._check_origin(headers, seen.host)
        if method == "OPTIONS" and b"origin" in headers:
            raise Refusal(204, "preflight", "", _preflight(headers))
        client = client_of(seen.address)
        principal = self._principal(headers, seen.address, needed_scope(self._endpoints, method, path))
        scope["state"]["principal"] = principal
        caller = f"address {client}" if principal.kind == NOBODY else principal.name
        here = self._endpoints.at(path)
        if not any(row.is_probe for row in here):
            self._check_rate(caller)
        if any(row.is_upload for row in here):
            limit = self._settings.max_blob_bytes
            announced(headers, limit)
            return counted(body.receive, limit)
        return await self._checked_body(body, headers, caller)

    def _check_host(self, host: str) -> None:
        """Refuse names that are not ours: a page could have its own name point to this machine."""
        if not self._origins.is_ours(host):
            name = host_name(host)[:100]
            raise Refusal(
                403, "host", f"Host {name!r} is not this gateway. Start it with: --allow-host {name or 'NAME'}"
            )

    def _check_origin(self, headers: dict[bytes, bytes], host: str) -> None:
        """Refuse requests that pages of other sites make, even those whose answer the page could not read."""
        origin = headers.get(b"origin")
        if origin is None:
            return
        text = origin.decode("latin-1").lower()
        if not self._origins.may_call(text, host):
            raise Refusal(
                403,
                "origin",
                f"Origin {text[:100]!r} may not call. Start the gateway with: --allow-origin {text[:100]}",
            )

    def _cors(self, headers: dict[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        """Headers that let an allowed page read the answer."""
        origin = headers.get(b"origin")
        if origin is None or not self._origins.is_allowed(origin.decode("latin-1").lower()):
            return []
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-allow-methods", b"GET, HEAD, POST, DELETE, OPTIONS"),
            (b"access-control-expose-headers", b"x-request-id, x-kvant-ignored, retry-after"),
            (b"vary", b"Origin"),
        ]

    def _principal(self, headers: dict[bytes, bytes], address: str, needed: str) -> Principal:
        try:
            principal = self._authenticator.authenticate(headers, address)
        except (KvantError, OSError) as error:  # somebody damaged the file while we serve
            logs.log.error("keys cannot be read", extra={"fields": {"error": str(error)}})
            raise Refusal(500, "keys", "The list of keys cannot be read; the gateway's log says why.") from None
        if principal is None:
            if needed == PUBLIC:
                return Principal(name="anybody", scopes=frozenset(), kind=NOBODY)
            self._count_wrong_key(headers, address)
            raise Refusal(
                401, "key", "No valid API key. Send one as `Authorization: Bearer KEY`; make one with: kvant key add",
                {"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        if not principal.may(needed):
            raise Refusal(403, "scope", f"This key is not for {needed}. Use one that has that scope.")
        return principal

    def _count_wrong_key(self, headers: dict[bytes, bytes], address: str) -> None:
        if given_key(headers):
            wait_s = self._wrong_keys.take(client_of(address))
            if wait_s:
                raise later(429, "wrong_keys", "Too many wrong API keys came from this address.", math.ceil(wait_s))

    def _check_rate(self, caller: str) -> None:
        """Take one request from the caller's bucket, which fills up within a minute; without a key, the address's."""
        wait_s = self._rates.take(caller) if self._rates is not None else 0.0
        if wait_s:
            limit = self._settings.requests_per_minute
            raise later(429, "rate", f"More than {limit} requests a minute.", math.ceil(wait_s))

    async def _checked_body(self, body: Body, headers: dict[bytes, bytes], caller: str) -> Receive:
        """Read the whole body, check it, and return a source that gives it once more."""
        length = announced(headers, self._settings.max_body_bytes)
        if length is None and b"transfer-encoding" not in headers:
            return body.receive
        text = await body.read(caller, length)
        max_depth = self._settings.max_json_depth
        is_short = len(text) <= SHORT_BODY_BYTES
        fault = bodies.fault(text, max_depth) if is_short else await asyncio.to_thread(bodies.fault, text, max_depth)
        if fault is not None:
            raise Refusal(400, "depth", fault)
        return replayed(text, body.receive)


class _Answer:
    """Sends an answer on, with the headers every answer has, and notes its status and size."""

    def __init__(self, send: Send, request_id: str, extra: list[tuple[bytes, bytes]]) -> None:
        self._send, self._extra = send, [*extra, (b"x-request-id", request_id.encode())]
        self.status = 0
        self.n_bytes = 0

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = list(message.get("headers", ()))
            names = {name for name, _ in own}
            message["headers"] = [*own, *self._extra, *(field for field in _FIXED if field[0] not in names)]
        else:
            self.n_bytes += len(message.get("body", b""))
        await self._send(message)


def needs_keys(settings: Settings) -> bool:
    """Whether a request must prove who sends it: where others than this machine's users can send one."""
    return settings.require_keys or not is_loopback(settings.host) or bool(settings.trust_proxies)


def check_safe(settings: Settings, *, has_keys: bool) -> None:
    """Refuse to start a gateway that stands open to a network.

    Raises:
        AccessError: It listens beyond loopback, is behind a proxy or asks for keys, and there is none; half of TLS is
            given; a proxy's address or the path prefix is none.
    """
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise AccessError("TLS: needs a certificate and a key, and one is missing. Give --tls-cert and --tls-key.")
    Proxies(settings.trust_proxies)
    if settings.root_path and not _PREFIX.fullmatch(settings.root_path):
        raise AccessError(f"--root-path {settings.root_path[:80]!r}: is no path prefix. Write it as /kvant.")
    if needs_keys(settings) and not has_keys:
        if not needs_keys(msgspec.structs.replace(settings, require_keys=False)):
            raise AccessError(
                "--require-keys: there is no key to ask for. Make one with: kvant key add NAME, or leave it out."
            )
        way = f" through the proxy {settings.trust_proxies[0]}" if settings.trust_proxies else ""
        raise AccessError(
            f"host {settings.host}: can be reached by others{way}, and there is no key to ask them for. "
            "Make one with: kvant key add NAME, or listen on 127.0.0.1"
            f"{' without --trust-proxy' if settings.trust_proxies else ''}."
        )


async def _refuse(send: _Answer, dialect: Dialect, refusal: Refusal) -> None:
    body = b"" if refusal.status == 204 else dialect.error(refusal.status, refusal.message)
    headers = [(name.lower().encode(), value.encode()) for name, value in refusal.headers.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refusal.status in (400, 408, 413, 431):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _preflight(headers: dict[bytes, bytes]) -> dict[str, str]:
    """What an allowed page is told before it asks: it may send what it likes, from wherever it was loaded."""
    wanted = headers.get(b"access-control-request-headers", b"").decode("latin-1")
    fields = {"Access-Control-Max-Age": "600"}
    if _HEADER_NAMES.fullmatch(wanted):
        fields["Access-Control-Allow-Headers"] = wanted
    if headers.get(b"access-control-request-private-network") == b"true":
        fields["Access-Control-Allow-Private-Network"] = "true"
    return fields
