"""Encode rows under a full Hessian: the error of a row is e H eᵀ, not a sum over its weights.

H is the second moment E[x xᵀ] of what the matrix is multiplied with, so that e H eᵀ is the mean square error of the
matrix's output. Upstream's encoders see at most its diagonal; off the diagonal is what lets one weight's rounding error
be answered by its neighbours'.

The blocks are the format's own; what is searched is which codes, scales and minimums they hold. Method: rounding with
error feedback (GPTQ, Frantar et al., arXiv 2210.17323), descent over codes, scales and super-scales of each chunk of
columns before its errors are answered by those behind it, then descent with everything else held: native/src/fit.cpp,
and fit_codebook.cpp for points of codebooks.
Bytes depend neither on threads nor on the instruction set.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvant.dtypes import BlockType, block_type
from kvant.errors import BlockShapeError, UnsupportedFormatError, ValueRangeError
from kvant.kernels import _ext, arguments, isa
from kvant.kernels.packing import PACKABLE, Parts, pack

SWEEPS = 2
"""Passes of descent over all columns; the second still takes one per cent off the error, the third a half."""

MAX_SWEEPS = 1000

ENCODING = 2
"""Raised when the same inputs give other bytes than before, so that what was made of them and kept is made again."""

CHUNK = 256
"""Columns that answer each other's errors at once. Source: native/include/kvant/fit.h `fit_chunk`."""

FLOATS_FROM = 1024
"""Columns from which on the products of a factor are taken in float32."""

GROUP_BITS, GROUP_SIZES = (2, 3, 4, 5, 6, 8), (32, 64)
"""MLX's affine groups that can be encoded under a Hessian; scale and bias are float16."""

FITTABLE = PACKABLE
"""Block types that can be encoded under a Hessian: numbers on a grid, or points of a codebook."""

SELDOM_BEST = frozenset({"IQ1_M", "IQ1_S", "NVFP4", "Q1_0", "TQ1_0", "TQ2_0"})
WORTH_WEIGHING = FITTABLE - SELDOM_BEST
"""Those that mixes are made of. The others lose to their neighbours in bits, or win only in files that are no longer of
use; what that was measured by is in docs/explanation/fitting.md."""


_LARGEST_FLOAT = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curvature:
    """A Hessian made ready for rounding; see `prepare`.

    Raises ValueRangeError if the arrays are of other types or shapes, or hold NaN or infinity.

    Attributes:
        hessian: Damped Hessian, float32 [n, n].
        feedback: U, upper triangular with ones on its diagonal, where H = U D Uᵀ, and Uᵀ below it: elements (i, j) and
            (j, i), j < i, are what an error in column j asks of column i, float32 [n, n].
        cost: D, what an error in a column costs once all later columns have answered it, float32 [n].
        local: Of each chunk of columns the block of U D Uᵀ summed over its own columns, float32 [chunks, 256, 256]:
            what errors there cost once all later chunks have answered them; zeros beyond the last column.
    """

    hessian: np.ndarray
    feedback: np.ndarray
    cost: np.ndarray
    local: np.ndarray

    def __post_init__(self) -> None:
        """Check the arrays once, so that rounding need not, and keep them as native code reads them."""
        n = len(self.cost) if np.ndim(self.cost) else 0
        blocks = (-(-n // CHUNK), CHUNK, CHUNK)
        for name, shape in (("hessian", (n, n)), ("feedback", (n, n)), ("cost", (n,)), ("local", blocks)):
            value = arguments.array(f"curvature: {name}", getattr(self, name), np.float32, *shape)
            object.__setattr__(self, name, arguments.finite(f"curvature: {name}", value))

    @property
    def n_bytes(self) -> int:
        """Bytes of the arrays."""
        return sum(getattr(self, name).nbytes for name in ("hessian", "feedback", "cost", "local"))


def prepare(hessian: np.ndarray | Sequence[np.ndarray], *, damping: float, threads: int = 0) -> Curvature:
    """Damp a Hessian and factor it for rounding.

    The factor is computed in float64, its products in float32 where n is large: their error, some 1e-7 of the diagonal,
    is far below any damping. At its peak this holds 12 n² bytes beside what is given, and returns 8 n².

    Args:
        hessian: E[x xᵀ], float32 or float64 [n, n], symmetric: what lies above the diagonal is read. Of several the sum
            is taken, each over its trace, so that they count the same.
        damping: Added to the diagonal, as a share of its mean; makes up for directions the text did not show.
        threads: Threads; 0 for one per core. Their number does not change a bit.

    Raises:
        ValueRangeError: Not square, not finite, all zeros, or not positive definite for all the damping.
    """
    # Traces of zero: the text never reached the matrix.
    moments = [_square(m) for m in (hessian if isinstance(hessian, list | tuple) else [hessian])]
    n, threads = len(moments[0]) if moments else 0, arguments.threads(threads)
    traces = [float(np.sum(m.diagonal(), dtype=np.float64)) for m in moments]
    is_usable = bool(traces) and all(0 < trace < np.inf for trace in traces) and all(len(m) == n for m in moments)
    if not is_usable or not 0 < damping < np.inf:
        raise ValueRangeError(
            f"hessian, damping: {', '.join(f'trace {trace:g}' for trace in traces)} of [{n}, {n}] and {damping:g} must "
            "be positive, and the sizes the same. Measure it again, on a longer or more varied text."
        )
    divisors = traces if len(moments) > 1 else [1.0]
    more = damping * sum(trace / divisor for trace, divisor in zip(traces, divisors, strict=True)) / n
    largest = sum(float(m.diagonal().max()) / divisor for m, divisor in zip(moments, divisors, strict=True)) + more
    if not largest <= _LARGEST_FLOAT:
        raise ValueRangeError(f"hessian: its {largest:g} is beyond float32. Divide it by the number of tokens.")
    factor = arguments.empty("hessian", (n, n), np.float64)
    # The larger the matrix the more its factor costs; if floats should not do, doubles tell.
    for in_floats in (True, False) if n > FLOATS_FROM else (False,):
        bad = _ext.factor_mixture(isa.level(), moments, divisors, more, factor, in_floats, threads)
        if bad == -1:
            break
    if bad != -1:
        raise ValueRangeError(
            "hessian: holds NaN or infinity. Measure it again."
            if bad == -2
            else f"hessian: column {bad} has no positive pivot. Add more damping, or measure it over more text."
        )
    feedback, cost = arguments.empty("hessian", (n, n), np.float32), np.empty(n, np.float32)
    local = np.empty((-(-n // CHUNK), CHUNK, CHUNK), np.float32)
    _ext.split_factor(factor, feedback, cost, local, threads)
    del factor
    damped = arguments.empty("hessian", (n, n), np.float32)
    _ext.round_mixture(moments, divisors, more, damped, threads)
    return Curvature(hessian=damped, feedback=feedback, cost=cost, local=local)


def _square(moment: object) -> np.ndarray:
    if (
        not isinstance(moment, np.ndarray)
        or hasattr(moment, "mask")
        or moment.dtype not in (np.float32, np.float64)
        or moment.ndim != 2
        or moment.shape[0] != moment.shape[1]
        or not np.isfinite(moment.diagonal()).all()
    ):
        raise ValueRangeError(
            f"hessian: {arguments.found(moment)} is not a square of finite float32 or float64. Measure it again."
        )
    return np.ascontiguousarray(moment)


def fit(
    x: np.ndarray, kind: str | BlockType, curvature: Curvature, *, sweeps: int = SWEEPS, threads: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Encode rows so that e H eᵀ is small, e being what decoding gives minus x.

    Args:
        x: Weights, float32 [rows, n]; n a multiple of the type's block length.
        kind: Block type or its name, one of `FITTABLE`.
        curvature: The Hessian of the rows' columns.
        sweeps: Passes of descent after the first rounding.
        threads: Threads over rows; 0 for one per core.

    Returns:
        Blocks, uint8 [rows, bytes per row], and the error e H eᵀ that is left, float32 [rows], to about 1e-8 of
        x H xᵀ; not finite for a row whose weights' squares float32 cannot hold.

    Raises:
        BlockShapeError: n is not a multiple of the block length.
        UnsupportedFormatError: The type has no such encoder.
        ValueRangeError: A weight is NaN or infinite, or the arrays do not fit one another.
    """
    target = block_type(kind)
    known = {ggml_id: (run, block) for ggml_id, run, block in _ext.fit_types()}
    if target.name not in FITTABLE or target.ggml_id not in known:
        raise UnsupportedFormatError(
            f"fit: {target} cannot be encoded under a Hessian. Use one of {', '.join(sorted(FITTABLE))}."
        )
    x = _rows(x, curvature)
    n_threads, sweeps = arguments.threads(threads), arguments.count("sweeps", sweeps, most=MAX_SWEEPS)
    rows, n = len(x), arguments.row_length("x", x.shape[1], target)
    n_runs, n_blocks = (n // length for length in known[target.ggml_id])
    parts = Parts(
        codes=np.empty((rows, n), np.uint8),
        d=np.empty((rows, n_blocks), np.uint16), dmin=np.empty((rows, n_blocks), np.uint16),
        scales=np.empty((rows, n_runs), np.int8), minimums=np.empty((rows, n_runs), np.uint8),
    )  # fmt: skip
    loss = np.empty(rows, np.float32)
    _ext.fit(
        target.ggml_id, isa.level(), x, curvature.hessian, curvature.feedback, curvature.cost,
        curvature.local, sweeps, parts.codes, parts.scales, parts.minimums, parts.d, parts.dmin, loss, n_threads,
    )  # fmt: skip
    return pack(parts, target), loss


def fit_groups(
    x: np.ndarray, bits: int, group_size: int, curvature: Curvature, *, sweeps: int = SWEEPS, threads: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Encode rows as MLX's affine groups, weight = scale * code + bias, so that e H eᵀ is small.

    Args:
        x: Weights, float32 [rows, n]; n a multiple of the group size.
        bits: Bits of a code: 2, 3, 4, 5, 6 or 8.
        group_size: Weights that share scale and bias: 32 or 64.
        curvature: The Hessian of the rows' columns.
        sweeps: Passes of descent after the first rounding.
        threads: Threads over rows; 0 for one per core.

    Returns:
        Codes, uint8 [rows, n]; scales and biases as float16 bits, uint16 [rows, groups]; what is left of e H eᵀ,
        float32 [rows].

    Raises:
        BlockShapeError: n is not a multiple of the group size.
        UnsupportedFormatError: There is no such encoder.
        ValueRangeError: A weight is NaN or infinite, or the arrays do not fit one another.
    """
    if bits not in GROUP_BITS or group_size not in GROUP_SIZES:
        raise UnsupportedFormatError(
            f"fit: groups of {group_size} with {bits} bits cannot be encoded under a Hessian. Use {GROUP_BITS} bits in "
            f"groups of {GROUP_SIZES}."
        )
    x = _rows(x, curvature)
    n_threads, sweeps = arguments.threads(threads), arguments.count("sweeps", sweeps, most=MAX_SWEEPS)
    rows, n = x.shape
    if not n or n % group_size:
        raise BlockShapeError(f"x: row length {n} is not a multiple of the group size {group_size}. Use another.")
    codes, loss = np.empty((rows, n), np.uint8), np.empty(rows, np.float32)
    scales, biases = (np.empty((rows, n // group_size), np.uint16) for _ in range(2))
    unused = np.empty((rows, 0), np.int8)
    _ext.fit(
        100 * group_size + bits, isa.level(), x, curvature.hessian, curvature.feedback,
        curvature.cost, curvature.local, sweeps, codes, unused, unused.view(np.uint8), scales, biases, loss, n_threads,
    )  # fmt: skip
    return codes, scales, biases, loss


def _rows(x: np.ndarray, curvature: Curvature) -> np.ndarray:
    x = arguments.finite("x", arguments.array("x", x, np.float32, "rows", "n"))
    n = x.shape[1]
    if curvature.hessian.shape != (n, n):
        raise ValueRangeError(f"curvature: {curvature.hessian.shape} does not fit rows of {n}. Measure it again.")
    return x
