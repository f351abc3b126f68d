"""An HTTP answer that is computed while it is sent, and stops being computed when its reader goes away."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kvant.errors import KvantError, QueueFullError
from kvant.serve.endpoints import JSON, NDJSON, SSE
from kvant.serve.failure import Failure, describe
from kvant.serve.wording import Dialect

BEAT_S = 7.0
"""A stream that is silent for one to two of these sends a sign of life: proxies end silent answers after 30 to 60 s."""

CUT = "gateway: is shutting down before this answer was whole. Ask again later."
CUT_RETRY_S = 5.0
_LOG = logging.getLogger("kvant.serve")
_encode = msgspec.json.Encoder().encode


class Output:
    """Where an answer is written: either one JSON value, or a stream that is never silent for long.

    Args:
        send: The server's side.
        ping: What a silent stream sends.
        headers: What the head tells beside the content's type.
    """

    def __init__(self, send: Send, *, ping: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self._send, self._ping, self._headers = send, ping, headers or {}
        self.started = False
        self._quiet = True
        self._beating: asyncio.Task[None] | None = None

    async def start(self, content_type: str, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Send the head."""
        self.started = True
        fields = {"content-type": content_type, "cache-control": "no-store"} | self._headers | (headers or {})
        if content_type == SSE:
            fields["x-accel-buffering"] = "no"
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()]
        if content_type in (SSE, NDJSON) and self._ping:
            self._beating = asyncio.create_task(self._beat())
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, data: bytes) -> None:
        """Send part of a body: whole events or lines."""
        self._quiet = False
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def ping(self) -> None:
        """Send a sign of life."""
        await self.write(self._ping)

    async def end(self) -> None:
        """Say that the body is whole."""
        await self.still()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def still(self) -> None:
        """Send no more signs of life."""
        if self._beating is not None:
            self._beating.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await self._beating

    async def _beat(self) -> None:
        while True:
            self._quiet = True
            await asyncio.sleep(BEAT_S)
            if self._quiet:
                await self.ping()

    async def whole(self, value: Any, *, status: int = 200) -> None:
        """Send one JSON value."""
        body = value if isinstance(value, bytes) else _encode(value)
        await self.start(JSON, status=status, headers={"content-length": str(len(body))})
        await self.write(body)


class Answer(Response):
    """Runs what makes an answer and cancels it when the client disconnects.

    Args:
        run: Writes the answer.
        dialect: How errors are worded.
        broken: Makes the last bytes of a stream that had begun; by default what the dialect has for it.
    """

    def __init__(
        self,
        run: Callable[[Output], Awaitable[None]],
        dialect: Dialect,
        broken: Callable[[Failure], bytes] | None = None,
    ) -> None:
        super().__init__()
        self._run, self._dialect = run, dialect
        self._broken = broken or dialect.broken

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer over ASGI; where the gateway must end before the answer, it ends as its API says that one failed."""
        told = {name: value for name, value in self.headers.items() if name.startswith("x-")}
        out = Output(send, ping=self._dialect.ping, headers=told)
        work = asyncio.ensure_future(self._answer(out))
        gone = asyncio.ensure_future(_until_gone(receive))
        ending = asyncio.ensure_future(_until_ending(scope))
        try:
            await asyncio.wait({work, gone, ending}, return_when=asyncio.FIRST_COMPLETED)
            is_cut = ending.done() and not work.done() and not gone.done()
        finally:
            work.cancel()  # nothing happens to one that is done
            gone.cancel()
            ending.cancel()
            outcome, *_ = await asyncio.gather(work, gone, ending, out.still(), return_exceptions=True)
        if isinstance(outcome, Exception):
            raise outcome
        if is_cut:
            await self._fail(out, QueueFullError(CUT, retry_after_s=CUT_RETRY_S))
            await out.end()

    async def _answer(self, out: Output) -> None:
        try:
            await self._run(out)
        except Exception as error:
            if not isinstance(error, KvantError):
                _LOG.exception("request failed")
            await self._fail(out, error)
        await out.end()

    async def _fail(self, out: Output, error: Exception) -> None:
        failure = describe(error)
        if out.started:
            await out.write(self._broken(failure))
        else:
            await _send_failure(out, failure, self._dialect)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _until_ending(scope: Scope) -> None:
    """Wait until the gateway must end; for ever where nobody would say so."""
    ending = scope.get("state", {}).get("ending") or asyncio.Event()
    await ending.wait()


async def _send_failure(out: Output, failure: Failure, dialect: Dialect) -> None:
    body = dialect.failed(failure)
    headers = {"content-length": str(len(body))}
    if failure.retry_after_s is not None:
        headers["retry-after"] = str(failure.retry_after_s)
    await out.start(JSON, status=failure.status, headers=headers)
    await out.write(body)


def failed(error: Exception, dialect: Dialect) -> Response:
    """Return the answer that tells an error."""
    failure = describe(error)
    headers = {} if failure.retry_after_s is None else {"retry-after": str(failure.retry_after_s)}
    return Response(dialect.failed(failure), failure.status, headers, JSON)
