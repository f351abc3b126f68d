"""MLX's own `mx.quantize` and `mx.dequantize` as the oracle: the same bytes, the same floats."""

from typing import Any

import numpy as np
import pytest

from kvant.dtypes import BF16, F16, F32
from kvant.kernels.mlx import AFFINE_BITS, AFFINE_GROUPS, MICROSCALED, Grouping, dequantize, quantize

mx: Any = pytest.importorskip("mlx.core", reason="there is no wheel of mlx for this system")

FLOATS = {"float32": F32, "float16": F16, "bfloat16": BF16}
AFFINE = [Grouping(mode="affine", bits=b, group_size=g) for b in AFFINE_BITS for g in AFFINE_GROUPS]


def weights() -> np.ndarray:
    """Rows that meet every branch: zeros, constants, one sign, tiny values, ties, many magnitudes."""
    random = np.random.default_rng(0)
    x = random.standard_normal((24, 384)).astype(np.float32)
    x[0], x[1, :32], x[2], x[3] = 0, 3.25, np.abs(x[2]), -np.abs(x[3])
    x[4] *= 1e-9
    x[5] = -1e-30
    x[6] = np.tile([6, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5], 48)
    x[7] = -x[6]
    steps = np.linspace(-7, 7, 16 * 384, dtype=np.float32).reshape(16, 384)
    x[8:] = steps * np.exp2(random.integers(-40, 12, (16, 1))).astype(np.float32)
    return x


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("grouping", [*AFFINE, *MICROSCALED.values()], ids=str)
def test_the_bytes_of_mx_quantize(grouping: Grouping, dtype: str) -> None:
    options = {"group_size": grouping.group_size, "bits": grouping.bits, "mode": grouping.mode}
    array = mx.array(weights()).astype(getattr(mx, dtype))
    theirs = mx.quantize(array, **options)
    ours = quantize(np.array(array.astype(mx.float32)), grouping, FLOATS[dtype])
    assert np.array_equal(ours.words, np.array(theirs[0]))
    parts = [ours.scales] + ([] if ours.biases is None else [ours.biases])
    assert len(parts) == len(theirs) - 1
    for mine, part in zip(parts, theirs[1:], strict=True):
        assert np.array_equal(mine, np.array(part.view(mx.uint8)))
    wide = [part if part.dtype == mx.uint8 else part.astype(mx.float32) for part in theirs[1:]]
    restored = mx.dequantize(theirs[0], *wide, **options, dtype=mx.float32)
    assert np.array_equal(dequantize(ours, grouping, FLOATS[dtype]), np.array(restored))
