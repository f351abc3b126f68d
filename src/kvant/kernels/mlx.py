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
from kvant.kernels import arguments
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
        UnsupportedFormatError: There is no such grouping or type of scales.
        ValueRangeError: Not float32 rows, or a weight that is NaN, infinite or too large for the type of scales.
    """
    x = arguments.finite("x", arguments.array("x", x, np.float32, "rows", "n"))
    check(kind, x.shape[1])
    groups = x.reshape(len(x), x.shape[1] // kind.group_size, kind.group_size)
    if kind.mode == "affine":
        _check_scale_type(scale_type)
        codes, scale, bias = _affine(groups, kind.bits)
        stored, offset = (_stored(a, scale_type) for a in (scale, bias))
        return Quantized(words=pack(codes.reshape(x.shape), kind.bits), scales=stored, biases=offset)
    largest = np.abs(groups).max(axis=2)
    scales, values = _fp8(largest / _FP4_MAX) if kind.mode == "nvfp4" else _power(largest, kind.bits)
    ratio = np.divide(groups, values[..., None], out=np.zeros_like(groups), where=values[..., None] > 0)
    codes = _fp4(ratio) if kind.bits == 4 else _fp8(ratio)[0]
    return Quantized(words=pack(codes.reshape(x.shape), kind.bits), scales=scales, biases=None)


def dequantize(rows: Quantized, kind: Grouping, scale_type: BlockType = F16) -> np.ndarray:
    """Return the weights, float32 [rows, n]; `mx.dequantize` in float32.

    Raises:
        BlockShapeError: The words are no whole groups.
        UnsupportedFormatError: There is no such grouping or type of scales.
        ValueRangeError: Words, scales and biases are not what `Quantized` says, or do not fit one another.
    """
    words = arguments.array("words", rows.words, np.uint32, "rows", "words")
    n = words.shape[1] * WORD_BITS // kind.bits if kind.bits in AFFINE_BITS else 0
    check(kind, n)
    n_groups = n // kind.group_size
    is_affine = kind.mode == "affine"
    if is_affine:
        _check_scale_type(scale_type)
    width = n_groups * (scale_type.block_bytes if is_affine else 1)
    scales = arguments.array("scales", rows.scales, np.uint8, len(words), width)
    codes = unpack(words, kind.bits)
    groups = codes.reshape(len(codes), n_groups, kind.group_size)
    if is_affine:
        biases = arguments.array("biases", rows.biases, np.uint8, len(words), width)  # type: ignore[arg-type]
        scale, bias = (decode(a, scale_type, n_groups, threads=1)[..., None] for a in (scales, biases))
        return np.asarray(scale * groups.astype(np.float32) + bias).reshape(codes.shape)
    levels = np.concatenate([_FP4, -_FP4]) if kind.bits == 4 else _fp8_values()
    scale = _fp8_values()[scales] if kind.mode == "nvfp4" else np.ldexp(np.float32(1), scales.astype(int) - 127)
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
    if not n or n % kind.group_size or n * kind.bits % WORD_BITS:
        raise BlockShapeError(f"rows of {n} weights are no whole groups of {kind.group_size}. Use a smaller group.")


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack codes, uint8 [rows, n], from the lowest bit up: uint32 [rows, n * bits / 32].

    Raises:
        BlockShapeError: The codes of a row are no whole words.
        UnsupportedFormatError: No such number of bits.
        ValueRangeError: Not uint8 rows, or a code of more bits.
    """
    codes = arguments.array("codes", codes, np.uint8, "rows", "n")
    _check_bits(bits)
    if codes.shape[1] * bits % WORD_BITS or codes.shape[1] % 8:
        raise BlockShapeError(f"codes: {codes.shape[1]} of {bits} bits are no whole words. Fill the row up.")
    if codes.max(initial=0) >> bits:
        raise ValueRangeError(f"codes: {codes.max()} has more than {bits} bits. Clip them.")
    eights = codes.reshape(len(codes), codes.shape[1] // 8, 8)
    if bits == 8:
        return codes.view("<u4")
    word = np.zeros(eights.shape[:2], "<u8")
    for i in range(8):
        word |= eights[:, :, i].astype("<u8") << np.uint64(i * bits)
    kept = word.view(np.uint8).reshape(*word.shape, 8)[..., :bits]
    return np.ascontiguousarray(kept).reshape(len(codes), codes.shape[1] * bits // 8).view("<u4")


def unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """Return the codes of packed rows, uint8 [rows, n].

    Raises:
        BlockShapeError: A row is no whole number of codes.
        UnsupportedFormatError: No such number of bits.
        ValueRangeError: Not uint32 rows.
    """
    raw = arguments.array("words", words, np.uint32, "rows", "words").view(np.uint8)
    _check_bits(bits)
    if raw.shape[1] % bits:
        raise BlockShapeError(f"words: {raw.shape[1]} bytes are no whole codes of {bits} bits. Pass whole rows.")
    if bits == 8:
        return raw
    eights = np.zeros((len(raw), raw.shape[1] // bits, 8), np.uint8)
    eights[..., :bits] = raw.reshape(*eights.shape[:2], bits)
    word = eights.view("<u8")
    shifts = np.arange(8, dtype=np.uint64) * np.uint64(bits)
    codes: np.ndarray = ((word >> shifts) & np.uint64((1 << bits) - 1)).astype(np.uint8)
    return codes.reshape(len(raw), eights.shape[1] * 8)


def _check_bits(bits: int) -> None:
    if bits not in AFFINE_BITS:
        raise UnsupportedFormatError(f"codes: {bits} bits are not one of {AFFINE_BITS}. Use one of these.")


def _check_scale_type(scale_type: BlockType) -> None:
    if scale_type not in SCALE_TYPES:
        raise UnsupportedFormatError(f"scales: {scale_type} is not one of {', '.join(map(str, SCALE_TYPES))}. Use one.")


def _stored(values: np.ndarray, scale_type: BlockType) -> np.ndarray:
    """Scales or biases as bytes of their type, uint8 [rows, bytes]."""
    stored = encode(values, scale_type, threads=1)
    finite = np.isfinite(decode(stored, scale_type, values.shape[1], threads=1))
    if not finite.all():
        row, group = np.argwhere(~finite)[0]
        raise ValueRangeError(
            f"x: row {row}: group {group} needs {values[row, group]:g}, too large for {scale_type}. "
            "Use BF16 or F32 scales."
        )
    return stored


def _affine(groups: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, scales and biases before they are rounded to their type: the extreme weight of a group is met exactly."""
    steps = np.float32((1 << bits) - 1)
    low, high = groups.min(axis=2), groups.max(axis=2)
    from_low = np.abs(low) > np.abs(high)
    edge = np.where(from_low, low, high)
    with np.errstate(over="ignore", invalid="ignore"):
        scale = np.maximum((high - low) / steps, _TINY)
        scale = np.where(from_low, scale, -scale)
        at = np.rint(edge / scale)
    held = np.isfinite(scale) & np.isfinite(at)
    if not held.all():
        row = int(np.flatnonzero(~held.all(axis=1))[0])
        raise ValueRangeError(f"x: row {row} spans more than float32 holds. Keep this tensor unquantized.")
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
