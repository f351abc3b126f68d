"""Anthropic's API: /v1/messages and /v1/messages/count_tokens.

Source: Anthropic's API reference ("Messages", "Streaming messages", "Errors").
"""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kvant.serve.api.answer import SSE, Answer, Dialect, Output
from kvant.serve.api.anthropic_types import Block, CountRequest, Message, MessagesRequest
from kvant.serve.api.chat import Chat, Format, apply_template, opened, require, tokenize
from kvant.serve.api.chunks import Piece, ToolDelta, Usage, Whole, gather
from kvant.serve.api.failure import ApiError, Failure
from kvant.serve.api.openai import new_id
from kvant.serve.api.run import Job, answering, caller
from kvant.serve.api.sampling import OPENAI_DEFAULTS, engine_options
from kvant.serve.api.wire import check, endpoint, gateway, model_file, read
from kvant.serve.library import ModelFile

_KINDS = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip
_encode = msgspec.json.Encoder().encode


def _error(failure: Failure) -> bytes:
    kind = _KINDS.get(failure.status, "invalid_request_error" if failure.status < 500 else "api_error")
    return _encode({"type": "error", "error": {"type": kind, "message": failure.message}})


ANTHROPIC = Dialect(failed=_error, broken=lambda failure: b"event: error\ndata: " + _error(failure) + b"\n\n")


@endpoint(ANTHROPIC)
async def messages(request: Request) -> Response:
    """POST /v1/messages."""
    body = await read(request, MessagesRequest)
    file = await model_file(request, body.model)
    check(body.max_tokens > 0, f"max_tokens: {body.max_tokens} is not positive.", "max_tokens")
    given = {"num_predict": body.max_tokens, "stop": body.stop_sequences, "temperature": body.temperature,
             "top_p": body.top_p, "top_k": body.top_k}  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    prompt = _prompt(body, file, engine_options(OPENAI_DEFAULTS, file.settings.parameters, given))
    job = Job(request=request, file=file, prompt=prompt)
    if body.stream:
        return Answer(lambda out: _stream(out, job, body), ANTHROPIC)
    return Answer(lambda out: _whole(out, job, body), ANTHROPIC)


@endpoint(ANTHROPIC)
async def count_tokens(request: Request) -> Response:
    """POST /v1/messages/count_tokens."""
    body = await read(request, CountRequest)
    file = await model_file(request, body.model)
    prompt = _prompt(body, file, {})

    async def run(out: Output) -> None:
        async with gateway(request).scheduler.lease(
            file, caller=caller(request), context=None, keep_alive=None
        ) as lease:
            _, made = await prompt.request(lease.worker, gateway(request).bounded)
            if "prompt" in made:  # rendered already
                n_tokens = len(made["prompt"])
            else:
                more = {"tools": made["tools"]} if "tools" in made else {}
                text = await apply_template(lease.worker, prompt.messages, **more)
                n_tokens = len(await tokenize(lease.worker, text, special=False))
        await out.whole({"input_tokens": n_tokens})

    return Answer(run, ANTHROPIC)


def _prompt(body: CountRequest, file: ModelFile, sampling: dict[str, Any]) -> Chat:
    choice = body.tool_choice.type if body.tool_choice else "auto"
    tools = [] if choice == "none" else body.tools or []
    require(file, tools=bool(tools))
    check(bool(body.messages), "messages: is empty. Send at least one.", "messages")
    if body.tool_choice and choice == "tool":
        tools = [tool for tool in tools if tool.name == body.tool_choice.name]
        check(bool(tools), f"tool_choice: {str(body.tool_choice.name)[:100]!r} is not among the tools.", "tool_choice")
    for tool in tools:
        check(
            tool.input_schema is not None, f"tools: {tool.name[:100]!r} is a tool of Anthropic's own servers.", "tools"
        )
    converted = [made for message in body.messages for made in _engine_messages(message, file)]
    system = None if body.system is None else _text(body.system, file)
    output = body.output_config
    once = body.tool_choice is not None and body.tool_choice.disable_parallel_tool_use
    return Chat(
        messages=opened(converted, file, system), sampling=sampling, tools=[
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema},
            }
            for tool in tools
        ],
        tool_choice="required" if choice in ("any", "tool") else "auto", parallel_tool_calls=False if once else None,
        think=None if body.thinking is None else body.thinking.type != "disabled", template=file.settings.template,
        format=Format(schema=output.format.schema) if output and output.format else Format(),
        effort=output.effort if output else None,
        verbose=True,
    )  # fmt: skip


def _text(content: str | list[Block], file: ModelFile) -> str:
    """Return the text of blocks.

    Raises:
        ApiError: One is no text.
    """
    if isinstance(content, str):
        return content
    for block in content:
        if block.type != "text":
            raise ApiError(
                f"messages: {file.name} does not support blocks of type {block.type[:100]!r} here: it is served "
                "without an encoder for them. Send text alone.",
                param="messages",
            )
    return "\n".join(block.text or "" for block in content)


def _engine_messages(message: Message, file: ModelFile) -> list[dict[str, Any]]:
    """Return a message as those that the engine is sent: every result of a tool is one of its own."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    results, texts, calls, thoughts = [], [], [], []
    for block in message.content:
        if block.type == "tool_result":
            content = _text(block.content or "", file)
            results.append({"role": "tool", "tool_call_id": block.tool_use_id or "", "content": content})
        elif block.type == "tool_use":
            arguments = _encode(block.input or {}).decode()
            function = {"name": block.name or "", "arguments": arguments}
            calls.append({"id": block.id or new_id("toolu"), "type": "function", "function": function})
        elif block.type == "thinking":
            thoughts.append(block.thinking or "")
        elif block.type != "redacted_thinking":
            texts.append(block)
    made: dict[str, Any] = {"role": message.role, "content": _text(texts, file)}
    if calls:
        made["tool_calls"] = calls
    if thoughts:
        made["reasoning_content"] = "\n".join(thoughts)
    return [*results, made] if texts or calls or thoughts or not results else results


# Answers


def _usage(usage: Usage) -> dict[str, int]:
    cached = usage.prompt_tokens_details.cached_tokens
    return {
        "input_tokens": usage.prompt_tokens - cached, "output_tokens": usage.completion_tokens,
        "cache_read_input_tokens": cached, "cache_creation_input_tokens": 0,
    }  # fmt: skip


def _stop(whole: Whole) -> dict[str, Any]:
    reason = "end_turn"
    if whole.finish == "length":
        reason = "max_tokens"
    elif whole.calls:
        reason = "tool_use"
    elif whole.stop_word:
        reason = "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": whole.stop_word if reason == "stop_sequence" else None}


def _use(call: ToolDelta) -> dict[str, Any]:
    try:
        arguments = msgspec.json.decode(call.function.arguments or "{}", type=dict[str, Any])
    except msgspec.MsgspecError:  # the answer ended in the middle of it
        arguments = {}
    return {
        "type": "tool_use", "id": call.id or new_id("toolu"), "name": call.function.name or "", "input": arguments
    }  # fmt: skip


def _message(body: MessagesRequest, content: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "id": new_id("msg"), "type": "message", "role": "assistant", "model": body.model, "content": content
    } | more  # fmt: skip


async def _whole(out: Output, job: Job, body: MessagesRequest) -> None:
    async with answering(job) as answer:
        whole = await gather(answer.pieces())
    content: list[dict[str, Any]] = []
    if whole.reasoning:
        content.append({"type": "thinking", "thinking": whole.reasoning, "signature": ""})
    if whole.text or not whole.calls:
        content.append({"type": "text", "text": whole.text})
    content += [_use(call) for call in whole.calls]
    await out.whole(_message(body, content, **_stop(whole), usage=_usage(whole.usage)))


async def _stream(out: Output, job: Job, body: MessagesRequest) -> None:
    async with answering(job) as answer:
        await out.start(SSE)
        async for event in _events(answer.pieces(), body):
            await out.write(event)


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + _encode({"type": kind} | fields) + b"\n\n"


async def _events(pieces: AsyncIterator[Piece], body: MessagesRequest) -> AsyncIterator[bytes]:
    """Yield the events of an answer; its blocks come one after the other."""
    whole, index, kind = Whole(), -1, ""
    start = _message(body, [], stop_reason=None, stop_sequence=None, usage=_usage(Usage()))
    yield _event("message_start", message=start)
    async for piece in pieces:
        whole.finish, whole.stop_word = piece.finish or whole.finish, piece.stop_word or whole.stop_word
        whole.usage = piece.usage or whole.usage
        for now, block, delta in _deltas(piece, whole.calls):
            if now != kind:
                if index >= 0:
                    yield _event("content_block_stop", index=index)
                index, kind = index + 1, now
                yield _event("content_block_start", index=index, content_block=block)
            if delta:
                yield _event("content_block_delta", index=index, delta=delta)
    if index >= 0:
        yield _event("content_block_stop", index=index)
    yield _event("message_delta", delta=_stop(whole), usage=_usage(whole.usage))
    yield _event("message_stop")


def _deltas(piece: Piece, calls: list[ToolDelta]) -> list[tuple[str, dict[str, Any], dict[str, Any] | None]]:
    """Return what a piece adds: which block, how the block begins, and the part of it."""
    found: list[tuple[str, dict[str, Any], dict[str, Any] | None]] = []
    if piece.reasoning:
        begin = {"type": "thinking", "thinking": "", "signature": ""}
        found.append(("thinking", begin, {"type": "thinking_delta", "thinking": piece.reasoning}))
    if piece.text:
        found.append(("text", {"type": "text", "text": ""}, {"type": "text_delta", "text": piece.text}))
    for part in piece.tools:
        if all(call.index != part.index for call in calls):
            calls.append(part)
        block: dict[str, Any] = {
            "type": "tool_use",
            "id": part.id or new_id("toolu"),
            "name": part.function.name or "",
            "input": {},
        }
        text = part.function.arguments
        delta = {"type": "input_json_delta", "partial_json": text} if text else None
        found.append((f"tool {part.index}", block, delta))
    return found


def routes() -> list[Route]:
    """Return the routes of this module."""
    return [
        Route("/v1/messages", messages, methods=["POST"]),
        Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
    ]
