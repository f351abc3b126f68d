"""Decoders of Q2_K .. Q6_K: 256 weights in sub-blocks whose scales are integers times one float16 scale.

Source: ggml-common.h `block_q2_K` .. `block_q6_K`, ggml-quants.c `dequantize_row_q2_K` and its siblings.
"""

import numpy as np

from kvant.kernels.reference import bits


def _per_weight(scales: np.ndarray, run: int) -> np.ndarray:
    return np.repeat(scales, run, axis=-1)


def _two_bit_codes(qs: np.ndarray) -> np.ndarray:
    """Codes of 64 bytes in the order of weights: two halves of 32 bytes, each four planes of 32."""
    return bits.bit_planes(qs.reshape(-1, 2, 32), 2).reshape(-1, 256)


def _six_bit_pairs(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eight six-bit scales and eight six-bit minimums from twelve bytes."""
    a, b, c = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([a & 63, c & 15 | a >> 6 << 4], axis=-1)
    minimums = np.concatenate([b & 63, c >> 4 | b >> 6 << 4], axis=-1)
    return scales.astype(np.float32), minimums.astype(np.float32)


def decode_q2_k(blocks: np.ndarray) -> np.ndarray:
    """Weight = (d * sc) * q - dmin * m; bytes: sc and m (4 bits each) 16, codes 64, d 2, dmin 2."""
    scales = blocks[:, :16]
    d, dmin = bits.half(blocks[:, 80:82]), bits.half(blocks[:, 82:84])
    dl = _per_weight(bits.scaled(d, (scales & 15).astype(np.float32)), 16)
    ml = _per_weight(bits.scaled(dmin, (scales >> 4).astype(np.float32)), 16)
    return bits.difference(bits.scaled(dl, _two_bit_codes(blocks[:, 16:80]).astype(np.float32)), ml)


def decode_q3_k(blocks: np.ndarray) -> np.ndarray:
    """Weight = (d * (sc - 32)) * (q - 4); bytes: third bits 32, low bits 64, sc (6 bits) 12, d 2."""
    high = bits.bit_planes(blocks[:, :32], 1).reshape(-1, 256)
    q = (_two_bit_codes(blocks[:, 32:96]) | high << 2).astype(np.float32) - np.float32(4)
    low_scales = bits.nibbles(blocks[:, 96:104])
    high_scales = bits.bit_planes(blocks[:, 104:108], 2).reshape(-1, 16)
    scales = (low_scales | high_scales << 4).astype(np.float32) - np.float32(32)
    return bits.scaled(_per_weight(bits.scaled(bits.half(blocks[:, 108:110]), scales), 16), q)


def decode_q4_k(blocks: np.ndarray) -> np.ndarray:
    """Weight = (d * sc) * q - dmin * m; bytes: d 2, dmin 2, sc and m (6 bits) 12, codes 128."""
    scales, minimums = _six_bit_pairs(blocks[:, 4:16])
    q = bits.nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 256).astype(np.float32)
    dl = _per_weight(bits.scaled(bits.half(blocks[:, :2]), scales), 32)
    ml = _per_weight(bits.scaled(bits.half(blocks[:, 2:4]), minimums), 32)
    return bits.difference(bits.scaled(dl, q), ml)


def decode_q5_k(blocks: np.ndarray) -> np.ndarray:
    """Weight = (d * sc) * q - dmin * m; bytes: d 2, dmin 2, sc and m (6 bits) 12, fifth bits 32, codes 128."""
    scales, minimums = _six_bit_pairs(blocks[:, 4:16])
    high = bits.bit_planes(blocks[:, 16:48], 1).reshape(-1, 256)
    q = (bits.nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 256) | high << 4).astype(np.float32)
    dl = _per_weight(bits.scaled(bits.half(blocks[:, :2]), scales), 32)
    ml = _per_weight(bits.scaled(bits.half(blocks[:, 2:4]), minimums), 32)
    return bits.difference(bits.scaled(dl, q), ml)


def decode_q6_k(blocks: np.ndarray) -> np.ndarray:
    """Weight = (d * sc) * (q - 32), sc signed; bytes: low bits 128, high bits 64, sc 16, d 2."""
    low = bits.nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 256)
    high = _two_bit_codes(blocks[:, 128:192])
    q = (low | high << 4).astype(np.float32) - np.float32(32)
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    return bits.scaled(_per_weight(bits.scaled(bits.half(blocks[:, 208:210]), scales), 16), q)
