import math

import numpy as np
import pytest

from kvant.evaluate.compact import CompactRows, compact
from kvant.evaluate.metrics import RowScores, bootstrap_se, exact_kld, join, score_rows, summarize


def logits_of(*rows: list[float]) -> np.ndarray:
    return np.asarray(np.log(np.array(rows)), np.float32)


def scores(kld: np.ndarray, log_q: np.ndarray | None = None, log_p: np.ndarray | None = None) -> RowScores:
    zero = np.zeros_like(kld)
    return RowScores(
        kld=kld, kld_variance=zero, log_q=zero if log_q is None else log_q, log_p=zero if log_p is None else log_p,
        same_top=np.ones(len(kld), bool),
    )  # fmt: skip


def test_exact_kld_has_its_closed_form() -> None:
    p, q = logits_of([0.5, 0.25, 0.25], [0.1, 0.2, 0.7]), logits_of([0.25, 0.25, 0.5], [0.1, 0.2, 0.7])
    expected = [0.5 * math.log(2) + 0.25 * math.log(0.5), 0.0]
    np.testing.assert_allclose(exact_kld(p, q), expected, atol=1e-7)
    np.testing.assert_allclose(exact_kld(p + 7, q - 3), expected, atol=1e-6)  # a shift of all logits changes nothing


def test_a_small_vocabulary_is_kept_whole_and_scored_exactly() -> None:
    rng = np.random.default_rng(0)
    p, q = (rng.normal(0, 3, (50, 300)).astype(np.float32) for _ in range(2))
    labels = rng.integers(0, 300, 50)
    found = score_rows(q, compact(p, labels, seed=0))
    np.testing.assert_allclose(found.kld, exact_kld(p, q), rtol=1e-6)
    assert not found.kld_variance.any()
    wide = q.astype(np.float64)
    expected = wide[np.arange(50), labels] - np.log(np.exp(wide).sum(axis=1))
    np.testing.assert_allclose(found.log_q, expected, atol=1e-6)
    np.testing.assert_array_equal(found.same_top, p.argmax(axis=1) == q.argmax(axis=1))


def test_a_model_is_no_distance_from_itself() -> None:
    logits = np.random.default_rng(1).normal(0, 4, (40, 5000)).astype(np.float32)
    found = score_rows(logits, compact(logits, np.zeros(40, int), seed=3, top=64, samples=32))
    assert np.all(found.kld >= 0)
    assert found.kld.max() < 1e-11
    assert found.same_top.all()


def test_summary_of_known_positions() -> None:
    kld = np.arange(101) / 100
    log_p, log_q = np.full(101, math.log(0.5)), np.full(101, math.log(0.25))
    found = summarize([scores(kld, log_q, log_p)])
    assert found.kld_mean == pytest.approx(0.5)
    assert found.kld_median == pytest.approx(0.5)
    assert (found.kld_p95, found.kld_p99, found.kld_p999) == pytest.approx((0.95, 0.99, 0.999))
    assert (found.ppl, found.ppl_base, found.ppl_ratio) == pytest.approx((4, 2, 2))
    assert found.rms_dp == pytest.approx(0.25)
    assert (found.top1, found.n_positions) == (1.0, 101)


def test_standard_error_of_independent_positions_is_the_textbook_one() -> None:
    rng = np.random.default_rng(5)
    windows = [rng.exponential(1.0, 256) for _ in range(64)]
    expected = np.std(np.concatenate(windows)) / math.sqrt(64 * 256)
    assert bootstrap_se(windows) == pytest.approx(expected, rel=0.15)


def test_standard_error_sees_that_neighbours_are_alike() -> None:
    rng = np.random.default_rng(6)
    windows = [np.repeat(rng.exponential(1.0, 4), 64) for _ in range(32)]  # one value per block of 64
    naive = np.std(np.concatenate(windows)) / math.sqrt(32 * 256)
    assert bootstrap_se(windows) == pytest.approx(8 * naive, rel=0.2)  # sqrt(64) times larger
    assert bootstrap_se(windows) == bootstrap_se(windows)


def test_a_chosen_mixture_adds_no_error() -> None:
    windows = [np.full(256, 0.1), np.full(256, 5.0)]
    assert bootstrap_se(windows, ["prose", "code"]) == pytest.approx(0.0, abs=1e-12)
    assert bootstrap_se(windows) > 0.5


def test_joining_keeps_every_position_in_order() -> None:
    joined = join([scores(np.array([1.0, 2.0])), scores(np.array([3.0]))])
    np.testing.assert_array_equal(joined.kld, [1, 2, 3])
    assert len(joined.same_top) == 3


def test_scores_do_not_depend_on_the_base_being_stored_wider() -> None:
    rng = np.random.default_rng(2)
    p = rng.normal(0, 3, (8, 400)).astype(np.float32)
    q = p + rng.normal(0, 0.1, p.shape).astype(np.float32)
    rows = compact(p, np.zeros(8, int), seed=0, top=50, samples=30)
    wide = CompactRows(
        ids=rows.ids.astype(np.uint32), log_p=rows.log_p, tail_p=rows.tail_p, labels=rows.labels,
        label_log_p=rows.label_log_p, top=rows.top,
    )  # fmt: skip
    np.testing.assert_array_equal(score_rows(q, rows).kld, score_rows(q, wide).kld)
