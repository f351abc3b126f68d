"""Candidates beyond presets: the block type of every tensor chosen for a size, and encoded under its Hessian."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import msgspec

from kvant.allocate.correct import Measurement
from kvant.allocate.options import Option
from kvant.allocate.plan import plan_choice
from kvant.allocate.search import search
from kvant.allocate.solver import Solution, solve
from kvant.devices.profiles import Profile
from kvant.errors import BudgetError
from kvant.model import Model
from kvant.quant.curvature import Curvatures
from kvant.recipes.candidates import Candidate, make_candidate
from kvant.recipes.choose import Variant
from kvant.recipes.quantize import predict_size
from kvant.recipes.rounding import predicted_kld

STEPS = 10
"""Sizes between the smallest choice and 8 bits."""

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
    """

    model: Model
    profile: Profile
    options: Mapping[str, Sequence[Option]]
    curvatures: Curvatures
    context: int

    def ladder(self, max_size_bytes: int | None = None) -> list[Candidate]:
        """Return the best plans by prediction for some sizes, the largest allowed among them.

        Args:
            max_size_bytes: Largest file; None for any.

        Returns:
            Candidates by rising size; empty if even the smallest is too large.
        """
        room, least = self.room(max_size_bytes), self._solution.least_bytes
        budgets = {least + (self._most - least) * step // STEPS for step in range(STEPS + 1)}
        found: dict[str, Candidate] = {}
        for budget in sorted({room, *budgets}):
            if least <= budget <= room:
                made = self.candidate(_types(self._solution.at(budget)))
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
        return msgspec.structs.replace(
            made,
            is_fitted=True,
            predicted_kld=predicted_kld(self.options, types),
            distortion=made.distortion * FITTED_GAIN,
        )

    def room(self, max_size_bytes: int | None) -> int:
        """Return how many bytes of a file are for the tensors that have a choice; all that can be used if None."""
        return self._most if max_size_bytes is None else min(self._most, max_size_bytes - self._rest)

    def refine(
        self, measured: Sequence[Variant], max_size_bytes: int, runs: int, measure: Callable[[Candidate], Variant]
    ) -> list[Variant]:
        """Correct the predictions by what was measured, and measure the plans that look best then.

        Args:
            measured: Variants measured so far; the fitted ones teach.
            max_size_bytes: Largest file.
            runs: Most measurements.
            measure: Makes and measures a candidate.

        Returns:
            The variants measured.
        """
        known = {v.candidate.plan.sha256: v for v in measured if v.candidate.is_fitted}
        found: list[Variant] = []

        def kld_of(types: dict[str, str]) -> float:
            candidate = self.candidate(types, [v.candidate.preset for v in (*measured, *found)])
            same = [v for v in measured if v.candidate.plan.types == candidate.plan.types]
            if same:
                return same[0].kld
            found.append(measure(candidate))
            return found[-1].kld

        lessons = [Measurement(types=self._choice(v.candidate), kld=v.kld) for v in known.values()]
        try:
            search(self.options, self.room(max_size_bytes), kld_of, runs=runs, known=lessons)
        except BudgetError:  # not even the smallest choice fits; presets may
            return []
        return found

    def _choice(self, candidate: Candidate) -> dict[str, str]:
        return {name: candidate.plan.types[name] for name in self.options}

    @cached_property
    def _most(self) -> int:
        return sum(max(option.n_bytes for option in kinds) for kinds in self.options.values())

    @cached_property
    def _solution(self) -> Solution:
        return solve(self.options, self._most)

    @cached_property
    def _rest(self) -> int:
        """Bytes of a file beside the tensors that have a choice."""
        types = _types(self._solution.at(self._solution.least_bytes))
        plan = plan_choice(self.model, types, preset="kvant-0.00-0")
        return predict_size(self.model, plan, None, self.curvatures) - self._solution.least_bytes


def _types(chosen: Mapping[str, Option]) -> dict[str, str]:
    return {name: option.kind for name, option in chosen.items()}
