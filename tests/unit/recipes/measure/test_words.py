import pytest

from kvant.evaluate.score import VariantScore
from kvant.evaluate.vectors import EmbeddingScore
from kvant.recipes.measure.words import cost_in_words, is_degraded, rounded_down, rounded_up


def score(kld: float) -> VariantScore:
    return VariantScore(
        name="Q2_K", path="", size_bytes=1, bpw=2.6, kld_mean=kld, kld_se=0.0, kld_median=kld, kld_p95=kld, kld_p99=kld,
        kld_p999=kld, top1=0.612, rms_dp=0.1, ppl=40.0, ppl_ratio=1.874, pp_tok_s=None, tg_tok_s=None, rss_bytes=None,
        rss_model_bytes=None, load_s=0.1, energy_j_per_token=None, energy_reason="none", kld_sampling_se=0.0,
        n_positions=100, n_threads=2, domains={},
    )  # fmt: skip


def embedding_score(distance: float) -> EmbeddingScore:
    return EmbeddingScore(
        name="Q2_K", path="", size_bytes=1, bpw=2.6, distance_mean=distance, distance_se=0.001, distance_p99=0.2,
        distance_max=0.3, overlap=0.873, found_original=0.66, found=0.64, n_texts=112, n_nearest=10, load_s=0.1,
        n_threads=2, pp_tok_s=None, rss_bytes=None, rss_model_bytes=None,
    )  # fmt: skip


def test_degraded_begins_where_its_band_does() -> None:
    assert not is_degraded(score(0.1499))
    assert is_degraded(score(0.15))
    assert not is_degraded(embedding_score(0.0399))
    assert is_degraded(embedding_score(0.04))


@pytest.mark.parametrize(("kld", "band"), [(0.2, "degraded"), (0.83, "badly damaged")])
def test_the_cost_names_band_and_figures(kld: float, band: str) -> None:
    words = cost_in_words(score(kld))
    assert words.startswith(f"{band}: mean KLD {kld:.3f} nats")
    assert "in 39 of 100 places" in words
    assert "1.87 times" in words


def test_the_cost_of_vectors_is_told_in_their_measure() -> None:
    assert cost_in_words(embedding_score(0.051)) == (
        "degraded: mean distance 0.051; of the original's 10 passages nearest to a query it misses 13 of 100"
    )


@pytest.mark.parametrize("value", [0.1449, 0.145, 0.04527, 1 - (1 - 0.1449), 123456.7, 1e-9, 3.0, 0.1 + 0.2])
def test_limits_that_are_advised_hold_what_was_measured(value: float) -> None:
    up, down = float(rounded_up(value)), float(rounded_down(value))
    assert down <= value <= up
    assert up - down <= value / 100


def test_few_digits_are_written() -> None:
    assert (rounded_up(0.1449), rounded_up(0.1441), rounded_down(12.26), rounded_up(0.0)) == (
        "0.145", "0.145", "12.2", "0.00",
    )  # fmt: skip
