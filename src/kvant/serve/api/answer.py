"""An HTTP answer that is computed while it is sent, and stops being computed when its reader goes away."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kvant.errors import KvantError
from kvant.serve.api.failure import Failure, describe

NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
_LOG = logging.getLogger("kvant.serve")
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one API words errors.

    Attributes:
        failed: Makes the body of an error answer.
        broken: Makes the last bytes of a stream that had begun.
    """

    failed: Callable[[Failure], bytes]
    broken: Callable[[Failure], bytes]


class Output:
    """Where an answer is written: either one JSON value, or a stream.

    Args:
        send: The server's side.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def start(self, content_type: str, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Send the head."""
        self.started = True
        fields = {"content-type": content_type, "cache-control": "no-store"} | (headers or {})
        if content_type == SSE:
            fields["x-accel-buffering"] = "no"
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, data: bytes) -> None:
        """Send part of a body."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """Say that the body is whole."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def whole(self, value: Any, *, status: int = 200) -> None:
        """Send one JSON value."""
        body = value if isinstance(value, bytes) else _encode(value)
        await self.start("application/json", status=status, headers={"content-length": str(len(body))})
        await self.write(body)


class Answer(Response):
    """Runs what makes an answer and cancels it when the client disconnects.

    Args:
        run: Writes the answer.
        dialect: How errors are worded.
    """

    def __init__(self, run: Callable[[Output], Awaitable[None]], dialect: Dialect) -> None:
        super().__init__()
        self._run = run
        self._dialect = dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Answer over ASGI."""
        work = asyncio.ensure_future(self._answer(Output(send)))
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()  # nothing happens to one that is done
            gone.cancel()
            outcome, _ = await asyncio.gather(work, gone, return_exceptions=True)
        if isinstance(outcome, Exception):
            raise outcome

    async def _answer(self, out: Output) -> None:
        try:
            await self._run(out)
        except Exception as error:
            if not isinstance(error, KvantError):
                _LOG.exception("request failed")
            failure = describe(error)
            if out.started:
                await out.write(self._dialect.broken(failure))
            else:
                await _send_failure(out, failure, self._dialect)
        await out.end()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_failure(out: Output, failure: Failure, dialect: Dialect) -> None:
    body = dialect.failed(failure)
    headers = {"content-length": str(len(body))}
    if failure.retry_after_s is not None:
        headers["retry-after"] = str(failure.retry_after_s)
    await out.start("application/json", status=failure.status, headers=headers)
    await out.write(body)


def failed(error: Exception, dialect: Dialect) -> Response:
    """Return the answer that tells an error."""
    failure = describe(error)
    headers = {} if failure.retry_after_s is None else {"retry-after": str(failure.retry_after_s)}
    return Response(dialect.failed(failure), failure.status, headers, "application/json")
