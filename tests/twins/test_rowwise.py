"""Sums and exponentials over rows: bytes of their twins at every level and number of threads, near float64."""

from collections.abc import Callable

import numpy as np
import pytest

from kvant.errors import ValueRangeError
from kvant.kernels import isa, rowwise
from kvant.kernels.reference import rowwise as twin

THREADS = (1, 2, 5)
SHAPES = [(1, 1), (3, 15), (5, 16), (2, 17), (70, 100), (1500, 129), (0, 4)]


@pytest.fixture(params=isa.levels())
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(isa.ENVIRONMENT, request.param)
    return str(request.param)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("level")
def test_all_equal_their_twins(shape: tuple[int, int]) -> None:
    a, b, scores = normal(*shape), normal(*shape, seed=1), normal(*shape, seed=2, scale=30)
    for threads in THREADS:
        assert same(rowwise.row_dot(a, b, threads=threads), twin.row_dot(a, b))
        assert same(rowwise.sigmoid(scores, threads=threads), twin.sigmoid(scores))
        for period in (0, 1, 7, 200):
            found = rowwise.softmax(scores.copy(), period=period, threads=threads)
            assert same(found, twin.softmax(scores, period))


@pytest.mark.usefixtures("level")
def test_the_ends_of_the_range() -> None:
    x = np.array([[0.0, -0.0, 87.5, -87.0, -87.5, -1e30, 1e30, np.inf, -np.inf, 88.7, -1e-40, 200.0]], np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # infinity takes the polynomial, whose result is not used
        assert same(rowwise.sigmoid(x), twin.sigmoid(x))
    assert np.isfinite(rowwise.sigmoid(x)).all()
    assert np.isnan(rowwise.sigmoid(np.array([[np.nan, 0]], np.float32))).tolist() == [[True, False]]
    rows = np.array([[-np.inf, 3, 3, -200], [np.nan, 1, 2, 3]], np.float32)
    assert same(rowwise.softmax(rows[:1].copy()), np.array([[0, 0.5, 0.5, 0]], np.float32))  # exp(-203) is none
    assert np.isnan(rowwise.softmax(rows[1:].copy())).all()


def test_they_are_within_rounding_of_float64() -> None:
    a, b = normal(50, 1000), normal(50, 1000, seed=1)
    exact = np.sum(a.astype(np.float64) * b, axis=1)
    np.testing.assert_allclose(rowwise.row_dot(a, b), exact, rtol=0, atol=1e-12)
    x = np.linspace(-90, 90, 100_001, dtype=np.float32)[None]
    np.testing.assert_allclose(rowwise.sigmoid(x), 1 / (1 + np.exp(-x.astype(np.float64))), rtol=4e-7, atol=2e-38)
    scores = normal(50, 1000, seed=2, scale=10)
    e = np.exp((scores - scores.max(1, keepdims=True)).astype(np.float64))
    np.testing.assert_allclose(rowwise.softmax(scores.copy()), e / e.sum(1, keepdims=True), rtol=4e-7, atol=2e-38)


def test_a_row_sees_itself_and_those_before_it_in_its_period() -> None:
    found = rowwise.softmax(np.zeros((6, 3), np.float32), period=3)
    third = np.float32(1 / 3)
    expected = np.array([[1, 0, 0], [0.5, 0.5, 0], [third, third, third]] * 2, np.float32)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rowwise.row_dot(normal(2, 3), normal(3, 2)), r"shapes \[2, 3\] and \[3, 2\] differ"),
        (lambda: rowwise.row_dot(np.zeros((2, 3)), normal(2, 3)), r"a: float64 \[2, 3\] is not a float32 matrix"),
        (lambda: rowwise.sigmoid(normal(3)), r"x: float32 \[3\] is not"),
        (lambda: rowwise.softmax(normal(4, 6)[:, ::2]), "not contiguous"),
        (lambda: rowwise.softmax(np.broadcast_to(np.float32(0), (1, 1))), "not contiguous and writable"),
        (lambda: rowwise.softmax(normal(4, 6), period=-1), "period: -1"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], np.ndarray], words: str) -> None:
    with pytest.raises(ValueRangeError, match=words):
        call()
