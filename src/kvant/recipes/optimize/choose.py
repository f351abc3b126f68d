"""Which variant to measure next, when the question is settled, and which one to take.

Measuring is what costs: a variant takes seconds to encode and minutes to score. So the most promising one goes first,
and a candidate is left out once it cannot win any more. Two bounds say so:

- *Finer everywhere.* If a measured variant stores every tensor at least as finely, a candidate's loss is not below its,
  unless the candidate alone is encoded under Hessians.
- *Expected from what was measured.* Within one model the loss follows the distortion of the block types. The lowest
  ratio of the two seen so far, divided by `SLACK`, bounds a candidate from below.

The first holds by construction, the second by experience; `--all` measures everything instead.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvant.evaluate.loss import Measure
from kvant.quant.plan import KEEP, Plan
from kvant.recipes.goal import Goal
from kvant.recipes.measure.distortion import expected_loss
from kvant.recipes.optimize.variant import Variant
from kvant.recipes.report.pareto import front
from kvant.recipes.targets.candidate import Candidate
from kvant.units import format_bytes

# Within one model the ratio of KLD to distortion varies by 1.8 between presets of 3 to 5 bits
# (SmolLM2-135M, nine presets), that of vectors' distance by 1.5 (all-MiniLM-L6-v2, sixteen).
SLACK = 1.5
# Parts of a text that it takes to see how the differences of two variants vary.
MIN_PAIRS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """What the variants of one format compete by.

    Attributes:
        goal: What is best.
        measure: What they lose is measured in.
        finer: Whether a type certainly stores weights at least as finely as another.
        points: Variants that are measured even if fewer settle the question: a trade-off needs some.
        weights: Weights of the model, for a first guess of their loss.
    """

    goal: Goal
    measure: Measure
    finer: Callable[[str, str], bool]
    points: int
    weights: int


def next_candidate(waiting: Sequence[Candidate], measured: Sequence[Variant], contest: Contest) -> Candidate | None:
    """Return the candidate to measure next; None if the question is settled.

    Args:
        waiting: Candidates that keep the limits and were not measured yet.
        measured: Variants measured so far that keep the limits.
        contest: What they compete by.
    """
    kept = next((c for c in waiting if c.plan.preset == KEEP), None)
    if kept is not None:  # what rounds nothing is what the others are to be seen against
        return kept
    goal = contest.goal
    open_ones = [c for c in waiting if can_win(c, measured, contest)]
    if not open_ones:
        return _for_the_picture(waiting, measured, contest)
    if goal.kind == "quality" or not _passing_is_possible(open_ones, measured, contest):
        return min(open_ones, key=lambda c: c.distortion)
    likely = [c for c in open_ones if _guess(c, measured, contest) <= goal.bound]
    if likely:
        return min(likely, key=lambda c: c.size_bytes)
    return min(open_ones, key=lambda c: c.distortion)


def can_win(candidate: Candidate, measured: Sequence[Variant], contest: Contest) -> bool:
    """Whether a candidate may still turn out to be the best."""
    if not measured:
        return True
    goal, least = contest.goal, least_loss(candidate, measured, contest)
    passing = [v for v in measured if v.loss <= goal.bound]
    if goal.kind == "size" and (passing or least <= goal.bound):
        smallest = min((v.candidate.size_bytes for v in passing), default=None)
        return least <= goal.bound and (smallest is None or candidate.size_bytes < smallest)
    return not goal.is_strict and least < min(v.loss for v in measured)


def least_loss(candidate: Candidate, measured: Sequence[Variant], contest: Contest) -> float:
    """Lowest mean loss that a candidate may still turn out to have, by the two bounds."""
    ratios = [v.loss / v.candidate.distortion for v in measured if v.candidate.distortion > 0]
    by_distortion = candidate.distortion * min(ratios, default=0.0) / SLACK
    alike = [v for v in measured if v.candidate.is_fitted or not candidate.is_fitted]
    if candidate.plan.preset == KEEP:  # its types say nothing of what it loses
        return by_distortion
    by_types = (
        v.loss - 2 * v.score.loss_se for v in alike if is_finer(v.candidate.plan, candidate.plan, contest.finer)
    )
    return max([by_distortion, *by_types])


def is_finer(fine: Plan, coarse: Plan, finer: Callable[[str, str], bool]) -> bool:
    """Whether a plan stores every tensor at least as finely as another."""
    types = coarse.types
    return fine.types.keys() == types.keys() and all(finer(kind, types[name]) for name, kind in fine.types.items())


def pick(measured: Sequence[Variant], goal: Goal) -> Variant | None:
    """Return the variant to take: the goal's best, the smaller one of two that the measurement cannot tell apart.

    None if the goal is strict and no variant reaches it.
    """
    passing = [v for v in measured if v.loss <= goal.bound]
    if goal.kind == "size" and passing:
        return min(passing, key=lambda v: (v.candidate.size_bytes, v.loss))
    if goal.is_strict or not measured:
        return None
    best = min(measured, key=lambda v: v.loss)
    equal = [v for v in measured if v.loss - best.loss <= 2 * difference_se(v, best)]
    return min(equal, key=lambda v: (v.candidate.size_bytes, v.loss))


def difference_se(a: Variant, b: Variant) -> float:
    """Standard error of the difference of two variants' mean loss.

    The two were measured on the same parts of a text, where one is hard on both: their differences vary far less than
    they do. With too few parts to see that, the two errors are taken as independent.
    """
    if len(a.score.parts) != len(b.score.parts) or len(a.score.parts) < MIN_PAIRS:
        return math.hypot(a.score.loss_se, b.score.loss_se)
    pairs = [x - y for x, y in zip(a.score.parts, b.score.parts, strict=True)]
    return statistics.stdev(pairs) / math.sqrt(len(pairs))


def explain(taken: Variant, measured: Sequence[Variant], goal: Goal, n_fitting: int, limit: str) -> str:
    """Give the reason for a pick in one sentence.

    Args:
        taken: The pick.
        measured: Every variant measured that keeps the limits.
        goal: What was best.
        n_fitting: Candidates that keep the limits.
        limit: The limits in words, e.g. `100.0 MB`; empty if none.
    """
    measure = taken.score.measure
    loss = f"{measure.number(taken.loss)} ± {measure.number(taken.score.loss_se)}"
    among = f"the {n_fitting} variants for {limit}" if limit else f"the {n_fitting} variants considered"
    if n_fitting == 1:
        among = f"the only variant for {limit}" if limit else "the only variant considered"
    if goal.kind == "size" and taken.loss <= goal.bound:
        reason = (
            f"{taken.candidate.name} is the smallest of {among} with a mean {measure.noun} below {goal.bound:g}: {loss}"
        )
    else:
        best = min(measured, key=lambda v: v.loss)
        reason = (
            f"{taken.candidate.name} is the closest to the original of {among}, with a mean {measure.noun} of {loss}"
        )
        if best is not taken:
            reason += f" (within the measurement's error of {best.candidate.name}, which is larger)"
    return reason + _next_below(taken, measured) + "."


def _next_below(taken: Variant, measured: Sequence[Variant]) -> str:
    """Say what the next smaller variant of the front would save and lose."""
    line = front(measured, cost=lambda v: v.candidate.size_bytes, loss=lambda v: v.loss)
    smaller = [v for v in line if v.candidate.size_bytes < taken.candidate.size_bytes and v.loss > taken.loss > 0]
    if not smaller:
        return ""
    saved = format_bytes(taken.candidate.size_bytes - smaller[-1].candidate.size_bytes)
    times = f"{smaller[-1].loss / taken.loss:.1f} times the {taken.score.measure.noun}"
    return f"; {smaller[-1].candidate.name} would save {saved} at {times}"


def _passing_is_possible(waiting: Sequence[Candidate], measured: Sequence[Variant], contest: Contest) -> bool:
    bound = contest.goal.bound
    return any(v.loss <= bound for v in measured) or any(least_loss(c, measured, contest) <= bound for c in waiting)


def _guess(candidate: Candidate, measured: Sequence[Variant], contest: Contest) -> float:
    """Mean loss to expect of a candidate: from the variants measured so far, by rule of thumb before the first."""
    ratios = [v.loss / v.candidate.distortion for v in measured if v.candidate.distortion > 0]
    if not ratios:
        return expected_loss(contest.measure, candidate.distortion, contest.weights)
    return candidate.distortion * statistics.median(ratios)


def _for_the_picture(waiting: Sequence[Candidate], measured: Sequence[Variant], contest: Contest) -> Candidate | None:
    """Return a neighbour of the pick on the expected curve, while there are too few points to see a trade-off."""
    taken = pick(measured, contest.goal)
    if len(measured) >= contest.points or taken is None:
        return None
    known = [v.candidate for v in measured]
    curve = front([*waiting, *known], cost=lambda c: c.size_bytes, loss=lambda c: c.distortion)
    neighbours = [c for c in curve if c not in known] or list(waiting)
    return min(neighbours, key=lambda c: abs(c.size_bytes - taken.candidate.size_bytes), default=None)
