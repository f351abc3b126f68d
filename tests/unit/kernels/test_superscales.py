"""Scales of blocks: what they multiply, and that everything else of a block stays."""

import numpy as np
import pytest

from kvant.dtypes import BLOCK_TYPES
from kvant.errors import UnsupportedFormatError
from kvant.kernels import decode, encode
from kvant.kernels.superscales import OFFSETS, bases, read_scales, with_scales

ROWS, N = 3, 512


def blocks_of(name: str) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((ROWS, N)).astype(np.float32)
    return encode(x, name, importance=np.ones(N, np.float32))


@pytest.mark.parametrize("name", OFFSETS)
def test_weights_are_sums_of_scales_times_bases(name: str) -> None:
    kind, blocks = BLOCK_TYPES[name], blocks_of(name)
    scales, parts = read_scales(blocks, kind), bases(blocks, kind, N)
    assert len(scales) == len(parts)
    total = sum(np.repeat(scale, kind.block_length, axis=1) * part for scale, part in zip(scales, parts, strict=True))
    weights = decode(blocks, kind, N)
    np.testing.assert_allclose(total, weights, rtol=0, atol=2e-6 * np.abs(weights).max())


@pytest.mark.parametrize("name", OFFSETS)
def test_scales_are_replaced_and_nothing_else(name: str) -> None:
    kind, blocks = BLOCK_TYPES[name], blocks_of(name)
    scales = read_scales(blocks, kind)
    np.testing.assert_array_equal(with_scales(blocks, kind, scales), blocks)
    doubled = with_scales(blocks, kind, [2 * scale for scale in scales])
    np.testing.assert_array_equal(decode(doubled, kind, N), 2 * decode(blocks, kind, N))
    huge = with_scales(blocks, kind, [np.full_like(scale, 1e9) for scale in scales])
    assert all(np.isfinite(scale).all() for scale in read_scales(huge, kind))


def test_a_type_without_float16_scales_is_refused() -> None:
    with pytest.raises(UnsupportedFormatError, match="MXFP4 have no float16 scale"):
        read_scales(np.zeros((1, 17), np.uint8), BLOCK_TYPES["MXFP4"])
