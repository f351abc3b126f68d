"""A request's way through the gateway: lease a worker, ask the engine, count, give the pieces on."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from starlette.requests import Request

from kvant.errors import EngineReplyError
from kvant.serve.api.chat import CHAT, MAX_TRIES, Prompt
from kvant.serve.api.chunks import Piece, chat_piece, refusal, text_piece
from kvant.serve.api.failure import ContextExceededError
from kvant.serve.api.wire import gateway
from kvant.serve.library import ModelFile

if TYPE_CHECKING:
    from kvant.serve.lease import Lease


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
    """

    request: Request
    file: ModelFile
    prompt: Prompt
    context: int | None = None
    keep_alive: float | None = None
    truncate: bool = False


@dataclass(slots=True)
class Answering:
    """An answer that has begun: its first event is there.

    Attributes:
        lease: The hold on the worker.
        chat: Whether events are those of a chat, to be passed on as they are.
        truncated: Whether the prompt was shortened.
    """

    lease: "Lease"
    chat: bool
    truncated: bool
    _first: bytes
    _rest: AsyncIterator[bytes]

    async def payloads(self) -> AsyncIterator[bytes]:
        """Yield the engine's events.

        Raises:
            ApiError: The engine failed in the middle.
        """
        yield _sound(self._first)
        async for payload in self._rest:
            yield _sound(payload)

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield what the events add."""
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
        scheduler = gateway(job.request).scheduler
        lease = await stack.enter_async_context(
            scheduler.lease(job.file, caller=caller(job.request), context=job.context, keep_alive=job.keep_alive)
        )
        prompt, truncated = job.prompt, False
        for _ in range(MAX_TRIES):
            path, body = await prompt.request(lease.worker)
            events = lease.worker.stream(path, body)
            try:
                first = _sound(await anext(events))
                break
            except EngineReplyError as error:
                reason = refusal(error.status, error.body)
            except ContextExceededError as error:
                reason = error
            except StopAsyncIteration:
                reason = refusal(500, {"error": "ended without an answer"})
            await events.aclose()  # type: ignore[attr-defined]
            shorter = None
            if job.truncate and isinstance(reason, ContextExceededError):
                shorter = await prompt.shorter(reason, lease.worker)
            if shorter is None:
                raise reason
            prompt, truncated = shorter, True
        else:
            raise reason
        stack.push_async_callback(events.aclose)  # type: ignore[attr-defined]
        yield Answering(lease, path == CHAT, truncated, first, events)


def _sound(payload: bytes) -> bytes:
    """Return an event that is no error."""
    if payload.startswith(b'{"error"'):
        raise refusal(500, msgspec.json.decode(payload))
    return payload


def caller(request: Request) -> str:
    """Return who asks, for fairness: the key's name, or the address."""
    principal = getattr(request.state, "principal", None)
    if principal is not None:
        return str(principal.name)
    return request.client.host if request.client else ""
