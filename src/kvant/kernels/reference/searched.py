"""Encoders of Q2_K .. Q6_K, and of Q4_0 .. Q5_1 with importance: a search per sub-block, then rounded scales.

Source: ggml-common.h `block_q2_K` .. `block_q6_K`; ggml-quants.c `quantize_row_q2_K_ref`, `quantize_row_q2_K_impl` and
their siblings.
"""

import numpy as np

from kvant.kernels.reference import bits, searches
from kvant.kernels.reference.searches import Found, total


def _weights(x: np.ndarray, importance: np.ndarray, factor: int) -> np.ndarray:
    """Importance times the root of (factor times the mean square of the block or row) plus x squared."""
    squares = x * x
    mean = np.float32(factor) * total(squares) / np.float32(x.shape[-1])
    weights: np.ndarray = importance * np.sqrt(mean + squares)
    return weights


def _affine(
    x: np.ndarray,
    w: np.ndarray,
    run: int,
    levels: int,
    *,
    first: float,
    step: float,
    steps: int,
    absolute: bool = False,
) -> Found:
    """Search every run of weights of x [blocks, 256]; scale and minimum [blocks, runs], codes [blocks, 256]."""
    runs, run_weights = x.reshape(-1, run), w.reshape(-1, run)
    found = searches.affine(runs, run_weights, levels, first=first, step=step, steps=steps, absolute=absolute)
    shape = (len(x), 256 // run)
    return Found(
        scale=found.scale.reshape(shape), minimum=found.minimum.reshape(shape), codes=found.codes.reshape(x.shape)
    )


def _affine_weighted(x: np.ndarray, w: np.ndarray, run: int, levels: int) -> Found:
    return _affine(x, w, run, levels, first=-0.9, step=0.05, steps=36)


def _relative(x: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes of scales [blocks, n] relative to the largest, and the largest over `levels`, [blocks, 1]."""
    high = x.max(axis=-1, keepdims=True)
    high = np.where(high > 0, high, np.float32(0))
    with np.errstate(all="ignore"):
        inverse = np.where(high > 0, np.float32(levels) / high, np.float32(0))
    return bits.nearest_even(inverse * x), high / np.float32(levels)


def _recode(x: np.ndarray, scale: np.ndarray, minimum: np.ndarray, low: int, high: int, kept: np.ndarray) -> np.ndarray:
    """Codes for stored scales [blocks, runs]; runs whose scale is 0 keep the search's."""
    run = 256 // scale.shape[-1]
    d, m = np.repeat(scale, run, axis=-1), np.repeat(minimum, run, axis=-1)
    with np.errstate(all="ignore"):
        codes = np.clip(bits.nearest_even((x + m) / d), low, high)
    return np.where(d == 0, kept, codes - low)


def _pack_planes(codes: np.ndarray, width: int) -> np.ndarray:
    """Inverse of `bits.bit_planes`: [..., 8 // width, k] -> uint8 [..., k]."""
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    packed: np.ndarray = np.bitwise_or.reduce(codes.astype(np.uint8) << shifts, axis=-2)
    return packed


def _encode_q45(x: np.ndarray, importance: np.ndarray | None, levels: int) -> np.ndarray:
    if importance is None:
        runs = x.reshape(-1, 32)
        w = (np.sqrt(total(runs * runs) / np.float32(32)) + np.abs(runs)).reshape(x.shape)
        first, steps = (-1.0, 20) if levels == 15 else (-0.5, 15)
        found = _affine(x, w, 32, levels, first=first, step=0.1, steps=steps)
        ls, d = _relative(found.scale, 63)
        lm, dmin = _relative(found.minimum, 63)
    else:
        w = _weights(x, importance, 2)
        found = _affine_weighted(x, w, 32, levels)
        sums = total(w.reshape(-1, 32)).reshape(-1, 8)
        scales, minima = (searches.scale_of_scales(v, sums, 63) for v in (found.scale, found.minimum))
        ls, d, lm, dmin = scales.codes, scales.scale, minima.codes, minima.scale
    ls, lm = np.minimum(ls, 63).astype(np.uint8), np.minimum(lm, 63).astype(np.uint8)
    d_bytes, dmin_bytes = bits.to_half(d), bits.to_half(dmin)
    scale, minimum = bits.half(d_bytes) * ls.astype(np.float32), bits.half(dmin_bytes) * lm.astype(np.float32)
    codes = _recode(x, scale, minimum, 0, levels, found.codes).astype(np.uint8)
    sixes = [
        ls[:, :4] | ls[:, 4:] >> 4 << 6,
        lm[:, :4] | lm[:, 4:] >> 4 << 6,
        ls[:, 4:] & 15 | (lm[:, 4:] & 15) << 4,
    ]
    fifth = [_pack_planes(codes.reshape(-1, 8, 32) >> 4, 1)] if levels == 31 else []
    low = bits.pack_nibbles((codes & 15).reshape(-1, 4, 64)).reshape(-1, 128)
    return np.concatenate([d_bytes, dmin_bytes, *sixes, *fifth, low], axis=-1)


def encode_q4_k(x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """Inverse of `kquants.decode_q4_k`, [blocks, 256]; importance of the same shape or None."""
    return _encode_q45(x, importance, 15)


def encode_q5_k(x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """Inverse of `kquants.decode_q5_k`, [blocks, 256]; importance of the same shape or None."""
    return _encode_q45(x, importance, 31)


def encode_q2_k(x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """Inverse of `kquants.decode_q2_k`, [blocks, 256]; importance of the same shape or None."""
    if importance is None:
        found = _affine(x, np.abs(x), 16, 3, first=-0.5, step=0.1, steps=15, absolute=True)
        ls, d = _relative(found.scale, 15)
        lm, dmin = _relative(found.minimum, 15)
    else:
        w = _weights(x, importance, 1)
        found = _affine_weighted(x, w, 16, 3)
        sums = total(w.reshape(-1, 16)).reshape(-1, 16)
        scales, minima = (searches.scale_of_scales(v, sums, 15) for v in (found.scale, found.minimum))
        ls, d, lm, dmin = scales.codes, scales.scale, minima.codes, minima.scale
    d_bytes, dmin_bytes = bits.to_half(d), bits.to_half(dmin)
    scale, minimum = bits.half(d_bytes) * ls.astype(np.float32), bits.half(dmin_bytes) * lm.astype(np.float32)
    codes = _recode(x, scale, minimum, 0, 3, found.codes)
    pairs = _pack_planes(codes.reshape(-1, 2, 4, 32), 2).reshape(-1, 64)
    return np.concatenate([(ls | lm << 4).astype(np.uint8), pairs, d_bytes, dmin_bytes], axis=-1)


def encode_q3_k(x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """Inverse of `kquants.decode_q3_k`, [blocks, 256]; importance of the same shape or None."""
    if importance is None:
        found = searches.descent(x.reshape(-1, 16), 4)
        scales = found.scale.reshape(-1, 16)
        extreme = bits.first_largest(scales)
        with np.errstate(all="ignore"):
            iscale = np.float32(-32) / extreme
            some = extreme != 0
            ls = np.where(some, np.clip(bits.nearest_even(iscale * scales), -32, 31) + 32, 0)
            d_bytes = bits.to_half(np.where(some, np.float32(1) / iscale, np.float32(0)))
    else:
        w = _weights(x, importance, 2).reshape(-1, 16)
        found = searches.symmetric(x.reshape(-1, 16), w, 4)
        second = searches.symmetric(found.scale.reshape(-1, 16), total(w).reshape(-1, 16), 32)
        ls, d_bytes = second.codes, bits.to_half(second.scale)
    scale = bits.half(d_bytes) * (ls - 32).astype(np.float32)
    codes = _recode(x, scale, np.zeros_like(scale), -4, 3, found.codes.reshape(x.shape)).astype(np.uint8)
    high = _pack_planes(codes.reshape(-1, 8, 32) >> 2, 1)
    pairs = _pack_planes(codes.reshape(-1, 2, 4, 32) & 3, 2).reshape(-1, 64)
    stored = ls.astype(np.uint8)
    sixes = [bits.pack_nibbles(stored & 15), _pack_planes((stored >> 4).reshape(-1, 4, 4), 2)]
    return np.concatenate([high, pairs, *sixes, d_bytes], axis=-1)


def encode_q6_k(x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """Inverse of `kquants.decode_q6_k`, [blocks, 256]; importance of the same shape or None."""
    w = (x * x if importance is None else importance).reshape(-1, 16)
    found = searches.symmetric(x.reshape(-1, 16), w, 32)
    scales = found.scale.reshape(-1, 16)
    extreme = bits.first_largest(scales)
    with np.errstate(all="ignore"):
        iscale = np.float32(-128) / extreme
        ls = np.minimum(bits.nearest_even(iscale * scales), 127).astype(np.int8)
        d_bytes = bits.to_half(np.float32(1) / iscale)
        scale = bits.half(d_bytes) * ls.astype(np.float32)
    codes = _recode(x, scale, np.zeros_like(scale), -32, 31, found.codes.reshape(x.shape)).astype(np.uint8)
    low = bits.pack_nibbles((codes & 15).reshape(-1, 2, 128)).reshape(-1, 128)
    high = _pack_planes((codes >> 4).reshape(-1, 2, 4, 32), 2).reshape(-1, 64)
    encoded = np.concatenate([low, high, ls.view(np.uint8), d_bytes], axis=-1)
    return np.where(np.abs(extreme) < searches.SMALLEST, np.uint8(0), encoded)


def encode_weighted_legacy(x: np.ndarray, importance: np.ndarray, name: str) -> np.ndarray:
    """Rows [rows, n] as Q4_0, Q4_1, Q5_0 or Q5_1 with importance [n]: the variance in the weights is the row's."""
    w = _weights(x, importance, 1).reshape(-1, 32)
    blocks = x.reshape(-1, 32)
    if name in ("Q4_0", "Q5_0"):
        found = searches.symmetric(blocks, w, 8 if name == "Q4_0" else 16)
        head = [bits.to_half(found.scale)]
    else:
        found = searches.affine(blocks, w, 15 if name == "Q4_1" else 31, first=-0.9, step=0.05, steps=36)
        head = [bits.to_half(found.scale), bits.to_half(-found.minimum)]
    codes = found.codes.astype(np.uint8)
    fifth = [bits.pack_bits(codes >> 4)] if name in ("Q5_0", "Q5_1") else []
    return np.concatenate([*head, *fifth, bits.pack_nibbles(codes & 15)], axis=-1)
