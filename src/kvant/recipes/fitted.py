"""Candidates beyond presets: the block type of every tensor chosen for a size, and encoded under its Hessian."""

from collections.abc import Mapping, Sequence

import msgspec

from kvant.allocate.options import Option
from kvant.allocate.plan import plan_choice
from kvant.allocate.solver import Solution, solve
from kvant.devices.profiles import Profile
from kvant.model import Model
from kvant.quant.curvature import Curvatures
from kvant.recipes.candidates import Candidate, make_candidate
from kvant.recipes.quantize import predict_size
from kvant.recipes.rounding import predicted_kld

STEPS = 10
"""Sizes between the smallest choice and 8 bits."""

FITTED_GAIN = 0.4
"""Distortion of a fitted plan over that of the same types searched with importance: .36 to .61 by type on SmolLM2."""


def fitted_candidates(
    model: Model,
    profile: Profile,
    options: Mapping[str, Sequence[Option]],
    curvatures: Curvatures,
    *,
    context: int,
    max_size_bytes: int | None = None,
) -> list[Candidate]:
    """Return the best plans by prediction for a ladder of sizes, and for the largest size allowed.

    Args:
        model: The full-precision model.
        profile: The device it will run on.
        options: What every tensor may become, from `rounding_options`.
        curvatures: What the plans will be encoded under.
        context: Tokens of context that memory is predicted for.
        max_size_bytes: Largest file; None for any.

    Returns:
        Candidates by rising size; empty if even the smallest is too large.
    """
    most = sum(max(option.n_bytes for option in kinds) for kinds in options.values())
    solution = solve(options, most)
    rest = _size(model, _types(solution, solution.least_bytes), curvatures) - solution.least_bytes
    room = most if max_size_bytes is None else min(most, max_size_bytes - rest)
    budgets = {solution.least_bytes + (most - solution.least_bytes) * step // STEPS for step in range(STEPS + 1)}
    found: dict[str, Candidate] = {}
    for budget in sorted({room, *budgets}):
        if not solution.least_bytes <= budget <= room:
            continue
        types = _types(solution, budget)
        plan = plan_choice(model, types, preset="kvant")
        plan = msgspec.structs.replace(plan, preset=f"kvant-{plan.bpw(model):.2f}")
        size = predict_size(model, plan, None, curvatures)
        made = make_candidate(model, [plan], size, profile, context)
        found.setdefault(
            made.preset,
            msgspec.structs.replace(
                made,
                is_fitted=True,
                predicted_kld=predicted_kld(options, types),
                distortion=made.distortion * FITTED_GAIN,
            ),
        )
    return sorted(found.values(), key=lambda c: c.size_bytes)


def _types(solution: Solution, budget: int) -> dict[str, str]:
    return {name: option.kind for name, option in solution.at(budget).items()}


def _size(model: Model, types: dict[str, str], curvatures: Curvatures) -> int:
    return predict_size(model, plan_choice(model, types, preset="kvant-0.00"), None, curvatures)
