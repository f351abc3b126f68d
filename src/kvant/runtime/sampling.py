"""From logits to a token: temperature, top-k, top-p, min-p, repeat penalty, seed; the same on every machine.

The order of the steps is llama.cpp's: penalty, top-k, top-p, min-p, temperature.
"""

from collections.abc import Sequence

import msgspec
import numpy as np

from kvant.errors import ValueRangeError

PENALTY_WINDOW = 64
"""Tokens looked back on for the repeat penalty."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How to choose a token.

    Attributes:
        temperature: Divides the logits; 0 takes the likeliest token always.
        top_k: Choose among this many likeliest tokens; 0 for all.
        top_p: Choose among the likeliest tokens that together have this probability.
        min_p: Drop tokens less likely than this share of the likeliest one's probability.
        repeat_penalty: Divides positive logits of recent tokens and multiplies negative ones; 1 for none.
        seed: Makes the choices repeatable; None for other ones every time.
    """

    temperature: float = 0.7
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        """Check every value against its range."""
        for name, low, high in (
            ("temperature", 0.0, 100.0), ("top_k", 0, 10**6), ("top_p", 0.0, 1.0), ("min_p", 0.0, 1.0),
            ("repeat_penalty", 0.01, 100.0), ("seed", 0, 2**63),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueRangeError(f"{name}: {value} is not from {low} to {high}. Choose a value in that range.")


def generator(sampling: Sampling) -> np.random.Generator:
    """Return the source of chance that a sampling asks for."""
    return np.random.default_rng(sampling.seed)


def choose(logits: np.ndarray, recent: Sequence[int], sampling: Sampling, chance: np.random.Generator) -> int:
    """Choose the next token.

    Args:
        logits: float32 [n_vocab]; not changed.
        recent: Tokens so far; the last PENALTY_WINDOW are looked at.
        sampling: How to choose.
        chance: Source of chance.
    """
    scores = logits.astype(np.float64)
    if sampling.repeat_penalty != 1.0 and recent:
        seen = np.unique(np.asarray(recent[-PENALTY_WINDOW:]))
        factor = np.where(scores[seen] > 0, 1 / sampling.repeat_penalty, sampling.repeat_penalty)
        scores[seen] *= factor
    if sampling.temperature == 0:
        return int(np.argmax(scores))
    tokens, weights = likeliest(scores, sampling)
    weights = weights ** (1 / sampling.temperature)
    return int(chance.choice(tokens, p=weights / weights.sum()))


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


def likeliest(scores: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens that top-k, top-p and min-p leave, likeliest first, with weights.

    Args:
        scores: Logits, float64 [n_vocab].
        sampling: How to choose.

    Returns:
        Token ids, int64 [m], and exp(score - highest score), float64 [m]; m at least 1.
    """
    k = min(sampling.top_k or len(scores), len(scores))
    tokens = np.argpartition(-scores, k - 1)[:k] if k < len(scores) else np.arange(len(scores))
    tokens = tokens[np.argsort(-scores[tokens], kind="stable")]
    weights = np.exp(scores[tokens] - scores[tokens[0]])
    before = np.concatenate(([0.0], np.cumsum(weights[:-1]))) / weights.sum()
    kept = ((before < sampling.top_p) & (weights >= sampling.min_p)) | (np.arange(k) == 0)
    return tokens[kept], weights[kept]
