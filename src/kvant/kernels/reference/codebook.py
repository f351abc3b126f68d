"""Decoders of the codebook types: groups of four or eight weights are points of a grid, signs and scales beside them.

Source: ggml-common.h `block_iq2_xxs` .. `block_iq1_m`; ggml-quants.c `dequantize_row_iq2_xxs` and its siblings.
"""

import numpy as np

from kvant.kernels.reference import bits, tables


def _signed(values: np.ndarray, sign_bytes: np.ndarray) -> np.ndarray:
    """Flip values [..., 8] where the bit of sign_bytes [...] is set."""
    flip = bits.bits_of(sign_bytes[..., None])
    return np.where(flip == 1, -values, values)


def _words(data: np.ndarray, dtype: str) -> np.ndarray:
    return np.ascontiguousarray(data).view(dtype)


def _packed_signs(words: np.ndarray) -> np.ndarray:
    """Four sign bytes from four seven-bit fields of a 32-bit word, [..., 1] -> [..., 4]."""
    signs: np.ndarray = tables.EVEN_SIGNS[words >> np.array([0, 7, 14, 21], np.uint32) & 127]
    return signs


def _half_scales(d: np.ndarray, codes: np.ndarray, factor: float) -> np.ndarray:
    return bits.scaled(bits.scaled(d, np.float32(0.5) + codes.astype(np.float32)), np.float32(factor))


def decode_iq2_xxs(blocks: np.ndarray) -> np.ndarray:
    """Weight = d * (0.5 + sc) / 4 * ±grid; bytes: d 2, then 8 times (4 indices, signs 4 * 7 bits and sc 4 bits)."""
    words = _words(blocks[:, 2:], "<u4").reshape(-1, 8, 2)
    index = _words(words[..., :1], "u1").reshape(-1, 8, 4)
    db = _half_scales(bits.half(blocks[:, :2]), words[..., 1] >> 28, 0.25)
    values = bits.scaled(db[..., None, None], tables.IQ2_XXS[index])
    return _signed(values, _packed_signs(words[..., 1:])).reshape(-1, 256)


def decode_iq2_xs(blocks: np.ndarray) -> np.ndarray:
    """Weight = d * (0.5 + sc) / 4 * ±grid; bytes: d 2, 32 times (index 9 bits, signs 7 bits), sc (4 bits) 8."""
    codes = _words(blocks[:, 2:66], "<u2")
    scales = np.stack([blocks[:, 66:] & 15, blocks[:, 66:] >> 4], axis=-1).reshape(-1, 16)
    db = np.repeat(_half_scales(bits.half(blocks[:, :2]), scales, 0.25), 2, axis=-1)
    values = bits.scaled(db[..., None], tables.IQ2_XS[codes & 511])
    return _signed(values, tables.EVEN_SIGNS[codes >> 9]).reshape(-1, 256)


def decode_iq2_s(blocks: np.ndarray) -> np.ndarray:
    """Weight = d * (0.5 + sc) / 4 * ±grid; bytes: d 2, low indices 32, signs 32, high index bits 8, sc (4 bits) 8."""
    high = bits.bit_planes(blocks[:, 66:74, None], 2).reshape(-1, 32).astype(np.uint16) << 8
    scales = np.stack([blocks[:, 74:] & 15, blocks[:, 74:] >> 4], axis=-1).reshape(-1, 16)
    db = np.repeat(_half_scales(bits.half(blocks[:, :2]), scales, 0.25), 2, axis=-1)
    values = bits.scaled(db[..., None], tables.IQ2_S[blocks[:, 2:34] | high])
    return _signed(values, blocks[:, 34:66]).reshape(-1, 256)


def decode_iq3_xxs(blocks: np.ndarray) -> np.ndarray:
    """Weight = d * (0.5 + sc) / 2 * ±grid; bytes: d 2, indices 64, then 8 times (signs 4 * 7 bits and sc 4 bits)."""
    words = _words(blocks[:, 66:], "<u4")
    db = _half_scales(bits.half(blocks[:, :2]), words >> 28, 0.5)
    points = tables.IQ3_XXS[blocks[:, 2:66]].reshape(-1, 8, 4, 8)
    return _signed(bits.scaled(db[..., None, None], points), _packed_signs(words[..., None])).reshape(-1, 256)


def decode_iq3_s(blocks: np.ndarray) -> np.ndarray:
    """Weight = d * (1 + 2 * sc) * ±grid; bytes: d 2, low indices 64, high index bits 8, signs 32, sc (4 bits) 4."""
    index = blocks[:, 2:66] | bits.bits_of(blocks[:, 66:74]).astype(np.uint16) << 8
    scales = np.stack([blocks[:, 106:] & 15, blocks[:, 106:] >> 4], axis=-1).reshape(-1, 8)
    db = bits.scaled(bits.half(blocks[:, :2]), np.float32(1) + np.float32(2) * scales.astype(np.float32))
    points = tables.IQ3_S[index].reshape(-1, 32, 8)
    return _signed(bits.scaled(np.repeat(db, 4, axis=-1)[..., None], points), blocks[:, 74:106]).reshape(-1, 256)


def _shifted(scale: np.ndarray, index: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Weights scale * (point ± 1/8) for groups of eight weights."""
    delta = np.where(negative, -tables.IQ1_DELTA, tables.IQ1_DELTA)
    return bits.scaled(scale[..., None], tables.IQ1_S[index] + delta[..., None]).reshape(-1, 256)


def decode_iq1_s(blocks: np.ndarray) -> np.ndarray:
    """Weight = d * (2 * sc + 1) * (grid ± 1/8); bytes: d 2, low indices 32, 8 times (high bits 4 * 3, sc 3, sign 1)."""
    words = _words(blocks[:, 34:], "<u2")
    high = words[..., None] >> np.array([0, 3, 6, 9], np.uint16) & np.uint16(7)
    index = blocks[:, 2:34] | (high << np.uint16(8)).reshape(-1, 32)
    scale = bits.scaled(bits.half(blocks[:, :2]), (2 * (words >> 12 & 7) + 1).astype(np.float32))
    return _shifted(np.repeat(scale, 4, axis=-1), index, np.repeat(words >> 15 == 1, 4, axis=-1))


def decode_iq1_m(blocks: np.ndarray) -> np.ndarray:
    """Weight = d * (2 * sc + 1) * (grid ± 1/8); bytes: low indices 32, (high bits 3, sign 1) 16, sc and d 8."""
    words = _words(blocks[:, 48:], "<u2").astype(np.uint16)
    parts = words >> np.array([12, 8, 4, 0], np.uint16) & np.array([0xF, 0xF0, 0xF00, 0xF000], np.uint16)
    d = bits.half(_words(np.bitwise_or.reduce(parts, axis=-1, keepdims=True).astype("<u2"), "u1"))
    codes = (words[..., None] >> np.array([0, 3, 6, 9], np.uint16) & np.uint16(7)).reshape(-1, 16)
    scale = bits.scaled(d, (2 * codes + 1).astype(np.float32))
    high = np.stack([blocks[:, 32:48] & 15, blocks[:, 32:48] >> 4], axis=-1).reshape(-1, 32)
    index = blocks[:, :32] | (high & 7).astype(np.uint16) << np.uint16(8)
    return _shifted(np.repeat(scale, 2, axis=-1), index, high >> 3 == 1)
