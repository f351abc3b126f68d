"""Find the smallest plan whose measured KLD keeps a bound, with a few real measurements.

One solve of the corrected predictions gives the least KLD at every size; where that curve meets the bound lies the
next plan to measure. What it measures corrects the predictions, the curve moves, and so on: a plan that misses the
bound sends the next one up, one that keeps it sends it down, until the next would save next to nothing.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from kvant.allocate.correct import DEFAULT_NOISE, Belief, Measurement, correct
from kvant.allocate.deadline import solve_within
from kvant.allocate.options import Option, picked, resident_bytes, total_bytes, total_seconds
from kvant.allocate.search import MAX_RUNS, Found, Step, types_of
from kvant.allocate.solver import solve
from kvant.errors import BudgetError, ValueRangeError

LEAST_SAVING = 0.001
"""Share of the bytes that a further plan must promise to save."""

SIZES = 14
"""Halvings of the range of sizes where limits of time or memory forbid reading the size off one curve."""

Choice = dict[str, Option]


def smallest(
    options: Mapping[str, Sequence[Option]],
    bound: float,
    measure: Callable[[dict[str, str]], float],
    *,
    max_bytes: int,
    runs: int = MAX_RUNS,
    max_seconds: float | None = None,
    max_resident_bytes: int | None = None,
    floor: float = 0.0,
    noise: float = DEFAULT_NOISE,
    known: Sequence[Measurement] = (),
) -> Found | None:
    """Find the smallest plan with a measured KLD of at most `bound`.

    Args:
        options: What every tensor may become, with predicted costs.
        bound: Largest mean KLD, nats per token.
        measure: Makes the plan given (block type by tensor name) and returns its mean KLD, nats per token.
        max_bytes: Bytes of all these tensors together that are allowed, padding included.
        runs: Most measurements, 1 to 10.
        max_seconds: Budget of decode time per token; None for any.
        max_resident_bytes: Budget of bytes and the engine's copies together; None for any.
        floor: KLD of a file that loses nothing.
        noise: Relative standard deviation of a measured KLD against another on the same text.
        known: Earlier measurements of other plans of the same options; they teach, and only smaller plans are sought
            than those of them that keep bound and budgets.

    Returns:
        The plans measured, `best` being the smallest that keeps the bound, else the closest; None if nothing smaller
        than what is known was promising.

    Raises:
        BudgetError: No choice keeps the budgets.
        ValueRangeError: The bound is not above 0, `runs` is out of range, or a measurement is no number from 0 up.
    """
    if not (bound > 0 and 1 <= runs <= MAX_RUNS):
        raise ValueRangeError(f"bound {bound}, runs {runs}: need above 0 and 1 to {MAX_RUNS}. Choose such numbers.")
    within = functools.partial(solve_within, max_seconds=max_seconds, max_resident_bytes=max_resident_bytes)
    is_plain = max_seconds is None and max_resident_bytes is None
    seen = list(known)
    steps: list[Step] = []
    belief = correct(options, seen, floor=floor, noise=noise)
    while len(steps) < runs:
        limit = _smallest_kept(options, seen, bound, max_bytes, max_seconds, max_resident_bytes)
        chosen = _proposal(belief, seen, bound, limit, noise, None if is_plain else within)
        if chosen is None:
            break
        types = types_of(chosen)
        kld = measure(dict(types))
        size = total_bytes(chosen.values())
        steps.append(Step(why="bound", types=types, n_bytes=size, predicted=belief.predict(types), kld=kld))
        seen.append(Measurement(types=types, kld=kld))
        belief = correct(options, seen, floor=floor, noise=noise)
    if not steps:
        return None
    best = min(steps, key=lambda step: (step.kld > bound, step.n_bytes if step.kld <= bound else step.kld))
    return Found(best=best, steps=tuple(steps), belief=belief, stopped="runs" if len(steps) == runs else "promising")


def _smallest_kept(
    options: Mapping[str, Sequence[Option]], seen: Sequence[Measurement], bound: float, max_bytes: int,
    max_seconds: float | None, max_resident: int | None,
) -> int:  # fmt: skip
    """Bytes below which a plan is worth something: those of the smallest that was seen to keep everything asked."""
    best = max_bytes + 1
    for measurement in seen:
        chosen = [picked(kinds, measurement.types[name]) for name, kinds in options.items()]
        is_within = max_seconds is None or total_seconds(chosen) <= max_seconds
        is_within &= max_resident is None or resident_bytes(chosen) <= max_resident
        if measurement.kld <= bound and is_within:
            best = min(best, int(total_bytes(chosen) * (1 - LEAST_SAVING)))
    return best


def _proposal(
    belief: Belief, seen: Sequence[Measurement], bound: float, limit: int, noise: float,
    within: Callable[..., Choice] | None,
) -> Choice | None:  # fmt: skip
    """Return the smallest plan below `limit` bytes that is predicted to keep the bound and was not measured yet.

    Of plans that were measured a finer neighbour is proposed: the bound is taken a little lower. None if there is none.
    """
    measured = [measurement.types for measurement in seen]
    options = belief.corrected()
    room = limit - 1
    try:
        best = within(options, max_bytes=room) if within else solve(options, room).at(room)
    except BudgetError:
        if seen:
            return None
        raise
    is_hopeless = belief.predict(types_of(best)) > bound
    if is_hopeless and any(measurement.kld <= bound for measurement in seen):
        return None
    for step in range(4):
        wanted = bound * math.exp(-step * noise)
        chosen = _smallest_predicted(options, belief, wanted, room, within, best)
        if types_of(chosen) not in measured:
            return chosen
        if chosen == best:
            return None
    return None


def _smallest_predicted(
    options: Mapping[str, Sequence[Option]], belief: Belief, bound: float, room: int,
    within: Callable[..., Choice] | None, best: Choice,
) -> Choice:  # fmt: skip
    """Return the smallest plan predicted to keep a bound; `best`, the finest there is, if none does."""
    if belief.predict(types_of(best)) > bound:
        return best
    if within is None:
        solution = solve(options, room)
        state = int(np.argmax(solution.charges <= bound - belief.floor))
        return solution.at(solution.least_bytes + state * solution.unit_bytes)
    low, high, found = total_bytes(min(k, key=lambda o: o.n_bytes) for k in options.values()), room, best
    for _ in range(SIZES):
        middle = (low + high) // 2
        try:
            chosen = within(options, max_bytes=middle)
        except BudgetError:
            low = middle
            continue
        if belief.predict(types_of(chosen)) <= bound:
            high, found = middle, chosen
        else:
            low = middle
    return found
