"""The report of an optimization: one document for machines, one page for people. Both say how to repeat it."""

import base64
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path

import msgspec

from kvant.devices.detect import Machine
from kvant.devices.memory import RamPrediction
from kvant.devices.profiles import Profile
from kvant.evaluate.loss import MEASURES, Measure
from kvant.evaluate.scores import Score
from kvant.files import atomic_write
from kvant.hub.passports import REPORT_FORM
from kvant.recipes.companion import Beside
from kvant.recipes.goal import Budget, Goal
from kvant.recipes.measure.base import Floor
from kvant.recipes.measure.parity import Parity
from kvant.recipes.measure.sample import Samples
from kvant.recipes.report.plot import Frame, Point, layout
from kvant.recipes.report.strip import TensorType, strip
from kvant.units import counted, format_bytes, format_speed

WIDE = Frame(width=860, height=440)
NARROW = Frame(width=380, height=400, left=62, right=14)
SHADES = 5
FORMAT_TONES = 6


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The model at full precision; `size_bytes` as its own variant at full precision would have.

    `active_weights` are those that one token reads; 0 in reports of before they were told.
    """

    name: str
    path: str
    architecture: str
    weights: int
    active_weights: int = 0
    size_bytes: int


class TextFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The text that was measured on, and how: `tokens` in windows of `context`.

    Of a model that makes vectors: `tokens` in the queries and passages of `pairs` pairs, each at most `context` long.
    """

    name: str
    sha256: str
    tokens: int
    context: int
    pairs: int = 0

    @property
    def amount(self) -> str:
        """How much of it was measured on."""
        return f"{counted(self.pairs, 'pair')} of query and passage" if self.pairs else f"{self.tokens:,} tokens"

    @property
    def cut(self) -> str:
        """How it was cut."""
        how = f"in texts of at most {self.context}" if self.pairs else f"in windows of {self.context}"
        return f"{self.tokens:,} tokens {how}"


class MeasuredVariant(msgspec.Struct, frozen=True, kw_only=True):
    """A variant that was made and measured.

    Attributes:
        preset: Its preset; of other formats than GGUF the format and its type.
        format: Name of its format.
        format_title: That with its engine.
        memory_bytes: Predicted at the context asked for; of other formats than GGUF not less than was measured.
        ram: What the prediction consists of; None of other formats, like the two after it.
        on_front: No other variant of any format beats it in both size and loss.
        is_pick: Taken of its format.
        score: What was measured; its `measure` is the report's.
        cost: In words what a degraded one lost; empty of others.
    """

    preset: str
    format: str = "gguf"
    format_title: str = ""
    aliases: tuple[str, ...] = ()
    size_bytes: int
    bpw: float
    memory_bytes: int
    ram: RamPrediction | None = None
    predicted_tok_s: float | None = None
    distortion: float | None = None
    on_front: bool = False
    is_pick: bool
    score: Score
    cost: str = ""


class FormatPick(msgspec.Struct, frozen=True, kw_only=True):
    """What was taken in one format, and where it was written; `is_best` of the goal's best of all formats.

    Figures of the other measure than the report's are None.
    """

    format: str
    type: str
    file: str
    path: str
    size_bytes: int
    kld_mean: float | None = None
    kld_se: float | None = None
    top1: float | None = None
    distance_mean: float | None = None
    distance_se: float | None = None
    tg_tok_s: float | None
    memory_bytes: int
    is_best: bool


class CurvePoint(msgspec.Struct, frozen=True, kw_only=True):
    """The least mean KLD that is predicted at a size, corrected by what was measured."""

    size_bytes: int
    kld: float


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate that was not measured, and why."""

    preset: str
    size_bytes: int
    bpw: float
    reason: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything known about one optimization.

    Attributes:
        report: Form of this document.
        measure: What a loss is measured in: `kld`, or of models that make vectors `distance`.
        asked: The limits in words; empty if none.
        format: Format of the pick.
        pick: Preset taken.
        reason: Why, in one sentence.
        file: Name of the file written, beside the report.
        path: Where it was written.
        sha256: Its hash.
        context: Tokens of context that memory is predicted for.
        variants: Measured variants by rising size.
        formats: What was taken in every format; empty if GGUF alone was searched.
        left_out: Formats that have nothing to offer, and why.
        skipped: The other candidates.
        floors: Losses that are noise.
        tensors: Types of the pick.
        fallbacks: What the pick's preset could not give, in a sentence.
        commands: How to repeat it.
        curve: The best trade-off that any mix of block types is predicted to reach; empty without calibration.
        remarks: What was left out of the model or taken otherwise than it looks.
        tokenizers: How what was written reads and prompts, against the model's own tokenizer; the pick first, then the
            best of other formats.
        samples: What the original and variants say to the same prompt; None of models that write no text.
        projector: What lies beside the pick of a model that sees or hears; it counts within the limits.
    """

    report: int = REPORT_FORM
    created: str
    measure: str = "kld"
    asked: str
    format: str = "gguf"
    pick: str
    reason: str
    file: str
    path: str
    sha256: str
    context: int
    threads: int
    model: ModelFacts
    text: TextFacts
    budget: Budget
    goal: Goal
    device: Profile
    machine: Machine
    versions: dict[str, str]
    variants: tuple[MeasuredVariant, ...]
    skipped: tuple[Skipped, ...]
    floors: tuple[Floor, ...]
    tensors: tuple[TensorType, ...]
    fallbacks: str
    commands: tuple[str, ...]
    formats: tuple[FormatPick, ...] = ()
    remarks: tuple[str, ...] = ()
    tokenizers: tuple[Parity, ...] = ()
    left_out: tuple[str, ...] = ()
    curve: tuple[CurvePoint, ...] = ()
    samples: Samples | None = None
    projector: Beside | None = None

    @property
    def loss_in(self) -> Measure:
        """The measure of a loss."""
        return MEASURES[self.measure]


class Legend(msgspec.Struct, frozen=True, kw_only=True):
    """What the colours of the plot mean: classes of style rules, and their texts."""

    title: str
    entries: tuple[tuple[str, str], ...]


def write_report(report: Report, directory: Path) -> None:
    """Write `report.json` and `report.html`, each whole or not at all."""
    with atomic_write(directory / "report.json") as file:
        file.write(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    with atomic_write(directory / "report.html") as file:
        file.write(render(report).encode())


def render(report: Report) -> str:
    """Return the page: self-contained, without scripts; text that comes from the model is escaped and cut."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters.update(format_bytes=format_bytes, format_speed=format_speed)
    files = resources.files("kvant.recipes.report")
    style = files.joinpath("report.css").read_text(encoding="utf-8") + _tip_rules(len(report.variants))
    page = environment.from_string(files.joinpath("report.html.j2").read_text(encoding="utf-8"))
    points, legend = _points(report)
    loss_limit = report.goal.bound if report.goal.kind == "size" else None
    room = report.budget.max_size_bytes
    if room and report.projector:
        room -= report.projector.size_bytes
    wide, narrow = (
        layout(
            points, frame, size_limit=room, loss_limit=loss_limit,
            curve=[(point.size_bytes, point.kld) for point in report.curve],
        )
        for frame in (WIDE, NARROW)
    )  # fmt: skip
    return page.render(
        report=report,
        measure=report.loss_in,
        wide=wide,
        narrow=narrow,
        legend=legend,
        strip=strip(report.tensors),
        style=Markup(style),  # noqa: S704  our own file, no text of the model in it
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    )


def _tip_rules(count: int) -> str:
    """Style rules that show a point's tooltip while the point is pointed at or has the focus; tooltips lie on top."""
    rules = (f"svg .p{i}:hover ~ .t{i}, svg .p{i}:focus ~ .t{i} {{ visibility: visible; }}" for i in range(count))
    return "\n".join([*rules, ""])


def _points(report: Report) -> tuple[list[Point], Legend]:
    """Points of the plot and what their colours mean: formats if there are several, else speeds, slow to fast."""
    variants, measure = report.variants, report.loss_in
    formats = dict(sorted({v.format: v.format_title or v.format for v in variants}.items()))
    tones, legend = _by_format(formats) if len(formats) > 1 else _by_speed(variants, measure)
    points = [
        Point(
            name=v.preset,
            size=v.size_bytes,
            loss=v.score.loss,
            tone=tones(v),
            is_pick=v.is_pick,
            on_front=v.on_front,
            notes=(
                f"{format_bytes(v.size_bytes)}, {v.bpw:.2f} bpw",
                f"{measure.noun} {measure.number(v.score.loss)} ± {measure.number(v.score.loss_se)}",
                f"{measure.figures[0].title.lower()} {measure.figures[0].text(v.score)}",
                f"{format_speed(v.score.speed_tok_s)} tokens/s",
            ),
        )
        for v in variants
    ]
    return points, legend


def _by_format(formats: Mapping[str, str]) -> tuple[Callable[[MeasuredVariant], str], Legend]:
    """A tone for each format in the order of their names, and its title."""
    tones = {name: f"format-{name} tone{i % FORMAT_TONES}" for i, name in enumerate(formats)}
    entries = tuple((tones[name], title) for name, title in formats.items())
    return lambda v: tones[v.format], Legend(title="Format", entries=entries)


def _by_speed(variants: Sequence[MeasuredVariant], measure: Measure) -> tuple[Callable[[MeasuredVariant], str], Legend]:
    speeds = [v.score.speed_tok_s for v in variants if v.score.speed_tok_s is not None]
    slowest, fastest = min(speeds, default=0.0), max(speeds, default=0.0)
    span = fastest - slowest

    def tone(v: MeasuredVariant) -> str:
        speed = v.score.speed_tok_s
        shade = 0 if speed is None or not span else min(SHADES - 1, int((speed - slowest) / span * SHADES))
        return f"s{shade}"

    edges = [slowest + span * i / SHADES for i in range(SHADES + 1)]
    texts = [f"{format_speed(a)} to {format_speed(b)}" for a, b in itertools.pairwise(edges)] if span else []
    entries = tuple((f"s{i}", text) for i, text in enumerate(texts))
    return tone, Legend(title=f"{measure.done.capitalize()} tokens/s" if texts else "", entries=entries)
