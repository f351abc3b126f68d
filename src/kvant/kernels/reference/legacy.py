"""Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: 32 weights share one float16 scale d (and, in the `_1` types, one float16 minimum m).

Encoders are those without importance weights. Source: ggml-quants.c `quantize_row_q4_0_ref` and its siblings.
"""

import numpy as np

from kvant.kernels.reference import bits


def _fifth_bits(data: np.ndarray) -> np.ndarray:
    return bits.bits_of(data) << 4


def decode_q4_0(blocks: np.ndarray) -> np.ndarray:
    """Weight = (q - 8) * d; bytes: d 2, codes 16."""
    q = bits.nibbles(blocks[:, 2:]).astype(np.float32) - np.float32(8)
    return bits.scaled(q, bits.half(blocks[:, :2]))


def decode_q4_1(blocks: np.ndarray) -> np.ndarray:
    """Weight = q * d + m; bytes: d 2, m 2, codes 16."""
    q = bits.nibbles(blocks[:, 4:]).astype(np.float32)
    return bits.summed(bits.scaled(q, bits.half(blocks[:, :2])), bits.half(blocks[:, 2:4]))


def decode_q5_0(blocks: np.ndarray) -> np.ndarray:
    """Weight = (q - 16) * d; bytes: d 2, fifth bits 4, codes 16."""
    q = bits.nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return bits.scaled(q.astype(np.float32) - np.float32(16), bits.half(blocks[:, :2]))


def decode_q5_1(blocks: np.ndarray) -> np.ndarray:
    """Weight = q * d + m; bytes: d 2, m 2, fifth bits 4, codes 16."""
    q = bits.nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return bits.summed(bits.scaled(q.astype(np.float32), bits.half(blocks[:, :2])), bits.half(blocks[:, 2:4]))


def decode_q8_0(blocks: np.ndarray) -> np.ndarray:
    """Weight = q * d, q signed; bytes: d 2, codes 32."""
    q = np.ascontiguousarray(blocks[:, 2:]).view(np.int8).astype(np.float32)
    return bits.scaled(q, bits.half(blocks[:, :2]))


def _symmetric(x: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and codes 0 .. 2 * levels - 1 that put the value of largest magnitude on code 0."""
    d = bits.first_largest(x) / np.float32(-levels)
    q = bits.to_int(bits.scaled(x, bits.inverse(d)) + np.float32(levels + 0.5)).astype(np.int8)
    return d, np.minimum(q, np.int8(2 * levels - 1)).view(np.uint8)


def _first_smallest(x: np.ndarray) -> np.ndarray:
    """The first of each row's smallest values, at most the largest finite one, [..., n] -> [..., 1]; no NaN counts."""
    limit = np.finfo(np.float32).max
    bounded = np.where(x < limit, x, limit)
    return np.take_along_axis(bounded, bounded.argmin(axis=-1, keepdims=True), axis=-1)


def _affine(x: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scale, minimum and codes 0 .. levels of an even grid from the smallest to the largest value."""
    low, high = _first_smallest(x), -_first_smallest(-x)
    with np.errstate(over="ignore", invalid="ignore"):
        d = (high - low) / np.float32(levels)
        q = bits.to_int((x - low) * bits.inverse(d) + np.float32(0.5)).astype(np.uint8)
    return d, low, q


def encode_q4_0(x: np.ndarray) -> np.ndarray:
    """Inverse of `decode_q4_0`."""
    d, q = _symmetric(x, 8)
    return np.concatenate([bits.to_half(d), bits.pack_nibbles(q)], axis=-1)


def encode_q4_1(x: np.ndarray) -> np.ndarray:
    """Inverse of `decode_q4_1`."""
    d, low, q = _affine(x, 15)
    q = np.minimum(q.view(np.int8), np.int8(15)).view(np.uint8)
    return np.concatenate([bits.to_half(d), bits.to_half(low), bits.pack_nibbles(q)], axis=-1)


def encode_q5_0(x: np.ndarray) -> np.ndarray:
    """Inverse of `decode_q5_0`."""
    d, q = _symmetric(x, 16)
    return np.concatenate([bits.to_half(d), bits.pack_bits(q >> 4 & 1), bits.pack_nibbles(q & 15)], axis=-1)


def encode_q5_1(x: np.ndarray) -> np.ndarray:
    """Inverse of `decode_q5_1`."""
    d, low, q = _affine(x, 31)
    fifth = bits.pack_bits(q >> 4 & 1)
    return np.concatenate([bits.to_half(d), bits.to_half(low), fifth, bits.pack_nibbles(q & 15)], axis=-1)


def encode_q8_0(x: np.ndarray) -> np.ndarray:
    """Inverse of `decode_q8_0`: d = largest magnitude / 127."""
    d = bits.running_max(np.abs(x)) / np.float32(127)
    q = bits.to_int(bits.round_away(bits.scaled(x, bits.inverse(d)))).astype(np.int8)
    return np.concatenate([bits.to_half(d), q.view(np.uint8)], axis=-1)
