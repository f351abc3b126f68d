"""Candidates beyond presets: the block type of every tensor chosen for limits, and encoded under its Hessian."""

import bisect
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

import msgspec
import numpy as np

from kvant.allocate.correct import Measurement, correct
from kvant.allocate.deadline import solve_within
from kvant.allocate.options import Option
from kvant.allocate.plan import plan_choice
from kvant.allocate.search import search, types_of
from kvant.allocate.smallest import smallest
from kvant.allocate.solver import Solution, solve
from kvant.devices.profiles import Profile
from kvant.errors import BudgetError
from kvant.model import Model
from kvant.quant.curvature import Curvatures
from kvant.recipes.goal import Goal
from kvant.recipes.measure.base import Floor
from kvant.recipes.measure.rounding import predicted_kld
from kvant.recipes.optimize.variant import Variant
from kvant.recipes.targets.candidate import Candidate
from kvant.recipes.targets.gguf.pace import Pace, paced
from kvant.recipes.targets.gguf.presets import make_candidate
from kvant.recipes.targets.gguf.write import predict_size
from kvant.recipes.targets.limits import Limits

STEPS = 10
"""Sizes between the smallest choice and 8 bits."""

CURVE_POINTS = 80

FITTED_GAIN = 0.4
"""Distortion of a fitted plan over that of the same types searched with importance: .36 to .61 by type on SmolLM2."""


@dataclass(frozen=True, kw_only=True)
class Mixes:
    """The best mixes of block types for any size.

    Attributes:
        model: The full-precision model.
        profile: The device it will run on.
        options: What every tensor may become, from `rounding_options`.
        curvatures: What the plans will be encoded under.
        context: Tokens of context that memory is predicted for.
        limits: What files may take.
        floor: KLD that no mix goes below; see `engine_floor`.
        pace: How long a token takes on the device; None where speed does not matter.
    """

    model: Model
    profile: Profile
    options: Mapping[str, Sequence[Option]]
    curvatures: Curvatures
    context: int
    limits: Limits
    floor: float = 0.0
    pace: Pace | None = None

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
        plan = plan_choice(self.model, types, preset="kvant")
        name = f"kvant-{plan.bpw(self.model):.2f}"
        others = sum(other == name or other.startswith(f"{name}-") for other in taken)
        plan = msgspec.structs.replace(plan, preset=f"{name}-{others + 1}" if others else name)
        size = predict_size(self.model, plan, None, self.curvatures)
        made = make_candidate(self.model, [plan], size, self.profile, self.context)
        if self.pace:
            (made,) = paced([made], self.model, self.pace)
        return msgspec.structs.replace(
            made,
            is_fitted=True,
            predicted_kld=predicted_kld(self.options, types),
            distortion=made.distortion * FITTED_GAIN,
        )

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
            measured: Variants measured so far; the fitted ones teach.
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
                return same[0].kld
            found.append(measure(candidate))
            return found[-1].kld

        known = self.lessons(measured)
        others = self._others(late_s)
        with contextlib.suppress(BudgetError):  # not even the smallest choice fits; presets may
            if goal.kind == "quality":
                search(self.options, self._room, kld_of, runs=runs, known=known, floor=self.floor, **others)
            else:
                smallest(
                    self.options, goal.max_kld, kld_of, max_bytes=self._room, runs=runs, known=known, floor=self.floor,
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
        return [(points[i][0] + self._rest, points[i][1] + belief.floor) for i in chosen]

    def lessons(self, measured: Sequence[Variant]) -> list[Measurement]:
        """Return what measured variants teach about the options: those made of them under Hessians."""
        known = {v.candidate.plan.sha256: v for v in measured if v.candidate.is_fitted}
        return [Measurement(types=self._choice(v.candidate), kld=v.kld) for v in known.values()]

    def _best(self, budget: int) -> dict[str, Option]:
        """The best choice of at most so many bytes that keeps the other limits."""
        if self.limits.are_plain:
            return self._solution.at(budget)
        return solve_within(self.options, max_bytes=budget, **self._others())

    def _others(self, late_s: float = 0.0) -> "_Others":
        """The limits beside bytes, for the tensors that have a choice."""
        seconds, resident = self.limits.max_seconds, self.limits.max_resident_bytes
        return {
            "max_seconds": None if seconds is None else max(0.0, seconds - late_s),
            "max_resident_bytes": None if resident is None else resident - self._rest,
        }

    def _choice(self, candidate: Candidate) -> dict[str, str]:
        return {name: candidate.plan.types[name] for name in self.options}

    @cached_property
    def _room(self) -> int:
        """Bytes of a file that are for the tensors that have a choice; all that can be used if there is no limit."""
        limit = self.limits.max_file_bytes
        return self._most if limit is None else min(self._most, limit - self._rest)

    @cached_property
    def _most(self) -> int:
        return sum(max(option.n_bytes for option in kinds) for kinds in self.options.values())

    @cached_property
    def _solution(self) -> Solution:
        return solve(self.options, self._most)

    @cached_property
    def _rest(self) -> int:
        """Bytes of a file beside the tensors that have a choice."""
        types = types_of(self._solution.at(self._solution.least_bytes))
        plan = plan_choice(self.model, types, preset="kvant-0.00-0")
        return predict_size(self.model, plan, None, self.curvatures) - self._solution.least_bytes


def engine_floor(floors: Sequence[Floor], options: Mapping[str, Sequence[Option]]) -> float:
    """Return the KLD that the engine's own rounding of activations adds to every mix, nats per token.

    It is what a copy in Q8_0 was measured to lose beyond what its weights are predicted to.
    """
    measured = sum(floor.kld_mean for floor in floors if floor.name == "Q8_0")
    return max(0.0, measured - predicted_kld(options, dict.fromkeys(options, "Q8_0")))


class _Others(TypedDict):
    """Limits beside bytes."""

    max_seconds: float | None
    max_resident_bytes: int | None
