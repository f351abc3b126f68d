"""MLX's quantized arrays: the bytes that `mx.quantize` gives, and the numbers that they stand for.

A row of n weights is packed into uint32 words, codes from the lowest bit up, beside the scales of its groups:

    affine            weight = scale * code + bias; scale and bias in the model's float type
    mxfp4, mxfp8      weight = 2^(e - 127) * fp4 or fp8; e is the byte of the group (OCP microscaling)
    nvfp4             weight = fp8 scale * fp4

Source: the modes of `mx.quantize` (mlx 0.32, its documentation and what it gives; parity in tests/parity/test_mlx.py).
"""

from dataclasses import dataclass

import numpy as np

from kvant.dtypes import BF16, F16, F32, BlockType
from kvant.errors import BlockShapeError, UnsupportedFormatError, ValueRangeError
from kvant.kernels.codec import decode, encode

WORD_BITS = 32
_TINY = np.float32(1e-7)  # the smallest scale
_FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_FP4_BETWEEN = (_FP4[1:] + _FP4[:-1]) / 2
_FP8_MAX, _FP4_MAX = np.float32(448), np.float32(6)
_FP8_LEAST_EXPONENT, _FP8_BIAS, _FP8_FRACTION = -6, 7, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouping:
    """How a matrix is quantized: mode, bits per code, weights that share a scale."""

    mode: str
    bits: int
    group_size: int

    @property
    def scale_bits(self) -> int:
        """Bits of a group's scale beside its codes; affine ones in 16-bit floats, with their bias."""
        return 32 if self.mode == "affine" else 8

    @property
    def bpw(self) -> float:
        """Bits per weight; affine scales in 16-bit floats."""
        return self.bits + self.scale_bits / self.group_size


AFFINE_BITS = (2, 3, 4, 5, 6, 8)
AFFINE_GROUPS = (32, 64, 128)
MICROSCALED = {
    "mxfp4": Grouping(mode="mxfp4", bits=4, group_size=32),
    "mxfp8": Grouping(mode="mxfp8", bits=8, group_size=32),
    "nvfp4": Grouping(mode="nvfp4", bits=4, group_size=16),
}
SCALE_TYPES = (F16, BF16, F32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """Rows as MLX stores them.

    Attributes:
        words: Codes, uint32 [rows, n * bits / 32].
        scales: Bytes of the scales, uint8 [rows, bytes].
        biases: Bytes of the biases; None where the mode has none.
    """

    words: np.ndarray
    scales: np.ndarray
    biases: np.ndarray | None


def quantize(x: np.ndarray, kind: Grouping, scale_type: BlockType = F16) -> Quantized:
    """Quantize rows as `mx.quantize` does.

    Args:
        x: Weights, float32 [rows, n], as the model's float type has them; n a multiple of the group size.
        kind: How.
        scale_type: Type of affine scales and biases: the model's.

    Raises:
        BlockShapeError: The group size does not divide n.
        ValueRangeError: A weight is NaN or infinite.
    """
    check(kind, x.shape[-1])
    if not np.isfinite(x).all():
        raise ValueRangeError("x: holds NaN or infinite weights. Check the source model.")
    groups = x.reshape(len(x), -1, kind.group_size)
    if kind.mode == "affine":
        codes, scale, bias = _affine(groups, kind.bits)
        stored, offset = (encode(a, scale_type, threads=1) for a in (scale, bias))
        return Quantized(words=pack(codes.reshape(x.shape), kind.bits), scales=stored, biases=offset)
    largest = np.abs(groups).max(axis=2)
    scales, values = _fp8(largest / _FP4_MAX) if kind.mode == "nvfp4" else _power(largest, kind.bits)
    ratio = np.divide(groups, values[..., None], out=np.zeros_like(groups), where=values[..., None] > 0)
    codes = _fp4(ratio) if kind.bits == 4 else _fp8(ratio)[0]
    return Quantized(words=pack(codes.reshape(x.shape), kind.bits), scales=scales, biases=None)


def dequantize(rows: Quantized, kind: Grouping, scale_type: BlockType = F16) -> np.ndarray:
    """Return the weights, float32 [rows, n]; `mx.dequantize` in float32."""
    codes = unpack(rows.words, kind.bits)
    groups = codes.reshape(len(codes), -1, kind.group_size)
    check(kind, codes.shape[1])
    n_groups = groups.shape[1]
    if kind.mode == "affine":
        assert rows.biases is not None, kind
        scale, bias = (decode(a, scale_type, n_groups, threads=1)[..., None] for a in (rows.scales, rows.biases))
        return np.asarray(scale * groups.astype(np.float32) + bias).reshape(codes.shape)
    levels = np.concatenate([_FP4, -_FP4]) if kind.bits == 4 else _fp8_values()
    scale = (
        _fp8_values()[rows.scales] if kind.mode == "nvfp4" else np.ldexp(np.float32(1), rows.scales.astype(int) - 127)
    )
    return np.asarray(levels[groups] * scale[..., None].astype(np.float32)).reshape(codes.shape)


def check(kind: Grouping, n: int) -> None:
    """Check that rows of n weights can be quantized so.

    Raises:
        UnsupportedFormatError: There is no such mode, number of bits or group size.
        BlockShapeError: The group size does not divide n, or the codes of a row are no whole words.
    """
    known = kind.bits in AFFINE_BITS and kind.group_size in AFFINE_GROUPS
    if not (known if kind.mode == "affine" else MICROSCALED.get(kind.mode) == kind):
        raise UnsupportedFormatError(
            f"{kind.mode} of {kind.bits} bits in groups of {kind.group_size}: MLX has affine of {AFFINE_BITS} bits in "
            f"groups of {AFFINE_GROUPS}, and {', '.join(MICROSCALED)}. Use one of these."
        )
    if n % kind.group_size or n * kind.bits % WORD_BITS:
        raise BlockShapeError(f"rows of {n} weights are no whole groups of {kind.group_size}. Use a smaller group.")


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack codes, uint8 [rows, n], from the lowest bit up: uint32 [rows, n * bits / 32]."""
    eights = codes.reshape(len(codes), codes.shape[1] // 8, 8)
    if bits == 8:
        return np.ascontiguousarray(codes).view("<u4")
    word = np.zeros(eights.shape[:2], "<u8")
    for i in range(8):
        word |= eights[:, :, i].astype("<u8") << np.uint64(i * bits)
    kept = word.view(np.uint8).reshape(*word.shape, 8)[..., :bits]
    return np.ascontiguousarray(kept).reshape(len(codes), codes.shape[1] * bits // 8).view("<u4")


def unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """Return the codes of packed rows, uint8 [rows, n]."""
    raw = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return raw
    eights = np.zeros((len(raw), raw.shape[1] // bits, 8), np.uint8)
    eights[..., :bits] = raw.reshape(*eights.shape[:2], bits)
    word = eights.view("<u8")
    shifts = np.arange(8, dtype=np.uint64) * np.uint64(bits)
    codes: np.ndarray = ((word >> shifts) & np.uint64((1 << bits) - 1)).astype(np.uint8)
    return codes.reshape(len(raw), eights.shape[1] * 8)


def _affine(groups: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, scales and biases before they are rounded to their type: the extreme weight of a group is met exactly."""
    steps = np.float32((1 << bits) - 1)
    low, high = groups.min(axis=2), groups.max(axis=2)
    from_low = np.abs(low) > np.abs(high)
    scale = np.maximum((high - low) / steps, _TINY)
    scale = np.where(from_low, scale, -scale)
    edge = np.where(from_low, low, high)
    at = np.rint(edge / scale)
    scale = np.where(at != 0, edge / np.where(at != 0, at, 1), scale).astype(np.float32)
    bias = np.where(at != 0, edge, 0).astype(np.float32)
    codes = np.clip(np.rint((groups - bias[..., None]) / scale[..., None]), 0, steps).astype(np.uint8)
    return codes, scale, bias


def _power(largest: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The least power of two that brings a group's largest weight into range, as its byte and as a number."""
    ratio = largest / (_FP4_MAX if bits == 4 else _FP8_MAX)
    fraction, exponent = np.frexp(ratio)  # ratio = fraction * 2^exponent, fraction in [1/2, 1)
    exponent = np.clip(np.where(ratio > 0, exponent - (fraction == 0.5), 0), -127, 127)
    return (exponent + 127).astype(np.uint8), np.ldexp(np.float32(1), exponent)


def _fp4(values: np.ndarray) -> np.ndarray:
    """Codes of the nearest E2M1 numbers; half-way values go to the smaller, and zero has no sign."""
    code: np.ndarray = np.searchsorted(_FP4_BETWEEN, np.abs(values), side="left").astype(np.uint8)
    sign = ((values < 0) & (code > 0)).astype(np.uint8)
    return np.asarray(code | sign << 3)


def _fp8(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and magnitudes of the nearest E4M3 numbers; half-way values go to the even one."""
    size = np.minimum(np.abs(values), _FP8_MAX).astype(np.float32)
    exponent = np.where(size > 0, np.maximum(np.frexp(size)[1] - 1, _FP8_LEAST_EXPONENT), _FP8_LEAST_EXPONENT)
    units = np.rint(np.ldexp(size, _FP8_FRACTION - exponent)).astype(np.int32)  # 8 .. 16, below 8 if subnormal
    code = (exponent + _FP8_BIAS - 1 << _FP8_FRACTION) + units
    magnitude = np.ldexp(units.astype(np.float32), exponent - _FP8_FRACTION)
    return code.astype(np.uint8) | (np.signbit(values).astype(np.uint8) << 7), magnitude


def _fp8_values() -> np.ndarray:
    """The numbers that the 256 codes of E4M3 stand for; float32 [256]."""
    code = np.arange(256)
    exponent, fraction = code >> _FP8_FRACTION & 15, code & 7
    units = np.where(exponent > 0, 8 + fraction, fraction).astype(np.float32)
    size = np.ldexp(units, np.maximum(exponent, 1) - _FP8_BIAS - _FP8_FRACTION)
    return np.where(code & 127 == 127, np.nan, np.where(code & 128, -size, size)).astype(np.float32)
