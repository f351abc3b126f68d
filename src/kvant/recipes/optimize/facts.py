"""What the report says."""

import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from kvant._version import __version__
from kvant.dtypes import block_type
from kvant.model import Model
from kvant.recipes.formats import FormatVariant
from kvant.recipes.goal import Budget
from kvant.recipes.measure.words import cost_in_words, is_degraded
from kvant.recipes.optimize.budget import why_not
from kvant.recipes.optimize.choose import explain, least_kld
from kvant.recipes.optimize.outcome import Outcome
from kvant.recipes.optimize.repeat import commands, limits_in_words, other_commands
from kvant.recipes.optimize.request import Request
from kvant.recipes.report.pareto import front
from kvant.recipes.report.report import (
    CurvePoint,
    FormatPick,
    MeasuredVariant,
    ModelFacts,
    Report,
    Skipped,
    TextFacts,
)
from kvant.recipes.report.strip import TensorType
from kvant.recipes.targets.candidate import Candidate
from kvant.recipes.targets.gguf.write import remarks_on
from kvant.tensors import n_rows, row_length
from kvant.units import megabytes


def make_report(
    outcome: Outcome, request: Request, out: Path, digest: str, others: Sequence[tuple[FormatVariant, Path]]
) -> Report:
    """Put everything together that the report says; `others` are the best of other formats, where they were written."""
    chosen = outcome.taken.candidate
    asked = limits_in_words(request.budget, request.context)
    return Report(
        created=datetime.datetime.now(datetime.UTC).date().isoformat(),
        asked=asked,
        pick=chosen.preset,
        reason=explain(outcome.taken, outcome.keeping, outcome.goal, len(outcome.fitting), asked),
        file=out.name,
        path=str(out),
        sha256=digest,
        context=request.context,
        threads=outcome.threads,
        model=model_facts(outcome, request),
        text=TextFacts(
            name=outcome.base.header.text,
            sha256=outcome.base.header.text_sha256,
            tokens=int(outcome.base.windows.tokens.size),
            context=outcome.base.windows.context,
        ),
        budget=request.budget,
        goal=outcome.goal,
        device=outcome.device,
        machine=outcome.machine,
        versions={"kvant": __version__, "numpy": np.__version__, "engine": outcome.base.header.engine},
        variants=measured_variants(outcome, [variant for variant, _ in others]),
        formats=format_picks(outcome, out, others) if len(request.formats) > 1 else (),
        left_out=tuple(outcome.left_out),
        remarks=_remarks(outcome, request),
        skipped=skipped(outcome, request.budget),
        floors=tuple(outcome.floors),
        tensors=tensor_types(outcome.model, chosen),
        fallbacks=fallbacks_in_words(chosen),
        commands=(*commands(request, outcome, out), *other_commands(request, outcome, others)),
        curve=tuple(CurvePoint(size_bytes=size, kld=kld) for size, kld in outcome.curve),
        samples=outcome.samples,
    )


def _remarks(outcome: Outcome, request: Request) -> tuple[str, ...]:
    """Say what was left out of the model, and what an importance file that was given did not do."""
    chosen = outcome.taken.candidate
    used = None if chosen.is_fitted or request.imatrix is None else outcome.importance
    said = remarks_on(outcome.model, chosen.plan, used)
    made = {variant.format for variant in outcome.format_variants}
    others = [name for name in request.formats if name in made]
    if request.imatrix is None or not others:
        return said
    if outcome.calibration is None:
        return (*said, f"{request.imatrix.name}: {' and '.join(others)} are encoded with it.")
    return (
        *said,
        f"{request.imatrix.name}: is used for GGUF's presets alone; fitted variants and {' and '.join(others)} are "
        f"encoded under what --calibrate measured, which says more.",
    )


def model_facts(outcome: Outcome, request: Request) -> ModelFacts:
    """Describe the model; its size is that of its tensors as they are."""
    model = outcome.model
    return ModelFacts(
        name=model.name[:200],
        path=str(request.source),
        architecture=model.architecture[:80],
        weights=model.n_weights,
        size_bytes=sum(file.stat().st_size for file in model.files if file.suffix in (".gguf", ".safetensors")),
    )


def measured_variants(outcome: Outcome, taken: Sequence[FormatVariant]) -> tuple[MeasuredVariant, ...]:
    """List what was measured in every format, by size; the front is one."""
    found = [*_measured_ggufs(outcome), *_measured_of_formats(outcome, taken)]
    line = front(found, cost=lambda v: v.size_bytes, loss=lambda v: v.score.kld_mean)
    return tuple(
        msgspec.structs.replace(v, on_front=v in line) for v in sorted(found, key=lambda v: v.size_bytes)
    )  # fmt: skip


def _measured_of_formats(outcome: Outcome, taken: Sequence[FormatVariant]) -> Iterator[MeasuredVariant]:
    for variant in outcome.format_variants:
        yield MeasuredVariant(
            preset=variant.name, format=variant.format, size_bytes=variant.score.size_bytes, bpw=variant.score.bpw,
            memory_bytes=variant.memory_bytes, is_pick=variant in taken, score=variant.score,
            cost=cost_in_words(variant.score) if is_degraded(variant.kld) else "",
        )  # fmt: skip


def format_picks(outcome: Outcome, out: Path, others: Sequence[tuple[FormatVariant, Path]]) -> tuple[FormatPick, ...]:
    """Say what was taken in every format, and which of these is the goal's best."""
    gguf, goal = outcome.taken, outcome.goal
    found = [("gguf", gguf.candidate.preset, out, gguf.score, gguf.candidate.ram.total_bytes)]
    found += [(variant.format, variant.type, place, variant.score, variant.memory_bytes) for variant, place in others]
    passing = [one for one in found if one[3].kld_mean <= goal.max_kld] if goal.kind == "size" else []
    first = min(passing, key=lambda one: one[3].size_bytes) if passing else min(found, key=lambda one: one[3].kld_mean)
    return tuple(
        FormatPick(
            format=name, type=kind, file=path.name, path=str(path), size_bytes=score.size_bytes,
            kld_mean=score.kld_mean, kld_se=score.kld_se, top1=score.top1, tg_tok_s=score.tg_tok_s,
            memory_bytes=memory, is_best=name == first[0],
        )
        for name, kind, path, score, memory in found
    )  # fmt: skip


def _measured_ggufs(outcome: Outcome) -> Iterator[MeasuredVariant]:
    yield from (
        MeasuredVariant(
            preset=v.candidate.preset,
            aliases=v.candidate.aliases,
            size_bytes=v.candidate.size_bytes,
            bpw=v.candidate.bpw,
            ram=v.candidate.ram,
            memory_bytes=v.candidate.ram.total_bytes,
            predicted_tok_s=v.candidate.speed_tok_s,
            distortion=v.candidate.distortion,
            is_pick=v is outcome.taken,
            score=v.score,
            cost=cost_in_words(v.score) if is_degraded(v.kld) else "",
        )
        for v in outcome.measured
    )


def skipped(outcome: Outcome, budget: Budget) -> tuple[Skipped, ...]:
    """List what was not measured, and why."""
    done = {v.candidate.preset for v in outcome.measured}
    return tuple(
        Skipped(
            preset=c.preset,
            size_bytes=c.size_bytes,
            bpw=c.bpw,
            reason=why_not(c, budget, outcome.device) or why_beaten(c, outcome),
        )
        for c in outcome.candidates
        if c.preset not in done
    )


def why_beaten(candidate: Candidate, outcome: Outcome) -> str:
    """Say why a candidate that keeps the budget could not win any more."""
    taken, goal = outcome.taken, outcome.goal
    if goal.kind == "size" and taken.kld <= goal.max_kld and candidate.size_bytes >= taken.candidate.size_bytes:
        return f"larger than {taken.candidate.preset}, which is close enough"
    least = least_kld(candidate, outcome.measured)
    return f"cannot win: KLD of at least {least:.3f} expected"


def tensor_types(model: Model, candidate: Candidate) -> tuple[TensorType, ...]:
    """List how the weight matrices of a candidate are stored, in file order."""
    return tuple(
        TensorType(
            name=name[:120], type=kind,
            size_bytes=n_rows(model.tensors[name]) * block_type(kind).row_bytes(row_length(model.tensors[name])),
        )
        for name, kind in candidate.plan.types.items()
        if len(model.tensors[name].shape) > 1
    )  # fmt: skip


def fallbacks_in_words(candidate: Candidate) -> str:
    """Say what a preset could not give on this model; empty if it gave everything."""
    fallbacks = candidate.plan.fallbacks
    if not fallbacks:
        return ""
    extra = sum(f.extra_bytes for f in fallbacks)
    cost = f"{megabytes(abs(extra))} {'more' if extra >= 0 else 'less'} than asked"
    return (
        f"Rows of {len(fallbacks)} of {len(candidate.plan.types)} tensors do not divide into the blocks that "
        f"{candidate.preset} asks for; these are stored in another type ({cost})."
    )
