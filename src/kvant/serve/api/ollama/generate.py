"""Ollama's own API: /api/generate and /api/chat, as lines of JSON or as one answer.

Source: Ollama 0.32 server/routes.go, docs/api/errors.mdx.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kvant.documents import JSON_ERRORS
from kvant.errors import ApiError
from kvant.generate.chunks import Piece, ToolDelta, Whole
from kvant.generate.engine import tokenize
from kvant.generate.media import content_of, picture
from kvant.generate.prompt import Chat, Format, Text, opened
from kvant.generate.sampling import OLLAMA_DEFAULTS, context_wanted, engine_options, unknown
from kvant.serve.api.answer import Answer, Output
from kvant.serve.api.formats import settled
from kvant.serve.api.keepalive import seconds
from kvant.serve.api.media import seen
from kvant.serve.api.ollama.library import find
from kvant.serve.api.ollama.types import (
    ChatRequest,
    ChatResponse,
    FunctionCall,
    GenerateRequest,
    GenerateResponse,
    Message,
    ToolCall,
)
from kvant.serve.api.run import Answering, Job, answering, streaming
from kvant.serve.api.wire import caller, check, note_ignored, read
from kvant.serve.endpoints import NDJSON
from kvant.serve.gateway import gateway
from kvant.serve.library import ModelFile
from kvant.serve.require import require
from kvant.serve.wording import OLLAMA

MAX_TOP_LOGPROBS = 20
ROLES = ("system", "user", "assistant", "tool")
_encode = msgspec.json.Encoder().encode


def now() -> str:
    """Return the time as Ollama writes it: RFC 3339, UTC, nanoseconds."""
    ns = time.time_ns()
    return f"{datetime.fromtimestamp(ns // 10**9, UTC):%Y-%m-%dT%H:%M:%S}.{ns % 10**9:09d}Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What tells /api/chat and /api/generate apart.

    Attributes:
        name: Model, as the client calls it.
        line: Makes a line of text, thinking, logprobs and tool calls.
        last: Makes the last line.
        context: Whether the last line tells the conversation's tokens.
    """

    name: str
    line: Callable[..., bytes]
    last: Callable[..., bytes]
    context: bool = False


async def generate(request: Request) -> Response:
    """POST /api/generate: continue a text, or answer it."""
    body = await read(request, GenerateRequest)
    file = await find(request, body.model)
    keep_alive = seconds(body.keep_alive)
    shape = _generate_shape(body.model, context=not (body.raw or body.suffix or body.images))
    plain = not (body.prompt or body.suffix or body.context)
    if plain and not body.images:
        return _only_load(request, file, shape, body.options, keep_alive, stream=body.stream is not False)
    require(file)
    _check_common(request, file, body)
    _check_tokens(body.context or [])
    check(not (body.images and (body.raw or body.suffix)),
          "images: have no place in raw mode and beside a suffix. Leave them out.", "images")  # fmt: skip
    check(not (body.raw and (body.template or body.system or body.context)),
          "raw mode does not support template, system, or context")  # fmt: skip
    prompt = await settled(request, await seen(request, file, _generate_prompt(body, file)))
    job = Job(
        request=request, file=file, prompt=prompt, keep_alive=keep_alive,
        context=context_wanted(file.settings.parameters, body.options or {}), truncate=body.truncate is True,
        stream=body.stream is not False,
    )  # fmt: skip
    return _answer(job, shape, stream=body.stream is not False)


def _check_tokens(tokens: list[int]) -> None:
    wrong = [token for token in tokens if not 0 <= token < 1 << 31]
    check(
        not wrong,
        f"context: {str(wrong[0])[:40] if wrong else ''} is no token id. Give what an answer told.",
        "context",
    )


def _generate_prompt(body: GenerateRequest, file: ModelFile) -> Chat | Text:
    sampling = engine_options(OLLAMA_DEFAULTS, file.settings.parameters, body.options or {})
    wanted = _format(body.format)
    top = body.top_logprobs if body.logprobs else None
    if body.suffix:
        return Text(text=body.prompt, suffix=body.suffix, sampling=sampling, format=wanted, top_logprobs=top)
    if body.raw:
        return Text(text=body.prompt, sampling=sampling, format=wanted, top_logprobs=top)
    return Chat(
        messages=opened(
            [{"role": "user", "content": _content(body.prompt, body.images, "images")}], file.settings, body.system
        ),
        sampling=sampling, format=wanted, top_logprobs=top, verbose=True, context=body.context or [],
        template=body.template or file.settings.template, **_thinking(body.think),
    )  # fmt: skip


async def chat(request: Request) -> Response:
    """POST /api/chat: answer a conversation."""
    body = await read(request, ChatRequest)
    file = await find(request, body.model)
    keep_alive = seconds(body.keep_alive)
    shape = _chat_shape(body.model)
    if not body.messages:
        return _only_load(request, file, shape, body.options, keep_alive, stream=body.stream is not False)
    require(file, tools=bool(body.tools))
    _check_common(request, file, body)
    messages = [_engine_message(message, f"messages[{i}].images") for i, message in enumerate(body.messages)]
    prompt = Chat(
        messages=opened(messages, file.settings),
        sampling=engine_options(OLLAMA_DEFAULTS, file.settings.parameters, body.options or {}),
        tools=[msgspec.to_builtins(tool) for tool in body.tools or []],
        format=_format(body.format), top_logprobs=body.top_logprobs if body.logprobs else None,
        template=file.settings.template, **_thinking(body.think),
    )  # fmt: skip
    prompt = await settled(request, await seen(request, file, prompt))
    job = Job(
        request=request, file=file, prompt=prompt, keep_alive=keep_alive,
        context=context_wanted(file.settings.parameters, body.options or {}), truncate=body.truncate is True,
        stream=body.stream is not False,
    )  # fmt: skip
    return _answer(job, shape, stream=body.stream is not False)


def _check_common(request: Request, file: ModelFile, body: GenerateRequest | ChatRequest) -> None:
    note_ignored(request, unknown(body.options))
    check(0 <= body.top_logprobs <= MAX_TOP_LOGPROBS, "top_logprobs must be between 0 and 20", "top_logprobs")
    if body.think and "thinking" not in file.capabilities:
        raise ApiError(f'"{body.model}" does not support thinking', param="think")


def _thinking(think: bool | str | None) -> dict[str, Any]:
    if isinstance(think, str):
        return {"think": True, "effort": think}
    return {"think": think}


def _format(wanted: Any) -> Format:
    """Return what `format` asks for: nothing, `"json"`, or a JSON schema."""
    if wanted is None or wanted == "":
        return Format()
    if wanted == "json":
        return Format(schema={"type": "object"})
    if isinstance(wanted, dict):
        return Format(schema=wanted)
    raise ApiError(
        f"invalid format: {msgspec.json.encode(wanted)[:100].decode('utf-8', 'replace')}; "
        'expected "json" or a valid JSON Schema object',
        param="format",
    )


def _content(text: str, images: list[str] | None, where: str) -> str | list[dict[str, Any]]:
    """Return a message's content; its pictures come first, as in Ollama's own prompts."""
    return content_of([*(picture(image, f"{where}[{i}]", plain=True) for i, image in enumerate(images or [])), text])


def _engine_message(message: Message, where: str) -> dict[str, Any]:
    check(message.role in ROLES, f'invalid role: "{message.role[:100]}". Use one of {", ".join(ROLES)}.', "messages")
    made: dict[str, Any] = {"role": message.role, "content": _content(message.content, message.images, where)}
    if message.thinking:
        made["reasoning_content"] = message.thinking
    if message.tool_calls:
        made["tool_calls"] = [
            {
                "id": call.id or f"call_{i}", "type": "function",
                "function": {
                    "name": call.function.name, "arguments": msgspec.json.encode(call.function.arguments).decode()
                },
            }
            for i, call in enumerate(message.tool_calls)
        ]  # fmt: skip
    if message.role == "tool":
        made["tool_call_id"] = message.tool_call_id or "call_0"
        if message.tool_name:
            made["name"] = message.tool_name
    return made


# Answers


def _generate_shape(name: str, *, context: bool) -> Shape:
    def line(text: str, thinking: str, logprobs: Any, _calls: Any = None) -> bytes:
        return _encode(
            GenerateResponse(
                model=name, created_at=now(), response=text, thinking=thinking or None, done=False,
                logprobs=logprobs or None,
            )
        )  # fmt: skip

    def last(reason: str, text: str = "", thinking: str = "", **more: Any) -> bytes:
        more.pop("calls", None)
        return _encode(
            GenerateResponse(
                model=name, created_at=now(), response=text, thinking=thinking or None, done=True, done_reason=reason,
                **more,
            )
        )  # fmt: skip

    return Shape(name=name, line=line, last=last, context=context)


def _chat_shape(name: str) -> Shape:
    def message(text: str, thinking: str, calls: list[ToolCall] | None) -> dict[str, Any]:
        made: dict[str, Any] = {"role": "assistant", "content": text}
        if thinking:
            made["thinking"] = thinking
        if calls:
            made["tool_calls"] = calls
        return made

    def line(text: str, thinking: str, logprobs: Any, calls: list[ToolCall] | None = None) -> bytes:
        return _encode(
            ChatResponse(
                model=name, created_at=now(), message=message(text, thinking, calls), done=False,
                logprobs=logprobs or None,
            )
        )  # fmt: skip

    def last(reason: str, text: str = "", thinking: str = "", calls: Any = None, **more: Any) -> bytes:
        more.pop("context", None)
        return _encode(
            ChatResponse(
                model=name, created_at=now(), message=message(text, thinking, calls), done=True, done_reason=reason,
                **more,
            )
        )  # fmt: skip

    return Shape(name=name, line=line, last=last)


def _answer(job: Job, shape: Shape, *, stream: bool) -> Answer:
    async def run(out: Output) -> None:
        begun = time.perf_counter_ns()
        async with streaming(job, out, NDJSON) if stream else answering(job) as answer:
            whole, texts, thoughts, probs = Whole(), [], [], []
            async for piece in answer.pieces():
                whole.add(piece)
                texts.append(piece.text)
                if stream and (piece.text or piece.reasoning):
                    await out.write(shape.line(piece.text, piece.reasoning, _logprobs(piece, job)) + b"\n")
                elif not stream:
                    thoughts.append(piece.reasoning)
                    probs += _logprobs(piece, job)
            more = _measures(whole, answer, begun)
            if shape.context and whole.prompt is not None:
                more["context"] = await _context(answer, whole.prompt, "".join(texts))
        calls = _calls(whole.calls)
        reason = "length" if whole.finish == "length" else "stop"
        if stream:
            if calls:
                await out.write(shape.line("", "", None, calls) + b"\n")
            await out.write(shape.last(reason, **more) + b"\n")
        else:
            text, thinking = "".join(texts), "".join(thoughts)
            await out.whole(shape.last(reason, text, thinking, calls=calls, logprobs=probs or None, **more))

    return Answer(run, OLLAMA)


async def _context(answer: Answering, prompt: str, text: str) -> list[int]:
    """Return the tokens of a conversation: the prompt as it was sent, and the answer, which is text."""
    worker = answer.lease.worker
    sent = answer.tokens if answer.tokens is not None else await tokenize(worker, prompt, special=False)
    return sent + await tokenize(worker, text, special=False, parse=False)


def _logprobs(piece: Piece, job: Job) -> list[Any]:
    wanted = getattr(job.prompt, "top_logprobs", None)
    if wanted == 0:  # the engine was asked for one, since it tells none without
        for item in piece.logprobs:
            item.top_logprobs = []
    return piece.logprobs if wanted is not None else []


def _measures(whole: Whole, answer: Answering, begun: int) -> dict[str, Any]:
    return {
        "total_duration": time.perf_counter_ns() - begun,
        "load_duration": int(answer.lease.load_s * 1e9),
        "prompt_eval_count": whole.usage.prompt_tokens,
        "prompt_eval_duration": int(whole.timings.prompt_ms * 1e6),
        "eval_count": whole.usage.completion_tokens,
        "eval_duration": int(whole.timings.predicted_ms * 1e6),
    }


def _calls(calls: list[ToolDelta]) -> list[ToolCall] | None:
    """Return tool calls in Ollama's form, whose arguments are objects."""
    made = []
    for call in calls:
        try:
            arguments = msgspec.json.decode(call.function.arguments or "{}", type=dict[str, Any])
        except JSON_ERRORS:  # the answer ended in the middle of it
            continue
        function = FunctionCall(name=call.function.name or "unknown", arguments=arguments, index=call.index)
        made.append(ToolCall(function=function, id=call.id))
    return made or None


def _only_load(
    request: Request, file: ModelFile, shape: Shape, options: dict[str, Any] | None, keep_alive: float | None,
    *, stream: bool,
) -> Answer:  # fmt: skip
    """Answer a request without a prompt: it loads the model, or unloads it with `keep_alive` 0."""
    context = context_wanted(file.settings.parameters, options or {})

    async def run(out: Output) -> None:
        scheduler = gateway(request).scheduler
        if keep_alive == 0:
            await scheduler.unload(file.name)
            line = shape.last("unload")
        else:
            async with scheduler.lease(file, caller=caller(request), context=context, keep_alive=keep_alive):
                line = shape.last("load")
        if stream:
            await out.start(NDJSON)
            await out.write(line + b"\n")
        else:
            await out.whole(line)

    return Answer(run, OLLAMA)
