"""IQ4_NL and IQ4_XS: four-bit codes into sixteen uneven values; the scale is searched.

Source: ggml-common.h `block_iq4_nl`, `block_iq4_xs`; ggml-quants.c `quantize_row_iq4_nl_impl`.
"""

import numpy as np

from kvant.kernels.reference import bits
from kvant.kernels.reference.tables import IQ4NL_VALUES

# Scales tried on either side of the one that puts the largest value on the lowest level.
N_TRIES = 7
# Blocks whose largest magnitude is below this are stored as zeros.
SMALLEST = np.float32(1e-15)


def decode_iq4_nl(blocks: np.ndarray) -> np.ndarray:
    """Weight = d * value[q]; bytes: d 2, codes 16."""
    return bits.scaled(bits.half(blocks[:, :2]), IQ4NL_VALUES[bits.nibbles(blocks[:, 2:])])


def decode_iq4_xs(blocks: np.ndarray) -> np.ndarray:
    """Weight = (d * (sc - 32)) * value[q]; bytes: d 2, high bits of sc 2, low bits of sc 4, codes 128."""
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=-1).reshape(-1, 8)
    high = bits.bit_planes(blocks[:, 2:4, None], 2).reshape(-1, 8)
    scales = (low | high << 4).astype(np.float32) - np.float32(32)
    q = IQ4NL_VALUES[bits.nibbles(blocks[:, 8:].reshape(-1, 8, 16))]
    return bits.scaled(bits.scaled(bits.half(blocks[:, :2]), scales)[..., None], q).reshape(-1, 256)


def _nearest(x: np.ndarray) -> np.ndarray:
    """Code of the nearest value, by comparison of the two distances; the upper value wins a tie."""
    upper = np.clip(np.searchsorted(IQ4NL_VALUES, x, side="right"), 1, 15)
    with np.errstate(invalid="ignore"):
        nearer_below = x - IQ4NL_VALUES[upper - 1] < IQ4NL_VALUES[upper] - x
    return np.where(nearer_below, upper - 1, upper)


def _sums(x: np.ndarray, weight: np.ndarray, factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums over a block, in order, of w * q * x and w * q * q for q = nearest value of factor * x."""
    q = IQ4NL_VALUES[_nearest(bits.scaled(factor, x))]
    w_q = weight * q
    return np.add.accumulate(w_q * x, axis=-1)[..., -1:], np.add.accumulate(w_q * q, axis=-1)[..., -1:]


def _search(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The scale of each block of 32 that loses least, [blocks, 32] -> [blocks, 1]."""
    largest = bits.first_largest(x)
    with np.errstate(all="ignore"):
        d = -largest / IQ4NL_VALUES[0]
        sum_qx, sum_q2 = _sums(x, weight, np.float32(1) / d)
        d = np.where(sum_q2 > 0, sum_qx / sum_q2, np.float32(0))
        best = d * sum_qx
        for step in range(-N_TRIES, N_TRIES + 1):
            sum_qx, sum_q2 = _sums(x, weight, (np.float32(step) + IQ4NL_VALUES[0]) / largest)
            better = (sum_q2 > 0) & (sum_qx * sum_qx > best * sum_q2)
            d = np.where(better, sum_qx / sum_q2, d)
            best = np.where(better, d * sum_qx, best)
    return np.where(np.abs(largest) < SMALLEST, np.float32(0), d)


def _weights(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """Weight of each value in the error, for x [superblocks, n] and importance of the same shape."""
    with np.errstate(over="ignore"):
        weights: np.ndarray = x * x
        if importance is not None:
            sigma2 = np.add.accumulate(weights, axis=-1)[..., -1:] * np.float32(2 / x.shape[-1])
            weights = importance * np.sqrt(sigma2 + weights)
    return weights


def encode_iq4_nl(x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """Inverse of `decode_iq4_nl`; importance float32 [blocks, 32] or None."""
    d = _search(x, _weights(x, importance))
    q = _nearest(bits.scaled(bits.inverse(d), x))
    return np.concatenate([bits.to_half(d), bits.pack_nibbles(q)], axis=-1)


def encode_iq4_xs(x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """Inverse of `decode_iq4_xs`; importance float32 [blocks, 256] or None."""
    blocks = x.reshape(-1, 32)
    scales = _search(blocks, _weights(x, importance).reshape(-1, 32)).reshape(-1, 8)
    d = bits.first_largest(scales) / np.float32(-32)
    codes = np.clip(bits.nearest_even(bits.scaled(bits.inverse(d), scales)), -32, 31)
    factor = bits.inverse(bits.scaled(d, codes.astype(np.float32))).reshape(-1, 1)
    q = _nearest(bits.scaled(factor, blocks))
    stored = (codes + 32).astype(np.uint16)
    high = ((stored >> 4) << np.arange(0, 16, 2, dtype=np.uint16)).sum(axis=-1, dtype=np.uint16)
    low = (stored[:, 0::2] & 15 | (stored[:, 1::2] & 15) << 4).astype(np.uint8)
    return np.concatenate(
        [bits.to_half(d), high.astype("<u2")[:, None].view(np.uint8), low, bits.pack_nibbles(q).reshape(-1, 128)],
        axis=-1,
    )
