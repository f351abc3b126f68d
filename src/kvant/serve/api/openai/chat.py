"""OpenAI's API: /v1/chat/completions. The engine's events are passed on as they are, under the client's model name.

Source: OpenAI's API reference.
"""

import re
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kvant.generate.chunks import Piece, ToolDelta, Usage, Whole, gather, is_progress
from kvant.generate.prompt import Chat, Format, opened
from kvant.generate.sampling import unknown
from kvant.serve.api.answer import Answer, Output
from kvant.serve.api.calls import Choice, allowed, arguments_text, choice_of, offered
from kvant.serve.api.formats import settled
from kvant.serve.api.ids import new_id
from kvant.serve.api.keepalive import seconds
from kvant.serve.api.media import seen
from kvant.serve.api.openai.content import content
from kvant.serve.api.openai.sampling import common_sampling, context_of
from kvant.serve.api.openai.types import (
    DONE,
    Call,
    ChatCompletion,
    ChatRequest,
    ChoiceFunction,
    Message,
    OutCall,
    OutChoice,
    OutFunction,
    OutLogprobs,
    OutMessage,
    ResponseFormat,
    ToolChoice,
    out_usage,
)
from kvant.serve.api.run import Answering, Job, answering, streaming
from kvant.serve.api.wire import check, model_file, note_ignored, read
from kvant.serve.endpoints import SSE
from kvant.serve.library import ModelFile
from kvant.serve.require import require
from kvant.serve.wording import OPENAI

MAX_TOP_LOGPROBS = 20
MAX_ARGUMENT = 100
MAX_ARGUMENTS = 64
_USAGE_ONLY = b'{"choices":[],'
_WORD = re.compile(r"[A-Za-z0-9_.-]{0,100}")
_encode = msgspec.json.Encoder().encode


async def chat(request: Request) -> Response:
    """POST /v1/chat/completions."""
    body = await read(request, ChatRequest)
    file = await model_file(request, body.model)
    left_out = [f"tools.{tool.type}" for tool in body.tools or [] if tool.function is None]
    if body.functions and "tools" not in file.capabilities and not isinstance(body.function_call, ChoiceFunction):
        left_out.append("functions")
        body.functions = None
    note_ignored(request, left_out + unknown(body.options))
    prompt = await settled(request, await seen(request, file, chat_prompt(body, file)))
    job = Job(
        request=request, file=file, prompt=prompt, keep_alive=seconds(body.keep_alive),
        context=context_of(body, file), stream=bool(body.stream),
    )  # fmt: skip
    if not body.stream:
        return Answer(lambda out: _whole(out, job, body), OPENAI)
    return Answer(lambda out: _stream(out, job, body), OPENAI)


def chat_prompt(body: ChatRequest, file: ModelFile) -> Chat:
    """Return what the engine is asked.

    Raises:
        ApiError: The request is not one that can be answered.
    """
    functions = [tool.function for tool in body.tools or [] if tool.function is not None] + (body.functions or [])
    tools, mode = offered([msgspec.to_builtins({"type": "function", "function": f}) for f in functions], _choice(body))
    require(file, tools=bool(tools))
    check(bool(body.messages), "messages: is empty. Send at least one.", "messages")
    check(body.modalities in (None, ["text"]), "modalities: only text is made here. Leave it out.", "modalities")
    check(
        body.top_logprobs is None or 0 <= body.top_logprobs <= MAX_TOP_LOGPROBS,
        f"top_logprobs: {body.top_logprobs} is not from 0 to {MAX_TOP_LOGPROBS}. Choose one that is.",
        "top_logprobs",
    )
    check(
        not body.top_logprobs or bool(body.logprobs),
        "top_logprobs: needs logprobs to be true. Set it, or leave this out.",
        "top_logprobs",
    )
    limits = (body.max_completion_tokens, body.max_tokens, body.n_predict)
    sampling = common_sampling(body, file, next((limit for limit in limits if limit is not None), None))
    return Chat(
        messages=opened(engine_messages(body.messages, file), file.settings),
        sampling=sampling, tools=tools, tool_choice=mode,
        parallel_tool_calls=False if body.functions else body.parallel_tool_calls,
        format=_format(body.response_format, body.grammar), template=file.settings.template,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None, **_thinking(body),
    )  # fmt: skip


def _choice(body: ChatRequest) -> Choice:
    """Return which tool must be called, in one of the ways that clients have to say it."""
    if body.functions and body.tool_choice is None:
        call = body.function_call
        return choice_of("function", call.name) if isinstance(call, ChoiceFunction) else choice_of(call)
    given = body.tool_choice
    if not isinstance(given, ToolChoice):
        return choice_of(given)
    if given.type == "allowed_tools" and given.allowed_tools:
        return allowed(given.allowed_tools)
    return choice_of(given.type, given.function.name if given.function else given.name)


TEMPLATES_OWN = frozenset({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "documents"})


def _thinking(body: ChatRequest) -> dict[str, Any]:
    """Return whether and how much the model is to think, and what else its template is told."""
    arguments = dict(body.chat_template_kwargs or {})
    check(
        len(arguments) <= MAX_ARGUMENTS,
        f"chat_template_kwargs: {len(arguments)} values are above the limit of {MAX_ARGUMENTS}. Send fewer.",
        "chat_template_kwargs",
    )
    for name, value in arguments.items():
        where = f"chat_template_kwargs.{name[:100]}"
        check(_may_be_told(name, value), f"{where}: is nothing that a template may be told. Leave it out.", where)
    effort = body.reasoning_effort or (body.reasoning.effort if body.reasoning else None)
    effort = effort or arguments.pop("reasoning_effort", None)
    is_word = effort is None or (isinstance(effort, str) and effort.isidentifier() and len(effort) <= MAX_ARGUMENT)
    check(
        is_word, f"reasoning_effort: {str(effort)[:100]!r} is no word. Choose low, medium or high.", "reasoning_effort"
    )
    think = arguments.pop("enable_thinking", None)
    for other in (body.think, body.reasoning.enabled if body.reasoning else None):
        if think is None and other is not None:
            think = other is not False and other != ""
            effort = effort or (other if isinstance(other, str) and other.isidentifier() else None)
    if effort == "none":
        think, effort = False if think is None else think, None
    return {"think": think, "effort": effort, "arguments": arguments}


def _may_be_told(name: str, value: Any) -> bool:
    """Whether a template may be told a value: a word, a number or a truth value under a name that is free."""
    is_free = (
        name.isidentifier() and len(name) <= MAX_ARGUMENT and not name.startswith("_") and name not in TEMPLATES_OWN
    )
    is_word = isinstance(value, str) and _WORD.fullmatch(value) is not None
    return is_free and (is_word or isinstance(value, bool | int | float | None))


def engine_messages(messages: list[Message], file: ModelFile) -> list[dict[str, Any]]:
    """Return a conversation for the engine; a result without the id of its call belongs to the last call."""
    made: list[dict[str, Any]] = []
    last = "call_0"
    for i, message in enumerate(messages):
        made.append(_engine_message(message, file, f"messages[{i}]", last))
        for call in made[-1].get("tool_calls", ()):
            last = call["id"]
    return made


def _engine_message(message: Message, file: ModelFile, where: str, last: str) -> dict[str, Any]:
    role = {"developer": "system", "function": "tool"}.get(message.role, message.role)
    made: dict[str, Any] = {"role": role, "content": content(message.content, file, f"{where}.content")}
    if message.name is not None:
        made["name"] = message.name
    if message.reasoning_content:
        made["reasoning_content"] = message.reasoning_content
    calls = list(message.tool_calls or [])
    wheres = [f"{where}.tool_calls[{i}].function.arguments" for i in range(len(calls))]
    if message.function_call is not None:
        calls.append(Call(function=message.function_call))
        wheres.append(f"{where}.function_call.arguments")
    if calls:
        made["tool_calls"] = [
            {"id": call.id or f"call_{where}_{i}", "type": "function", "function": {
                "name": call.function.name, "arguments": arguments_text(call.function.arguments, wheres[i])}}
            for i, call in enumerate(calls)
        ]  # fmt: skip
    if role == "tool":
        made["tool_call_id"] = message.tool_call_id or last
    return made


def _format(wanted: ResponseFormat | None, grammar: str | None) -> Format:
    if wanted is None or wanted.type == "text":
        return Format(grammar=grammar, where="grammar")
    check(grammar is None, "grammar: cannot be used together with response_format. Leave one out.", "grammar")
    if wanted.type == "grammar":
        check(bool(wanted.grammar), "response_format.grammar: is missing. Give it.", "response_format")
        return Format(grammar=wanted.grammar, where="response_format.grammar")
    if wanted.json_schema is not None and wanted.type == "json_schema":
        inner = wanted.json_schema
        where = "response_format.json_schema.schema"
        return Format(schema=inner.schema, where=where, strict=bool(inner.strict))
    if wanted.schema is not None:  # as llama.cpp's server and others have it
        return Format(schema=wanted.schema, where="response_format.schema", strict=bool(wanted.strict))
    check(wanted.type == "json_object", "response_format.json_schema: is missing. Give it.", "response_format")
    return Format(schema={"type": "object"})


# Answers


async def _stream(out: Output, job: Job, body: ChatRequest) -> None:
    usage_too = body.stream_options is not None and bool(body.stream_options.include_usage)
    async with streaming(job, out, SSE) as answer:
        if answer.chat and not body.functions:
            await _pass_on(out, answer, job.file.name, body, usage_too=usage_too)
        else:
            async for data in _own_chunks(answer.pieces(), body, usage_too=usage_too):
                await out.write(data)
    await out.write(DONE)


async def _pass_on(out: Output, answer: Answering, name: str, body: ChatRequest, *, usage_too: bool) -> None:
    """Write the engine's chunks as they are, but for the model's name, and for what was not asked for."""
    theirs, ours = b'"model":' + _encode(name), b'"model":' + _encode(body.model)
    no_alternatives = body.logprobs and not body.top_logprobs
    async for payload in answer.payloads():
        if is_progress(payload) and not body.return_progress:
            continue
        if payload.startswith(_USAGE_ONLY) and not usage_too:
            continue
        if no_alternatives and b'"top_logprobs"' in payload:
            payload = _without_alternatives(payload)
        if theirs != ours:
            payload = payload.replace(theirs, ours, 1)
        await out.write(b"data: " + payload + b"\n\n")


def _without_alternatives(payload: bytes) -> bytes:
    """Return a chunk without the alternative that the engine tells at least."""
    chunk = msgspec.json.decode(payload)
    for choice in chunk["choices"]:
        for token in (choice.get("logprobs") or {}).get("content") or []:
            token["top_logprobs"] = []
    return _encode(chunk)


async def _own_chunks(pieces: AsyncIterator[Piece], body: ChatRequest, *, usage_too: bool) -> AsyncIterator[bytes]:
    """Yield chunks for an answer that the engine gave in another form."""
    head = {"id": new_id("chatcmpl"), "object": "chat.completion.chunk", "created": int(time.time()),
            "model": body.model}  # fmt: skip
    delta: dict[str, Any] = {"role": "assistant"}
    usage = Usage()
    async for piece in pieces:
        usage = piece.usage or usage
        logprobs = OutLogprobs(piece.logprobs) if piece.logprobs else None
        if piece.text or piece.reasoning or piece.tools or delta or (piece.progress and body.return_progress):
            added: dict[str, Any] = {"content": piece.text or None} if piece.text or delta else {}
            if piece.reasoning:
                added["reasoning_content"] = piece.reasoning
            for part in piece.tools:
                added |= _tool_delta(part, legacy=bool(body.functions))
            choice = {"index": 0, "delta": delta | added, "logprobs": logprobs, "finish_reason": None}
            chunk = head | {"choices": [choice]}
            if piece.progress and body.return_progress:
                chunk["prompt_progress"] = piece.progress
            yield b"data: " + _encode(chunk) + b"\n\n"
            delta = {}
        if piece.finish:
            end = {"index": 0, "delta": {}, "finish_reason": _finish(piece.finish, body)}
            yield b"data: " + _encode(head | {"choices": [end]}) + b"\n\n"
    if usage_too:
        yield b"data: " + _encode(head | {"choices": [], "usage": usage}) + b"\n\n"


def _finish(reason: str, body: ChatRequest) -> str:
    return "function_call" if reason == "tool_calls" and body.functions else reason


def _tool_delta(part: ToolDelta, *, legacy: bool) -> dict[str, Any]:
    """Return part of a call; what does not change is told once, with the name."""
    function = {"arguments": part.function.arguments}
    if part.function.name is not None:
        function = {"name": part.function.name} | function
    if legacy:
        return {"function_call": function}
    call: dict[str, Any] = {"index": part.index, "function": function}
    if part.id is not None:
        call |= {"id": part.id, "type": "function"}
    return {"tool_calls": [call]}


async def _whole(out: Output, job: Job, body: ChatRequest) -> None:
    async with answering(job) as answer:
        whole = await gather(answer.pieces())
    await out.whole(completion(whole, body))


def completion(whole: Whole, body: ChatRequest) -> ChatCompletion:
    """Return an answer in OpenAI's form."""
    if body.logprobs and not body.top_logprobs:
        for token in whole.logprobs:
            token.top_logprobs = []
    calls = [
        OutCall(id=call.id or new_id("call"), function=OutFunction(call.function.name or "", call.function.arguments))
        for call in whole.calls
    ]
    message = OutMessage(
        content=whole.text if whole.text or not calls else None, reasoning_content=whole.reasoning or None,
        tool_calls=None if body.functions else calls or None,
        function_call=calls[0].function if body.functions and calls else None,
    )  # fmt: skip
    logprobs = OutLogprobs(whole.logprobs) if body.logprobs else None
    return ChatCompletion(
        id=new_id("chatcmpl"), created=int(time.time()), model=body.model,
        choices=[OutChoice(message=message, finish_reason=_finish(whole.finish, body), logprobs=logprobs)],
        usage=out_usage(whole.usage),
    )  # fmt: skip
