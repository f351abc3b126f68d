"""The main job, top to bottom: from a model to the best small file for a budget, measured.

    open the model ─► measure it on calibration text, if asked ─► weigh every block type for every tensor
        ─► time block types in the engine, if a speed is asked for here
        ─► plan every preset and the best mixes, predict size, memory and speed ─► keep what fits the budget
        ─► encode and measure, most promising first, until nothing left can win
        ─► correct the predictions by that, measure the mixes that are best then
        ─► do the same in other formats, if they are wanted ─► take the best ─► write it, with a report that says why

Every step is a call to the part of kvant that does it; read on there. Nothing is encoded that cannot fit, and what was
encoded and measured is kept in the cache, so that an interrupted run takes up where it stopped.
"""

import functools
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import msgspec

from kvant._version import __version__
from kvant.allocate.correct import Options
from kvant.devices.detect import Machine, detect
from kvant.devices.profiles import Profile, device_for
from kvant.errors import BudgetError
from kvant.evaluate.baselogits import BaseLogits
from kvant.evaluate.corpora import CALIBRATION_HASH_KEY, CALIBRATION_NAME_KEY, check_unseen
from kvant.evaluate.score import score
from kvant.formats.imatrix import read_imatrix
from kvant.formats.open import open_model
from kvant.hub.licences import check_model
from kvant.metadata import string
from kvant.model import Model
from kvant.progress import SILENT, Prefixed, Progress
from kvant.quant.curvature import Curvatures
from kvant.quant.importance import Importance
from kvant.quant.matching import check_fits
from kvant.recipes import cache, formats
from kvant.recipes.formats import checked_formats, measure_formats
from kvant.recipes.goal import Budget, Goal, goal_of
from kvant.recipes.measure.base import Floor, measure_floors, measured_text, prepare_base
from kvant.recipes.measure.calibration import Calibration, calibrate
from kvant.recipes.measure.sample import PROMPT, TOKENS, Sample, Samples, continuation, kept_continuation
from kvant.recipes.measure.words import is_degraded, rounded_down, rounded_up
from kvant.recipes.optimize.budget import affordable, why_not
from kvant.recipes.optimize.choose import next_candidate, pick
from kvant.recipes.optimize.delivery import deliver
from kvant.recipes.optimize.mixes import Mixes, engine_floor
from kvant.recipes.optimize.outcome import Outcome
from kvant.recipes.optimize.request import Request
from kvant.recipes.optimize.schema import RECIPE_FILE, write_recipe
from kvant.recipes.optimize.variant import Variant
from kvant.recipes.report.report import Report
from kvant.recipes.targets.candidate import Candidate
from kvant.recipes.targets.gguf import kept
from kvant.recipes.targets.gguf.options import on_device, rounding_options
from kvant.recipes.targets.gguf.pace import Pace, deadline_of, matrix_types, pace_for, paced
from kvant.recipes.targets.gguf.presets import make_candidates
from kvant.recipes.targets.limits import Limits, limits_of

WINDOW_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What every variant is made from and measured against."""

    model: Model
    importance: Importance | None
    curvatures: Curvatures | None
    base: BaseLogits
    base_file: Path
    machine: Machine
    threads: int
    progress: Progress

    def statistics(self, candidate: Candidate) -> "Encoding":
        """Return what a candidate is encoded with: Hessians if it was planned for them, else importance."""
        if candidate.is_fitted:
            return {"importance": None, "curvatures": self.curvatures}
        return {"importance": self.importance, "curvatures": None}


class Encoding(TypedDict):
    """What encoders know beyond the weights."""

    importance: Importance | None
    curvatures: Curvatures | None


def optimize(request: Request | Path | str, *, progress: Progress = SILENT) -> Report:
    """Make the best variant of a model that keeps a budget, and a report that says how it was found.

    Args:
        request: What is asked for, see `Request`; of a path alone, the smallest file that is close to the original.
        progress: Told of every step.

    Returns:
        The report; it is also written beside the file, as `report.html` and `report.json`.

    Raises:
        BudgetError: No variant keeps the budget.
        LicenceError: The model's licence is neither allowed nor accepted.
        OutputExistsError: Another file has the output's name.
        KvantError: The model, the text or the importance cannot be used; see `open_model` and `evaluate`.
    """
    request = request if isinstance(request, Request) else Request(source=Path(request))
    machine = detect()
    device = device_for(request.budget.device, machine)
    goal = goal_of(request.budget)
    model = open_model(request.source)
    wanted = checked_formats(request.formats, model)
    check_model(model, accepted=request.accepted_licences)
    calibration = None
    if request.calibrate:
        calibration = calibrate(
            model, request.calibrate, windows=request.calibrate_windows, seed=request.calibrate_seed,
            threads=request.threads, progress=progress,
        )  # fmt: skip
    importance = importance_of(request, model) or (calibration.importance if calibration else None)

    candidates = make_candidates(model, device, context=request.context, presets=request.presets, importance=importance)
    options = {}
    if calibration:
        options = rounding_options(model, calibration, threads=request.threads, progress=progress)
    pace = find_pace(model, device, machine, candidates, options, request, progress)
    mixes = None
    if calibration:
        mixes = best_mixes(model, device, calibration, options, pace, request)
        candidates += mixes.ladder()
    fitting = affordable(candidates, request.budget, device, speed_scale=1.0 if pace and pace.is_measured else None)
    progress.say(f"{len(candidates)} different variants, {len(fitting)} keep the budget by prediction.")

    bench, floors = set_up(request, model, importance, calibration, machine, progress)
    measured = measure_until_settled(fitting, request, goal, device, bench)
    if mixes:
        mixes = replace(mixes, floor=engine_floor(floors, options))
        more = refine(mixes, measured, request, goal, device, bench)
        found = [v.candidate for v in more]
        candidates, fitting, measured = [*candidates, *found], [*fitting, *found], [*measured, *more]
    keeping = [v for v in measured if keeps_speed(v, request.budget, device)]
    taken = take(keeping, measured, goal, request.budget)

    others = other_formats(request, model, calibration, goal, device, bench)
    found_formats, left_out = measure_formats(wanted, others)
    file = kept.encoded(model, taken.candidate.plan, **bench.statistics(taken.candidate), progress=progress)
    outcome = Outcome(
        model=model, importance=importance, calibration=calibration, base=bench.base, floors=floors, machine=machine,
        device=device, goal=goal, candidates=candidates, fitting=fitting, measured=measured, keeping=keeping,
        taken=taken, threads=bench.threads, curve=mixes.curve(measured) if mixes else (),
        samples=make_samples(taken, file, measured, bench), others=others, format_variants=found_formats,
        left_out=left_out,
    )  # fmt: skip
    report = deliver(outcome, request, file)
    write_recipe(Path(report.path).with_name(RECIPE_FILE), request)
    return report


def importance_of(request: Request, model: Model) -> Importance | None:
    """Read the importance file of a request, if there is one.

    Raises:
        PlanError: It names no tensor of the model.
    """
    if request.imatrix is None:
        return None
    importance = read_imatrix(request.imatrix)
    check_fits(importance, model)
    return importance


def find_pace(
    model: Model, device: Profile, machine: Machine, candidates: list[Candidate], options: Options, request: Request,
    progress: Progress,
) -> Pace | None:  # fmt: skip
    """Find out how long block types take, if a speed is asked for; presets are then predicted by it, too."""
    if not request.budget.min_speed_tok_s:
        return None
    kinds = {option.kind for every in options.values() for option in every}
    kinds |= {kind for candidate in candidates for kind in matrix_types(model, candidate.plan)}
    pace = pace_for(model, device, machine, kinds, threads=threads_each(request, machine), progress=progress)
    candidates[:] = paced(candidates, model, pace)
    return pace


def threads_each(request: Request, machine: Machine) -> int:
    """Threads that each variant is made and measured with."""
    return max(1, (request.threads or machine.cores) // request.jobs)


def best_mixes(
    model: Model, device: Profile, calibration: Calibration, options: Options, pace: Pace | None, request: Request
) -> Mixes:
    """Weigh the block types of every tensor: what the best mix for any limit is found from."""
    return Mixes(
        model=model, profile=device, options=on_device(options, model, device, pace),
        curvatures=calibration.curvatures, context=request.context,
        limits=limits_of(
            request.budget, device, model, request.context, max_seconds=deadline_of(pace, request.budget)
        ), pace=pace,
    )  # fmt: skip


def set_up(
    request: Request, model: Model, importance: Importance | None, calibration: Calibration | None, machine: Machine,
    progress: Progress,
) -> tuple[Bench, list[Floor]]:  # fmt: skip
    """Prepare the measurement: the text, and the full-precision model's logits on it."""
    threads = request.threads or machine.cores
    text = measured_text(request.text, request.corpus)
    if calibration:
        check_unseen(text, model.path, {CALIBRATION_HASH_KEY: string(calibration.text.sha256)})
    for dataset in importance.datasets if importance else ():
        check_unseen(text, request.imatrix or model.path, {CALIBRATION_NAME_KEY: string(dataset)})
    base_file, base = prepare_base(
        model.path, text=text, context=WINDOW_TOKENS, chunks=request.chunks, threads=threads, progress=progress
    )
    floors = measure_floors(base_file, base, threads=threads, progress=progress)
    bench = Bench(
        model=model, importance=importance, curvatures=calibration.curvatures if calibration else None, base=base,
        base_file=base_file, machine=machine,
        threads=threads_each(request, machine), progress=progress,
    )  # fmt: skip
    return bench, floors


def measure_until_settled(
    fitting: Sequence[Candidate], request: Request, goal: Goal, device: Profile, bench: Bench
) -> list[Variant]:
    """Encode and measure candidates, the most promising first, until no other can win; all of them if asked."""
    measured: list[Variant] = []
    work = functools.partial(make_and_measure, bench=bench)
    with ThreadPoolExecutor(request.jobs) as pool:
        run = map if request.jobs == 1 else pool.map
        while batch := next_batch(fitting, measured, request, goal, device, bench.model.n_weights):
            measured += run(work, batch)
            forget_losers(measured, goal, bench)
    return measured


def refine(
    mixes: Mixes, measured: Sequence[Variant], request: Request, goal: Goal, device: Profile, bench: Bench
) -> list[Variant]:
    """Correct what mixes were predicted to lose by what was measured, and measure the best by that."""
    if (mixes.limits == Limits() and goal.kind == "quality") or not request.refinements:
        return []
    work = functools.partial(make_and_measure, bench=bench)
    late_s = lateness(measured) if device.is_here else 0.0
    more = mixes.refine(measured, goal, request.refinements, work, late_s=late_s)
    forget_losers([*measured, *more], goal, bench)
    return more


def next_batch(
    fitting: Sequence[Candidate],
    measured: Sequence[Variant],
    request: Request,
    goal: Goal,
    device: Profile,
    weights: int,
) -> list[Candidate]:
    """Return what to measure next, as many at a time as there are jobs; empty when the question is settled."""
    done = {v.candidate.preset for v in measured}
    waiting = [c for c in fitting if c.preset not in done]
    if request.measure_all:
        return waiting[: request.jobs]
    scale = speed_scale(measured, device)
    waiting = [c for c in waiting if not why_not(c, request.budget, device, speed_scale=scale)]
    keeping = [v for v in measured if keeps_speed(v, request.budget, device)]
    batch: list[Candidate] = []
    while len(batch) < request.jobs:
        following = next_candidate([c for c in waiting if c not in batch], keeping, goal, weights)
        if following is None:
            break
        batch.append(following)
    return batch


def make_and_measure(candidate: Candidate, bench: Bench) -> Variant:
    """Encode a variant and measure it against the full-precision model; both come from the cache if they can."""
    progress = Prefixed(bench.progress, candidate.preset)
    known = bench.statistics(candidate)
    variant = kept.variant_key(bench.model, candidate.plan, **known)
    key = cache.digest("score", __version__, variant, bench.base.key, bench.machine.cpu, bench.threads)
    found = cache.read_score(key)
    if found is None:
        file = kept.encoded(bench.model, candidate.plan, **known, threads=bench.threads, progress=progress)
        found = score(file, bench.base, threads=bench.threads, progress=progress)
        found = msgspec.structs.replace(found, name=candidate.preset, path="")
        if is_degraded(found.kld_mean):
            continuation(file, variant, threads=bench.threads)  # now that the file is there
        cache.write_score(key, found)
    bench.progress.say(
        f"{candidate.preset}: {candidate.size_bytes / 1e6:.1f} MB, mean KLD {found.kld_mean:.4f} ± {found.kld_se:.4f}"
    )
    return Variant(candidate=candidate, score=found)


def other_formats(
    request: Request, model: Model, calibration: Calibration | None, goal: Goal, device: Profile, bench: Bench
) -> formats.Bench:
    """Say what variants of other formats are made from and measured against: the same as GGUF's.

    Where Hessians were measured, their encoders take those: they know more than an importance file.
    """
    budget = request.budget
    memory = [limit for limit in (budget.max_ram_bytes, device.usable_bytes if budget.device else None) if limit]
    return formats.Bench(
        model=model, base=bench.base, calibration=calibration, calibrate=request.calibrate,
        importance=None if calibration else bench.importance, imatrix=request.imatrix, goal=goal,
        max_bytes=limits_of(budget, device, model, request.context).max_file_bytes,
        max_ram_bytes=min(memory, default=None), context=request.context,
        min_tok_s=budget.min_speed_tok_s if device.is_here else None,
        machine=bench.machine, threads=request.threads or bench.machine.cores, progress=bench.progress,
    )  # fmt: skip


def make_samples(taken: Variant, file: Path, measured: Sequence[Variant], bench: Bench) -> Samples:
    """Let the original and the pick continue a prompt; with what degraded variants said when they were measured."""
    keys = {
        v.candidate.preset: kept.variant_key(bench.model, v.candidate.plan, **bench.statistics(v.candidate))
        for v in sorted(measured, key=lambda v: v.candidate.size_bytes, reverse=True)
    }
    pick_name = taken.candidate.preset
    texts = {pick_name: continuation(file, keys[pick_name], threads=bench.threads)}
    others = {name: kept_continuation(key) for name, key in keys.items() if name != pick_name}
    texts |= {name: text for name, text in others.items() if text is not None}
    return Samples(
        prompt=PROMPT,
        tokens=TOKENS,
        original=continuation(bench.base_file, bench.base.header.base, threads=bench.threads),
        variants=tuple(Sample(name=name, text=text) for name, text in texts.items()),
    )


def forget_losers(measured: Sequence[Variant], goal: Goal, bench: Bench) -> None:
    """Remove from the cache the files of variants that lost; their scores stay, and encoding is quick."""
    best = pick(measured, goal)
    for variant in measured:
        if variant is not best:
            kept.forget(bench.model, variant.candidate.plan, **bench.statistics(variant.candidate))


def speed_scale(measured: Sequence[Variant], device: Profile) -> float | None:
    """How fast variants were over how fast they were predicted; None without measurements on the device itself."""
    pairs = [(v.score.tg_tok_s, v.candidate.speed_tok_s) for v in measured]
    ratios = [real / predicted for real, predicted in pairs if real and predicted]
    return statistics.median(ratios) if ratios and device.is_here else None


def lateness(measured: Sequence[Variant]) -> float:
    """Seconds per token that fitted variants took beyond their prediction, the median; 0 if none was timed."""
    late = [
        1 / v.score.tg_tok_s - 1 / v.candidate.speed_tok_s
        for v in measured
        if v.candidate.is_fitted and v.score.tg_tok_s
    ]
    return statistics.median(late) if late else 0.0


def keeps_speed(variant: Variant, budget: Budget, device: Profile) -> bool:
    """Whether a measured variant is fast enough; what was measured here says nothing about another device."""
    speed = variant.score.tg_tok_s
    return not (budget.min_speed_tok_s and device.is_here and speed is not None and speed < budget.min_speed_tok_s)


def take(keeping: Sequence[Variant], measured: Sequence[Variant], goal: Goal, budget: Budget) -> Variant:
    """Return the best variant.

    Raises:
        BudgetError: None is good or fast enough.
    """
    taken = pick(keeping, goal)
    if taken is not None:
        return taken
    closest = min(measured, key=lambda v: v.kld)
    fastest = max(measured, key=lambda v: v.score.tg_tok_s or 0.0)
    if not keeping:
        raise BudgetError(
            f"min-speed: {fastest.candidate.preset} is the fastest with "
            f"{rounded_down(fastest.score.tg_tok_s or 0)} tokens/s, below {budget.min_speed_tok_s:g}. "
            f"Allow less, use more threads, or start from a smaller model."
        )
    raise BudgetError(
        f"max-kld: {closest.candidate.preset} comes closest with {rounded_up(closest.kld)}, above {goal.max_kld:g}. "
        f"Allow more, lift the other limits, or pass importance with --imatrix."
    )
