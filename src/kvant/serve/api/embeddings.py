"""Vectors of texts, for both APIs that give them."""

import contextlib
import math
from dataclasses import dataclass

from starlette.requests import Request

from kvant.serve.api.chat import asked, tokenize
from kvant.serve.api.failure import ApiError, ContextExceededError
from kvant.serve.api.run import caller
from kvant.serve.api.wire import gateway
from kvant.serve.library import ModelFile
from kvant.serve.workers import Worker

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
    """Return the vectors of texts.

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
    """
    if len(inputs) > MAX_INPUTS:
        raise ApiError(f"input: {len(inputs)} texts exceed the limit of {MAX_INPUTS}. Send fewer.", param="input")
    size = file.facts.embedding_length
    if dimensions is not None and (dimensions < 1 or (size and dimensions > size)):
        raise ApiError(f"dimensions: {dimensions} is not from 1 to {size}. Choose another number.", param="dimensions")
    here = gateway(request)
    async with contextlib.AsyncExitStack() as stack:
        timer = stack.enter_context(here.metrics.request(file.name))
        lease = await stack.enter_async_context(
            here.scheduler.lease(file, caller=caller(request), context=context, keep_alive=keep_alive)
        )
        if not inputs:
            return Embedded(vectors=[], n_tokens=0, load_s=lease.load_s)
        ids = [text if isinstance(text, list) else await tokenize(lease.worker, text, special=True) for text in inputs]
        if not all(ids):
            raise ApiError("input: a text is empty. Leave it out.", param="input")
        ids = [_fitted(tokens, lease.worker, truncate=truncate) for tokens in ids]
        answer = await asked(lease.worker, "/v1/embeddings", {"input": ids, "encoding_format": "float"})
        timer.finish("stop", prompt_tokens=sum(map(len, ids)), generated_tokens=0)
    rows = sorted(answer["data"], key=lambda row: row["index"])
    vectors = [_shortened(row["embedding"], dimensions) for row in rows]
    return Embedded(vectors=vectors, n_tokens=sum(map(len, ids)), load_s=lease.load_s)


def _fitted(tokens: list[int], worker: Worker, *, truncate: bool) -> list[int]:
    if len(tokens) <= worker.context:
        return tokens
    if not truncate:
        raise ContextExceededError(len(tokens), worker.context)
    return tokens[: worker.context]


def _shortened(vector: list[float], dimensions: int | None) -> list[float]:
    if dimensions is None or dimensions >= len(vector):
        return vector
    kept = vector[:dimensions]
    norm = math.sqrt(sum(x * x for x in kept))
    return [x / norm for x in kept] if norm else kept
