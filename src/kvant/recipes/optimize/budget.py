"""Which candidates keep the limits by prediction, and which limit one breaks."""

from collections.abc import Sequence

from kvant.devices.profiles import Profile
from kvant.errors import BudgetError
from kvant.recipes.goal import Budget
from kvant.recipes.measure.words import rounded_down
from kvant.recipes.targets.candidate import Candidate
from kvant.units import format_bytes, format_speed

# Share of the limit below which a speed that measurements corrected rules a candidate out.
MEASURED_SPEED_MARGIN = 0.9


def why_not(
    candidate: Candidate, budget: Budget, profile: Profile, *, margin: float, speed_scale: float | None = None
) -> str:
    """Say which limit a candidate breaks; empty if none.

    Args:
        candidate: A candidate.
        budget: The limits.
        profile: The device it will run on.
        margin: Share of the speed asked for below which a prediction rules it out before anything was measured.
        speed_scale: Measured over predicted speed of other variants; None before anything was measured.
    """
    ram = candidate.ram.total_bytes
    limits_ram = [limit for limit in (budget.max_ram_bytes, profile.usable_bytes if budget.device else None) if limit]
    whole, eyes = budget.max_size_bytes, candidate.beside_bytes
    seen = f", its projector of {format_bytes(eyes)} included" if eyes else ""
    if whole and candidate.size_bytes + eyes > whole:
        return f"larger than {format_bytes(whole)}{seen}"
    if budget.device and profile.max_file_bytes and candidate.size_bytes > profile.max_file_bytes:
        return f"larger than {format_bytes(profile.max_file_bytes)}"
    if limits_ram and ram > min(limits_ram):
        taken = f", {format_bytes(candidate.ram.projector_bytes)} of it its projector" if eyes else ""
        return f"needs {format_bytes(ram)} of memory{taken}, more than {format_bytes(min(limits_ram))}"
    if budget.min_speed_tok_s:
        share = margin if speed_scale is None else MEASURED_SPEED_MARGIN
        speed = candidate.speed_tok_s * (speed_scale or 1.0)
        if speed < budget.min_speed_tok_s * share:
            return f"predicted {format_speed(speed)} tokens/s, slower than {budget.min_speed_tok_s:g}"
    return ""


def affordable(
    candidates: Sequence[Candidate], budget: Budget, profile: Profile, *, margin: float,
    speed_scale: float | None = None,
) -> list[Candidate]:  # fmt: skip
    """Return the candidates that keep the limits, by prediction; `margin` and `speed_scale` as for `why_not`.

    Raises:
        BudgetError: None does.
    """
    fitting = [c for c in candidates if not why_not(c, budget, profile, margin=margin, speed_scale=speed_scale)]
    if not fitting:
        raise BudgetError(_impossible(candidates, budget, profile, margin))
    return fitting


def _impossible(candidates: Sequence[Candidate], budget: Budget, profile: Profile, margin: float) -> str:
    """Say how close the nearest candidate comes and what to do."""
    if not candidates:
        return "budget: there are no candidates. Pass --candidates with presets that need no importance."
    smallest = min(candidates, key=lambda c: c.size_bytes)
    least = min(candidates, key=lambda c: c.ram.total_bytes)
    fastest = max(candidates, key=lambda c: c.speed_tok_s)
    reasons = (why_not(c, budget, profile, margin=margin) for c in (smallest, least, fastest))
    broken = next(filter(None, reasons), "")
    eyes = smallest.beside_bytes
    beside = f" and its projector {format_bytes(eyes)}" if eyes else ""
    without = " Or leave its eyes and ears out: --mmproj none." if eyes else ""
    return (
        f"budget: no variant of this model keeps it; the smallest possible is {smallest.name} with "
        f"{format_bytes(smallest.size_bytes)} ({smallest.size_bytes} bytes){beside}, the least memory is "
        f"{format_bytes(least.ram.total_bytes)} ({least.ram.total_bytes} bytes, {least.name}) at a context of "
        f"{least.ram.context}, the fastest is predicted at {rounded_down(fastest.speed_tok_s)} tokens/s "
        f"({fastest.name}); {smallest.name}: {broken}. "
        f"Allow more, ask for a shorter --context, or start from a model with fewer weights.{without}"
    )
