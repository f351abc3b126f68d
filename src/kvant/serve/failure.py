"""What goes wrong with a request, told apart from how each API words it."""

import math
from dataclasses import dataclass

from kvant import errors
from kvant.errors import ApiError, ContextExceededError, KvantError


def overflow(error: ContextExceededError, sentence: str, *, option: str = "") -> str:
    """Return what is said of a prompt that does not fit.

    Args:
        error: The prompt.
        sentence: The API's own, in which `{tokens}` and `{context}` are filled in.
        option: How a request asks for more context, with `{larger}`; empty where the API has no way.
    """
    said = sentence.format(tokens=error.n_tokens, context=error.n_context)
    larger = error.larger()
    if larger is None:
        return f"{said} Shorten it: that is all that the model can."
    ways = [option.format(larger=larger)] if option else []
    ways += [f"kvant serve --context {larger}", f"PARAMETER num_ctx {larger} in its Modelfile"]
    return f"{said} Shorten it, or give the model more: {', or '.join(ways)}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error as a client is told it.

    Attributes:
        status: HTTP status.
        message: What is wrong.
        code: Machine-readable reason.
        param: Field that is wrong.
        retry_after_s: When to come again.
        overflow: The prompt that did not fit, if that is what is wrong.
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after_s: int | None = None
    overflow: ContextExceededError | None = None


def describe(error: Exception) -> Failure:
    """Return what a client is told of an error; what is nobody's business stays here."""
    if isinstance(error, ApiError):
        exceeded = error if isinstance(error, ContextExceededError) else None
        return Failure(
            status=error.status, message=str(error), code=error.code, param=error.param, overflow=exceeded
        )  # fmt: skip
    if isinstance(error, errors.EngineReplyError):
        status = error.status if 400 <= error.status < 600 else 500
        return Failure(status=status, message=str(error), code="engine_error")
    for kind, status, code in _TABLE:
        if isinstance(error, kind):
            after = getattr(error, "retry_after_s", None)
            return Failure(
                status=status, message=str(error), code=code, retry_after_s=None if after is None else math.ceil(after),
                param="model" if kind is errors.ModelNotFoundError else None,
            )  # fmt: skip
    return Failure(status=500, message="gateway: failed unexpectedly. See its log.", code="internal_error")


# The first that fits counts.
_TABLE: tuple[tuple[type[KvantError], int, str], ...] = (
    (errors.ModelNotFoundError, 404, "model_not_found"),
    (errors.QueueFullError, 503, "queue_full"),
    (errors.ModelTooLargeError, 507, "model_too_large"),
    (errors.QuotaError, 507, "quota"),
    (errors.WorkerError, 502, "engine_error"),
    (errors.TransferError, 502, "transfer"),
    (errors.LicenceError, 403, "licence"),
    (errors.AccessError, 403, "access"),
    (errors.ValueRangeError, 400, "invalid_value"),
    (errors.ModelNameError, 400, "invalid_name"),
    (errors.ModelfileError, 400, "invalid_modelfile"),
    (errors.SourceError, 400, "invalid_source"),
    (KvantError, 500, "engine_error"),
)
