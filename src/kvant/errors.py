"""Every exception kvant raises on purpose.

A message reads `<subject>: <value found> <breaks which limit>. <What to do>.`

    KvantError
    ├── FormatError (ValueError)          a file is not what its format promises
    │   ├── UnsupportedFormatError        well-formed, but a kind or version that is not read here
    │   └── LimitError                    a count or size above a limit that bounds memory and time
    ├── UnsupportedModelError (ValueError) an architecture, tokenizer or option of a model that is not known
    ├── BlockShapeError (ValueError)      a row length that a block type cannot hold
    ├── ValueRangeError (ValueError)      NaN, infinity or an argument outside its range
    ├── PlanError (ValueError)            a plan or override that does not fit the model
    ├── LockError (ValueError)            what a file is to be made again from is not what its lock says
    ├── BudgetError (ValueError)          nothing fits the size, RAM, speed or quality asked for
    ├── ModelNotFoundError (LookupError)  no model of that name
    ├── ModelTooLargeError (ValueError)   a model that memory could not hold even alone
    ├── QueueFullError (RuntimeError)     more requests wait than may
    ├── AccessError (ValueError)          a door that would stand open, or a key that is not one
    ├── EngineError (RuntimeError)        the inference engine failed or is not the version expected
    │   ├── WorkerError                   the engine's process crashed, or could not load the model
    │   └── EngineReplyError              the engine refused a request
    ├── ApiError                          a request to a model that cannot be answered
    │   ├── TemplateRefusedError          its chat template does not take the conversation
    │   └── ContextExceededError          it does not fit the context
    ├── ModelfileError (ValueError)       a Modelfile or template of one that cannot be followed
    ├── SourceError (ValueError)          a source of models that is not understood or does not hold what is asked
    ├── TransferError (ConnectionError)   a download that failed, or whose bytes are not what they should be
    ├── LicenceError (PermissionError)    a licence that the policy does not allow
    ├── MissingDependencyError (ImportError) an extra that is not installed
    │   └── ConverterMissingError         upstream's converter, which is installed when someone agrees
    ├── ModelNameError (ValueError)       a model name that is malformed, or one too many
    ├── StoreError (RuntimeError)         the store holds something else than it promised
    │   ├── QuotaError                    the store would grow beyond its quota
    │   └── StoreReadOnlyError            the store cannot be written to
    └── OutputExistsError (FileExistsError) an output that would be overwritten
"""

from typing import Any


class KvantError(Exception):
    """Root of everything kvant raises on purpose."""


class FormatError(KvantError, ValueError):
    """A file is not what its format promises: truncated, corrupted or hostile."""


class UnsupportedFormatError(FormatError):
    """A well-formed file of a kind or version that is not read here."""


class LimitError(FormatError):
    """A count or size above a limit that bounds memory and time."""


class UnsupportedModelError(KvantError, ValueError):
    """An architecture, tokenizer or option of a model that is not known."""


class BlockShapeError(KvantError, ValueError):
    """A row length that a block type cannot hold."""


class ValueRangeError(KvantError, ValueError):
    """NaN, infinity or an argument outside its range."""


class PlanError(KvantError, ValueError):
    """A plan or override that does not fit the model."""


class LockError(KvantError, ValueError):
    """What a file is to be made again from, or what comes out, is not what its lock says."""


class BudgetError(KvantError, ValueError):
    """Nothing fits the size, RAM, speed or quality asked for."""


class EngineError(KvantError, RuntimeError):
    """The inference engine failed or is not the version expected."""


class ModelfileError(KvantError, ValueError):
    """A Modelfile, or a template of one, that cannot be followed."""


class SourceError(KvantError, ValueError):
    """A source of models that is not understood, or does not hold what is asked."""


class TransferError(KvantError, ConnectionError):
    """A download that failed, or whose bytes are not what they should be."""


class LicenceError(KvantError, PermissionError):
    """A licence that the policy does not allow, or that must be accepted first."""


class WorkerError(EngineError):
    """The engine's process crashed, or could not load the model.

    Attributes:
        name: The model's name.
        retry_after_s: Seconds after which another try makes sense.
        was_waiting: The request had not been begun when the engine was ended: it cannot be why.
    """

    def __init__(self, message: str, *, name: str = "", retry_after_s: float = 1.0, was_waiting: bool = False) -> None:
        super().__init__(message)
        self.name, self.retry_after_s, self.was_waiting = name, retry_after_s, was_waiting


class EngineReplyError(EngineError):
    """The engine refused a request.

    Attributes:
        status: Its HTTP status.
        body: Its answer, decoded; an empty dict if it was not JSON.
    """

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        error = body.get("error")
        message = error.get("message") if isinstance(error, dict) else error
        super().__init__(f"engine: answered {status} ({message or 'without saying why'}). Change the request.")
        self.status, self.body = status, body


class ModelNotFoundError(KvantError, LookupError):
    """No model of that name."""


class ModelTooLargeError(KvantError, ValueError):
    """A model that memory could not hold even alone.

    Attributes:
        need_bytes: Memory predicted for it.
        limit_bytes: Memory that models may take.
    """

    def __init__(self, message: str, *, need_bytes: int = 0, limit_bytes: int = 0) -> None:
        super().__init__(message)
        self.need_bytes, self.limit_bytes = need_bytes, limit_bytes


class QueueFullError(KvantError, RuntimeError):
    """More requests wait than may.

    Attributes:
        retry_after_s: Seconds after which another try makes sense.
    """

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class AccessError(KvantError, ValueError):
    """A door that would stand open, or a key that is not one."""


class MissingDependencyError(KvantError, ImportError):
    """An optional dependency that is not installed."""


class ConverterMissingError(MissingDependencyError):
    """Upstream's converter is needed and not installed: someone has to agree to that.

    Attributes:
        plan: What would be installed, where, and of what size.
    """

    def __init__(self, message: str, *, plan: str = "") -> None:
        super().__init__(message)
        self.plan = plan


class ModelNameError(KvantError, ValueError):
    """A model name that is malformed, or that only differs in case from one that is there."""


class StoreError(KvantError, RuntimeError):
    """The store holds something else than it promised: damaged, incomplete, or from another version."""


class QuotaError(StoreError):
    """The store would grow beyond its quota."""


class StoreReadOnlyError(StoreError):
    """The store cannot be written to: another user's, or on a read-only file system."""


class OutputExistsError(KvantError, FileExistsError):
    """An output that would be overwritten."""


class ApiError(KvantError):
    """A request that cannot be answered, with what its sender is told.

    Args:
        message: What is wrong and what to do.
        status: HTTP status, for a gateway's clients.
        code: Machine-readable reason.
        param: Field that is wrong, if one is.
    """

    def __init__(self, message: str, *, status: int = 400, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


class TemplateRefusedError(ApiError):
    """A conversation that the model's template does not take as it is."""


class ContextExceededError(ApiError):
    """A prompt longer than the context; each API has a sentence for it that clients look for.

    Attributes:
        n_tokens: Tokens of the prompt.
        n_context: Tokens that fit.
        n_trained: Tokens that the model can at most; 0 where that is not known.
    """

    def __init__(self, n_tokens: int, n_context: int, n_trained: int = 0) -> None:
        super().__init__(
            f"prompt: {n_tokens} tokens exceed the context of {n_context}. Shorten it, or ask for more context.",
            code="context_length_exceeded",
        )
        self.n_tokens = n_tokens
        self.n_context = n_context
        self.n_trained = n_trained

    def larger(self) -> int | None:
        """Return a context that would do, with room for an answer; None where the model has none."""
        step = 4096 if self.n_tokens >= 4096 else 256
        wanted = -(-(self.n_tokens + step // 4) // step) * step
        if self.n_trained and self.n_tokens >= self.n_trained:
            return None
        return min(wanted, self.n_trained) if self.n_trained else wanted
