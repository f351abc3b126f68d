"""Candidates beyond presets: the type of every tensor chosen for limits, and encoded under its Hessian."""

import bisect
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

import numpy as np

from kvant.allocate.correct import Measurement, correct
from kvant.allocate.deadline import solve_within
from kvant.allocate.options import Option
from kvant.allocate.search import search, types_of
from kvant.allocate.smallest import smallest
from kvant.allocate.solver import Solution, solve
from kvant.errors import BudgetError
from kvant.recipes.goal import Goal
from kvant.recipes.optimize.variant import Variant
from kvant.recipes.targets.base import Options, Workshop
from kvant.recipes.targets.candidate import Candidate

STEPS = 10
"""Sizes between the smallest choice and 8 bits."""

CURVE_POINTS = 80


@dataclass(frozen=True, kw_only=True)
class Mixes:
    """The best mixes of types for any size.

    Attributes:
        workshop: What makes them.
        options: What every tensor may become.
        floor: KLD that no mix goes below.
    """

    workshop: Workshop
    options: Options
    floor: float = 0.0

    def ladder(self) -> list[Candidate]:
        """Return the best plans by prediction for some sizes within the limits, the largest allowed among them.

        Returns:
            Candidates by rising size; empty if nothing keeps the limits.
        """
        room, least = self._room, self._solution.least_bytes
        budgets = {least + (self._most - least) * step // STEPS for step in range(STEPS + 1)}
        found: dict[str, Candidate] = {}
        for budget in sorted({room, *budgets}):
            if least <= budget <= room:
                with contextlib.suppress(BudgetError):  # too small to be fast enough
                    made = self.candidate(types_of(self._best(budget)))
                    found.setdefault(made.preset, made)
        return sorted(found.values(), key=lambda c: c.size_bytes)

    def candidate(self, types: Mapping[str, str], taken: Iterable[str] = ()) -> Candidate:
        """Return the candidate of a choice of types; it is named by its bits per weight, apart from names taken."""

        def name(bpw: float) -> str:
            plain = f"kvant-{bpw:.2f}"
            others = sum(other == plain or other.startswith(f"{plain}-") for other in taken)
            return f"{plain}-{others + 1}" if others else plain

        return self.workshop.mix(types, name)

    def refine(
        self,
        measured: Sequence[Variant],
        goal: Goal,
        runs: int,
        measure: Callable[[Candidate], Variant],
        *,
        late_s: float = 0.0,
    ) -> list[Variant]:
        """Correct the predictions by what was measured, and measure the plans that look best then.

        Args:
            measured: Variants measured so far; those made of the options teach.
            goal: What is best: the lowest KLD within the limits, or the smallest file that keeps a bound on it.
            runs: Most measurements.
            measure: Makes and measures a candidate.
            late_s: Seconds per token that variants took beyond their prediction.

        Returns:
            The variants measured.
        """
        found: list[Variant] = []

        def kld_of(types: dict[str, str]) -> float:
            candidate = self.candidate(types, [v.candidate.preset for v in (*measured, *found)])
            same = [v for v in measured if v.candidate.plan.types == candidate.plan.types]
            if same:
                return same[0].loss
            found.append(measure(candidate))
            return found[-1].loss

        known = self.lessons(measured)
        others = self._others(late_s)
        with contextlib.suppress(BudgetError):  # not even the smallest choice fits; presets may
            if goal.kind == "quality":
                search(self.options, self._room, kld_of, runs=runs, known=known, floor=self.floor, **others)
            else:
                smallest(
                    self.options, goal.bound, kld_of, max_bytes=self._room, runs=runs, known=known, floor=self.floor,
                    **others,
                )  # fmt: skip
        return found

    def curve(self, measured: Sequence[Variant]) -> list[tuple[int, float]]:
        """Return the least KLD that is expected at every size, from one solve of the corrected predictions.

        Returns:
            Bytes of the file and mean KLD, by rising size; at most `CURVE_POINTS`. Limits on time and memory are not in
            it.
        """
        belief = correct(self.options, self.lessons(measured), floor=self.floor)
        points = solve(belief.corrected(), self._most).curve()
        sizes = np.linspace(points[0][0], points[-1][0], CURVE_POINTS)
        chosen = sorted({bisect.bisect_right(points, size, key=lambda point: point[0]) - 1 for size in sizes})
        return [(points[i][0] + self.workshop.rest_bytes, points[i][1] + belief.floor) for i in chosen]

    def lessons(self, measured: Sequence[Variant]) -> list[Measurement]:
        """Return what measured variants teach about the options: those made of them."""
        known = {v.candidate.plan.sha256: v for v in measured}
        choices = [(self.workshop.choice(v.candidate), v) for v in known.values()]
        return [Measurement(types=types, kld=v.loss) for types, v in choices if types is not None]

    def _best(self, budget: int) -> dict[str, Option]:
        """The best choice of at most so many bytes that keeps the other limits."""
        if self.workshop.limits.are_plain:
            return self._solution.at(budget)
        return solve_within(self.options, max_bytes=budget, **self._others())

    def _others(self, late_s: float = 0.0) -> "_Others":
        """The limits beside bytes, for the tensors that have a choice."""
        limits = self.workshop.limits
        seconds, resident = limits.max_seconds, limits.max_resident_bytes
        return {
            "max_seconds": None if seconds is None else max(0.0, seconds - late_s),
            "max_resident_bytes": None if resident is None else resident - self.workshop.rest_bytes,
        }

    @cached_property
    def _room(self) -> int:
        """Bytes of a file that are for the tensors that have a choice; all that can be used if there is no limit."""
        limit = self.workshop.limits.max_file_bytes
        return self._most if limit is None else min(self._most, limit - self.workshop.rest_bytes)

    @cached_property
    def _most(self) -> int:
        return sum(max(option.n_bytes for option in kinds) for kinds in self.options.values())

    @cached_property
    def _solution(self) -> Solution:
        return solve(self.options, self._most)


class _Others(TypedDict):
    """Limits beside bytes."""

    max_seconds: float | None
    max_resident_bytes: int | None
