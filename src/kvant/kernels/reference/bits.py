"""Bits, halves and roundings that the reference codecs share.

Everything is float32 arithmetic in the order ggml's scalar code has it, so that results are equal to the bit.
"""

import numpy as np

INT_MIN = np.int32(-(2**31))


def half(data: np.ndarray) -> np.ndarray:
    """Float32 of little-endian float16 bytes, uint8 [..., 2] -> [..., 1]; NaNs become quiet and keep their payload."""
    bits = np.ascontiguousarray(data).view("<u2").astype(np.uint32)
    value = np.ascontiguousarray(data).view("<f2").astype(np.float32).view(np.uint32)
    nan = (bits & 0x7FFF) > 0x7C00
    quiet = (bits & 0x8000) << 16 | 0x7FC00000 | (bits & 0x3FF) << 13
    return np.where(nan, quiet, value).view(np.float32)


def to_half(x: np.ndarray) -> np.ndarray:
    """Bytes of float16, rounded to nearest even, [..., k] -> uint8 [..., 2 * k]; a NaN becomes sign and 0x7E00."""
    with np.errstate(over="ignore"):
        value = x.astype("<f2").view("<u2")
    sign = (x.view(np.uint32) >> 16 & 0x8000).astype(np.uint16)
    return np.ascontiguousarray(np.where(np.isnan(x), sign | np.uint16(0x7E00), value).astype("<u2")).view(np.uint8)


def to_int(x: np.ndarray) -> np.ndarray:
    """Truncate to int32; NaN and what does not fit become the lowest integer, as x86's conversion has it."""
    fits = (x >= np.float32(-(2.0**31))) & (x < np.float32(2.0**31))
    return np.where(fits, np.where(fits, x, np.float32(0)).astype(np.int32), INT_MIN)


def round_away(x: np.ndarray) -> np.ndarray:
    """C's `roundf`: to the nearest integer, halves away from zero."""
    whole = np.trunc(x)
    with np.errstate(invalid="ignore"):
        away = np.abs(x - whole) >= np.float32(0.5)
    rounded: np.ndarray = np.where(away, whole + np.copysign(np.float32(1), x), whole)
    return rounded


def nearest_even(x: np.ndarray) -> np.ndarray:
    """Nearest integer, halves to even, by adding 1.5 * 2**23 and reading the low mantissa bits; valid below 2**22."""
    bits = (x + np.float32(12582912)).view(np.int32)
    return (bits & 0x7FFFFF) - 0x400000


def inverse(d: np.ndarray) -> np.ndarray:
    """1 / d, and 0 where d is 0."""
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(d != 0, np.float32(1) / d, np.float32(0))


def scaled(x: np.ndarray, factor: np.ndarray | np.float32) -> np.ndarray:
    """Product x * factor in float32, quiet about 0 * inf."""
    with np.errstate(invalid="ignore", over="ignore"):
        product: np.ndarray = x * factor
    return product


def summed(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sum x + y in float32, quiet about inf - inf."""
    with np.errstate(invalid="ignore", over="ignore"):
        total: np.ndarray = x + y
    return total


def difference(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Difference x - y in float32, quiet about inf - inf."""
    with np.errstate(invalid="ignore", over="ignore"):
        rest: np.ndarray = x - y
    return rest


def nibbles(data: np.ndarray) -> np.ndarray:
    """Four-bit codes, uint8 [..., k] -> [..., 2 * k]: all low halves, then all high halves."""
    return np.concatenate([data & 15, data >> 4], axis=-1)


def pack_nibbles(codes: np.ndarray) -> np.ndarray:
    """Inverse of `nibbles`: [..., 2 * k] -> uint8 [..., k]."""
    low, high = np.split(codes.astype(np.uint8), 2, axis=-1)
    return low | high << 4


def bit_planes(data: np.ndarray, width: int) -> np.ndarray:
    """Fields of `width` bits, uint8 [..., k] -> [..., 8 // width, k]: field 0 of every byte, then field 1, ..."""
    shifts = np.arange(0, 8, width, dtype=np.uint8)
    return data[..., None, :] >> shifts[:, None] & np.uint8((1 << width) - 1)


def bits_of(data: np.ndarray) -> np.ndarray:
    """Single bits, uint8 [..., k] -> [..., 8 * k], lowest bit of each byte first."""
    return np.unpackbits(data, axis=-1, bitorder="little")


def pack_bits(bits: np.ndarray) -> np.ndarray:
    """Inverse of `bits_of`."""
    return np.packbits(bits.astype(np.uint8), axis=-1, bitorder="little")


def first_largest(x: np.ndarray) -> np.ndarray:
    """The first value of largest magnitude in each row, with its sign, [..., n] -> [..., 1]; NaNs do not count."""
    magnitude = np.where(np.isnan(x), np.float32(0), np.abs(x))
    at = magnitude.argmax(axis=-1, keepdims=True)
    value = np.take_along_axis(x, at, axis=-1)
    return np.where(np.take_along_axis(magnitude, at, axis=-1) > 0, value, np.float32(0))


def largest_magnitude(x: np.ndarray) -> np.ndarray:
    """Largest magnitude in each row, [..., n] -> [..., 1]; NaNs do not count."""
    return np.fmax.reduce(np.abs(x), axis=-1, keepdims=True, initial=np.float32(0))


def running_max(x: np.ndarray) -> np.ndarray:
    """Largest value from 0 up by `m = m > v ? m : v`, [..., n] -> [..., 1]; a NaN is forgotten at the next value."""
    largest = np.zeros(x.shape[:-1], np.float32)
    for j in range(x.shape[-1]):
        with np.errstate(invalid="ignore"):
            largest = np.where(largest > x[..., j], largest, x[..., j])
    return largest[..., None]
