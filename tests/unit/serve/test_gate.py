"""Work in turns: no more at a time than may, callers one after the other, and too many are refused at once."""

import asyncio
import threading
from functools import partial

import pytest

from kvant.errors import QueueFullError
from kvant.serve.gate import Gate


class Held:
    """Work that ends when it is told to, and notes who did it."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.done: list[str] = []

    def __call__(self, name: str) -> str:
        assert self.go.wait(60)
        self.done.append(name)
        return name


async def _asked(gate: Gate, held: Held, *names: str) -> "list[asyncio.Task[str]]":
    """Ask in this order, each for the caller that its first letter names."""
    tasks = []
    for name in names:
        tasks.append(asyncio.create_task(gate.run(name[0], partial(held, name))))
        await asyncio.sleep(0)
    return tasks


def test_callers_take_turns() -> None:
    async def main() -> None:
        gate, held = Gate(1), Held()
        tasks = await _asked(gate, held, "a0", "a1", "a2", "a3", "b1", "c1")
        assert len(gate) == 5
        held.go.set()
        await asyncio.gather(*tasks)
        assert held.done == ["a0", "a1", "b1", "c1", "a2", "a3"]
        assert len(gate) == 0
        gate.close()

    asyncio.run(main())


def test_no_more_wait_than_may_of_one_caller_and_in_all() -> None:
    async def main() -> None:
        gate, held = Gate(1, most=3, most_each=2), Held()
        tasks = await _asked(gate, held, "a0", "a1", "a2", "a3", "b1", "c1")
        with pytest.raises(QueueFullError, match=r": 2 requests of this caller wait already, .* is 2\. Try again in 5"):
            await tasks[3]
        with pytest.raises(QueueFullError, match=r": 3 requests wait already"):
            await tasks[2]  # of the caller with most, the newest
        held.go.set()
        assert await asyncio.gather(*tasks[:2], *tasks[4:]) == ["a0", "a1", "b1", "c1"]
        gate.close()

    asyncio.run(main())


def test_who_leaves_gives_the_place_up_when_the_work_has_ended() -> None:
    async def main() -> None:
        gate, held = Gate(1), Held()
        tasks = await _asked(gate, held, "a0", "b1", "c1")
        tasks[0].cancel()  # its thread works on
        tasks[1].cancel()
        await asyncio.gather(*tasks[:2], return_exceptions=True)
        assert len(gate) == 1
        held.go.set()
        assert await tasks[2] == "c1"
        assert held.done == ["a0", "c1"]
        gate.close()

    asyncio.run(main())


def test_an_end_is_told_to_those_that_wait() -> None:
    async def main() -> None:
        gate, held = Gate(1), Held()
        tasks = await _asked(gate, held, "a0", "b1")
        gate.close()
        with pytest.raises(QueueFullError, match="shutting down"):
            await tasks[1]
        with pytest.raises(QueueFullError, match="shutting down"):
            await gate.run("a", lambda: held("a2"))
        held.go.set()
        assert await tasks[0] == "a0"

    asyncio.run(main())


def test_asyncios_own_threads_stay_free() -> None:
    async def main() -> None:
        gate, held = Gate(2), Held()
        tasks = await _asked(gate, held, *(f"a{i}" for i in range(60)))
        assert await asyncio.to_thread(lambda: threading.current_thread().name.startswith("asyncio"))
        held.go.set()
        assert len(await asyncio.gather(*tasks)) == 60
        gate.close()

    asyncio.run(main())
