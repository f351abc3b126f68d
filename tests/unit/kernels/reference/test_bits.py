"""The arithmetic that the NumPy twins share, against NumPy's own and against values worked out by hand."""

import numpy as np
import pytest

from kvant.kernels.reference import bits


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_every_half_is_read_as_numpy_reads_it_and_written_back() -> None:
    raw = np.arange(65536, dtype="<u2")
    values = bits.half(raw.view(np.uint8).reshape(-1, 2))[:, 0]
    assert np.array_equal(values, raw.view("<f2").astype(np.float32), equal_nan=True)
    number = ~np.isnan(values)
    assert np.array_equal(bits.to_half(values).view("<u2")[number], raw[number])


def test_a_signalling_nan_becomes_quiet_and_keeps_its_payload() -> None:
    raw = np.array([0x7C01, 0xFC01, 0x7E55], "<u2").view(np.uint8).reshape(-1, 2)
    assert [hex(v) for v in bits.half(raw).view(np.uint32)[:, 0]] == ["0x7fc02000", "0xffc02000", "0x7fcaa000"]


def test_every_nan_is_written_as_the_same_half_with_its_sign() -> None:
    nan = np.array([0x7F800001, 0xFFC12345], np.uint32).view(np.float32)
    assert list(bits.to_half(nan).view("<u2")) == [0x7E00, 0xFE00]


def test_conversion_to_int_is_that_of_x86() -> None:
    x = f32(-2.9, 2.9, 2147483520.0, 2147483648.0, -2147483648.0, np.inf, -np.inf, np.nan)
    low = -(2**31)
    assert list(bits.to_int(x)) == [-2, 2, 2147483520, low, low, low, low, low]


def test_round_away_takes_halves_away_from_zero_and_nothing_else() -> None:
    below_half = np.nextafter(np.float32(0.5), np.float32(0))
    x = f32(0.5, -0.5, 1.5, 2.5, -2.5, below_half, -below_half, 8388607.5, 16777217.0)
    assert list(bits.round_away(x)) == [1, -1, 2, 3, -3, 0, 0, 8388608, 16777216]


@pytest.mark.parametrize("value", [0.5, 1.5, 2.5, -0.5, -1.5, 3.49, 4194303.0])
def test_nearest_even_is_numpys_rint(value: float) -> None:
    assert bits.nearest_even(f32(value))[0] == np.rint(value)


def test_first_largest_keeps_the_sign_of_the_first_and_skips_nan() -> None:
    x = np.stack([f32(1, -3, 3), f32(np.nan, 2, -1), f32(0, -0.0, 0), f32(np.nan, np.nan, np.nan)])
    assert list(bits.first_largest(x)[:, 0]) == [-3, 2, 0, 0]
    assert list(bits.largest_magnitude(x)[:, 0]) == [3, 2, 0, 0]


def test_running_max_forgets_a_nan_at_the_next_value() -> None:
    x = np.stack([f32(5, np.nan, 1), f32(1, np.nan, 5), f32(1, 2, np.nan)])
    assert np.array_equal(bits.running_max(x)[:, 0], f32(1, 5, np.nan), equal_nan=True)


def test_packing_is_the_inverse_of_unpacking() -> None:
    data = np.random.default_rng(0).integers(0, 256, (3, 16), np.uint8)
    assert np.array_equal(bits.pack_nibbles(bits.nibbles(data)), data)
    assert np.array_equal(bits.pack_bits(bits.bits_of(data)), data)
    assert list(bits.nibbles(np.array([0x21, 0x43], np.uint8))) == [1, 3, 2, 4]
    assert bits.bit_planes(np.array([0b11_10_01_00], np.uint8), 2).ravel().tolist() == [0, 1, 2, 3]


def test_inverse_of_zero_is_zero_and_of_a_denormal_infinite() -> None:
    assert list(bits.inverse(f32(0, -0.0, 4, 1e-40))) == [0, 0, 0.25, np.inf]
