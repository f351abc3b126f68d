"""A request's hold on a worker: one slot, and one more try where the engine crashed before anything was answered."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kvant.errors import WorkerError
from kvant.runtime.server.workers import Worker

ResultT = TypeVar("ResultT")


@dataclass(slots=True, kw_only=True)
class Lease:
    """What a request gets from the scheduler.

    Attributes:
        worker: The model's worker.
        load_s: Seconds of the wait in which the model was being loaded.
        queued_s: Seconds waited altogether.
    """

    load_s: float
    queued_s: float
    worker: Worker = field(init=False)


class RetryingWorker:
    """A `Worker` that is asked once more, in a new process, when it crashes before a part of the answer was passed on.

    Args:
        worker: The worker leased.
        another: Gives the lease back and takes a new one.
    """

    def __init__(self, worker: Worker, another: Callable[[], Awaitable[Worker]]) -> None:
        self._worker, self._another = worker, another
        self._retried = False

    @property
    def name(self) -> str:
        """The model's name."""
        return self._worker.name

    @property
    def context(self) -> int:
        """Tokens of context of one request."""
        return self._worker.context

    @property
    def template(self) -> str | None:
        """Chat template it uses in place of the file's own."""
        return self._worker.template

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._worker.alive

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._worker.pid

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """See `Worker.post`."""
        try:
            return await self._worker.post(path, body)
        except WorkerError as error:
            if _may_have_ended_it(body, error):
                raise
            await self._replace(error)
        return await self._worker.post(path, body)

    async def get(self, path: str) -> tuple[int, bytes]:
        """See `Worker.get`."""
        try:
            return await self._worker.get(path)
        except WorkerError as error:
            await self._replace(error)
        return await self._worker.get(path)

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[bytes]:
        """See `Worker.stream`."""
        while True:
            passed_on = False
            try:
                async with contextlib.aclosing(self._worker.stream(path, body)) as events:  # type: ignore[type-var]
                    async for payload in events:
                        passed_on = True
                        yield payload
            except WorkerError as error:
                if passed_on or _may_have_ended_it(body, error):
                    raise
                await self._replace(error)
            else:
                return

    async def healthy(self) -> bool:
        """See `Worker.healthy`."""
        return await self._worker.healthy()

    async def stop(self) -> None:
        """See `Worker.stop`."""
        await self._worker.stop()

    def kill(self) -> None:
        """See `Worker.kill`."""
        self._worker.kill()

    async def wait(self) -> None:
        """See `Worker.wait`."""
        await self._worker.wait()

    async def _replace(self, error: WorkerError) -> None:
        """Take a new worker, once; raise the error if that was done already."""
        if self._retried:
            raise error
        self._retried = True
        self._worker = await self._another()


def _may_have_ended_it(body: dict[str, Any], error: WorkerError) -> bool:
    """Whether a request carries what makes native code recurse or grow: it would end the next engine too."""
    return not error.was_waiting and not _SUSPECT.isdisjoint(body)


_SUSPECT = frozenset({"grammar", "json_schema", "response_format", "tools"})
