"""The client against a server that says anything but what llama.cpp's would."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from kvant.runtime.server import loopback
from kvant.runtime.server.loopback import EVENT_BYTES, READ_BYTES, Exchange, LoopbackError, decoded

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def ask(
    answer: bytes, use: Callable[[Exchange], Awaitable[object]], *, body: bytes | None = None
) -> tuple[object, bytes]:
    """Return what `use` makes of a server's answer, and what the server was sent."""
    heard = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.readuntil(b"\r\n\r\n"))
        if body:
            heard.extend(await reader.readexactly(len(body)))
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    async def run() -> object:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        exchange = Exchange(port, "key", "POST" if body else "GET", "/path", body)
        async with server, asyncio.timeout(30), exchange:
            return await use(exchange)

    return asyncio.run(run()), bytes(heard)


async def whole(exchange: Exchange) -> tuple[int, bytes]:
    return exchange.status, await exchange.body()


async def events(exchange: Exchange) -> list[bytes]:
    return [payload async for payload in exchange.events()]


def chunked(*parts: bytes) -> bytes:
    return CHUNKED + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))


def test_a_request_and_its_answer() -> None:
    answer, heard = ask(OK + b"Content-Length: 2\r\n\r\nhi", whole, body=b'{"a":1}')
    assert answer == (200, b"hi")
    assert heard.startswith(b"POST /path HTTP/1.1\r\n")
    assert b"Authorization: Bearer key\r\n" in heard
    assert heard.endswith(b'Content-Length: 7\r\n\r\n{"a":1}')


@pytest.mark.parametrize("answer", [chunked(b"a", b"bc"), OK + b"\r\nabc", OK + b"content-length:3\r\n\r\nabcdef"])
def test_bodies(answer: bytes) -> None:
    assert ask(answer, whole)[0] == (200, b"abc")


def test_events_whatever_way_they_are_cut() -> None:
    text = b': ping\n\ndata: {"a": 1}\n\nevent: x\ndata: {"b": 2}\n\nerror: {"c": 3}\n\ndata: [DONE]\n\ndata: late\n\n'
    wanted = [b'{"a": 1}', b'{"b": 2}', b'{"error":{"c": 3}}']
    for size in (1, 7, len(text)):
        parts = [text[i : i + size] for i in range(0, len(text), size)]
        assert ask(chunked(*parts), events)[0] == wanted


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"SMTP hello\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", OK, OK + b"X: y\r\n" * 100 + b"\r\n",
        OK + b"X: " + b"y" * 70_000 + b"\r\n\r\n", OK + b"Content-Length: 10\r\n\r\nabc",
        OK + b"Content-Length: x\r\n\r\nabc", OK + b"Content-Length: 99999999999\r\n\r\nabc",
        CHUNKED + b"5\r\nab", CHUNKED + b"zz\r\nab\r\n", CHUNKED + b"ffffffffff\r\nab\r\n", CHUNKED + b"-1\r\n",
    ],
)  # fmt: skip
def test_servers_that_break_off_or_lie(answer: bytes) -> None:
    with pytest.raises(LoopbackError):
        ask(answer, whole)


def test_long_events_are_put_together_and_longer_ones_broken_off() -> None:
    long = b"data: " + b"x" * (3 * READ_BYTES)
    assert ask(chunked(long, long + b"\n\ndata: y\n"), events)[0] == [(long + long)[6:], b"y"]
    for answer in (
        chunked(*[b"x" * READ_BYTES] * (EVENT_BYTES // READ_BYTES + 1)), OK + b"\r\n" + b"x" * (EVENT_BYTES + 1),
        chunked(b"x" * (EVENT_BYTES + 1)), chunked(b"data: y\n" + b"x" * (EVENT_BYTES + 1)),
    ):  # fmt: skip
        with pytest.raises(LoopbackError, match=f"sent an event above the limit of {EVENT_BYTES} bytes"):
            ask(answer, events)


def test_a_body_is_as_long_as_its_route_lets_it_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loopback.REPLY_BYTES, "/path", 4)
    assert ask(OK + b"\r\nabcd", whole)[0] == (200, b"abcd")
    for answer in (OK + b"\r\nabcde", chunked(b"abc", b"de"), OK + b"Content-Length: 5\r\n\r\nabcde"):
        with pytest.raises(LoopbackError, match="sent a body above the limit of 4 bytes"):
            ask(answer, whole)


def test_nobody_listens() -> None:
    async def run() -> None:
        async with Exchange(1, "key", "GET", "/"):
            pass

    with pytest.raises(LoopbackError, match="refused"):
        asyncio.run(run())


def test_a_path_cannot_smuggle_a_header() -> None:
    with pytest.raises(ValueError, match="white space"):
        Exchange(1, "key", "GET", "/x HTTP/1.1\r\nX: y")


@pytest.mark.parametrize(("body", "value"), [(b'{"a":1}', {"a": 1}), (b"[1]", {}), (b"", {}), (b"<html>", {})])
def test_decoded(body: bytes, value: dict[str, object]) -> None:
    assert decoded(body) == value
