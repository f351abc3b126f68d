"""OpenAI's API: /v1/responses, without memory: nothing is stored, so every request brings its whole conversation.

Source: OpenAI's API reference, "Responses".
"""

import time
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kvant.serve.api.answer import SSE, Answer, Dialect, Output
from kvant.serve.api.chat import Chat, Format, opened, require
from kvant.serve.api.chunks import Usage, gather
from kvant.serve.api.failure import ApiError, Failure
from kvant.serve.api.openai import error_body, new_id, plain_text
from kvant.serve.api.openai_stream import Item, ResponseEvents, call_item, message_item, reasoning_item, text_part
from kvant.serve.api.openai_types import Effort, Part
from kvant.serve.api.run import Job, answering
from kvant.serve.api.sampling import OPENAI_DEFAULTS, engine_options
from kvant.serve.api.wire import check, endpoint, model_file, read
from kvant.serve.library import ModelFile


def _broken(failure: Failure) -> bytes:
    event = {
        "type": "error", "code": failure.code, "message": failure.message, "param": failure.param, "sequence_number": 0
    }  # fmt: skip
    return b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n"


RESPONSES = Dialect(failed=error_body, broken=_broken)


class InputItem(msgspec.Struct):
    """An item of the conversation; which fields it needs is told by its type."""

    type: str = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[Part] | None = None
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None


class Tool(msgspec.Struct, omit_defaults=True):
    """A tool that a model may call."""

    type: str
    name: str = ""
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolChoice(msgspec.Struct):
    """The one tool that must be called."""

    type: Literal["function"]
    name: str


class TextFormat(msgspec.Struct):
    """What an answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    schema: dict[str, Any] | None = None
    name: str = ""
    description: str | None = None
    strict: bool | None = None


class TextOptions(msgspec.Struct):
    """How text is made."""

    format: TextFormat | None = None
    verbosity: str | None = None


class Reasoning(msgspec.Struct):
    """How much a model thinks."""

    effort: Effort | None = None
    summary: str | None = None


class ResponsesRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/responses."""

    model: str
    input: str | list[InputItem]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    background: bool | None = None
    prompt: Any = None
    # Understood, without effect here
    store: bool | None = None
    metadata: dict[str, str] | None = None
    include: list[str] | None = None
    user: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    top_logprobs: int | None = None
    max_tool_calls: int | None = None
    stream_options: Any = None


@endpoint(RESPONSES)
async def responses(request: Request) -> Response:
    """POST /v1/responses."""
    body = await read(request, ResponsesRequest)
    file = await model_file(request, body.model)
    for name in ("previous_response_id", "conversation", "background", "prompt"):
        check(not getattr(body, name), f"{name}: nothing is stored here. Send the whole conversation as input.", name)
    check(not body.top_logprobs, "top_logprobs: is not told here. Use /v1/chat/completions.", "top_logprobs")
    job = Job(request=request, file=file, prompt=_prompt(body, file), truncate=body.truncation == "auto")
    if body.stream:
        return Answer(lambda out: _stream(out, job, body), RESPONSES)
    return Answer(lambda out: _whole(out, job, body), RESPONSES)


def _prompt(body: ResponsesRequest, file: ModelFile) -> Chat:
    tools = [] if body.tool_choice == "none" else body.tools or []
    require(file, tools=bool(tools))
    for tool in tools:
        message = f"tools: type {tool.type[:100]!r} is not supported; only functions are. Leave it out."
        check(tool.type == "function" and bool(tool.name), message, "tools")
    choice = body.tool_choice
    if isinstance(choice, ToolChoice):
        tools = [tool for tool in tools if tool.name == choice.name]
        check(bool(tools), f"tool_choice: {choice.name[:100]!r} is not among the tools.", "tool_choice")
        choice = "required"
    check(body.max_output_tokens is None or body.max_output_tokens > 0, "max_output_tokens: is not positive.",
          "max_output_tokens")  # fmt: skip
    given = {"temperature": body.temperature, "top_p": body.top_p, "num_predict": body.max_output_tokens}
    given = {name: value for name, value in given.items() if value is not None}
    effort = body.reasoning.effort if body.reasoning else None
    return Chat(
        messages=opened(_messages(body.input, file), file, body.instructions),
        sampling=engine_options(OPENAI_DEFAULTS, file.settings.parameters, given),
        tools=[_function(tool) for tool in tools], tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls, format=_format(body.text),
        think=False if effort == "none" else None, effort=None if effort == "none" else effort,
        template=file.settings.template,
    )  # fmt: skip


def _function(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": {k: v for k, v in function.items() if v is not None}}


def _messages(given: str | list[InputItem], file: ModelFile) -> list[dict[str, Any]]:
    """Return the conversation in the form of chat completions."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    check(bool(given), "input: is empty. Send at least one item.", "input")
    messages: list[dict[str, Any]] = []
    for item in given:
        if item.type == "message" and item.role is not None:
            role = "system" if item.role == "developer" else item.role
            messages.append({"role": role, "content": plain_text(item.content, file)})
        elif item.type == "function_call" and item.name and item.call_id:
            call = {
                "id": item.call_id, "type": "function",
                "function": {"name": item.name, "arguments": item.arguments or "{}"},
            }  # fmt: skip
            if messages and messages[-1]["role"] == "assistant":
                messages[-1].setdefault("tool_calls", []).append(call)
            else:
                messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        elif item.type == "function_call_output" and item.call_id:
            text = plain_text(item.output, file)
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": text})
        elif item.type != "reasoning":  # a model's old thinking is not shown to it again
            raise ApiError(
                f"input: an item of type {item.type[:100]!r} is not supported or lacks fields.", param="input"
            )
    return messages


def _format(text: TextOptions | None) -> Format:
    if text is None or text.format is None or text.format.type == "text":
        return Format()
    return Format(schema=text.format.schema if text.format.schema is not None else {"type": "object"})


def _response(body: ResponsesRequest, identity: str, created: int, status: str, items: list[Item], usage: Usage | None,
              ) -> dict[str, Any]:  # fmt: skip
    """Return the object that tells a response."""
    told = usage and {
        "input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "input_tokens_details": {"cached_tokens": usage.prompt_tokens_details.cached_tokens, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }  # fmt: skip
    return {
        "id": identity, "object": "response", "created_at": created, "status": status, "background": False,
        "error": None, "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": body.instructions, "max_output_tokens": body.max_output_tokens, "model": body.model,
        "output": items, "parallel_tool_calls": body.parallel_tool_calls is not False, "previous_response_id": None,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None}, "store": False,
        "temperature": body.temperature, "top_p": body.top_p, "tools": body.tools or [],
        "text": {"format": {"type": "text"}} if body.text is None else body.text,
        "tool_choice": body.tool_choice or "auto", "truncation": body.truncation or "disabled", "usage": told,
        "user": body.user, "metadata": body.metadata or {},
    }  # fmt: skip


async def _stream(out: Output, job: Job, body: ResponsesRequest) -> None:
    identity, created = new_id("resp"), int(time.time())
    maker = ResponseEvents(lambda *state: _response(body, identity, created, *state))
    async with answering(job) as answer:
        await out.start(SSE)
        async for event in maker.events(answer.pieces()):
            await out.write(event)


async def _whole(out: Output, job: Job, body: ResponsesRequest) -> None:
    async with answering(job) as answer:
        whole = await gather(answer.pieces())
    items = [reasoning_item(whole.reasoning)] if whole.reasoning else []
    if whole.text or not whole.calls:
        items.append(message_item("completed", text_part(whole.text)))
    items += [call_item(call) for call in whole.calls]
    status = "incomplete" if whole.finish == "length" else "completed"
    await out.whole(_response(body, new_id("resp"), int(time.time()), status, items, whole.usage))


def routes() -> list[Route]:
    """Return the routes of this module."""
    return [Route("/v1/responses", responses, methods=["POST"])]
