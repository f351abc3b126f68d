"""What a damaged variant costs, in words, and limits that can be followed as they are written.

A mean KL divergence alone means little to most readers. A limit that is advised must hold what was measured: rounded to
the nearest, every second one would be refused again.
"""

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from kvant.evaluate.loss import KLD, Measure
from kvant.evaluate.scores import Score
from kvant.recipes.measure.parity import Parity


def is_degraded(score: Score) -> bool:
    """Whether a mean loss lies in the band `degraded` or worse."""
    return score.loss >= score.measure.degraded_from


def tokenizer_warnings(name: str, read: Parity, measure: Measure = KLD) -> list[str]:
    """Say what a variant reads or prompts otherwise than the original; nothing where all is the same."""
    if read.not_compared:
        return [f"warning: the tokens of {name} were not compared: {read.not_compared}"]
    if read.is_same:
        return []
    said = [
        f"warning: {name} reads {read.differing} otherwise than the original ({read.truth}); its scores are those of "
        f"{measure.tokens}."
    ]
    return said + [f"  {d.what} of {d.of}: {d.ours}, the original {d.theirs}" for d in read.differences]


def cost_in_words(score: Score) -> str:
    """Say what a variant lost: its band, mean loss, and what that does to a choice of tokens or passages."""
    measure = score.measure
    unit = f" {measure.unit}" if measure.unit else ""
    return f"{measure.band(score.loss)}: mean {measure.noun} {score.loss:.3f}{unit}; {score.effect}"


def rounded_up(value: float, digits: int = 3) -> str:
    """Write a number with few significant digits that is not below it: what to advise as an upper limit."""
    return _rounded(value, digits, ROUND_CEILING)


def rounded_down(value: float, digits: int = 3) -> str:
    """Write a number with few significant digits that is not above it: what to advise as a lower limit."""
    return _rounded(value, digits, ROUND_FLOOR)


def _rounded(value: float, digits: int, rounding: str) -> str:
    exact = Decimal(value)
    return f"{exact.quantize(Decimal(1).scaleb(exact.adjusted() - digits + 1), rounding=rounding):f}"
