"""Matrix products and Cholesky factors: the order of every sum, one rank-one step at a time."""

import numpy as np

PANEL = 256
"""Steps of a sum that starts from zero before it is added to the result."""

FACTOR_PANEL = 192
"""Columns of a factor that are finished before the columns behind them."""


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Multiply [m, k] by [k, n] in the type of both; added to `out` [m, n] in its own type, if given."""
    for first in range(0, a.shape[1], PANEL):
        panel = np.zeros((len(a), b.shape[1]), a.dtype)
        for k in range(first, min(first + PANEL, a.shape[1])):
            panel += a[:, k, None] * b[k]
        out = panel if out is None else out + panel
    return np.zeros((len(a), b.shape[1]), a.dtype) if out is None else out


def gram(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Return x.T @ x added to `out`: panels in float32, their sum in the type of `out`."""
    return matmul(np.ascontiguousarray(x.T), x, out)


def cholesky(h: np.ndarray) -> np.ndarray:
    """Return the lower factor of float64 h [n, n]: a panel of columns at a time, the rest reduced by its product."""
    rest, n = np.tril(h), len(h)
    for first in range(0, n, FACTOR_PANEL):
        end = min(first + FACTOR_PANEL, n)
        panel = rest[first:, first:end]
        for j in range(end - first):
            panel[j, j] = np.sqrt(panel[j, j])
            panel[j + 1 :, j] /= panel[j, j]
            panel[j + 1 :, j + 1 :] -= panel[j + 1 :, j, None] * panel[j + 1 : end - first, j]
        solved = panel[end - first :]
        rest[end:, end:] = matmul(-solved, np.ascontiguousarray(solved.T), rest[end:, end:])
    return np.tril(rest)


def inverse_lower(lower: np.ndarray) -> np.ndarray:
    """Return the inverse of a lower triangular float64 matrix: rows in blocks, each from those above it."""
    inverse = np.zeros_like(lower)
    starts = range(0, len(lower), FACTOR_PANEL)
    for first in starts:
        rows = slice(first, min(first + FACTOR_PANEL, len(lower)))
        block = inverse[rows, rows] = _inverse_block(lower[rows, rows])
        for left in range(0, first, FACTOR_PANEL):
            columns, total = slice(left, left + FACTOR_PANEL), None
            for step in range(left, first, FACTOR_PANEL):
                steps = slice(step, step + FACTOR_PANEL)
                total = matmul(lower[rows, steps], inverse[steps, columns], total)
            assert total is not None
            inverse[rows, columns] = matmul(-block, total)
    return inverse


def _inverse_block(lower: np.ndarray) -> np.ndarray:
    inverse = np.eye(len(lower))
    for i, row in enumerate(lower):
        for k in range(i):
            inverse[i] -= row[k] * inverse[k]
        inverse[i] /= row[i]
    return inverse


def inverse_cholesky_upper(h: np.ndarray) -> np.ndarray:
    """Return upper triangular U, float32, with inv(h) = U.T U."""
    lower = inverse_lower(cholesky(np.ascontiguousarray(h[::-1, ::-1])))
    return np.ascontiguousarray(lower[::-1, ::-1]).astype(np.float32)
