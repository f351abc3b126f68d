"""The search in one format: plan, measure the most promising first, correct the predictions, take the best."""

import functools
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import msgspec

from kvant._version import __version__
from kvant.errors import BudgetError
from kvant.progress import Prefixed
from kvant.recipes import cache
from kvant.recipes.goal import Goal
from kvant.recipes.measure.words import is_degraded, rounded_down, rounded_up
from kvant.recipes.optimize.budget import affordable, why_not
from kvant.recipes.optimize.choose import Contest, next_candidate, pick
from kvant.recipes.optimize.mixes import Mixes
from kvant.recipes.optimize.request import Request
from kvant.recipes.optimize.variant import Variant
from kvant.recipes.optimize.yardstick import Yardstick
from kvant.recipes.targets.base import Material, Target, Workshop
from kvant.recipes.targets.candidate import Candidate
from kvant.recipes.targets.limits import Limits
from kvant.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What was found in one format.

    Attributes:
        target: The format.
        workshop: What makes its variants.
        contest: What they compete by.
        candidates: All that could be made, refined ones included.
        fitting: Those that keep the budget by prediction.
        measured: Those that were made and measured.
        keeping: Those of them that keep the budget.
        taken: The best.
        curve: Bytes and least loss expected of any mix, by rising size; empty without calibration.
    """

    target: Target
    workshop: Workshop
    contest: Contest
    candidates: Sequence[Candidate]
    fitting: Sequence[Candidate]
    measured: Sequence[Variant]
    keeping: Sequence[Variant]
    taken: Variant
    curve: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What a search works with: one format's workshop, what is asked for, and what it is measured against."""

    target: Target
    workshop: Workshop
    contest: Contest
    yardstick: Yardstick

    @property
    def request(self) -> Request:
        """What is asked for."""
        return self.yardstick.request

    @property
    def goal(self) -> Goal:
        """What is best."""
        return self.contest.goal


def search_format(target: Target, material: Material, goal: Goal, yardstick: Yardstick) -> Search:
    """Find the best variant in one format.

    Raises:
        BudgetError: No variant keeps the budget.
        EngineError, UnsupportedModelError, ValueRangeError: The model cannot be had in this format.
    """
    asked = yardstick.request
    workshop = target.open(material)
    contest = Contest(
        goal=goal, measure=yardstick.measure, finer=target.finer, points=target.points,
        weights=material.model.n_weights,
    )  # fmt: skip
    bench = Bench(target=target, workshop=workshop, contest=contest, yardstick=yardstick)
    candidates = workshop.presets([name for name in asked.presets if target.knows(name)])
    options = workshop.options()
    mixes = Mixes(workshop=workshop, options=options) if options else None
    candidates += mixes.ladder() if mixes else []
    # Where predictions of speed rest on measurements of this machine, they are held to from the start.
    scale = 1.0 if target.speed_margin and material.device.is_here else None
    fitting = affordable(
        candidates, material.budget, material.device, margin=target.speed_margin, speed_scale=scale
    )  # fmt: skip
    material.progress.say(
        f"{target.title}: {len(candidates)} different variants, {len(fitting)} keep the budget by prediction."
    )
    measured = measure_until_settled(fitting, bench)
    if mixes:
        mixes = replace(mixes, floor=workshop.engine_floor(yardstick.floors))
        more = refine(mixes, measured, bench)
        found = [v.candidate for v in more]
        candidates, fitting, measured = [*candidates, *found], [*fitting, *found], [*measured, *more]
    keeping = [v for v in measured if not why_left(v, bench)]
    return Search(
        target=target, workshop=workshop, contest=contest, candidates=candidates, fitting=fitting, measured=measured,
        keeping=keeping, taken=take(keeping, measured, bench), curve=mixes.curve(measured) if mixes else (),
    )  # fmt: skip


def measure_until_settled(fitting: Sequence[Candidate], bench: Bench) -> list[Variant]:
    """Encode and measure candidates, the most promising first, until no other can win; all of them if asked."""
    measured: list[Variant] = []
    bench.yardstick.prepare()
    work = functools.partial(make_and_measure, bench=bench)
    with ThreadPoolExecutor(bench.request.jobs) as pool:
        run = map if bench.request.jobs == 1 else pool.map
        while batch := next_batch(fitting, measured, bench):
            if measured and not bench.yardstick.clock.rooms(1):  # one is measured, however long it takes
                bench.yardstick.clock.left_out.append(f"{len(measured)} of {len(fitting)} variants measured")
                break
            measured += run(work, batch)
            forget_losers(measured, bench)
    return measured


def refine(mixes: Mixes, measured: Sequence[Variant], bench: Bench) -> list[Variant]:
    """Correct what mixes were predicted to lose by what was measured, and measure the best by that."""
    asked = bench.request
    if (bench.workshop.limits == Limits() and bench.goal.kind == "quality") or not asked.refinements:
        return []
    work = functools.partial(make_and_measure, bench=bench)
    late_s = lateness(measured) if bench.yardstick.material.device.is_here else 0.0
    runs = bench.yardstick.clock.rooms(asked.refinements)
    if runs < asked.refinements:
        bench.yardstick.clock.left_out.append(f"{runs} of {asked.refinements} mixes refined")
    more = mixes.refine(measured, bench.goal, runs, work, late_s=late_s) if runs else []
    forget_losers([*measured, *more], bench)
    return more


def next_batch(fitting: Sequence[Candidate], measured: Sequence[Variant], bench: Bench) -> list[Candidate]:
    """Return what to measure next, as many at a time as there are jobs; empty when the question is settled."""
    asked, device, budget = bench.request, bench.yardstick.material.device, bench.yardstick.material.budget
    done = {v.candidate.preset for v in measured}
    waiting = [c for c in fitting if c.preset not in done]
    if asked.measure_all:
        return waiting[: asked.jobs]
    scale = speed_scale(measured) if device.is_here else None
    margin = bench.target.speed_margin
    waiting = [c for c in waiting if not why_not(c, budget, device, margin=margin, speed_scale=scale)]
    keeping = [v for v in measured if not why_left(v, bench)]
    batch: list[Candidate] = []
    while len(batch) < asked.jobs:
        following = next_candidate([c for c in waiting if c not in batch], keeping, bench.contest)
        if following is None:
            break
        batch.append(following)
    return batch


def make_and_measure(candidate: Candidate, bench: Bench) -> Variant:
    """Encode a variant and measure it against the full-precision model; both come from the cache if they can."""
    yardstick, workshop = bench.yardstick, bench.workshop
    say = yardstick.material.progress
    progress = Prefixed(say, candidate.name)
    key = cache.digest(
        "score", __version__, workshop.key(candidate), yardstick.original.key, yardstick.machine.cpu, yardstick.threads
    )
    found = cache.read_score(key)
    if found is None:
        start = time.monotonic()
        artifact = workshop.make(candidate, threads=yardstick.threads, progress=progress)
        found = yardstick.original.score(workshop, artifact, progress)
        found = msgspec.structs.replace(found, name=candidate.name, path="")
        if yardstick.measure.writes and is_degraded(found):
            workshop.continuation(candidate, artifact, threads=yardstick.threads)  # now that it is there
        cache.write_score(key, found)
        yardstick.clock.each_s.append(time.monotonic() - start)
    measure = yardstick.measure
    loss = f"mean {measure.noun} {measure.number(found.loss)} ± {measure.number(found.loss_se)}"
    say.say(f"{candidate.name}: {format_bytes(candidate.size_bytes)}, {loss}")
    return Variant(candidate=candidate, score=found, memory_bytes=workshop.memory_bytes(candidate, found))


def forget_losers(measured: Sequence[Variant], bench: Bench) -> None:
    """Remove from the cache the artifacts of variants that lost; their scores stay, and encoding is quick."""
    best = pick(measured, bench.goal)
    for variant in measured:
        if variant is not best:
            bench.workshop.forget(variant.candidate)


def speed_scale(measured: Sequence[Variant]) -> float | None:
    """How fast variants were over how fast they were predicted; None without measurements."""
    pairs = [(v.score.speed_tok_s, v.candidate.speed_tok_s) for v in measured]
    ratios = [real / predicted for real, predicted in pairs if real and predicted]
    return statistics.median(ratios) if ratios else None


def lateness(measured: Sequence[Variant]) -> float:
    """Seconds per token that fitted variants took beyond their prediction, the median; 0 if none was timed."""
    late = [
        1 / v.score.speed_tok_s - 1 / v.candidate.speed_tok_s
        for v in measured
        if v.candidate.is_fitted and v.score.speed_tok_s
    ]
    return statistics.median(late) if late else 0.0


def why_left(variant: Variant, bench: Bench) -> str:
    """Say which limit a measured variant breaks; empty if none.

    What was measured here says nothing about the speed on another device.
    """
    budget, device = bench.request.budget, bench.yardstick.material.device
    speed, least = variant.score.speed_tok_s, budget.min_speed_tok_s
    memory = [limit for limit in (budget.max_ram_bytes, device.usable_bytes if budget.device else None) if limit]
    if memory and variant.memory_bytes > min(memory):
        needed, limit = format_bytes(variant.memory_bytes), format_bytes(min(memory))
        return f"max-ram: {variant.candidate.name} takes {needed}, above {limit}"
    if least and device.is_here and speed is not None and speed < least:
        return f"min-speed: {variant.candidate.name} reaches {rounded_down(speed)} tokens/s, below {least:g}"
    return ""


def take(keeping: Sequence[Variant], measured: Sequence[Variant], bench: Bench) -> Variant:
    """Return the best variant.

    Raises:
        BudgetError: None is good, small or fast enough.
    """
    taken = pick(keeping, bench.goal)
    if taken is not None:
        return taken
    closest = min(measured, key=lambda v: v.loss)
    if not keeping:
        nearest = max(measured, key=lambda v: (-v.memory_bytes, v.score.speed_tok_s or 0.0))
        fastest = max(measured, key=lambda v: v.score.speed_tok_s or 0.0)
        slow = why_left(fastest, bench)
        raise BudgetError(
            f"{slow if slow.startswith('min-speed') else why_left(nearest, bench)}, and nothing does better. "
            f"Allow less speed or more memory, use more threads, or start from a smaller model."
        )
    asked = bench.contest.measure.option.removeprefix("--")
    raise BudgetError(
        f"{asked}: {closest.candidate.name} comes closest with {rounded_up(closest.loss)}, above {bench.goal.bound:g}. "
        "Allow more, lift the other limits, or pass importance with --imatrix."
    )
