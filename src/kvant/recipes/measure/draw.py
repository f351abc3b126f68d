"""Tokens of texts that a model writes for its own calibration; locks name the texts, so their bytes must not change."""

import numpy as np


def draw(logits: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Draw a token for each row from the model's own distribution: temperature 1, nothing cut off.

    Args:
        logits: float32 [rows, n_vocab].
        uniform: Draws from [0, 1), float64 [rows].

    Returns:
        Token ids, int64 [rows], by inverse cumulative distribution.
    """
    cumulative = np.cumsum(np.exp(logits - logits.max(1, keepdims=True)), axis=1, dtype=np.float64)
    found = [np.searchsorted(row, u * row[-1], side="right") for row, u in zip(cumulative, uniform, strict=True)]
    return np.array(found, np.int64).clip(max=logits.shape[1] - 1)
