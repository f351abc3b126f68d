"""What a variant loses is measured in: one table of measures, which tables, reports and passports follow.

A model that writes text loses KL divergence of its next token; one that makes vectors of texts loses the cosine
distance of these. Whatever compares variants asks for their loss, and its measure says what that is called.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

Words = tuple[tuple[float, str], ...]
"""Upper limits of a mean, by rising size, and what is said of one below."""

_WORDS = (
    "as good as the original", "hardly different", "close", "noticeably different", "degraded", "badly damaged",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure that is told beside a loss.

    Attributes:
        field: Of a score and of a passport.
        heading: Over its column in a terminal.
        title: On pages.
        of: What it is a share of, or from whom.
        form: `share`: of 1, told as per cent; `ratio`: to the original's.
    """

    field: str
    heading: str
    title: str
    of: str
    form: Literal["share", "ratio"]

    def cell(self, score: object) -> str:
        """Write its value as a column of the terminal has it."""
        value = float(getattr(score, self.field))
        return f"{100 * value:.1f}" if self.form == "share" else f"{value:.4f}"

    def text(self, score: object) -> str:
        """Write its value with its unit."""
        value = float(getattr(score, self.field))
        return f"{100 * value:.1f} %" if self.form == "share" else f"{100 * (value - 1):+.2f} %"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What a loss is measured in. Fields of scores are called after it: `kld_mean`, `kld_se`, `kld_p99`.

    Attributes:
        name: In documents.
        noun: In sentences and over columns.
        long: Written out.
        unit: Of a mean, with what it is per; empty of a pure number.
        limit: Field of a budget, a goal and a use that bounds the mean.
        default_limit: What `limit` is where nothing is asked for.
        explained: How it is read, in a sentence's beginning.
        digits: Digits behind the point that a mean is written with.
        bands: What is said of a mean.
        figures: What is told beside it.
        speed: Over the column of speeds.
        tokens: Whose tokens a score is of, where a variant's engine reads others than the original's own tokenizer.
        done: To the tokens that speeds are of: `generated`, or `read`.
        writes: Whether variants write text, which is what their speed is of and samples are taken of.
        does: What such models do.
    """

    name: str
    noun: str
    long: str
    unit: str
    limit: str
    default_limit: float
    explained: str
    digits: int
    bands: Words
    figures: tuple[Figure, ...]
    speed: str
    tokens: str
    done: str
    writes: bool
    does: str

    @property
    def option(self) -> str:
        """The option of the command line that bounds it."""
        return "--" + self.limit.replace("_", "-")

    @property
    def degraded_from(self) -> float:
        """Mean from which a variant counts as degraded."""
        return self.bands[_WORDS.index("degraded") - 1][0]

    def band(self, mean: float) -> str:
        """Return words for a mean."""
        return next(words for limit, words in self.bands if mean < limit)

    def number(self, value: float) -> str:
        """Write a mean or its error."""
        return f"{value:.{self.digits}f}"

    def high(self, value: float) -> str:
        """Write a high quantile."""
        return f"{value:.{self.digits - 1}f}"

    def mean_of(self, score: object) -> float | None:
        """Return the mean that a score or a passport has; None of another measure."""
        found: float | None = getattr(score, f"{self.name}_mean", None)
        return found


def _bands(*limits: float) -> Words:
    return tuple(zip((*limits, float("inf")), _WORDS, strict=True))


KLD = Measure(
    name="kld",
    noun="KLD",
    long="KL divergence",
    unit="nats per token",
    explained="KLD in nats per token",
    limit="max_kld",
    # On the models measured here the top choice then agrees with the original's on about 87 % of positions, and
    # perplexity rises by under 5 %.
    default_limit=0.05,
    digits=4,
    bands=_bands(0.002, 0.02, 0.06, 0.15, 0.5),
    figures=(
        Figure(field="top1", heading="top-1 %", title="Same top choice", of="of positions", form="share"),
        Figure(field="ppl_ratio", heading="ppl ratio", title="Perplexity", of="from the original's", form="ratio"),
    ),
    speed="gen tok/s",
    done="generated",
    tokens="the original's tokens, which it would not see",
    writes=True,
    does="write text",
)
DISTANCE = Measure(
    name="distance",
    noun="distance",
    long="cosine distance",
    unit="",
    explained="Distance: 1 minus the cosine of a text's two vectors, 0 where they are the same,",
    limit="max_distance",
    # Of all-MiniLM-L6-v2 93 % of the passages nearest to a query are then the original's; figures in
    # docs/explanation/kl-divergence.md.
    default_limit=0.01,
    digits=5,
    bands=_bands(0.0005, 0.003, 0.015, 0.04, 0.12),
    figures=(
        Figure(field="overlap", heading="top-10 overlap %", title="Same 10 nearest", of="of passages", form="share"),
        Figure(field="found", heading="own first %", title="Own passage first", of="of queries", form="share"),
    ),
    speed="read tok/s",
    done="read",
    tokens="its own tokens, as the original was read in the same engine",
    writes=False,
    does="make vectors of texts",
)

MEASURES = {measure.name: measure for measure in (KLD, DISTANCE)}
"""By name."""


class Lossy:
    """What scores of every measure tell alike."""

    __slots__ = ()

    measure: ClassVar[Measure]

    @property
    def loss(self) -> float:
        """Mean of what it loses."""
        return float(getattr(self, f"{self.measure.name}_mean"))

    @property
    def loss_se(self) -> float:
        """Its standard error."""
        return float(getattr(self, f"{self.measure.name}_se"))

    @property
    def loss_p99(self) -> float:
        """What 99 % of positions or texts stay below."""
        return float(getattr(self, f"{self.measure.name}_p99"))
