"""What goes wrong with a request, told apart from how each API words it."""

from dataclasses import dataclass

from kvant.errors import KvantError


class ApiError(KvantError):
    """A request that cannot be answered, with what its sender is told.

    Args:
        message: What is wrong and what to do.
        status: HTTP status.
        code: Machine-readable reason.
        param: Field that is wrong, if one is.
    """

    def __init__(self, message: str, *, status: int = 400, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


class ContextExceededError(ApiError):
    """A prompt longer than the context.

    Attributes:
        n_tokens: Tokens of the prompt.
        n_context: Tokens that fit.
    """

    def __init__(self, n_tokens: int, n_context: int) -> None:
        super().__init__(
            f"prompt: {n_tokens} tokens exceed the context of {n_context}. Shorten it, or load the model with a larger "
            "context.",
            code="context_length_exceeded",
        )
        self.n_tokens = n_tokens
        self.n_context = n_context


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error as a client is told it.

    Attributes:
        status: HTTP status.
        message: What is wrong.
        code: Machine-readable reason.
        param: Field that is wrong.
        retry_after_s: When to come again.
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after_s: int | None = None


def describe(error: Exception) -> Failure:
    """Return what a client is told of an error; what is nobody's business stays here."""
    from kvant import errors

    if isinstance(error, ApiError):
        return Failure(status=error.status, message=str(error), code=error.code, param=error.param)
    if isinstance(error, errors.ModelNotFoundError):
        return Failure(status=404, message=str(error), code="model_not_found", param="model")
    if isinstance(error, errors.QueueFullError):
        after = int(getattr(error, "retry_after_s", 1)) or 1
        return Failure(status=503, message=str(error), code="queue_full", retry_after_s=after)
    if isinstance(error, errors.ModelTooLargeError):
        return Failure(status=507, message=str(error), code="model_too_large")
    if isinstance(error, KvantError):
        return Failure(status=500, message=str(error), code="engine_error")
    return Failure(status=500, message="gateway: failed unexpectedly. See its log.", code="internal_error")
