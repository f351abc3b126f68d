"""Curvature: how errors in a matrix's input channels act together, measured on calibration text.

Where importance (importance.py) knows one number per channel, a Hessian E[x xᵀ] knows every pair of them. Encoders that
use it let weights answer each other's rounding errors: kernels/fitting.py.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock

import numpy as np

from kvant.dtypes import BlockType
from kvant.errors import PlanError
from kvant.kernels import fitting
from kvant.quant.importance import Importance
from kvant.quant.roles import EMBEDDINGS
from kvant.tensors import Tensor, n_rows, row_length

DAMPING = 0.15
"""Share of the mean diagonal added to a Hessian of many more tokens than columns. Mean KL divergence of SmolLM2 with
.03, .12 and .3: .0781, .0765 and .0750 at 78 MB, .0233, .0221 and .0228 at 98 MB."""

DAMPING_BY_COLUMNS = 1.0
"""What a Hessian of as many columns as tokens gets on top, one of a tenth as many a tenth of it: to it chance in the
text looks like structure. In Qwen2.5-Coder-1.5B's `ffn_down`, 8960 columns on 12,288 tokens, the error on other text is
.0071 of the output with .03, .0052 with .3 and .0049 with 1."""

SHARED_FROM = 6144
"""Columns from which on a Hessian is factored by all threads: few so large are in memory. Smaller ones are factored
by one thread each, while the others encode."""

READY_BYTES = 12
"""Bytes per element of a Hessian while it is factored; afterwards it is 8."""

EMBEDDING_DAMPING = 0.03
"""That of the token embedding, whose rows each answer to few tokens; .3 costs 2 % of the KL divergence at 78 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curvatures:
    """Hessians of a model's matrices.

    Attributes:
        names: Tensors that were measured.
        hessian: Returns a tensor's Hessian, float32 or float64 [n, n], or several that count the same; it is asked for
            when the tensor's turn comes.
        sha256: Digest of all that decides the Hessians' bytes.
        text_sha256: Digest of the text they were measured on.
        n_tokens: Tokens they were measured on.
        expert: Returns the Hessian of one matrix of a stack, float32 or float64 [n, n], and the tokens that it rests
            on; None where stacks have one Hessian for all.
    """

    names: Collection[str]
    hessian: Callable[[str], np.ndarray | Sequence[np.ndarray]]
    sha256: str
    text_sha256: str = ""
    n_tokens: int = 0
    expert: Callable[[str, int], tuple[np.ndarray, int]] | None = None

    def damping(self, name: str, n_columns: int, n_tokens: int) -> float:
        """Return the share of its mean diagonal that is added to a tensor's Hessian."""
        if name in EMBEDDINGS:
            return EMBEDDING_DAMPING
        return DAMPING + DAMPING_BY_COLUMNS * n_columns / n_tokens if n_tokens else DAMPING

    def ready(self, name: str, *, expert: int | None = None, threads: int = 0) -> fitting.Curvature:
        """Load, damp and factor a tensor's Hessian; of a stack, that of one expert, or of all together."""
        if expert is None or self.expert is None:
            found, n_tokens = self.hessian(name), self.n_tokens
        else:
            found, n_tokens = self.expert(name, expert)
        moments = [found] if isinstance(found, np.ndarray) else found
        return fitting.prepare(moments, damping=self.damping(name, len(moments[0]), n_tokens), threads=threads)

    def encoder(self, tensor: Tensor, kind: BlockType, *, threads: int = 0) -> "FittedEncoder | None":
        """Return the encoder of a tensor; None if it was not measured, or the type cannot use what was.

        `threads` factor its Hessian if it is a large one; 0 for one per core.
        """
        if tensor.name not in self.names or kind.name not in fitting.FITTABLE:
            return None
        stack = math.prod(tensor.shape[:-2])
        is_split = stack > 1 and self.expert is not None
        return FittedEncoder(
            name=tensor.name, kind=kind, curvatures=self, threads=factor_threads(tensor, threads),
            matrix_rows=n_rows(tensor) // (stack if is_split else 1), is_split=is_split,
        )  # fmt: skip


def factor_threads(tensor: Tensor, threads: int) -> int:
    """Return how many of `threads` factor a tensor's Hessian while the others have work of their own."""
    return threads if row_length(tensor) >= SHARED_FROM else 1


def diagonal(importance: Importance, tensors: Mapping[str, Tensor]) -> Curvatures:
    """Return the Hessians of which only the diagonal is known: the importance of input channels.

    Args:
        importance: What an importance file says.
        tensors: The model's tensors, by name.

    Raises:
        PlanError: It was measured on another model.
        ValueRangeError: It is not finite.
    """
    importance.check_finite()
    known = {t.name: importance.weights_for(t) for t in tensors.values() if len(t.shape) == 2}
    channels = {name: weights[0] for name, weights in known.items() if weights is not None}
    if not channels:
        raise PlanError(
            f"importance: {importance.source or 'the file'} names no matrix of this model. Measure it on it."
        )
    return Curvatures(names=channels, hessian=lambda name: np.diag(channels[name]), sha256=importance.sha256)


@dataclass(slots=True, kw_only=True)
class FittedEncoder:
    """Encodes the rows of one tensor under its Hessian, or each expert's under its own.

    A Hessian is loaded and factored by whoever comes first, or by `make_ready`, and forgotten with its last row.

    Attributes:
        name: The tensor.
        kind: Type to encode.
        curvatures: Where its Hessian is.
        matrix_rows: Rows of the tensor, or of each expert.
        is_split: Each expert has a Hessian of its own.
        threads: Threads that factor a large Hessian; 0 for one per core.
    """

    name: str
    kind: BlockType
    curvatures: Curvatures
    matrix_rows: int
    is_split: bool = False
    threads: int = 0
    _lock: Lock = field(default_factory=Lock)
    _ready: dict[int, Future[fitting.Curvature]] = field(default_factory=dict)
    _encoded: dict[int, int] = field(default_factory=dict)

    def make_ready(self, expert: int = 0) -> fitting.Curvature:
        """Load and factor the Hessian, or an expert's, if nobody has; else wait for who does.

        Raises:
            ValueRangeError: It is none.
        """
        with self._lock:
            is_first = expert not in self._ready
            found = self._ready.setdefault(expert, Future())
        if is_first:
            try:
                found.set_result(
                    self.curvatures.ready(self.name, expert=expert if self.is_split else None, threads=self.threads)
                )
            except BaseException as error:  # those who wait are told the same
                found.set_exception(error)
        return found.result()

    def __call__(self, x: np.ndarray, *, first_row: int = 0, threads: int = 1) -> np.ndarray:
        """Encode rows of weights, float32 [rows, n] -> uint8 [rows, bytes per row].

        Args:
            x: Rows, all of one expert.
            first_row: Number of the first.
            threads: Threads over rows.

        Raises:
            ValueRangeError: A weight is NaN or infinite, or the Hessian does not fit.
        """
        expert = first_row // self.matrix_rows if self.is_split else 0
        encoded = fitting.fit(x, self.kind, self.make_ready(expert), threads=threads)[0]
        with self._lock:
            self._encoded[expert] = self._encoded.get(expert, 0) + len(x)
            if self._encoded[expert] >= self.matrix_rows:
                del self._encoded[expert]
                self._ready.pop(expert, None)
        return encoded
