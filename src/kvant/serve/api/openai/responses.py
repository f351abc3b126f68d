"""OpenAI's API: /v1/responses, without memory: nothing is stored, so every request brings its whole conversation.

Source: OpenAI's API reference, "Responses".
"""

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from kvant.generate.chunks import Usage, gather
from kvant.generate.prompt import Chat, Format, opened
from kvant.generate.sampling import OPENAI_DEFAULTS, context_wanted, engine_options
from kvant.serve.api.answer import Answer, Output
from kvant.serve.api.calls import Choice, allowed, choice_of, offered
from kvant.serve.api.formats import settled
from kvant.serve.api.ids import new_id
from kvant.serve.api.media import seen
from kvant.serve.api.openai.responses_input import messages_of
from kvant.serve.api.openai.responses_stream import ResponseEvents, message_item, reasoning_item, text_part
from kvant.serve.api.openai.responses_tools import Item, Offers
from kvant.serve.api.openai.responses_types import ResponsesRequest, TextOptions, ToolChoice
from kvant.serve.api.run import Job, answering, streaming
from kvant.serve.api.wire import check, model_file, note_ignored, read
from kvant.serve.endpoints import SSE
from kvant.serve.failure import Failure
from kvant.serve.library import ModelFile
from kvant.serve.require import require
from kvant.serve.wording import OPENAI


async def responses(request: Request) -> Response:
    """POST /v1/responses."""
    body = await read(request, ResponsesRequest)
    file = await model_file(request, body.model)
    for name in ("previous_response_id", "conversation", "background", "prompt"):
        check(not getattr(body, name), f"{name}: nothing is stored here. Send the whole conversation as input.", name)
    check(not body.top_logprobs, "top_logprobs: is not told here. Use /v1/chat/completions.", "top_logprobs")
    offers = Offers(body.tools or [])
    messages, left_out = messages_of(body.input, file, offers)
    note_ignored(request, offers.left_out + left_out)
    prompt = await settled(request, await seen(request, file, _prompt(body, file, messages, offers)))
    job = Job(
        request=request, file=file, prompt=prompt, truncate=body.truncation == "auto",
        context=context_wanted(file.settings.parameters), stream=bool(body.stream),
    )  # fmt: skip
    if body.stream:
        identity, created = new_id("resp"), int(time.time())
        maker = ResponseEvents(lambda *state: _response(body, identity, created, *state), offers)

        def broken(failure: Failure) -> bytes:
            return maker.broken(failure.code, OPENAI.said(failure), failure.param)

        return Answer(lambda out: _stream(out, job, maker), OPENAI, broken)
    return Answer(lambda out: _whole(out, job, body, offers), OPENAI)


def _prompt(body: ResponsesRequest, file: ModelFile, messages: list[dict[str, Any]], offers: Offers) -> Chat:
    tools, mode = offered(offers.functions(), _choice(body.tool_choice, offers))
    require(file, tools=bool(tools))
    check(
        body.max_output_tokens is None or body.max_output_tokens > 0,
        "max_output_tokens: is not positive. Choose 1 or more.",
        "max_output_tokens",
    )
    given = {"temperature": body.temperature, "top_p": body.top_p, "num_predict": body.max_output_tokens}
    given = {name: value for name, value in given.items() if value is not None}
    effort = body.reasoning.effort if body.reasoning else None
    return Chat(
        messages=opened(messages, file.settings, body.instructions),
        sampling=engine_options(OPENAI_DEFAULTS, file.settings.parameters, given), tools=tools, tool_choice=mode,
        parallel_tool_calls=body.parallel_tool_calls, format=_format(body.text),
        think=False if effort == "none" else None, effort=None if effort == "none" else effort,
        template=file.settings.template,
    )  # fmt: skip


def _choice(given: str | ToolChoice | None, offers: Offers) -> Choice:
    if not isinstance(given, ToolChoice):
        return choice_of(given)
    if given.type == "allowed_tools":
        return allowed({"mode": given.mode, "tools": given.tools})
    return choice_of(given.type, given.name and offers.model_name(given.name, None))


def _format(text: TextOptions | None) -> Format:
    if text is None or text.format is None or text.format.type == "text":
        return Format()
    given = text.format
    check(given.schema is not None or given.type == "json_object", "text.format.schema: is missing. Give it.", "text")
    schema = {"type": "object"} if given.schema is None else given.schema
    return Format(schema=schema, where="text.format.schema", strict=bool(given.strict))


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


async def _stream(out: Output, job: Job, maker: ResponseEvents) -> None:
    async with streaming(job, out, SSE) as answer:
        async for event in maker.events(answer.pieces()):
            await out.write(event)


async def _whole(out: Output, job: Job, body: ResponsesRequest, offers: Offers) -> None:
    async with answering(job) as answer:
        whole = await gather(answer.pieces())
    items = [reasoning_item(whole.reasoning)] if whole.reasoning else []
    if whole.text or not whole.calls:
        items.append(message_item("completed", text_part(whole.text)))
    status = "incomplete" if whole.finish == "length" else "completed"
    last = len(whole.calls) - 1
    items += [offers.call_item(call, status=status if i == last else "completed") for i, call in enumerate(whole.calls)]
    await out.whole(_response(body, new_id("resp"), int(time.time()), status, items, whole.usage))
