"""Q1_0 and Q2_0: one and two bits per weight with one float16 scale.

Source: ggml-common.h `block_q1_0`, `block_q2_0`; ggml-quants.c `quantize_row_q1_0_ref`, `quantize_row_q2_0_ref`.
"""

import numpy as np

from kvant.kernels.reference import bits


def decode_q1_0(blocks: np.ndarray) -> np.ndarray:
    """Weight = d where the bit is set, else -d; bytes: d 2, bits 16."""
    d = bits.half(blocks[:, :2])
    return np.where(bits.bits_of(blocks[:, 2:]) == 1, d, -d)


def encode_q1_0(x: np.ndarray) -> np.ndarray:
    """Inverse of `decode_q1_0`: d = mean magnitude, summed in order; the bit is x >= 0."""
    with np.errstate(over="ignore"):
        d = np.add.accumulate(np.abs(x), axis=-1)[:, -1:] / np.float32(128)
    return np.concatenate([bits.to_half(d), bits.pack_bits(x >= 0)], axis=-1)


def decode_q2_0(blocks: np.ndarray) -> np.ndarray:
    """Weight = (q - 1) * d, q of two bits; bytes: d 2, codes 16."""
    q = bits.bit_planes(blocks[:, 2:], 2).transpose(0, 2, 1).reshape(-1, 64).astype(np.float32) - np.float32(1)
    return bits.scaled(q, bits.half(blocks[:, :2]))


def encode_q2_0(x: np.ndarray) -> np.ndarray:
    """Inverse of `decode_q2_0`: d = largest magnitude, so that codes stay in 0 .. 2."""
    d = bits.largest_magnitude(x)
    q = bits.to_int(bits.round_away(bits.scaled(x, bits.inverse(d))))
    q = np.where(q == bits.INT_MIN, 0, np.clip(q, -1, 2) + 1).astype(np.uint8)
    planes = q.reshape(-1, 16, 4) << np.array([0, 2, 4, 6], np.uint8)
    return np.concatenate([bits.to_half(d), np.bitwise_or.reduce(planes, axis=-1)], axis=-1)
