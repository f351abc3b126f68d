"""A request's way through the gateway: lease a worker, ask the engine, count, give the pieces on.

A stream is asked for with word of how far the prompt is read. The engine sends the first of it as soon as it has taken
the request, so that the answer's head can go out while what cannot be answered is still refused with a status.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec
from starlette.requests import Request

from kvant.errors import EngineReplyError
from kvant.serve.api.answer import Output
from kvant.serve.api.chat import CHAT, MAX_TRIES, Chat, Prompt, Text
from kvant.serve.api.chunks import Piece, Usage, chat_piece, is_progress, refusal, text_piece
from kvant.serve.api.forced import forced_call
from kvant.serve.api.guard import guarded
from kvant.serve.api.wire import caller, share
from kvant.serve.failure import ApiError, ContextExceededError, TemplateRefusedError
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
        chat: Whether events are those of a chat, to be passed on as they are.
        truncated: Whether the prompt was shortened.
        tokens: The prompt, where it was sent as tokens.
    """

    lease: Lease
    chat: bool
    truncated: bool
    tokens: list[int] | None
    _first: bytes
    _rest: AsyncIterator[bytes]
    _meter: "Meter"
    _forced: list[str]
    _joiner: bytes

    async def payloads(self) -> AsyncIterator[bytes]:
        """Yield the engine's events.

        Raises:
            ApiError: The engine failed in the middle.
        """
        self._meter.see(self._first)
        yield self._without_joiner(self._first)
        async for payload in self._rest:
            self._meter.see(_sound(payload))
            yield self._without_joiner(payload)
        self._meter.end()

    def _without_joiner(self, payload: bytes) -> bytes:
        return payload.replace(self._joiner, b"") if self._joiner else payload

    def pieces(self) -> AsyncIterator[Piece]:
        """Yield what the events add."""
        return forced_call(self._read(), self._forced) if self._forced else self._read()

    async def _read(self) -> AsyncIterator[Piece]:
        read = chat_piece if self.chat else text_piece
        async for payload in self.payloads():
            yield read(payload)


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
        prompt, truncated = await guarded(job.prompt, job.file, lease.worker, here), False
        for _ in range(MAX_TRIES):
            events = None
            try:
                path, body = await prompt.request(lease.worker, share(job.request))
                if job.stream:
                    body["return_progress"] = True
                events = lease.worker.stream(path, body)
                first = _sound(await anext(events))
                break
            except EngineReplyError as error:
                reason = refusal(error.status, error.body)
            except ApiError as error:
                reason = _of_grammar(error, prompt)
            except StopAsyncIteration:
                reason = refusal(500, {"error": "ended without an answer"})
            if events is not None:
                await events.aclose()  # type: ignore[attr-defined]
            other = None
            if isinstance(reason, ContextExceededError):
                reason.n_trained = job.file.facts.context_length
                other = await prompt.shorter(reason, lease.worker) if job.truncate else None
                truncated = True
            elif isinstance(reason, TemplateRefusedError):
                other = prompt.plainer()
            if other is None:
                raise reason
            prompt = other
        else:
            raise reason
        stack.push_async_callback(events.aclose)  # type: ignore[attr-defined]
        joiner = prompt.joiner.encode() if isinstance(prompt, Chat) else b""
        tokens = body["prompt"] if isinstance(body.get("prompt"), list) else None
        yield Answering(
            lease,
            path == CHAT,
            truncated,
            tokens,
            first,
            events,
            Meter(timer, chat=path == CHAT),
            prompt.forced,
            joiner,
        )


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


def _of_grammar(error: ApiError, prompt: Prompt) -> ApiError:
    """Return an error of the engine's as one of the client's grammar, where that leads nowhere."""
    is_by_grammar = isinstance(prompt, Chat | Text) and prompt.format.grammar is not None
    if is_by_grammar and "empty grammar stack" in str(error):
        return ApiError(
            "grammar: comes to where no token of the model fits it, such as a class [z-a] or a token that is not "
            "there. Correct it.",
            code="invalid_grammar", param="grammar",
        )  # fmt: skip
    return error


def _sound(payload: bytes) -> bytes:
    """Return an event that is no error."""
    if payload.startswith(b'{"error"'):
        raise refusal(500, msgspec.json.decode(payload))
    return payload
