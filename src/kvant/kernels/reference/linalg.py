"""Matrix products and Cholesky factors: the order of every sum, one rank-one step at a time."""

import numpy as np

PANEL = 256
"""Steps of a sum that starts from zero before it is added to the result."""


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
