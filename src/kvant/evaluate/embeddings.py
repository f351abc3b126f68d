"""How far the vectors of a variant are from its original's: by angle, and by what they find.

    distance = 1 - cosine of the two vectors of one text
    overlap  = of the original's 10 nearest passages for a query, the share among the variant's 10 nearest

Texts come in pairs, a query and the passage that it was taken from, so that the share of queries whose own passage
comes first says whether the original's vectors mean something at all.
"""

import re
from dataclasses import dataclass

import msgspec
import numpy as np

NEAREST = 10
MAX_PAIRS = 200
QUERY_WORDS, PASSAGE_WORDS = 6, 40
MAX_WORDS = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Queries and the passages they belong to, in one order."""

    queries: tuple[str, ...]
    passages: tuple[str, ...]


class VectorScore(msgspec.Struct, frozen=True, kw_only=True):
    """Vectors of a variant against its original's.

    Attributes:
        distance_mean: Mean cosine distance over all texts.
        distance_se: Its standard error, from pair to pair.
        distance_p99: Its 99 % quantile.
        distance_max: Its largest.
        overlap: Mean share of the original's nearest passages that the variant finds, too.
        found_original: Share of queries whose own passage is the nearest by the original's vectors.
        found: The same by the variant's.
        n_texts: Texts compared.
        n_nearest: Passages that count as nearest.
        pairs: Mean distance of each pair, in their order: what pairs two variants of one base.
    """

    distance_mean: float
    distance_se: float
    distance_p99: float
    distance_max: float
    overlap: float
    found_original: float
    found: float
    n_texts: int
    n_nearest: int
    pairs: tuple[float, ...] = ()


def pairs_of(text: str) -> Pairs:
    """Cut a text into paragraphs and take the first sentence of each as a query for the rest.

    Paragraphs come from all over the text, at most `MAX_PAIRS`.
    """
    found = []
    for paragraph in re.split(r"\n[^\S\n]*\n", text):
        words = paragraph.split()
        end = next((i + 1 for i, word in enumerate(words) if word[-1] in ".!?:;" and i + 1 >= QUERY_WORDS), 0)
        if end and len(words) - end >= PASSAGE_WORDS and end <= PASSAGE_WORDS:
            found.append((" ".join(words[:end]), " ".join(words[end : end + MAX_WORDS])))
    step = max(1, -(-len(found) // MAX_PAIRS))
    kept = found[::step]
    return Pairs(queries=tuple(q for q, _ in kept), passages=tuple(p for _, p in kept))


def compare_vectors(original: np.ndarray, variant: np.ndarray) -> VectorScore:
    """Compare vectors of pairs: the first half of the rows are queries, the second their passages in the same order.

    Args:
        original: Vectors, float [2 n, width].
        variant: The same of the variant.
    """
    one, other = _unit(original), _unit(variant)
    distance = np.maximum(0.0, 1 - np.sum(one * other, axis=1))
    n = len(one) // 2
    nearest = min(NEAREST, n)
    theirs, ours = _order(one, n), _order(other, n)
    shared = [len(set(a[:nearest]) & set(b[:nearest])) / nearest for a, b in zip(theirs, ours, strict=True)]
    own = np.arange(n)
    by_pair = distance.reshape(2, n).mean(axis=0)
    return VectorScore(
        distance_mean=float(distance.mean()),
        distance_se=float(by_pair.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0,
        distance_p99=float(np.quantile(distance, 0.99)),
        distance_max=float(distance.max()),
        overlap=float(np.mean(shared)),
        found_original=float(np.mean(theirs[:, 0] == own)),
        found=float(np.mean(ours[:, 0] == own)),
        n_texts=len(one),
        n_nearest=nearest,
        pairs=tuple(by_pair.tolist()),
    )


def _unit(x: np.ndarray) -> np.ndarray:
    wide = np.asarray(x, np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30))


def _order(unit: np.ndarray, n: int) -> np.ndarray:
    """Passages of each query from the nearest, int [n, n]."""
    return np.argsort(-(unit[:n] @ unit[n:].T), axis=1, kind="stable")
