"""Asking an engine: a prompt is sent, made plainer or shorter where it is refused, until the answer has begun."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from kvant.errors import ApiError, ContextExceededError, EngineReplyError, TemplateRefusedError
from kvant.generate.chunks import Piece, chat_piece, refusal, text_piece
from kvant.generate.engine import apply_template, asked, tokenize
from kvant.generate.prompt import CHAT, Chat, Prompt, Text, Turns
from kvant.runtime.server.workers import Worker

MAX_TRIES = 32
PromptT = TypeVar("PromptT", bound=Prompt)


@dataclass(slots=True)
class Begun(Generic[PromptT]):
    """An answer whose first event is there.

    Attributes:
        prompt: What was asked in the end.
        is_chat: Whether events are those of a chat.
        truncated: Whether the prompt was shortened.
        tokens: The prompt, where it was sent as tokens.
    """

    prompt: PromptT
    is_chat: bool
    truncated: bool
    tokens: list[int] | None
    _first: bytes
    _rest: AsyncIterator[bytes]

    async def payloads(self) -> AsyncIterator[bytes]:
        """Yield the engine's events as they come.

        Raises:
            ApiError: The engine failed in the middle.
        """
        yield self._first
        async for payload in self._rest:
            yield _sound(payload)

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield what the events add."""
        async for payload in self.payloads():
            yield self.read(self.without_joiner(payload))

    def read(self, payload: bytes) -> Piece:
        """Return what an event adds."""
        return chat_piece(payload) if self.is_chat else text_piece(payload)

    def without_joiner(self, payload: bytes) -> bytes:
        """Return an event as it would be had nothing been put into the conversation; see `plain`."""
        joiner = self.prompt.joiner if isinstance(self.prompt, Chat) else ""
        return payload.replace(joiner.encode(), b"") if joiner else payload

    async def aclose(self) -> None:
        """Stop the engine."""
        await self._rest.aclose()  # type: ignore[attr-defined]


async def ask(
    prompt: PromptT, worker: Worker, turns: Turns, *, shorten: bool = False, n_trained: int = 0, **more: Any
) -> Begun[PromptT]:
    """Ask an engine and wait for its first event; close what is returned.

    Args:
        prompt: What is asked.
        worker: The engine.
        turns: Does what the prompt could prolong.
        shorten: Leave out the oldest of a prompt that does not fit.
        n_trained: Tokens that the model can at most; 0 where that is not known.
        more: Told to the engine beside the prompt.

    Raises:
        ApiError: The engine refused.
        WorkerError: The engine crashed.
    """
    truncated = False
    for _ in range(MAX_TRIES):
        events = None
        try:
            path, body = await prompt.request(worker, turns)
            events = worker.stream(path, body | more)
            first = _sound(await anext(events))
            tokens = body["prompt"] if isinstance(body.get("prompt"), list) else None
            return Begun(prompt, path == CHAT, truncated, tokens, first, events)
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
            reason.n_trained = n_trained
            other = await prompt.shorter(reason, worker) if shorten else None
            truncated = True
        elif isinstance(reason, TemplateRefusedError):
            other = prompt.plainer()
        if other is None:
            raise reason
        prompt = other
    raise reason


async def count(prompt: Prompt, worker: Worker, turns: Turns) -> int:
    """Return the tokens of a prompt, as the engine would read it.

    Raises:
        ApiError: The chat template refuses the conversation.
    """
    try:
        _, made = await prompt.request(worker, turns)
        more = {name: made[name] for name in ("tools", "chat_template_kwargs") if name in made}
        if isinstance(prompt, Chat) and prompt.media:
            counted = await asked(worker, f"{CHAT}/input_tokens", {"messages": prompt.messages} | more)
            return int(counted["input_tokens"])
        if "prompt" in made:  # rendered already
            return len(made["prompt"])
        text = await apply_template(worker, made["messages"], **more)
    except TemplateRefusedError:
        other = prompt.plainer()
        if other is None:
            raise
        return await count(other, worker, turns)
    return len(await tokenize(worker, text, special=False))


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
