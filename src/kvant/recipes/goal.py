"""What is asked of a variant: limits, and what is best among those that keep them."""

import math
from typing import Literal

import msgspec

from kvant.errors import ValueRangeError
from kvant.evaluate.loss import KLD, MEASURES, Measure


class Budget(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Limits; None where there is none.

    Attributes:
        max_size_bytes: Largest file.
        max_ram_bytes: Most memory while running, at the context asked.
        min_speed_tok_s: Slowest generation.
        max_kld: Largest mean KL divergence from the full-precision model, of one that writes text.
        max_distance: Largest mean cosine distance to its vectors, of one that makes vectors of texts.
        device: Profile whose memory and file limits hold as well.
    """

    max_size_bytes: int | None = None
    max_ram_bytes: int | None = None
    min_speed_tok_s: float | None = None
    max_kld: float | None = None
    max_distance: float | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        """Refuse limits that nothing can keep."""
        for name in ("max_size_bytes", "max_ram_bytes", "min_speed_tok_s", "max_kld", "max_distance"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueRangeError(
                    f"--{name.split('_')[0]}-{name.split('_')[1]}: {value} is not above 0. Give more."
                )


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """What is best among variants that keep the limits.

    Attributes:
        kind: `quality`: the lowest mean loss; `size`: the smallest file whose mean loss keeps the bound.
        max_kld: The bound of `size` where the loss is KL divergence; else None, like the next.
        max_distance: The bound of `size` where it is the cosine distance of vectors.
        is_strict: A variant above the bound is no answer; otherwise the best one stands in.
    """

    kind: Literal["quality", "size"]
    max_kld: float | None = None
    max_distance: float | None = None
    is_strict: bool = False

    @property
    def bound(self) -> float:
        """The bound of the mean loss, whatever it is measured in; infinite without."""
        given = (self.max_kld, self.max_distance)
        return next((bound for bound in given if bound is not None), math.inf)


def goal_of(budget: Budget, measure: Measure = KLD) -> Goal:
    """Read the goal from the limits given.

    A limit on size, memory or speed asks for the best quality that keeps it. A limit on the loss asks for the smallest
    file that keeps it. No limit, or only a device, asks for the smallest file that is close to the original.

    Args:
        budget: The limits.
        measure: What the loss of the model's variants is measured in.

    Raises:
        ValueRangeError: A loss is bounded that is measured otherwise.
    """
    for other in MEASURES.values():
        if other is not measure and getattr(budget, other.limit) is not None:
            raise ValueRangeError(
                f"{other.option}: bounds the {other.long} of models that {other.does}, and this is one of those that "
                f"{measure.does}. Bound its {measure.long} instead: {measure.option} {measure.default_limit:g}"
            )
    asked = getattr(budget, measure.limit)
    seeks_quality = budget.max_size_bytes or budget.max_ram_bytes or budget.min_speed_tok_s
    made = Goal(kind="quality" if seeks_quality and asked is None else "size", is_strict=asked is not None)
    return msgspec.structs.replace(made, **{measure.limit: measure.default_limit if asked is None else asked})
