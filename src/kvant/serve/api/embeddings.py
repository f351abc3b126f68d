"""Vectors of texts, for both APIs that give them."""

import math
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from starlette.requests import Request

from kvant.devices.cache import BATCH_TOKENS
from kvant.errors import ApiError, ContextExceededError
from kvant.generate.engine import asked, tokenize
from kvant.runtime.server.workers import Worker
from kvant.serve.api.wire import caller
from kvant.serve.gateway import gateway
from kvant.serve.lease import Lease
from kvant.serve.library import ModelFile
from kvant.serve.memory import reads_only
from kvant.serve.require import require_vectors

MAX_INPUTS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """Vectors, of length one each.

    Attributes:
        vectors: One for each text.
        n_tokens: Tokens of all texts.
        load_s: Seconds that loading the model took.
    """

    vectors: list[list[float]]
    n_tokens: int
    load_s: float


async def embed(
    request: Request, file: ModelFile, inputs: list[str] | list[list[int]], *, dimensions: int | None = None,
    keep_alive: float | None = None, context: int | None = None, truncate: bool = False,
) -> Embedded:  # fmt: skip
    """Return the vectors of texts, each as long as the model can read, or the context asked for.

    Args:
        request: Whose.
        file: The model; one that makes text gives the mean of its last hidden states.
        inputs: Texts, or token ids.
        dimensions: Numbers to keep of each vector, which is made of length one again.
        keep_alive: Seconds that the model stays loaded.
        context: Tokens of context asked for.
        truncate: Cut the end of texts that do not fit, which is an error otherwise.

    Raises:
        ApiError: Too many texts, one that is empty or too long, or dimensions the model does not have.
        ModelTooLargeError: There is no memory to read a text that long at once.
    """
    require_vectors(file)
    if len(inputs) > MAX_INPUTS:
        raise ApiError(f"input: {len(inputs)} texts exceed the limit of {MAX_INPUTS}. Send fewer.", param="input")
    size = file.facts.embedding_length
    if dimensions is not None and (dimensions < 1 or (size and dimensions > size)):
        raise ApiError(f"dimensions: {dimensions} is not from 1 to {size}. Choose another number.", param="dimensions")
    here = gateway(request)
    with here.metrics.request(file.name) as timer:

        def lease(wanted: int | None, batch: int) -> AbstractAsyncContextManager[Lease]:
            return here.scheduler.lease(
                file, caller=caller(request), context=wanted, keep_alive=keep_alive, batch=batch
            )  # fmt: skip

        ids: list[list[int]] = []
        async with lease(context, 0) as held:
            load_s, holds = held.load_s, _holds(file, held.worker.context)
            if inputs:
                ids = await _tokens(held.worker, inputs, _limit(file, held.worker, context), truncate=truncate)
                if max(map(len, ids)) <= holds:
                    vectors = await _vectors(held.worker, ids)
        longest = max(map(len, ids), default=0)
        if longest > holds:  # only now is it known how much is to be read at once
            async with lease(max(longest, context or 0), longest) as held:
                load_s, vectors = load_s + held.load_s, await _vectors(held.worker, ids)
        elif not inputs:
            vectors = []
        n_tokens = sum(map(len, ids))
        timer.finish("stop", prompt_tokens=n_tokens, generated_tokens=0)
    return Embedded(vectors=[_shortened(vector, dimensions) for vector in vectors], n_tokens=n_tokens, load_s=load_s)


def _holds(file: ModelFile, context: int) -> int:
    """Return the tokens of a text that a worker reads at once without being asked."""
    return context if reads_only(file) else min(context, BATCH_TOKENS)


def _limit(file: ModelFile, worker: Worker, context: int | None) -> int:
    """Return the most tokens that a text may have: what was asked for, at most what the model can."""
    trained = file.facts.context_length
    if context is not None:
        return min(worker.context, context)
    return trained or worker.context


async def _tokens(
    worker: Worker, inputs: list[str] | list[list[int]], limit: int, *, truncate: bool
) -> list[list[int]]:
    """Return the token ids of texts, none longer than the limit.

    Raises:
        ApiError: A text is empty.
        ContextExceededError: One is longer, and may not be cut.
    """
    ids = [text if isinstance(text, list) else await tokenize(worker, text, special=True) for text in inputs]
    if not all(ids):
        raise ApiError("input: a text is empty. Leave it out.", param="input")
    longest = max(map(len, ids))
    if longest <= limit:
        return ids
    if not truncate:
        raise ContextExceededError(longest, limit, limit)
    frame = await tokenize(worker, "", special=True)  # what the model wants around a text
    return [_cut(tokens, limit, frame) for tokens in ids]


def _cut(tokens: list[int], limit: int, frame: list[int]) -> list[int]:
    """Return a text's beginning; the token that ends every text of the model still ends it."""
    if len(tokens) <= limit:
        return tokens
    closed = bool(frame) and tokens[-1] == frame[-1] and (len(frame) > 1 or tokens[0] != frame[0])
    return [*tokens[: limit - 1], tokens[-1]] if closed else tokens[:limit]


async def _vectors(worker: Worker, ids: list[list[int]]) -> list[list[float]]:
    answer = await asked(worker, "/v1/embeddings", {"input": ids, "encoding_format": "float"})
    rows = sorted(answer["data"], key=lambda row: row["index"])
    return [row["embedding"] for row in rows]


def _shortened(vector: list[float], dimensions: int | None) -> list[float]:
    if dimensions is None or dimensions >= len(vector):
        return vector
    kept = vector[:dimensions]
    norm = math.sqrt(sum(x * x for x in kept))
    return [x / norm for x in kept] if norm else kept
