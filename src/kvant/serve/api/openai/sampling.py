"""What chat completions, completions and embeddings have in common: the engine's parameters and its context."""

from typing import Any

from kvant.generate.sampling import OPENAI_DEFAULTS, context_wanted, engine_options
from kvant.serve.api.openai.types import (
    EmbeddingRequest,
    Sampling,
)
from kvant.serve.api.wire import check
from kvant.serve.library import ModelFile

MAX_BIASES = 1024


_SAME = (
    "temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "top_k", "min_p", "typical_p",
    "repeat_penalty", "repeat_last_n", "stop",
)  # fmt: skip


def context_of(body: Sampling | EmbeddingRequest, file: ModelFile) -> int | None:
    """Return the tokens of context that a request or a model's settings ask for."""
    return context_wanted(file.settings.parameters, body.options or {}, {"num_ctx": body.num_ctx})


def common_sampling(body: Sampling, file: ModelFile, max_tokens: int | None) -> dict[str, Any]:
    """Return the engine's parameters of a request."""
    check(body.n in (None, 1), f"n: {body.n} answers are not made at once. Send n requests.", "n")
    check(
        max_tokens is None or max_tokens == -1 or max_tokens > 0,
        f"max_tokens: {max_tokens} is not positive. Choose 1 or more.",
        "max_tokens",
    )
    given = {name: getattr(body, name) for name in _SAME if getattr(body, name) is not None}
    if body.repetition_penalty is not None:
        given.setdefault("repeat_penalty", body.repetition_penalty)
    if max_tokens is not None:
        given["num_predict"] = max_tokens
    sampling = engine_options(OPENAI_DEFAULTS, file.settings.parameters, body.options or {}, given)
    if body.logit_bias:
        sampling["logit_bias"] = _biases(body.logit_bias)
    return sampling


def _biases(biases: dict[str, float]) -> list[list[float]]:
    check(
        len(biases) <= MAX_BIASES,
        f"logit_bias: {len(biases)} tokens exceed the limit of {MAX_BIASES}. Send fewer.",
        "logit_bias",
    )
    for token, bias in biases.items():
        check(
            token.isascii() and token.isdigit() and len(token) < 10,
            f"logit_bias: {token[:40]!r} is no token id. Send a number.",
            "logit_bias",
        )
        check(-100 <= bias <= 100, f"logit_bias: {bias} is not from -100 to 100. Choose one that is.", "logit_bias")
    return [[int(token), bias] for token, bias in biases.items()]
