"""What a user asks for: limits that variants must keep, and what counts as best among those that do."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from kvant.devices.profiles import Profile
from kvant.errors import BudgetError, ValueRangeError
from kvant.recipes.candidates import Candidate
from kvant.recipes.words import rounded_down

# Without another wish the smallest variant is taken whose mean KLD stays below this: on the models measured here the
# top choice then agrees with the original's on about 87 % of positions, and perplexity rises by under 5 %.
DEFAULT_MAX_KLD = 0.05
# Predicted speeds below this share of the limit are ruled out before anything was measured; after that, measured
# speeds correct the prediction and only a small margin stays.
UNMEASURED_SPEED_MARGIN = 0.5
MEASURED_SPEED_MARGIN = 0.9


class Budget(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Limits; None where there is none.

    Attributes:
        max_size_bytes: Largest file.
        max_ram_bytes: Most memory while running, at the context asked.
        min_speed_tok_s: Slowest generation.
        max_kld: Largest mean KL divergence from the full-precision model.
        device: Profile whose memory and file limits hold as well.
    """

    max_size_bytes: int | None = None
    max_ram_bytes: int | None = None
    min_speed_tok_s: float | None = None
    max_kld: float | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        """Refuse limits that nothing can keep."""
        for name in ("max_size_bytes", "max_ram_bytes", "min_speed_tok_s", "max_kld"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueRangeError(
                    f"--{name.split('_')[0]}-{name.split('_')[1]}: {value} is not above 0. Give more."
                )


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """What is best among variants that keep the limits.

    Attributes:
        kind: `quality`: the lowest mean KLD; `size`: the smallest file with a mean KLD of at most `max_kld`.
        max_kld: The bound of `size`.
        is_strict: A variant above `max_kld` is no answer; otherwise the best one stands in.
    """

    kind: Literal["quality", "size"]
    max_kld: float = DEFAULT_MAX_KLD
    is_strict: bool = False


def goal_of(budget: Budget) -> Goal:
    """Read the goal from the limits given.

    A limit on size, memory or speed asks for the best quality that keeps it. A limit on KLD asks for the smallest file
    that keeps it. No limit, or only a device, asks for the smallest file that is close to the original.
    """
    if budget.max_kld is not None:
        return Goal(kind="size", max_kld=budget.max_kld, is_strict=True)
    if budget.max_size_bytes or budget.max_ram_bytes or budget.min_speed_tok_s:
        return Goal(kind="quality")
    return Goal(kind="size")


def why_not(candidate: Candidate, budget: Budget, profile: Profile, *, speed_scale: float | None = None) -> str:
    """Say which limit a candidate breaks; empty if none.

    Args:
        candidate: A candidate.
        budget: The limits.
        profile: The device it will run on.
        speed_scale: Measured over predicted speed of other variants; None before anything was measured.
    """
    ram = candidate.ram.total_bytes
    limits_ram = [limit for limit in (budget.max_ram_bytes, profile.usable_bytes if budget.device else None) if limit]
    limits_size = [
        limit for limit in (budget.max_size_bytes, profile.max_file_bytes if budget.device else None) if limit
    ]
    if limits_size and candidate.size_bytes > min(limits_size):
        return f"larger than {megabytes(min(limits_size))}"
    if limits_ram and ram > min(limits_ram):
        return f"needs {megabytes(ram)} of memory, more than {megabytes(min(limits_ram))}"
    if budget.min_speed_tok_s:
        margin = UNMEASURED_SPEED_MARGIN if speed_scale is None else MEASURED_SPEED_MARGIN
        speed = candidate.speed_tok_s * (speed_scale or 1.0)
        if speed < budget.min_speed_tok_s * margin:
            return f"predicted {speed:.0f} tokens/s, slower than {budget.min_speed_tok_s:g}"
    return ""


def affordable(
    candidates: Sequence[Candidate], budget: Budget, profile: Profile, *, speed_scale: float | None = None
) -> list[Candidate]:
    """Return the candidates that keep the limits, by prediction; `speed_scale` as for `why_not`.

    Raises:
        BudgetError: None does.
    """
    fitting = [c for c in candidates if not why_not(c, budget, profile, speed_scale=speed_scale)]
    if not fitting:
        raise BudgetError(_impossible(candidates, budget, profile))
    return fitting


def _impossible(candidates: Sequence[Candidate], budget: Budget, profile: Profile) -> str:
    """Say how close the nearest candidate comes and what to do."""
    if not candidates:
        return "budget: there are no candidates. Pass --candidates with presets that need no importance."
    smallest = min(candidates, key=lambda c: c.size_bytes)
    least = min(candidates, key=lambda c: c.ram.total_bytes)
    fastest = max(candidates, key=lambda c: c.speed_tok_s)
    broken = why_not(smallest, budget, profile) or why_not(least, budget, profile) or why_not(fastest, budget, profile)
    return (
        f"budget: no variant of this model keeps it; the smallest possible is {smallest.preset} with "
        f"{megabytes(smallest.size_bytes)} ({smallest.size_bytes} bytes), the least memory is "
        f"{megabytes(least.ram.total_bytes)} ({least.ram.total_bytes} bytes, {least.preset}) at a context of "
        f"{least.ram.context}, the fastest is predicted at {rounded_down(fastest.speed_tok_s)} tokens/s "
        f"({fastest.preset}); {smallest.preset}: {broken}. "
        f"Allow more, ask for a shorter --context, or start from a model with fewer weights."
    )


def megabytes(n: float) -> str:
    """A size for people, decimal."""
    if n < 50_000:  # 0.0 MB
        return f"{n:.0f} bytes"
    return f"{n / 1e9:.2f} GB" if n >= 999.5e6 else f"{n / 1e6:.1f} MB"
