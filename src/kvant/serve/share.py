"""Bounded work in turn: callers of a gateway wait for it in a queue, without a thread; see `gate.py`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

from kvant.runtime.bounded import CPU_SECONDS, MEMORY_BYTES, PROCESSES, Bounded
from kvant.serve.gate import Gate

P = ParamSpec("P")
ResultT = TypeVar("ResultT")


class SharedBounded(Bounded):
    """Does bounded work for many callers.

    Attributes:
        gate: Where it is waited for a process.
        walks: Where it is waited for a thread of the gateway's own, for work whose bounds are known before.
    """

    def __init__(self, *, cpu_s: int = CPU_SECONDS, memory_bytes: int = MEMORY_BYTES, n: int = PROCESSES) -> None:
        super().__init__(cpu_s=cpu_s, memory_bytes=memory_bytes, n=n)
        self.gate, self.walks = Gate(n), Gate(1)

    def close(self) -> None:
        """End all processes; see `Bounded.close`."""
        self.gate.close()
        self.walks.close()
        super().close()


@dataclass(frozen=True, slots=True)
class Share:
    """One caller's access to such work.

    Attributes:
        bounded: Who does it.
        caller: Who asks.
    """

    bounded: SharedBounded
    caller: str

    async def run(self, work: Callable[Concatenate[Bounded, P], ResultT], *args: P.args, **more: P.kwargs) -> ResultT:
        """Call something that asks `bounded`, its first argument, in a thread, when it is this caller's turn.

        Raises:
            QueueFullError: Too many wait already.
        """
        return await self.bounded.gate.run(self.caller, partial(work, self.bounded, *args, **more))

    async def walk(self, work: Callable[P, ResultT], *args: P.args, **more: P.kwargs) -> ResultT:
        """Call something that has bounds of its own, in a thread, when it is this caller's turn.

        Raises:
            QueueFullError: Too many wait already.
        """
        return await self.bounded.walks.run(self.caller, partial(work, *args, **more))
