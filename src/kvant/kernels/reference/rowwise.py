"""Sums and exponentials over rows: the order of every operation, in NumPy's single additions and multiplications."""

import numpy as np

LANES = 16
_LOG2E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
_LEAST, _MAGIC, _ONE = np.float32(-87.3365448), np.float32(12582912), np.float32(1)
_TAYLOR = tuple(_ONE / np.float32(factorial) for factorial in (720, 120, 24, 6, 2, 1, 1))


def exp_negative(x: np.ndarray) -> np.ndarray:
    """Return exp(x) for float32 x <= 0 or NaN; zero where it would be subnormal."""
    n = (x * _LOG2E + _MAGIC) - _MAGIC
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    y = np.full_like(x, _ONE / np.float32(5040))
    for c in _TAYLOR:
        y = y * r + c
    # A whole n from -126 to 0 elsewhere: powers that cannot be written down are masked below.
    power = np.ldexp(_ONE, np.where(n >= -126, n, 0).astype(np.int32))
    return np.where(x < _LEAST, np.float32(0), y * power).astype(np.float32)


def lane_sums(x: np.ndarray) -> np.ndarray:
    """Return the sum of each row, float64 [rows, n] -> [rows]."""
    padded = np.zeros((len(x), -(-x.shape[1] // LANES) * LANES))
    padded[:, : x.shape[1]] = x
    lanes = np.zeros((len(x), LANES))
    for first in range(0, padded.shape[1], LANES):
        lanes += padded[:, first : first + LANES]
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def row_dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Σ a_i b_i of every row, float64."""
    return lane_sums(a.astype(np.float64) * b.astype(np.float64))


def softmax(x: np.ndarray, period: int = 0) -> np.ndarray:
    """Return probabilities of every row, float32."""
    out = np.zeros_like(x)
    for row, values in enumerate(x):
        count = min(row % period + 1, len(values)) if period else len(values)
        seen = values[:count]
        e = exp_negative(seen - seen.max(initial=-np.inf))
        out[row, :count] = e * np.float32(1 / lane_sums(e[None].astype(np.float64))[0])
    return out


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x)), float32."""
    e = exp_negative(-np.abs(x))
    return np.where(x < 0, e, _ONE) / (_ONE + e)
