"""Long work in a thread, told to a client as lines of JSON: one status after the other, the last one `success`.

An error before the first line is an HTTP status; after it, a line `{"error": ...}` ends the answer. A client that goes
away stops the work at its next step.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from kvant.errors import KvantError, QueueFullError
from kvant.progress import Progress
from kvant.serve.api.answer import BEAT_S, CUT, CUT_RETRY_S
from kvant.serve.endpoints import NDJSON
from kvant.serve.failure import describe
from kvant.serve.gate import Gate
from kvant.serve.wording import OLLAMA

STEPS = 100
"""Lines for one file, at most."""

Status = dict[str, Any]
Work = Callable[["Telling"], object]


class ClientGoneError(KvantError):
    """The client went away."""


class Telling(Progress):
    """Progress that becomes lines; called from the thread that works.

    Args:
        tell: Takes a line.

    Attributes:
        digests: Digest of a task's file, where it is known; clients draw one bar for each.
    """

    def __init__(self, tell: Callable[[Status], object]) -> None:
        self._tell = tell
        self._gone = threading.Event()
        self._tasks: dict[str, tuple[float, float, float]] = {}
        self.digests: Mapping[str, str] = {}

    def stop(self) -> None:
        """Let the work end at its next step."""
        self._gone.set()

    def status(self, text: str) -> None:
        """Send a status."""
        self._check()
        self._tell({"status": text})

    def start(self, task: str, total: float, unit: str) -> None:  # noqa: ARG002
        """Send that a task begins."""
        self._check()
        self._tasks[task] = (0.0, total, 0.0)
        self._send(task, 0.0, total)

    def advance(self, task: str, amount: float) -> None:
        """Send how far a task is, each time another hundredth is done."""
        self._check()
        done, total, told = self._tasks[task]
        done += amount
        if total and (done - told >= total / STEPS or (done >= total > told)):
            told = done
            self._send(task, done, total)
        self._tasks[task] = (done, total, told)

    def finish(self, task: str) -> None:
        """Forget a task."""
        self._tasks.pop(task, None)

    def say(self, message: str) -> None:
        """Send a message as a status."""
        self.status(message)

    def _send(self, task: str, done: float, total: float) -> None:
        digest = self.digests.get(task)
        status = f"pulling {digest[:12]}" if digest else task
        if task.startswith("Importing"):  # hashes every byte on the way
            status = "verifying sha256 digest"
        line: Status = {"status": status, "total": int(total), "completed": int(min(done, total))}
        self._tell(line | ({"digest": f"sha256:{digest}"} if digest else {}))

    def _check(self) -> None:
        if self._gone.is_set():
            raise ClientGoneError("client: went away. Ask again to continue.")


def ending_of(request: Request) -> asyncio.Event:
    """Return the event that is set when the gateway must end; one that never is, where nobody would say so."""
    ending: asyncio.Event = getattr(request.state, "ending", None) or asyncio.Event()
    return ending


async def answer(work: Work, gate: Gate, caller: str, *, stream: bool, ending: asyncio.Event | None = None) -> Response:
    """Do work in a thread and answer with its progress.

    Args:
        work: Told how to tell; what it returns is not looked at.
        gate: Where it waits for its turn.
        caller: Who asked.
        stream: Send lines as they come; otherwise the last one alone.
        ending: Set when the gateway must end; the work is then told to, and the answer ends with that word.

    Raises:
        KvantError: The work failed before it said anything, or at all where nothing is sent on the way.
    """
    lines = _lines(work, gate, caller, ending or asyncio.Event())
    if stream:
        return StreamingResponse(_encoded(await anext(lines), lines), media_type=NDJSON)
    return JSONResponse([line async for line in lines][-1])


async def _encoded(first: Status, lines: AsyncIterator[Status]) -> AsyncIterator[bytes]:
    """Yield lines as JSON; while there is none, a blank before the next one, which readers pass over."""
    line: Status | None = first
    try:
        while line is not None:
            yield msgspec.json.encode(line) + b"\n"
            coming: asyncio.Future[Status | None] = asyncio.ensure_future(_next(lines))
            try:
                while not (await asyncio.wait({coming}, timeout=BEAT_S))[0]:
                    yield b" "
            finally:
                coming.cancel()  # nothing happens to one that is there
            line = coming.result()
    except KvantError as error:
        yield OLLAMA.broken(describe(error))


async def _next(lines: AsyncIterator[Status]) -> Status | None:
    return await anext(lines, None)


async def _lines(work: Work, gate: Gate, caller: str, ending: asyncio.Event) -> AsyncIterator[Status]:
    """Yield the lines of work; it is told to stop when nobody takes them any more."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Status | KvantError | None] = asyncio.Queue()
    telling = Telling(lambda line: loop.call_soon_threadsafe(queue.put_nowait, line))

    def ended(task: asyncio.Task[object]) -> None:
        task.cancelled() or task.exception()  # looked at, though perhaps nobody waits
        loop.call_soon(queue.put_nowait, None)  # after the lines that its thread told

    task = asyncio.create_task(gate.run(caller, lambda: work(telling)))
    task.add_done_callback(ended)
    watch = asyncio.create_task(_put_when(ending, queue))
    try:
        while (line := await queue.get()) is not None:
            if isinstance(line, KvantError):
                raise line
            yield line
        await task
    finally:
        watch.cancel()
        telling.stop()
        task.cancel()  # what waits does not begin; what has begun was told to stop, and keeps its place until it has
    yield {"status": "success"}


async def _put_when(ending: asyncio.Event, queue: "asyncio.Queue[Status | KvantError | None]") -> None:
    await ending.wait()
    queue.put_nowait(QueueFullError(CUT, retry_after_s=CUT_RETRY_S))
