"""Work in threads of its own, a few pieces at a time: callers take turns, and no more wait than may.

asyncio's own threads do what every request needs, such as looking a model up. What a request can prolong at will must
not stand in their way, and its callers must not stand in each other's.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from kvant.errors import QueueFullError
from kvant.serve.extent import Extent
from kvant.serve.queue import FairQueue, Ticket

MOST = 256
MOST_EACH = 64
RETRY_S = 5.0
ResultT = TypeVar("ResultT")


class Gate:
    """Does such work; belongs to one event loop.

    Args:
        n: Pieces of work at a time.
        most: Most that wait.
        most_each: Most that wait of one caller.
        what: What it is, for errors.
    """

    def __init__(
        self, n: int, *, most: int = MOST, most_each: int = MOST_EACH, what: str = "schemas, grammars and templates"
    ) -> None:
        self._free, self._most, self._most_each, self._what = n, most, most_each, what
        self._threads = ThreadPoolExecutor(n, thread_name_prefix="kvant-gate")
        self._queue: FairQueue[None] = FairQueue()
        self._numbers = itertools.count()
        self._closed = False

    async def run(self, caller: str, work: Callable[[], ResultT]) -> ResultT:
        """Have something done, when it is this caller's turn.

        Args:
            caller: Who asked for it.
            work: What to call.

        Raises:
            QueueFullError: Too many wait already, or the gateway is shutting down.
        """
        if self._closed:
            raise _ending()
        if self._free:  # then nobody waits
            self._free -= 1
        else:
            await self._turn(caller)
        try:
            running = self._threads.submit(work)
        except RuntimeError:  # closed meanwhile
            raise _ending() from None
        loop = asyncio.get_running_loop()

        def done(_: Future[ResultT]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._give_back)

        running.add_done_callback(done)  # not when its caller leaves: the thread works on
        return await asyncio.wrap_future(running)

    def close(self) -> None:
        """Take no more; those that wait are told so, what is being done goes on to its end."""
        self._closed = True
        for ticket in self._queue.drain():
            if not ticket.granted.done():
                ticket.granted.set_exception(_ending())
        self._threads.shutdown(wait=False)

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._queue)

    async def _turn(self, caller: str) -> None:
        if self._queue.count(caller) >= self._most_each:
            raise self._full(self._queue.count(caller), self._most_each, "of this caller ")
        ticket: Ticket[None] = Ticket(number=next(self._numbers), caller=caller, extent=Extent(0))
        self._queue.push(ticket)
        if len(self._queue) > self._most:
            victim = self._queue.newest_of_largest()
            self._queue.discard(victim)
            victim.granted.set_exception(self._full(self._most, self._most))
        try:
            await ticket.granted
        except asyncio.CancelledError:
            self._queue.discard(ticket)
            if ticket.granted.done() and not ticket.granted.cancelled() and ticket.granted.exception() is None:
                self._give_back()
            raise

    def _give_back(self) -> None:
        """Let the next one in."""
        while len(self._queue):
            ticket = self._queue.pop()
            if not ticket.granted.done():
                ticket.granted.set_result(None)
                return
        self._free += 1

    def _full(self, n: int, limit: int, whose: str = "") -> QueueFullError:
        return QueueFullError(
            f"{self._what}: {n} requests {whose}wait already, the limit is {limit}. Try again in {RETRY_S:.0f} s.",
            retry_after_s=RETRY_S,
        )


def _ending() -> QueueFullError:
    return QueueFullError("gateway: is shutting down. Try again later.", retry_after_s=RETRY_S)
