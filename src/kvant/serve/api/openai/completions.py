"""OpenAI's API: /v1/completions, /v1/embeddings, /v1/models.

Source: OpenAI's API reference.
"""

import time
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kvant.generate.chunks import TokenLogprob, Usage, Whole, gather
from kvant.generate.prompt import Format, Text
from kvant.generate.sampling import unknown
from kvant.serve.api.answer import Answer, Output
from kvant.serve.api.formats import settled
from kvant.serve.api.ids import new_id
from kvant.serve.api.keepalive import seconds
from kvant.serve.api.openai.prompts import many
from kvant.serve.api.openai.sampling import common_sampling, context_of
from kvant.serve.api.openai.types import DONE, CompletionRequest, out_usage
from kvant.serve.api.run import Job, answering, streaming
from kvant.serve.api.wire import check, model_file, note_ignored, read
from kvant.serve.endpoints import SSE
from kvant.serve.require import require
from kvant.serve.wording import OPENAI

MAX_PROMPTS = 128
MAX_LOGPROBS = 20
_encode = msgspec.json.Encoder().encode


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
