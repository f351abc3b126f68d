"""The formats that models are made in: entry points of the group `kvant.targets`, the built-in ones among them.

A distribution adds a format with

    [project.entry-points."kvant.targets"]
    mine = "mine.target:Mine"

where `Mine()` is a `Target`; the entry's name is the format's.
"""

from collections.abc import Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from kvant.errors import KvantError, PlanError, ValueRangeError

if TYPE_CHECKING:
    from kvant.model import Model
    from kvant.recipes.targets.base import Target

GROUP = "kvant.targets"


def names() -> tuple[str, ...]:
    """Return the names of all formats, sorted."""
    return tuple(_entries())


def find_target(name: str) -> "Target":
    """Return a format by its name.

    Raises:
        ValueRangeError: There is none of that name.
        KvantError: What adds it cannot be loaded.
    """
    entry = _entries().get(name)
    if entry is None:
        raise ValueRangeError(f"format: {name!r} is none of {', '.join(names())}. Choose one of these.")
    return _loaded(entry)


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


@cache
def _entries() -> dict[str, EntryPoint]:
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if not found:
        raise KvantError("kvant: its installation names no formats. Install it again: pip install --force-reinstall.")
    return dict(sorted(found.items()))


@cache
def _loaded(entry: EntryPoint) -> "Target":
    try:
        made: Target = entry.load()()
    except Exception as error:
        raise KvantError(
            f"{entry.value}: the format {entry.name} cannot be loaded ({error}). Mend or remove it."
        ) from error
    return made
