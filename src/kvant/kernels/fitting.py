"""Encode rows under a full Hessian: the error of a row is e H eᵀ, not a sum over its weights.

H is the second moment E[x xᵀ] of what the matrix is multiplied with, so that e H eᵀ is the mean square error of the
matrix's output. Upstream's encoders see at most its diagonal; off the diagonal is what lets one weight's rounding error
be answered by its neighbours'.

The blocks are the format's own; what is searched is which codes, scales and minimums they hold. Method: rounding with
error feedback (GPTQ, Frantar et al., arXiv 2210.17323) inside blocks, then descent over codes, scales and super-scales
with everything else held: native/src/fit.cpp, and fit_codebook.cpp for points of codebooks.
Bytes depend neither on threads nor on the instruction set.
"""

from dataclasses import dataclass

import numpy as np

from kvant.dtypes import BlockType, block_type
from kvant.errors import BlockShapeError, UnsupportedFormatError, ValueRangeError
from kvant.kernels import _ext, arguments, isa, linalg
from kvant.kernels.packing import PACKABLE, Parts, pack

SWEEPS = 3
"""Passes of descent after the first rounding; the third still takes two per cent off the error, the eighth a half."""

MAX_SWEEPS = 1000

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
        feedback: U below the diagonal, transposed, where H = U D Uᵀ: row i, column j < i, is what an error in column j
            asks of column i, float32 [n, n].
        cost: D, what an error in a column costs once all later columns have answered it, float32 [n].
    """

    hessian: np.ndarray
    feedback: np.ndarray
    cost: np.ndarray

    def __post_init__(self) -> None:
        """Check the arrays once, so that rounding need not, and keep them as native code reads them."""
        n = len(self.cost) if np.ndim(self.cost) else 0
        for name, shape in (("hessian", (n, n)), ("feedback", (n, n)), ("cost", (n,))):
            value = arguments.array(f"curvature: {name}", getattr(self, name), np.float32, *shape)
            object.__setattr__(self, name, arguments.finite(f"curvature: {name}", value))


def prepare(hessian: np.ndarray, *, damping: float, threads: int = 0) -> Curvature:
    """Damp a Hessian and factor it for rounding.

    Args:
        hessian: E[x xᵀ], float32 or float64 [n, n], symmetric.
        damping: Added to the diagonal, as a share of its mean; makes up for directions the text did not show.
        threads: Threads; 0 for one per core. Their number does not change a bit.

    Raises:
        ValueRangeError: Not square, not finite, all zeros, or not positive definite for all the damping.
    """
    is_real = isinstance(hessian, np.ndarray) and hessian.dtype in (np.float32, np.float64)
    if not is_real or hessian.ndim != 2 or hessian.shape[0] != hessian.shape[1] or not np.isfinite(hessian).all():
        raise ValueRangeError(
            f"hessian: {arguments.found(hessian)} is not a square of finite float32 or float64. Measure it again."
        )
    n = len(hessian)
    mean = float(np.einsum("ii->", hessian.astype(np.float64))) / max(1, n)
    if not 0 < mean < np.inf or not 0 < damping < np.inf:
        raise ValueRangeError(f"hessian, damping: mean {mean:g} and {damping:g} must be positive. Measure it again.")
    damped = hessian.astype(np.float64)
    damped[np.diag_indices(n)] += damping * mean
    if not damped.max() <= _LARGEST_FLOAT:
        raise ValueRangeError(f"hessian: its {damped.max():g} is beyond float32. Divide it by the number of tokens.")
    # H = R Rᵀ with R upper triangular: the Cholesky factor of H with its columns in reverse order.
    upper = linalg.cholesky(damped[::-1, ::-1], threads=threads)[::-1, ::-1]
    scale = np.diag(upper)
    return Curvature(
        hessian=damped.astype(np.float32),
        feedback=np.ascontiguousarray((upper / scale).T, dtype=np.float32),
        cost=np.square(scale).astype(np.float32),
    )


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
        Blocks, uint8 [rows, bytes per row], and the error e H eᵀ that is left, float32 [rows]; not finite for a row
        whose weights' squares float32 cannot hold.

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
        sweeps, parts.codes, parts.scales, parts.minimums, parts.d, parts.dmin, loss, n_threads,
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
        curvature.cost, sweeps, codes, unused, unused.view(np.uint8), scales, biases, loss, n_threads,
    )  # fmt: skip
    return codes, scales, biases, loss


def _rows(x: np.ndarray, curvature: Curvature) -> np.ndarray:
    x = arguments.finite("x", arguments.array("x", x, np.float32, "rows", "n"))
    n = x.shape[1]
    if curvature.hessian.shape != (n, n):
        raise ValueRangeError(f"curvature: {curvature.hessian.shape} does not fit rows of {n}. Measure it again.")
    return x
