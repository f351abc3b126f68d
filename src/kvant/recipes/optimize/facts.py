"""What the report says."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from kvant._version import __version__
from kvant.devices.active import active_weights
from kvant.evaluate.scores import Score
from kvant.recipes.companion import Beside
from kvant.recipes.measure.words import cost_in_words, is_degraded
from kvant.recipes.optimize.budget import why_not
from kvant.recipes.optimize.choose import explain, least_loss
from kvant.recipes.optimize.outcome import Outcome
from kvant.recipes.optimize.repeat import commands, limits_in_words
from kvant.recipes.optimize.request import Request
from kvant.recipes.optimize.search import Search
from kvant.recipes.optimize.variant import Variant
from kvant.recipes.report.pareto import front
from kvant.recipes.report.report import (
    CurvePoint,
    FormatPick,
    MeasuredVariant,
    ModelFacts,
    Report,
    Skipped,
)
from kvant.recipes.report.strip import TensorType
from kvant.recipes.targets.candidate import Candidate
from kvant.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """What was written of one format.

    Attributes:
        search: How it was found.
        path: Where it is.
        sha256: Its hash; of a directory, of the list of its files' hashes.
    """

    search: Search
    path: Path
    sha256: str


def make_report(
    outcome: Outcome, request: Request, delivered: Sequence[Delivered], projector: Beside | None = None
) -> Report:
    """Put everything together that the report says; what was delivered in the order of the formats asked for."""
    first, material, yardstick = outcome.first, outcome.material, outcome.yardstick
    chosen, original, out = first.taken.candidate, yardstick.original, delivered[0].path
    asked = limits_in_words(request.budget, request.context)
    return Report(
        created=datetime.datetime.now(datetime.UTC).date().isoformat(),
        asked=asked,
        format=first.target.name,
        pick=chosen.preset,
        reason=explain(first.taken, first.keeping, outcome.goal, len(first.fitting), asked),
        file=out.name,
        path=str(out),
        sha256=delivered[0].sha256,
        context=request.context,
        threads=yardstick.threads,
        model=model_facts(outcome, request),
        measure=yardstick.measure.name,
        text=original.text,
        budget=request.budget,
        goal=outcome.goal,
        device=material.device,
        machine=material.machine,
        versions={"kvant": __version__, "numpy": np.__version__, "engine": original.engine},
        variants=measured_variants(outcome),
        formats=tuple(format_pick(one, outcome) for one in delivered) if len(request.formats) > 1 else (),
        left_out=tuple(outcome.left_out),
        remarks=remarks(outcome, request),
        skipped=tuple(one for search in outcome.searches for one in skipped(search, outcome)),
        floors=tuple(yardstick.floors),
        tensors=tensor_types(first),
        fallbacks=fallbacks_in_words(chosen),
        commands=commands(request, outcome, [one.path for one in delivered]),
        curve=tuple(CurvePoint(size_bytes=size, kld=kld) for size, kld in first.curve),
        samples=outcome.samples,
        projector=projector,
    )


def remarks(outcome: Outcome, request: Request) -> tuple[str, ...]:
    """Say what was left out of the model, what calibration rests on, and what an importance file did not do."""
    said = [line for search in outcome.searches for line in search.workshop.remarks(search.taken.candidate)]
    if outcome.material.calibration is not None:
        said += outcome.material.calibration.in_words()
    said += outcome.yardstick.clock.in_words()
    if request.imatrix is not None:
        made = {search.target.name: [c.is_fitted for c in search.candidates] for search in outcome.searches}
        said += importance_in_words(request.imatrix.name, made, is_calibrated=outcome.material.calibration is not None)
    return tuple(dict.fromkeys(said))


def importance_in_words(file: str, made: Mapping[str, Sequence[bool]], *, is_calibrated: bool) -> list[str]:
    """Say which variants an importance file was used for, where that is not all there is.

    Args:
        file: Its name.
        made: Of every format, whether each candidate is encoded under Hessians.
        is_calibrated: Whether there are Hessians.
    """
    others = list(made)[1:]
    if not is_calibrated:
        verb = "is" if len(others) == 1 else "are"
        return [f"{file}: {' and '.join(others)} {verb} encoded with it."] if others else []
    weighed = " and ".join(name for name, fitted in made.items() if not all(fitted))
    alone = f"is used for presets of {weighed} alone" if weighed else "is not used"
    return [f"{file}: {alone}; all else is encoded under what --calibrate measured, which says more."]


def model_facts(outcome: Outcome, request: Request) -> ModelFacts:
    """Describe the model; its size is that of its tensors as they are."""
    model = outcome.material.model
    return ModelFacts(
        name=model.name[:200],
        path=str(request.source),
        architecture=model.architecture[:80],
        weights=model.n_weights,
        active_weights=active_weights(model),
        size_bytes=sum(file.stat().st_size for file in model.files if file.suffix in (".gguf", ".safetensors")),
    )


def measured_variants(outcome: Outcome) -> tuple[MeasuredVariant, ...]:
    """List what was measured in every format, by size; the front is one."""
    found = [measured_variant(v, search) for search in outcome.searches for v in search.measured]
    line = front(found, cost=lambda v: v.size_bytes, loss=lambda v: v.score.loss)
    return tuple(
        msgspec.structs.replace(v, on_front=v in line) for v in sorted(found, key=lambda v: v.size_bytes)
    )  # fmt: skip


def measured_variant(variant: Variant, search: Search) -> MeasuredVariant:
    """Describe a variant for the report."""
    made = variant.candidate
    return MeasuredVariant(
        preset=made.name, format=search.target.name, format_title=search.target.title, aliases=made.aliases,
        size_bytes=made.size_bytes, bpw=made.bpw,
        ram=made.ram, memory_bytes=variant.memory_bytes,
        predicted_tok_s=made.speed_tok_s if variant.score.measure.writes else None, distortion=made.distortion,
        is_pick=variant is search.taken, score=variant.score,
        cost=cost_in_words(variant.score) if is_degraded(variant.score) else "",
    )  # fmt: skip


def format_pick(one: Delivered, outcome: Outcome) -> FormatPick:
    """Say what was taken in a format, and whether it is the goal's best of all."""
    taken = one.search.taken
    score = taken.score
    return FormatPick(
        format=one.search.target.name, type=taken.candidate.preset, file=one.path.name, path=str(one.path),
        size_bytes=taken.candidate.size_bytes, **told_of(score), tg_tok_s=getattr(score, "tg_tok_s", None),
        memory_bytes=taken.memory_bytes, is_best=taken is outcome.best,
    )  # fmt: skip


def told_of(score: Score) -> dict[str, float]:
    """Return the figures of a score that are told of a format's pick, by their own names."""
    names = (f"{score.measure.name}_mean", f"{score.measure.name}_se", "top1")
    return {name: getattr(score, name) for name in names if hasattr(score, name)}


def skipped(search: Search, outcome: Outcome) -> tuple[Skipped, ...]:
    """List what was not measured in a format, and why."""
    done = {v.candidate.preset for v in search.measured}
    budget, device, margin = outcome.material.budget, outcome.material.device, search.target.speed_margin
    return tuple(
        Skipped(
            preset=c.name, size_bytes=c.size_bytes, bpw=c.bpw,
            reason=why_not(c, budget, device, margin=margin) or why_beaten(c, search),
        )
        for c in search.candidates
        if c.preset not in done
    )  # fmt: skip


def why_beaten(candidate: Candidate, search: Search) -> str:
    """Say why a candidate that keeps the budget could not win any more."""
    taken, goal = search.taken, search.contest.goal
    if goal.kind == "size" and taken.loss <= goal.bound and candidate.size_bytes >= taken.candidate.size_bytes:
        return f"larger than {taken.candidate.name}, which is close enough"
    least = least_loss(candidate, search.measured, search.contest)
    measure = search.contest.measure
    return f"cannot win: {measure.noun} of at least {measure.high(least)} expected"


def tensor_types(search: Search) -> tuple[TensorType, ...]:
    """List how the weight matrices of a pick are stored, in file order."""
    stored = search.workshop.matrices(search.taken.candidate.plan)
    return tuple(
        TensorType(name=one.name[:120], type=one.type, size_bytes=one.n_bytes, bpw=8 * one.n_bytes / one.n_weights)
        for one in stored
    )


def fallbacks_in_words(candidate: Candidate) -> str:
    """Say what a preset could not give on this model; empty if it gave everything."""
    fallbacks = candidate.plan.fallbacks
    if not fallbacks:
        return ""
    extra = sum(f.extra_bytes for f in fallbacks)
    cost = f"{format_bytes(abs(extra))} {'more' if extra >= 0 else 'less'} than asked"
    return (
        f"Rows of {len(fallbacks)} of {len(candidate.plan.types)} tensors do not divide into the blocks that "
        f"{candidate.preset} asks for; these are stored in another type ({cost})."
    )
