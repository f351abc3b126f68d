"""Blocks of MatMulNBits encoded under a Hessian."""

import numpy as np
import pytest

from kvant.errors import UnsupportedFormatError, ValueRangeError
from kvant.kernels.fitting import prepare
from kvant.kernels.nbits import FITTED, NBits, encode, fit, nbits_type

N = 256


def problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows, and a Hessian of correlated columns."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((N, N)) * rng.uniform(0.1, 2, N)
    return rng.standard_normal((40, N)).astype(np.float32), mixing @ mixing.T / N


def loss(decoded: np.ndarray, x: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    error = (decoded - x).astype(np.float64)
    found: np.ndarray = np.einsum("ri,ij,rj->r", error, hessian.astype(np.float64), error)
    return found


@pytest.mark.parametrize("key", sorted(FITTED), ids=str)
def test_fitted_blocks_lose_less_than_rounded_ones(key: tuple[int, int, bool]) -> None:
    kind = NBits(bits=key[0], block=key[1], symmetric=key[2])
    x, hessian = problem()
    curvature = prepare(hessian, damping=0.01)
    blocks, left = fit(x, kind, curvature, threads=2)
    assert blocks.codes.max() < 1 << kind.bits
    assert blocks.zeros.max() < 1 << kind.bits
    found = loss(blocks.decode(), x, curvature.hessian)
    np.testing.assert_allclose(left, found, rtol=2e-3, atol=1e-6)
    rounded = loss(encode(x, kind).decode(), x, curvature.hessian)
    assert found.sum() < 0.5 * rounded.sum()
    assert (found <= rounded).all()


def test_threads_do_not_change_a_bit() -> None:
    x, hessian = problem(1)
    curvature = prepare(hessian, damping=0.01)
    one, two = (fit(x, NBits(bits=4, block=32), curvature, threads=t)[0] for t in (1, 3))
    for name in ("codes", "scales", "zeros"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_names() -> None:
    assert nbits_type("matmulnbits4_b64_SYM") == NBits(bits=4, block=64, symmetric=True)
    assert nbits_type(NBits(bits=2, block=16).name) == NBits(bits=2, block=16)
    for wrong in ("MatMulNBits3_b32", "MatMulNBits4", "MatMulNBits4_b48", "Q4_0"):
        with pytest.raises(UnsupportedFormatError):
            nbits_type(wrong)


def test_bytes() -> None:
    assert NBits(bits=4, block=32).row_bytes(576) == 576 // 2 + 18 * 4 + 9
    assert NBits(bits=4, block=32, symmetric=True).row_bytes(576) == 576 // 2 + 18 * 4


def test_refusals() -> None:
    x, hessian = problem()
    curvature = prepare(hessian, damping=0.01)
    with pytest.raises(UnsupportedFormatError):
        fit(x, NBits(bits=4, block=16), curvature)
    with pytest.raises(ValueRangeError):
        fit(x[:, :128].copy(), NBits(bits=4, block=32), curvature)
    with pytest.raises(ValueRangeError):
        encode(np.full((1, 32), np.nan, np.float32), NBits(bits=4, block=32))
