"""A server that accepts no more than it can hold, and ends answers with a word where it must end before them."""

import asyncio
import os
import signal
import socket
import ssl
import sys
from types import FrameType

import uvicorn

from kvant.serve import logs
from kvant.serve.connections import Connections, Guarded, keep_probing

ACCEPTS_AT_ONCE = 16
TLS_S = 10.0
TLS_END_S = 5.0
NO_ROOM_S = 1.0
LAST_WORDS_S = 5.0
"""Seconds that answers have for their last words, after those in which they could have ended."""


class GatewayServer(uvicorn.Server):
    """uvicorn with an accept loop of our own.

    asyncio's takes whatever comes, and where descriptors run out it tries again a thousand times a second, with a log
    line each.

    Args:
        config: uvicorn's; its `timeout_graceful_shutdown` is set here.
        listener: A socket that listens.
        connections: How many there may be.
        drain_s: Seconds that answers have to end at a shutdown.

    Attributes:
        guests: The connections.
        failed: Whether it ended since it could accept no more.
    """

    def __init__(
        self, config: uvicorn.Config, listener: socket.socket, connections: Connections, drain_s: float
    ) -> None:
        super().__init__(config)
        config.timeout_graceful_shutdown = round(drain_s + LAST_WORDS_S)
        self._listener, self.guests, self._drain_s = listener, connections, drain_s
        self._accepting: asyncio.Task[None] | None = None
        self.failed = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        """Start the application, then accept."""
        await super().startup(sockets=[])
        self._listener.setblocking(False)
        self._accepting = asyncio.create_task(self._accept())
        self._accepting.add_done_callback(self._accepted_last)

    async def on_tick(self, counter: int) -> bool:
        """Look at all connections once a second; uvicorn calls this ten times."""
        if counter % 10 == 0:
            self.guests.check(asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        """Take no more, let answers end, have those that do not say so, stop the application."""
        if self.server_state.tasks:
            logs.write("draining", answers=len(self.server_state.tasks), seconds=self._drain_s, at_once="Ctrl-C again")
        if self._accepting is not None:
            self._accepting.cancel()
        self._listener.close()
        self.guests.drop_unopened()
        ending = asyncio.get_running_loop().call_later(self._drain_s, self._say_ending)
        await super().shutdown(sockets=[])
        ending.cancel()

    def _accepted_last(self, accepting: asyncio.Task[None]) -> None:
        """End the server that accepts no more: who runs it then knows, and starts it again."""
        if not accepting.cancelled() and (error := accepting.exception()) is not None:
            logs.log.error("accept_ended", exc_info=error)
            self.failed = self.should_exit = True

    def _say_ending(self) -> None:
        ending = self.lifespan.state.get("ending")
        if ending is not None:
            ending.set()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End at the first signal in good order, at the second Ctrl-C at once: workers end with their gateway."""
        if self.should_exit and sig == signal.SIGINT:
            sys.stderr.flush()
            os._exit(128 + sig)
        super().handle_exit(sig, frame)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            for _ in range(ACCEPTS_AT_ONCE):
                try:
                    sock, peer = await loop.sock_accept(self._listener)
                except ConnectionAbortedError:
                    continue
                except OSError as error:  # no descriptors or no memory
                    logs.write("accept_failed", level=logs.WARNING, reason=error.strerror, open=len(self.guests))
                    await asyncio.sleep(NO_ROOM_S)
                    continue
                try:
                    await self.guests.room()  # meanwhile the others wait in the system's queue
                except BaseException:
                    sock.close()
                    raise
                try:
                    self._admit(sock, str(peer[0]))
                except Exception:  # of one must not keep out the others
                    logs.log.exception("a connection could not be let in, and is closed")
                    sock.close()
            await asyncio.sleep(0)  # accepting at once does not give way to other tasks

    def _admit(self, sock: socket.socket, address: str) -> None:
        client = self.guests.may_open(address)
        if client is None:
            self.guests.refused("connections")
            sock.close()
            return
        guest = Guarded(self.config, self.server_state, self.lifespan.state, self.guests, client)
        self.guests.add(guest)
        guest.opening = asyncio.create_task(self._open(sock, guest))
        guest.opening.add_done_callback(lambda _: sock.close() if guest.transport is None else None)

    async def _open(self, sock: socket.socket, guest: Guarded) -> None:
        """Give a connection to its protocol, after the handshake where there is one."""
        seconds = {} if self.config.ssl is None else {"ssl_handshake_timeout": TLS_S, "ssl_shutdown_timeout": TLS_END_S}
        try:
            keep_probing(sock)
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: guest, sock, ssl=self.config.ssl, **seconds
            )
        except (OSError, ssl.SSLError, asyncio.CancelledError):  # it gave up, or was given up
            self.guests.remove(guest)
