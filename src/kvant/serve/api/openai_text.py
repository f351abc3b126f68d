"""OpenAI's API: /v1/completions, /v1/embeddings, /v1/models.

Source: OpenAI's API reference.
"""

import asyncio
import base64
import struct
import time
from datetime import UTC
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kvant.errors import KvantError
from kvant.serve.api.answer import SSE, Answer, Output
from kvant.serve.api.chat import Format, Text, require
from kvant.serve.api.chunks import TokenLogprob, Usage, Whole, gather
from kvant.serve.api.embeddings import embed
from kvant.serve.api.failure import ApiError
from kvant.serve.api.formats import settled
from kvant.serve.api.ids import new_id
from kvant.serve.api.ollama_types import seconds
from kvant.serve.api.openai import DONE, OPENAI, common_sampling, context_of, out_usage
from kvant.serve.api.openai_types import CompletionRequest, EmbeddingRequest, ListedModel
from kvant.serve.api.run import Job, answering, streaming
from kvant.serve.api.sampling import unknown
from kvant.serve.api.wire import as_json, check, endpoint, gateway, model_file, note_ignored, read, served_size
from kvant.serve.library import ModelFile

MAX_PROMPTS = 128
MAX_LOGPROBS = 20
Tokens = list[int]
_encode = msgspec.json.Encoder().encode


@endpoint(OPENAI)
async def completions(request: Request) -> Response:
    """POST /v1/completions."""
    body = await read(request, CompletionRequest)
    note_ignored(request, unknown(body.options))
    file = await model_file(request, body.model)
    require(file)
    check(body.best_of in (None, 1), "best_of: only 1 is made here. Leave it out.", "best_of")
    check(not body.echo, "echo: is not supported. Put the prompt before the answer yourself.", "echo")
    check(body.logprobs is None or 0 <= body.logprobs <= MAX_LOGPROBS,
          f"logprobs: {body.logprobs} is not from 0 to {MAX_LOGPROBS}. Choose one that is.", "logprobs")  # fmt: skip
    limit = next((given for given in (body.max_tokens, body.n_predict) if given is not None), 16)
    sampling = common_sampling(body, file, limit)
    format_ = Format(grammar=body.grammar, where="grammar")
    prompts = [
        Text(text=prompt, suffix=body.suffix, sampling=sampling, format=format_, top_logprobs=body.logprobs)
        for prompt in many(body.prompt, "prompt", MAX_PROMPTS)
    ]
    await settled(request, prompts[0])
    jobs = [
        Job(
            request=request, file=file, keep_alive=seconds(body.keep_alive), context=context_of(body, file),
            stream=bool(body.stream),
            prompt=prompt,
        )
        for prompt in prompts
    ]  # fmt: skip
    if body.stream:
        return Answer(lambda out: _stream(out, jobs, body), OPENAI)
    return Answer(lambda out: _whole(out, jobs, body), OPENAI)


def many(value: str | list[Any], name: str, limit: int) -> list[str] | list[Tokens]:
    """Return the prompts that a field gives: a text, texts, token ids, or lists of them.

    Raises:
        ApiError: They are mixed, or too many.
    """
    if isinstance(value, str):
        return [value]
    if value and all(isinstance(item, int) for item in value):
        value = [value]
    check(bool(value), f"{name}: is empty. Give at least one.", name)
    check(len(value) <= limit, f"{name}: {len(value)} exceed the limit of {limit}. Send fewer.", name)
    kind = type(value[0])
    check(kind in (str, list) and all(type(item) is kind for item in value),
          f"{name}: is not a text, a list of texts, or lists of token ids. Mend the request.", name)  # fmt: skip
    if kind is list:
        low, high = min(map(min, filter(None, value)), default=0), max(map(max, filter(None, value)), default=0)
        check(low >= 0 and high < 1 << 31, f"{name}: {low}..{high} are no token ids. Send the model's, or text.", name)
        check(all(value), f"{name}: a list of token ids is empty. Leave it out.", name)
    return value


async def _stream(out: Output, jobs: list[Job], body: CompletionRequest) -> None:
    head = {"id": new_id("cmpl"), "object": "text_completion", "created": int(time.time()), "model": body.model}
    total = Usage()
    for index, job in enumerate(jobs):
        offset = 0
        async with streaming(job, out, SSE) as answer:
            async for piece in answer.pieces():
                if piece.progress is not None:
                    continue
                logprobs = _legacy(piece.logprobs, body.logprobs, offset) if piece.logprobs else None
                offset += len(piece.text)
                choice = {"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish}
                await out.write(b"data: " + _encode(head | {"choices": [choice]}) + b"\n\n")
                if piece.usage:
                    _add(total, piece.usage)
    if body.stream_options is not None and body.stream_options.include_usage:
        await out.write(b"data: " + _encode(head | {"choices": [], "usage": out_usage(total)}) + b"\n\n")
    await out.write(DONE)


async def _whole(out: Output, jobs: list[Job], body: CompletionRequest) -> None:
    total, choices = Usage(), []
    for index, job in enumerate(jobs):
        async with answering(job) as answer:
            whole: Whole = await gather(answer.pieces())
        _add(total, whole.usage)
        logprobs = None if body.logprobs is None else _legacy(whole.logprobs, body.logprobs, 0)
        choices.append({"index": index, "text": whole.text, "logprobs": logprobs, "finish_reason": whole.finish})
    await out.whole(
        {
            "id": new_id("cmpl"), "object": "text_completion", "created": int(time.time()), "model": body.model,
            "choices": choices, "usage": out_usage(total),
        }
    )  # fmt: skip


def _add(total: Usage, usage: Usage) -> None:
    total.prompt_tokens += usage.prompt_tokens
    total.completion_tokens += usage.completion_tokens
    total.total_tokens += usage.total_tokens
    total.prompt_tokens_details.cached_tokens += usage.prompt_tokens_details.cached_tokens


def _legacy(tokens: list[TokenLogprob], top: int | None, offset: int) -> dict[str, Any]:
    """Return probabilities in the form of /v1/completions."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token)
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{t.token: t.logprob for t in token.top_logprobs} for token in tokens] if top else None,
        "text_offset": offsets,
    }


@endpoint(OPENAI)
async def embeddings(request: Request) -> Response:
    """POST /v1/embeddings."""
    body = await read(request, EmbeddingRequest)
    note_ignored(request, unknown(body.options))
    file = await model_file(request, body.model)
    inputs = many(body.input, "input", 2048)

    async def run(out: Output) -> None:
        made = await embed(
            request, file, inputs, dimensions=body.dimensions, context=context_of(body, file),
            keep_alive=seconds(body.keep_alive),
        )  # fmt: skip
        data = [
            {"object": "embedding", "index": i, "embedding": _packed(vector) if base64_wanted else vector}
            for i, vector in enumerate(made.vectors)
        ]
        usage = {"prompt_tokens": made.n_tokens, "total_tokens": made.n_tokens}
        await out.whole({"object": "list", "model": body.model, "data": data, "usage": usage})

    base64_wanted = body.encoding_format == "base64"
    return Answer(run, OPENAI)


def _packed(vector: list[float]) -> str:
    """Return float32 numbers, little-endian, in base64."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")


@endpoint(OPENAI)
async def models(request: Request) -> Response:
    """GET /v1/models."""
    files = await asyncio.to_thread(gateway(request).library.list)
    data = [await _listed(request, file) for file in files]
    ends = {"has_more": False, "first_id": data[0].id if data else None, "last_id": data[-1].id if data else None}
    return as_json({"object": "list", "data": data} | ends)


@endpoint(OPENAI)
async def model(request: Request) -> Response:
    """GET /v1/models/{id}."""
    name = request.path_params["name"]
    if not name:
        raise ApiError("model: is missing in the path.", param="model")
    return as_json(await _listed(request, await model_file(request, name)))


async def _listed(request: Request, file: ModelFile) -> ListedModel:
    try:
        context = (await served_size(request, file)).extent.context
    except (KvantError, OSError):  # its file is not put together yet
        context = file.facts.context_length
    return ListedModel(
        id=file.name, created=int(file.modified_at.timestamp()), max_model_len=context, context_length=context,
        display_name=file.name, created_at=f"{file.modified_at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
    )  # fmt: skip


def routes() -> list[Route]:
    """Return the routes of this module."""
    return [
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/api/v0/models", models, methods=["GET"]),
        Route("/v1/models/{name:path}", model, methods=["GET"]),
    ]
