"""MLX's packed rows: what packs unpacks, and what cannot be quantized is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvant.errors import BlockShapeError, UnsupportedFormatError, ValueRangeError
from kvant.kernels.fitting import GROUP_BITS, GROUP_SIZES, fit_groups, prepare
from kvant.kernels.mlx import AFFINE_BITS, MICROSCALED, Grouping, Quantized, check, dequantize, pack, quantize, unpack

FOUR = Grouping(mode="affine", bits=4, group_size=64)


@given(bits=st.sampled_from(AFFINE_BITS), rows=st.integers(0, 3), seed=st.integers(0, 1000))
def test_codes_come_back(bits: int, rows: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (rows, 96), np.uint8)
    words = pack(codes, bits)
    assert words.shape == (rows, 96 * bits // 32)
    assert np.array_equal(unpack(words, bits), codes)


def test_codes_lie_from_the_lowest_bit_up() -> None:
    codes = np.arange(32, dtype=np.uint8)[None] % 8
    packed = int.from_bytes(pack(codes, 3).tobytes(), "little")
    assert [packed >> 3 * i & 7 for i in range(32)] == codes[0].tolist()


@pytest.mark.parametrize("grouping", [FOUR, *MICROSCALED.values()], ids=str)
def test_what_is_restored_quantizes_to_itself(grouping: Grouping) -> None:
    x = np.random.default_rng(1).standard_normal((8, 128)).astype(np.float32)
    once = dequantize(quantize(x, grouping), grouping)
    assert np.abs(once - x).max() < 0.6
    if grouping.mode != "affine":
        assert np.array_equal(dequantize(quantize(once, grouping), grouping), once)


@pytest.mark.parametrize(
    "grouping",
    [
        Grouping(mode="affine", bits=7, group_size=64), Grouping(mode="affine", bits=4, group_size=16),
        Grouping(mode="mxfp4", bits=8, group_size=32), Grouping(mode="other", bits=4, group_size=32),
    ],
    ids=str,
)  # fmt: skip
def test_groupings_that_mlx_does_not_have(grouping: Grouping) -> None:
    with pytest.raises(UnsupportedFormatError, match="MLX has"):
        check(grouping, 64)


def test_rows_of_no_whole_groups_and_weights_that_are_no_numbers() -> None:
    with pytest.raises(BlockShapeError, match="96 weights"):
        quantize(np.zeros((1, 96), np.float32), FOUR)
    with pytest.raises(ValueRangeError, match="NaN"):
        quantize(np.full((1, 64), np.nan, np.float32), FOUR)


@pytest.mark.parametrize("bits", GROUP_BITS)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_groups_fitted_under_a_hessian_leave_less_error(bits: int, group_size: int) -> None:
    random = np.random.default_rng(2)
    inputs = random.standard_normal((400, 128)) @ (0.3 * random.standard_normal((128, 128)) + np.eye(128))
    curvature = prepare(inputs.T @ inputs / 400, damping=0.1)
    x = random.standard_normal((16, 128)).astype(np.float32)
    grouping = Grouping(mode="affine", bits=bits, group_size=group_size)
    codes, scales, biases, loss = fit_groups(x, bits, group_size, curvature, threads=1)
    rows = Quantized(words=pack(codes, bits), scales=scales.view(np.uint8), biases=biases.view(np.uint8))
    left, plain = (_error(dequantize(q, grouping) - x, curvature.hessian) for q in (rows, quantize(x, grouping)))
    assert np.allclose(left, loss, rtol=1e-3)
    assert left.sum() < 0.6 * plain.sum()
    again = fit_groups(x, bits, group_size, curvature, threads=2)
    assert all(np.array_equal(a, b) for a, b in zip(again, (codes, scales, biases, loss), strict=True))


def test_groups_that_cannot_be_fitted() -> None:
    curvature = prepare(np.eye(96), damping=0.1)
    with pytest.raises(UnsupportedFormatError, match="7 bits"):
        fit_groups(np.zeros((1, 96), np.float32), 7, 32, curvature)
    with pytest.raises(BlockShapeError, match="96"):
        fit_groups(np.zeros((1, 96), np.float32), 4, 64, curvature)
    with pytest.raises(ValueRangeError, match="does not fit"):
        fit_groups(np.zeros((1, 64), np.float32), 4, 64, curvature)


def _error(e: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    left: np.ndarray = np.einsum("ij,jk,ik->i", e, hessian, e)
    return left
