import numpy as np
import pytest

from kvant.evaluate.compact import compact, log_sum_exp
from kvant.evaluate.metrics import exact_kld, score_rows

pytestmark = pytest.mark.heavy

ROWS, VOCABULARY = 200, 20_000


@pytest.fixture(scope="module")
def base() -> np.ndarray:
    """Logits as a language model has them: a few likely tokens, a long tail."""
    rng = np.random.default_rng(11)
    logits = rng.normal(0, 2.0, (ROWS, VOCABULARY)).astype(np.float32)
    for row in logits:
        row[rng.choice(VOCABULARY, 30, replace=False)] += rng.exponential(3.0, 30)
    return logits


def test_top_tokens_are_exact_and_ordered(base: np.ndarray) -> None:
    labels = np.arange(ROWS)
    rows = compact(base, labels, seed=1, top=100, samples=50)
    assert rows.ids.dtype == np.uint16
    order = np.argsort(-base, axis=1, kind="stable")[:, :100]
    np.testing.assert_array_equal(rows.ids[:, :100], order)
    log_p = base.astype(np.float64) - np.log(np.exp(base.astype(np.float64)).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(rows.log_p, np.take_along_axis(log_p, rows.ids.astype(int), 1), atol=2e-6)
    np.testing.assert_allclose(rows.label_log_p, log_p[labels, labels], atol=1e-6)
    p = np.exp(log_p)
    np.testing.assert_allclose(rows.tail_p, 1 - np.take_along_axis(p, order, 1).sum(axis=1), rtol=1e-4)


def test_samples_come_from_the_tail_alone(base: np.ndarray) -> None:
    rows = compact(base, np.zeros(ROWS, int), seed=1, top=100, samples=50)
    for head, drawn in zip(rows.ids[:, :100], rows.ids[:, 100:], strict=True):
        assert not np.isin(drawn, head).any()


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.4, 1.0])
def test_the_error_of_the_mean_is_within_the_stated_bound(base: np.ndarray, noise: float) -> None:
    variant = base + np.random.default_rng(7).normal(0, noise, base.shape).astype(np.float32)
    exact = exact_kld(base, variant)
    rows = compact(base, np.zeros(ROWS, int), seed=2)
    found = score_rows(variant, rows)
    sampling_se = np.sqrt(found.kld_variance.sum()) / ROWS
    error = found.kld.mean() - exact.mean()
    assert rows.tail_p.mean() > 0.1, "the tail must matter for this test to mean anything"
    assert abs(error) < 4 * sampling_se + 1e-9
    assert abs(error) < 0.005 * exact.mean()


def test_the_estimate_is_unbiased_over_seeds(base: np.ndarray) -> None:
    few = base[:10]
    variant = few + np.random.default_rng(8).normal(0, 0.5, few.shape).astype(np.float32)
    exact = exact_kld(few, variant).mean()
    labels = np.zeros(10, int)
    found = [score_rows(variant, compact(few, labels, seed=s, top=64, samples=16)).kld.mean() for s in range(60)]
    standard_error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - exact) < 4 * standard_error


def test_equal_logits_and_certain_tokens_are_no_special_case() -> None:
    flat = np.zeros((1, 3000), np.float32)
    assert score_rows(flat, compact(flat, np.array([5]), seed=0)).kld[0] < 1e-12
    certain = np.full((1, 3000), -1e9, np.float32)
    certain[0, 17] = 0
    rows = compact(certain, np.array([17]), seed=0)
    assert (rows.ids[0, 0], rows.tail_p[0]) == (17, 0.0)
    assert score_rows(certain, rows).kld[0] < 1e-12


def test_the_first_of_equal_maxima_leads() -> None:
    logits = np.zeros((1, 5000), np.float32)
    logits[0, [40, 4000]] = 3
    assert compact(logits, np.array([0]), seed=0, top=1, samples=4).ids[0, 0] == 40


def test_same_seed_same_bytes_and_large_vocabularies_take_wider_ids() -> None:
    logits = np.random.default_rng(0).normal(0, 1, (2, 70_000)).astype(np.float32)
    first, second = (compact(logits, np.array([0, 69_999]), seed=9) for _ in range(2))
    assert first.ids.dtype == np.uint32
    assert first.ids.tobytes() == second.ids.tobytes()


def test_log_sum_exp_of_huge_logits_is_finite() -> None:
    np.testing.assert_allclose(log_sum_exp(np.array([[1e4, 1e4]], np.float32)), 1e4 + np.log(2))
