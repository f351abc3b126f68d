"""Find the grid of an earlier quantization under weights that are stored as floats.

A 4-bit file that was decoded to "F16" looks like a full-precision model and is not one: quantizing it again adds a
second error to the first, and no measurement against it sees the first. The trace stays: within a block of 16 or 32
weights all values are `a + d*k` with few integers k, or repeat the few values of a codebook.

Chance: n genuine values lie on average 0.25 steps from a grid of any step, with a standard deviation of
0.144 / sqrt(n - 2) (the two ends fix the grid). A block counts as gridded when it is 4.2 deviations below, which one
genuine block in 300 is for one of 255 steps; 80 % of the blocks must be.
"""

from collections.abc import Callable, Sequence

import numpy as np

_MIN_SHARE = 0.8  # of the blocks that are not constant
_MIN_BLOCKS = 32
_REPEATS = 1.3  # times a nonzero value is stored in a block on average; genuine weights hardly ever repeat
_CHANCE_MEAN, _CHANCE_SPREAD = 0.25, 4.2 * 0.144
_CHUNK_BLOCKS = 256  # bounds the temporary array: 256 blocks * 32 weights * 255 steps * 4 bytes = 8 MB


def find_grid(rows: Sequence[np.ndarray]) -> int | None:
    """Tell whether weights were quantized before.

    Args:
        rows: Samples of weights as decoded from their float type, each float32 [any, n]; blocks run along n.

    Returns:
        Bits per weight of the codes that at least 80 % of the blocks can be stored with; None if there is no grid.
    """
    sixteen, thirty_two = _blocks(rows, 16), _blocks(rows, 32)
    return (
        _repeated_bits(sixteen)
        or _even_bits(thirty_two, 255, _between_ends)
        or _even_bits(thirty_two, 127, _around_zero)
        or _even_bits(sixteen, 64, _between_ends)
    )


def _blocks(rows: Sequence[np.ndarray], block: int) -> np.ndarray:
    """Blocks of all samples that hold at least three different, finite values, sorted, float64 [any, block]."""
    parts = [r[:, : r.shape[1] // block * block].reshape(-1, block) for r in rows]
    blocks = np.sort(np.concatenate([np.empty((0, block)), *parts]).astype(np.float64), axis=1)
    blocks = blocks[np.isfinite(blocks).all(axis=1)]
    return np.asarray(blocks[_is_new(blocks).sum(axis=1) >= 3])


def _is_new(blocks: np.ndarray) -> np.ndarray:
    """Whether a value differs from the one before it in its sorted block, bool [blocks, n]."""
    new = np.ones(blocks.shape, bool)
    new[:, 1:] = blocks[:, 1:] != blocks[:, :-1]
    return new


def _repeated_bits(blocks: np.ndarray) -> int | None:
    """Bits of a codebook whose few values repeat. Zeros do not count as repeats: pruned weights are genuine."""
    nonzero = blocks != 0
    distinct = (_is_new(blocks) & nonzero).sum(axis=1)
    repeats = nonzero.sum(axis=1) >= _REPEATS * distinct
    if len(blocks) < _MIN_BLOCKS or repeats.mean() < _MIN_SHARE:
        return None
    return int(np.percentile(distinct[repeats], 90)).bit_length()


def _even_bits(blocks: np.ndarray, max_steps: int, place: Callable[[np.ndarray], np.ndarray]) -> int | None:
    """Bits of the evenly spaced grid that blocks lie on, with at most `max_steps` steps to the unit of `place`."""
    if len(blocks) < _MIN_BLOCKS:
        return None
    parts = [blocks[i : i + _CHUNK_BLOCKS] for i in range(0, len(blocks), _CHUNK_BLOCKS)]
    steps = np.concatenate([_fewest_steps(place(part), _is_new(part), max_steps) for part in parts])
    found = steps[steps > 0]
    if len(found) < _MIN_SHARE * len(blocks):
        return None
    return int(np.percentile(found, 90)).bit_length() + (place is _around_zero)


def _between_ends(blocks: np.ndarray) -> np.ndarray:
    """Place between the smallest value, 0, and the largest, 1."""
    low, high = blocks[:, :1], blocks[:, -1:]
    return np.asarray((blocks - low) / (high - low))


def _around_zero(blocks: np.ndarray) -> np.ndarray:
    """Place from zero towards the value farthest from it, 1: exact at zero, so it bears the rounding of BF16."""
    return np.asarray(blocks / np.abs(blocks).max(axis=1, keepdims=True))


def _fewest_steps(places: np.ndarray, is_new: np.ndarray, max_steps: int) -> np.ndarray:
    """Fewest steps to the unit with which all places of a block are near whole steps, int [blocks]; 0 if none."""
    steps = np.arange(2, max_steps + 1, dtype=np.float32)
    scaled = places.astype(np.float32)[:, None, :] * steps[None, :, None]
    scaled -= np.rint(scaled)
    np.abs(scaled, out=scaled)
    n = is_new.sum(axis=1)
    mean = np.einsum("bsn,bn->bs", scaled, is_new.astype(np.float32)) / n[:, None]
    fits = mean <= (_CHANCE_MEAN - _CHANCE_SPREAD / np.sqrt(n - 2))[:, None]
    return np.where(fits.any(axis=1), steps[fits.argmax(axis=1)].astype(np.int64), 0)
