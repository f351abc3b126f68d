"""What llama.cpp's server sends, as typed messages: chunks of a chat and of a completion, told as one kind of piece.

Source: llama.cpp tools/server/README.md; every field read here was seen in its answers.
"""

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from kvant.documents import JSON_ERRORS
from kvant.errors import ApiError, ContextExceededError, EngineError, TemplateRefusedError


class TopLogprob(msgspec.Struct):
    """A token and how probable it was."""

    token: str
    logprob: float
    bytes: list[int] = []


class TokenLogprob(msgspec.Struct):
    """A token, how probable it was, and what else could have stood there."""

    token: str
    logprob: float
    bytes: list[int] = []
    top_logprobs: list[TopLogprob] = []


class Logprobs(msgspec.Struct):
    """Probabilities of a piece's tokens."""

    content: list[TokenLogprob] = []


class FunctionDelta(msgspec.Struct):
    """Part of a call of a function."""

    name: str | None = None
    arguments: str = ""


class ToolDelta(msgspec.Struct):
    """Part of a call of a tool."""

    index: int = 0
    id: str | None = None
    function: FunctionDelta = msgspec.field(default_factory=FunctionDelta)


class Delta(msgspec.Struct):
    """What a chat's chunk adds."""

    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolDelta] = []


class Choice(msgspec.Struct):
    """The one answer of a chat's chunk."""

    delta: Delta = msgspec.field(default_factory=Delta)
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class PromptDetails(msgspec.Struct):
    """Tokens that did not have to be read again."""

    cached_tokens: int = 0


class Usage(msgspec.Struct):
    """Tokens of prompt and answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptDetails = msgspec.field(default_factory=PromptDetails)


class Timings(msgspec.Struct):
    """Milliseconds of prompt and answer."""

    prompt_ms: float = 0.0
    predicted_ms: float = 0.0
    cache_n: int = 0


class Progress(msgspec.Struct):
    """How much of a prompt the engine has read, tokens; `cache` of them it knew already."""

    total: int = 0
    cache: int = 0


class Verbose(msgspec.Struct):
    """What the engine tells at the end when asked to be verbose."""

    prompt: str = ""
    stopping_word: str = ""


class ChatChunk(msgspec.Struct):
    """An event of /v1/chat/completions."""

    choices: list[Choice] = []
    usage: Usage | None = None
    timings: Timings | None = None
    prompt_progress: Progress | None = None
    verbose: Verbose | None = msgspec.field(default=None, name="__verbose")


class TextChunk(msgspec.Struct):
    """An event of /completion and /infill."""

    content: str = ""
    tokens: list[int] = []
    stop: bool = False
    stop_type: str = ""
    stopping_word: str = ""
    prompt: str | list[int] = ""
    tokens_evaluated: int = 0
    tokens_predicted: int = 0
    timings: Timings | None = None
    prompt_progress: Progress | None = None
    completion_probabilities: list[TokenLogprob] = []


class Piece(msgspec.Struct):
    """What one event adds to an answer, whatever route of the engine it came from.

    Attributes:
        text: Text of the answer.
        reasoning: Text of its thinking.
        tools: Parts of tool calls.
        logprobs: Probabilities of its tokens.
        finish: `stop`, `length` or `tool_calls` at the end.
        stop_word: Stop sequence that ended it.
        prompt: The prompt as rendered, told at the end if asked for.
        usage: Tokens, told at the end.
        timings: Milliseconds, told at the end.
        progress: How far the prompt is read, told before the first token.
    """

    text: str = ""
    reasoning: str = ""
    tools: list[ToolDelta] = []
    logprobs: list[TokenLogprob] = []
    finish: str | None = None
    stop_word: str | None = None
    prompt: str | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    progress: Progress | None = None


def is_progress(payload: bytes) -> bool:
    """Whether an event tells how far the prompt is read, and nothing of the answer."""
    return payload.endswith(b"}}") and b',"prompt_progress":{"' in payload[-_PROGRESS_BYTES:]


_PROGRESS_BYTES = 200
_chat = msgspec.json.Decoder(ChatChunk).decode
_text = msgspec.json.Decoder(TextChunk).decode


def chat_piece(payload: bytes) -> Piece:
    """Read an event of a chat.

    Raises:
        EngineError: It is not what was agreed.
    """
    chunk = _decoded(_chat, payload)
    choice = chunk.choices[0] if chunk.choices else Choice()
    verbose = chunk.verbose
    return Piece(
        text=choice.delta.content or "",
        reasoning=choice.delta.reasoning_content or "",
        tools=choice.delta.tool_calls,
        logprobs=choice.logprobs.content if choice.logprobs else [],
        finish=choice.finish_reason,
        stop_word=verbose.stopping_word or None if verbose else None,
        prompt=verbose.prompt if verbose else None,
        usage=chunk.usage,
        timings=chunk.timings,
        progress=chunk.prompt_progress,
    )


def text_piece(payload: bytes) -> Piece:
    """Read an event of a completion.

    Raises:
        EngineError: It is not what was agreed.
    """
    chunk = _decoded(_text, payload)
    if not chunk.stop:
        return Piece(
            text=chunk.content, logprobs=chunk.completion_probabilities, progress=chunk.prompt_progress
        )  # fmt: skip
    n_prompt, n_made = chunk.tokens_evaluated, chunk.tokens_predicted
    cached = chunk.timings.cache_n if chunk.timings else 0
    return Piece(
        text=chunk.content,
        logprobs=chunk.completion_probabilities,
        finish="length" if chunk.stop_type == "limit" else "stop",
        stop_word=chunk.stopping_word or None,
        prompt=chunk.prompt if isinstance(chunk.prompt, str) else None,
        usage=Usage(n_prompt, n_made, n_prompt + n_made, PromptDetails(cached)),
        timings=chunk.timings,
    )


def _decoded(decode: Any, payload: bytes) -> Any:
    try:
        return decode(payload)
    except JSON_ERRORS as error:
        raise EngineError(f"engine: sent what is not understood ({error}). Report it with the model.") from None


_OF_MEDIA = {
    "Failed to load image or audio file": (
        "messages: a picture or sound is damaged, or of a form that the engine does not decode. Save it as PNG, JPEG "
        "or WAV again."
    ),
    "Failed to tokenize prompt": (
        "messages: the model's chat template leaves out a picture or sound, or its vocabulary has no place for one. "
        "Use a model made for them, or send text alone."
    ),
}
"""What the engine says of pictures and sounds, and what that means to a client."""


def refusal(status: int, answer: Any) -> ApiError:
    """Return what an engine's error means to a client.

    Args:
        status: HTTP status of the engine's answer.
        answer: Its body, decoded.
    """
    error = answer.get("error") if isinstance(answer, dict) else None
    error = error if isinstance(error, dict) else {"message": str(error or answer)[:500]}
    message = str(error.get("message", "no reason given")).strip().rstrip(".")
    kind = error.get("type")
    if kind == "exceed_context_size_error":
        return ContextExceededError(int(error.get("n_prompt_tokens", 0)), int(error.get("n_ctx", 0)))
    if "raise_exception" in message and 400 <= status < 600:
        return TemplateRefusedError(f"engine: {message}. Mend the request.", code="invalid_request")
    if message in _OF_MEDIA:
        return ApiError(_OF_MEDIA[message], code="invalid_media", param="messages")
    code = error.get("code")
    status = code if isinstance(code, int) and 400 <= code < 600 else status
    if status == 501:
        return ApiError(f"engine: {message}. Use another model.", code="not_supported")
    if 400 <= status < 500 or "too large to process" in message:
        return ApiError(f"engine: {message}. Mend the request.", code="invalid_request")
    return ApiError(f"engine: {message}. Try again; see the gateway's log.", status=max(status, 500), code="engine")


class Whole(msgspec.Struct):
    """A whole answer, gathered from its pieces; see `Piece`."""

    text: str = ""
    reasoning: str = ""
    calls: list[ToolDelta] = []
    logprobs: list[TokenLogprob] = []
    finish: str = "stop"
    stop_word: str | None = None
    prompt: str | None = None
    usage: Usage = msgspec.field(default_factory=Usage)
    timings: Timings = msgspec.field(default_factory=Timings)

    def add(self, piece: Piece) -> None:
        """Take the end of an answer and its tool calls; `gather` takes the text too."""
        for part in piece.tools:
            add_call(self.calls, part)
        self.finish = piece.finish or self.finish
        self.stop_word = piece.stop_word or self.stop_word
        self.prompt = piece.prompt if piece.prompt is not None else self.prompt
        self.usage = piece.usage or self.usage
        self.timings = piece.timings or self.timings


def add_call(calls: list[ToolDelta], part: ToolDelta) -> None:
    """Add part of a tool call to those that have begun."""
    for call in calls:
        if call.index == part.index:
            call.function.name = call.function.name or part.function.name
            call.function.arguments += part.function.arguments
            return
    calls.append(ToolDelta(part.index, part.id, FunctionDelta(part.function.name, part.function.arguments)))


async def gather(pieces: AsyncIterator[Piece]) -> Whole:
    """Return a whole answer."""
    whole = Whole()
    texts, thoughts = [], []
    async for piece in pieces:
        texts.append(piece.text)
        thoughts.append(piece.reasoning)
        whole.logprobs += piece.logprobs
        whole.add(piece)
    whole.text, whole.reasoning = "".join(texts), "".join(thoughts)
    return whole
