"""Rounding under a Hessian: the native kernel against its NumPy twin, to the byte, at every level and thread count."""

import numpy as np
import pytest

from kvant import kernels
from kvant.dtypes import block_type
from kvant.errors import ValueRangeError
from kvant.kernels import isa
from kvant.kernels.fitting import FITTABLE, fit, prepare
from kvant.kernels.packing import pack
from kvant.kernels.reference import codebook_fitting, fitting

F = np.float32
CODEBOOKS = tuple(codebook_fitting.TYPES)


def hessian_of(random: np.random.Generator, n: int, *, rank: int | None = None) -> np.ndarray:
    """A Hessian as activations make it: correlated channels, some of them large."""
    x = random.standard_normal((rank or 4 * n, n)) @ (np.eye(n) + 0.3 * random.standard_normal((n, n)))
    return np.asarray(x.T @ x * np.outer(s := np.exp(random.standard_normal(n)), s) / len(x))


def weights_of(random: np.random.Generator, rows: int, n: int) -> np.ndarray:
    return (random.standard_normal((rows, n)) * 0.05).astype(np.float32)


@pytest.mark.parametrize("kind", sorted(FITTABLE))
def test_bytes_equal_the_twins(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(len(kind) + ord(kind[1]))
    n = 2 * block_type(kind).block_length
    x, curvature = weights_of(random, 5, n), prepare(hessian_of(random, n), damping=0.03)
    x[0, :32], x[1] = 0, 0  # a run and a row of zeros
    matrices = x, curvature.hessian, curvature.feedback, curvature.cost, curvature.local
    rows: fitting.Rows | codebook_fitting.Rows
    if kind in CODEBOOKS:
        rows = codebook_fitting.Rows(codebook_fitting.TYPES[kind], *matrices)
    else:
        rows = fitting.Rows(fitting.TYPES[kind], *matrices)
    rows.run(1)
    expected = pack(rows.parts(), block_type(kind))
    np.testing.assert_array_equal(kernels.decode(expected, kind, n), rows.v.T)
    for level in isa.levels():
        monkeypatch.setenv("KVANT_ISA", level)
        found, _ = fit(x, kind, curvature, sweeps=1)
        np.testing.assert_array_equal(found, expected, err_msg=level)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "IQ4_XS", "IQ3_S", "IQ2_XXS", "Q2_0", "NVFP4", "IQ1_M"])
def test_neither_threads_nor_neighbours_change_a_byte(kind: str) -> None:
    random = np.random.default_rng(3)
    x, curvature = weights_of(random, 1030, 256), prepare(hessian_of(random, 256), damping=0.03)
    together, loss = fit(x, kind, curvature, sweeps=1, threads=1)
    for threads in (2, 3):
        np.testing.assert_array_equal(fit(x, kind, curvature, sweeps=1, threads=threads)[0], together)
    alone, alone_loss = fit(x[1023:1024], kind, curvature, sweeps=1)
    np.testing.assert_array_equal(alone[0], together[1023])
    assert alone_loss[0] == loss[1023]


@pytest.mark.parametrize("n", [1, 7, 64, 65, 300, 1100])
def test_the_factors_multiply_back(n: int) -> None:
    h = hessian_of(np.random.default_rng(n), n)
    damped = h + 0.01 * np.mean(np.diag(h)) * np.eye(n)
    found = prepare(h, damping=0.01)
    upper = np.triu(found.feedback.astype(np.float64))
    np.testing.assert_array_equal(np.diag(upper), 1)
    np.testing.assert_array_equal(found.feedback, found.feedback.T)
    np.testing.assert_array_equal(found.hessian, found.hessian.T)
    np.testing.assert_allclose(found.hessian, damped, rtol=1e-6)
    np.testing.assert_allclose(upper * found.cost @ upper.T, damped, rtol=1e-5, atol=1e-5 * np.abs(damped).max())
    for number, local in enumerate(found.local):
        now = slice(256 * number, min(n, 256 * number + 256))
        block = upper[now, now] * found.cost[now] @ upper[now, now].T
        count = len(block)
        np.testing.assert_allclose(local[:count, :count], block, rtol=1e-5, atol=1e-6 * np.abs(block).max())
        assert not local[count:].any()
        assert not local[:, count:].any()


def test_a_factor_has_the_same_bytes_at_every_level_and_thread_count(monkeypatch: pytest.MonkeyPatch) -> None:
    h = hessian_of(np.random.default_rng(5), 1100).astype(np.float32)
    expected = prepare(h, damping=0.1, threads=1)
    for level in isa.levels():
        monkeypatch.setenv("KVANT_ISA", level)
        found = prepare(h, damping=0.1, threads=3)
        for name in ("hessian", "feedback", "cost", "local"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=f"{level} {name}")


def test_several_moments_count_the_same_and_none_may_be_zero() -> None:
    a, b = np.diag([1.0, 3.0]), np.diag([4.0, 4.0]).astype(np.float32)
    found = prepare([a, b], damping=0.5)
    np.testing.assert_allclose(found.hessian, np.diag([0.75, 1.25]) + 0.5 * np.eye(2), rtol=1e-6)
    np.testing.assert_allclose(prepare([a], damping=0.5).hessian, a + np.eye(2), rtol=1e-6)
    for wrong in ([a, np.zeros((2, 2))], [a, np.eye(3)], [], [a, np.full((2, 2), np.nan)]):
        with pytest.raises(ValueRangeError):
            prepare(wrong, damping=0.5)
    for alone in (np.array([[1.0, np.nan], [np.nan, 1.0]]), np.array([[1.0, 9.0], [9.0, 1.0]])):
        with pytest.raises(ValueRangeError, match="hessian: "):
            prepare(alone, damping=0.5)


@pytest.mark.parametrize("kind", sorted(FITTABLE))
def test_the_error_is_what_decoding_gives_and_far_below_upstreams(kind: str) -> None:
    random = np.random.default_rng(11)
    n = 512
    x, h = weights_of(random, 16 if kind in CODEBOOKS else 64, n), hessian_of(random, n, rank=200)
    curvature = prepare(h, damping=0.03)

    def error(blocks: np.ndarray) -> np.ndarray:
        e = (kernels.decode(blocks, kind, n) - x).astype(np.float64)
        return np.asarray(np.einsum("ri,ij,rj->r", e, curvature.hessian.astype(np.float64), e))

    blocks, loss = fit(x, kind, curvature)
    np.testing.assert_allclose(loss, error(blocks), rtol=1e-3)
    upstream = kernels.encode(x, kind, importance=np.ascontiguousarray(np.diag(h), dtype=np.float32))
    assert error(blocks).sum() < 0.7 * error(upstream).sum()
    rounded, _ = fit(x, kind, curvature, sweeps=0)
    assert error(blocks).sum() < error(rounded).sum()


@pytest.mark.parametrize("kind", sorted(FITTABLE))
def test_descent_never_makes_a_row_worse_and_odd_rows_are_safe(kind: str) -> None:
    random = np.random.default_rng(17)
    n = 256
    x, curvature = weights_of(random, 24, n), prepare(hessian_of(random, n, rank=60), damping=0.03)
    x[0], x[1, 7], x[2], x[3], x[4], x[5, ::2] = 0, 1e3, 0.05, x[3] * F(1e-9), x[4] * F(1e6), 0
    x[6], x[7, 3] = 0, 3e38
    finite = np.delete(np.arange(24), 7)  # nothing can hold that weight's square
    size = np.einsum("ri,ij,rj->r", *(a.astype(np.float64) for a in (x[finite], curvature.hessian, x[finite])))
    left = None
    for sweeps in range(4):
        blocks, loss = fit(x, kind, curvature, sweeps=sweeps)
        values = kernels.decode(blocks, kind, n)
        assert np.isfinite(values).all()
        np.testing.assert_array_equal(values[0], 0)
        e = (values - x)[finite].astype(np.float64)
        error = np.einsum("ri,ij,rj->r", e, curvature.hessian.astype(np.float64), e)
        assert (np.abs(loss[finite] - error) <= 2e-3 * error + 1e-8 * size).all()  # sums of float32 changes
        assert left is None or (error <= left * (1 + 1e-4)).all()
        left = error
