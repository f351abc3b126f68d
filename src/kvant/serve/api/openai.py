"""OpenAI's API: /v1/chat/completions. The engine's events are passed on as they are, under the client's model name.

Source: OpenAI's API reference.
"""

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kvant.serve.api.answer import SSE, Answer, Dialect, Output
from kvant.serve.api.chat import Chat, Format, opened, require
from kvant.serve.api.chunks import Piece, ToolDelta, Usage, Whole, gather
from kvant.serve.api.failure import ApiError, Failure
from kvant.serve.api.ollama_types import seconds
from kvant.serve.api.openai_types import (
    ChatCompletion,
    ChatRequest,
    Message,
    OutCall,
    OutChoice,
    OutFunction,
    OutLogprobs,
    OutMessage,
    OutUsage,
    Part,
    ResponseFormat,
    Sampling,
    ToolChoice,
)
from kvant.serve.api.run import Answering, Job, answering
from kvant.serve.api.sampling import OPENAI_DEFAULTS, engine_options
from kvant.serve.api.wire import check, endpoint, model_file, read
from kvant.serve.library import ModelFile

MAX_TOP_LOGPROBS = 20
MAX_BIASES = 1024
DONE = b"data: [DONE]\n\n"
_USAGE_ONLY = b'{"choices":[],'
_encode = msgspec.json.Encoder().encode
_SAME = (
    "temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "top_k", "min_p", "typical_p",
    "repeat_penalty", "repeat_last_n", "stop",
)  # fmt: skip


def error_body(failure: Failure) -> bytes:
    """Return an error in OpenAI's form."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(failure.status, "invalid_request_error" if failure.status < 500 else "server_error")
    return _encode({"error": {"message": failure.message, "type": kind, "param": failure.param, "code": failure.code}})


OPENAI = Dialect(failed=error_body, broken=lambda failure: b"data: " + error_body(failure) + b"\n\n")


@endpoint(OPENAI)
async def chat(request: Request) -> Response:
    """POST /v1/chat/completions."""
    body = await read(request, ChatRequest)
    file = await model_file(request, body.model)
    prompt = chat_prompt(body, file)
    job = Job(request=request, file=file, prompt=prompt, keep_alive=seconds(body.keep_alive))
    if not body.stream:
        return Answer(lambda out: _whole(out, job, body), OPENAI)
    return Answer(lambda out: _stream(out, job, body), OPENAI)


def chat_prompt(body: ChatRequest, file: ModelFile) -> Chat:
    """Return what the engine is asked.

    Raises:
        ApiError: The request is not one that can be answered.
    """
    tools = body.tools or []
    if body.tool_choice == "none":
        tools = []
    require(file, tools=bool(tools))
    check(bool(body.messages), "messages: is empty. Send at least one.", "messages")
    check(body.modalities in (None, ["text"]), "modalities: only text is made here. Leave it out.", "modalities")
    check(body.top_logprobs is None or 0 <= body.top_logprobs <= MAX_TOP_LOGPROBS,
          f"top_logprobs: {body.top_logprobs} is not from 0 to {MAX_TOP_LOGPROBS}.", "top_logprobs")  # fmt: skip
    check(body.top_logprobs is None or bool(body.logprobs), "top_logprobs: needs logprobs to be true.", "top_logprobs")
    choice = body.tool_choice
    if isinstance(choice, ToolChoice):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
        check(bool(tools), f"tool_choice: {choice.function.name[:100]!r} is not among the tools.", "tool_choice")
        choice = "required"
    arguments = body.chat_template_kwargs
    effort = body.reasoning_effort or (arguments.reasoning_effort if arguments else None)
    think = arguments.enable_thinking if arguments else None
    sampling = common_sampling(body, file, body.max_completion_tokens or body.max_tokens)
    return Chat(
        messages=opened([engine_message(message, file) for message in body.messages], file),
        sampling=sampling, tools=[msgspec.to_builtins(tool) for tool in tools], tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls, format=_format(body.response_format, body.grammar),
        think=False if effort == "none" and think is None else think, effort=None if effort == "none" else effort,
        template=file.settings.template, top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )  # fmt: skip


def common_sampling(body: Sampling, file: ModelFile, max_tokens: int | None) -> dict[str, Any]:
    """Return the engine's parameters of a request."""
    check(body.n in (None, 1), f"n: {body.n} answers are not made at once. Send n requests.", "n")
    check(max_tokens is None or max_tokens > 0, f"max_tokens: {max_tokens} is not positive.", "max_tokens")
    given = {name: getattr(body, name) for name in _SAME if getattr(body, name) is not None}
    if max_tokens is not None:
        given["num_predict"] = max_tokens
    sampling = engine_options(OPENAI_DEFAULTS, file.settings.parameters, given)
    if body.logit_bias:
        sampling["logit_bias"] = _biases(body.logit_bias)
    return sampling


def _biases(biases: dict[str, float]) -> list[list[float]]:
    check(
        len(biases) <= MAX_BIASES, f"logit_bias: {len(biases)} tokens exceed the limit of {MAX_BIASES}.", "logit_bias"
    )
    for token, bias in biases.items():
        check(token.isascii() and token.isdigit() and len(token) < 10, f"logit_bias: {token[:40]!r} is no token id.",
              "logit_bias")  # fmt: skip
        check(-100 <= bias <= 100, f"logit_bias: {bias} is not from -100 to 100.", "logit_bias")
    return [[int(token), bias] for token, bias in biases.items()]


def engine_message(message: Message, file: ModelFile) -> dict[str, Any]:
    """Return a message for the engine."""
    made: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": plain_text(message.content, file),
    }
    if message.name is not None:
        made["name"] = message.name
    if message.reasoning_content:
        made["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        made["tool_calls"] = [
            {"id": call.id, "type": "function", "function": msgspec.to_builtins(call.function)}
            for call in message.tool_calls
        ]
    if message.role == "tool":
        check(message.tool_call_id is not None, "tool_call_id: is missing in a message of a tool.", "messages")
        made["tool_call_id"] = message.tool_call_id
    return made


def plain_text(content: str | list[Part] | None, file: ModelFile) -> str:
    """Return a message's text.

    Raises:
        ApiError: It has a part that is no text.
    """
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content:
        if part.type not in ("text", "input_text", "output_text", "refusal"):
            raise ApiError(
                f"messages: {file.name} does not support parts of type {part.type[:100]!r}: it is served without an "
                "encoder for them. Send text alone.",
                param="messages",
            )
        texts.append(part.text or part.refusal or "")
    return "\n".join(texts) if len(texts) > 1 else "".join(texts)


def _format(wanted: ResponseFormat | None, grammar: str | None) -> Format:
    if wanted is None or wanted.type == "text":
        return Format(grammar=grammar)
    check(grammar is None, "grammar: cannot be used together with response_format. Leave one out.", "grammar")
    if wanted.type == "json_object":
        return Format(schema={"type": "object"})
    if wanted.json_schema is None:
        raise ApiError("response_format.json_schema: is missing. Give it.", param="response_format")
    return Format(schema=wanted.json_schema.schema)


# Answers


async def _stream(out: Output, job: Job, body: ChatRequest) -> None:
    usage_too = body.stream_options is not None and body.stream_options.include_usage
    async with answering(job) as answer:
        await out.start(SSE)
        if answer.chat:
            await _pass_on(out, answer, job.file.name, body, usage_too=usage_too)
        else:
            async for data in _own_chunks(answer.pieces(), body.model, usage_too=usage_too):
                await out.write(data)
    await out.write(DONE)


async def _pass_on(out: Output, answer: Answering, name: str, body: ChatRequest, *, usage_too: bool) -> None:
    """Write the engine's chunks as they are, but for the model's name, and for what was not asked for."""
    theirs, ours = b'"model":' + _encode(name), b'"model":' + _encode(body.model)
    no_alternatives = body.logprobs and not body.top_logprobs
    async for payload in answer.payloads():
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


async def _own_chunks(pieces: AsyncIterator[Piece], model: str, *, usage_too: bool) -> AsyncIterator[bytes]:
    """Yield chunks for an answer that the engine gave in another form."""
    head = {"id": new_id("chatcmpl"), "object": "chat.completion.chunk", "created": int(time.time()), "model": model}
    delta: dict[str, Any] = {"role": "assistant"}
    usage = Usage()
    async for piece in pieces:
        usage = piece.usage or usage
        logprobs = OutLogprobs(piece.logprobs) if piece.logprobs else None
        if piece.text or piece.tools or delta:
            added: dict[str, Any] = {"content": piece.text or None}
            if piece.tools:
                added["tool_calls"] = [_tool_delta(part) for part in piece.tools]
            choice = {"index": 0, "delta": delta | added, "logprobs": logprobs, "finish_reason": None}
            yield b"data: " + _encode(head | {"choices": [choice]}) + b"\n\n"
            delta = {}
        if piece.finish:
            end = {"index": 0, "delta": {}, "finish_reason": piece.finish}
            yield b"data: " + _encode(head | {"choices": [end]}) + b"\n\n"
    if usage_too:
        yield b"data: " + _encode(head | {"choices": [], "usage": usage}) + b"\n\n"


def _tool_delta(part: ToolDelta) -> dict[str, Any]:
    function = {"name": part.function.name, "arguments": part.function.arguments}
    return {"index": part.index, "id": part.id, "type": "function", "function": function}


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
        tool_calls=calls or None,
    )  # fmt: skip
    logprobs = OutLogprobs(whole.logprobs) if body.logprobs else None
    return ChatCompletion(
        id=new_id("chatcmpl"), created=int(time.time()), model=body.model,
        choices=[OutChoice(message=message, finish_reason=whole.finish, logprobs=logprobs)],
        usage=out_usage(whole.usage),
    )  # fmt: skip


def out_usage(usage: Usage) -> OutUsage:
    """Return counts in OpenAI's form."""
    cached = {"cached_tokens": usage.prompt_tokens_details.cached_tokens}
    return OutUsage(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens, cached)


def new_id(kind: str) -> str:
    """Return an id that was never given."""
    return f"{kind}{'-' if kind.endswith('cmpl') else '_'}{secrets.token_hex(12)}"


def routes() -> list[Route]:
    """Return the routes of this module."""
    return [Route("/v1/chat/completions", chat, methods=["POST"])]
