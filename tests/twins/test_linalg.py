"""Native products against their NumPy twins to the bit, at every level and number of threads; and against float64."""

import numpy as np
import pytest

from kvant.kernels import isa, linalg
from kvant.kernels.reference import linalg as twin

# (m, n, k): single elements, primes, edges of micro-tiles, tiles (192) and panels (256), several panels, several tiles.
SHAPES = [
    (1, 1, 1), (1, 7, 255), (7, 1, 257), (2, 3, 5), (8, 48, 256), (9, 49, 13), (13, 17, 523), (193, 199, 37),
    (192, 384, 64), (385, 50, 300),
]  # fmt: skip
EMPTY = [(0, 5, 3), (5, 0, 3), (5, 4, 0), (0, 0, 0)]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.fixture(params=isa.levels())
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("KVANT_ISA", request.param)
    return str(request.param)


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    """The same bytes: zeros have signs."""
    return found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("shape", SHAPES + EMPTY, ids=str)
@pytest.mark.usefixtures("level")
def test_products_equal_their_twin(shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    a, b = normal(m, k), normal(k, n, seed=1)
    expected = twin.matmul(a, b)
    a_t, b_t = np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
    for threads in (1, 2, 3):
        assert same(linalg.matmul(a, b, threads=threads), expected)
        assert same(linalg.matmul_nt(a, b_t, threads=threads), expected)
        assert same(linalg.matmul_tn(a_t, b, threads=threads), expected)
