"""HTTP/1.1 to an engine on this machine: the little of it that a known server needs, cheap enough to run per token.

A connection serves one request. The engine reads what clients and files bring, so it is not believed: lines, events and
bodies are bounded. Closing a stream closes its connection, and the engine stops.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Self

import msgspec

BODY_BYTES = 1 << 28
EVENT_BYTES = 8 << 20
"""Longest event of a stream: the last one of a text tells its prompt again, which may have a million tokens."""

REPLY_BYTES = {"/health": 1 << 16, "/metrics": 1 << 20, "/slots": 64 << 20, "/props": 8 << 20}
"""Longest answer of a route whose length does not follow from what is asked; `BODY_BYTES` for others."""

LINE_BYTES = 1 << 16
READ_BYTES = 1 << 16
_HEADER_LINES = 64


class LoopbackError(OSError):
    """The engine's server went away or does not speak HTTP."""


class Exchange:
    """One request and its answer; use it as an asynchronous context manager.

    Args:
        address: Path of a Unix socket, or port on 127.0.0.1.
        key: API key.
        method: `GET` or `POST`.
        path: Path on the server.
        body: JSON to send.
    """

    def __init__(self, address: str | int, key: str, method: str, path: str, body: bytes | None = None) -> None:
        if any(c in path for c in " \r\n"):
            raise ValueError(f"path: {path!r} holds white space. Escape it.")
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
            "Connection: close\r\nAccept: */*\r\n"
        )
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self._request = head.encode("latin-1") + b"\r\n" + (body or b"")
        self._address = address
        self._most = REPLY_BYTES.get(path, BODY_BYTES)
        self.status = 0
        self.headers: dict[bytes, bytes] = {}

    async def __aenter__(self) -> Self:
        try:
            self._reader, self._writer = await _connect(self._address)
        except OSError as error:
            raise LoopbackError(f"connection refused: {error}") from None
        try:
            self._writer.write(self._request)
            await self._read_head()
        except BaseException:
            self._writer.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def _read_head(self) -> None:
        line = await self._line()
        parts = line.split(b" ", 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
            raise LoopbackError(f"answered {line[:80]!r}")
        self.status = int(parts[1])
        for _ in range(_HEADER_LINES):
            line = await self._line()
            if not line:
                return
            name, _, value = line.partition(b":")
            self.headers[name.strip().lower()] = value.strip()
        raise LoopbackError("sent too many headers")

    async def _line(self) -> bytes:
        try:
            line = await self._reader.readuntil(b"\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError) as error:
            raise LoopbackError(f"closed the connection: {error}") from None
        if len(line) > LINE_BYTES:
            raise LoopbackError("sent a line that is too long")
        return line[:-2]

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body's bytes as they come, in parts of up to `READ_BYTES`.

        Raises:
            LoopbackError: The server went away before its end.
        """
        try:
            if self.headers.get(b"transfer-encoding", b"").lower() == b"chunked":
                while size := int((await self._line()).split(b";")[0], 16):
                    if size <= READ_BYTES:  # a token's
                        yield (await self._reader.readexactly(size + 2))[:-2]
                        continue
                    async for part in self._parts(size):
                        yield part
                    await self._reader.readexactly(2)
            elif b"content-length" in self.headers:
                async for part in self._parts(int(self.headers[b"content-length"])):
                    yield part
            else:
                while data := await self._reader.read(READ_BYTES):
                    yield data
        except (asyncio.IncompleteReadError, OSError, ValueError) as error:
            if isinstance(error, LoopbackError):
                raise
            raise LoopbackError(f"closed the connection in the middle of an answer: {error}") from None

    async def _parts(self, size: int) -> AsyncIterator[bytes]:
        """Yield so many bytes."""
        if not 0 <= size <= BODY_BYTES:
            raise LoopbackError("sent a length that is none, or too great a one")
        while size:
            part = await self._reader.read(min(size, READ_BYTES))
            if not part:
                raise LoopbackError("closed the connection in the middle of an answer")
            size -= len(part)
            yield part

    async def body(self, most: int | None = None) -> bytes:
        """Return the whole body.

        Args:
            most: Its longest; by default that of the route.

        Raises:
            LoopbackError: It is longer, or the server went away before its end.
        """
        most = self._most if most is None else most
        parts = []
        size = 0
        async for part in self.chunks():
            size += len(part)
            if size > most:
                raise LoopbackError(f"sent a body above the limit of {most} bytes")
            parts.append(part)
        return b"".join(parts)

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the `data:` payload of every server-sent event, without the closing `[DONE]`."""
        async with contextlib.aclosing(self._lines()) as lines:  # type: ignore[type-var]
            async for line in lines:
                if line.startswith(b"data:"):
                    payload = line[5:].strip()
                    if payload == b"[DONE]":
                        return
                    yield payload
                elif line.startswith(b"error:"):  # llama.cpp's way to end a stream that failed
                    yield b'{"error":' + line[6:].strip() + b"}"

    async def _lines(self) -> AsyncIterator[bytes]:
        """Yield the body's lines; what comes is looked at once, however it is cut."""
        begun: list[bytes] = []
        size = 0
        async with contextlib.aclosing(self.chunks()) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                first, *others = chunk.split(b"\n")
                begun.append(first)
                size += len(first)
                if size > EVENT_BYTES:
                    raise LoopbackError(f"sent an event above the limit of {EVENT_BYTES} bytes")
                if others:
                    yield b"".join(begun)
                    for line in others[:-1]:
                        yield line
                    begun, size = [others[-1]], len(others[-1])


async def _connect(address: str | int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(address, int):
        return await asyncio.open_connection("127.0.0.1", address, limit=LINE_BYTES)
    return await asyncio.open_unix_connection(address, limit=LINE_BYTES)


def decoded(body: bytes) -> dict[str, object]:
    """Return a JSON object; an empty one for anything else."""
    with contextlib.suppress(msgspec.DecodeError):
        value = msgspec.json.decode(body)
        if isinstance(value, dict):
            return value
    return {}
