"""Sums and exponentials over rows whose bytes are the same on every machine, level and number of threads.

Together with the products of linalg.py they are what a transformer computes beyond single additions, multiplications,
divisions and roots, which IEEE 754 rounds the same everywhere.

Order of every sum: element i of a row goes into lane i mod 16, in float64; then lanes are added in halves. Exponentials
are polynomials in float32, nothing fused, and zero where they would be subnormal. NaN stays NaN. Twins:
kvant.kernels.reference.rowwise; kernels: native/src/rowwise.cpp.
"""

import numpy as np

from kvant.errors import ValueRangeError
from kvant.kernels import _ext, isa


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
    out = np.empty(len(a))
    _ext.row_dot(isa.level(), a, b, out, threads)
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
        ValueRangeError: Not a contiguous float32 matrix, or a negative period.
    """
    if _rows("x", x) is not x or not x.flags.writeable or period < 0:
        raise ValueRangeError(
            f"x, period: {period} or an array that is not contiguous and writable. Pass a copy of it."
        )
    _ext.softmax(isa.level(), x, period, threads)
    return x


def sigmoid(x: np.ndarray, *, threads: int = 0) -> np.ndarray:
    """Return 1 / (1 + exp(-x)), float32 [rows, n], of x, float32 [rows, n].

    Raises:
        ValueRangeError: Not a float32 matrix.
    """
    x = _rows("x", x)
    out = np.empty_like(x)
    _ext.sigmoid(isa.level(), x, out, threads)
    return out


def _rows(name: str, x: np.ndarray) -> np.ndarray:
    """`x` as contiguous float32 rows; itself if it is."""
    if x.dtype != np.float32 or x.ndim != 2:
        raise ValueRangeError(f"{name}: {x.dtype} {list(x.shape)} is not a float32 matrix. Convert and reshape it.")
    return x if x.flags.c_contiguous else np.ascontiguousarray(x)
