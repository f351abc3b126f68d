"""Requests that wait for one model: callers take turns, each caller's own requests keep their order."""

import asyncio
import functools
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from kvant.serve.extent import Extent

GrantT = TypeVar("GrantT")


@dataclass(slots=True, kw_only=True, eq=False)
class Ticket(Generic[GrantT]):
    """A request that waits.

    Attributes:
        number: Grows with every request; the oldest is the smallest.
        caller: Who asked.
        extent: What it needs of a worker.
        granted: What it gets, or the error.
    """

    number: int
    caller: str
    extent: Extent
    granted: asyncio.Future[GrantT] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class FairQueue(Generic[GrantT]):
    """Tickets in the order they are served: one of each caller, in turn."""

    def __init__(self) -> None:
        self._callers: OrderedDict[str, deque[Ticket[GrantT]]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._callers.values()))

    def push(self, ticket: Ticket[GrantT], *, first: bool = False) -> None:
        """Add a ticket at the end of its caller's, or before all others."""
        queue = self._callers.setdefault(ticket.caller, deque())
        if first:
            queue.appendleft(ticket)
            self._callers.move_to_end(ticket.caller, last=False)
        else:
            queue.append(ticket)

    def peek(self) -> Ticket[GrantT] | None:
        """Return the ticket that is next."""
        return next((queue[0] for queue in self._callers.values()), None)

    def pop(self) -> Ticket[GrantT]:
        """Take the ticket that is next; its caller goes to the end of the round."""
        caller, queue = next(iter(self._callers.items()))
        ticket = queue.popleft()
        if queue:
            self._callers.move_to_end(caller)
        else:
            del self._callers[caller]
        return ticket

    def discard(self, ticket: Ticket[GrantT]) -> None:
        """Remove a ticket, if it is there."""
        queue = self._callers.get(ticket.caller)
        if queue is not None and ticket in queue:
            queue.remove(ticket)
            if not queue:
                del self._callers[ticket.caller]

    def drain(self) -> list[Ticket[GrantT]]:
        """Take all tickets."""
        tickets = [ticket for queue in self._callers.values() for ticket in queue]
        self._callers.clear()
        return tickets

    def count(self, caller: str) -> int:
        """Return how many tickets of a caller wait."""
        return len(self._callers.get(caller, ()))

    @property
    def largest(self) -> int:
        """Most tickets that wait of one caller."""
        return max(map(len, self._callers.values()), default=0)

    def newest_of_largest(self) -> Ticket[GrantT]:
        """Return the newest ticket of the caller who has most of them waiting."""
        return max(self._callers.values(), key=len)[-1]

    @property
    def oldest(self) -> int | None:
        """Number of the ticket that waits longest."""
        return min((queue[0].number for queue in self._callers.values()), default=None)

    @property
    def extent(self) -> Extent:
        """What does for every ticket."""
        extents = (ticket.extent for queue in self._callers.values() for ticket in queue)
        return functools.reduce(Extent.with_, extents, Extent(0))
