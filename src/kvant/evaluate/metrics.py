"""How far a variant's distributions are from the base's: pure maths on arrays.

Definitions, over the scored positions of a text (q the variant, p the base, t the token that follows):

    KLD         Σ_v p(v) ln(p(v) / q(v)), in nats: mean, median, high quantiles
    top-1       share of positions where p and q have the same most likely token
    RMS Δp      sqrt(mean((q(t) - p(t))²))
    perplexity  exp(mean(-ln q(t)));  its ratio is that of q over that of p

Quantiles interpolate linearly between ranks. The standard error of the mean comes from a bootstrap over blocks of
neighbouring positions, because neighbours are alike: single positions would claim too small an error.

Source: llama.cpp `tools/perplexity/perplexity.cpp` uses the same definitions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvant.evaluate.compact import CompactRows, log_sum_exp

BLOCK_ROWS = 64
RESAMPLES = 2000
BOOTSTRAP_SEED = 20240229


@dataclass(frozen=True, slots=True, kw_only=True)
class RowScores:
    """What was measured at each position.

    Attributes:
        kld: KL divergence in nats, float64 [rows].
        kld_variance: Variance of `kld` that comes from sampling the base's tail, float64 [rows].
        log_q: ln q(t), float64 [rows].
        log_p: ln p(t), float64 [rows].
        same_top: Base and variant agree on the most likely token, bool [rows].
    """

    kld: np.ndarray
    kld_variance: np.ndarray
    log_q: np.ndarray
    log_p: np.ndarray
    same_top: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Figures of a text; see the module for their definitions.

    Attributes:
        kld_sampling_se: Standard error of `kld_mean` that comes from the compact form of the base alone.
    """

    kld_mean: float
    kld_se: float
    kld_median: float
    kld_p95: float
    kld_p99: float
    kld_p999: float
    kld_sampling_se: float
    top1: float
    rms_dp: float
    ppl: float
    ppl_base: float
    ppl_ratio: float
    n_positions: int


def exact_kld(base: np.ndarray, variant: np.ndarray) -> np.ndarray:
    """KL divergence over the whole vocabulary, float64 [rows]; logits of both [rows, vocabulary]."""
    log_p = base - log_sum_exp(base)[:, None]
    log_q = variant - log_sum_exp(variant)[:, None]
    p, q = np.exp(log_p), np.exp(log_q)
    return np.asarray((p * (log_p - log_q) - p + q).sum(axis=1))


def score_rows(logits: np.ndarray, base: CompactRows) -> RowScores:
    """Compare a variant's logits, float32 [rows, vocabulary], with the base at the same positions."""
    sums = log_sum_exp(logits)
    rows = np.arange(len(logits))
    log_q = np.take_along_axis(logits, base.ids.astype(np.int64), axis=1) - sums[:, None]
    log_ratio = base.log_p - log_q
    p, q = np.exp(base.log_p[:, : base.top].astype(np.float64)), np.exp(log_q[:, : base.top])
    kld = (p * log_ratio[:, : base.top] - p + q).sum(axis=1)
    variance = np.zeros(len(kld))
    if base.ids.shape[1] > base.top:
        tail, variance = _tail(log_ratio[:, base.top :], base.tail_p, 1 - q.sum(axis=1))
        kld += tail
    return RowScores(
        kld=kld, kld_variance=variance,
        log_q=logits[rows, base.labels].astype(np.float64) - sums,
        log_p=base.label_log_p,
        same_top=logits.argmax(axis=1) == base.ids[:, 0],
    )  # fmt: skip


def _tail(log_ratio: np.ndarray, tail_p: np.ndarray, tail_q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Estimate Σ k(p, q) outside the top tokens from samples; see compact.py.

    Args:
        log_ratio: ln(p/q) of the sampled tokens, float64 [rows, samples].
        tail_p: The base's probability outside the top, float64 [rows].
        tail_q: The variant's, float64 [rows].

    Returns:
        The estimates and their variances, float64 [rows] each.
    """
    excess = np.exp(-log_ratio) - 1
    spread = excess.var(axis=1)
    centred = log_ratio - log_ratio.mean(axis=1, keepdims=True)
    covariance = (centred * excess).mean(axis=1)
    share = np.clip(np.divide(-covariance, spread, out=np.ones(len(spread)), where=spread > 0), 0, 1)
    terms = log_ratio + share[:, None] * excess
    estimate = tail_p * terms.mean(axis=1) + (1 - share) * (tail_q - tail_p)
    return np.maximum(estimate, 0), tail_p**2 * terms.var(axis=1) / terms.shape[1]


def join(parts: Sequence[RowScores]) -> RowScores:
    """Put the positions of several windows behind one another."""
    names = RowScores.__slots__
    return RowScores(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def summarize(windows: Sequence[RowScores], strata: Sequence[str] | None = None) -> Summary:
    """Reduce positions to figures.

    Args:
        windows: Scores of each window of text.
        strata: The domain of each window; the bootstrap keeps each domain's share, since the mixture is chosen, not
            drawn.
    """
    rows = join(windows)
    quantiles = np.quantile(rows.kld, [0.5, 0.95, 0.99, 0.999]).tolist()
    ppl, ppl_base = (float(np.exp(-x.mean())) for x in (rows.log_q, rows.log_p))
    return Summary(
        kld_mean=float(rows.kld.mean()),
        kld_se=bootstrap_se([w.kld for w in windows], strata),
        kld_median=quantiles[0], kld_p95=quantiles[1], kld_p99=quantiles[2], kld_p999=quantiles[3],
        kld_sampling_se=float(np.sqrt(rows.kld_variance.sum()) / len(rows.kld)),
        top1=float(rows.same_top.mean()),
        rms_dp=float(np.sqrt(np.mean((np.exp(rows.log_q) - np.exp(rows.log_p)) ** 2))),
        ppl=ppl, ppl_base=ppl_base, ppl_ratio=ppl / ppl_base,
        n_positions=len(rows.kld),
    )  # fmt: skip


def bootstrap_se(windows: Sequence[np.ndarray], strata: Sequence[str] | None = None) -> float:
    """Standard error of the mean over all positions of some windows.

    Each window is cut into blocks of about `BLOCK_ROWS` neighbours; blocks are drawn with replacement within their
    stratum, and the error is the standard deviation of the means of `RESAMPLES` such draws. Seeded: the same input
    gives the same output.

    Args:
        windows: Values of each window, float64 [rows].
        strata: A label per window; one stratum if None.
    """
    names = list(strata) if strata is not None else [""] * len(windows)
    random = np.random.default_rng(BOOTSTRAP_SEED)
    total, count = np.zeros(RESAMPLES), np.zeros(RESAMPLES)
    for stratum in sorted(set(names)):
        blocks = [b for w, s in zip(windows, names, strict=True) if s == stratum for b in _blocks(w)]
        sums, sizes = np.array([b.sum() for b in blocks]), np.array([len(b) for b in blocks])
        drawn = random.integers(0, len(blocks), (RESAMPLES, len(blocks)))
        total += sums[drawn].sum(axis=1)
        count += sizes[drawn].sum(axis=1)
    return float(np.std(total / count, ddof=1))


def _blocks(values: np.ndarray) -> list[np.ndarray]:
    return np.array_split(values, max(1, round(len(values) / BLOCK_ROWS)))
