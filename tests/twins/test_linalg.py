"""Native products and factors against their NumPy twins to the bit, at every level and number of threads; and
against float64.

Not checked here: which NaN a NaN becomes.
"""

from collections.abc import Callable

import numpy as np
import pytest

from kvant.errors import ValueRangeError
from kvant.kernels import isa, linalg
from kvant.kernels.reference import linalg as twin

# (m, n, k): single elements, primes, edges of micro-tiles, of tiles (192) and of panels (256), several of each.
SHAPES = [
    (1, 1, 1), (1, 7, 255), (7, 1, 257), (2, 3, 5), (8, 48, 256), (9, 49, 13), (13, 17, 523), (193, 199, 37),
    (192, 384, 64), (385, 50, 300),
]  # fmt: skip
EMPTY = [(0, 5, 3), (5, 0, 3), (5, 4, 0), (0, 0, 0)]
BEYOND_A_CHUNK = [(3841, 2, 7), (2, 3841, 7), (3, 2, 2049)]  # 3840 rows and 2048 steps are packed at a time
THREADS = (1, 2, 3)
UNIT = 2.0**-24  # relative error of one rounding in float32


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def positive_definite(n: int) -> np.ndarray:
    x = np.random.default_rng(n).standard_normal((n + 20, n))
    return x.T @ x


@pytest.fixture(params=isa.levels())
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("KVANT_ISA", request.param)
    return str(request.param)


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    """The same bytes: zeros have signs."""
    return found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("shape", SHAPES + EMPTY + BEYOND_A_CHUNK, ids=str)
@pytest.mark.usefixtures("level")
def test_products_equal_their_twin(shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    a, b = normal(m, k), normal(k, n, seed=1)
    expected = twin.matmul(a, b)
    a_t, b_t = np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
    for threads in THREADS:
        assert same(linalg.matmul(a, b, threads=threads), expected)
        assert same(linalg.matmul_nt(a, b_t, threads=threads), expected)
        assert same(linalg.matmul_tn(a_t, b, threads=threads), expected)


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.usefixtures("level")
def test_stacks_hold_the_products_of_their_matrices(count: int) -> None:
    a, b = normal(count, 30, 300), normal(count, 300, 50, seed=1)
    a_t, b_t = (np.ascontiguousarray(x.transpose(0, 2, 1)) for x in (a, b))
    for threads in THREADS:
        for found in (
            linalg.matmul(a, b, threads=threads),
            linalg.matmul_nt(a, b_t, threads=threads),
            linalg.matmul_tn(a_t, b, threads=threads),
        ):
            assert found.shape == (count, 30, 50)
            assert all(same(x, linalg.matmul(*pair)) for x, *pair in zip(found, a, b, strict=True))


@pytest.mark.parametrize(("m", "n", "k"), [(61, 67, 71), (100, 30, 1000), (64, 64, 3000)])
def test_products_are_within_rounding_of_float64(m: int, n: int, k: int) -> None:
    a, b = normal(m, k), normal(k, n, seed=1)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    longest = min(k, linalg.PANEL) + k / linalg.PANEL + 1  # roundings that a term goes through
    bound = longest * UNIT * 1.01 * (np.abs(a).astype(np.float64) @ np.abs(b))
    assert np.all(np.abs(linalg.matmul(a, b) - exact) <= bound)


@pytest.mark.usefixtures("level")
def test_a_row_does_not_depend_on_its_neighbours() -> None:
    a, b = normal(300, 77), normal(250, 77, seed=1)
    whole = linalg.matmul_nt(a, b)
    assert same(linalg.matmul_nt(a[117:118], b), whole[117:118])
    assert same(linalg.matmul_nt(a, b[201:209]), np.ascontiguousarray(whole[:, 201:209]))


@pytest.mark.usefixtures("level")
def test_infinities_and_small_numbers_go_their_way() -> None:
    a, b = normal(5, 40) * np.float32(1e-38), normal(3, 40, seed=1)
    a[2, 7], a[3, 8] = np.inf, np.nan
    found = linalg.matmul_nt(a, b)
    assert np.isinf(found[2]).all()
    assert np.isnan(found[3]).all()
    kept = [0, 1, 4]
    assert same(found[kept], twin.matmul(a[kept], np.ascontiguousarray(b.T)))  # subnormal sums are not flushed


def test_arrays_that_are_not_contiguous_are_read_as_they_are() -> None:
    a, b = normal(20, 60)[::2, 5:50:3], normal(15, 9, seed=1).T
    assert same(linalg.matmul_nt(a, np.ascontiguousarray(b)), linalg.matmul(np.ascontiguousarray(a), b.T))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("t", "n"), [(1, 1), (5, 7), (257, 50), (300, 193), (523, 400), (0, 3), (3, 0)])
@pytest.mark.usefixtures("level")
def test_gram_equals_its_twin(t: int, n: int, dtype: type) -> None:
    x = normal(t, n)
    triangle: np.ndarray = np.tril(positive_definite(n)).astype(dtype)
    before = triangle + np.tril(triangle, -1).T
    expected = twin.gram(x, before)
    for threads in THREADS:
        out = before.copy()
        assert linalg.gram(x, out=out, threads=threads) is out
        assert same(out, expected)
    assert same(expected, np.ascontiguousarray(expected.T))


def test_gram_of_more_columns_than_a_chunk() -> None:
    x = normal(2, 3841)
    assert same(linalg.gram(x, out=np.zeros((3841, 3841), np.float32)), twin.gram(x, np.zeros((1, 1), np.float32)))


def test_gram_in_chunks_of_whole_panels_is_gram_of_all() -> None:
    x = normal(2 * linalg.PANEL + 100, 70)
    whole, parts = linalg.gram(x), np.zeros((70, 70))
    for first in range(0, len(x), linalg.PANEL):
        linalg.gram(x[first : first + linalg.PANEL], out=parts)
    assert same(parts, whole)
    exact = x.T.astype(np.float64) @ x
    bound = (linalg.PANEL + 1) * UNIT * (np.abs(x).T.astype(np.float64) @ np.abs(x))
    assert np.all(np.abs(whole - exact) <= bound)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 191, 192, 193, 401])
@pytest.mark.usefixtures("level")
def test_factors_equal_their_twins(n: int) -> None:
    h = positive_definite(n)
    lower, upper = twin.cholesky(h), twin.inverse_cholesky_upper(h)
    for threads in THREADS:
        assert same(linalg.cholesky(h, threads=threads), lower)
        assert same(linalg.inverse_cholesky_upper(h, threads=threads), upper)


@pytest.mark.parametrize("n", [1, 5, 100, 193, 500])
def test_factors_multiply_to_the_matrix_and_its_inverse(n: int) -> None:
    h = positive_definite(n)
    untouched = h.copy()
    lower = linalg.cholesky(h)
    assert np.array_equal(lower, np.tril(lower))
    assert np.abs(lower @ lower.T - h).max() <= 4 * (n + 1) * 2.0**-53 * np.abs(h).max()
    upper = linalg.inverse_cholesky_upper(h)
    assert np.array_equal(upper, np.triu(upper))
    inverse = np.linalg.inv(h)
    assert np.abs(upper.astype(np.float64).T @ upper - inverse).max() <= 4 * UNIT * np.abs(inverse).max()
    assert np.array_equal(h, untouched)


def test_factors_read_one_triangle_and_take_float32() -> None:
    h = positive_definite(30)
    assert same(linalg.cholesky(np.tril(h)), linalg.cholesky(h))
    assert same(linalg.inverse_cholesky_upper(np.triu(h)), linalg.inverse_cholesky_upper(h))
    single = h.astype(np.float32)
    assert same(linalg.cholesky(single), linalg.cholesky(single.astype(np.float64)))


@pytest.mark.parametrize("column", [0, 150, 191, 192, 260])
@pytest.mark.parametrize("pivot", [-1.0, 0.0, np.nan, np.inf])
def test_a_matrix_that_is_not_positive_definite_is_refused(column: int, pivot: float) -> None:
    h = np.eye(261)
    h[column, column] = pivot
    for factor in (linalg.cholesky, linalg.inverse_cholesky_upper):
        with pytest.raises(ValueRangeError, match=rf"h: column {column} has the pivot {pivot:g}.*more damping"):
            factor(h)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: linalg.matmul(np.zeros((2, 3)), normal(3, 2)), r"a: float64 \[2, 3\] is not a float32 matrix"),
        (lambda: linalg.matmul(normal(2, 3), normal(3)), r"b: float32 \[3\] is not a float32 matrix"),
        (lambda: linalg.matmul(normal(2, 3), normal(2, 3)), "sums over 3 and 2 elements differ.*matmul_nt"),
        (lambda: linalg.matmul(normal(2, 2, 3), normal(1, 3, 2)), "stacks of 2 and 1 matrices"),
        (lambda: linalg.matmul(normal(2, 2, 3), np.zeros((2, 3, 2))), r"a, b: float64 \[2, 3, 2\] is not a stack"),
        (lambda: linalg.matmul(normal(2, 2, 3), normal(3, 2)), r"a: float32 \[2, 2, 3\] is not a float32 matrix"),
        (lambda: linalg.matmul_nt(normal(2, 3), normal(3, 2)), "sums over 3 and 2 elements"),
        (lambda: linalg.matmul_tn(normal(2, 3), normal(3, 2)), "sums over 2 and 3 elements"),
        (lambda: linalg.matmul(normal(2, 3), normal(3, 2), threads=-1), "threads: -1 is negative"),
        (lambda: linalg.gram(normal(2, 3), out=np.zeros((2, 2))), r"out: float64 \[2, 2\] is not .*\[3, 3\]"),
        (lambda: linalg.gram(normal(2, 3), out=np.zeros((3, 3), np.float16)), "out: float16"),
        (lambda: linalg.gram(normal(2, 3), out=np.zeros((3, 6))[:, ::2]), "out: not contiguous"),
        (lambda: linalg.gram(normal(2, 3), out=np.broadcast_to(np.float32(0), (3, 3))), "out: not contiguous"),
        (lambda: linalg.cholesky(np.zeros((2, 3))), r"h: float64 \[2, 3\] is not a square"),
        (lambda: linalg.inverse_cholesky_upper(np.eye(2, dtype=np.int64)), r"h: int64 \[2, 2\] is not a square"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], np.ndarray], words: str) -> None:
    with pytest.raises(ValueRangeError, match=words):
        call()
