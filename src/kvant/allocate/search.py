"""Find the best plan with a few real measurements: solve, measure, correct the predicted costs, solve again.

When the solver returns to a plan that was measured, or promises no gain above the noise, runs that are left go to
neighbours: the best plans if one factor that the model is unsure of were larger or smaller than believed. Each keeps
the budget, moves those tensors which that factor decides, and teaches the factor. The one that would gain most if the
doubt were right comes first.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kvant.allocate.correct import DEFAULT_NOISE, Belief, Measurement, Options, correct
from kvant.allocate.deadline import solve_within
from kvant.allocate.options import Option
from kvant.errors import ValueRangeError

MAX_RUNS = 10
MISFIT = 0.03
"""Relative error of what factors say of a plan: SmolLM2's mixes of 77 to 105 MB are told within 2.5 %.

Taken for 1 %, factors bend further than plans follow: one that was promised .0162 had .0169, where .0164 was known.
"""

# How far a factor is moved, in standard deviations, to find a neighbour.
MOVE = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One plan that was measured.

    Attributes:
        why: `optimum`, or `neighbour: <group> +` or `-`: the factor that was moved to find it.
        types: Block type by tensor name.
        n_bytes: Bytes of its tensors.
        predicted: Mean KLD expected of it by what was known before, nats per token.
        kld: Mean KLD measured, nats per token.
    """

    why: str
    types: dict[str, str]
    n_bytes: int
    predicted: float
    kld: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search ends with.

    Attributes:
        best: The step of the lowest KLD measured; of equal ones the first.
        steps: All of them, in the order measured.
        belief: Factors of predicted costs after the last one.
        stopped: Why the search ended: `runs` used up, or nothing `promising` left.
    """

    best: Step
    steps: tuple[Step, ...]
    belief: Belief
    stopped: str


def search(
    options: Mapping[str, Sequence[Option]],
    budget: int,
    measure: Callable[[dict[str, str]], float],
    *,
    runs: int = MAX_RUNS,
    max_seconds: float | None = None,
    max_resident_bytes: int | None = None,
    floor: float = 0.0,
    noise: float = DEFAULT_NOISE,
    known: Sequence[Measurement] = (),
) -> Found:
    """Find the plan of the least measured KLD within a budget.

    Args:
        options: What every tensor may become, with predicted costs.
        budget: Bytes of all these tensors together, padding included.
        measure: Makes the plan given (block type by tensor name) and returns its mean KLD, nats per token.
        runs: Most measurements, 1 to 10.
        max_seconds: Budget of decode time per token; None for any.
        max_resident_bytes: Budget of bytes and the engine's copies together; None for any.
        floor: KLD of a file that loses nothing.
        noise: Relative standard deviation of a measured KLD against another on the same text; smaller gains are none.
        known: Earlier measurements of other plans of the same options; they teach, but cannot win.

    Returns:
        The best plan measured, and the log.

    Raises:
        BudgetError: No choice keeps the budgets.
        ValueRangeError: `runs` is out of range, or a measurement is no number from 0 up.
    """
    if not 1 <= runs <= MAX_RUNS:
        raise ValueRangeError(f"runs: {runs} is not 1 to {MAX_RUNS}. Choose a number between.")
    within = functools.partial(
        solve_within, max_bytes=budget, max_seconds=max_seconds, max_resident_bytes=max_resident_bytes
    )
    steps: list[Step] = []
    belief = correct(options, known, floor=floor, noise=max(noise, MISFIT))
    while len(steps) < runs:
        proposal = next(_proposals(belief, steps, within, noise), None)
        if proposal is None:
            break
        why, chosen = proposal
        types = types_of(chosen)
        kld = measure(dict(types))
        size = sum(option.n_bytes for option in chosen.values())
        steps.append(Step(why=why, types=types, n_bytes=size, predicted=belief.predict(types), kld=kld))
        seen = [*known, *(Measurement(types=step.types, kld=step.kld) for step in steps)]
        belief = correct(options, seen, floor=floor, noise=max(noise, MISFIT))
    stopped = "runs" if len(steps) == runs else "promising"
    return Found(best=min(steps, key=lambda step: step.kld), steps=tuple(steps), belief=belief, stopped=stopped)


def _proposals(
    belief: Belief, steps: Sequence[Step], within: Callable[[Options], dict[str, Option]], noise: float
) -> Iterator[tuple[str, dict[str, Option]]]:
    """Plans worth measuring next, the most promising first."""
    optimum = within(belief.corrected())
    if not steps:
        yield "optimum", optimum
        return
    best, measured = min(steps, key=lambda step: step.kld).types, [step.types for step in steps]
    if types_of(optimum) not in measured and _gain(belief, best, types_of(optimum)) > noise:
        yield "optimum", optimum
    neighbours = []
    for group in belief.groups[1:]:
        for sign, move in (("+", MOVE), ("-", -MOVE)):
            other = belief.shifted(group, move)
            neighbour = within(other.corrected())
            hope = _gain(other, best, types_of(neighbour))
            if types_of(neighbour) not in measured and hope > noise:
                neighbours.append((hope, f"neighbour: {group} {sign}", neighbour))
    for _, why, neighbour in sorted(neighbours, key=lambda found: (-found[0], found[1])):
        yield why, neighbour


def types_of(chosen: Mapping[str, Option]) -> dict[str, str]:
    """Return a choice as block type by tensor name."""
    return {name: option.kind for name, option in chosen.items()}


def _gain(belief: Belief, old: Mapping[str, str], new: Mapping[str, str]) -> float:
    """Logarithm of the predicted KLD of one plan over that of another."""
    before, after = belief.predict(old), belief.predict(new)
    return math.log(before / after) if before and after else math.inf if before else 0.0
