"""A request's way through the gateway: lease a worker, ask the engine, count, give the pieces on.

A stream is asked for with word of how far the prompt is read. The engine sends the first of it as soon as it has taken
the request, so that the answer's head can go out while what cannot be answered is still refused with a status.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.requests import Request

from kvant.generate.asking import Begun, ask
from kvant.generate.chunks import Piece, Usage, chat_piece, is_progress, text_piece
from kvant.generate.prompt import Prompt
from kvant.serve.api.answer import Output
from kvant.serve.api.forced import forced_call
from kvant.serve.api.guard import guarded
from kvant.serve.api.wire import caller, share
from kvant.serve.gateway import gateway
from kvant.serve.lease import Lease
from kvant.serve.library import ModelFile
from kvant.serve.metrics import RequestTimer

HEAD_S = 2.0
"""A stream's head waits so long for the engine's first word, which may be a refusal with a status of its own."""

_TOKEN = b'{"choices":[{"finish_reason":null,'
_ROLE = _TOKEN + b'"index":0,"delta":{"role"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be done.

    Attributes:
        request: The HTTP request.
        file: The model.
        prompt: What it is asked.
        context: Tokens of context asked for.
        keep_alive: Seconds that the model stays loaded.
        truncate: Whether the client asked for a prompt that does not fit to be shortened.
        stream: Whether the answer is told while it is made.
    """

    request: Request
    file: ModelFile
    prompt: Prompt
    context: int | None = None
    keep_alive: float | None = None
    truncate: bool = False
    stream: bool = False


@dataclass(slots=True)
class Answering:
    """An answer that has begun: its first event is there.

    Attributes:
        lease: The hold on the worker.
        begun: The answer.
    """

    lease: Lease
    begun: Begun[Prompt]
    _meter: "Meter"

    @property
    def chat(self) -> bool:
        """Whether events are those of a chat, to be passed on as they are."""
        return self.begun.is_chat

    @property
    def truncated(self) -> bool:
        """Whether the prompt was shortened."""
        return self.begun.truncated

    @property
    def tokens(self) -> list[int] | None:
        """The prompt, where it was sent as tokens."""
        return self.begun.tokens

    async def payloads(self) -> AsyncIterator[bytes]:
        """Yield the engine's events.

        Raises:
            ApiError: The engine failed in the middle.
        """
        async for payload in self.begun.payloads():
            self._meter.see(payload)
            yield self.begun.without_joiner(payload)
        self._meter.end()

    def pieces(self) -> AsyncIterator[Piece]:
        """Yield what the events add."""
        forced = self.begun.prompt.forced
        return forced_call(self._read(), forced) if forced else self._read()

    async def _read(self) -> AsyncIterator[Piece]:
        async for payload in self.payloads():
            yield self.begun.read(payload)


@contextlib.asynccontextmanager
async def answering(job: Job) -> AsyncIterator[Answering]:
    """Ask the engine and wait for its first event; leaving stops the engine and gives the worker back.

    Raises:
        ApiError: The engine refused.
        KvantError: No worker could be had.
    """
    async with contextlib.AsyncExitStack() as stack:
        here = gateway(job.request)
        timer = stack.enter_context(here.metrics.request(job.file.name))
        scheduler = here.scheduler
        lease = await stack.enter_async_context(
            scheduler.lease(job.file, caller=caller(job.request), context=job.context, keep_alive=job.keep_alive)
        )
        begun = await ask(
            await guarded(job.prompt, job.file, lease.worker, here), lease.worker, share(job.request),
            shorten=job.truncate, n_trained=job.file.facts.context_length,
            **({"return_progress": True} if job.stream else {}),
        )  # fmt: skip
        stack.push_async_callback(begun.aclose)
        yield Answering(lease, begun, Meter(timer, chat=begun.is_chat))


@contextlib.asynccontextmanager
async def streaming(job: Job, out: Output, media_type: str) -> AsyncIterator[Answering]:
    """Ask the engine as `answering` does, and send the answer's head: when it has begun, or after `HEAD_S`.

    An error before the head has the status of its own, one after it ends the stream as its API says. There is one head,
    also of a stream that holds several answers.

    Raises:
        ApiError: The engine refused.
        KvantError: No worker could be had.
    """
    is_due = False

    async def in_time() -> None:
        nonlocal is_due
        await asyncio.sleep(HEAD_S)
        is_due = True
        if not out.started:
            await out.start(media_type)
        await out.ping()

    early = asyncio.create_task(in_time())
    try:
        async with answering(job) as answer:
            if is_due:
                await early  # a head that is being sent is not broken off
            else:
                early.cancel()
                if not out.started:
                    await out.start(media_type)
            yield answer
    finally:
        early.cancel()
        await asyncio.gather(early, return_exceptions=True)


class Meter:
    """Counts tokens by the engine's events without reading them: by how they begin, which was seen in its answers.

    Args:
        timer: What is told.
        chat: Whether the events are those of a chat.
    """

    def __init__(self, timer: RequestTimer, *, chat: bool) -> None:
        self._timer, self._chat = timer, chat
        self._reason = "stop"
        self._usage = Usage()

    def see(self, payload: bytes) -> None:
        """Count an event."""
        if is_progress(payload):
            return
        if not self._chat:
            if b'"stop":false' in payload:
                self._timer.token()
            else:
                piece = text_piece(payload)
                self._reason, self._usage = piece.finish or "stop", piece.usage or Usage()
        elif payload.startswith(_TOKEN):
            if not payload.startswith(_ROLE):
                self._timer.token()
        else:
            piece = chat_piece(payload)
            self._reason, self._usage = piece.finish or self._reason, piece.usage or self._usage

    def end(self) -> None:
        """Tell that the answer is whole."""
        usage = self._usage
        self._timer.finish(
            self._reason, prompt_tokens=usage.prompt_tokens, generated_tokens=usage.completion_tokens or None
        )
