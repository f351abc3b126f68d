"""How far the scores of a reranker's variant are from its original's, and whether it ranks as that does.

Every query meets the passage that it was taken from and some others of the text. Scores are in the model's own unit
(Qwen3-Reranker: a probability; BGE: a logit), so their spread is told beside their differences.
"""

import itertools

import msgspec
import numpy as np

from kvant.evaluate.embeddings import Pairs

MAX_QUERIES = 24
DOCUMENTS = 5
"""Passages that a query meets, its own first."""


class RankScore(msgspec.Struct, frozen=True, kw_only=True):
    """Scores of a variant against its original's.

    Attributes:
        difference_mean: Mean absolute difference of a score.
        difference_p99: Its 99 % quantile.
        difference_max: Its largest.
        spread: Standard deviation of the original's scores: what a difference is to be seen against.
        order: Share of pairs of passages for one query that the variant orders as the original does.
        first: Share of queries whose best passage is the original's.
        found_original: Share of queries whose own passage is the best by the original's scores.
        found: The same by the variant's.
        n_queries: Queries.
        n_documents: Passages for each.
    """

    difference_mean: float
    difference_p99: float
    difference_max: float
    spread: float
    order: float
    first: float
    found_original: float
    found: float
    n_queries: int
    n_documents: int


def questions(pairs: Pairs) -> list[tuple[str, tuple[str, ...]]]:
    """Return queries from all over the pairs, each with its own passage and those that follow it in the text."""
    n = len(pairs.queries)
    step = max(1, -(-n // MAX_QUERIES))
    return [
        (pairs.queries[i], tuple(pairs.passages[(i + k) % n] for k in range(min(DOCUMENTS, n))))
        for i in range(0, n, step)
    ]


def compare_scores(original: np.ndarray, variant: np.ndarray) -> RankScore:
    """Compare scores, float [queries, documents], of which the first of a row is that of the query's own passage."""
    one, other = np.asarray(original, np.float64), np.asarray(variant, np.float64)
    difference = np.abs(one - other)
    couples = list(itertools.combinations(range(one.shape[1]), 2))
    alike = [np.sign(one[:, a] - one[:, b]) == np.sign(other[:, a] - other[:, b]) for a, b in couples]
    return RankScore(
        difference_mean=float(difference.mean()),
        difference_p99=float(np.quantile(difference, 0.99)),
        difference_max=float(difference.max()),
        spread=float(one.std()),
        order=float(np.mean(alike)),
        first=float(np.mean(one.argmax(1) == other.argmax(1))),
        found_original=float(np.mean(one.argmax(1) == 0)),
        found=float(np.mean(other.argmax(1) == 0)),
        n_queries=one.shape[0],
        n_documents=one.shape[1],
    )
