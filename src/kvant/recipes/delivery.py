"""Write the winner under its name, with a passport and a report that say how it was found."""

import datetime
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from kvant._version import __version__
from kvant.devices.detect import Machine
from kvant.devices.profiles import Profile
from kvant.dtypes import block_type
from kvant.errors import KvantError, OutputExistsError
from kvant.evaluate.baselogits import BaseLogits
from kvant.evaluate.score import VariantScore
from kvant.files import atomic_write, sha256_file
from kvant.model import Model
from kvant.quant.importance import Importance
from kvant.recipes import formats, variants
from kvant.recipes.budget import Budget, Goal, megabytes, why_not
from kvant.recipes.calibration import BUNDLED, SEED, SELF, WINDOWS, Calibration
from kvant.recipes.candidates import Candidate
from kvant.recipes.choose import Variant, explain, least_kld
from kvant.recipes.evaluate import Floor, measured_text
from kvant.recipes.formats import FormatVariant, best, command, deliver_format
from kvant.recipes.lock import LOCK_SUFFIX, LockedOutput, is_written_by_model, make_lock, token_file, write_lock
from kvant.recipes.pareto import front
from kvant.recipes.parity import Parity, Truth
from kvant.recipes.quantize import remarks_on
from kvant.recipes.report import (
    CurvePoint,
    FormatPick,
    MeasuredVariant,
    ModelFacts,
    Report,
    Skipped,
    TextFacts,
    write_report,
)
from kvant.recipes.sample import Samples
from kvant.recipes.selftext import write_tokens
from kvant.recipes.strip import TensorType
from kvant.recipes.words import cost_in_words, is_degraded
from kvant.tensors import n_rows, row_length


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of `optimize`.

    Attributes:
        source: Hugging Face directory or GGUF of the full-precision model.
        budget: Limits to keep.
        out: Directory to write to, made if absent; by default one named after the model in the working directory.
        formats: Formats to search: GGUF, and what else is wanted within the same limits; see `formats`.
        presets: Presets to consider; every sensible one if empty.
        imatrix: Importance file that variants are encoded with.
        calibrate: Text to measure the model on, `bundled`, `self` for what it writes itself, or a file; adds
            candidates that are encoded under Hessians.
        calibrate_windows: Most windows of 512 tokens of it.
        calibrate_seed: Of the labels drawn from the model's own predictions.
        refinements: Most mixes to measure for the size asked beyond the predicted best, each after the predictions were
            corrected by what was measured.
        context: Tokens of context that memory is predicted for.
        corpus: Bundled text to measure on.
        text: A file to measure on instead.
        chunks: Windows of 512 tokens to measure on; 0 for all the text holds.
        measure_all: Measure every variant that keeps the budget, not only those that may win.
        jobs: Variants made and measured at a time; more than one disturbs the speeds measured.
        threads: Threads in all; 0 for one per core.
        overwrite: Replace an output of the same name.
        accepted_licences: Licences that the person at the keyboard accepts, beside those the policy allows.
    """

    source: Path
    budget: Budget = Budget()
    out: Path | None = None
    formats: tuple[str, ...] = ("gguf",)
    presets: tuple[str, ...] = ()
    imatrix: Path | None = None
    calibrate: str | None = None
    calibrate_windows: int = WINDOWS
    calibrate_seed: int = SEED
    refinements: int = 4
    context: int = 4096
    corpus: str = "default"
    text: Path | None = None
    chunks: int = 16
    measure_all: bool = False
    jobs: int = 1
    threads: int = 0
    overwrite: bool = False
    accepted_licences: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the search found."""

    model: Model
    importance: Importance | None
    calibration: Calibration | None
    base: BaseLogits
    floors: Sequence[Floor]
    machine: Machine
    device: Profile
    goal: Goal
    candidates: Sequence[Candidate]
    fitting: Sequence[Candidate]
    measured: Sequence[Variant]
    keeping: Sequence[Variant]
    taken: Variant
    threads: int
    curve: Sequence[tuple[int, float]] = ()
    samples: Samples | None = None
    others: formats.Bench
    format_variants: Sequence[FormatVariant] = ()
    left_out: Sequence[str] = ()


class Passport(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of a file, and what it was made from.

    Attributes:
        file: Its name.
        sha256: Hash of its bytes.
        base_sha256: Identity of the full-precision model.
        preset: Preset of its plan.
        plan_sha256: Hash of the plan.
        imatrix_sha256: Hash of the importance it was encoded with; None without.
        text: Label of the text measured on.
        text_sha256: Its hash.
        score: What was measured.
        tokenizer: How it reads and prompts, against the model's own tokenizer.
        machine: Processor it was measured on.
        versions: Of everything that took part.
    """

    file: str
    sha256: str
    base_sha256: str
    preset: str
    plan_sha256: str
    imatrix_sha256: str | None
    text: str
    text_sha256: str
    score: VariantScore
    tokenizer: Parity | None = None
    machine: str
    versions: dict[str, str]


def deliver(outcome: Outcome, request: Request, file: Path) -> Report:
    """Write the file, its lock, its passport and the report, in this order; each appears whole or not at all.

    Where the model wrote its calibration text, its tokens come before the lock. The best of every other format comes
    before the report.

    Raises:
        OutputExistsError: A file of that name with other content exists, and overwriting was not asked for.
    """
    name = model_name(outcome.model)
    directory = request.out or Path(f"{name}-kvant")
    make_directory(directory)
    out = directory / f"{name}-{outcome.taken.candidate.preset}.gguf"
    digest = sha256_file(file)
    if out.exists() and not request.overwrite and sha256_file(out) != digest:
        raise OutputExistsError(
            f"{out}: exists with other content. Choose another directory with -o or pass --overwrite."
        )
    variants.deliver(file, out)
    lock = make_lock(
        outcome.model, outcome.taken.candidate.plan, outcome.calibration, outcome.importance,
        LockedOutput(file=out.name, size_bytes=file.stat().st_size, sha256=digest),
        is_fitted=outcome.taken.candidate.is_fitted,
    )  # fmt: skip
    if lock.calibration and outcome.calibration and is_written_by_model(outcome.calibration):
        write_tokens(out.with_name(token_file(out.name)), outcome.calibration.text, outcome.calibration.windows)
    write_lock(out.with_suffix(LOCK_SUFFIX), lock)
    others = [(found, directory / f"{name}-{found.format}-{found.type}") for found in best_of_formats(outcome)]
    for variant, place in others:
        deliver_format(variant, outcome.others, place, overwrite=request.overwrite)
    report = make_report(outcome, request, out, digest, others)
    report = msgspec.structs.replace(report, tokenizers=read_alike(outcome, request, [out, *(p for _, p in others)]))
    with atomic_write(out.with_suffix(".passport.json")) as passport:
        passport.write(msgspec.json.format(msgspec.json.encode(make_passport(outcome, report)), indent=2) + b"\n")
    write_report(report, directory)
    return report


def read_alike(outcome: Outcome, request: Request, files: Sequence[Path]) -> tuple[Parity, ...]:
    """Compare how the engine of every file reads and prompts with the source's own tokenizer."""
    truth = Truth(outcome.model.path, measured_text(request.text, request.corpus))
    return tuple(msgspec.structs.replace(truth.try_compare(file), path=file.name) for file in files)


def model_name(model: Model) -> str:
    """A file name for a model, from the name of its own file or directory: letters, digits, `.`, `_` and `-`."""
    path = model.path.resolve()
    stem = path.name if path.is_dir() else path.stem
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", stem)
    stem = re.sub(r"[-._](f32|f16|bf16)$", "", stem, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.")[:80] or "model"


def make_directory(directory: Path) -> None:
    """Make the output directory.

    Raises:
        KvantError: It cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KvantError(f"{directory}: {error.strerror}. Choose another directory with -o.") from error


def make_passport(outcome: Outcome, report: Report) -> Passport:
    """Say what was delivered."""
    return Passport(
        file=report.file,
        sha256=report.sha256,
        base_sha256=outcome.base.header.base,
        preset=report.pick,
        plan_sha256=outcome.taken.candidate.plan.sha256,
        imatrix_sha256=outcome.importance.sha256 if outcome.importance else None,
        text=report.text.name,
        text_sha256=report.text.sha256,
        score=outcome.taken.score,
        tokenizer=report.tokenizers[0],
        machine=outcome.machine.cpu,
        versions=report.versions,
    )


def best_of_formats(outcome: Outcome) -> list[FormatVariant]:
    """Return the variant to take of every other format that has one."""
    names = dict.fromkeys(variant.format for variant in outcome.format_variants)
    taken = (best([v for v in outcome.format_variants if v.format == name], outcome.others) for name in names)
    return [variant for variant in taken if variant is not None]


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


def other_commands(request: Request, outcome: Outcome, others: Sequence[tuple[FormatVariant, Path]]) -> list[str]:
    """Write the commands that make the best of other formats, and measure them side by side."""
    if not others:
        return []
    made = [command(variant, outcome.others, request.source, place) for variant, place in others]
    check = ["kvant", "evaluate", *(place.name for _, place in others), "--against", str(request.source)]
    return [shlex.join(words) for words in (*made, check)]


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


def limits_in_words(budget: Budget, context: int) -> str:
    """Write the limits as a person would; empty if there are none."""
    words = []
    if budget.max_size_bytes:
        words.append(f"at most {megabytes(budget.max_size_bytes)}")
    if budget.max_ram_bytes:
        words.append(f"at most {megabytes(budget.max_ram_bytes)} of memory at {context} tokens of context")
    if budget.min_speed_tok_s:
        words.append(f"at least {budget.min_speed_tok_s:g} tokens/s")
    if budget.device:
        words.append(f"the device {budget.device}")
    return " and ".join(words)


def own_text(request: Request) -> list[str]:
    """Name the calibration text where it is no bundled one."""
    return ["--text", request.calibrate] if request.calibrate not in (None, BUNDLED, SELF) else []


def commands(request: Request, outcome: Outcome, out: Path) -> tuple[str, ...]:
    """Write the commands that repeat the search, the file and the measurement."""
    budget, preset = request.budget, outcome.taken.candidate.preset
    limits = {
        "--max-size": budget.max_size_bytes, "--max-ram": budget.max_ram_bytes, "--min-speed": budget.min_speed_tok_s,
        "--max-kld": budget.max_kld, "--device": budget.device,
    }  # fmt: skip
    text = ["--text", str(request.text)] if request.text else ["--corpus", request.corpus]
    imatrix = ["--imatrix", str(request.imatrix)] if request.imatrix else []
    search = ["kvant", "optimize", str(request.source)]
    search += [word for name, value in limits.items() if value for word in (name, f"{value}")]
    search += ["--context", str(request.context), *text, "--chunks", str(request.chunks), *imatrix]
    search += ["--formats", ",".join(request.formats)] if len(request.formats) > 1 else []
    search += ["--candidates", ",".join(request.presets)] if request.presets else []
    search += ["--all"] if request.measure_all else []
    search += ["--calibrate", request.calibrate] if request.calibrate else []
    make = ["kvant", "quantize", str(request.source), "-t", preset, "-o", out.name, *imatrix]
    if outcome.calibration:
        lock = out.with_suffix(LOCK_SUFFIX).name
        make = ["kvant", "rebuild", lock, "--source", str(request.source), *own_text(request)]
    check = ["kvant", "evaluate", out.name, "--against", str(request.source), *text, "--chunks", str(request.chunks)]
    return tuple(shlex.join(words) for words in (search, make, check))
