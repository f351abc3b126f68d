"""Anthropic's API: /v1/messages and /v1/messages/count_tokens.

Source: Anthropic's API reference ("Messages", "Streaming messages", "Errors").
"""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kvant.documents import JSON_ERRORS
from kvant.errors import ApiError
from kvant.generate.asking import count
from kvant.generate.chunks import Piece, PromptDetails, ToolDelta, Usage, Whole, gather
from kvant.generate.media import Media, content_of, picture
from kvant.generate.prompt import Chat, Format, opened
from kvant.generate.sampling import OPENAI_DEFAULTS, context_wanted, engine_options
from kvant.serve.api.answer import Answer, Output
from kvant.serve.api.anthropic.types import (
    Block,
    CountRequest,
    Message,
    MessagesRequest,
    OutputConfig,
    TokenCount,
    Tool,
)
from kvant.serve.api.calls import Choice, arguments_text, choice_of, offered
from kvant.serve.api.formats import settled
from kvant.serve.api.guard import guarded
from kvant.serve.api.ids import new_id
from kvant.serve.api.media import seen
from kvant.serve.api.run import Job, answering, streaming
from kvant.serve.api.wire import caller, check, model_file, note_ignored, read, share
from kvant.serve.endpoints import SSE
from kvant.serve.gateway import gateway
from kvant.serve.library import ModelFile
from kvant.serve.require import require
from kvant.serve.wording import ANTHROPIC

NOT_SHOWN = frozenset({
    "redacted_thinking", "server_tool_use", "web_search_tool_result", "web_fetch_tool_result",
    "code_execution_tool_result", "bash_code_execution_tool_result", "text_editor_code_execution_tool_result",
    "tool_search_tool_result", "mcp_tool_use", "mcp_tool_result",
})  # fmt: skip
"""Blocks of a history that hold what Anthropic's own servers did."""

BILLING = "x-anthropic-billing-header:"
"""How a block of instructions begins that is for Anthropic's servers."""

_ERROR = {"type": "text", "text": "Error: "}
_encode = msgspec.json.Encoder().encode


async def messages(request: Request) -> Response:
    """POST /v1/messages."""
    body = await read(request, MessagesRequest)
    file = await model_file(request, body.model)
    check(body.max_tokens > 0, f"max_tokens: {body.max_tokens} is not positive. Choose 1 or more.", "max_tokens")
    given = {"num_predict": body.max_tokens, "stop": body.stop_sequences, "temperature": body.temperature,
             "top_p": body.top_p, "top_k": body.top_k}  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    note_ignored(request, _left_out(body))
    sampling = engine_options(OPENAI_DEFAULTS, file.settings.parameters, given)
    prompt = await settled(request, await seen(request, file, _prompt(body, file, sampling)))
    job = Job(
        request=request, file=file, prompt=prompt, context=context_wanted(file.settings.parameters),
        stream=bool(body.stream),
    )  # fmt: skip
    if body.stream:
        return Answer(lambda out: _stream(out, job, body), ANTHROPIC)
    return Answer(lambda out: _whole(out, job, body), ANTHROPIC)


async def count_tokens(request: Request) -> Response:
    """POST /v1/messages/count_tokens."""
    body = await read(request, CountRequest)
    file = await model_file(request, body.model)
    note_ignored(request, _left_out(body))
    prompt = await settled(request, await seen(request, file, _prompt(body, file, {})))
    context = context_wanted(file.settings.parameters)

    async def run(out: Output) -> None:
        async with gateway(request).scheduler.lease(
            file, caller=caller(request), context=context, keep_alive=None
        ) as lease:
            safe = await guarded(prompt, file, lease.worker, gateway(request))
            assert isinstance(safe, Chat)
            n_tokens = await count(safe, lease.worker, share(request))
        await out.whole(TokenCount(n_tokens))

    return Answer(run, ANTHROPIC)


def _left_out(body: CountRequest) -> list[str]:
    """Return what of a request's parts is not for a model here."""
    names = [f"tools.{(tool.type or tool.name)}" for tool in body.tools or [] if tool.input_schema is None]
    if isinstance(body.system, list) and any(_is_billing(block) for block in body.system):
        names.append("system.x-anthropic-billing-header")
    return names


def _is_billing(block: Block) -> bool:
    return (block.text or "").startswith(BILLING)


def _prompt(body: CountRequest, file: ModelFile, sampling: dict[str, Any]) -> Chat:
    choice = choice_of(body.tool_choice.type, body.tool_choice.name) if body.tool_choice else Choice()
    tools, mode = offered([_function(tool) for tool in body.tools or [] if tool.input_schema is not None], choice)
    require(file, tools=bool(tools))
    check(bool(body.messages), "messages: is empty. Send at least one.", "messages")
    converted: list[dict[str, Any]] = []
    for i, message in enumerate(body.messages):
        converted += _engine_messages(message, file, f"messages[{i}]")
    system = body.system
    if isinstance(system, list):
        texts = [block for block in system if not _is_billing(block)]
        check(all(block.type == "text" for block in texts), "system: holds more than text. Send text alone.", "system")
        system = "\n".join(block.text or "" for block in texts)
    output = body.output_config
    once = body.tool_choice is not None and body.tool_choice.disable_parallel_tool_use
    return Chat(
        messages=opened(converted, file.settings, system), sampling=sampling, tools=tools, tool_choice=mode,
        parallel_tool_calls=False if once else None, think=thinks(body), template=file.settings.template,
        format=_format(output),
        effort=output.effort if output else None,
        verbose=True,
    )  # fmt: skip


def thinks(body: CountRequest) -> bool:
    """Whether a model is asked to think: Anthropic's models do so only where a request says it."""
    return body.thinking is not None and body.thinking.type != "disabled"


def _format(output: OutputConfig | None) -> Format:
    """Return what an answer must look like; there is no `strict` here, so what cannot be enforced is told."""
    if output is None or output.format is None:
        return Format()
    return Format(schema=output.format.schema, where="output_config.format.schema")


def _function(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {
        "name": tool.name,
        "description": tool.description or "",
        "parameters": tool.input_schema,
    }
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _content(content: str | list[Block], file: ModelFile, where: str) -> str | list[dict[str, Any]]:
    """Return what blocks say, with their pictures.

    Raises:
        ApiError: One is neither text nor a picture that can be taken.
    """
    if isinstance(content, str):
        return content
    return content_of([_part(block, file, where) for block in content])


def _part(block: Block, file: ModelFile, where: str) -> str | Media:
    if block.type == "text":
        return block.text or ""
    source = block.source if block.type == "image" and isinstance(block.source, dict) else {}
    for kind, key in (("base64", "data"), ("url", "url")):
        if source.get("type") == kind and isinstance(source.get(key), str):
            return picture(source[key], f"{where}.source", plain=kind == "base64")
    raise ApiError(
        f"messages: {file.name} does not support blocks of type {block.type[:100]!r} here. Send text, or images with a "
        "source of type base64.",
        param="messages",
    )


def _engine_messages(message: Message, file: ModelFile, where: str) -> list[dict[str, Any]]:
    """Return a message as those that the engine is sent: every result of a tool is one of its own."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    results, texts, calls, thoughts = [], [], [], []
    for i, block in enumerate(message.content):
        if block.type == "tool_result":
            content = _content(block.content or "", file, f"{where}.content[{i}]")
            if block.is_error:
                content = "Error: " + content if isinstance(content, str) else [_ERROR, *content]
            results.append({"role": "tool", "tool_call_id": block.tool_use_id or "", "content": content})
        elif block.type == "tool_use":
            arguments = arguments_text(block.input, f"{where}.content[{i}].input")
            function = {"name": block.name or "", "arguments": arguments}
            calls.append({"id": block.id or new_id("toolu"), "type": "function", "function": function})
        elif block.type == "thinking":
            thoughts.append(block.thinking or "")
        elif block.type not in NOT_SHOWN:
            texts.append(block)
    made: dict[str, Any] = {"role": message.role, "content": _content(texts, file, f"{where}.content")}
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
    except JSON_ERRORS:  # the answer ended in the middle of it
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
    if whole.reasoning and thinks(body):
        content.append({"type": "thinking", "thinking": whole.reasoning, "signature": ""})
    if whole.text or not whole.calls:
        content.append({"type": "text", "text": whole.text})
    content += [_use(call) for call in whole.calls]
    await out.whole(_message(body, content, **_stop(whole), usage=_usage(whole.usage)))


async def _stream(out: Output, job: Job, body: MessagesRequest) -> None:
    async with streaming(job, out, SSE) as answer:
        async for event in _events(answer.pieces(), body):
            await out.write(event)


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + _encode({"type": kind} | fields) + b"\n\n"


async def _events(pieces: AsyncIterator[Piece], body: MessagesRequest) -> AsyncIterator[bytes]:
    """Yield the events of an answer; its blocks come one after the other."""
    whole, index, kind, begun = Whole(), -1, "", False
    async for piece in pieces:
        if not begun:
            begun = True
            yield _event("message_start", message=_message(body, [], stop_reason=None, stop_sequence=None,
                                                           usage=_usage(_read_so_far(piece))))  # fmt: skip
        whole.finish, whole.stop_word = piece.finish or whole.finish, piece.stop_word or whole.stop_word
        whole.usage = piece.usage or whole.usage
        if piece.finish and index < 0 and not piece.text and not piece.tools:  # an answer has a block, as `_whole` has
            yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
            index, kind = 0, "text"
        for now, block, delta in _deltas(piece, whole.calls, thinking=thinks(body)):
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


def _read_so_far(piece: Piece) -> Usage:
    """Return the tokens of the prompt, told before any of the answer."""
    progress = piece.progress
    if progress is None:
        return Usage()
    return Usage(prompt_tokens=progress.total, prompt_tokens_details=PromptDetails(progress.cache))


def _deltas(
    piece: Piece, calls: list[ToolDelta], *, thinking: bool
) -> list[tuple[str, dict[str, Any], dict[str, Any] | None]]:
    """Return what a piece adds: which block, how the block begins, and the part of it."""
    found: list[tuple[str, dict[str, Any], dict[str, Any] | None]] = []
    if piece.reasoning and thinking:
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
