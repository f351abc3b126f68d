import numpy as np
import pytest

from kvant.evaluate.embeddings import MAX_PAIRS, compare_vectors, pairs_of

RNG = np.random.default_rng(0)
PARAGRAPH = "The first sentence has some words in it. " + "And then a passage goes on and on about it. " * 8


def test_equal_vectors_are_no_distance_apart() -> None:
    x = RNG.normal(size=(40, 16))
    found = compare_vectors(x, 3 * x)
    assert found.distance_max == pytest.approx(0, abs=1e-12)
    assert (found.overlap, found.found, found.n_texts, found.n_nearest) == (1.0, found.found_original, 40, 10)


def test_the_angle_is_the_distance() -> None:
    one, other = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[1.0, 1.0], [0.0, -1.0]])
    found = compare_vectors(one, other)
    assert found.distance_mean == pytest.approx((1 - np.sqrt(0.5) + 2) / 2)
    assert found.distance_max == pytest.approx(2.0)


def test_what_is_found_follows_from_the_nearest() -> None:
    # Queries 0..19 and their passages are the axes of a space: each finds its own; turned by one, none does.
    axes = np.eye(20)
    found = compare_vectors(np.concatenate([axes, axes]), np.concatenate([axes, np.roll(axes, 1, axis=0)]))
    assert (found.found_original, found.found) == (1.0, 0.0)


def test_overlap_of_unrelated_vectors_is_chance() -> None:
    found = compare_vectors(RNG.normal(size=(400, 32)), RNG.normal(size=(400, 32)))
    assert found.overlap == pytest.approx(10 / 200, abs=0.02)


def test_a_query_is_the_first_sentence_of_its_paragraph() -> None:
    pairs = pairs_of(f"{PARAGRAPH}\n\nToo short.\n\n{PARAGRAPH}")
    assert pairs.queries == ("The first sentence has some words in it.",) * 2
    assert all(passage.startswith("And then a passage") for passage in pairs.passages)


def test_pairs_are_taken_from_all_over_a_long_text() -> None:
    text = "\n\n".join(f"Number {i} of the many paragraphs here. {PARAGRAPH}" for i in range(1000))
    queries = pairs_of(text).queries
    assert len(queries) == MAX_PAIRS
    assert (queries[0], queries[-1]) == (
        "Number 0 of the many paragraphs here.",
        "Number 995 of the many paragraphs here.",
    )
