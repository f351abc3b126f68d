"""What a damaged variant costs, in words, and limits that can be followed as they are written.

A mean KL divergence alone means little to most readers. A limit that is advised must hold what was measured: rounded to
the nearest, every second one would be refused again.
"""

import itertools
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from kvant.evaluate.score import VariantScore
from kvant.recipes.measure.distortion import BANDS, quality_band
from kvant.recipes.measure.parity import Parity

DEGRADED_FROM = next(lower for (lower, _), (_, words) in itertools.pairwise(BANDS) if words == "degraded")
"""Mean KLD from which a variant counts as degraded."""


def is_degraded(kld: float) -> bool:
    """Whether a mean KLD lies in the band `degraded` or worse."""
    return kld >= DEGRADED_FROM


def tokenizer_warnings(name: str, read: Parity) -> list[str]:
    """Say what a variant reads or prompts otherwise than the original; nothing where all is the same."""
    if read.not_compared:
        return [f"warning: the tokens of {name} were not compared: {read.not_compared}"]
    if read.is_same:
        return []
    said = [
        f"warning: {name} reads {read.n_texts - read.n_same_texts} of {read.n_texts} texts and "
        f"{read.n_prompts - read.n_same_prompts} of {read.n_prompts} chat prompts otherwise than the original "
        f"({read.truth}); its scores are those of the original's tokens, which it would not see."
    ]
    return said + [f"  {d.what} of {d.of}: {d.ours}, the original {d.theirs}" for d in read.differences]


def cost_in_words(score: VariantScore) -> str:
    """Say what a variant lost: its band, mean KLD, agreement on the first choice, and perplexity."""
    others = 100 * (1 - score.top1)
    return (
        f"{quality_band(score.kld_mean)}: mean KLD {score.kld_mean:.3f} nats per token; its first choice of a token "
        f"differs from the original's in {others:.0f} of 100 places; perplexity is {score.ppl_ratio:.2f} times as high"
    )


def rounded_up(value: float, digits: int = 3) -> str:
    """Write a number with few significant digits that is not below it: what to advise as an upper limit."""
    return _rounded(value, digits, ROUND_CEILING)


def rounded_down(value: float, digits: int = 3) -> str:
    """Write a number with few significant digits that is not above it: what to advise as a lower limit."""
    return _rounded(value, digits, ROUND_FLOOR)


def _rounded(value: float, digits: int, rounding: str) -> str:
    exact = Decimal(value)
    return f"{exact.quantize(Decimal(1).scaleb(exact.adjusted() - digits + 1), rounding=rounding):f}"
