"""MXFP4 and NVFP4: E2M1 codes under a shared power of two (32 weights) or a shared E4M3 scale (16 weights).

Source: ggml-common.h `block_mxfp4`, `block_nvfp4`; ggml-impl.h `ggml_e8m0_to_fp32_half`, `ggml_fp32_to_ue4m3`.
"""

import numpy as np

from kvant.kernels.reference import bits
from kvant.kernels.reference.tables import E2M1_VALUES


def _half_power(e: np.ndarray) -> np.ndarray:
    """2**(e - 128): half the scale, because the value table is doubled."""
    small = np.uint32(0x00200000) << np.minimum(e, 1).astype(np.uint32)
    normal = (np.maximum(e, 1).astype(np.uint32) - 1) << np.uint32(23)
    power: np.ndarray = np.where(e < 2, small, normal).view(np.float32)
    return power


def half_e4m3(code: np.ndarray) -> np.ndarray:
    """Half the value of an unsigned E4M3 code; 0x7F counts as 0."""
    exponent, mantissa = (code >> 3 & 15).astype(np.int32), (code & 7).astype(np.float32)
    normal = np.ldexp(np.float32(1) + mantissa / np.float32(8), exponent - 7)
    value = np.where(exponent == 0, np.ldexp(mantissa, -9), normal) * np.float32(0.5)
    return np.where((code == 0) | (code == 0x7F), np.float32(0), value)


def to_e4m3(x: np.ndarray) -> np.ndarray:
    """Unsigned E4M3 code, halves upward; 448 and more saturate at 0x7E, what is not above 0 becomes 0."""
    with np.errstate(invalid="ignore"):
        positive = x > 0
    x = np.minimum(np.where(positive, x, np.float32(0)), np.float32(448))
    raw = x.view(np.uint32)
    exponent = (raw >> 23 & 255).astype(np.int32) - 120
    tiny = np.minimum((x * np.float32(512) + np.float32(0.5)).astype(np.int32), 7)
    normal = (exponent << 3 | (raw >> 20 & 7).astype(np.int32)) + (raw >> 19 & 1).astype(np.int32)
    code = np.where(exponent <= 0, tiny, np.where(normal >= 15 << 3, 0x7E, normal))
    return np.where(positive, code, 0).astype(np.uint8)


def _nearest(x: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Code of the nearest level; the lower code wins a tie."""
    best = np.zeros(x.shape, np.uint8)
    with np.errstate(invalid="ignore", over="ignore"):
        best_error = np.abs(E2M1_VALUES[0] * d - x)
        for code in range(1, 16):
            error = np.abs(E2M1_VALUES[code] * d - x)
            better = error < best_error
            best = np.where(better, np.uint8(code), best)
            best_error = np.where(better, error, best_error)
    return best


def decode_mxfp4(blocks: np.ndarray) -> np.ndarray:
    """Weight = value[q] * 2**(e - 128); bytes: e 1, codes 16."""
    return bits.scaled(E2M1_VALUES[bits.nibbles(blocks[:, 1:])], _half_power(blocks[:, :1]))


def encode_mxfp4(x: np.ndarray) -> np.ndarray:
    """Inverse of `decode_mxfp4`: e = floor(log2(largest magnitude)) + 125."""
    largest = bits.largest_magnitude(x)
    with np.errstate(divide="ignore"):
        exponent = np.floor(np.log2(largest.astype(np.float64)).astype(np.float32)) - np.float32(2) + np.float32(127)
    e = np.where(largest > 0, bits.to_int(exponent), 0).astype(np.uint8)
    return np.concatenate([e, bits.pack_nibbles(_nearest(x, _half_power(e)))], axis=-1)


def decode_nvfp4(blocks: np.ndarray) -> np.ndarray:
    """Weight = value[q] * d / 2 in four runs of 16; bytes: d (unsigned E4M3) 4, codes 32."""
    q = bits.nibbles(blocks[:, 4:].reshape(-1, 4, 8))
    return bits.scaled(E2M1_VALUES[q], half_e4m3(blocks[:, :4])[..., None]).reshape(-1, 64)


def encode_nvfp4(x: np.ndarray) -> np.ndarray:
    """Inverse of `decode_nvfp4`: d = largest magnitude / 6."""
    runs = x.reshape(-1, 4, 16)
    d = to_e4m3(bits.largest_magnitude(runs)[..., 0] / np.float32(6))
    q = _nearest(runs, half_e4m3(d)[..., None])
    return np.concatenate([d, bits.pack_nibbles(q).reshape(-1, 32)], axis=-1)
