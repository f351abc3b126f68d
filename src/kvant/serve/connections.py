"""The connections of a gateway: how many there may be, whose, and how long one may keep us waiting.

A connection costs its owner nothing, so their number is bounded: of all together, and of one address. Where there are
too many, a new one takes the place of one that is not being answered: first one that never sent a whole request, then
one that waits for its next, then one whose body is still coming; of the client with most connections, that which was
used longest ago. So nobody is kept out by connections that do nothing. One that is being answered is never dropped.

Time is looked at once a second, for all connections: a head must be whole within `HEAD_S`; bodies and answers must move
at `LEAST_BYTES_PER_S`, measured over `WINDOW_S`.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol
from uvicorn.server import ServerState

from kvant.serve.addresses import LOOPBACK, client_of
from kvant.serve.logs import log
from kvant.serve.strict import StrictConnection
from kvant.serve.wording import OPENAI, Dialect, guessed

HEAD_S = 10.0
KEEP_ALIVE_S = 30
WINDOW_S = 30.0
LEAST_BYTES_PER_S = 1 << 10
CLIENT_PART = 4
"""A client beyond this machine and its proxies gets at most a quarter of all connections."""

FIXED_HEADERS = (
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
    ("cross-origin-resource-policy", "same-origin"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
)
"""What every answer has, unless it says otherwise: nothing of ours is to be shown or loaded within another site."""

NEVER_ASKED, IDLE, SENDING, ANSWERED = range(4)
"""What a connection is at, in the order in which they make room."""

Refused = Callable[[str], object]


class Window:
    """Whether something moved at the least rate over the last `WINDOW_S`."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._count = 0

    def rest(self) -> None:
        """Nothing is to move now."""
        self._since = None

    def is_slow(self, now: float, count: int) -> bool:
        """Look at a count of bytes that grows; say whether it grew too little."""
        if self._since is None:
            self._since, self._count = now, count
        elif now - self._since >= WINDOW_S:
            if count - self._count < LEAST_BYTES_PER_S * WINDOW_S:
                return True
            self._since, self._count = now, count
        return False


class Guarded(H11Protocol):
    """uvicorn's connection, read strictly and looked at by `Connections`.

    Args:
        config: uvicorn's.
        server_state: uvicorn's.
        app_state: What the application's start left for its requests.
        connections: Those it is one of.
        client: Under which name it is counted.

    Attributes:
        received: Bytes that came.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        connections: "Connections",
        client: str,
    ) -> None:
        super().__init__(config, server_state, app_state)
        self.conn: StrictConnection = StrictConnection()
        self.client_name, self._connections = client, connections
        self.opening: asyncio.Task[None] | None = None
        self.received = self._drained = 0
        self._head_since: float | None = None
        self._reading, self._writing = Window(), Window()
        self._unsent = 0

    # What uvicorn calls

    def data_received(self, data: bytes) -> None:
        """Count, and let uvicorn read."""
        self.received += len(data)
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Make room."""
        super().connection_lost(exc)
        self._connections.remove(self)

    def on_response_complete(self) -> None:
        """Note that it was used."""
        self._connections.used(self)
        super().on_response_complete()

    def _should_upgrade(self) -> bool:
        """No other protocol is spoken: a request that offers one is answered in this one (RFC 9110, section 7.8)."""
        return False

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - ours says more
        """Refuse what is no request, or none that is taken; where an answer has begun, it can only be broken off."""
        status, words = self.conn.refusal
        self.refuse(status, "protocol", words)

    # What its guard calls

    def refuse(self, status: int, reason: str, words: str) -> None:
        """Answer in the server's place, as far as an answer can still be sent, and close."""
        self._connections.refused(reason)
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(_plain_answer(status, self._dialect().error(status, words)))
            self.transport.close()
        else:
            self.transport.abort()
        if self.cycle is not None and not self.cycle.response_complete:  # its answer has nowhere to go
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _dialect(self) -> Dialect:
        """How the request that is being read wants errors worded; OpenAI's way where none is known."""
        is_known = self.cycle is not None and not self.cycle.response_complete
        return guessed(self.cycle.scope["path"]) if is_known else OPENAI

    def drop(self) -> None:
        """End it at once, in whatever state."""
        if self.transport is not None:
            self.transport.abort()
        elif self.opening is not None:
            self.opening.cancel()

    @property
    def stage(self) -> int:
        """What it is at: one of `NEVER_ASKED`, `IDLE`, `SENDING`, `ANSWERED`."""
        if self.cycle is None:
            return NEVER_ASKED
        if self.cycle.response_complete:
            return IDLE
        return SENDING if self.cycle.more_body else ANSWERED

    def check(self, now: float) -> None:
        """Close it if it keeps us waiting; called once a second."""
        if self.transport is None:
            return  # TLS has a time limit of its own
        if self._is_unread(now):
            self._connections.refused("slow_reader")
            self.transport.abort()
        elif self.stage in (NEVER_ASKED, IDLE):
            self._check_head(now)
        elif self.stage == SENDING and not self.flow.read_paused and not self.cycle.waiting_for_100_continue:
            if self._reading.is_slow(now, self.received):
                words = f"The body came slower than {LEAST_BYTES_PER_S} bytes a second. Send it again."
                self.refuse(408, "slow_body", words)
        else:
            self._head_since = None
            self._reading.rest()

    def _check_head(self, now: float) -> None:
        self._reading.rest()
        if self.timeout_keep_alive_task is not None:  # uvicorn waits for the first byte of the next request
            self._head_since = None
        elif self._head_since is None:
            self._head_since = now
        elif now - self._head_since >= HEAD_S and not self.transport.is_closing():
            if self.received:
                self.refuse(408, "slow_head", f"The request's head was not whole within {HEAD_S:.0f} s.")
            else:
                self._connections.refused("silent")
                self.transport.abort()

    def _is_unread(self, now: float) -> bool:
        """Whether the other side leaves what it was sent.

        Looked at while nothing is written, so that what is left in the buffer only shrinks.
        """
        unsent = self.transport.get_write_buffer_size()
        is_written = self.stage in (SENDING, ANSWERED) and not self.flow.write_paused
        if unsent == 0 or is_written or unsent > self._unsent:
            self._writing.rest()
        self._drained += max(0, self._unsent - unsent)
        self._unsent = unsent
        return unsent > 0 and not is_written and self._writing.is_slow(now, self._drained)

    def resume_writing(self) -> None:
        """Most of what was sent has left."""
        self._writing.rest()
        super().resume_writing()


class Connections:
    """All connections of a gateway.

    Args:
        most: How many there may be.
        is_exempt: Whether an address may have all of them: that of a proxy, whose clients are many.
        refused: Told the reason of what is closed or not let in.
    """

    def __init__(self, most: int, is_exempt: Callable[[str], bool], refused: Refused) -> None:
        self.most, self.refused = most, refused
        self._is_exempt = is_exempt
        self._clients: dict[str, dict[Guarded, None]] = {}
        self._count = 0
        self._room = asyncio.Event()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Guarded]:
        return iter([connection for own in self._clients.values() for connection in own])

    def may_open(self, address: str) -> str | None:
        """Make room for a connection.

        Returns:
            The name its client is counted under; None if it cannot be let in.
        """
        client = client_of(address)
        own = self._clients.get(client, {})
        has_limit = client != LOOPBACK and not self._is_exempt(address)
        if has_limit and len(own) >= max(1, self.most // CLIENT_PART) and not self._give_way(own):
            return None
        if self._count >= self.most and not self._make_room():
            return None
        return client

    def add(self, connection: Guarded) -> None:
        """Count a connection that `may_open` made room for."""
        self._clients.setdefault(connection.client_name, {})[connection] = None
        self._count += 1

    def remove(self, connection: Guarded) -> None:
        """Count a connection no more; nothing happens if it is not counted."""
        own = self._clients.get(connection.client_name, {})
        if connection in own:
            del own[connection]
            self._count -= 1
            if not own:
                del self._clients[connection.client_name]
        self._room.set()

    def used(self, connection: Guarded) -> None:
        """Note that a connection's request is answered: it goes to the end of its client's."""
        own = self._clients.get(connection.client_name, {})
        if connection in own:
            del own[connection]
            own[connection] = None
        self._room.set()

    async def room(self) -> None:
        """Wait until another connection can be had: as long as it cannot, none is accepted."""
        while self._count >= self.most and self._dispensable() is None:
            self._room.clear()
            with contextlib.suppress(TimeoutError):  # bodies that begin to come make room too, and do not say so
                await asyncio.wait_for(self._room.wait(), 1)

    def check(self, now: float) -> None:
        """Close those that keep us waiting."""
        for connection in self:
            try:
                connection.check(now)
            except Exception:  # of one must not end the watch over all
                log.exception("a connection could not be checked, and is closed")
                self._drop(connection)

    def drop_unopened(self) -> None:
        """End those that are still shaking hands: nobody else knows of them yet."""
        for connection in self:
            if connection.transport is None:
                self._drop(connection)

    def _make_room(self) -> bool:
        found = self._dispensable()
        if found is not None:
            self._drop(found)
        return found is not None

    def _dispensable(self) -> Guarded | None:
        """One that can go, of the client who has most connections and one of those that can go."""
        for own in sorted(self._clients.values(), key=len, reverse=True):
            if found := _first_to_go(own):
                return found
        return None

    def _give_way(self, own: dict[Guarded, None]) -> bool:
        found = _first_to_go(own)
        if found is not None:
            self._drop(found)
        return found is not None

    def _drop(self, connection: Guarded) -> None:
        self.remove(connection)
        self.refused("connections")
        connection.drop()


def _first_to_go(own: dict[Guarded, None]) -> Guarded | None:
    found: Guarded | None = None
    for connection in own:
        stage = connection.stage
        if stage == NEVER_ASKED:
            return connection
        if stage != ANSWERED and (found is None or stage < found.stage):
            found = connection
    return found


def _plain_answer(status: int, body: bytes) -> bytes:
    """A whole answer of the server's own."""
    fields = (
        *FIXED_HEADERS,
        ("content-type", "application/json"),
        ("content-length", len(body)),
        ("connection", "close"),
    )
    lines = [f"HTTP/1.1 {status} {STATUS_PHRASES[status].decode()}", *(f"{name}: {value}" for name, value in fields)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def keep_probing(sock: socket.socket) -> None:
    """Let the system find out about clients that vanished without a word, within two minutes."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
