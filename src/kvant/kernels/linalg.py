"""Matrix products and Cholesky factors whose bytes are the same on every machine, level and number of threads.

What is measured and rounded with them can be rebuilt to the byte, which a BLAS does not promise: its order of summation
changes with the processor and with the threads.

Order of every sum: an element of a product is reduced over k in panels of `PANEL` steps. A panel is a float32 sum from
zero in the order of k, each product and each sum rounded; the panels are added in their order. Nothing is fused. NaN
stays NaN, but which one is not promised. Factors work in float64, in panels of `FACTOR_PANEL` columns. Twins:
kvant.kernels.reference.linalg; kernels: native/src/matmul.cpp and cholesky.cpp.
"""

import numpy as np

from kvant.errors import ValueRangeError
from kvant.kernels import _ext, arguments, isa

PANEL = 256
"""Steps of k that are summed before they are added to the result."""

FACTOR_PANEL = 192
"""Columns of a Cholesky factor that are finished before their products are taken out of the columns behind them."""


def matmul(a: np.ndarray, b: np.ndarray, *, threads: int = 0) -> np.ndarray:
    """Multiply float32 [m, k] by float32 [k, n] into float32 [m, n].

    Args:
        a: Left matrix; or a stack of them, [count, m, k].
        b: Right matrix; or a stack of as many.
        threads: Threads over tiles of the result, or over the matrices of a stack; 0 for one per core.

    Raises:
        LimitError: Memory cannot hold the product.
        ValueRangeError: Not float32 matrices or stacks that fit one another.
    """
    return _product(a, b, threads)


def matmul_nt(a: np.ndarray, b: np.ndarray, *, threads: int = 0) -> np.ndarray:
    """Multiply float32 [m, k] by the transpose of float32 [n, k] into float32 [m, n]: a linear layer x @ W.T.

    Args, Raises: As for `matmul`.
    """
    return _product(a, b, threads, transpose_b=True)


def matmul_tn(a: np.ndarray, b: np.ndarray, *, threads: int = 0) -> np.ndarray:
    """Multiply the transpose of float32 [k, m] by float32 [k, n] into float32 [m, n].

    Args, Raises: As for `matmul`.
    """
    return _product(a, b, threads, transpose_a=True)


def gram(x: np.ndarray, *, out: np.ndarray | None = None, threads: int = 0) -> np.ndarray:
    """Add x.T @ x to a symmetric matrix: second moments over chunks of rows.

    Panels of `PANEL` rows are summed in float32 and added to `out` in its own type: float64 keeps the error that of one
    panel, however many rows come. Chunks of whole panels give the bytes of one call with all rows.

    Args:
        x: Rows, float32 [t, n].
        out: Symmetric matrix that is added to in place, float64 or float32 [n, n]; only its lower triangle is read.
            None for zeros in float64.
        threads: Threads over tiles of the result; 0 for one per core.

    Returns:
        `out`.

    Raises:
        ValueRangeError: The arrays are not of these types or shapes.
    """
    x = _matrix("x", x)
    n, n_threads = x.shape[1], arguments.threads(threads)
    if out is None:
        out = arguments.empty("out", (n, n), np.float64)
        out[:] = 0
    if not isinstance(out, np.ndarray) or out.shape != (n, n) or out.dtype not in (np.float32, np.float64):
        raise ValueRangeError(
            f"out: {arguments.found(out)} is not float64 or float32 [{n}, {n}]. Give x's columns squared, or None."
        )
    if not (out.flags.carray and not np.may_share_memory(out, x)):
        raise ValueRangeError(
            "out: not contiguous, writable, aligned and apart from x, so it cannot be added to. Pass a copy of it."
        )
    add = _ext.gram64 if out.dtype == np.float64 else _ext.gram32
    add(isa.level(), x, out, n_threads)
    return out


def cholesky(h: np.ndarray, *, threads: int = 0) -> np.ndarray:
    """Factor a symmetric positive definite matrix: h = L L.T.

    Args:
        h: Float64 or float32 [n, n]; only its lower triangle is read.
        threads: Threads over tiles; 0 for one per core.

    Returns:
        L, lower triangular, float64 [n, n].

    Raises:
        ValueRangeError: Not a square of these types, or not positive definite; the message names the first column whose
            pivot is not positive.
    """
    factor = _square(h).astype(np.float64, order="C")
    bad = _ext.cholesky(isa.level(), factor, False, arguments.threads(threads))
    if bad >= 0:
        raise _indefinite(bad, factor[bad, bad])
    return factor


def inverse_cholesky_upper(h: np.ndarray, *, threads: int = 0) -> np.ndarray:
    """Factor the inverse of a symmetric positive definite matrix: inv(h) = U.T U, as rounding with feedback needs it.

    The inverse itself is never formed. With J the reversal of rows, J h J = L L.T; then h = R R.T with R = J L J upper
    triangular, and U = inv(R) = J inv(L) J. Source: GPTQ, Frantar et al., arXiv 2210.17323, step 3.

    Args:
        h: Float64 or float32 [n, n]; only its upper triangle is read.
        threads: Threads over tiles; 0 for one per core.

    Returns:
        U, upper triangular, float32 [n, n]; computed in float64.

    Raises:
        ValueRangeError: As for `cholesky`; columns come from the last to the first.
    """
    factor = _square(h)[::-1, ::-1].astype(np.float64, order="C")
    bad = _ext.cholesky(isa.level(), factor, True, arguments.threads(threads))
    if bad >= 0:
        raise _indefinite(len(h) - 1 - bad, factor[bad, bad])
    return factor[::-1, ::-1].astype(np.float32, order="C")


def _product(
    a: np.ndarray, b: np.ndarray, threads: int, *, transpose_a: bool = False, transpose_b: bool = False
) -> np.ndarray:
    stacked = np.ndim(a) == np.ndim(b) == 3
    if stacked:
        stack, what = ("stack", "rows", "columns"), "a stack of float32 matrices"
        a, b = (arguments.array("a, b", x, np.float32, *stack, what=what) for x in (a, b))
        if len(a) != len(b):
            raise ValueRangeError(f"a, b: stacks of {len(a)} and {len(b)} matrices. Give as many of each.")
    else:
        a, b = _matrix("a", a)[None], _matrix("b", b)[None]
    (m, k), (steps, n) = (
        x.shape[:0:-1] if transposed else x.shape[1:] for x, transposed in ((a, transpose_a), (b, transpose_b))
    )
    if k != steps:
        raise ValueRangeError(
            f"a, b: sums over {k} and {steps} elements differ in length. Use the variant whose transposes fit: "
            "matmul [m, k] [k, n], matmul_nt [m, k] [n, k], matmul_tn [k, m] [k, n]."
        )
    n_threads, out = arguments.threads(threads), arguments.empty("product", (len(a), m, n), np.float32)
    if out.size:  # else there may be endless rows of nothing to walk over
        _ext.matmul(isa.level(), a, transpose_a, b, transpose_b, out, n_threads)
    return out if stacked else out[0]


def _matrix(name: str, x: np.ndarray) -> np.ndarray:
    return arguments.array(name, x, np.float32, "rows", "columns", what="a float32 matrix")


def _square(h: np.ndarray) -> np.ndarray:
    square = isinstance(h, np.ndarray) and h.ndim == 2 and h.shape[0] == h.shape[1] and not hasattr(h, "mask")
    if not square or h.dtype not in (np.float32, np.float64):
        raise ValueRangeError(
            f"h: {arguments.found(h)} is not a square matrix of float64 or float32. Pass x.T @ x, or its mean."
        )
    return h


def _indefinite(column: int, pivot: float) -> ValueRangeError:
    return ValueRangeError(
        f"h: column {column} has the pivot {pivot:g}, so the matrix is not positive definite. "
        "Add more damping to its diagonal, or measure it over more text."
    )
