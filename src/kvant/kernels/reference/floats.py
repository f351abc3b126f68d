"""F32, F16 and BF16: one value per block."""

import numpy as np

from kvant.kernels.reference.bits import half, to_half


def decode_f32(blocks: np.ndarray) -> np.ndarray:
    """The same bits."""
    return np.ascontiguousarray(blocks).view("<f4")


def encode_f32(x: np.ndarray) -> np.ndarray:
    """The same bits."""
    return np.ascontiguousarray(x).view(np.uint8)


def decode_f16(blocks: np.ndarray) -> np.ndarray:
    """Exact."""
    return half(blocks)


def encode_f16(x: np.ndarray) -> np.ndarray:
    """Round to nearest even; above 65504 + 8 becomes infinity."""
    return to_half(x)


def decode_bf16(blocks: np.ndarray) -> np.ndarray:
    """The upper half of a float32."""
    return (np.ascontiguousarray(blocks).view("<u2").astype(np.uint32) << 16).view(np.float32)


def encode_bf16(x: np.ndarray) -> np.ndarray:
    """Round to nearest even; NaNs become quiet. Source: ggml-impl.h `ggml_compute_fp32_to_bf16`."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)
    quiet = (bits >> 16 | 64).astype(np.uint16)
    return np.ascontiguousarray(np.where((bits & 0x7FFFFFFF) > 0x7F800000, quiet, rounded).astype("<u2")).view(np.uint8)
