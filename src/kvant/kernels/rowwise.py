"""Sums and exponentials over rows whose bytes are the same on every machine, level and number of threads.

Together with the products of linalg.py they are what a transformer computes beyond single additions, multiplications,
divisions and roots, which IEEE 754 rounds the same everywhere.

Order of every sum: element i of a row goes into lane i mod 16, in float64; then lanes are added in halves. Exponentials
are polynomials in float32, nothing fused, and zero where they would be subnormal. NaN stays NaN. Twins:
kvant.kernels.reference.rowwise; kernels: native/src/rowwise.cpp.
"""

import numpy as np

from kvant.errors import ValueRangeError
from kvant.kernels import _ext, arguments, isa


def row_dot(a: np.ndarray, b: np.ndarray, *, threads: int = 0) -> np.ndarray:
    """Multiply each row of a with the same row of b: Σ a_i b_i.

    Args:
        a: Rows, float32 [rows, n].
        b: As many, float32 [rows, n].
        threads: Threads over rows; 0 for one per core.

    Returns:
        Scalar products, float64 [rows]; every product in them is exact.

    Raises:
        ValueRangeError: Not float32 matrices of one shape.
    """
    a, b = _rows("a", a), _rows("b", b)
    if a.shape != b.shape:
        raise ValueRangeError(f"a, b: shapes {list(a.shape)} and {list(b.shape)} differ. Give rows of one shape.")
    out, n_threads = arguments.empty("products", (len(a),), np.float64), arguments.threads(threads)
    _ext.row_dot(isa.level(), a, b, out, n_threads)
    return out


def softmax(x: np.ndarray, *, period: int = 0, threads: int = 0) -> np.ndarray:
    """Turn rows into probabilities, in place: exp(x_i) / Σ exp(x_j).

    Args:
        x: Rows, float32 [rows, n], contiguous.
        period: 0 for whole rows. Else only the first r mod period + 1 elements of row r count and the others become 0:
            causal attention of stacked heads, `period` tokens each.
        threads: Threads over rows; 0 for one per core.

    Returns:
        `x`.

    Raises:
        ValueRangeError: Not a contiguous, writable float32 matrix, or a negative period.
    """
    _rows("x", x)
    if not x.flags.carray:
        raise ValueRangeError("x: not contiguous and writable and aligned, so it cannot be changed. Pass a copy of it.")
    period, n_threads = arguments.count("period", period), arguments.threads(threads)
    if x.size:
        _ext.softmax(isa.level(), x, period, n_threads)
    return x


def sigmoid(x: np.ndarray, *, threads: int = 0) -> np.ndarray:
    """Return 1 / (1 + exp(-x)), float32 [rows, n], of x, float32 [rows, n].

    Raises:
        ValueRangeError: Not a float32 matrix.
    """
    x = _rows("x", x)
    out, n_threads = arguments.empty("sigmoid", x.shape, np.float32), arguments.threads(threads)
    if x.size:
        _ext.sigmoid(isa.level(), x, out, n_threads)
    return out


def _rows(name: str, x: np.ndarray) -> np.ndarray:
    return arguments.array(name, x, np.float32, "rows", "n", what="a float32 matrix")
