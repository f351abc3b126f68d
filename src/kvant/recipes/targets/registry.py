"""The formats that models are made in: entry points of the group `kvant.targets`, the built-in ones among them.

A distribution adds a format with

    [project.entry-points."kvant.targets"]
    mine = "mine.target:Mine"

where `Mine()` is a `Target`; the entry's name is the format's.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kvant.errors import PlanError, ValueRangeError
from kvant.plugins import Registry

if TYPE_CHECKING:
    from kvant.model import Model
    from kvant.recipes.targets.base import Target

TARGETS: "Registry[Callable[[], Target]]" = Registry("kvant.targets", "formats to write")


def find_target(name: str) -> "Target":
    """Return a format by its name.

    Raises:
        ValueRangeError: There is none of that name.
        KvantError: What adds it cannot be loaded.
    """
    if name not in TARGETS.names:
        raise ValueRangeError(f"format: {name!r} is none of {', '.join(TARGETS.names)}. Choose one of these.")
    return TARGETS.get(name)()


def targets_of(formats: Sequence[str], model: "Model", presets: Sequence[str] = ()) -> "tuple[Target, ...]":
    """Return the formats asked for of a model, each checked before hours of work.

    Args:
        formats: Their names; the first one's variant is the pick.
        model: The full-precision model.
        presets: Presets that are asked for: each must be one of these formats'.

    Raises:
        ValueRangeError: One is unknown or named twice, or there is none.
        PlanError: A preset is none of theirs.
        KvantError: One cannot be made of this model.
    """
    if not formats or len(set(formats)) < len(formats):
        raise ValueRangeError(f"formats: {', '.join(formats) or 'none'}: name one or more, each once.")
    found = tuple(find_target(name) for name in formats)
    for preset in presets:
        if not any(target.knows(preset) for target in found):
            raise PlanError(
                f"candidates: {preset!r} is no preset of {', '.join(formats)}. See docs/reference/block-types.md."
            )
    for target in found:
        target.check(model)
    return found
