"""/v1/rerank, in the shape that clients of Jina, Cohere and llama.cpp know."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from kvant.errors import ApiError, ContextExceededError
from kvant.generate.engine import asked, tokenize
from kvant.runtime.server.workers import Worker
from kvant.serve.api.answer import Answer, Output
from kvant.serve.api.keepalive import seconds
from kvant.serve.api.openai.types import Ranked, RerankDocument, RerankRequest, RerankResponse
from kvant.serve.api.wire import caller, model_file, read
from kvant.serve.gateway import gateway
from kvant.serve.library import ModelFile
from kvant.serve.require import require_rerank
from kvant.serve.wording import OPENAI

MAX_DOCUMENTS = 1024
AROUND_TOKENS = 4
"""What the engine puts around a query and a document at most where the model has no prompt of its own."""


async def rerank(request: Request) -> Response:
    """POST /v1/rerank."""
    body = await read(request, RerankRequest)
    file = await model_file(request, body.model)
    documents = [one if isinstance(one, str) else one.text for one in body.documents]
    require_rerank(file)
    _check(body, documents)

    async def run(out: Output) -> None:
        found = await _scores(request, file, body.query, documents, seconds(body.keep_alive))
        ranked = sorted(found["results"], key=lambda one: -one["relevance_score"])[: body.top_n]
        results = [
            Ranked(
                one["index"], one["relevance_score"],
                RerankDocument(documents[one["index"]]) if body.return_documents else None,
            )
            for one in ranked
        ]  # fmt: skip
        await out.whole(RerankResponse(model=body.model, results=results, usage=found["usage"]))

    return Answer(run, OPENAI)


async def _scores(
    request: Request, file: ModelFile, query: str, documents: list[str], keep_alive: float | None
) -> dict[str, Any]:
    """Return what the engine answers about all documents; loaded anew where a pair is longer than it reads at once."""
    here, prompt = gateway(request), str(file.facts.metadata.get("tokenizer.chat_template.rerank") or "")
    with here.metrics.request(file.name) as timer:
        async with here.scheduler.lease(file, caller=caller(request), keep_alive=keep_alive) as held:
            longest, holds = await _longest(held.worker, prompt, query, documents), held.worker.context
            limit = file.facts.context_length or holds
            if longest > limit:
                raise ContextExceededError(longest, limit, limit)
            found = await _asked(held.worker, query, documents) if longest <= holds else None
        if found is None:
            async with here.scheduler.lease(
                file, caller=caller(request), keep_alive=keep_alive, context=longest, batch=longest
            ) as held:
                found = await _asked(held.worker, query, documents)
        timer.finish("stop", prompt_tokens=found["usage"]["prompt_tokens"], generated_tokens=0)
    return found


async def _longest(worker: Worker, prompt: str, query: str, documents: list[str]) -> int:
    """Tokens of the longest pair as the engine reads it, or a few more."""
    around = len(await tokenize(worker, prompt + query, special=False)) + AROUND_TOKENS
    return around + max([len(await tokenize(worker, text, special=False)) for text in documents])


async def _asked(worker: Worker, query: str, documents: list[str]) -> dict[str, Any]:
    return await asked(worker, "/v1/rerank", {"query": query, "documents": documents})


def _check(body: RerankRequest, documents: list[str]) -> None:
    """Refuse what cannot be ranked.

    Raises:
        ApiError: No documents, too many, an empty one, or none asked for.
    """
    if not documents or len(documents) > MAX_DOCUMENTS:
        raise ApiError(
            f"documents: {len(documents)} are not from 1 to {MAX_DOCUMENTS}. Send another number.", param="documents"
        )
    if not all(documents):
        raise ApiError("documents: a text is empty. Leave it out.", param="documents")
    if not body.query:
        raise ApiError("query: is empty. Send what the documents are to answer.", param="query")
    if body.top_n is not None and body.top_n < 1:
        raise ApiError(f"top_n: {body.top_n} is not above 0. Ask for at least one document.", param="top_n")
