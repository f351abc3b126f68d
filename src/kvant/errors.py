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
    ├── EngineError (RuntimeError)        the inference engine failed or is not the version expected
    ├── ModelfileError (ValueError)       a Modelfile or template of one that cannot be followed
    ├── SourceError (ValueError)          a source of models that is not understood or does not hold what is asked
    ├── TransferError (ConnectionError)   a download that failed, or whose bytes are not what they should be
    ├── LicenceError (PermissionError)    a licence that the policy does not allow
    ├── MissingDependencyError (ImportError) an extra that is not installed
    ├── ModelNameError (ValueError)       a model name that is malformed, or one too many
    ├── ModelNotFoundError (LookupError)  no model of that name in the store
    ├── StoreError (RuntimeError)         the store holds something else than it promised
    │   └── QuotaError                    the store would grow beyond its quota
    └── OutputExistsError (FileExistsError) an output that would be overwritten
"""


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


class MissingDependencyError(KvantError, ImportError):
    """An optional dependency that is not installed."""


class ModelNameError(KvantError, ValueError):
    """A model name that is malformed, or that only differs in case from one that is there."""


class ModelNotFoundError(KvantError, LookupError):
    """No model of that name, or none with that digest, in the store."""


class StoreError(KvantError, RuntimeError):
    """The store holds something else than it promised: damaged, incomplete, or from another version."""


class QuotaError(StoreError):
    """The store would grow beyond its quota."""


class OutputExistsError(KvantError, FileExistsError):
    """An output that would be overwritten."""
