"""Which level of compression suits a use, from prediction alone: nothing is encoded and nothing is run.

Sizes are exact and memory is close; quality is only an estimate from the block types. `optimize` measures.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from kvant.devices.active import active_weights
from kvant.devices.detect import Machine, detect
from kvant.devices.memory import RamPrediction
from kvant.devices.profiles import THIS, Profile, device_for
from kvant.dtypes import precision_class
from kvant.errors import BudgetError, ValueRangeError
from kvant.evaluate.loss import Measure
from kvant.formats.open import open_to_estimate
from kvant.model import Model
from kvant.recipes.companion import Companion
from kvant.recipes.goal import Budget
from kvant.recipes.measure.base import measure_of, possible_context
from kvant.recipes.measure.distortion import FITTED_SHARE, expected_loss
from kvant.recipes.optimize.budget import why_not
from kvant.recipes.projectors import companion_of
from kvant.recipes.targets.candidate import Candidate
from kvant.recipes.targets.gguf.presets import make_candidates
from kvant.recipes.targets.gguf.target import GGUF
from kvant.units import asked_bytes, format_bytes, format_speed

# Slower than this is slower than people read.
READING_TOK_S = 5.0


class UseCase(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is to be used for.

    Attributes:
        device: Profile it runs on.
        max_kld: Mean KLD that is good enough; the smallest variant expected to reach it is recommended.
        max_distance: The same of a model that makes vectors of texts: mean cosine distance to the original's.
        why: The reason for that bound.
    """

    device: str
    max_kld: float
    max_distance: float
    why: str


USE_CASES = {
    "mobile": UseCase(
        device="phone-6gb", max_kld=0.06, max_distance=0.015, why="download, memory and battery count most"
    ),
    "desktop": UseCase(
        device="laptop-16gb", max_kld=0.02, max_distance=0.003, why="there is room to stay hardly different"
    ),
    "edge": UseCase(
        device="raspberry-pi-5", max_kld=0.06, max_distance=0.015, why="slow memory makes every byte cost time"
    ),
    "browser": UseCase(device="browser", max_kld=0.1, max_distance=0.03, why="every visitor downloads the file"),
    "server": UseCase(
        device="server-64gb", max_kld=0.01, max_distance=0.0015, why="quality is what users notice, and memory is there"
    ),
    "research": UseCase(
        device="server-64gb", max_kld=0.002, max_distance=0.0005, why="results should be those of the original"
    ),
}


class AdviceRow(msgspec.Struct, frozen=True, kw_only=True):
    """What is predicted of one preset.

    Attributes:
        preset: Its name.
        aliases: Other presets that come to the same on this model.
        size_bytes: Exact size of its file.
        bpw: Bits per weight.
        precision_class: Class of that many bits.
        ram: Memory at the context asked.
        speed_tok_s: Estimate of generation speed on the device; None of a model that generates nothing.
        expected_kld: Estimate of the mean KLD, right within a factor of about three; None of a model that makes
            vectors of texts.
        expected_distance: Estimate of the mean cosine distance of such a model's vectors; None of others.
        expected_fitted_kld: The KLD of a file of this size whose types are chosen and whose blocks are fitted by
            calibration, as `kvant optimize` makes it; None where it does not.
        quality: The preset's in words.
        obstacle: Why it does not fit; empty if it does.
        fallbacks: Tensors that do not get what the preset asks for.
    """

    preset: str
    aliases: tuple[str, ...]
    size_bytes: int
    bpw: float
    precision_class: str
    ram: RamPrediction
    speed_tok_s: float | None
    expected_kld: float | None = None
    expected_distance: float | None = None
    expected_fitted_kld: float | None = None
    quality: str
    obstacle: str
    fallbacks: int

    @property
    def expected_loss(self) -> float:
        """The estimate of its loss, whatever that is measured in."""
        return next(e for e in (self.expected_kld, self.expected_distance) if e is not None)


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """A recommendation and what it rests on; `calibrated` says what `kvant optimize` would reach, in words."""

    model: str
    architecture: str
    weights: int
    active_weights: int
    use_case: str
    device: Profile
    context: int
    pick: str
    level: str
    reason: str
    calibrated: str = ""
    rows: tuple[AdviceRow, ...]
    projector: Companion | None = None
    warnings: tuple[str, ...]


def advise_machine() -> Machine:
    """Look at the machine at hand, with its memory timed."""
    return detect()


def advise(
    source: Model | Path | str, *, use_case: str = "desktop", device: str | None = None, context: int = 4096
) -> Advice:
    """Recommend a level of compression for a use.

    Args:
        source: The full-precision model, or its Hugging Face directory or GGUF.
        use_case: One of `USE_CASES`.
        device: Profile to fit instead of the use's own; `this` for the machine at hand.
        context: Tokens of context.

    Raises:
        ValueRangeError: An unknown use or device.
        BudgetError: No variant fits the device.
    """
    use = USE_CASES.get(use_case)
    if use is None:
        raise ValueRangeError(f"use case: {use_case!r} is not known. Use one of {', '.join(USE_CASES)}.")
    name = device or use.device
    profile = device_for(name, detect(measure=name == THIS))
    model = source if isinstance(source, Model) else open_to_estimate(source)
    measure, context = measure_of(model), possible_context(model, context)
    eyes = companion_of(model.origin or model.path, only_estimate=True)
    candidates = make_candidates(model, profile, context=context, beside=eyes)
    budget = Budget(device=profile.name)
    rows = tuple(_row(c, model, measure, why_not(c, budget, profile, margin=GGUF.speed_margin)) for c in candidates)
    taken = recommend(rows, getattr(use, measure.limit))
    if taken is None:
        raise BudgetError(
            f"{profile.name}: the smallest variant, {rows[0].preset}, {rows[0].obstacle}. "
            "Choose a model with fewer weights, a shorter --context or another device."
        )
    return Advice(
        model=model.name[:200],
        architecture=model.architecture[:80],
        weights=model.n_weights,
        active_weights=active_weights(model),
        use_case=use_case,
        device=profile,
        context=context,
        pick=taken.preset,
        level=taken.precision_class,
        reason=_reason(taken, use, getattr(use, measure.limit), profile),
        calibrated=_calibrated(rows, taken, getattr(use, measure.limit), measure),
        rows=rows,
        projector=eyes,
        warnings=(*model.remarks, *(_seen(eyes) if eyes else ()), *_warnings(rows, taken, candidates, model)),
    )


def recommend(rows: Sequence[AdviceRow], bound: float) -> AdviceRow | None:
    """Return the smallest row that fits and is expected to be good enough; the best that fits if none is."""
    fitting = [row for row in rows if not row.obstacle]
    good = [row for row in fitting if row.expected_loss <= bound]
    if good:
        return min(good, key=lambda row: row.size_bytes)
    return min(fitting, key=lambda row: row.expected_loss, default=None)


def _seen(eyes: Companion) -> tuple[str]:
    return (f"With its projector ({eyes.type}), {eyes.in_words()}: counted in RAM and in what fits, not in size.",)


def _row(candidate: Candidate, model: Model, measure: Measure, obstacle: str) -> AdviceRow:
    loss = expected_loss(measure, candidate.distortion, model.n_weights)
    return AdviceRow(
        preset=candidate.preset,
        aliases=candidate.aliases,
        size_bytes=candidate.size_bytes,
        bpw=candidate.bpw,
        precision_class=precision_class(candidate.bpw).value,
        ram=candidate.ram,
        speed_tok_s=candidate.speed_tok_s if measure.writes else None,
        **{f"expected_{measure.name}": loss},
        expected_fitted_kld=FITTED_SHARE * loss if measure.writes else None,
        quality=measure.band(loss),
        obstacle=obstacle,
        fallbacks=len(candidate.plan.fallbacks),
    )


def _reason(taken: AdviceRow, use: UseCase, bound: float, profile: Profile) -> str:
    needed, usable = format_bytes(taken.ram.total_bytes), format_bytes(profile.usable_bytes)
    memory = f"{needed} of the {usable} that a model may take on: {profile.title}"
    if taken.expected_loss <= bound:
        return f"{taken.preset} is the smallest variant expected to be {taken.quality}; {use.why}. It needs {memory}."
    return (
        f"{taken.preset} is the closest to the original that fits, expected to be {taken.quality}; {use.why}. "
        f"It needs {memory}."
    )


def _calibrated(rows: Sequence[AdviceRow], taken: AdviceRow, bound: float, measure: Measure) -> str:
    """Say what a calibrated file is expected to be: smaller where the preset was good enough, or closer where not."""
    able = [(row, row.expected_fitted_kld) for row in rows if not row.obstacle and row.expected_fitted_kld is not None]
    if not able:
        return ""
    good = [(row, kld) for row, kld in able if kld <= bound]
    row, kld = min(good, key=lambda one: one[0].size_bytes, default=min(able, key=lambda one: one[1]))
    smaller = "" if row.size_bytes >= taken.size_bytes else f" in place of {format_bytes(taken.size_bytes)}"
    return (
        f"Calibrated, a file of {format_bytes(row.size_bytes)}{smaller} is expected to be {measure.band(kld)}: "
        f"kvant optimize MODEL --max-size {asked_bytes(row.size_bytes)}"
    )


def _warnings(rows: Sequence[AdviceRow], taken: AdviceRow, candidates: Sequence[Candidate], model: Model) -> list[str]:
    """Say what surprises people about a model of this size and shape."""
    found = []
    worst = max(candidates, key=lambda c: len(c.plan.fallbacks))
    if worst.plan.fallbacks:
        first = worst.plan.fallbacks[0]
        found.append(
            f"Rows of {first.row_length} weights do not divide into blocks of 256: {len(worst.plan.fallbacks)} of "
            f"{len(model.tensors)} tensors fall back to larger types, and no preset gets below "
            f"{format_bytes(rows[0].size_bytes)} ({rows[0].preset}, {rows[0].bpw:.2f} bits per weight)."
        )
    if taken.speed_tok_s is not None and taken.speed_tok_s < READING_TOK_S:
        found.append(
            f"{taken.preset} is predicted at {format_speed(taken.speed_tok_s)} tokens/s there, slower than people read "
            f"({READING_TOK_S:g}). A model with fewer weights would be more pleasant."
        )
    return found
