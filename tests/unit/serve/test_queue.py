import asyncio

from kvant.serve.extent import Extent
from kvant.serve.queue import FairQueue, Ticket


def test_round_robin_order_and_bookkeeping() -> None:
    async def test() -> None:
        queue: FairQueue[int] = FairQueue()
        tickets = [Ticket[int](number=i, caller=c, extent=Extent(i * 10, 60 - i * 10)) for i, c in enumerate("aaabbc")]
        for ticket in tickets:
            queue.push(ticket)
        assert (len(queue), queue.oldest, queue.extent, queue.largest, queue.count("b")) == (6, 0, Extent(50, 60), 3, 2)
        assert queue.newest_of_largest() is tickets[2]
        queue.discard(tickets[3])
        queue.push(Ticket(number=9, caller="z", extent=Extent(1)), first=True)
        assert queue.peek() is not None
        assert [queue.pop().number for _ in range(6)] == [9, 0, 4, 5, 1, 2]
        assert (queue.peek(), queue.oldest, len(queue), queue.drain()) == (None, None, 0, [])

    asyncio.run(test())
