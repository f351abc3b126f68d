"""Connections that keep a gateway waiting: real sockets, a small application, and a time that the test sets."""

import asyncio
import contextlib
import inspect
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http.h11_impl import RequestResponseCycle
from uvicorn.server import ServerState

from kvant.serve.connections import HEAD_S, LEAST_BYTES_PER_S, WINDOW_S, Connections, Guarded, Window
from kvant.serve.listener import GatewayServer
from kvant.serve.wording import ANTHROPIC, OLLAMA, OPENAI, Dialect

pytestmark = pytest.mark.heavy

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
HALF = b"GET / HTTP/1.1\r\nHost: x\r\n"
BODY = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
LONG = b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n"
WAIT = b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n"
Message = MutableMapping[str, Any]


class Running:
    """A server and what the test looks at."""

    def __init__(self, most: int, *, exempt: bool = True) -> None:
        self.reasons: Counter[str] = Counter()
        self.released = asyncio.Event()
        self.waiting = 0
        self.guests = Connections(most, lambda _: exempt, lambda reason: self.reasons.update([reason]))
        self.port = 0
        self.server: GatewayServer | None = None
        self.writers: list[asyncio.StreamWriter] = []

    async def app(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        while (message := await receive())["type"] == "http.request" and message["more_body"]:
            pass
        if scope["path"] == "/wait":
            self.waiting += 1
            await self.released.wait()
        body = bytes(64 << 20) if scope["path"] == "/long" else b"ok"
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def check(self, seconds: float) -> None:
        """Look at all connections as if it were later."""
        self.guests.check(asyncio.get_running_loop().time() + seconds)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0.005)

    async def open(self, data: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        writer.write(data)
        await writer.drain()
        return reader, writer

    async def opened(self, data: bytes, n: int = 1) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Open connections and wait until the server has seen them."""
        expected = min(len(self.guests) + n, self.guests.most)
        made = [await self.open(data) for _ in range(n)]
        await self.until(
            lambda: (
                len(self.guests) >= expected
                and all(guest.transport is not None for guest in self.guests)
                and list(self.guests)[-1].received >= len(data)
            )
        )
        return made


async def answer(reader: asyncio.StreamReader) -> bytes:
    """Read a status line; empty where the connection was closed."""
    with contextlib.suppress(ConnectionError):
        return (await reader.readline()).rstrip()
    return b""


@contextlib.asynccontextmanager
async def running(most: int = 100, **settings: Any) -> AsyncIterator[Running]:
    state = Running(most, **settings)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        state.app, interface="asgi3", log_config=None, lifespan="on", ws="none", http="h11", timeout_keep_alive=100
    )
    server = GatewayServer(config, listener, state.guests, drain_s=0)
    state.port = listener.getsockname()[1]
    state.server = server
    task = asyncio.create_task(server.serve())
    await state.until(lambda: server.started)
    try:
        yield state
    finally:
        state.released.set()
        server.should_exit = True
        await task
        for writer in state.writers:
            writer.transport.abort()
        await asyncio.sleep(0)


def test_a_new_connection_takes_the_place_of_one_that_does_nothing() -> None:
    async def main() -> None:
        async with running(20) as state:
            silent = await state.opened(b"", 30)
            await state.opened(HALF, 30)
            for _ in range(5):
                reader, _ = await state.open(GET)
                assert await answer(reader) == b"HTTP/1.1 200 OK"
            assert len(state.guests) <= 20
            assert state.reasons["connections"] >= 40
            assert [await answer(reader) for reader, _ in silent[:10]] == [b""] * 10

    asyncio.run(main())


def test_who_is_answered_stays_and_who_comes_waits_until_there_is_room() -> None:
    async def main() -> None:
        async with running(4) as state:
            answered = await state.opened(WAIT, 4)
            await state.until(lambda: state.waiting == 4)
            reader, _ = await state.open(GET)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.readline(), 0.05)
            state.released.set()
            assert await answer(reader) == b"HTTP/1.1 200 OK"
            assert [await answer(reader) for reader, _ in answered] == [b"HTTP/1.1 200 OK"] * 4

    asyncio.run(main())


def test_the_order_in_which_they_go() -> None:
    async def main() -> None:
        async with running(3) as state:
            ((sending, _),) = await state.opened(BODY)
            ((idle, _),) = await state.opened(GET)
            assert await answer(idle) == b"HTTP/1.1 200 OK"
            await idle.readuntil(b"ok")
            ((silent, _),) = await state.opened(b"")
            for victim in (silent, idle, sending):
                await state.until(lambda: len(state.guests) == 3)
                gone = asyncio.ensure_future(answer(victim))
                await state.open(WAIT)
                assert await gone == b""

    asyncio.run(main())


def test_one_address_cannot_have_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvant.serve.connections.LOOPBACK", "somewhere else")

    async def main() -> None:
        async with running(40, exempt=False) as state:
            await state.opened(WAIT, 10)
            await state.until(lambda: state.waiting == 10)
            assert await answer((await state.open(GET))[0]) == b""  # ten are a quarter, and all are being answered
            assert len(state.guests) == 10

    asyncio.run(main())


@pytest.mark.parametrize("sent", [b"", HALF, b"G"])
def test_a_head_must_be_whole_in_time(sent: bytes) -> None:
    async def main() -> None:
        async with running() as state:
            ((reader, writer),) = await state.opened(sent)
            state.check(0)
            writer.write(b"")
            state.check(HEAD_S - 1)
            assert len(state.guests) == 1
            if sent:
                writer.write(b"X: y" if sent == HALF else b"")  # a byte now and then does not help
                await writer.drain()
            state.check(HEAD_S + 1)
            assert await answer(reader) == (b"HTTP/1.1 408 Request Timeout" if sent else b"")
            await state.until(lambda: len(state.guests) == 0)

    asyncio.run(main())


def test_the_head_of_a_second_request_must_be_whole_in_time_too() -> None:
    async def main() -> None:
        async with running() as state:
            ((reader, writer),) = await state.opened(GET)
            await reader.readuntil(b"ok")
            state.check(2 * HEAD_S)
            assert len(state.guests) == 1  # it waits for the next request, which has a time of its own
            writer.write(HALF)
            await writer.drain()
            await state.until(lambda: next(iter(state.guests)).timeout_keep_alive_task is None)
            state.check(0)
            state.check(HEAD_S)
            assert await answer(reader) == b"HTTP/1.1 408 Request Timeout"

    asyncio.run(main())


def test_a_body_must_keep_coming() -> None:
    async def main() -> None:
        async with running() as state:
            ((slow, _),) = await state.opened(BODY)
            ((fast, writer),) = await state.opened(BODY)
            state.check(0)
            writer.write(bytes(int(WINDOW_S * LEAST_BYTES_PER_S)))
            await writer.drain()
            await state.until(lambda: sum(guest.received for guest in state.guests) > WINDOW_S * LEAST_BYTES_PER_S)
            state.check(WINDOW_S)
            assert await answer(slow) == b"HTTP/1.1 408 Request Timeout"
            await state.until(lambda: len(state.guests) == 1)
            writer.write(bytes(100_000 - int(WINDOW_S * LEAST_BYTES_PER_S)))
            assert await answer(fast) == b"HTTP/1.1 200 OK"
            assert state.reasons == {"slow_body": 1}

    asyncio.run(main())


@pytest.mark.parametrize(
    ("path", "dialect"), [("/v1/chat/completions", OPENAI), ("/v1/messages", ANTHROPIC), ("/api/chat", OLLAMA)]
)
def test_a_slow_body_is_refused_in_the_words_of_its_api(path: str, dialect: Dialect) -> None:
    async def main() -> None:
        async with running() as state:
            ((reader, _),) = await state.opened(BODY.replace(b"/", path.encode(), 1))
            state.check(0)
            state.check(WINDOW_S)
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 408 Request Timeout")
            told = json.loads(body)
            message = told["error"] if isinstance(told["error"], str) else told["error"]["message"]
            assert message.startswith("The body came slower than")
            assert told == json.loads(dialect.error(408, message))

    asyncio.run(main())


def test_an_answer_must_be_read() -> None:
    async def main() -> None:
        async with running() as state:
            ((reader, _),) = await state.opened(LONG)
            ((unread, _),) = await state.opened(LONG)
            await state.until(lambda: all(guest.transport.get_write_buffer_size() > 0 for guest in state.guests))
            state.check(0)
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(8 << 20)
            state.check(WINDOW_S)
            await state.until(lambda: len(state.guests) == 1)
            await reader.readexactly(56 << 20)
            assert state.reasons == {"slow_reader": 1}
            assert unread is not reader

    asyncio.run(main())


def test_what_is_not_http_gets_one_answer() -> None:
    async def main() -> None:
        async with running() as state:
            for data in (b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\nHost: x\n\n", BODY.replace(b"100000", b"1, 2")):
                reader, _ = await state.open(data)
                text = (await reader.read()).decode()
                assert text.startswith("HTTP/1.1 400 Bad Request\r\n")
                assert "frame-ancestors 'none'" in text
                assert '{"error":{"message":"' in text
            assert state.reasons == {"protocol": 3}

    asyncio.run(main())


def test_a_broken_body_ends_its_request() -> None:
    async def main() -> None:
        async with running() as state:
            data = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
            reader, _ = await state.open(data)
            assert await answer(reader) == b"HTTP/1.1 400 Bad Request"
            await state.until(lambda: len(state.guests) == 0)

    asyncio.run(main())


def test_other_protocols_are_not_spoken() -> None:
    async def main() -> None:
        async with running() as state:
            for offer in (b"websocket", b"h2c"):
                data = GET[:-2] + b"Connection: Upgrade\r\nUpgrade: " + offer + b"\r\n\r\n"
                reader, _ = await state.open(data)
                assert await answer(reader) == b"HTTP/1.1 200 OK"

    asyncio.run(main())


def test_pipelined_requests_are_answered_in_turn() -> None:
    async def main() -> None:
        async with running() as state:
            reader, _ = await state.open(GET * 200)
            for _ in range(200):
                assert await answer(reader) == b"HTTP/1.1 200 OK"
                await reader.readuntil(b"ok")

    asyncio.run(main())


def test_a_window_tells_slow_from_fast() -> None:
    window = Window()
    least = int(LEAST_BYTES_PER_S * WINDOW_S)
    assert [window.is_slow(t, n) for t, n in ((0, 0), (WINDOW_S - 1, 0), (WINDOW_S, least))] == [False] * 3
    assert not window.is_slow(2 * WINDOW_S - 1, least)
    assert window.is_slow(2 * WINDOW_S, 2 * least - 1)
    window.rest()
    assert not window.is_slow(9 * WINDOW_S, 0)


def test_what_fails_over_one_connection_ends_no_watch_over_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running() as state:
            ((odd, _),) = await state.opened(HALF)
            ((slow, _),) = await state.opened(HALF)
            monkeypatch.setattr(next(iter(state.guests)), "check", lambda _: 1 / 0)
            state.check(0)
            assert await answer(odd) == b""
            state.check(HEAD_S)
            assert await answer(slow) == b"HTTP/1.1 408 Request Timeout"

    asyncio.run(main())


def test_who_cannot_be_let_in_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running() as state:
            with monkeypatch.context() as patch:
                patch.setattr(state.guests, "may_open", lambda _: 1 / 0)
                reader, _ = await state.open(GET)
                assert await answer(reader) == b""
            reader, _ = await state.open(GET)
            assert await answer(reader) == b"HTTP/1.1 200 OK"

    asyncio.run(main())


def test_a_server_that_can_accept_no_more_ends_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running() as state:
            assert state.server is not None
            assert not state.server.failed
            monkeypatch.setattr(state.guests, "room", lambda: 1 / 0)
            await state.open(GET)
            await state.until(lambda: state.server is not None and state.server.failed)
            assert state.server.should_exit

    asyncio.run(main())


def test_what_is_overridden_of_uvicorn_is_there() -> None:
    """Parts that its documentation does not promise; pyproject.toml bounds the versions for them."""
    for ours, names in (
        (GatewayServer, ("startup", "on_tick", "shutdown", "handle_exit")),
        (
            Guarded,
            ("data_received", "connection_lost", "on_response_complete", "_should_upgrade", "send_400_response",
             "resume_writing"),
        ),
    ):  # fmt: skip
        for name in names:
            assert name in vars(ours)
            assert any(name in vars(base) for base in ours.__mro__[1:]), name

    async def one() -> Guarded:
        state = Running(1)
        return Guarded(uvicorn.Config(state.app, log_config=None), ServerState(), {}, state.guests, "a")

    made = asyncio.run(one())
    for name in ("conn", "cycle", "flow", "transport", "timeout_keep_alive_task"):
        assert hasattr(made, name), name
    words = set(inspect.getsource(RequestResponseCycle.__init__).replace(".", " ").split())
    assert {
        "response_started", "response_complete", "more_body", "disconnected", "message_event",
        "waiting_for_100_continue",
    } <= words  # fmt: skip
